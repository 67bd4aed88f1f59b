"""Streams a generation over gRPC, through reflection: no generated code, no proto file.

    pip install grpcio grpcio-reflection protobuf
    python3 docs/examples/generate.py [--server localhost:8001] [--model smollm2-135m] PROMPT
"""

import argparse
import os

import grpc
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

arguments = argparse.ArgumentParser()
arguments.add_argument("--server", default="localhost:8001")
arguments.add_argument("--model", default="smollm2-135m")
arguments.add_argument("--max-tokens", type=int, default=64)
arguments.add_argument("prompt")
arguments = arguments.parse_args()

key = os.environ.get("FERRY_API_KEY")
metadata = [("authorization", f"Bearer {key}")] if key else []
channel = grpc.insecure_channel(arguments.server)
pool = DescriptorPool(ProtoReflectionDescriptorDatabase(channel))
method = pool.FindServiceByName("ferry.v1.Inference").FindMethodByName("Generate")
request_class = GetMessageClass(method.input_type)
response_class = GetMessageClass(method.output_type)
generate = channel.unary_stream(
    "/ferry.v1.Inference/Generate",
    request_serializer=request_class.SerializeToString,
    response_deserializer=response_class.FromString,
)
request = request_class(
    model=arguments.model,
    text=arguments.prompt,
    options={"max_tokens": arguments.max_tokens, "sampling": {"temperature": 0}},
)
for answer in generate(request, timeout=60, metadata=metadata):
    print(answer.text, end="", flush=True)
    if answer.HasField("finish"):
        finish = answer.finish
        print(f"\n{finish.generated_tokens} tokens, the first after {finish.first_token_us / 1000:.1f} ms")
