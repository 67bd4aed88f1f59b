"""The texts of the measurements, from real sentences, the same in every run.

Mixed: lengths as short texts have them (log-normal, cut to 7–126 tokens, mean about 36.5). Long: 250–402
tokens, evenly. Of one length: so many tokens exactly. A text begins with a drawn sentence and goes on with
those after it.
"""

import math
import random

from tokenizers import Tokenizer
from worker import serve

MIXED, LONG = (7, 126), (250, 402)


class Sentences:
    def __init__(self, tokenizer, path):
        self.tokenizer = Tokenizer.from_file(tokenizer)
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        with open(path, encoding="utf-8") as file:
            self.words = [line.split() for line in file if line.strip()]

    def tokens(self, text):
        return len(self.tokenizer.encode(text).ids)

    def text(self, chance, length):
        """A text of exactly so many tokens, special tokens counted."""
        sentence = chance.randrange(len(self.words))
        words = []
        while self.tokens(" ".join(words)) < length:
            words += self.words[sentence % len(self.words)]
            sentence += 1
        while self.tokens(" ".join(words)) > length:
            words.pop()
        # What is missing now is less than a word; of this one each is a token.
        words += ["the"] * (length - self.tokens(" ".join(words)))
        return " ".join(words)


def make(tokenizer, sentences, kind, count):
    source, chance = Sentences(tokenizer, sentences), random.Random(f"{kind} of Ferry's peers")
    if kind == "mixed":
        lengths = [mixed_length(chance) for _ in range(count)]
    elif kind == "long":
        lengths = [chance.randint(*LONG) for _ in range(count)]
    else:
        lengths = [int(kind)] * count
    texts = [source.text(chance, length) for length in lengths]
    found = [source.tokens(text) for text in texts]
    return {"texts": texts, "mean": sum(found) / len(found), "least": min(found), "most": max(found)}


def mixed_length(chance):
    low, high = MIXED
    while True:
        length = round(chance.lognormvariate(math.log(30.5), 0.6))
        if low <= length <= high:
            return length


serve({"make": make})
