"""Floods in small: the server lives, neighbours are served, memory is bounded, and who offends is cut off where its
protocol lets that be told. `benches/floods.py` has them large."""

import os

import floods
import pytest
from conftest import DECODER, metric, wait_until, wait_until_idle


@pytest.fixture(scope="module")
def server():
    fixture = "tiny-bert-embed"
    return {"grpc": os.environ["FERRY_GRPC"], "http": os.environ["FERRY_HTTP"], "model": fixture, "decoder": DECODER,
            "stream_request": lambda embed: b"\x0a\x01a\x12" + bytes([len(embed)]) + embed}


@pytest.fixture
def neighbours(server):
    """Who is served while the test runs."""
    with floods.Neighbours(server) as neighbours:
        yield neighbours
    assert not neighbours.failures, neighbours.failures[:3]
    assert all(neighbours.times.values()), "a neighbour was never served"


def resident_mib():
    with floods.connect(os.environ["FERRY_HTTP"]) as one:
        one.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        page = b""
        while piece := one.recv(1 << 16):
            page += piece
    (line,) = (line for line in page.decode().splitlines() if line.startswith("process_resident_memory_bytes "))
    return float(line.split()[1]) / (1 << 20)


@pytest.fixture(autouse=True)
def bounded_memory():
    before = resident_mib()
    yield
    # Far more than any of these sends, were it kept.
    assert resident_mib() < before + 200


@pytest.mark.parametrize(
    ("flood", "size"),
    [(floods.rapid_reset, 20_000), (floods.continuation, 32), (floods.empty_continuation, 200_000)],
    ids=["rapid reset", "CONTINUATION", "empty CONTINUATION"],
)
def test_a_flood_of_frames_ends_its_connection_and_no_other(server, neighbours, flood, size):
    assert flood(server, size)["ended"] == 1


@pytest.mark.parametrize("flood", [floods.pings, floods.settings], ids=["PING", "SETTINGS"])
def test_answers_that_nobody_reads_are_not_kept(server, neighbours, flood):
    assert flood(server, 64)["stopped reading"]


def test_headers_beyond_the_limit_are_refused(server, neighbours):
    told = floods.wide_headers(server)
    assert told["over HTTP/1"].startswith("HTTP/1.1 431") and told["ended"] == 1


def test_a_message_that_says_it_is_4_gib_is_refused_before_it_comes(server, neighbours):
    told = floods.wide_message(server)
    assert told["refused"] == told["calls"]


def test_bytes_that_are_no_message_harm_nobody(server, neighbours):
    told = floods.malformed(server, 100)
    assert told["refused"] == told["sent"]


def test_requests_of_which_a_letter_comes_now_and_then_keep_nobody_waiting(server, neighbours):
    floods.slow_heads(server, 200, seconds=2)


def test_idle_connections_keep_nobody_waiting(server, neighbours):
    floods.close(floods.idle(server, 1000))


def test_hundreds_of_streams_are_open_at_a_time(server, neighbours):
    clients, answered = floods.streams(server, 500)
    floods.close(client.socket for client in clients)
    assert answered == 500


def test_clients_that_vanish_leave_nothing_behind(server, neighbours):
    told = floods.vanish(server, 50)
    assert told["began"] == told["clients"]
    wait_until_idle()
    wait_until(lambda: metric("ferry_waiting_rows", model=DECODER) == 0, "rows wait that nobody wants")
