#!/usr/bin/env python3
"""Clients that mean harm, in numbers: what becomes of the server, of its memory, and of those beside them. Writes
docs/floods.md.

    cargo build --release
    python3 models/fetch.py minilm
    python3 benches/floods.py --ferry target/release/ferry --models models

The cases are those of tests/clients/floods.py, which runs them small: HTTP/2 rapid reset (CVE-2023-44487), CONTINUATION
without end (CVE-2024-27316), PING and SETTINGS whose answers nobody reads, headers and messages that are too large,
bytes that are no message, slow and silent clients, half-open TLS handshakes, 10,000 idle connections, 2,000 streams at
a time, clients that vanish. Four neighbours are served meanwhile over gRPC and HTTP, on new connections and kept ones.
Exits with 1 when the server ended, a neighbour was not served, or memory grew by more than --most-mib in a case that
keeps no connection. Needs openssl for a certificate; else the standard library only.
"""

import argparse
import contextlib
import datetime
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "clients"))
import floods  # noqa: E402
import run  # noqa: E402


def main():
    options = parse()
    with tempfile.TemporaryDirectory(prefix="ferry-floods-") as folder:
        rows, faults = measure(options, Path(folder))
    report = write_report(options, rows, faults)
    print(report)
    sys.exit(int(bool(faults)))


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ferry", type=Path, default=ROOT / "target" / "release" / "ferry")
    parser.add_argument("--models", type=Path, default=ROOT / "models", help="the folder that holds minilm")
    parser.add_argument("--idle", type=int, default=10_000, help="idle connections")
    parser.add_argument("--streams", type=int, default=2_000)
    parser.add_argument("--seconds", type=float, default=12.0, help="that silent and slow clients are given")
    parser.add_argument("--most-mib", type=float, default=64.0)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "floods.md")
    return parser.parse_args()


def make_models(options, folder):
    """A small encoder, for many small answers, and a small decoder."""
    for name, files in (("embedder", "tiny-bert-embed"), ("writer", "decoders/llama")):
        (folder / name).mkdir(parents=True)
        (folder / name / "1").symlink_to(ROOT / "tests" / "fixtures" / files)
    return folder


def measure(options, folder):
    models = make_models(options, folder / "models")
    floods.allow_descriptors(options.idle + 2048)
    plain = run.Server(options.ferry, models, options=more_connections(options, folder, ""))
    plain.log_path = folder / "plain.log"
    rows, faults = [], []
    with plain:
        server = {"grpc": plain.grpc, "http": plain.http, "model": "embedder", "decoder": "writer",
                  "stream_request": lambda embed: b"\x0a\x01a\x12" + bytes([len(embed)]) + embed}
        cases = {
            "nobody": lambda: time.sleep(3) or {},
            "rapid reset": lambda: floods.rapid_reset(server, 1_000_000),
            "CONTINUATION without end": lambda: floods.continuation(server, 256),
            "empty CONTINUATION without end": lambda: floods.empty_continuation(server, 5_000_000),
            "PING, answers not read": lambda: floods.pings(server, 256),
            "SETTINGS, answers not read": lambda: floods.settings(server, 256),
            "headers beyond the limit": lambda: floods.wide_headers(server),
            "messages that say 4 GiB": lambda: floods.wide_message(server),
            "bytes that are no message": lambda: floods.malformed(server, 2000),
            "clients that vanish amid a stream of events": lambda: floods.vanish(server, 500),
            "heads of which a letter comes now and then": lambda: floods.slow_heads(server, 1000, options.seconds),
            "silent connections to HTTP": lambda: floods.silent(server, "http", 1000, options.seconds),
            "silent connections to gRPC": lambda: floods.silent(server, "grpc", 1000, options.seconds),
        }
        for name, case in cases.items():
            rows.append(one(plain, server, name, case))
        rows += [held(plain, server, f"{options.streams:,} streams", lambda: open_streams(server, options.streams), options.streams),
                 held(plain, server, f"{options.idle:,} idle connections", lambda: floods.idle(server, options.idle), options.idle)]
        judge(options, plain, rows, faults)
        if plain.stop() != 0:
            faults.append("the server did not leave with 0")
    tls = with_tls(options, models, folder)
    with tls:
        server = {"grpc": tls.grpc, "http": tls.http, "tls": tls.grpc, "model": "embedder"}
        rows.append(one(tls, server, "half-open TLS handshakes", lambda: floods.half_open_tls(server, 200, options.seconds)))
        judge(options, tls, rows[-1:], faults)
    return rows, faults


