"""What the client tests share. The server is started by run.py, which tells its addresses in
FERRY_GRPC (host:port) and FERRY_HTTP (http://host:port)."""

import json
import os
import time
import urllib.request
from pathlib import Path

import grpc
import numpy
import pytest
import tritonclient.grpc

ROOT = Path(__file__).resolve().parent.parent.parent
MODEL = "minilm"
DIMENSIONS = 384
DECODER = "tiny-llama"  # random weights and a real tokenizer; 128 tokens of context


@pytest.fixture(scope="session")
def address():
    if "FERRY_GRPC" not in os.environ:
        pytest.exit("FERRY_GRPC is not set: start the tests with tests/clients/run.py", returncode=2)
    return os.environ["FERRY_GRPC"]


@pytest.fixture
def client(address):
    with tritonclient.grpc.InferenceServerClient(address) as client:
        yield client


@pytest.fixture
def channel(address):
    with grpc.insecure_channel(address) as channel:
        yield channel


@pytest.fixture(scope="session")
def golden():
    """Expected texts, ids and embeddings of minilm."""
    path = ROOT / "tests" / "golden" / f"{MODEL}.json"
    return [case for case in json.loads(path.read_text())["cases"] if case["text"].strip()]


@pytest.fixture(scope="session")
def decoder_golden():
    """Texts and conversations for DECODER with their ids, and the greedy ids and text that follow."""
    return json.loads((ROOT / "tests" / "golden" / "decoders" / "llama.json").read_text())["cases"]


def metric(name, **labels):
    """One sample of the server's metrics."""
    with urllib.request.urlopen(f"{os.environ['FERRY_HTTP']}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    wanted = [f'{key}="{value}"' for key, value in labels.items()]
    (line,) = (line for line in lines if line.startswith(name + "{") and all(label in line for label in wanted))
    return float(line.rpartition(" ")[2])


def wait_until(condition, what, seconds=20.0):
    """Asks again until it holds; time only bounds how long a failure takes."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def wait_until_idle(model=DECODER):
    """Until nothing runs or waits, and no block of the cache is in use."""

    def idle():
        busy = sum(metric("ferry_sequences", model=model, state=state) for state in ("running", "waiting", "paused"))
        return busy == 0 and metric("ferry_cache_blocks", model=model, state="used") == 0

    wait_until(idle, f"{model} is still at work")


def text_input(texts, name="TEXT"):
    """A BYTES input of shape [n, 1] in raw form."""
    given = tritonclient.grpc.InferInput(name, [len(texts), 1], "BYTES")
    given.set_data_from_numpy(numpy.array([[text.encode()] for text in texts], dtype=numpy.object_))
    return given


def ids_input(rows):
    given = tritonclient.grpc.InferInput("INPUT_IDS", [len(rows), len(rows[0])], "INT64")
    given.set_data_from_numpy(numpy.array(rows, dtype=numpy.int64))
    return given


def texts(count):
    return [f"sentence number {i} is about {'boats' if i % 2 else 'trains'}" for i in range(count)]
