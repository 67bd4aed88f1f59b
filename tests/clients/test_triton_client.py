"""NVIDIA's tritonclient, unmodified, works on Ferry: the calls, their errors, and what its users rely on."""

import asyncio
import os
import queue
import urllib.request

import grpc
import numpy
import pytest
import tritonclient.grpc
import tritonclient.grpc.aio
from conftest import DIMENSIONS, MODEL, ids_input, text_input, texts
from tritonclient.grpc import InferInput, InferRequestedOutput, service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException, deserialize_bytes_tensor


def fails_with(code, call, *arguments, **named):
    """Runs a call that must fail with a status code; returns the message."""
    with pytest.raises(InferenceServerException) as caught:
        call(*arguments, **named)
    assert caught.value.status() == f"StatusCode.{code}", caught.value
    return caught.value.message()


def embed(client, rows, **options):
    return client.infer(MODEL, [text_input(rows)], **options).as_numpy("EMBEDDING")


def test_server_is_live_and_ready(client):
    assert client.is_server_live()
    assert client.is_server_ready()


def test_model_is_ready_by_name_and_by_version(client):
    assert client.is_model_ready(MODEL)
    assert client.is_model_ready(MODEL, "1")


def test_unknown_model_is_not_ready_and_that_is_no_error(client):
    assert not client.is_model_ready("no-such-model")
    assert not client.is_model_ready(MODEL, "99")


def test_server_metadata_names_the_extensions(client):
    metadata = client.get_server_metadata()
    assert metadata.name
    assert metadata.version
    assert {"statistics", "model_repository", "classification"} <= set(metadata.extensions)
    assert "system_shared_memory" not in metadata.extensions


def test_model_metadata_has_the_tensors_with_the_batch_dimension(client):
    metadata = client.get_model_metadata(MODEL)
    assert metadata.name == MODEL
    assert "1" in metadata.versions
    inputs = {tensor.name: (tensor.datatype, list(tensor.shape)) for tensor in metadata.inputs}
    outputs = {tensor.name: (tensor.datatype, list(tensor.shape)) for tensor in metadata.outputs}
    assert inputs["TEXT"] == ("BYTES", [-1, 1])
    assert inputs["INPUT_IDS"] == ("INT64", [-1, -1])
    assert outputs["EMBEDDING"] == ("FP32", [-1, DIMENSIONS])
    assert outputs["TOKEN_COUNT"] == ("INT32", [-1, 1])


def test_model_config_has_the_tensors_without_the_batch_dimension(client):
    config = client.get_model_config(MODEL).config
    assert config.name == MODEL
    assert config.max_batch_size >= 100
    assert config.WhichOneof("scheduling_choice") == "dynamic_batching"
    assert not config.model_transaction_policy.decoupled
    inputs = {tensor.name: tensor for tensor in config.input}
    outputs = {tensor.name: tensor for tensor in config.output}
    assert list(inputs["TEXT"].dims) == [1]
    assert list(inputs["INPUT_IDS"].dims) == [-1]
    assert inputs["INPUT_IDS"].optional
    assert list(outputs["EMBEDDING"].dims) == [DIMENSIONS]
    metadata = client.get_model_metadata(MODEL)
    assert set(inputs) == {tensor.name for tensor in metadata.inputs}
    assert set(outputs) == {tensor.name for tensor in metadata.outputs}


@pytest.mark.parametrize("call", ["get_model_metadata", "get_model_config", "get_inference_statistics"])
def test_asking_about_an_unknown_model_is_not_found(client, call):
    assert "no-such-model" in fails_with("NOT_FOUND", getattr(client, call), "no-such-model")


