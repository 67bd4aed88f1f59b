"""NVIDIA's aiperf, unmodified, measures Ferry's /v1 routes without a failed request."""

import os

import aiperf_tool
import pytest
from conftest import DECODER, MODEL, wait_until_idle

REQUESTS = 24


@pytest.fixture(scope="module")
def aiperf():
    try:
        return aiperf_tool.find_or_install()
    except aiperf_tool.Unavailable as reason:
        pytest.skip(f"aiperf can't run here: {reason}")


def profile(aiperf, model, endpoint_type, *arguments):
    load = ["--concurrency", "4", "--request-count", str(REQUESTS), "--isl", "30", "--random-seed", "1"]
    report = aiperf_tool.profile(aiperf, os.environ["FERRY_HTTP"], model, endpoint_type, [*load, *arguments])
    assert report["request_count"]["avg"] == REQUESTS
    assert report.get("error_request_count", {}).get("avg", 0) == 0
    assert report["request_latency"]["p50"] > 0
    return report


@pytest.mark.parametrize("endpoint_type", ["chat", "completions"])
def test_aiperf_measures_streams(aiperf, endpoint_type):
    report = profile(
        aiperf, DECODER, endpoint_type, "--streaming", "--use-server-token-count", "--osl", "16",
        "--extra-inputs", "ignore_eos:true",
    )
    assert report["output_sequence_length"]["avg"] == 16
    assert report["time_to_first_token"]["p99"] > 0
    assert report["output_token_throughput"]["avg"] > 0
    wait_until_idle()


def test_aiperf_measures_answers_in_one_piece(aiperf):
    report = profile(
        aiperf, DECODER, "chat", "--use-server-token-count", "--osl", "16", "--extra-inputs", "ignore_eos:true"
    )
    assert report["output_sequence_length"]["avg"] == 16


def test_aiperf_measures_embeddings(aiperf):
    profile(aiperf, MODEL, "embeddings")