def more_connections(options, folder, text):
    """A configuration, with room for all connections where there is a bound to be set."""
    told = subprocess.run([options.ferry, "serve", "--print-config"], capture_output=True, text=True, check=True).stdout
    if "max_connections" in told:
        text += f"[grpc]\nmax_connections = {options.idle + 1024}\n[http]\nmax_connections = {options.idle + 1024}\n"
    file = folder / f"ferry{len(list(folder.iterdir()))}.toml"
    file.write_text(text)
    return ("--config", str(file))


def with_tls(options, models, folder):
    """A server whose gRPC is encrypted and whose HTTP, which the neighbours use, is not."""
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
               "-subj", "/CN=localhost", "-keyout", folder / "key.pem", "-out", folder / "certificate.pem"]
    subprocess.run(command, check=True, capture_output=True)
    text = f'[tls]\ncertificate = "{folder}/certificate.pem"\nkey = "{folder}/key.pem"\nlisteners = ["grpc"]\n'
    server = run.Server(options.ferry, models, options=more_connections(options, folder, text))
    server.log_path = folder / "tls.log"
    return server


class OverHttp(floods.Neighbours):
    def __init__(self, server):
        super().__init__(server)
        self.times = {name: times for name, times in self.times.items() if name.startswith("HTTP")}
        self.threads = self.threads[2:]


def neighbours_of(server):
    return OverHttp(server) if "tls" in server else floods.Neighbours(server)


def one(process, server, name, case):
    before = resident_mib(process)
    with neighbours_of(server) as neighbours:
        # So that each neighbour is there before and after.
        time.sleep(0.3)
        began = time.perf_counter()
        told = case()
        took = time.perf_counter() - began
        during = resident_mib(process)
        time.sleep(0.3)
    row = {"name": name, "told": told, "took": took, "grew": max(during, resident_mib(process)) - before, "p99": neighbours.p99()}
    row["failures"] = neighbours.failures
    print(row, flush=True)
    return row


def held(process, server, name, open_them, count):
    """A case whose connections stay while memory is looked at."""
    before = resident_mib(process)
    began = time.perf_counter()
    with neighbours_of(server) as neighbours:
        kept = open_them()
        grew = resident_mib(process) - before
        time.sleep(3.0)
        took = time.perf_counter() - began
    floods.close(kept)
    row = {"name": name, "told": {"KiB each": round(grew * 1024 / count, 1)}, "took": took, "grew": grew, "p99": neighbours.p99(),
           "failures": neighbours.failures, "held": True}
    print(row, flush=True)
    return row


def open_streams(server, count):
    clients, answered = floods.streams(server, count)
    if answered != count:
        raise SystemExit(f"{answered} of {count} streams were answered")
    return [client.socket for client in clients]


def resident_mib(process):
    status = Path(f"/proc/{process.process.pid}/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


def judge(options, process, rows, faults):
    if process.process.poll() is not None:
        faults.append("the server ended")
    for row in rows:
        if row["failures"]:
            faults.append(f"{row['name']}: neighbours failed: {row['failures'][:2]}")
        if row["grew"] > options.most_mib and "held" not in row:
            faults.append(f"{row['name']}: memory grew by {row['grew']:.0f} MiB")


def write_report(options, rows, faults):
    text = f"""# Floods

`python3 benches/floods.py`, {datetime.date.today()}, {os.cpu_count()} cores, clients and other programs on the same ones; tiny models.
"Grew" is the server's resident memory. The neighbours' p99 (ms) is of health over gRPC and an embedding over HTTP, on a
connection that is kept / on a new one each time.

**{'; '.join(faults) if faults else 'The server served its neighbours through all of it.'}**

| who | what became of them | seconds | grew, MiB | gRPC p99 | HTTP p99 |
| --- | --- | ---: | ---: | ---: | ---: |
"""
    for row in rows:
        told = ", ".join(f"{key} {value}" for key, value in row["told"].items())
        ms = lambda protocol: " / ".join(f"{row['p99'][n]:.0f}" for n in (f"{protocol}, kept", f"{protocol}, new") if n in row["p99"]) or "-"  # noqa: B023, E731
        text += f"| {row['name']} | {told} | {row['took']:.1f} | {row['grew']:.1f} | {ms('gRPC')} | {ms('HTTP')} |\n"
    options.out.write_text(text + REMARKS)
    return text


REMARKS = """
GOAWAY 11 is ENHANCE_YOUR_CALM. A client that reads no answers is not read from either, so that what it keeps here is
what fits the sockets; its connection stays until it goes (keepalive's ping can't be written either). Headers over
HTTP/2 that are too wide are answered with 431 on their stream, and the connection goes on. Handshakes have ten seconds.

Half of the idle connections speak HTTP, half gRPC, and each has been answered once.
"""


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