@pytest.mark.parametrize("count", [1, 7, 100])
def test_a_batch_of_texts_gives_one_vector_of_length_one_per_row(client, count):
    result = client.infer(MODEL, [text_input(texts(count))])
    vectors = result.as_numpy("EMBEDDING")
    assert vectors.shape == (count, DIMENSIONS)
    assert vectors.dtype == numpy.float32
    numpy.testing.assert_allclose(numpy.linalg.norm(vectors, axis=1), 1.0, atol=1e-4)
    tokens = result.as_numpy("TOKEN_COUNT")
    assert tokens.shape == (count, 1)
    assert tokens.dtype == numpy.int32
    assert (tokens > 2).all()


def test_a_row_has_the_same_vector_whatever_it_travels_with(client):
    rows = texts(7)
    together = embed(client, rows)
    alone = numpy.concatenate([embed(client, [row]) for row in rows])
    numpy.testing.assert_allclose(together, alone, atol=1e-5)


def test_vectors_are_those_of_sentence_transformers(client, golden):
    vectors = embed(client, [case["text"] for case in golden])
    expected = numpy.array([case["embedding"] for case in golden])
    numpy.testing.assert_allclose(vectors, expected, atol=1e-4)


def test_token_ids_give_the_same_vector_as_their_text(client, golden):
    for case in golden[:5]:
        result = client.infer(MODEL, [ids_input([case["ids"]])])
        numpy.testing.assert_allclose(result.as_numpy("EMBEDDING"), [case["embedding"]], atol=1e-4)
        assert result.as_numpy("TOKEN_COUNT").tolist() == [[len(case["ids"])]]


def test_the_typed_form_gives_the_same_as_the_raw_form(channel, client):
    rows = texts(7)
    request = service_pb2.ModelInferRequest(model_name=MODEL, id="typed")
    request.inputs.add(name="TEXT", datatype="BYTES", shape=[7, 1]).contents.bytes_contents.extend(
        row.encode() for row in rows
    )
    response = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(request)
    assert response.id == "typed"
    result = tritonclient.grpc.InferResult(response)
    numpy.testing.assert_allclose(result.as_numpy("EMBEDDING"), embed(client, rows), atol=1e-5)


def test_typed_token_ids_are_read(channel, golden):
    case = golden[0]
    request = service_pb2.ModelInferRequest(model_name=MODEL)
    tensor = request.inputs.add(name="INPUT_IDS", datatype="INT64", shape=[1, len(case["ids"])])
    tensor.contents.int64_contents.extend(case["ids"])
    response = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(request)
    vector = tritonclient.grpc.InferResult(response).as_numpy("EMBEDDING")
    numpy.testing.assert_allclose(vector, [case["embedding"]], atol=1e-4)


def test_the_answer_has_the_request_id_and_the_version(client):
    response = client.infer(MODEL, [text_input(["hello"])], request_id="order 66/ü").get_response()
    assert response.id == "order 66/ü"
    assert response.model_name == MODEL
    assert response.model_version == "1"


def test_a_version_can_be_pinned(client):
    result = client.infer(MODEL, [text_input(["hello"])], model_version="1")
    assert result.get_response().model_version == "1"


def test_only_requested_outputs_come_back(client):
    for wanted in (["TOKEN_COUNT"], ["EMBEDDING"], ["TOKEN_COUNT", "EMBEDDING"]):
        outputs = [InferRequestedOutput(name) for name in wanted]
        response = client.infer(MODEL, [text_input(texts(3))], outputs=outputs).get_response()
        assert [tensor.name for tensor in response.outputs] == wanted
        assert len(response.raw_output_contents) == len(wanted)


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_compressed_requests_are_read(client, algorithm):
    rows = texts(20)
    numpy.testing.assert_allclose(embed(client, rows, compression_algorithm=algorithm), embed(client, rows), atol=1e-5)


def test_parameters_and_priority_are_accepted(client):
    embed(client, ["hello"], priority=1, timeout=30_000_000, parameters={"anything": "goes", "n": 3, "yes": True})


def test_headers_are_accepted(client):
    embed(client, ["hello"], headers={"x-ferry-tenant": "tests", "x-request-id": "abc", "authorization": "Bearer x"})


