"""headwater.v1.Inference, grpc.health.v1 and reflection. The messages are built from what the
server's reflection says, so the tests need no generated code."""

import contextlib
import threading

import grpc
import pytest
from google.protobuf import message_factory
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

from headwater import wait_until

SERVICE = "headwater.v1.Inference"
FOREVER = {"max_tokens": 4000, "ignore_eos": True, "temperature": 0}


class Stub:
    """Calls methods by name with keyword arguments as the request's fields."""

    def __init__(self, channel):
        self.channel = channel
        self.database = ProtoReflectionDescriptorDatabase(channel)
        self.service = DescriptorPool(self.database).FindServiceByName(SERVICE)

    def __call__(self, name, timeout=60, metadata=None, **fields):
        method = self.service.methods_by_name[name]
        request = message_factory.GetMessageClass(method.input_type)(**fields)
        reply = message_factory.GetMessageClass(method.output_type)
        kind = self.channel.unary_stream if name in ("Generate", "Chat") else self.channel.unary_unary
        call = kind(f"/{SERVICE}/{name}", type(request).SerializeToString, reply.FromString)
        return call(request, timeout=timeout, metadata=metadata)


@pytest.fixture(scope="module")
def channel(server):
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as opened:
        yield opened


@pytest.fixture(scope="module")
def stub(channel):
    return Stub(channel)


def text_and_usage(responses):
    text, usage = "", None
    for response in responses:
        if response.WhichOneof("event") == "piece":
            text += response.piece.text
        else:
            usage = response.usage
    return text, usage


def code_of(responses):
    with pytest.raises(grpc.RpcError) as error:
        list(responses)
    return error.value.code(), error.value.details()


def test_reflection_lists_the_services(stub):
    assert {SERVICE, "grpc.health.v1.Health"} <= set(stub.database.get_services())


def test_health(channel):
    stub = health_pb2_grpc.HealthStub(channel)
    serving = health_pb2.HealthCheckResponse.SERVING
    for service in ("", SERVICE):
        assert stub.Check(health_pb2.HealthCheckRequest(service=service)).status == serving
    with pytest.raises(grpc.RpcError) as error:
        stub.Check(health_pb2.HealthCheckRequest(service="no.such.Service"))
    assert error.value.code() == grpc.StatusCode.NOT_FOUND


def test_model_info(stub, model):
    info = stub("GetModelInfo")
    assert info.id == model and info.architecture == "llama"
    assert info.max_model_len == 8192 and info.vocab_size == 49152
    assert info.has_chat_template


def test_generate_gives_the_text_of_http(stub, client, model):
    prompt = "The capital of France is"
    text, usage = text_and_usage(
        stub("Generate", text=prompt, sampling={"temperature": 0, "max_tokens": 8})
    )
    http = client.completions.create(model=model, prompt=prompt, temperature=0, max_tokens=8)
    assert text == http.choices[0].text
    assert usage.prompt_tokens == http.usage.prompt_tokens and usage.completion_tokens == 8


def test_generate_from_token_ids(stub, server):
    ids = server.post("/tokenize", {"prompt": "Water is"}).json()["tokens"]
    sampling = {"temperature": 0, "max_tokens": 8}
    by_ids, _ = text_and_usage(stub("Generate", tokens={"ids": ids}, sampling=sampling))
    by_text, _ = text_and_usage(stub("Generate", text="Water is", sampling=sampling))
    assert by_ids == by_text != ""


def test_chat_gives_the_text_of_http(stub, client, model):
    messages = [{"role": "user", "content": "Write one sentence about the sea."}]
    text, _ = text_and_usage(
        stub("Chat", messages=messages, sampling={"temperature": 0, "max_tokens": 24})
    )
    http = client.chat.completions.create(
        model=model, messages=messages, temperature=0, max_tokens=24
    )
    assert text == http.choices[0].message.content


def test_pieces_carry_ids_logprobs_and_finish(stub):
    sampling = {"temperature": 0, "max_tokens": 5, "logprobs": 2, "n": 2}
    pieces = [
        r.piece
        for r in stub("Generate", text="Water is", sampling=sampling)
        if r.WhichOneof("event") == "piece"
    ]
    for choice in (0, 1):
        own = [p for p in pieces if p.index == choice]
        ids = [i for p in own for i in p.token_ids]
        logprobs = [entry for p in own for entry in p.logprobs]
        assert len(ids) == 5 and [e.chosen.token_id for e in logprobs] == ids
        assert all(len(e.top) == 2 and e.top[0].token_id == e.chosen.token_id for e in logprobs)
        assert [p.finish_reason for p in own if p.finish_reason] == [2]


