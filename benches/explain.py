#!/usr/bin/env python3
"""Ferry's explanations against the Python `shap` package on the same served model, and what they cost alone and under
load. Prints Markdown tables.

    cargo build --release
    python3 models/fetch.py prompt-injection
    python3 models/labelled_rows.py prompt-injection S_LABS > test.jsonl
    python3 benches/explain.py test.jsonl

shap's KernelExplainer calls the served model through gRPC (Classify) with the same words left out of the same texts as
`Explain` does: what differs is whose masks, weights and least squares they are. Short texts have every subset asked
by both, so their shares must agree to rounding; longer ones are sampled by both with different random numbers, and
shap with itself under another seed says how far apart that puts two estimates. Compared: Spearman's rank correlation
of the shares, the largest difference, and how far base and shares are from the value (additivity).
Integrated gradients are held against Ferry's own Kernel SHAP: they answer another question, so how far they agree is a
figure, not a test.
Needs numpy, scipy, shap, and what typed_client.py needs.
"""

import argparse
import json
import statistics
import sys
import threading
import time
from pathlib import Path

import numpy
import shap
from scipy.stats import spearmanr

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "clients"))
import run  # noqa: E402
from typed_client import Ferry  # noqa: E402

MODEL, LABEL = "prompt-injection", "injection"
METHODS = {"kernel_shap": 1, "lime": 2, "occlusion": 3, "integrated_gradients": 4}


def main():
    options = parse()
    texts = [json.loads(line)["text"] for line in options.rows_file.read_text().splitlines()]
    short = [text for text in texts if 4 <= len(text.split()) <= 9][: options.texts]
    long = [text for text in texts if 12 <= len(text.split()) <= 24][: options.texts]
    with run.Server(options.ferry, options.models, options=("--model", MODEL)) as server:
        ferry = Ferry(server.grpc)
        print("| texts | words | whose | Spearman, mean (least) | largest difference | additivity, shap | additivity, Ferry |")
        print("| --- | --- | --- | ---: | ---: | ---: | ---: |")
        for name, chosen in (("every subset", short), ("sampled", long)):
            print(compare(options, ferry, name, chosen), flush=True)
        print()
        print("| texts | words | output | points | Spearman with Kernel SHAP, mean (least) | first word the same | additivity, mean (most) | s, median |")
        print("| --- | --- | --- | ---: | ---: | ---: | ---: | ---: |")
        for output in ("probability", "logit"):
            for points in (50, 200):
                print(gradients(ferry, ferry, short, output, points), flush=True)
        print()
        print("| method | rows | alone, s p50 (p95) | under load, s p50 (p95) | clients' requests/s alone | beside explanations | their p50, ms | beside |")
        print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
        for method in METHODS:
            print(cost(options, server, ferry, method, long), flush=True)


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows_file", type=Path, metavar="FILE", help="labelled rows, as ferry calibrate reads them")
    parser.add_argument("--ferry", type=Path, default=ROOT / "target" / "release" / "ferry")
    parser.add_argument("--models", type=Path, default=ROOT / "models")
    parser.add_argument("--texts", type=int, default=20, help="of either length")
    parser.add_argument("--samples", type=int, default=512, help="of the longer texts")
    parser.add_argument("--clients", type=int, default=4, help="of the load")
    return parser.parse_args()


def compare(options, ferry, name, texts):
    rank, rank_shap, difference, error_shap, error_ferry, words = [], [], [], [], [], []
    for text in texts:
        # Every subset is 2^words - 2 of them, at most 510 here.
        samples = 1024 if name == "every subset" else options.samples
        ours = ferry.Explain(classify={"text": text, "label": LABEL}, options={"model": MODEL}, samples=samples, seed=1)
        theirs, base, value = shap_values(ferry, text, samples, seed=1)
        again, _, _ = shap_values(ferry, text, samples, seed=2)
        mine = numpy.array([word.share for word in ours.words])
        assert [word.text for word in ours.words] == text.split(), "the words are not the same"
        rank.append(spearmanr(mine, theirs).statistic)
        rank_shap.append(spearmanr(theirs, again).statistic)
        difference.append(numpy.abs(mine - theirs).max())
        error_shap.append(abs(base + theirs.sum() - value))
        error_ferry.append(ours.additivity_error)
        words.append(len(mine))
    line = (
        f"| {len(texts)}, {name} | {min(words)} to {max(words)} | Ferry and shap | {numpy.mean(rank):.4f} ({min(rank):.4f}) "
        f"| {max(difference):.2e} | {max(error_shap):.1e} | {max(error_ferry):.1e} |"
    )
    if name != "every subset":
        line += f"\n| | | shap and shap | {numpy.mean(rank_shap):.4f} ({min(rank_shap):.4f}) | | | |"
    return line