def test_async_infer_calls_back(client):
    answers = queue.Queue()
    for i in range(20):
        client.async_infer(
            MODEL, [text_input([f"text {i}"])], lambda result, error: answers.put((result, error)), request_id=str(i)
        )
    got = [answers.get(timeout=60) for _ in range(20)]
    assert all(error is None for _, error in got)
    assert sorted(int(result.get_response().id) for result, _ in got) == list(range(20))


def test_unknown_model_is_not_found(client):
    assert "no-such-model" in fails_with("NOT_FOUND", client.infer, "no-such-model", [text_input(["x"])])


def test_unknown_version_is_not_found(client):
    fails_with("NOT_FOUND", client.infer, MODEL, [text_input(["x"])], model_version="99")


def test_unknown_input_is_named(client):
    assert "TEXTS" in fails_with("INVALID_ARGUMENT", client.infer, MODEL, [text_input(["x"], name="TEXTS")])


def test_missing_input_is_named(client):
    assert "TEXT" in fails_with("INVALID_ARGUMENT", client.infer, MODEL, [])


def test_unknown_output_is_named(client):
    outputs = [InferRequestedOutput("VECTOR")]
    message = fails_with("INVALID_ARGUMENT", client.infer, MODEL, [text_input(["x"])], outputs=outputs)
    assert "VECTOR" in message


def test_wrong_datatype_is_said(client):
    given = InferInput("TEXT", [1, 1], "FP32")
    given.set_data_from_numpy(numpy.zeros((1, 1), dtype=numpy.float32))
    message = fails_with("INVALID_ARGUMENT", client.infer, MODEL, [given])
    assert "TEXT" in message and "BYTES" in message and "FP32" in message


@pytest.mark.parametrize("shape", [[1, 2], [1, 1, 2], [0, 1]])
def test_wrong_shape_is_said(client, shape):
    given = InferInput("TEXT", shape, "BYTES")
    given.set_data_from_numpy(numpy.full(shape, b"x", dtype=numpy.object_))
    message = fails_with("INVALID_ARGUMENT", client.infer, MODEL, [given])
    assert "TEXT" in message and "shape" in message.lower()


@pytest.mark.parametrize(
    ("shape", "raw"),
    [
        ([2, 1], b"\x01\x00\x00\x00x"),  # one element where two are announced
        ([1, 1], b"\x01\x00\x00\x00x\x01\x00\x00\x00y"),  # two where one is
        ([1, 1], b"\xff\xff\xff\x7fx"),  # a length beyond the end
        ([1, 1], b"\x01\x00"),  # half a length
        ([2**40, 1], b"\x01\x00\x00\x00x"),
        ([-1, 1], b"\x01\x00\x00\x00x"),
    ],
)
def test_data_that_does_not_fit_its_shape_is_refused(channel, shape, raw):
    request = service_pb2.ModelInferRequest(model_name=MODEL, raw_input_contents=[raw])
    request.inputs.add(name="TEXT", datatype="BYTES", shape=shape)
    with pytest.raises(grpc.RpcError) as caught:
        service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(request)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "TEXT" in caught.value.details()


def test_raw_and_typed_data_in_one_request_are_refused(channel):
    request = service_pb2.ModelInferRequest(model_name=MODEL, raw_input_contents=[b"\x01\x00\x00\x00x"])
    request.inputs.add(name="TEXT", datatype="BYTES", shape=[1, 1]).contents.bytes_contents.append(b"x")
    with pytest.raises(grpc.RpcError) as caught:
        service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(request)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_text_that_is_not_utf8_is_refused(channel):
    request = service_pb2.ModelInferRequest(model_name=MODEL, raw_input_contents=[b"\x02\x00\x00\x00\xff\xfe"])
    request.inputs.add(name="TEXT", datatype="BYTES", shape=[1, 1])
    with pytest.raises(grpc.RpcError) as caught:
        service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(request)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "utf-8" in caught.value.details().lower()


