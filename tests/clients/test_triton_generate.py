"""Triton's decoupled style of generation, as clients of its vLLM backend use it: one request, many answers."""

import asyncio
import json
import queue

import numpy
import pytest
import tritonclient.grpc
import tritonclient.grpc.aio
from conftest import DECODER, wait_until_idle
from tritonclient.utils import InferenceServerException

GREEDY = {"temperature": 0, "max_tokens": 16, "ignore_eos": True}


def tensor(name, kind, value):
    given = tritonclient.grpc.InferInput(name, [1], kind)
    value = value.encode() if isinstance(value, str) else value
    given.set_data_from_numpy(numpy.array([value], dtype=numpy.object_ if kind == "BYTES" else numpy.bool_))
    return given


def inputs(prompt, sampling=None, stream=True, **switches):
    given = [tensor("text_input", "BYTES", prompt), tensor("stream", "BOOL", stream)]
    if sampling is not None:
        given.append(tensor("sampling_parameters", "BYTES", json.dumps(sampling)))
    return given + [tensor(name, "BOOL", value) for name, value in switches.items()]


class Answers(queue.Queue):
    """What a stream brings, in order."""

    def __call__(self, result, error):
        self.put(error or result)

    def take(self):
        got = self.get(timeout=30)
        if isinstance(got, Exception):
            raise got
        return got

    def until_final(self):
        """The texts up to the response that says it is the last."""
        pieces = []
        while True:
            got = self.take()
            pieces.append(text_of(got))
            if is_final(got):
                return pieces


def text_of(result):
    text = result.as_numpy("text_output")
    return "" if text is None or text.size == 0 else text.ravel()[0].decode()


def is_final(result):
    return result.get_response().parameters["triton_final_response"].bool_param


@pytest.fixture
def answers(client):
    answers = Answers()
    client.start_stream(answers)
    yield answers
    client.stop_stream(cancel_requests=True)


def test_the_config_says_decoupled(client):
    config = client.get_model_config(DECODER).config
    assert config.model_transaction_policy.decoupled
    kinds = {tensor.name: list(tensor.dims) for tensor in config.input}
    assert kinds["text_input"] == kinds["stream"] == kinds["sampling_parameters"] == [1]
    assert {tensor.name: list(tensor.dims) for tensor in config.output}["text_output"] == [-1]
    optional = {tensor.name for tensor in config.input if tensor.optional}
    assert "text_input" not in optional
    assert {"stream", "sampling_parameters", "exclude_input_in_output"} <= optional


def test_a_stream_brings_the_text_piece_by_piece(client, answers, decoder_golden):
    case = decoder_golden[0]
    client.async_stream_infer(DECODER, inputs(case["text"], GREEDY), request_id="one", enable_empty_final_response=True)
    pieces = answers.until_final()
    assert len(pieces) > 4
    assert "".join(pieces) == case["greedy_text"]


def test_without_the_stream_flag_there_is_one_answer(client, answers, decoder_golden):
    case = decoder_golden[0]
    given = inputs(case["text"], GREEDY, stream=False, exclude_input_in_output=True)
    client.async_stream_infer(DECODER, given, enable_empty_final_response=True)
    pieces = answers.until_final()
    assert [piece for piece in pieces if piece] == [case["greedy_text"]]


def test_the_whole_answer_begins_with_the_prompt_unless_it_is_excluded(client, decoder_golden):
    case = decoder_golden[0]
    with_prompt = client.infer(DECODER, inputs(case["text"], GREEDY, stream=False))
    assert text_of(with_prompt) == case["text"] + case["greedy_text"]
    without = client.infer(DECODER, inputs(case["text"], GREEDY, stream=False, exclude_input_in_output=True))
    assert text_of(without) == case["greedy_text"]


def test_many_requests_share_a_stream_and_are_told_apart(client, answers):
    prompts = [f"boat number {i}" for i in range(12)]
    for i, prompt in enumerate(prompts):
        client.async_stream_infer(DECODER, inputs(prompt, GREEDY), request_id=str(i), enable_empty_final_response=True)
    found, open_ = {str(i): "" for i in range(12)}, 12
    while open_:
        got = answers.take()
        found[got.get_response().id] += text_of(got)
        open_ -= is_final(got)
    for i, prompt in enumerate(prompts):
        alone = client.infer(DECODER, inputs(prompt, GREEDY, stream=False, exclude_input_in_output=True))
        assert found[str(i)] == text_of(alone)


def test_reasons_and_counts_come_when_asked(client, answers, decoder_golden):
    case = decoder_golden[0]
    switches = dict.fromkeys(
        ["return_finish_reason", "return_cumulative_logprob", "return_num_input_tokens", "return_num_output_tokens"], True
    )
    client.async_stream_infer(DECODER, inputs(case["text"], GREEDY, **switches), enable_empty_final_response=True)
    results = []
    while not results or not is_final(results[-1]):
        results.append(answers.take())
    reasons = [r.as_numpy("finish_reason").ravel()[0].decode() for r in results if r.as_numpy("finish_reason") is not None]
    assert reasons[-1] == "length"
    assert set(reasons[:-1]) <= {"None"}
    counts = [r.as_numpy("num_output_tokens").sum() for r in results if r.as_numpy("num_output_tokens") is not None]
    assert sum(counts) == 16
    assert results[0].as_numpy("num_input_tokens").ravel()[0] == len(case["ids"])


def test_errors_come_on_the_stream_and_leave_it_open(client, answers, decoder_golden):
    client.async_stream_infer(DECODER, inputs("a", {"tempreature": 1}), request_id="bad")
    with pytest.raises(InferenceServerException, match="tempreature"):
        answers.take()
    client.async_stream_infer(DECODER, inputs("boat " * 300, GREEDY))
    with pytest.raises(InferenceServerException):
        answers.take()
    case = decoder_golden[0]
    client.async_stream_infer(DECODER, inputs(case["text"], GREEDY), enable_empty_final_response=True)
    assert "".join(answers.until_final()) == case["greedy_text"]


def test_numbers_may_be_strings_as_in_tritons_own_client(client):
    sampling = {"temperature": "0", "top_p": "0.95", "max_tokens": "8"}
    assert text_of(client.infer(DECODER, inputs("The ferry", sampling, stream=False))).startswith("The ferry")


def test_the_defaults_are_enough(client):
    given = [tensor("text_input", "BYTES", "The ferry")]
    assert text_of(client.infer(DECODER, given)).startswith("The ferry")


def test_a_stream_that_is_cancelled_frees_its_cache(client):
    answers = Answers()
    client.start_stream(answers)
    sampling = {**GREEDY, "max_tokens": 100}
    for i in range(8):
        client.async_stream_infer(DECODER, inputs("The", sampling), request_id=str(i))
    answers.take()
    client.stop_stream(cancel_requests=True)
    wait_until_idle()


def test_the_asyncio_client_streams(address, decoder_golden):
    case = decoder_golden[0]

    async def requests():
        yield {"model_name": DECODER, "inputs": inputs(case["text"], GREEDY), "enable_empty_final_response": True}

    async def go():
        async with tritonclient.grpc.aio.InferenceServerClient(address) as client:
            text = ""
            async for result, error in client.stream_infer(requests()):
                assert error is None
                text += text_of(result)
                if is_final(result):
                    return text

    assert asyncio.run(go()) == case["greedy_text"]
