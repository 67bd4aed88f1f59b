"""WordNet 3.0 as Debian's wordnet-base carries it: synsets, and questions about their usage examples."""
import re

POS_FILES = ("noun", "verb", "adj", "adv")


def read_wordnet(folder):
    """Synsets with lemmas, definition and usage examples (wndb(5): the gloss stands after '|')."""
    synsets = []
    for pos in POS_FILES:
        for line in (folder / f"data.{pos}").read_text(encoding="latin-1").splitlines():
            if line.startswith("  "):
                continue
            data, gloss = line.split(" | ", 1)
            words = data.split()
            lemmas = [words[4 + 2 * i].split("(")[0].replace("_", " ").lower() for i in range(int(words[3], 16))]
            definition = gloss.split('; "')[0].strip().rstrip(";")
            synsets.append({"pos": pos, "lemmas": lemmas, "definition": definition,
                            "examples": re.findall(r'"([^"]+)"', gloss)})
    return synsets


def questions(synsets, senses):
    """(query, right synset, other senses of the word) for each example that contains its word."""
    for synset in synsets:
        for example in synset["examples"]:
            for lemma in synset["lemmas"]:
                stem = lemma[:max(3, len(lemma) - 2)]
                if re.search(r"\b" + re.escape(stem), example.lower()):
                    rivals = [s for s in senses[(lemma, synset["pos"])] if s is not synset]
                    yield f"{lemma}: {example}", synset, rivals
                    break