def gradients(ferry, ferry_shap, texts, output, points):
    """Ferry's integrated gradients beside its own Kernel SHAP, of texts short enough for every subset."""
    ranks, first, errors, times, words = [], [], [], [], []
    for text in texts:
        asked = {"classify": {"text": text, "label": LABEL}, "options": {"model": MODEL}, "output": {"probability": 1, "logit": 2}[output]}
        shap_shares = numpy.array([word.share for word in ferry_shap.Explain(**asked, method=1, samples=1024).words])
        began = time.perf_counter()
        found = ferry.Explain(**asked, method=4, samples=points)
        times.append(time.perf_counter() - began)
        shares = numpy.array([word.share for word in found.words])
        ranks.append(spearmanr(shares, shap_shares).statistic)
        first.append(numpy.argmax(numpy.abs(shares)) == numpy.argmax(numpy.abs(shap_shares)))
        errors.append(found.additivity_error)
        words.append(len(shares))
    return (
        f"| {len(texts)} | {min(words)} to {max(words)} | {output} | {points} | {numpy.mean(ranks):.3f} ({min(ranks):.3f}) "
        f"| {sum(first)} of {len(first)} | {numpy.mean(errors):.4f} ({max(errors):.4f}) | {statistics.median(times):.2f} |"
    )


def shap_values(ferry, text, samples, seed):
    """shap's own shares of the words of a text, and its ends."""
    words = text.split()

    def play(masks):
        # As Ferry leaves words out: their characters go, what stands between them stays.
        texts = [" ".join(word if here else "" for word, here in zip(words, mask)) for mask in masks]
        numbers = []
        for at in range(0, len(texts), 256):
            rows = ferry.Classify(options={"model": MODEL}, texts=texts[at : at + 256]).rows
            numbers += [next(label.score for label in row.scores if label.label == LABEL) for row in rows]
        return numpy.array(numbers, dtype=float)

    numpy.random.seed(seed)
    explainer = shap.KernelExplainer(play, numpy.zeros((1, len(words))))
    shares = explainer.shap_values(numpy.ones(len(words)), nsamples=samples, l1_reg=False, silent=True)
    return numpy.array(shares).ravel(), float(numpy.ravel(explainer.expected_value)[0]), float(play([numpy.ones(len(words))])[0])


def cost(options, server, ferry, method, texts):
    alone, rows = explain_all(ferry, method, texts)
    quiet = Load(options, server.grpc, texts)
    with quiet:
        time.sleep(sum(alone) / 2 + 2)
    busy = Load(options, server.grpc, texts)
    with busy:
        loaded, _ = explain_all(ferry, method, texts)
    return (
        f"| {method} | {statistics.median(rows):.0f} | {spread(alone, 1)} | {spread(loaded, 1)} "
        f"| {quiet.rate():.0f} | {busy.rate():.0f} | {quiet.p50():.1f} | {busy.p50():.1f} |"
    )


def explain_all(ferry, method, texts):
    times, rows = [], []
    for text in texts:
        began = time.perf_counter()
        answer = ferry.Explain(classify={"text": text, "label": LABEL}, options={"model": MODEL}, method=METHODS[method])
        times.append(time.perf_counter() - began)
        rows.append(answer.rows)
    return times, rows


def spread(times, scale):
    ordered = sorted(time * scale for time in times)
    return f"{statistics.median(ordered):.3f} ({ordered[int(0.95 * (len(ordered) - 1))]:.3f})"


class Load:
    """Clients in closed loop, one text a request."""

    def __init__(self, options, address, texts):
        self.times, self.over = [], threading.Event()
        self.threads = [threading.Thread(target=self.work, args=(address, texts)) for _ in range(options.clients)]

    def __enter__(self):
        self.began = time.perf_counter()
        for thread in self.threads:
            thread.start()

    def __exit__(self, *_):
        self.over.set()
        for thread in self.threads:
            thread.join()
        self.took = time.perf_counter() - self.began

    def work(self, address, texts):
        ferry, at = Ferry(address), 0
        while not self.over.is_set():
            began = time.perf_counter()
            ferry.Classify(options={"model": MODEL}, texts=[texts[at % len(texts)]])
            self.times.append(time.perf_counter() - began)
            at += 1

    def rate(self):
        return len(self.times) / self.took

    def p50(self):
        return statistics.median(self.times) * 1e3


if __name__ == "__main__":
    main()
