#!/usr/bin/env python3
"""What a cascade saves and costs: accuracy and run time of prompt-injection-small with prompt-injection behind it,
against each of them alone. Prints a Markdown table.

    cargo build --release
    python3 models/fetch.py prompt-injection prompt-injection-small
    python3 models/labelled_rows.py prompt-injection S_LABS --split validation > validation.jsonl
    python3 models/labelled_rows.py prompt-injection S_LABS > test.jsonl
    python3 benches/cascade.py --calibrate validation.jsonl test.jsonl

Serves both from one server; with --calibrate, after `ferry calibrate` on other rows, so that the thresholds are
probabilities of being right. Each way answers every row of the file in requests of --rows rows, --clients at a time.
Run time is what the engines' batches ran (`ferry_execute_seconds_sum`), both models' together. Ways are run --rounds
times in alternation and the least run time of each counts. The thresholds are asked for by request (`on_low_confidence`);
the way "as configured" leaves it to the manifest's [cascade]. Needs what typed_client.py needs.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "clients"))
import run  # noqa: E402
from typed_client import Ferry, metric  # noqa: E402

SMALL, LARGE = "prompt-injection-small", "prompt-injection"
FLAG, FALL_BACK = 1, 3


def main():
    options = parse()
    rows = [json.loads(line) for line in options.rows_file.read_text().splitlines()]
    with tempfile.TemporaryDirectory(prefix="ferry-cascade-") as folder:
        models = make_models(options, Path(folder))
        for name in (SMALL, LARGE) if options.calibrate else ():
            command = [options.ferry, "calibrate", name, "--models", models, "--labels", options.calibrate]
            print(subprocess.run(command, check=True, capture_output=True, text=True).stdout, flush=True)
        with run.Server(options.ferry, models) as server:
            measure(options, rows, server)


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows_file", type=Path, metavar="FILE", help="labelled rows, as ferry calibrate reads them")
    parser.add_argument("--ferry", type=Path, default=ROOT / "target" / "release" / "ferry")
    parser.add_argument("--models", type=Path, default=ROOT / "models")
    parser.add_argument("--calibrate", type=Path, metavar="FILE", help="other labelled rows to calibrate both on")
    parser.add_argument("--below", type=float, default=0.95, help="the manifest's threshold")
    parser.add_argument("--thresholds", type=float, nargs="+", default=[0.7, 0.8, 0.9, 0.95, 0.98])
    parser.add_argument("--rows", type=int, default=32, help="of one request")
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    return parser.parse_args()


def make_models(options, folder):
    """Copies of the manifests, the small one's with a cascade, and of the versions, so that the calibrations
    made here stay here."""
    for name in (SMALL, LARGE):
        shutil.copytree(options.models / name / "1", folder / name / "1", ignore=shutil.ignore_patterns(".ferry", "calibration.json"))
        shutil.copy(options.models / name / "model.toml", folder / name)
    with open(folder / SMALL / "model.toml", "a") as manifest:
        manifest.write(f'\n[cascade]\nmodel = "{LARGE}"\nbelow = {options.below}\n')
    return folder


def measure(options, rows, server):
    ferry = Ferry(server.grpc)
    requests = [rows[at : at + options.rows] for at in range(0, len(rows), options.rows)]
    # Each way: its name, the model asked, and what the request says of low confidence.
    ways = [(f"{SMALL} alone", SMALL, {"on_low_confidence": {"action": FLAG}})]
    for below in options.thresholds:
        asked = {"min_confidence": below, "on_low_confidence": {"action": FALL_BACK, "fallback_model": LARGE}}
        ways.append((f"cascade below {below}", SMALL, asked))
    ways += [(f"as configured (below {options.below})", SMALL, {}), (f"{LARGE} alone", LARGE, {})]
    found = {}
    for _ in range(options.rounds):
        for name, model, asked in ways:
            result = run_way(options, ferry, server.http, requests, model, asked)
            if name not in found or result["run"] < found[name]["run"]:
                found[name] = result
    large = found[f"{LARGE} alone"]["run"]
    print(f"{len(rows)} rows, requests of {options.rows}, {options.clients} at a time, least of {options.rounds} rounds")
    print("| way | accuracy | escalated | run time, s | of the large one's | wall time, s |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for name, result in found.items():
        print(
            f"| {name} | {result['accuracy']:.4f} | {result['escalated']:.1%} | {result['run']:.2f} "
            f"| {result['run'] / large:.2f} | {result['wall']:.2f} |"
        )
    for result in ("kept", "escalated", "failed"):
        print(f"ferry_cascade_rows_total {result}: {metric(server.http, 'ferry_cascade_rows_total', result=result):.0f}")
    print(f"ferry_cascade_saved_seconds: {metric(server.http, 'ferry_cascade_saved_seconds'):.2f}")


def run_way(options, ferry, http, requests, model, asked):
    def answer(request):
        texts = [row["text"] for row in request]
        rows = ferry.Classify(options={"model": model}, texts=texts, **asked).rows
        right = sum(row.label == known["label"] for row, known in zip(rows, request, strict=True))
        return right, sum(bool(row.escalation.escalated_from) for row in rows)

    before, began = metric(http, "ferry_execute_seconds_sum"), time.perf_counter()
    with ThreadPoolExecutor(options.clients) as clients:
        answers = list(clients.map(answer, requests))
    count = sum(map(len, requests))
    return {
        "accuracy": sum(right for right, _ in answers) / count,
        "escalated": sum(escalated for _, escalated in answers) / count,
        "run": metric(http, "ferry_execute_seconds_sum") - before,
        "wall": time.perf_counter() - began,
    }


if __name__ == "__main__":
    main()
