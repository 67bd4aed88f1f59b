"""OpenAI's Python client, unmodified, on /v1/files and /v1/batches."""

import io
import json
import os

import openai
import pytest
from conftest import DECODER, MODEL, metric, texts, wait_until

ENDED = ("completed", "failed", "expired", "cancelled")


@pytest.fixture(scope="module")
def ai():
    with openai.OpenAI(base_url=f"{os.environ['FERRY_HTTP']}/v1", api_key="none", max_retries=0, timeout=60) as client:
        yield client


def line(custom_id, url, **body):
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": url, "body": body})


def upload(ai, lines, name="in.jsonl"):
    return ai.files.create(file=(name, "\n".join(lines).encode()), purpose="batch")


def run(ai, lines, endpoint, **more):
    """The batch of these lines, when it has ended."""
    batch = ai.batches.create(
        input_file_id=upload(ai, lines).id, endpoint=endpoint, completion_window="24h", **more
    )
    assert batch.object == "batch"
    wait_until(lambda: ai.batches.retrieve(batch.id).status in ENDED, f"{batch.id} goes on", seconds=60)
    return ai.batches.retrieve(batch.id)


def read(ai, file_id):
    return [json.loads(one) for one in ai.files.content(file_id).text.splitlines()]


def test_embeddings_of_a_batch_are_those_of_the_route(ai):
    lines = [line(f"e{at}", "/v1/embeddings", model=MODEL, input=text) for at, text in enumerate(texts(100))]
    batch = run(ai, lines, "/v1/embeddings", metadata={"for": "the test"})
    assert batch.status == "completed" and batch.errors is None and batch.error_file_id is None
    counts = batch.request_counts
    assert (counts.total, counts.completed, counts.failed) == (100, 100, 0)
    assert batch.metadata == {"for": "the test"}
    assert batch.created_at <= batch.in_progress_at <= batch.completed_at <= batch.expires_at
    answers = {one["custom_id"]: one for one in read(ai, batch.output_file_id)}
    assert sorted(answers) == sorted(f"e{at}" for at in range(100))
    for at in (0, 57, 99):
        answer = answers[f"e{at}"]
        assert answer["error"] is None and answer["response"]["status_code"] == 200
        # The client's own type reads the body.
        body = openai.types.CreateEmbeddingResponse.model_validate(answer["response"]["body"])
        direct = ai.embeddings.create(model=MODEL, input=texts(100)[at], encoding_format="float")
        assert body.usage == direct.usage and body.model == direct.model
        assert body.data[0].embedding == pytest.approx(direct.data[0].embedding, abs=1e-5)


def test_greedy_chats_and_completions_are_those_of_transformers(ai, decoder_golden):
    greedy = dict(model=DECODER, temperature=0, max_tokens=16, ignore_eos=True)
    chats = [case for case in decoder_golden if "messages" in case]
    prompts = [case for case in decoder_golden if "messages" not in case]
    lines = [line(f"c{at}", "/v1/chat/completions", messages=case["messages"], **greedy) for at, case in enumerate(chats)]
    batch = run(ai, lines, "/v1/chat/completions")
    for answer in read(ai, batch.output_file_id):
        body = openai.types.chat.ChatCompletion.model_validate(answer["response"]["body"])
        case = chats[int(answer["custom_id"][1:])]
        assert body.choices[0].message.content == case["greedy_text"]
    lines = [line(f"p{at}", "/v1/completions", prompt=case["text"], **greedy) for at, case in enumerate(prompts)]
    batch = run(ai, lines, "/v1/completions")
    answers = read(ai, batch.output_file_id)
    assert len(answers) == len(prompts)
    for answer in answers:
        body = openai.types.Completion.model_validate(answer["response"]["body"])
        assert body.choices[0].text == prompts[int(answer["custom_id"][1:])]["greedy_text"]


