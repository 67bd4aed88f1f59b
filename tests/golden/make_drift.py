#!/usr/bin/env python3
"""Writes drift.json: drift's measures by numpy and scipy, on histograms and vectors drawn once.

    pip install numpy scipy
    python tests/golden/make_drift.py
"""

import json
from pathlib import Path

import numpy as np
from scipy.spatial.distance import jensenshannon

rng = np.random.default_rng(7)


def smoothed(counts):
    counts = counts + 0.5
    return counts / counts.sum()


histograms = []
for bins, n, m, shift in [(2, 400, 100, 0.0), (5, 1000, 500, 0.3), (20, 2000, 500, 1.0), (7, 50, 50, 0.0)]:
    usual = rng.dirichlet(np.ones(bins))
    now = usual * np.exp(shift * rng.normal(size=bins))
    baseline, window = rng.multinomial(n, usual), rng.multinomial(m, now / now.sum())
    seen = baseline + window > 0
    q, p = smoothed(baseline[seen]), smoothed(window[seen])
    histograms.append(
        {
            "baseline": baseline.tolist(),
            "window": window.tolist(),
            "stability_index": float(np.sum((p - q) * np.log(p / q))),
            "jensen_shannon": float(jensenshannon(q, p, base=2) ** 2),
        }
    )

vectors = []
for dimensions, n, m, shift in [(4, 50, 20, 0.0), (16, 200, 100, 0.5)]:
    baseline = np.round(rng.normal(size=(n, dimensions)) + 1, 4).astype(np.float32)
    window = np.round(rng.normal(size=(m, dimensions)) + 1 + shift, 4).astype(np.float32)
    a, b = baseline.astype(float), window.astype(float)
    distance = np.sum((a.mean(0) - b.mean(0)) ** 2)
    cosine = a.mean(0) @ b.mean(0) / np.linalg.norm(a.mean(0)) / np.linalg.norm(b.mean(0))
    vectors.append(
        {
            "baseline": np.round(a, 4).tolist(),
            "window": np.round(b, 4).tolist(),
            "centroid_shift": float(distance / (a.var(0, ddof=1).sum() * (1 / n + 1 / m))),
            "centroid_cosine": float(cosine),
        }
    )

path = Path(__file__).with_name("drift.json")
path.write_text(json.dumps({"histograms": histograms, "vectors": vectors}) + "\n")
