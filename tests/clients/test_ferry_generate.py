"""ferry.v1's Generate and Chat by grpcio, with nothing but what the server's reflection tells."""

import grpc
import pytest
from conftest import DECODER, wait_until_idle
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

GREEDY = {"max_tokens": 16, "ignore_eos": True, "sampling": {"temperature": 0}}


class Ferry:
    """Calls by name, requests from keywords."""

    def __init__(self, channel):
        pool = DescriptorPool(ProtoReflectionDescriptorDatabase(channel))
        self.channel, self.service = channel, pool.FindServiceByName("ferry.v1.Inference")

    def stream(self, name, **request):
        method = self.service.methods_by_name[name]
        answer, ask = GetMessageClass(method.output_type), GetMessageClass(method.input_type)
        call = self.channel.unary_stream(
            f"/ferry.v1.Inference/{name}",
            request_serializer=ask.SerializeToString,
            response_deserializer=answer.FromString,
        )
        return call(ask(model=DECODER, **request), timeout=60)


@pytest.fixture
def ferry(channel):
    return Ferry(channel)


def text_of(messages):
    return "".join(message.text for message in messages)


def test_generate_streams_a_message_a_token(ferry, decoder_golden):
    case = decoder_golden[0]
    messages = list(ferry.stream("Generate", text=case["text"], options=GREEDY))
    assert text_of(messages) == case["greedy_text"]
    assert [token.id for message in messages for token in message.tokens] == case["greedy"]
    assert all(len(message.tokens) <= 1 for message in messages)
    assert all(token.logprob <= 0 for message in messages for token in message.tokens)
    finish = messages[-1].finish
    assert (finish.prompt_tokens, finish.generated_tokens) == (len(case["ids"]), 16)
    assert 0 < finish.confidence < 1
    assert not any(message.HasField("finish") for message in messages[:-1])
    assert messages[0].model.name == DECODER


def test_token_ids_give_the_same_as_their_text(ferry, decoder_golden):
    case = decoder_golden[1]
    assert text_of(ferry.stream("Generate", token_ids={"ids": case["ids"]}, options=GREEDY)) == case["greedy_text"]


def test_tokens_are_gathered_into_fewer_messages(ferry, decoder_golden):
    case = decoder_golden[0]
    messages = list(ferry.stream("Generate", text=case["text"], options={**GREEDY, "stream_interval": 8}))
    assert text_of(messages) == case["greedy_text"]
    assert len(messages) <= 4


def test_chat_renders_the_template(ferry, decoder_golden):
    for case in decoder_golden:
        if "messages" in case:
            messages = list(ferry.stream("Chat", messages=case["messages"], options=GREEDY))
            assert text_of(messages) == case["greedy_text"]
            assert messages[-1].finish.prompt_tokens == len(case["ids"])


def test_alternatives_come_best_first(ferry, decoder_golden):
    case = decoder_golden[0]
    messages = list(ferry.stream("Generate", text=case["text"], options={**GREEDY, "top_logprobs": 3}))
    for token in (token for message in messages for token in message.tokens):
        assert len(token.alternatives) >= 3
        assert token.alternatives[0].id == token.id
        logprobs = [one.logprob for one in token.alternatives]
        assert logprobs == sorted(logprobs, reverse=True)


def test_a_bad_parameter_is_an_invalid_argument(ferry):
    for options in ({"sampling": {"temperature": -1}}, {"sampling": {"top_p": 2}}, {"top_logprobs": 99}):
        with pytest.raises(grpc.RpcError) as caught:
            list(ferry.stream("Generate", text="a", options=options))
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_a_call_that_is_cancelled_frees_its_cache(ferry):
    calls = [ferry.stream("Generate", text="The", options={**GREEDY, "max_tokens": 100}) for _ in range(8)]
    for call in calls:
        next(call)
        call.cancel()
    wait_until_idle()
