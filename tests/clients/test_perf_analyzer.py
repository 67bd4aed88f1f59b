"""NVIDIA's perf_analyzer, unmodified, measures Ferry without a failed request."""

import json

import perf_tool
import pytest
from conftest import DECODER, MODEL, texts, wait_until_idle


@pytest.fixture(scope="module")
def perf_analyzer():
    try:
        return perf_tool.find_or_install()
    except perf_tool.Unavailable as reason:
        pytest.skip(str(reason))


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "data.json"
    path.write_text(json.dumps({"data": [{"TEXT": [text]} for text in texts(64)]}))
    return path


def measure(perf_analyzer, address, report, *options, model=MODEL, requests=200):
    """Runs it; returns the one row of its report. It stops and exits with an error on a failed request."""
    done = perf_analyzer.run(
        ["-m", model, "-i", "grpc", "-u", address, "--request-count", str(requests), "-f", str(report), *options],
        timeout_s=120,
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert not any(word in said.lower() for word in ("error", "failed")), said
    (row,) = perf_tool.read_report(report)
    assert row["Inferences/Second"] > 0
    return row


@pytest.mark.parametrize("concurrency", [1, 8])
def test_it_measures_without_failures(perf_analyzer, address, client, data, tmp_path, concurrency):
    before = client.get_inference_statistics(MODEL).model_stats[0].inference_stats
    row = measure(
        perf_analyzer, address, tmp_path / "report.csv",
        "--input-data", str(data), "--concurrency-range", f"{concurrency}:{concurrency}",
    )
    after = client.get_inference_statistics(MODEL).model_stats[0].inference_stats
    assert row["Concurrency"] == concurrency
    assert row["Server Compute Infer"] > 0
    assert after.success.count - before.success.count >= 200
    assert after.fail.count == before.fail.count


@pytest.mark.parametrize("options", [["--streaming"], ["-a"], ["--grpc-compression-algorithm", "gzip"], ["-b", "8"]])
def test_its_other_ways_of_sending_work(perf_analyzer, address, data, tmp_path, options):
    measure(
        perf_analyzer, address, tmp_path / "report.csv",
        "--input-data", str(data), "--concurrency-range", "4:4", *options,
    )


def test_its_string_data_works_where_every_input_is_text(perf_analyzer, address, tmp_path):
    measure(
        perf_analyzer, address, tmp_path / "report.csv",
        "--string-data", "a boat on the water", "--concurrency-range", "2:2",
        model="tiny-bert-rerank",
    )


def test_it_measures_a_decoupled_model(perf_analyzer, address, tmp_path):
    sampling = json.dumps({"max_tokens": 16, "temperature": 0, "ignore_eos": True})
    prompts = [{"text_input": [text], "stream": [True], "sampling_parameters": [sampling]} for text in texts(16)]
    data = tmp_path / "prompts.json"
    data.write_text(json.dumps({"data": prompts}))
    measure(
        perf_analyzer, address, tmp_path / "report.csv",
        "--input-data", str(data), "--concurrency-range", "4:4", "--streaming", model=DECODER,
    )
    wait_until_idle()
