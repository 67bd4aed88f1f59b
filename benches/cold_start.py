#!/usr/bin/env python3
"""Cold start, from exec to ready and to the first answered request, with nothing but Python.

    cargo build --release && python3 benches/cold_start.py

Starts `ferry serve --model NAME` again and again and watches it from outside, over HTTP. The cases:

  cold            no prepared weights, and the model's files not in the page cache
  made            no prepared weights; the files in the page cache, as after a restart
  prepared        prepared weights (`ferry warm`), in the page cache
  prepared, cold  prepared weights; neither they nor the model's files in the page cache

Files leave the page cache by posix_fadvise(POSIX_FADV_DONTNEED), which needs no privileges; the
column "disk" (read_bytes of /proc/PID/io) shows whether that was so. The binary stays cached.

--plain measures a build that knows no prepared weights: the cases cold and made, without flags.
"""

import argparse
import http.client
import json
import os
import pathlib
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
PATIENCE_S = 120
REQUESTS = {
    "minilm": ("/v1/embeddings", {"model": "minilm", "input": "All aboard!"}),
    "gemma3-270m": (
        "/v1/completions",
        {"model": "gemma3-270m", "prompt": "The ferry leaves", "max_tokens": 1, "temperature": 0},
    ),
}


def files_of(folder):
    return [path for path in folder.rglob("*") if path.is_file()]


def forget(folder):
    """Takes the files' pages out of the page cache; dirty ones must be written first."""
    for path in files_of(folder):
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def remember(folder):
    for path in files_of(folder):
        path.read_bytes()


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def ask(port, method, path, body=None):
    """The status of an answer; None while nobody listens."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
    try:
        headers = {"content-type": "application/json"}
        connection.request(method, path, body and json.dumps(body), headers)
        answer = connection.getresponse()
        answer.read()
        return answer.status
    except OSError:
        return None
    finally:
        connection.close()


def status_of(pid):
    lines = pathlib.Path(f"/proc/{pid}/status").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    return {key: int(fields[key].split()[0]) / 1024 for key in ("VmHWM", "RssAnon", "RssFile")}


def start_once(binary, models, name, flags):
    path, body = REQUESTS[name]
    port = free_port()
    command = [binary, "serve", "--models", models, "--model", name, "--log", "warn"]
    command += ["--http-port", port, "--grpc-port", 0, "--host", "127.0.0.1", *flags]
    began = time.perf_counter()
    server = subprocess.Popen([str(part) for part in command], stdout=subprocess.DEVNULL)
    try:
        while ask(port, "GET", "/health/ready") != 200:
            if server.poll() is not None or time.perf_counter() - began > PATIENCE_S:
                sys.exit(f"{name} did not get ready")
            time.sleep(0.001)
        ready = time.perf_counter() - began
        status = ask(port, "POST", path, body)
        answered = time.perf_counter() - began
        if status != 200:
            sys.exit(f"{name}: the first request was answered with {status}")
        figures = status_of(server.pid)
        io = pathlib.Path(f"/proc/{server.pid}/io").read_text()
        disk = next(int(line.split()[1]) for line in io.splitlines() if "read_bytes" in line)
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait()
    return {"ready": ready * 1e3, "answered": answered * 1e3, "disk": disk / 2**20, **figures}


def link_version(source, target):
    """A version of its own whose files are those of another: what is prepared goes into it."""
    for path in files_of(source):
        if ".ferry" in path.parts:
            continue
        link = target / path.relative_to(source)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(path.resolve())


def measure(arguments, name):
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
        scratch = pathlib.Path(scratch)
        models = scratch / "models"
        version = models / name / "1"
        source = arguments.models / name
        link_version(source / "1", version)
        (models / name / "model.toml").write_bytes((source / "model.toml").read_bytes())
        off = scratch / "off.toml"
        off.write_text("[models]\nprepared = \"off\"\n")
        without = [] if arguments.plain else ["--config", off]
        cases = [("cold", without, True), ("made", without, False)]
        if not arguments.plain:
            warm = [arguments.binary, "warm", name, "--models", models]
            subprocess.run([str(part) for part in warm], check=True, stdout=sys.stderr)
            cases += [("prepared, cold", [], True), ("prepared", [], False)]
        for case, flags, cold in cases:
            remember(models)
            # The first start of a case is not counted.
            start_once(arguments.binary, models, name, flags)
            runs = []
            for _ in range(arguments.runs):
                if cold:
                    forget(models)
                runs.append(start_once(arguments.binary, models, name, flags))
            yield case, runs


def spread(runs, key):
    values = [run[key] for run in runs]
    return f"{statistics.median(values):.0f} ({min(values):.0f}–{max(values):.0f})"


def row(name, case, runs):
    median = lambda key: f"{statistics.median(run[key] for run in runs):.0f}"
    first = f"{statistics.median(run['answered'] - run['ready'] for run in runs):.1f}"
    cells = [name, case, spread(runs, "ready"), spread(runs, "answered"), first]
    cells += [median(key) for key in ("disk", "VmHWM", "RssAnon", "RssFile")]
    return "| " + " | ".join(cells) + " |"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--binary", type=pathlib.Path, default=ROOT / "target/release/ferry")
    parser.add_argument("--models", type=pathlib.Path, default=ROOT / "models")
    parser.add_argument("--model", action="append", choices=REQUESTS, help="default: all")
    parser.add_argument("--runs", type=int, default=11)
    parser.add_argument("--scratch", help="where to keep prepared weights; not a tmpfs")
    parser.add_argument("--plain", action="store_true")
    arguments = parser.parse_args()
    print("| model | case | ready, ms | first answer, ms | of that the request, ms | disk, MiB "
          "| peak, MiB | own, MiB | mapped, MiB |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for name in arguments.model or REQUESTS:
        for case, runs in measure(arguments, name):
            print(row(name, case, runs), flush=True)


if __name__ == "__main__":
    main()