def test_token_ids_outside_the_vocabulary_are_refused(client):
    for bad in (-1, 10**9, 2**40):
        assert str(bad) in fails_with("INVALID_ARGUMENT", client.infer, MODEL, [ids_input([[101, bad, 102]])])


def test_an_expired_deadline_is_said(client):
    fails_with("DEADLINE_EXCEEDED", embed, client, ["word " * 250] * 100, client_timeout=0.002)
    assert embed(client, ["still there"]).shape == (1, DIMENSIONS)


class Stream:
    """tritonclient's stream, with its callbacks in a queue."""

    def __init__(self, client, **options):
        self.client, self.options, self.answers = client, options, queue.Queue()

    def __enter__(self):
        self.client.start_stream(lambda result, error: self.answers.put((result, error)), **self.options)
        return self

    def __exit__(self, *_):
        self.client.stop_stream()

    def next(self):
        return self.answers.get(timeout=60)


@pytest.mark.parametrize("algorithm", [None, "gzip"])
def test_a_stream_answers_every_request_once(client, algorithm):
    rows = {f"id-{i}": f"streamed text number {i}" for i in range(50)}
    with Stream(client, compression_algorithm=algorithm) as stream:
        for name, row in rows.items():
            client.async_stream_infer(MODEL, [text_input([row])], request_id=name)
        got = [stream.next() for _ in rows]
    assert [error for _, error in got if error] == []
    vectors = {result.get_response().id: result.as_numpy("EMBEDDING")[0] for result, _ in got}
    assert set(vectors) == set(rows)
    expected = embed(client, list(rows.values()))
    numpy.testing.assert_allclose([vectors[name] for name in rows], expected, atol=1e-5)
    assert stream.answers.empty()


def test_a_bad_request_on_a_stream_leaves_the_others_alone(client):
    with Stream(client) as stream:
        client.async_stream_infer(MODEL, [text_input(["one"])], request_id="1")
        client.async_stream_infer("no-such-model", [text_input(["two"])], request_id="2")
        client.async_stream_infer(MODEL, [text_input(["three"])], request_id="3")
        got = [stream.next() for _ in range(3)]
    assert {result.get_response().id for result, error in got if not error} == {"1", "3"}
    (error,) = [error for _, error in got if error]
    assert "no-such-model" in error.message()


def test_the_error_on_a_stream_carries_the_request_id(channel):
    request = service_pb2.ModelInferRequest(model_name="no-such-model", id="lost")
    (answer,) = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelStreamInfer(iter([request]))
    assert answer.error_message
    assert answer.infer_response.id == "lost"


def test_an_empty_stream_ends(channel):
    assert list(service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelStreamInfer(iter([]), timeout=10)) == []


def test_the_asyncio_client_works(address):
    async def go():
        async with tritonclient.grpc.aio.InferenceServerClient(address) as client:
            assert await client.is_server_live()
            assert await client.is_server_ready()
            assert await client.is_model_ready(MODEL)
            assert (await client.get_model_metadata(MODEL)).name == MODEL
            assert (await client.get_model_config(MODEL)).config.name == MODEL
            results = await asyncio.gather(
                *(client.infer(MODEL, [text_input([f"text {i}"])], request_id=str(i)) for i in range(40))
            )
            assert [result.get_response().id for result in results] == [str(i) for i in range(40)]
            with pytest.raises(InferenceServerException) as caught:
                await client.infer("no-such-model", [text_input(["x"])])
            assert caught.value.status() == "StatusCode.NOT_FOUND"

    asyncio.run(go())


def test_the_asyncio_stream_works(address):
    async def requests():
        for i in range(50):
            yield {"model_name": MODEL, "inputs": [text_input([f"text {i}"])], "request_id": str(i)}

    async def go():
        async with tritonclient.grpc.aio.InferenceServerClient(address) as client:
            return [answer async for answer in client.stream_infer(requests())]

    got = asyncio.run(go())
    assert [error for _, error in got if error] == []
    assert sorted(int(result.get_response().id) for result, _ in got) == list(range(50))


