#!/usr/bin/env python3
"""Runs other people's clients against a Ferry binary. Standard library only.

    python3 tests/clients/run.py --ferry target/debug/ferry --models models

Makes (or reuses) a Python environment under target/clients-venv, starts the server on free ports with
minilm and the tiny checkpoints of tests/fixtures/, waits until it is ready, runs the pytest files
here, stops the server with SIGTERM and checks that it leaves with exit code 0.

What follows `--` goes to pytest: `... -- -k stream -x`.
"""

import argparse
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import venv
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
ENVIRONMENT = ROOT / "target" / "clients-venv"
REPOSITORY = ROOT / "target" / "clients-models"
JOBS = ROOT / "target" / "clients-jobs"


def main():
    ours, for_pytest = split_arguments(sys.argv[1:])
    options = parse(ours)
    python = prepare_environment(options.pip_option)
    models = prepare_models(options.models)
    shutil.rmtree(JOBS, ignore_errors=True)
    more = ["--jobs", str(JOBS), *options.server_option]
    with Server(options.ferry, models, options.ready_timeout, more) as server:
        env = dict(os.environ, FERRY_GRPC=server.grpc, FERRY_HTTP=server.http, PYTHONDONTWRITEBYTECODE="1")
        command = [python, "-m", "pytest", "-p", "no:cacheprovider", "-q", "-ra", str(HERE), *for_pytest]
        tests = subprocess.run(command, env=env).returncode
        left = server.stop()
    if left != 0:
        print(f"the server left with exit code {left} after SIGTERM; its log: {server.log_path}", file=sys.stderr)
    sys.exit(tests or int(left != 0))


def split_arguments(arguments):
    if "--" in arguments:
        at = arguments.index("--")
        return arguments[:at], arguments[at + 1 :]
    return arguments, []


def parse(arguments):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ferry", type=Path, default=ROOT / "target" / "debug" / "ferry", help="the server's binary")
    parser.add_argument("--models", type=Path, default=ROOT / "models", help="the folder that holds minilm")
    parser.add_argument("--ready-timeout", type=float, default=120.0, metavar="SECONDS")
    parser.add_argument("--pip-option", action="append", default=[], help="passed to pip")
    parser.add_argument("--server-option", action="append", default=[], help="passed to `ferry serve`")
    return parser.parse_args(arguments)


def prepare_environment(pip_options=()):
    """The environment's Python; installs anew when requirements.txt has changed."""
    wanted = (HERE / "requirements.txt").read_text()
    stamp = ENVIRONMENT / "installed.txt"
    python = str(ENVIRONMENT / "bin" / "python")
    if not stamp.exists() or stamp.read_text() != wanted:
        print(f"installing the clients into {ENVIRONMENT}", flush=True)
        venv.create(ENVIRONMENT, with_pip=True, clear=True)
        pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *pip_options]
        subprocess.run([*pip, "-r", str(HERE / "requirements.txt")], check=True)
        stamp.write_text(wanted)
    return python


def prepare_models(source):
    """A repository of links to minilm, SmolLM2 if it is there, and the fixtures, so that every task is there."""
    minilm = source.resolve() / "minilm"
    if not any(minilm.glob("[0-9]*/model.safetensors")):
        sys.exit(f"no weights in {minilm}: fetch them first (python3 models/fetch.py minilm)")
    shutil.rmtree(REPOSITORY, ignore_errors=True)
    REPOSITORY.mkdir(parents=True)
    # Other people's values are f32 and held to 1e-4; bf16, the default where it is fast, is not that near.
    (REPOSITORY / "minilm").mkdir()
    (REPOSITORY / "minilm" / "model.toml").write_text('compute = "f32"\n' + (minilm / "model.toml").read_text())
    for version in minilm.glob("[0-9]*"):
        (REPOSITORY / "minilm" / version.name).symlink_to(version.resolve())
    smollm2 = source.resolve() / "smollm2-135m"
    if (smollm2 / "1" / "model.gguf").exists():
        (REPOSITORY / "smollm2-135m").symlink_to(smollm2)
    for fixture in sorted((ROOT / "tests" / "fixtures").glob("tiny-*")):
        (REPOSITORY / fixture.name).mkdir()
        (REPOSITORY / fixture.name / "1").symlink_to(fixture)
    # Of the decoders the one with a tokenizer.
    (REPOSITORY / "tiny-llama").mkdir()
    (REPOSITORY / "tiny-llama" / "1").symlink_to(ROOT / "tests" / "fixtures" / "decoders" / "llama")
    return REPOSITORY


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


class Server:
    """A running `ferry serve`; nothing of it is left when the block ends."""

    def __init__(self, binary, models, ready_timeout_s=120.0, options=(), admin_port=0):
        grpc_port, http_port = free_ports(2)
        self.grpc, self.http = f"127.0.0.1:{grpc_port}", f"http://127.0.0.1:{http_port}"
        self.log_path = ROOT / "target" / "clients-server.log"
        self.ready_timeout_s = ready_timeout_s
        self.command = [
            str(binary.resolve()), "serve", "--models", str(models),
            "--grpc-port", str(grpc_port), "--http-port", str(http_port), "--admin-port", str(admin_port),
            *options,
        ]

    def __enter__(self):
        with open(self.log_path, "w") as log:
            self.process = subprocess.Popen(self.command, stdout=log, stderr=subprocess.STDOUT)
        try:
            self.wait_until_ready()
        except BaseException:
            self.process.kill()
            raise
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def wait_until_ready(self):
        deadline = time.monotonic() + self.ready_timeout_s
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                sys.exit(f"the server left with exit code {self.process.returncode}; its log: {self.log_path}")
            try:
                with urllib.request.urlopen(f"{self.http}/health/ready", timeout=2) as answer:
                    if answer.status == 200:
                        return
            except (urllib.error.URLError, OSError):
                pass
            time.sleep(0.1)
        sys.exit(f"the server is not ready after {self.ready_timeout_s} s; its log: {self.log_path}")

    def stop(self, timeout_s=30.0):
        """SIGTERM; returns the exit code, or None if it did not leave in time."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None


if __name__ == "__main__":
    main()
