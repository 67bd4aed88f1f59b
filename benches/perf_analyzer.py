#!/usr/bin/env python3
"""Measures a Ferry binary with NVIDIA's perf_analyzer and writes docs/perf-analyzer.md and .csv.

    cargo build --release
    python3 benches/perf_analyzer.py --ferry target/release/ferry --models models

Requests hold one text each, taken in turn from 256 texts of mixed length; closed loop (each client
sends its next request when its last is answered). Time windows, not --request-count: with that the
tool divides by whole seconds and reports a throughput that is too low. Its installation and the
server's start are shared with tests/clients/. Standard library only.
"""

import argparse
import csv
import datetime
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "clients"))
import perf_tool  # noqa: E402
import run  # noqa: E402

CONCURRENCIES = [1, 2, 4, 8, 16, 32]
# perf_analyzer's column, ours, how to write it. Its server times are means, in microseconds.
COLUMNS = [
    ("Concurrency", "clients", "{:.0f}"),
    ("Inferences/Second", "texts/s", "{:.1f}"),
    ("p50 latency", "p50 ms", "{:.2f}"),
    ("p95 latency", "p95 ms", "{:.2f}"),
    ("p99 latency", "p99 ms", "{:.2f}"),
    ("Server Queue", "queue ms", "{:.2f}"),
    ("Server Compute Input", "tokenize ms", "{:.2f}"),
    ("Server Compute Infer", "execute ms", "{:.2f}"),
    ("Server Compute Output", "reply ms", "{:.2f}"),
]
MEAN_BATCH = "rows a batch"
# perf_analyzer's own rule: three windows in a row whose throughput and latency agree within this.
STEADY_PERCENT = 15
STEADY = "steady"


def main():
    options = parse()
    try:
        tool = perf_tool.find_or_install()
    except perf_tool.Unavailable as reason:
        sys.exit(f"perf_analyzer can't run here: {reason}")
    with tempfile.TemporaryDirectory() as scratch, started(options) as server:
        data = Path(scratch) / "data.json"
        data.write_text(json.dumps({"data": [{"TEXT": [text]} for text in mixed_texts(256)]}))
        bench = Bench(tool, options.model, server.grpc, data, Path(scratch) / "report.csv", options.window_ms)
        bench.measure(8)  # warm-up, not reported
        rows = []
        for concurrency in options.concurrency:
            rows.append(bench.measure(concurrency))
            print(markdown_row(rows[-1]), flush=True)
        left = server.stop()
    write_report(options, tool, rows)
    sys.exit(f"the server left with exit code {left}" if left else 0)


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ferry", type=Path, default=ROOT / "target" / "release" / "ferry")
    parser.add_argument("--models", type=Path, default=ROOT / "models")
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--concurrency", type=numbers, default=CONCURRENCIES, help="such as 1,8,32")
    parser.add_argument("--window-ms", type=int, default=2000, help="length of one measurement window")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "perf-analyzer", help="without the ending")
    return parser.parse_args()


def numbers(text):
    return [int(part) for part in text.split(",")]


def started(options):
    return run.Server(options.ferry, run.prepare_models(options.models))


def mixed_texts(count):
    """Texts of 3 to 60 words, most of them short, always the same ones."""
    words = (
        "boat harbour ticket delay morning island captain weather queue answer engine letter island market "
        "question window server paper river winter summer because although between without the a of in on to"
    ).split()
    chance = random.Random(7)
    lengths = [min(60, 3 + int(chance.expovariate(1 / 12))) for _ in range(count)]
    return [" ".join(chance.choice(words) for _ in range(length)) for length in lengths]


@dataclass
class Bench:
    """perf_analyzer pointed at one model of one server."""

    tool: perf_tool.PerfAnalyzer
    model: str
    address: str
    data: Path
    report: Path
    window_ms: int

    def measure(self, concurrency):
        """One load; perf_analyzer's row, with the mean batch size and whether it was steady. Leaves on a failure."""
        done = self.run(concurrency, STEADY_PERCENT, trials=8)
        steady = "Failed to obtain stable measurement" not in done.stdout + done.stderr
        if not steady:
            done = self.run(concurrency, 999, trials=3)
        said = done.stdout + done.stderr
        if done.returncode != 0:
            sys.exit(f"perf_analyzer failed at concurrency {concurrency}:\n{said}")
        (row,) = perf_tool.read_report(self.report)
        return {**row, MEAN_BATCH: mean_batch(said), STEADY: steady}

    def run(self, concurrency, steady_percent, trials):
        return self.tool.run(
            [
                "-m", self.model, "-i", "grpc", "-u", self.address, "--input-data", str(self.data), "-v",
                "--concurrency-range", f"{concurrency}:{concurrency}", "-f", str(self.report),
                "-p", str(self.window_ms), "-s", str(steady_percent), "-r", str(trials),
            ],
            timeout_s=600,
        )


def mean_batch(said):
    """Rows per forward pass, from the server's counts that perf_analyzer prints."""
    counts = {}
    for line in said.splitlines():
        name, _, value = line.strip().partition(": ")
        if name in ("Inference count", "Execution count") and value.isdigit():
            counts[name] = int(value)
    executions = counts.get("Execution count", 0)
    return counts["Inference count"] / executions if executions else float("nan")


def cells(row):
    for column, _, form in COLUMNS:
        value = row.get(column, float("nan"))
        yield form.format(value if column in ("Concurrency", "Inferences/Second") else value / 1000)
    yield f"{row[MEAN_BATCH]:.1f}"
    yield "yes" if row[STEADY] else "no"


def markdown_row(row):
    return "| " + " | ".join(cells(row)) + " |"


def write_report(options, tool, rows):
    heads = [name for _, name, _ in COLUMNS] + [MEAN_BATCH, STEADY]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with open(options.out.with_suffix(".csv"), "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(heads)
        writer.writerows(cells(row) for row in rows)
    best = max(rows, key=lambda row: row["Inferences/Second"])
    lines = [
        f"# perf_analyzer on `{options.model}`",
        "",
        f"NVIDIA's perf_analyzer {tool.version}, unmodified, over gRPC on the loopback; one text a request, closed",
        "loop.",
        f"Most: {best['Inferences/Second']:.0f} texts/s at {best['Concurrency']:.0f} clients. No request failed.",
        "",
        "| " + " | ".join(heads) + " |",
        "|" + " ---: |" * len(heads),
        *(markdown_row(row) for row in rows),
        "",
        "Latencies are the client's, the four parts are means that the server reports: waiting in the queue,",
        "tokenizing and packing, the forward pass, and building the reply. The load generator shares the",
        f"machine's cores with the server. Steady: three windows of {options.window_ms / 1000:g} s in a row agreed",
        f"within {STEADY_PERCENT}%; otherwise the numbers are the mean of three that did not.",
        "",
        f"- Machine: {cpu()}, {os.cpu_count()} cores visible, {platform.system()} {platform.machine()}",
        f"- Server: {ferry_version(options.ferry)}",
        f"- Texts: 256, of 3 to 60 words (median {median_words()})",
        f"- Made on {datetime.date.today().isoformat()} by `python3 benches/perf_analyzer.py`",
        "",
    ]
    options.out.with_suffix(".md").write_text("\n".join(lines), encoding="utf-8")


def median_words():
    return sorted(len(text.split()) for text in mixed_texts(256))[128]


def cpu():
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or "unknown CPU"


def ferry_version(binary):
    done = subprocess.run([str(binary), "--version"], capture_output=True, text=True)
    return done.stdout.strip() or "unknown version"


if __name__ == "__main__":
    main()