def statistics_of(client, name=MODEL):
    (statistics,) = client.get_inference_statistics(name).model_stats
    return statistics


def test_statistics_count_what_was_sent(client):
    before = statistics_of(client)
    embed(client, texts(7))
    embed(client, texts(3))
    fails_with("INVALID_ARGUMENT", client.infer, MODEL, [text_input(["x"], name="TEXTS")])
    after = statistics_of(client)
    assert (after.name, after.version) == (MODEL, "1")
    assert after.inference_count - before.inference_count == 10
    assert 1 <= after.execution_count - before.execution_count <= 10
    assert after.last_inference > 1_600_000_000_000
    assert after.last_inference >= before.last_inference

    def grown(part):
        then, now = getattr(before.inference_stats, part), getattr(after.inference_stats, part)
        return now.count - then.count, now.ns - then.ns

    for part in ("success", "queue", "compute_input", "compute_infer", "compute_output"):
        assert grown(part)[0] == 2, part
    assert grown("fail")[0] == 1
    inside = sum(grown(part)[1] for part in ("queue", "compute_input", "compute_infer", "compute_output"))
    assert 0 < inside <= grown("success")[1]
    batches = {batch.batch_size: batch.compute_infer.count for batch in after.batch_stats}
    assert sum(batches.values()) == after.execution_count
    assert sum(size * count for size, count in batches.items()) == after.inference_count


def test_statistics_without_a_name_cover_every_model(client):
    statistics = client.get_inference_statistics().model_stats
    assert MODEL in {one.name for one in statistics}
    assert all(one.version.isdigit() for one in statistics)


def test_the_repository_index_lists_the_models(client):
    index = {(model.name, model.version): model.state for model in client.get_model_repository_index().models}
    assert index[MODEL, "1"] == "READY"


def test_a_model_can_be_unloaded_and_loaded(client):
    name = "tiny-bert-embed"
    assert client.is_model_ready(name)
    client.unload_model(name)
    assert not client.is_model_ready(name)
    state = {model.name: model.state for model in client.get_model_repository_index().models}[name]
    assert state in ("UNAVAILABLE", "UNLOADING")
    with pytest.raises(InferenceServerException) as caught:
        client.infer(name, [text_input(["x"])])
    assert caught.value.status() in ("StatusCode.UNAVAILABLE", "StatusCode.NOT_FOUND")
    assert client.is_model_ready(MODEL)
    client.load_model(name)
    assert client.is_model_ready(name)
    assert client.infer(name, [text_input(["x"])]).as_numpy("EMBEDDING").shape == (1, 32)


def test_loading_an_unknown_model_fails_and_says_so(client):
    with pytest.raises(InferenceServerException, match="no-such-model"):
        client.load_model("no-such-model")


def test_log_settings_can_be_read_and_changed(client):
    before = client.get_log_settings(as_json=True)["settings"]
    assert "log_info" in before
    changed = client.update_log_settings({"log_verbose_level": 1}, as_json=True)["settings"]
    assert changed["log_verbose_level"]["uint32_param"] == 1
    client.update_log_settings({"log_verbose_level": 0})
    assert client.get_log_settings(as_json=True)["settings"]["log_info"] == before["log_info"]


def test_trace_settings_can_be_read(client):
    settings = client.get_trace_settings(as_json=True)["settings"]
    assert settings["trace_level"]["value"]
    assert client.get_trace_settings(model_name=MODEL, as_json=True)["settings"]["trace_level"]["value"]


def test_shared_memory_is_unimplemented(client):
    fails_with("UNIMPLEMENTED", client.get_system_shared_memory_status)
    fails_with("UNIMPLEMENTED", client.register_system_shared_memory, "region", "/key", 64)
    fails_with("UNIMPLEMENTED", client.unregister_system_shared_memory)
    fails_with("UNIMPLEMENTED", client.get_cuda_shared_memory_status)
    fails_with("UNIMPLEMENTED", client.register_cuda_shared_memory, "region", b"aGFuZGxl", 0, 64)
    fails_with("UNIMPLEMENTED", client.unregister_cuda_shared_memory)


