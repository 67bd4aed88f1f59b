"""Writes calibration.json: what scipy and scikit-learn make of small sets of labelled logits, for
quality::calibration.

    target/golden-venv/bin/pip install numpy==2.4.6 scipy==1.17.1 scikit-learn==1.9.1
    target/golden-venv/bin/python tests/golden/make_calibration.py
"""

import json
from datetime import date
from pathlib import Path

import numpy
import scipy
import sklearn
from scipy import optimize, special
from sklearn.calibration import _sigmoid_calibration, calibration_curve
from sklearn.isotonic import IsotonicRegression
from sklearn.metrics import brier_score_loss, log_loss

random = numpy.random.default_rng(20261124)
BINS = 15


def softmax_set(rows, labels, sureness):
    """Logits that are `sureness` times as far from 0 as they should be, rounded to f32."""
    logits = random.normal(0, 1.5, (rows, labels))
    truth = [int(random.choice(labels, p=row)) for row in special.softmax(logits, axis=1)]
    return (logits * sureness).astype(numpy.float32).astype(float), numpy.array(truth)


def ece(confidence, hit):
    """From scikit-learn's reliability curve: its bins, weighed by how many are in each."""
    accuracy, mean = calibration_curve(hit, confidence, n_bins=BINS)
    edges = numpy.linspace(0, 1, BINS + 1)
    counts = numpy.bincount(numpy.searchsorted(edges[1:-1], confidence), minlength=BINS)
    return float(numpy.abs(accuracy - mean) @ counts[counts > 0] / len(hit))


def temperature(logits, truth):
    def loss(temperature):
        return log_loss(truth, special.softmax(logits / temperature, axis=1), labels=range(logits.shape[1]))

    found = optimize.minimize_scalar(loss, bounds=(0.05, 20), method="bounded", options={"xatol": 1e-10})
    likely = special.softmax(logits, axis=1)
    best, confidence = likely.argmax(1), likely.max(1)
    one_hot = numpy.eye(logits.shape[1])[truth]
    return {
        "logits": logits.tolist(),
        "truth": truth.tolist(),
        "temperature": float(found.x),
        "nll_before": float(loss(1.0)),
        "nll_after": float(found.fun),
        "ece": ece(confidence, best == truth),
        "brier": float(((likely - one_hot) ** 2).sum(1).mean()),
        "accuracy": float((best == truth).mean()),
    }


def binary(rows, sureness, shift):
    logits = random.normal(0, 1.5, rows)
    truth = random.random(rows) < special.expit(logits)
    logits = (logits * sureness + shift).astype(numpy.float32).astype(float)
    # A few that are the very same.
    logits[: rows // 8] = logits[0]
    a, b = _sigmoid_calibration(logits, truth)
    isotonic = IsotonicRegression(out_of_bounds="clip").fit(logits, truth)
    places = numpy.concatenate([[-99.0], numpy.sort(random.normal(0, 3, 20)), [99.0]])
    likely = special.expit(logits)
    return {
        "logits": logits.tolist(),
        "truth": truth.astype(int).tolist(),
        # scikit-learn's curve is 1 / (1 + exp(a x + b)).
        "platt": {"slope": -float(a), "intercept": -float(b)},
        "places": places.tolist(),
        "isotonic": isotonic.predict(places).tolist(),
        "nll": float(log_loss(truth, likely)),
        "brier": float(brier_score_loss(truth, likely)),
        "ece": ece(likely, truth),
    }


golden = {
    "made_by": f"make_calibration.py, numpy {numpy.__version__}, scipy {scipy.__version__}, "
    f"scikit-learn {sklearn.__version__}, {date.today()}",
    "bins": BINS,
    "softmax": [temperature(*softmax_set(*size)) for size in ((60, 2, 2.5), (80, 4, 0.5), (40, 3, 1.0))],
    "sigmoid": [binary(*size) for size in ((60, 2.0, 0.0), (100, 0.6, -1.0))],
}
path = Path(__file__).with_name("calibration.json")
path.write_text(json.dumps(golden, separators=(",", ":")).replace('],"', '],\n"') + "\n")