def test_requests_at_fault_are_in_the_error_file(ai):
    lines = [
        line("good", "/v1/embeddings", model=MODEL, input="a"),
        line("unknown", "/v1/embeddings", model="nobody", input="a"),
        line("wrong", "/v1/embeddings", model=MODEL, input="a", dimensions=-1),
    ]
    batch = run(ai, lines, "/v1/embeddings")
    assert batch.status == "completed"
    assert (batch.request_counts.completed, batch.request_counts.failed) == (1, 2)
    assert [one["custom_id"] for one in read(ai, batch.output_file_id)] == ["good"]
    errors = {one["custom_id"]: one["response"] for one in read(ai, batch.error_file_id)}
    assert errors["unknown"]["status_code"] == 404
    assert errors["unknown"]["body"]["error"]["code"] == "model_not_found"
    assert errors["wrong"]["status_code"] == 400
    assert errors["wrong"]["body"]["error"]["param"] == "dimensions"


def test_a_file_that_is_wrong_fails_its_batch_by_line(ai):
    lines = [line("a", "/v1/embeddings", model=MODEL, input="a"), "{", line("b", "/v1/completions", model=MODEL)]
    batch = run(ai, lines, "/v1/embeddings")
    assert batch.status == "failed" and batch.failed_at >= batch.created_at
    assert [(error.line, error.code) for error in batch.errors.data] == [(2, "invalid_json_line"), (3, "invalid_url")]


def test_files_are_listed_read_and_deleted(ai):
    contents = [line("a", "/v1/embeddings", model=MODEL, input="a")]
    file = upload(ai, contents, "mine.jsonl")
    assert (file.object, file.purpose, file.filename) == ("file", "batch", "mine.jsonl")
    assert file.bytes == len(contents[0])
    assert ai.files.retrieve(file.id) == file
    assert ai.files.content(file.id).read() == contents[0].encode()
    assert file.id in [one.id for one in ai.files.list(purpose="batch", limit=2)]
    assert ai.files.delete(file.id).deleted
    with pytest.raises(openai.NotFoundError):
        ai.files.retrieve(file.id)
    with pytest.raises(openai.NotFoundError):
        ai.batches.create(input_file_id=file.id, endpoint="/v1/embeddings", completion_window="24h")


def test_a_file_of_many_parts_comes_back_as_it_was(ai):
    contents = os.urandom(3 << 20)
    file = ai.files.create(file=("noise", io.BytesIO(contents)), purpose="batch", expires_after={"anchor": "created_at", "seconds": 3600})
    assert ai.files.content(file.id).read() == contents
    assert file.expires_at == file.created_at + 3600
    ai.files.delete(file.id)


def test_batches_are_listed_newest_first_page_by_page(ai):
    lines = [line("a", "/v1/embeddings", model=MODEL, input="a")]
    made = [run(ai, lines, "/v1/embeddings").id for _ in range(3)]
    listed = [batch.id for batch in ai.batches.list(limit=1)]
    assert listed[:3] == made[::-1]
    assert ai.batches.list(limit=2).has_more


def test_a_batch_is_cancelled(ai):
    prompt = dict(model=DECODER, prompt="a", max_tokens=100, temperature=0, ignore_eos=True)
    lines = [line(f"g{at}", "/v1/completions", **prompt) for at in range(2000)]
    batch = ai.batches.create(input_file_id=upload(ai, lines).id, endpoint="/v1/completions", completion_window="24h")
    wait_until(lambda: ai.batches.retrieve(batch.id).status != "validating", "it is never read")
    assert ai.batches.cancel(batch.id).status in ("cancelling", "cancelled")
    wait_until(lambda: ai.batches.retrieve(batch.id).status in ENDED, "it is never cancelled")
    batch = ai.batches.retrieve(batch.id)
    assert batch.status == "cancelled"
    with pytest.raises(openai.ConflictError):
        ai.batches.cancel(batch.id)
    done = read(ai, batch.output_file_id) if batch.output_file_id else []
    errors = read(ai, batch.error_file_id)
    ids = [one["custom_id"] for one in done + errors]
    assert len(ids) == 2000 and len(set(ids)) == 2000
    assert {one["error"]["code"] for one in errors} == {"batch_cancelled"}


def test_jobs_are_counted(ai):
    before = metric("ferry_job_rows_total", outcome="done")
    run(ai, [line("a", "/v1/embeddings", model=MODEL, input="a")], "/v1/embeddings")
    assert metric("ferry_job_rows_total", outcome="done") == before + 1
    assert metric("ferry_jobs", state="completed") > 0
