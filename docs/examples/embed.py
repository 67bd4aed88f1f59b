"""Embeds texts through reflection: no generated code, no proto file.

    pip install grpcio grpcio-reflection protobuf
    python3 docs/examples/embed.py [--host localhost] [--port 8001] [--model minilm] TEXT...
"""

import argparse

import grpc
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

arguments = argparse.ArgumentParser()
arguments.add_argument("--host", default="localhost")
arguments.add_argument("--port", type=int, default=8001)
arguments.add_argument("--model", default="minilm")
arguments.add_argument("texts", nargs="+")
arguments = arguments.parse_args()

channel = grpc.insecure_channel(f"{arguments.host}:{arguments.port}")
pool = DescriptorPool(ProtoReflectionDescriptorDatabase(channel))
method = pool.FindServiceByName("ferry.v1.Inference").FindMethodByName("Embed")
request_class = GetMessageClass(method.input_type)
response_class = GetMessageClass(method.output_type)
embed = channel.unary_unary(
    "/ferry.v1.Inference/Embed",
    request_serializer=request_class.SerializeToString,
    response_deserializer=response_class.FromString,
)

answer = embed(
    request_class(options={"model": arguments.model}, texts=arguments.texts), timeout=10
)
print(f"{answer.model.name} version {answer.model.version}, {answer.timing.total_us} µs")
for text, row in zip(arguments.texts, answer.rows):
    shown = ", ".join(f"{value:.4f}" for value in row.embedding[:4])
    print(f"{row.info.tokens:4} tokens  [{shown}, …]  {len(row.embedding)} values  {text!r}")
