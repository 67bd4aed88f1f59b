"""What the embedding engines have in common: texts to padded arrays, vectors, and the clock.

An engine gives `load(variant, ...) -> run`, where `run(ids, mask, types) -> vectors` is a batch's forward
pass with mean pooling and normalisation. Texts are tokenized before the clock starts, as they are for
Ferry in process; batches are of texts of like length, sorted beforehand.
"""

import time

import numpy as np
from tokenizers import Tokenizer


class Texts:
    def __init__(self, tokenizer):
        self.tokenizer = Tokenizer.from_file(tokenizer)
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(512)

    def batches(self, texts, size):
        """Padded batches, shortest first, and where each text went."""
        encoded = self.tokenizer.encode_batch(texts)
        order = sorted(range(len(texts)), key=lambda at: len(encoded[at].ids))
        for first in range(0, len(order), size):
            places = order[first : first + size]
            width = max(len(encoded[at].ids) for at in places)
            ids, mask = np.zeros((len(places), width), np.int64), np.zeros((len(places), width), np.int64)
            for row, at in enumerate(places):
                one = encoded[at].ids
                ids[row, : len(one)] = one
                mask[row, : len(one)] = 1
            yield places, (ids, mask, np.zeros_like(ids))


def pool(hidden, mask):
    """Mean over the tokens, to length 1."""
    weights = mask[:, :, None].astype(np.float32)
    mean = (hidden * weights).sum(1) / weights.sum(1)
    return mean / np.linalg.norm(mean, axis=1, keepdims=True)


class Engine:
    """The functions of an embedding engine's process."""

    def __init__(self, load):
        self.load_variant, self.runs, self.texts = load, {}, None

    def load(self, variant, tokenizer, **arguments):
        self.texts = self.texts or Texts(tokenizer)
        self.runs[variant] = self.load_variant(variant, **arguments)
        return True

    def vectors(self, variant, texts):
        found = [None] * len(texts)
        for places, arrays in self.texts.batches(texts, 32):
            for at, vector in zip(places, self.runs[variant](*arrays)):
                found[at] = [float(value) for value in vector]
        return found

    def rate(self, variant, texts, batch=32):
        """Texts a second, over all of them once."""
        batches = [arrays for _, arrays in self.texts.batches(texts, batch)]
        run = self.runs[variant]
        begin = time.perf_counter()
        for arrays in batches:
            run(*arrays)
        return len(texts) / (time.perf_counter() - begin)

    def latency(self, variant, texts):
        """Milliseconds of each text alone, tokenized within it."""
        run, found = self.runs[variant], []
        for text in texts:
            begin = time.perf_counter()
            for _, arrays in self.texts.batches([text], 1):
                run(*arrays)
            found.append(1000 * (time.perf_counter() - begin))
        return found

    def functions(self):
        return {"load": self.load, "vectors": self.vectors, "rate": self.rate, "latency": self.latency}
