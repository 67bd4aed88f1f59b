"""A peer in a process of its own, in its own environment: one JSON line a question, one an answer.

An engine's file defines functions and calls `serve(functions)`; this side calls them by name through a
`Worker`. What an engine prints goes to standard error, so that the answers stay alone on their pipe.
"""

import json
import os
import select
import subprocess
import sys
import traceback
from pathlib import Path

HERE = Path(__file__).resolve().parent


class Failed(Exception):
    """The engine could not do what it was asked."""


class Worker:
    """An engine's process."""

    def __init__(self, python, engine, threads, log):
        env = dict(os.environ, PYTHONPATH=str(HERE), TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1")
        env |= {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS")}
        # Settings for older OpenBLAS builds; they slow a current one.
        for name in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE"):
            env.pop(name, None)
        log.parent.mkdir(parents=True, exist_ok=True)
        self.log_path = log
        with open(log, "w") as errors:
            self.process = subprocess.Popen(
                [python, str(HERE / "engines" / f"{engine}.py")],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, env=env,
            )

    def ask(self, function, timeout_s=300.0, **arguments):
        try:
            self.process.stdin.write(json.dumps({"do": function, "with": arguments}) + "\n")
            self.process.stdin.flush()
            # One line an answer, so that nothing of it is left in the reader's buffer.
            if not select.select([self.process.stdout], [], [], timeout_s)[0]:
                self.process.kill()
                raise Failed(f"no answer to {function} within {timeout_s:g} s")
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            lines = self.log_path.read_text(errors="replace").strip().splitlines() or ["no word"]
            raise Failed(f"its process ended: {lines[-1][:300]}")
        answer = json.loads(line)
        if "error" in answer:
            raise Failed(answer["error"])
        return answer["result"]

    def close(self):
        self.process.stdin.close()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def serve(functions):
    """Answers until there are no more questions."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            answer = {"result": functions[asked["do"]](**asked["with"])}
        except Exception as error:  # the other side decides what to do about it
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}".splitlines()[0][:300]}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
