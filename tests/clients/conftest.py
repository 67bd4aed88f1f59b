"""What the client tests share. The server is started by run.py, which tells its addresses in
FERRY_GRPC (host:port) and FERRY_HTTP (http://host:port)."""

import json
import os
from pathlib import Path

import grpc
import numpy
import pytest
import tritonclient.grpc

ROOT = Path(__file__).resolve().parent.parent.parent
MODEL = "minilm"
DIMENSIONS = 384


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