def test_stop_string(stub):
    sampling = {"temperature": 0, "max_tokens": 20, "stop": ["Paris"]}
    responses = list(stub("Generate", text="The capital of France is", sampling=sampling))
    last = [r.piece for r in responses if r.WhichOneof("event") == "piece"][-1]
    assert "Paris" not in text_and_usage(responses)[0]
    assert last.finish_reason == 1 and last.stop_text == "Paris"


def test_invalid_arguments(stub):
    for fields in (
        {},
        {"text": "x", "sampling": {"temperature": -1}},
        {"text": "x", "sampling": {"n": 0}},
        {"tokens": {"ids": [10**9]}},
    ):
        code, details = code_of(stub("Generate", **fields))
        assert code == grpc.StatusCode.INVALID_ARGUMENT and details
    code, _ = code_of(stub("Generate", text="word " * 9000))
    assert code in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.OUT_OF_RANGE)
    code, _ = code_of(stub("Generate", text="x", model="another"))
    assert code == grpc.StatusCode.NOT_FOUND


def test_deadline_ends_the_request(stub, server):
    code, _ = code_of(stub("Generate", timeout=0.5, text="Once", sampling=FOREVER))
    assert code == grpc.StatusCode.DEADLINE_EXCEEDED
    server.wait_idle(timeout=3)


def test_cancelled_call_frees_its_pages(stub, server):
    call = stub("Generate", text="Once", sampling=FOREVER)
    next(iter(call))
    wait_until(lambda: server.metric("vllm:num_requests_running") == 1)
    call.cancel()
    server.wait_idle(timeout=3)


def test_abort_from_another_call(stub):
    call = stub("Generate", request_id="to-abort", text="Once", sampling=FOREVER)
    next(iter(call))
    stub("Abort", request_id="unknown")
    stub("Abort", request_id="to-abort")
    code, _ = code_of(call)
    assert code == grpc.StatusCode.ABORTED


def test_api_key(start):
    server = start("--api-key", "secret")
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        stub = Stub(channel)
        sampling = {"max_tokens": 1}
        code, _ = code_of(stub("Generate", text="x", sampling=sampling))
        assert code == grpc.StatusCode.UNAUTHENTICATED
        key = (("authorization", "Bearer secret"),)
        assert list(stub("Generate", text="x", sampling=sampling, metadata=key))


def test_queue_full(start):
    server = start("--max-num-seqs", 1, "--max-queue", 1)
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        stub = Stub(channel)
        calls = [stub("Generate", text="Once", sampling=FOREVER)]
        wait_until(lambda: server.metric("vllm:num_requests_running") == 1)
        calls.append(stub("Generate", text="Once", sampling=FOREVER))
        wait_until(lambda: server.metric("vllm:num_requests_waiting") == 1)
        code, _ = code_of(stub("Generate", text="Once", sampling=FOREVER))
        assert code == grpc.StatusCode.RESOURCE_EXHAUSTED
        for call in calls:
            call.cancel()
        server.wait_idle()


def test_drain(start):
    server = start()
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        health = health_pb2_grpc.HealthStub(channel)
        statuses = []
        watch = health.Watch(health_pb2.HealthCheckRequest(service=SERVICE))
        watcher = threading.Thread(target=lambda: collect_statuses(watch, statuses))
        watcher.start()
        call = Stub(channel)(
            "Generate", text="Once", sampling={**FOREVER, "max_tokens": 200}
        )
        first = next(iter(call))
        server.process.terminate()
        rest = list(call)
        assert rest[-1].usage.completion_tokens == 200 and first.request_id
        assert server.process.wait(timeout=20) == 0
        watcher.join(timeout=10)
    serving = health_pb2.HealthCheckResponse.SERVING
    assert statuses[0] == serving and statuses[-1] == health_pb2.HealthCheckResponse.NOT_SERVING


def collect_statuses(watch, statuses):
    with contextlib.suppress(grpc.RpcError):
        for reply in watch:
            statuses.append(reply.status)
