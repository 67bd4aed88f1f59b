#!/usr/bin/env python3
"""Ferry beside its peers on this machine: the same inputs, one run, in turns; writes docs/peers.md and more.

    cargo build --release
    python3 models/fetch.py minilm decoders
    python3 benches/peers/run.py --ferry target/release/ferry --models models

Stages: embed (ONNX Runtime, OpenVINO, sentence-transformers in process; Triton and text-embeddings-inference
served), llm (llama.cpp in process, llama-server, mistral.rs), growth (length, streams, models). Each peer is
a file of engines/ with an environment of its own, made under target/peers/ from the pins in requirements/. A
peer that can't be had or does not run is SKIPPED, and the report says why.

All have as many threads. Sides take turns in every round, and who goes first alternates; ratios are Ferry ÷
peer within a round, and the median of the rounds is what counts. Figures are compared only at one precision,
and int8 only where the peer's vectors are as close to f32's as Ferry's. `ferry bench` puts the load on every
server, Ferry's or not. Standard library only; the peers' packages live in their own environments.
"""

import argparse
import os
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "benches"))
sys.path.insert(0, str(ROOT / "tests" / "clients"))
import embed  # noqa: E402
import growth  # noqa: E402
import llm  # noqa: E402
import report  # noqa: E402
from environment import HOME, parse_python  # noqa: E402
from ferry import Ferry  # noqa: E402
from results import Results  # noqa: E402

STAGES = {"embed": embed.Stage, "llm": llm.Stage, "growth": growth.Stage}
# A stage's share of the rounds; how cost grows is seen in one.
ROUNDS = {"embed": 1.0, "llm": 0.67, "growth": 0.34}


def main():
    options = parse()
    HOME.mkdir(parents=True, exist_ok=True)
    ferry, results, begin = Ferry(options), Results(), time.monotonic()
    results.versions["ferry"] = ferry.version()
    for name in options.only:
        with STAGES[name](options, ferry, results) as stage:
            stage.prepare()
            if name == "embed":
                stage.compare_vectors()
            for round_ in range(1, max(1, round(options.rounds * ROUNDS[name])) + 1):
                print(f"{name}, round {round_}, {time.monotonic() - begin:.0f} s", flush=True)
                stage.round(round_)
    report.write(options, results, time.monotonic() - begin)


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ferry", type=Path, default=ROOT / "target" / "release" / "ferry", help="its binary")
    parser.add_argument("--load", type=Path, help="the binary whose `bench` puts on the load; by default the same")
    parser.add_argument("--models", type=Path, default=ROOT / "models", help="the models folder")
    parser.add_argument("--only", type=stages, default=list(STAGES), help="such as embed,llm")
    parser.add_argument("--peers", type=lambda text: text.split(","), help="engines to run, by their files' names; by default all")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0, help="length of a measurement of served figures")
    parser.add_argument("--clients", type=lambda text: [int(one) for one in text.split(",")], default=[32, 128])
    parser.add_argument("--texts", type=int, default=2000, help="texts of mixed length; a tenth as many long ones")
    parser.add_argument("--alone", type=int, default=50, help="texts sent one at a time")
    parser.add_argument("--tokens", type=int, default=64, help="tokens written for a prompt")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--python", type=parse_python, action="append", default=[], metavar="NAME=INTERPRETER",
                        help="an interpreter that has requirements/NAME.txt already, instead of an environment made here")
    parser.add_argument("--llama-server", default="llama-server", help="its binary")
    parser.add_argument("--tei", default="text-embeddings-router", help="its binary")
    parser.add_argument("--quick", action="store_true", help="one short round, to see that all runs; no figures to quote")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "peers", help="without the ending")
    options = parser.parse_args()
    options.python, options.root = dict(options.python), ROOT
    if options.quick:
        options.rounds, options.seconds, options.texts, options.alone, options.tokens = 1, 1.0, 100, 10, 8
    if min(options.rounds, options.texts, options.alone, options.tokens, options.threads, *options.clients) < 1 or options.seconds <= 0:
        parser.error("counts are at least 1, and seconds above 0")
    return options


def stages(text):
    names = text.split(",")
    unknown = [name for name in names if name not in STAGES]
    if unknown:
        raise argparse.ArgumentTypeError(f"{unknown[0]}: allowed: {', '.join(STAGES)}")
    return names


if __name__ == "__main__":
    main()
