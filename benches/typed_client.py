"""ferry.v1.Inference by reflection, for the benches in Python: calls by name, requests from keywords.
Needs grpcio, grpcio-reflection, protobuf."""

import urllib.request

import grpc
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase


class Ferry:
    def __init__(self, address):
        self.channel = grpc.insecure_channel(address)
        pool = DescriptorPool(ProtoReflectionDescriptorDatabase(self.channel))
        self.service = pool.FindServiceByName("ferry.v1.Inference")
        self.methods = {}

    def __getattr__(self, name):
        if name not in self.methods:
            method = self.service.methods_by_name[name]
            ask = GetMessageClass(method.input_type)
            call = self.channel.unary_unary(
                f"/ferry.v1.Inference/{name}",
                request_serializer=ask.SerializeToString,
                response_deserializer=GetMessageClass(method.output_type).FromString,
            )
            self.methods[name] = lambda metadata=(), **request: call(ask(**request), timeout=600, metadata=metadata)
        return self.methods[name]


def metric(http, name, **labels):
    """Sum of a metric's samples that have these labels; 0 where there is none."""
    with urllib.request.urlopen(f"{http}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    wanted = [f'{key}="{value}"' for key, value in labels.items()]
    found = (line for line in lines if line.startswith(name + "{") and all(label in line for label in wanted))
    return sum(float(line.rpartition(" ")[2]) for line in found)
