"""Writes comparison.json: what numpy and scipy make of small lists, for quality::comparison.

    target/golden-venv/bin/pip install numpy==2.4.6 scipy==1.17.1
    target/golden-venv/bin/python tests/golden/make_comparison.py
"""

import json
from datetime import date
from pathlib import Path

import numpy
import scipy
from scipy import special, stats
from scipy.spatial import distance

random = numpy.random.default_rng(20261124)


def number(value):
    """A float, or None where the statistic isn't defined."""
    return None if numpy.isnan(value) else float(value)


def correlation(a, b):
    return {
        "a": list(map(float, a)),
        "b": list(map(float, b)),
        "spearman": number(stats.spearmanr(a, b).statistic),
        "kendall": number(stats.kendalltau(a, b, variant="b").statistic),
    }


def divergence(p, q):
    return {
        "p": list(map(float, p)),
        "q": list(map(float, q)),
        "kl": float(special.rel_entr(p, q).sum()),
        "js_bits": float(distance.jensenshannon(p, q, base=2) ** 2),
    }


def quantiles(values):
    p1, p5, p50, p95, p99 = numpy.quantile(values, [0.01, 0.05, 0.5, 0.95, 0.99])
    return {
        "values": list(map(float, values)),
        "mean": float(values.mean()),
        "deviation": float(values.std()),
        "p1": p1, "p5": p5, "p50": p50, "p95": p95, "p99": p99,
    }


def embeddings(texts, dimensions, noise):
    reference = random.normal(size=(texts, dimensions)).round(3)
    candidate = (reference + noise * random.normal(size=reference.shape)).round(3)
    wide = [side.astype(numpy.float32).astype(numpy.float64) for side in (reference, candidate)]
    cosines = numpy.array([1 - distance.cosine(a, b) for a, b in zip(*wide)])
    pairs = [1 - distance.pdist(side, "cosine") for side in wide]

    def nearest(side):
        similar = 1 - distance.squareform(distance.pdist(side, "cosine"))
        numpy.fill_diagonal(similar, -2)
        return [set(row) for row in numpy.argsort(-similar, axis=1)[:, :10]]

    overlap = [len(a & b) / 10 for a, b in zip(nearest(wide[0]), nearest(wide[1]))]
    return {
        "reference": reference.tolist(),
        "candidate": candidate.tolist(),
        "mean_cosine": float(cosines.mean()),
        "cosine_p5": float(numpy.quantile(cosines, 0.05)),
        "spearman": float(stats.spearmanr(*pairs).statistic),
        "kendall": float(stats.kendalltau(*pairs).statistic),
        "neighbour_overlap": float(numpy.mean(overlap)),
    }


def named(reference, candidate):
    """The divergence over the 4 best tokens of each side, all others being one."""
    best = [set(numpy.argsort(-side)[:4]) for side in (reference, candidate)]
    shared = sorted(best[0] & best[1])
    p = numpy.append(reference[shared], 1 - reference[shared].sum())
    q = numpy.append(candidate[shared], 1 - candidate[shared].sum())
    top = lambda side: [[int(i), float(numpy.log(side[i]))] for i in numpy.argsort(-side)[:4]]
    return {
        "reference": top(reference),
        "candidate": top(candidate),
        "kl": float(special.rel_entr(p, q).sum()),
        "whole_kl": float(special.rel_entr(reference, candidate).sum()),
    }


def softmax(size, scale=2.0):
    return special.softmax(scale * random.normal(size=size))


long = random.normal(size=200)
ties = random.integers(0, 5, size=60)
expected = {
    "made_with": {"numpy": numpy.__version__, "scipy": scipy.__version__},
    "made_on": date.today().isoformat(),
    "correlations": [
        correlation(long, long + random.normal(size=200)),
        correlation(ties, ties + random.integers(-1, 2, size=60)),
        correlation([1, 2, 3, 4, 5], [5, 6, 7, 8, 7]),
        correlation([1, 2, 3], [3, 2, 1]),
        correlation([1, 2, 2, 2, 3], [1, 1, 1, 1, 2]),
        correlation(random.normal(size=50), random.normal(size=50)),
    ],
    "divergences": [
        divergence(softmax(2), softmax(2)),
        divergence(softmax(10), softmax(10)),
        divergence(numpy.array([0.5, 0.5, 0.0]), numpy.array([0.4, 0.4, 0.2])),
        divergence(softmax(1000), softmax(1000)),
    ],
    "quantiles": [
        quantiles(random.normal(size=137)),
        quantiles(random.exponential(size=4096).round(3)),
        quantiles(numpy.array([3.0])),
    ],
    "embeddings": [embeddings(48, 16, 0.3), embeddings(41, 8, 1.5)],
    "named": [named(softmax(30, 3.0), softmax(30, 3.0)), named(softmax(8), softmax(8))],
}
near = softmax(30, 3.0)
expected["named"].append(named(near, special.softmax(numpy.log(near) + 0.2 * random.normal(size=30))))
path = Path(__file__).with_name("comparison.json")
lines = [f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in expected.items()]
path.write_text("{\n" + ",\n".join(lines) + "\n}\n")
