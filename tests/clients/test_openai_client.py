"""OpenAI's Python client, unmodified, on Ferry's /v1 routes."""

import base64
import json
import os
import struct
import threading
import urllib.error
import urllib.request

import numpy
import openai
import pytest
from conftest import DECODER, DIMENSIONS, MODEL, texts, wait_until_idle

GREEDY = dict(model=DECODER, temperature=0, max_tokens=16, extra_body={"ignore_eos": True})
USER = [{"role": "user", "content": "Where is the gate?"}]
RERANKER = "tiny-bert-rerank"


@pytest.fixture(scope="module")
def ai():
    with openai.OpenAI(base_url=f"{os.environ['FERRY_HTTP']}/v1", api_key="none", max_retries=0, timeout=60) as client:
        yield client


def fails(kind, status, param=None, code=None):
    """What must be raised, with OpenAI's fields of an error."""

    def check(error):
        assert error.status_code == status, error
        assert (param is None or error.param == param) and (code is None or error.code == code), error.body
        return bool(error.body["message"])

    return pytest.raises(kind, check=check)


def test_models_are_listed_and_found(ai):
    models = {model.id: model for model in ai.models.list()}
    assert {DECODER, MODEL} <= set(models)
    assert models[DECODER].object == "model"
    assert models[DECODER].created > 0
    assert ai.models.retrieve(DECODER).id == DECODER


def test_an_unknown_model_is_not_found(ai):
    with fails(openai.NotFoundError, 404):
        ai.models.retrieve("no-such-model")
    with fails(openai.NotFoundError, 404, param="model", code="model_not_found"):
        ai.completions.create(model="no-such-model", prompt="a")
    with fails(openai.NotFoundError, 404, code="model_not_found"):
        ai.chat.completions.create(model="no-such-model", messages=USER)
    with fails(openai.NotFoundError, 404, code="model_not_found"):
        ai.embeddings.create(model="no-such-model", input="a")


def test_greedy_completions_are_those_of_transformers(ai, decoder_golden):
    for case in decoder_golden:
        if "messages" in case:
            continue
        answer = ai.completions.create(prompt=case["text"], **GREEDY)
        (choice,) = answer.choices
        assert choice.text == case["greedy_text"]
        assert choice.finish_reason == "length"
        assert answer.object == "text_completion"
        assert answer.model == DECODER
        usage = answer.usage
        assert (usage.prompt_tokens, usage.completion_tokens) == (len(case["ids"]), 16)
        assert usage.total_tokens == len(case["ids"]) + 16


def test_greedy_chats_are_those_of_transformers(ai, decoder_golden):
    for case in decoder_golden:
        if "messages" not in case:
            continue
        answer = ai.chat.completions.create(messages=case["messages"], **GREEDY)
        (choice,) = answer.choices
        assert choice.message.role == "assistant"
        assert choice.message.content == case["greedy_text"]
        assert answer.object == "chat.completion"
        assert answer.usage.prompt_tokens == len(case["ids"])


def test_token_ids_are_a_prompt_too(ai, decoder_golden):
    case = decoder_golden[0]
    assert ai.completions.create(prompt=case["ids"], **GREEDY).choices[0].text == case["greedy_text"]
    together = ai.completions.create(prompt=[case["ids"], case["ids"][:5]], **GREEDY).choices
    assert [choice.index for choice in together] == [0, 1]
    assert together[0].text == case["greedy_text"]


def test_a_streamed_completion_is_the_same_text(ai, decoder_golden):
    case = decoder_golden[1]
    chunks = list(ai.completions.create(prompt=case["text"], stream=True, **GREEDY))
    assert "".join(chunk.choices[0].text for chunk in chunks) == case["greedy_text"]
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices[0].finish_reason] == ["length"]
    assert chunks[-1].choices[0].finish_reason == "length"
    assert len({chunk.id for chunk in chunks}) == 1
    assert all(chunk.usage is None for chunk in chunks)


