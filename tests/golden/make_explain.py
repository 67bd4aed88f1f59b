"""Writes explain.json: shares of small games by Shapley's formula, shap, lime and scikit-learn, for
quality::explain.

    target/golden-venv/bin/pip install numpy==2.4.6 scikit-learn==1.9.1 shap==0.51.0 lime==0.2.0.1
    target/golden-venv/bin/python tests/golden/make_explain.py
"""

import itertools
import json
import math
from datetime import date
from importlib.metadata import version
from pathlib import Path

import numpy
import shap
from lime.lime_text import LimeTextExplainer
from sklearn.linear_model import Ridge
from sklearn.metrics import pairwise_distances

random = numpy.random.default_rng(20261124)


def game(words):
    """Random answers to every subset: by Shapley's formula, and by shap's own sampling and solving."""
    answers = random.normal(0, 1, 2**words)

    def play(mask):
        return answers[sum(1 << at for at in range(words) if mask[at])]

    shapley = numpy.zeros(words)
    for word in range(words):
        others = [other for other in range(words) if other != word]
        for size in range(words):
            weight = math.factorial(size) * math.factorial(words - size - 1) / math.factorial(words)
            for subset in itertools.combinations(others, size):
                mask = [other in subset for other in range(words)]
                without = play(mask)
                mask[word] = True
                shapley[word] += weight * (play(mask) - without)
    explainer = shap.KernelExplainer(lambda rows: numpy.array([play(row) for row in rows]), numpy.zeros((1, words)))
    found = explainer.shap_values(numpy.ones(words), nsamples=2**words, l1_reg=False, silent=True)
    return {"answers": answers.tolist(), "shapley": shapley.tolist(), "shap": found.tolist()}


def constrained(words, rows):
    """min |W^½ (X β − y)| with β summing to the ends' difference, by Lagrange's multiplier."""
    masks = random.integers(0, 2, (rows, words)).astype(float)
    weights = random.random(rows) + 0.01
    answers = random.normal(0, 1, rows)
    none, every = random.normal(0, 1, 2)
    normal = masks.T @ (weights[:, None] * masks)
    system = numpy.block([[normal, numpy.ones((words, 1))], [numpy.ones((1, words)), numpy.zeros((1, 1))]])
    right = numpy.concatenate([masks.T @ (weights * (answers - none)), [every - none]])
    shares = numpy.linalg.solve(system, right)[:words]
    return {
        "masks": masks.astype(int).tolist(),
        "weights": weights.tolist(),
        "answers": answers.tolist(),
        "ends": [none, every],
        "shares": shares.tolist(),
    }


def ridge(words, rows):
    masks = random.integers(0, 2, (rows, words)).astype(float)
    masks[0], masks[1] = 1, 0
    answers = random.normal(0, 1, rows)
    distances = pairwise_distances(masks, masks[:1], metric="cosine").ravel() * 100
    weights = LimeTextExplainer().base.kernel_fn(distances)
    model = Ridge(alpha=1, fit_intercept=True).fit(masks, answers, sample_weight=weights)
    return {
        "masks": masks.astype(int).tolist(),
        "weights": weights.tolist(),
        "answers": answers.tolist(),
        "intercept": [float(model.intercept_)],
        "shares": model.coef_.tolist(),
    }


golden = {
    "made_by": "make_explain.py, "
    + ", ".join(f"{name} {version(name)}" for name in ("numpy", "scikit-learn", "shap", "lime"))
    + f", {date.today()}",
    "games": [game(words) for words in (2, 3, 6, 9)],
    "constrained": [constrained(3, 12), constrained(10, 60)],
    "ridge": [ridge(4, 20), ridge(12, 50)],
}
path = Path(__file__).with_name("explain.json")
path.write_text(json.dumps(golden, separators=(",", ":")).replace("],[", "],\n[").replace("]},{", "]},\n{") + "\n")
