"""The standard health and reflection services, asked by grpcio's own clients."""

import grpc
import pytest
from conftest import MODEL
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

SERVING = health_pb2.HealthCheckResponse.SERVING
SERVICES = {"inference.GRPCInferenceService", "ferry.v1.Inference", "grpc.health.v1.Health"}


@pytest.mark.parametrize("service", ["", MODEL])
def test_health_check_says_serving(channel, service):
    answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=service))
    assert answer.status == SERVING


def test_health_check_of_an_unknown_service_is_not_found(channel):
    with pytest.raises(grpc.RpcError) as caught:
        health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service="no-such-model"))
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize("service", ["", MODEL])
def test_health_watch_tells_the_state_at_once(channel, service):
    watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=service), timeout=10)
    assert next(watch).status == SERVING
    watch.cancel()


def test_health_watch_follows_a_model_that_is_unloaded_and_loaded(channel, client):
    name = "tiny-distilbert-embed"
    watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=name), timeout=30)
    assert next(watch).status == SERVING
    client.unload_model(name)
    assert next(watch).status != SERVING
    client.load_model(name)
    assert SERVING in (answer.status for answer in watch)
    watch.cancel()


def test_reflection_lists_the_services(channel):
    assert set(ProtoReflectionDescriptorDatabase(channel).get_services()) >= SERVICES


@pytest.mark.parametrize("symbol", sorted(SERVICES) + ["inference.ModelConfig", "ferry.v1.EmbedRequest"])
def test_reflection_gives_the_file_of_a_symbol(channel, symbol):
    request = reflection_pb2.ServerReflectionRequest(file_containing_symbol=symbol)
    (answer,) = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(iter([request]))
    assert answer.WhichOneof("message_response") == "file_descriptor_response", answer
    packages = {
        FileDescriptorProto.FromString(file).package for file in answer.file_descriptor_response.file_descriptor_proto
    }
    assert any(symbol.startswith(package) for package in packages)


def test_reflection_is_enough_to_build_a_client(channel):
    pool = DescriptorPool(ProtoReflectionDescriptorDatabase(channel))
    methods = pool.FindServiceByName("ferry.v1.Inference").methods_by_name
    assert {"Embed", "Classify", "Rerank", "ClassifyTokens", "Tokenize", "Stream"} <= set(methods)
    methods = pool.FindServiceByName("inference.GRPCInferenceService").methods_by_name
    assert len(methods) == 20


def test_reflection_of_an_unknown_symbol_is_not_found(channel):
    request = reflection_pb2.ServerReflectionRequest(file_containing_symbol="no.Such")
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    try:
        (answer,) = stub.ServerReflectionInfo(iter([request]))
        code = answer.error_response.error_code
    except grpc.RpcError as error:  # tonic ends the stream with the error
        code = error.code().value[0]
    assert code == grpc.StatusCode.NOT_FOUND.value[0]