def test_a_streamed_chat_is_the_same_text(ai, decoder_golden):
    case = next(case for case in decoder_golden if "messages" in case)
    with ai.chat.completions.create(messages=case["messages"], stream=True, **GREEDY) as stream:
        chunks = list(stream)
    deltas = [chunk.choices[0].delta for chunk in chunks]
    assert deltas[0].role == "assistant"
    assert "".join(delta.content or "" for delta in deltas) == case["greedy_text"]
    assert chunks[-1].choices[0].finish_reason == "length"
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}


def test_the_clients_own_stream_helper_gathers_a_chat(ai, decoder_golden):
    case = next(case for case in decoder_golden if "messages" in case)
    with ai.chat.completions.stream(messages=case["messages"], **GREEDY) as stream:
        kinds = {event.type for event in stream}
        # Not get_final_completion(): that raises where the length ended the answer, as it does here.
        assert stream.current_completion_snapshot.choices[0].message.content == case["greedy_text"]
    assert "content.delta" in kinds


@pytest.mark.parametrize("surface", ["completions", "chat"])
def test_a_stream_ends_with_the_usage_when_asked(ai, surface):
    create, prompt = surface_of(ai, surface)
    chunks = list(create(**prompt, stream=True, stream_options={"include_usage": True}, **GREEDY))
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == 16
    assert chunks[-1].usage.prompt_tokens > 0
    assert all(chunk.usage is None and chunk.choices for chunk in chunks[:-1])


def surface_of(ai, surface):
    if surface == "chat":
        return ai.chat.completions.create, {"messages": USER}
    return ai.completions.create, {"prompt": "The ferry"}


@pytest.mark.parametrize("surface", ["completions", "chat"])
@pytest.mark.parametrize("stream", [False, True])
def test_several_continuations_come_by_their_index(ai, surface, stream):
    create, prompt = surface_of(ai, surface)
    asked = dict(model=DECODER, n=2, seed=3, temperature=1.5, max_tokens=8, extra_body={"ignore_eos": True}, stream=stream)
    found = ["", ""]
    if stream:
        ended = set()
        for chunk in create(**prompt, **asked):
            for choice in chunk.choices:
                found[choice.index] += (choice.delta.content or "") if surface == "chat" else choice.text
                ended |= {choice.index} if choice.finish_reason else set()
        assert ended == {0, 1}
    else:
        answer = create(**prompt, **asked)
        assert answer.usage.completion_tokens == 16
        for choice in answer.choices:
            found[choice.index] = choice.message.content if surface == "chat" else choice.text
    assert found[0] != found[1]
    again = create(**prompt, **{**asked, "stream": False}).choices
    assert found == [choice.message.content if surface == "chat" else choice.text for choice in again]


def test_the_seed_decides(ai):
    def sampled(seed):
        asked = dict(model=DECODER, prompt="The ferry", temperature=2, max_tokens=20, extra_body={"ignore_eos": True})
        return ai.completions.create(seed=seed, **asked).choices[0].text

    assert sampled(1) == sampled(1)
    assert len({sampled(seed) for seed in range(5)}) > 1


