#!/usr/bin/env python3
"""What it costs to see everything: throughput of a server with traces, request log, drift, API keys and usage
metrics on, over that of one with all of it off.

    cargo build --release
    python3 benches/observability.py --ferry target/release/ferry --models models

Two servers on this machine, one at a time under `ferry bench`, in turns; the ratio is taken within a round and
its median counts. Spans go to a receiver here that throws them away, so its cost is in the figures, too.
Standard library only.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "clients"))
from run import Server  # noqa: E402


class Receiver(BaseHTTPRequestHandler):
    """Takes spans, and forgets them."""

    protocol_version = "HTTP/1.1"

    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


def models_with(folder, models, model, drift):
    """The model as it is, with drift looked for or not."""
    there = folder / model
    there.mkdir(parents=True)
    manifest = (models / model / "model.toml").read_text()
    (there / "model.toml").write_text(manifest + ("\n[drift]\nenabled = true\n" if drift else ""))
    for version in (models / model).glob("[0-9]*"):
        (there / version.name).symlink_to(version.resolve())
    return folder


def measure(options, address, clients, key=None):
    command = [options.ferry, "bench", "--url", f"http://{address}", "--model", options.model, "--clients", str(clients),
               "--seconds", str(options.seconds), "--rounds", "1", "--json"]
    if key:
        command += ["--header", f"authorization: Bearer {key}"]
    told = subprocess.run(command, check=True, capture_output=True, text=True)
    (point,) = json.loads(told.stdout)["measured"]
    return point["served_rows_per_second"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ferry", type=Path, default=ROOT / "target" / "release" / "ferry")
    parser.add_argument("--models", type=Path, default=ROOT / "models")
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--clients", default="1,32")
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--ratio", type=float, default=1.0, help="of requests that are traced and logged")
    options = parser.parse_args()
    receiver = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    threading.Thread(target=receiver.serve_forever, daemon=True).start()
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        keys, log, config = folder / "keys.toml", folder / "requests.jsonl", folder / "ferry.toml"
        made = subprocess.run([options.ferry, "key", "--tenant", "bench", "--file", keys], check=True, capture_output=True, text=True)
        config.write_text(
            f'[traces]\nendpoint = "http://127.0.0.1:{receiver.server_port}"\nprotocol = "http"\nratio = {options.ratio}\n'
            f'[request_log]\nfile = "{log}"\nsample = {options.ratio}\n'
            f'[auth]\nkeys_file = "{keys}"\n'
        )
        off_models = models_with(folder / "off", options.models, options.model, drift=False)
        on_models = models_with(folder / "on", options.models, options.model, drift=True)
        env_key = made.stdout.strip()
        print(f"traced and logged: {options.ratio:.0%} of requests; {options.rounds} rounds of {options.seconds} s")
        print("| clients | off, rows/s | on, rows/s | on ÷ off |\n| ---: | ---: | ---: | ---: |")
        with Server(options.ferry, off_models) as off, Server(options.ferry, on_models, options=["--config", str(config)]) as on:
            for clients in map(int, options.clients.split(",")):
                figures = []
                for turn in range(options.rounds):
                    sides = [(off.grpc, None), (on.grpc, env_key)]
                    order = sides if turn % 2 == 0 else sides[::-1]
                    found = {address: measure(options, address, clients, key) for address, key in order}
                    figures.append((found[off.grpc], found[on.grpc]))
                ratio = statistics.median(on_rate / off_rate for off_rate, on_rate in figures)
                off_rate, on_rate = (statistics.median(side) for side in zip(*figures))
                print(f"| {clients} | {off_rate:.1f} | {on_rate:.1f} | {ratio:.3f} |", flush=True)
            lines = sum(1 for _ in open(log)) if log.exists() else 0
        print(f"{lines} lines in the request log, {os.path.getsize(log) if lines else 0} bytes")
    receiver.shutdown()


if __name__ == "__main__":
    main()
