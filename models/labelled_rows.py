"""Writes labelled rows as `ferry calibrate` reads them, for the models trained here; only rows held out of their
training. Where the files come from stands in README.md. Standard library only.

    python3 models/labelled_rows.py prompt-injection FOLDER_WITH_test.csv > labels.jsonl [--split validation]
    python3 models/labelled_rows.py definitions FOLDER_WITH_data.noun > labels.jsonl
"""
import argparse
import csv
import json
import random
from pathlib import Path

from wordnet import questions, read_wordnet

LABELS = ["benign", "injection"]
SEED, PAIRS = 17, 3000  # the seed of train_on_minilm.py, whose split this is


def prompt_injection(folder, split):
    with open(folder / f"{split}.csv", newline="", encoding="utf-8-sig") as file:
        for row in csv.DictReader(file):
            yield {"text": row["text"], "label": LABELS[int(row["label"])]}


def definitions(folder):
    """One right and one wrong definition for each example of a synset held out, the wrong one another sense of the
    word where it has one, as in training."""
    synsets = read_wordnet(folder)
    senses = {}
    for synset in synsets:
        for lemma in synset["lemmas"]:
            senses.setdefault((lemma, synset["pos"]), []).append(synset)
    chooser = random.Random(SEED)
    chooser.shuffle(synsets)
    anything = [synset["definition"] for synset in synsets]
    rows = []
    for query, synset, rivals in questions(synsets[:6000], senses):
        rival = chooser.choice(rivals)["definition"] if rivals else chooser.choice(anything)
        rows += [(query, synset["definition"], 1), (query, rival, 0)]
    for query, document, label in rows[:PAIRS]:
        yield {"query": query, "document": document, "label": label}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=["prompt-injection", "definitions"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--split", choices=["validation", "test"], default="test")
    options = parser.parse_args()
    rows = definitions(options.folder) if options.model == "definitions" else prompt_injection(options.folder, options.split)
    for row in rows:
        print(json.dumps(row))


if __name__ == "__main__":
    main()