def test_the_seed_decides_whatever_else_is_served(ai):
    def sampled(seed):
        asked = dict(model=DECODER, prompt="The ferry", temperature=1.5, max_tokens=30, extra_body={"ignore_eos": True})
        return ai.completions.create(seed=seed, **asked).choices[0].text

    alone = [sampled(seed) for seed in range(8)]
    together = [None] * 8
    threads = [threading.Thread(target=lambda i=i: together.__setitem__(i, sampled(i))) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together == alone


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_text_ends_the_answer_and_is_not_in_it(ai, decoder_golden, stream):
    case = decoder_golden[0]
    text = case["greedy_text"]
    at = next(i for i in range(2, len(text) - 2) if text.find(text[i : i + 2]) == i)
    stop = text[at : at + 2]
    answer = ai.completions.create(prompt=case["text"], stop=["never in it", stop], stream=stream, **GREEDY)
    if stream:
        choices = [chunk.choices[0] for chunk in answer]
        found, reason = "".join(choice.text for choice in choices), choices[-1].finish_reason
    else:
        found, reason = answer.choices[0].text, answer.choices[0].finish_reason
    assert found == text[:at]
    assert reason == "stop"


def test_max_tokens_bounds_the_answer(ai):
    for count in (1, 5):
        answer = ai.completions.create(**{**GREEDY, "max_tokens": count}, prompt="The ferry")
        assert answer.usage.completion_tokens == count
        assert answer.choices[0].finish_reason == "length"
    answer = ai.chat.completions.create(
        model=DECODER, messages=USER, temperature=0, max_completion_tokens=3, extra_body={"ignore_eos": True}
    )
    assert answer.usage.completion_tokens == 3


def test_a_completion_has_logprobs_in_the_old_form(ai, decoder_golden):
    case = decoder_golden[0]
    logprobs = ai.completions.create(prompt=case["text"], logprobs=3, **GREEDY).choices[0].logprobs
    assert len(logprobs.tokens) == len(logprobs.token_logprobs) == len(logprobs.top_logprobs) == 16
    assert logprobs.text_offset[0] == 0
    assert logprobs.text_offset == sorted(logprobs.text_offset)
    for chosen, top in zip(logprobs.token_logprobs, logprobs.top_logprobs, strict=True):
        assert chosen <= 0
        assert abs(max(top.values()) - chosen) < 1e-5, "greedy takes the best"
    expected = numpy.array(case["logits"][-1])
    first = expected.max() - (expected.max() + numpy.log(numpy.exp(expected - expected.max()).sum()))
    assert abs(logprobs.token_logprobs[0] - first) < 5e-3, "the cache keeps f16"


def test_a_chat_has_logprobs_in_the_new_form(ai):
    answer = ai.chat.completions.create(messages=USER, logprobs=True, top_logprobs=4, **GREEDY)
    content = answer.choices[0].logprobs.content
    assert len(content) == 16
    for token in content:
        assert len(token.top_logprobs) == 4
        assert token.top_logprobs[0].logprob == max(one.logprob for one in token.top_logprobs)
        assert abs(token.logprob - token.top_logprobs[0].logprob) < 1e-5
    joined = b"".join(bytes(token.bytes) for token in content)
    assert joined.decode(errors="replace") == answer.choices[0].message.content


def test_streamed_logprobs_are_the_same(ai):
    asked = dict(messages=USER, logprobs=True, top_logprobs=2, **GREEDY)
    whole = ai.chat.completions.create(**asked).choices[0].logprobs.content
    streamed = []
    for chunk in ai.chat.completions.create(**asked, stream=True):
        if chunk.choices[0].logprobs:
            streamed += chunk.choices[0].logprobs.content
    assert [token.bytes for token in streamed] == [token.bytes for token in whole]
    numpy.testing.assert_allclose([t.logprob for t in streamed], [t.logprob for t in whole], atol=1e-4)


def test_a_logit_bias_forces_and_forbids_tokens(ai, decoder_golden):
    case = decoder_golden[0]
    first = case["greedy"][0]
    asked = {**GREEDY, "prompt": case["text"], "max_tokens": 3}
    forbidden = ai.completions.create(**asked, logit_bias={str(first): -100}, logprobs=1)
    unbiased = ai.completions.create(**asked, logprobs=1)
    assert forbidden.choices[0].logprobs.tokens[0] != unbiased.choices[0].logprobs.tokens[0]
    forced = ai.completions.create(**asked, logit_bias={"65": 100}, logprobs=1)
    assert len(set(forced.choices[0].logprobs.tokens)) == 1


def test_penalties_and_filters_are_accepted(ai):
    answer = ai.completions.create(
        model=DECODER, prompt="The ferry", max_tokens=12, temperature=0.8, top_p=0.9, presence_penalty=0.5,
        frequency_penalty=0.5, seed=1,
        extra_body={"top_k": 20, "min_p": 0.01, "repetition_penalty": 1.1, "ignore_eos": True},
    )
    assert answer.usage.completion_tokens == 12


def test_echo_repeats_the_prompt(ai):
    assert ai.completions.create(prompt="The ferry", echo=True, **GREEDY).choices[0].text.startswith("The ferry")


@pytest.mark.parametrize("stream", [False, True])
def test_a_json_schema_shapes_the_answer(ai, stream):
    schema = {
        "type": "object",
        "properties": {"pier": {"type": "integer"}, "open": {"type": "boolean"}, "side": {"enum": ["port", "starboard"]}},
        "required": ["pier", "open", "side"],
        "additionalProperties": False,
    }
    asked = dict(
        model=DECODER, messages=USER, temperature=1, seed=5, max_tokens=80, stream=stream,
        response_format={"type": "json_schema", "json_schema": {"name": "gate", "strict": True, "schema": schema}},
    )
    for seed in range(3):
        answer = ai.chat.completions.create(**{**asked, "seed": seed})
        if stream:
            chunks = list(answer)
            text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
            reason = chunks[-1].choices[0].finish_reason
        else:
            text, reason = answer.choices[0].message.content, answer.choices[0].finish_reason
        if reason == "stop":
            found = json.loads(text)
            assert set(found) == {"pier", "open", "side"}
            assert isinstance(found["pier"], int)
            assert isinstance(found["open"], bool)
            assert found["side"] in ("port", "starboard")
        else:  # random weights may write digits until the end
            assert reason == "length"
            assert text.lstrip().startswith("{")


def test_a_choice_and_a_regex_shape_the_answer(ai):
    asked = dict(model=DECODER, prompt="The ferry is", temperature=1, max_tokens=30)
    choice = ai.completions.create(**asked, extra_body={"guided_choice": ["early", "late"]}).choices[0]
    assert choice.text in ("early", "late")
    assert choice.finish_reason == "stop"
    regex = ai.completions.create(**asked, extra_body={"guided_regex": "[0-9]{2}:[0-9]{2}"}).choices[0]
    assert len(regex.text) == 5
    assert regex.text[2] == ":"
    assert (regex.text[:2] + regex.text[3:]).isdigit()


BAD = {
    "max_tokens": dict(max_tokens=-1),
    "temperature": dict(temperature=-0.5),
    "top_p": dict(top_p=1.5),
    "n": dict(n=0),
    "presence_penalty": dict(presence_penalty=3),
    "frequency_penalty": dict(frequency_penalty=-3),
    "logit_bias": dict(logit_bias={"100000": 1}),
    "stop": dict(stop=[f"stop {i}" for i in range(100)]),
    "tempreature": dict(extra_body={"tempreature": 1}),
    "response_format": dict(extra_body={"response_format": {"type": "json_schema", "json_schema": {"schema": 7}}}),
}


@pytest.mark.parametrize("surface", ["completions", "chat"])
@pytest.mark.parametrize("name", BAD)
def test_a_bad_parameter_is_refused_by_its_name(ai, surface, name):
    create, prompt = surface_of(ai, surface)
    with pytest.raises(openai.BadRequestError, match=name) as caught:
        create(model=DECODER, **prompt, **BAD[name])
    assert caught.value.status_code == 400
    assert caught.value.type == "invalid_request_error"
    assert caught.value.param.split(".")[0].split("[")[0] in (name, "max_completion_tokens")


def test_a_bad_parameter_is_refused_in_a_stream_too(ai):
    with fails(openai.BadRequestError, 400):
        ai.chat.completions.create(model=DECODER, messages=USER, temperature=-1, stream=True)


def test_a_prompt_longer_than_the_context_is_refused(ai):
    with fails(openai.BadRequestError, 400):
        ai.completions.create(model=DECODER, prompt="boat " * 300)


def test_a_model_of_another_task_is_refused(ai):
    with fails(openai.BadRequestError, 400, code="wrong_task"):
        ai.completions.create(model=MODEL, prompt="a")
    with fails(openai.BadRequestError, 400, code="wrong_task"):
        ai.embeddings.create(model=DECODER, input="a")


def test_a_stream_that_is_closed_frees_its_cache(ai):
    for _ in range(3):
        stream = ai.completions.create(**{**GREEDY, "max_tokens": 100}, prompt="The", stream=True)
        next(iter(stream))
        stream.close()
    wait_until_idle()


def test_embeddings_are_those_of_sentence_transformers(ai, golden):
    cases = golden[:8]
    answer = ai.embeddings.create(model=MODEL, input=[case["text"] for case in cases], encoding_format="float")
    assert [one.index for one in answer.data] == list(range(8))
    numpy.testing.assert_allclose([one.embedding for one in answer.data], [case["embedding"] for case in cases], atol=1e-4)
    assert answer.usage.prompt_tokens == answer.usage.total_tokens == sum(len(case["ids"]) for case in cases)


def test_base64_embeddings_are_the_same(ai):
    plain = ai.embeddings.create(model=MODEL, input="boats", encoding_format="float").data[0].embedding
    # Asked for nothing, the client asks for base64 and decodes it; asked for base64, it leaves it.
    decoded = ai.embeddings.create(model=MODEL, input="boats").data[0].embedding
    raw = ai.embeddings.create(model=MODEL, input="boats", encoding_format="base64").data[0].embedding
    unpacked = struct.unpack(f"<{DIMENSIONS}f", base64.b64decode(raw))
    numpy.testing.assert_allclose(decoded, plain, atol=1e-6)
    numpy.testing.assert_allclose(unpacked, plain, atol=1e-6)


def test_embeddings_may_be_shortened_and_are_asked_for_by_ids(ai, golden):
    short = ai.embeddings.create(model=MODEL, input="boats", dimensions=64).data[0].embedding
    assert len(short) == 64
    assert abs(numpy.linalg.norm(short) - 1) < 1e-4
    by_ids = ai.embeddings.create(model=MODEL, input=golden[0]["ids"]).data[0].embedding
    numpy.testing.assert_allclose(by_ids, golden[0]["embedding"], atol=1e-4)


def rerank(**body):
    data = json.dumps({"model": RERANKER, "query": "boats", **body}).encode()
    request = urllib.request.Request(
        f"{os.environ['FERRY_HTTP']}/v1/rerank", data, {"Content-Type": "application/json"}, method="POST"
    )
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_rerank_orders_documents_by_relevance():
    documents = texts(6)
    status, answer = rerank(documents=documents)
    assert status == 200
    results = answer["results"]
    assert sorted(one["index"] for one in results) == list(range(6))
    scores = [one["relevance_score"] for one in results]
    assert scores == sorted(scores, reverse=True)
    assert all(0 <= score <= 1 for score in scores)
    assert all("document" not in one for one in results)


def test_rerank_returns_the_best_with_their_documents():
    documents = texts(6)
    _, whole = rerank(documents=documents)
    _, answer = rerank(documents=documents, top_n=2, return_documents=True)
    assert [one["index"] for one in answer["results"]] == [one["index"] for one in whole["results"][:2]]
    for one in answer["results"]:
        assert one["document"] == {"text": documents[one["index"]]}


def test_rerank_refuses_what_it_does_not_understand():
    for body, field in (({"documents": []}, "documents"), ({"documents": ["a"], "top_n": 0}, "top_n"), ({}, "documents")):
        status, answer = rerank(**body)
        assert status == 400
        assert field in answer["error"]["message"]
    status, _ = rerank(model="no-such-model", documents=["a"])
    assert status == 404


@pytest.fixture(scope="module")
def smollm2(ai):
    if "smollm2-135m" not in {model.id for model in ai.models.list()}:
        pytest.skip("smollm2-135m has not been fetched (models/fetch.py)")
    return "smollm2-135m"


def test_a_real_model_knows_the_capital_of_france(ai, smollm2):
    answer = ai.completions.create(model=smollm2, prompt="The capital of France is", temperature=0, max_tokens=4)
    assert answer.choices[0].text.startswith(" Paris")


def test_a_real_model_ends_its_answer_itself(ai, smollm2):
    with ai.chat.completions.create(
        model=smollm2, messages=[{"role": "user", "content": "What is the capital of Denmark?"}], temperature=0,
        max_tokens=64, stream=True,
    ) as stream:
        chunks = list(stream)
    assert "Denmark" in "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_a_real_model_fills_in_a_schema(ai, smollm2):
    city = {"type": "object", "properties": {"name": {"type": "string", "maxLength": 30}}, "required": ["name"],
            "additionalProperties": False}
    answer = ai.chat.completions.create(
        model=smollm2, messages=[{"role": "user", "content": "Name a city as JSON."}], temperature=0, max_tokens=100,
        response_format={"type": "json_schema", "json_schema": {"name": "city", "schema": city}},
    )
    assert answer.choices[0].finish_reason == "stop"
    assert set(json.loads(answer.choices[0].message.content)) == {"name"}
