#!/usr/bin/env python3
"""Swaps a model between two quantizations under load, and writes docs/swaps.md.

    cargo build --release
    python3 models/fetch.py
    python3 benches/swaps.py

For an encoder (minilm) and a model that generates (smollm2-135m): makes two GGUF files of it with `ferry
quantize`, q8_0 and q4_k, as versions 1 and 2; serves version 1; lets 32 clients in closed loop send one
request after the other over HTTP (/v1/embeddings, and /v1/completions, streamed); and after a time without
swaps swaps 1 -> 2 -> 1 ... with `ferry admin swap`, ten times. Latencies are those of whole requests; the
ones that were under way or sent while a swap ran count as "during". A request fails when its status is
not 200, its stream breaks, or its answer is not whole. Standard library only.
"""

import argparse
import datetime
import http.client
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "clients"))
import run  # noqa: E402

TYPES = {1: "q8_0", 2: "q4_k"}
SENTENCES = (ROOT / "benches" / "sentences.txt").read_text().splitlines()


def main():
    options = parse()
    rows = []
    with tempfile.TemporaryDirectory(prefix="ferry-swaps-") as folder:
        for name in options.models_to_swap:
            make_versions(options, name, Path(folder))
        for name in options.models_to_swap:
            rows.append(measure(options, name, Path(folder)))
            print(line(rows[-1]), flush=True)
    report = write_report(options, rows)
    print(report)
    sys.exit(int(any(row["failed"] for row in rows)))


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ferry", type=Path, default=ROOT / "target" / "release" / "ferry")
    parser.add_argument("--models", type=Path, default=ROOT / "models")
    parser.add_argument("--model", dest="models_to_swap", action="append", help="may be given more than once")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--swaps", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=15.0, help="without swaps, before them")
    parser.add_argument("--pause", type=float, default=1.0, metavar="SECONDS", help="between two swaps")
    parser.add_argument("--tokens", type=int, default=24, help="generated per request")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "swaps.md")
    options = parser.parse_args()
    options.models_to_swap = options.models_to_swap or ["minilm", "smollm2-135m"]
    return options