def test_a_tensor_in_shared_memory_is_refused(client):
    given = InferInput("TEXT", [1, 1], "BYTES")
    given.set_shared_memory("region", 64)
    with pytest.raises(InferenceServerException, match="shared memory") as caught:
        client.infer(MODEL, [given])
    assert caught.value.status() in ("StatusCode.INVALID_ARGUMENT", "StatusCode.UNIMPLEMENTED")


def test_a_classifier_gives_scores_label_and_confidence(client):
    result = client.infer("tiny-bert-classify", [text_input(texts(5))])
    scores, labels = result.as_numpy("SCORES"), result.as_numpy("LABEL")
    assert scores.shape == (5, 3)
    numpy.testing.assert_allclose(scores.sum(axis=1), 1.0, atol=1e-5)
    names = [b"negative", b"neutral", b"positive"]
    assert labels.tolist() == [[names[best]] for best in scores.argmax(axis=1)]
    assert result.as_numpy("CONFIDENCE").shape == (5, 1)


def test_the_classification_extension_gives_the_best_classes(client):
    given = [text_input(texts(5))]
    scores = client.infer("tiny-bert-classify", given).as_numpy("SCORES")
    outputs = [InferRequestedOutput("SCORES", class_count=2)]
    result = client.infer("tiny-bert-classify", given, outputs=outputs)
    best = result.as_numpy("SCORES")
    assert result.get_output("SCORES").datatype == "BYTES"
    assert best.shape == (5, 2)
    names = ["negative", "neutral", "positive"]
    for row, texts_of_row in zip(scores, best, strict=True):
        order = numpy.argsort(-row)[:2]
        for expected, text in zip(order, texts_of_row, strict=True):
            score, index, label = text.decode().split(":")
            assert int(index) == expected
            assert label == names[expected]
            assert abs(float(score) - row[expected]) < 1e-5


def test_the_classification_extension_gives_at_most_all_classes(client):
    outputs = [InferRequestedOutput("SCORES", class_count=10)]
    result = client.infer("tiny-bert-classify", [text_input(["x"])], outputs=outputs)
    assert result.as_numpy("SCORES").shape == (1, 3)


def test_the_classification_extension_is_refused_on_text(client):
    outputs = [InferRequestedOutput("LABEL", class_count=2)]
    message = fails_with("INVALID_ARGUMENT", client.infer, "tiny-bert-classify", [text_input(["x"])], outputs=outputs)
    assert "LABEL" in message


def test_a_reranker_scores_pairs(client):
    documents = texts(6)
    given = [text_input(["boats"] * 6, name="QUERY"), text_input(documents)]
    result = client.infer("tiny-bert-rerank", given)
    scores, logits = result.as_numpy("SCORE"), result.as_numpy("LOGIT")
    assert scores.shape == logits.shape == (6, 1)
    numpy.testing.assert_allclose(scores, 1 / (1 + numpy.exp(-logits)), atol=1e-5)


def test_a_reranker_refuses_columns_of_different_length(client):
    given = [text_input(["boats"] * 2, name="QUERY"), text_input(texts(3))]
    fails_with("INVALID_ARGUMENT", client.infer, "tiny-bert-rerank", given)


def test_metrics_are_served(client):
    embed(client, ["hello"])
    with urllib.request.urlopen(f"{os.environ['FERRY_HTTP']}/metrics", timeout=10) as answer:
        assert answer.status == 200
        assert MODEL in answer.read().decode()


def test_raw_bytes_decode_with_the_clients_own_function(client):
    result = client.infer("tiny-bert-classify", [text_input(texts(2))], outputs=[InferRequestedOutput("LABEL")])
    raw = result.get_response().raw_output_contents[0]
    assert deserialize_bytes_tensor(raw).tolist() == result.as_numpy("LABEL").ravel().tolist()