def make_versions(options, name, folder):
    source = options.models / name
    shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("[0-9]*", "*.safetensors"))
    manifest = folder / name / "model.toml"
    manifest.write_text(manifest.read_text() + "\n[versions]\nserve = [1]\n")
    weights = source / "1" / "model.gguf"
    for version, kind in TYPES.items():
        to = folder / name / str(version) / "model.gguf"
        to.parent.mkdir()
        origin = weights if weights.exists() else source / "1"
        command = [options.ferry, "quantize", origin, to, "--type", kind]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def measure(options, name, folder):
    (admin_port,) = run.free_ports(1)
    with run.Server(options.ferry, folder, options=("--model", name), admin_port=admin_port) as server:
        load = Load(server.http, name, options)
        load.start()
        time.sleep(2.0)
        began = time.perf_counter()
        time.sleep(options.seconds)
        before = (began, time.perf_counter())
        swaps = []
        for round_ in range(options.swaps):
            to = 2 if round_ % 2 == 0 else 1
            at = time.perf_counter()
            command = [options.ferry, "admin", "swap", name, str(to), "--server", f"http://127.0.0.1:{admin_port}"]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            swaps.append((at, time.perf_counter()))
            time.sleep(options.pause)
        load.stop()
    inside = lambda sent, done: any(sent < end and done > at for at, end in swaps)  # noqa: E731
    quiet = [done - sent for sent, done in load.answered if before[0] <= sent and done <= before[1]]
    during = [done - sent for sent, done in load.answered if inside(sent, done)]
    return {
        "model": name,
        "requests": len(load.answered),
        "failed": len(load.failed),
        "failures": load.failed[:5],
        "versions": dict(load.versions),
        "before_p50": quantile(quiet, 0.5),
        "before_p99": quantile(quiet, 0.99),
        "during_p50": quantile(during, 0.5),
        "during_p99": quantile(during, 0.99),
        "during": len(during),
        "swap_s": sorted(end - at for at, end in swaps)[len(swaps) // 2],
    }


class Load:
    """Clients in closed loop."""

    def __init__(self, host, name, options):
        self.host, self.name, self.options = host.removeprefix("http://"), name, options
        self.generates = (options.models / name / "1" / "model.gguf").exists()
        self.over = threading.Event()
        self.answered, self.failed, self.versions = [], [], {}
        self.lock = threading.Lock()
        self.threads = [threading.Thread(target=self.client, args=(index,)) for index in range(options.clients)]

    def start(self):
        for thread in self.threads:
            thread.start()

    def stop(self):
        self.over.set()
        for thread in self.threads:
            thread.join()

    def client(self, index):
        connection = http.client.HTTPConnection(self.host, timeout=120)
        at = index
        while not self.over.is_set():
            text = SENTENCES[at % len(SENTENCES)]
            at += self.options.clients
            sent = time.perf_counter()
            try:
                version = self.complete(connection, text) if self.generates else self.embed(connection, text)
            except (OSError, ValueError, KeyError, http.client.HTTPException) as error:
                with self.lock:
                    self.failed.append(repr(error))
                connection.close()
                continue
            with self.lock:
                self.answered.append((sent, time.perf_counter()))
                self.versions[version] = self.versions.get(version, 0) + 1

    def ask(self, connection, path, body):
        connection.request("POST", path, json.dumps(body), {"content-type": "application/json"})
        response = connection.getresponse()
        if response.status != 200:
            raise ValueError(f"{response.status}: {response.read()[:300]}")
        return response

    def embed(self, connection, text):
        response = self.ask(connection, "/v1/embeddings", {"model": self.name, "input": text})
        if not json.loads(response.read())["data"][0]["embedding"]:
            raise ValueError("an empty vector")
        return response.headers["x-ferry-model-version"]

    def complete(self, connection, text):
        body = {"model": self.name, "prompt": text, "max_tokens": self.options.tokens, "stream": True}
        body |= {"ignore_eos": True, "temperature": 0, "stream_options": {"include_usage": True}}
        response = self.ask(connection, "/v1/completions", body)
        events = [event[6:] for event in response.read().decode().split("\n\n") if event.startswith("data: ")]
        usage = json.loads(events[-2])["usage"]
        if events[-1] != "[DONE]" or usage["completion_tokens"] != self.options.tokens:
            raise ValueError(f"a broken stream: {events[-2:]}")
        return response.headers["x-ferry-model-version"]


def quantile(values, share):
    values = sorted(values)
    return values[min(len(values) - 1, int(len(values) * share))] * 1e3 if values else float("nan")


def line(row):
    return (
        f"| {row['model']} | {row['requests']} | {row['failed']} | {row['before_p50']:.0f} | {row['before_p99']:.0f} | "
        f"{row['during_p50']:.0f} | {row['during_p99']:.0f} | {row['during_p99'] / row['before_p99']:.2f} | "
        f"{row['swap_s']:.2f} | {row['during']} |"
    )


def write_report(options, rows):
    text = f"""# Swapping a model under load

`python3 benches/swaps.py`, {datetime.date.today()}, {os.cpu_count()} cores, clients on the same ones: {options.clients} clients
in closed loop over HTTP, {options.swaps} swaps between {TYPES[1]} and {TYPES[2]} of the same model with `ferry admin swap`. Each
loads the other version from disk beside the one that serves, warms it, routes to it and lets the old one
end what it has. "During" are the requests that were under way while a swap ran; times in ms.

| model | requests | failed | p50 before | p99 before | p50 during | p99 during | p99 during ÷ before | one swap, s | requests during |
| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |
"""
    text += "\n".join(line(row) for row in rows) + "\n"
    for row in rows:
        answered = ", ".join(f"{count} by version {version}" for version, count in sorted(row["versions"].items()))
        text += f"\n{row['model']}: answered {answered}."
        if row["failures"]:
            text += f" Failures: {row['failures']}"
        text += "\n"
    options.out.write_text(text)
    return text


if __name__ == "__main__":
    main()
