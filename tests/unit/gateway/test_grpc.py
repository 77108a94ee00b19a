"""The gRPC entrance, asked by Triton's own client in this process."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import grpc
import msgspec
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.grpc.aio import InferenceServerClient, InferInput, InferRequestedOutput
from tritonclient.utils import InferenceServerException

from meshnode.errors import (
    ConfigError,
    InferenceFailed,
    InvalidRequest,
    NoReplica,
    Saturated,
    SequenceLost,
)
from meshnode.gateway import grpc_stream
from meshnode.gateway.access import GatewayAccess
from meshnode.gateway.bodies import Bodies
from meshnode.gateway.feedback import Feedback
from meshnode.gateway.grpc_server import GrpcServer
from meshnode.gateway.key_limits import KeyLimits
from meshnode.gateway.protocols.origin import OriginPolicy
from meshnode.gateway.shared_memory import SharedMemory
from meshnode.key_limit import KeyLimit
from meshnode.limits import MAX_GRPC_MESSAGE_BYTES
from meshnode.rollout import Progress
from meshnode.state.api_keys import ID_BYTES, SECRET_BYTES, make_api_key
from meshnode.state.release import Release, Step
from meshnode.types import (
    Address,
    DataType,
    InferRequest,
    InferResponse,
    Priority,
    ResponsePart,
    Tensor,
)
from tests.unit.gateway.test_tls import Files

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from meshnode.gateway.dispatch import Dispatcher
    from meshnode.gateway.metrics import GatewayMetrics
    from meshnode.gateway.tls import GatewayTls
    from meshnode.models.manifest import Manifest
    from meshnode.routing.router import Router
    from meshnode.state.api_keys import ApiKey
    from tests.unit.gateway.conftest import FakeControl, FakeLocal

ANYWHERE = Address("127.0.0.1", 0)
ROW = np.array([[1, 2, 3, 4]], np.float32)


class Entrance:
    """A server, and clients of it."""

    def __init__(self, server: GrpcServer, address: Address) -> None:
        self.server = server
        self.address = address
        self.client = InferenceServerClient(str(address))
        self.channel = grpc.aio.insecure_channel(str(address))
        self.stub = service_pb2_grpc.GRPCInferenceServiceStub(self.channel)

    async def close(self) -> None:
        await self.client.close()
        await self.channel.close()
        await self.server.stop()


@pytest.fixture
def memory(tmp_path: Path) -> SharedMemory:
    return SharedMemory(is_on=True, folder=tmp_path, platform="linux")


@pytest.fixture
def keys() -> dict[str, ApiKey]:
    return {}


@pytest.fixture
async def open_entrance(
    dispatcher: Dispatcher,
    metrics: GatewayMetrics,
    control: FakeControl,
    memory: SharedMemory,
    keys: dict[str, ApiKey],
) -> AsyncIterator[Callable[..., Any]]:
    dispatcher.oip.shared_memory = memory  # as the daemon does
    opened: list[Entrance] = []

    async def make(
        require_key: bool = False,
        tls: GatewayTls | None = None,
        address: Address = ANYWHERE,
        **more: Any,
    ) -> Entrance:
        access = GatewayAccess(OriginPolicy("127.0.0.1"), keys.get, require_key=require_key)
        server = GrpcServer(
            dispatcher,
            metrics,
            access,
            shared_memory=memory,
            is_ready=lambda: control.is_ready,
            grace_s=1.0,
            wall_s=lambda: 100.0,
            **{"bodies": Bodies(), **more},
        )
        found = Entrance(server, await server.listen(address, tls))
        opened.append(found)
        return found

    yield make
    for each in opened:
        await each.close()
    memory.close()


@pytest.fixture
async def entrance(open_entrance: Callable[..., Any], serve: Callable[..., None]) -> Entrance:
    serve()
    found: Entrance = await open_entrance()
    return found


def row(values: np.ndarray[Any, Any] = ROW) -> list[InferInput]:
    item = InferInput("x", list(values.shape), "FP32")
    item.set_data_from_numpy(values)
    return [item]


async def test_a_model_is_run_and_its_answer_says_where(entrance: Entrance) -> None:
    answer = await entrance.client.infer("digits", row(), request_id="mine")
    assert answer.as_numpy("x").tolist() == ROW.tolist()
    response = answer.get_response()
    assert (response.model_name, response.model_version, response.id) == ("digits", "1", "mine")
    call = entrance.stub.ModelInfer(answered_request(), metadata=(("x-request-id", "abc"),))
    await call
    told = dict(await call.trailing_metadata())
    assert told["mesh-route"].startswith("node=alpha")
    assert told["x-request-id"] == "abc"


def answered_request(**more: Any) -> Any:
    request = service_pb2.ModelInferRequest(model_name="digits", **more)
    request.inputs.add(name="x", datatype="FP32", shape=[1, 4])
    request.raw_input_contents.append(ROW.tobytes())
    return request


async def test_typed_contents_are_read_too(entrance: Entrance) -> None:
    request = service_pb2.ModelInferRequest(model_name="digits")
    item = request.inputs.add(name="x", datatype="FP32", shape=[1, 4])
    item.contents.fp32_contents.extend([1, 2, 3, 4])
    answer = await entrance.stub.ModelInfer(request)
    assert answer.raw_output_contents == [ROW.tobytes()]


async def test_what_a_client_asks_before_it_infers(
    entrance: Entrance, control: FakeControl
) -> None:
    client = entrance.client
    assert await client.is_server_live()
    assert await client.is_server_ready()
    assert await client.is_model_ready("digits")
    assert await client.is_model_ready("digits", "1")
    assert not await client.is_model_ready("cats")
    assert not await client.is_model_ready("")
    with pytest.raises(InferenceServerException, match="names no model") as caught:
        await client.get_model_metadata("")
    assert caught.value.status() == "StatusCode.NOT_FOUND"
    server = await client.get_server_metadata()
    assert server.name == "meshnode"
    assert "system_shared_memory" in server.extensions
    metadata = await client.get_model_metadata("digits")
    assert metadata.inputs[0].shape == [-1, 4]
    config = (await client.get_model_config("digits")).config
    assert config.input[0].data_type == 11  # TYPE_FP32
    control.is_ready = False
    assert not await client.is_server_ready()
    with pytest.raises(InferenceServerException, match="has a model 'cats'"):
        await client.get_model_metadata("cats")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InvalidRequest("no"), "INVALID_ARGUMENT"),
        (NoReplica("no"), "UNAVAILABLE"),
        (Saturated("no"), "UNAVAILABLE"),
        (InferenceFailed("no"), "INTERNAL"),
        (SequenceLost("start anew"), "ABORTED"),
    ],
)
async def test_each_error_has_its_status(
    entrance: Entrance, local: FakeLocal, error: Any, code: str
) -> None:
    local.fail = error
    with pytest.raises(InferenceServerException) as caught:
        await entrance.client.infer("digits", row())
    assert caught.value.status() == f"StatusCode.{code}"


async def test_an_unknown_model_is_not_found_and_says_so_for_programs(entrance: Entrance) -> None:
    request = answered_request()
    request.model_name = "cats"
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await entrance.stub.ModelInfer(request)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    assert dict(caught.value.trailing_metadata())["mesh-error"] == "not_found"


async def test_an_unknown_method_is_not_implemented(entrance: Entrance) -> None:
    call = entrance.channel.unary_unary("/inference.GRPCInferenceService/Nothing")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(b"")
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_bytes_that_are_no_message_are_the_callers_fault(entrance: Entrance) -> None:
    call = entrance.channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(b"\xff\xff\xff")
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_the_callers_deadline_is_the_requests(entrance: Entrance, local: FakeLocal) -> None:
    await entrance.client.infer("digits", row(), client_timeout=5.0)
    assert 4.0 < local.requests[-1].timeout_s < 5.5  # to some milliseconds, as gRPC counts


async def test_a_caller_that_goes_away_ends_the_work(entrance: Entrance, local: FakeLocal) -> None:
    begun, ended = asyncio.Event(), asyncio.Event()

    async def behave(_request: InferRequest) -> InferResponse:
        begun.set()
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()
        raise AssertionError

    local.inline, local.behave = False, behave
    call = entrance.stub.ModelInfer(answered_request())
    asking = asyncio.ensure_future(call)
    await begun.wait()
    asking.cancel()
    call.cancel()
    async with asyncio.timeout(5):
        await ended.wait()
    with pytest.raises(asyncio.CancelledError):
        await asking


async def test_a_callers_trace_goes_on(entrance: Entrance, local: FakeLocal) -> None:
    trace = "0af7651916cd43dd8448eb211c80319c"
    headers = {"traceparent": f"00-{trace}-b7ad6b7169203331-01"}
    await entrance.client.infer("digits", row(), headers=headers)
    found = local.requests[-1].trace
    assert found is not None
    assert trace in repr(found)


async def test_where_a_call_may_run_is_told_in_its_metadata(
    entrance: Entrance, local: FakeLocal
) -> None:
    headers = {"mesh-region": "eu;prefer", "mesh-priority": "low"}
    await entrance.client.infer("digits", row(), headers=headers)
    hints = local.requests[-1].hints
    assert (hints.region, hints.region_required) == ("eu", False)
    assert hints.priority is Priority.LOW
    with pytest.raises(InferenceServerException, match="Mesh-Region"):
        await entrance.client.infer("digits", row(), headers={"mesh-region": "no region"})


async def test_metadata_of_several_lines_counts_together_and_contradictions_are_refused(
    entrance: Entrance, local: FakeLocal
) -> None:
    with pytest.raises(grpc.aio.AioRpcError, match="label gpu=a100"):
        await entrance.stub.ModelInfer(
            answered_request(), metadata=(("mesh-labels", "gpu=a100"), ("mesh-labels", "tier=2"))
        )
    for lines in (
        (("mesh-region", "us"), ("mesh-region", "eu;prefer")),
        (("mesh-priority", "low"), ("mesh-priority", "high")),
    ):
        with pytest.raises(grpc.aio.AioRpcError, match="comes 2 times") as caught:
            await entrance.stub.ModelInfer(answered_request(), metadata=lines)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert not local.requests


async def test_a_key_is_wanted_where_the_owner_wants_one(
    open_entrance: Callable[..., Any], serve: Callable[..., None]
) -> None:
    serve()
    entrance = await open_entrance(require_key=True)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await entrance.stub.ModelInfer(answered_request())
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await entrance.stub.ModelInfer(
            answered_request(), metadata=(("authorization", "Bearer nonsense"),)
        )
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_a_call_with_an_origin_is_a_foreign_pages(entrance: Entrance) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await entrance.stub.ServerLive(
            service_pb2.ServerLiveRequest(), metadata=(("origin", "http://evil.example"),)
        )
    assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED


async def test_calls_are_counted_by_method_and_status(
    entrance: Entrance, metrics: GatewayMetrics
) -> None:
    await entrance.client.infer("digits", row())
    with pytest.raises(InferenceServerException):
        await entrance.client.infer("cats", row())
    assert metrics.grpc_calls.values[("ModelInfer", "OK")] == 1
    assert metrics.grpc_calls.values[("ModelInfer", "NOT_FOUND")] == 1


# Limits and keys


def new_key(keys: dict[str, ApiKey], number: int = 0, **more: Any) -> str:
    """Register a key and return its text."""
    drawn = bytes(range(number, number + ID_BYTES + SECRET_BYTES))
    key, text = make_api_key("phone", ["infer"], None, 100.0, drawn, (), **more)
    keys[key.id] = key
    return text


async def test_a_message_that_is_too_large_is_refused_also_when_it_is_compressed(
    entrance: Entrance, local: FakeLocal
) -> None:
    request = service_pb2.ModelInferRequest(model_name="digits")
    request.inputs.add(name="x", datatype="FP32", shape=[1, 4])
    request.raw_input_contents.append(bytes(MAX_GRPC_MESSAGE_BYTES))
    for compression in (grpc.Compression.NoCompression, grpc.Compression.Gzip):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await entrance.stub.ModelInfer(request, compression=compression)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert not local.requests


async def test_messages_are_counted_with_all_other_bodies(
    open_entrance: Callable[..., Any], serve: Callable[..., None]
) -> None:
    serve()
    bodies = Bodies(max_memory_bytes=64)
    entrance = await open_entrance(bodies=bodies)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await entrance.stub.ModelInfer(answered_request())
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert bodies.held_bytes == 0


async def test_nothing_is_held_after_an_answer(
    open_entrance: Callable[..., Any], serve: Callable[..., None]
) -> None:
    serve()
    bodies = Bodies()
    entrance = await open_entrance(bodies=bodies)
    await entrance.client.infer("digits", row())
    assert len(await answers(entrance, {"model_name": "digits", "inputs": row()})) == 1
    assert bodies.held_bytes == 0


async def test_a_keys_limits_hold_for_calls_and_for_each_request_of_a_stream(
    open_entrance: Callable[..., Any],
    serve: Callable[..., None],
    keys: dict[str, ApiKey],
) -> None:
    serve()
    entrance = await open_entrance(require_key=True)
    key = new_key(keys, limit=KeyLimit(requests=2, window_s=3600))
    metadata = (("authorization", f"Bearer {key}"),)
    call = entrance.stub.ModelStreamInfer(metadata=metadata)
    for _ in range(3):
        await call.write(answered_request())
    await call.done_writing()
    told = [each.error_message async for each in call]
    assert [bool(each) for each in told] == [False, False, True]
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await entrance.stub.ModelInfer(answered_request(), metadata=(("x-api-key", key),))
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "grpc-retry-pushback-ms" in dict(caught.value.trailing_metadata())


async def test_an_open_stream_takes_a_place_of_its_key_and_its_requests_run_in_that(
    open_entrance: Callable[..., Any], serve: Callable[..., None], keys: dict[str, ApiKey]
) -> None:
    serve()
    limits = KeyLimits()
    entrance = await open_entrance(require_key=True, key_limits=limits)
    metadata = (("x-api-key", new_key(keys, limit=KeyLimit(concurrency=1))),)
    call = entrance.stub.ModelStreamInfer(metadata=metadata)
    for _ in range(3):
        await call.write(answered_request())
        assert not (await call.read()).error_message
        await asyncio.sleep(0.01)  # the answer's place is free a moment after its client has it
    second = entrance.stub.ModelStreamInfer(metadata=metadata)
    assert await second.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF
    assert await entrance.stub.ModelInfer(answered_request(), metadata=metadata)
    assert limits.refused.values == {("concurrency",): 1}


async def test_one_caller_leaves_streams_to_the_others(
    open_entrance: Callable[..., Any],
    serve: Callable[..., None],
    keys: dict[str, ApiKey],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    serve()
    monkeypatch.setattr(grpc_stream, "MAX_GRPC_STREAMS_PER_CALLER", 2)
    entrance = await open_entrance(require_key=True)
    one, other = (new_key(keys, number) for number in range(2))

    def opened(key: str) -> Any:
        return entrance.stub.ModelStreamInfer(metadata=(("x-api-key", key),))

    calls = [opened(one) for _ in range(2)]
    for call in calls:
        await call.write(answered_request())
        assert not (await call.read()).error_message
    assert "as one caller may" in await opened(one).details()
    late = opened(other)
    await late.write(answered_request())
    assert not (await late.read()).error_message
    for call in (*calls, late):
        call.cancel()


async def test_a_stream_that_is_not_used_ends_but_not_while_something_runs(
    entrance: Entrance, local: FakeLocal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grpc_stream, "GRPC_STREAM_IDLE_S", 0.05)
    call = entrance.stub.ModelStreamInfer()
    assert "no request came" in await call.details()
    assert await call.code() is grpc.StatusCode.CANCELLED

    async def slowly(asked: InferRequest) -> InferResponse:
        await asyncio.sleep(0.2)
        return InferResponse(asked.model, 1, ResponsePart(asked.inputs))

    local.inline, local.behave = False, slowly
    call = entrance.stub.ModelStreamInfer()
    await call.write(answered_request())
    assert not (await call.read()).error_message
    call.cancel()


async def test_a_key_needs_the_scope_of_the_path_that_a_call_stands_for(
    open_entrance: Callable[..., Any], serve: Callable[..., None], keys: dict[str, ApiKey]
) -> None:
    serve()
    entrance = await open_entrance(require_key=True)
    headers = {"authorization": f"Bearer {new_key(keys)}"}
    assert await entrance.client.is_server_live(headers=headers)
    with pytest.raises(InferenceServerException) as caught:
        await entrance.client.unload_model("digits", headers=headers)
    assert caught.value.status() == "StatusCode.PERMISSION_DENIED"


async def test_behind_a_proxy_nobody_shares_memory(
    open_entrance: Callable[..., Any], serve: Callable[..., None], keys: dict[str, ApiKey]
) -> None:
    serve()
    entrance = await open_entrance(require_key=True)
    headers = {"authorization": f"Bearer {new_key(keys)}"}
    with pytest.raises(InferenceServerException, match="own machine") as caught:
        await entrance.client.register_system_shared_memory("r", "/x", 16, headers=headers)
    assert caught.value.status() == "StatusCode.PERMISSION_DENIED"


async def test_a_certificate_is_served_and_renewed_while_clients_come(
    open_entrance: Callable[..., Any],
    serve: Callable[..., None],
    tmp_path: Path,
) -> None:
    serve()
    files = Files(tmp_path)
    files.write()
    first = files.certificate.read_bytes()
    tls = files.load()
    address = (await open_entrance(tls=tls)).address

    async def is_live(trusted: bytes) -> bool:
        options = (("grpc.ssl_target_name_override", "localhost"),)
        channel = grpc.aio.secure_channel(
            str(address), grpc.ssl_channel_credentials(trusted), options
        )
        async with channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            answer = await stub.ServerLive(service_pb2.ServerLiveRequest(), timeout=5)
            return bool(answer.live)

    assert await is_live(first)
    files.write()
    second = files.certificate.read_bytes()
    assert tls.reload()
    assert await is_live(second)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await is_live(first)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_an_address_that_is_taken_is_told(
    entrance: Entrance, open_entrance: Callable[..., Any]
) -> None:
    with pytest.raises(ConfigError, match="--grpc HOST:PORT"):
        await open_entrance(address=entrance.address)


# Streams


def decoupled(manifest: Manifest) -> Manifest:
    execution = msgspec.structs.replace(manifest.execution, decoupled=True)
    return msgspec.structs.replace(manifest, execution=execution)


def parts_of(values: list[float], error: Exception | None = None) -> Any:
    async def parts() -> AsyncIterator[ResponsePart]:
        for value in values:
            data = np.full((1, 4), value, np.float32).tobytes()
            yield ResponsePart((Tensor("x", DataType.FP32, (1, 4), data),))
        if error is not None:
            raise error

    return parts()


async def answers(entrance: Entrance, *requests: dict[str, Any]) -> list[tuple[Any, Any]]:
    async def asked() -> AsyncIterator[dict[str, Any]]:
        for each in requests:
            yield each

    found = entrance.client.stream_infer(asked())
    return [each async for each in found]


async def test_a_stream_answers_each_request_in_order(entrance: Entrance) -> None:
    requests = [
        {"model_name": "digits", "inputs": row(ROW * n), "request_id": str(n)} for n in range(5)
    ]
    found = await answers(entrance, *requests)
    assert [error for _, error in found] == [None] * 5
    assert [answer.get_response().id for answer, _ in found] == [str(n) for n in range(5)]
    assert found[3][0].as_numpy("x").tolist() == (ROW * 3).tolist()
    assert all(is_last(answer) for answer, _ in found)


def is_last(answer: Any) -> bool:
    return bool(answer.get_response().parameters["triton_final_response"].bool_param)


async def test_single_answers_keep_the_order_though_a_later_one_is_ready_first(
    entrance: Entrance, local: FakeLocal
) -> None:
    async def behave(request: InferRequest) -> InferResponse:
        value = float(np.frombuffer(bytes(request.inputs[0].data), np.float32)[0])
        await asyncio.sleep(0.05 if value == 1.0 else 0)
        return InferResponse("digits", 1, ResponsePart(request.inputs))

    local.inline, local.behave = False, behave
    requests = [
        {"model_name": "digits", "inputs": row(ROW * n), "request_id": str(n)} for n in (1, 2, 3)
    ]
    found = await answers(entrance, *requests)
    assert [answer.get_response().id for answer, _ in found] == ["1", "2", "3"]


async def test_a_sequences_next_request_waits_for_the_one_before_it(
    entrance: Entrance, local: FakeLocal
) -> None:
    running: list[int] = []
    most: list[int] = []

    async def behave(request: InferRequest) -> InferResponse:
        running.append(1)
        most.append(len(running))
        await asyncio.sleep(0.01)
        running.pop()
        return InferResponse("digits", 1, ResponsePart(request.inputs))

    local.inline, local.behave = False, behave
    requests = [
        {"model_name": "digits", "inputs": row(), "sequence_id": 7, "sequence_start": n == 0}
        for n in range(3)
    ]
    assert len(await answers(entrance, *requests)) == 3
    assert max(most) == 1


async def test_a_decoupled_model_answers_in_parts_and_an_end_that_was_asked_for(
    open_entrance: Callable[..., Any],
    serve: Callable[..., None],
    manifest: Manifest,
    local: FakeLocal,
) -> None:
    async def behave(_request: InferRequest) -> InferResponse:
        return InferResponse("digits", 1, parts_of([1, 2, 3]))

    serve(what=decoupled(manifest))
    entrance = await open_entrance()
    local.inline, local.behave = False, behave
    request = {"model_name": "digits", "inputs": row(), "request_id": "r"}
    found = await answers(entrance, request)
    assert [answer.as_numpy("x")[0, 0] for answer, _ in found] == [1, 2, 3]
    assert [is_last(answer) for answer, _ in found] == [False] * 3
    asked = answered_request(id="r")
    asked.parameters["triton_enable_empty_final_response"].bool_param = True
    call = entrance.stub.ModelStreamInfer()
    await call.write(asked)
    await call.done_writing()
    told = [each.infer_response async for each in call]
    lasts = [each.parameters["triton_final_response"].bool_param for each in told]
    assert lasts == [False] * 3 + [True]
    assert (told[-1].id, len(told[-1].outputs)) == ("r", 0)


async def test_a_call_of_one_answer_refuses_a_decoupled_model_before_it_runs(
    open_entrance: Callable[..., Any],
    serve: Callable[..., None],
    manifest: Manifest,
    local: FakeLocal,
) -> None:
    serve(what=decoupled(manifest))
    entrance = await open_entrance()
    local.fail = ZeroDivisionError("it ran")  # type: ignore[assignment]
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await entrance.stub.ModelInfer(answered_request())
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert "ModelStreamInfer" in str(caught.value.details())


async def test_an_error_in_a_stream_is_told_in_its_place_and_the_stream_goes_on(
    entrance: Entrance, local: FakeLocal
) -> None:
    requests = [
        {"model_name": "digits", "inputs": row(), "request_id": "1"},
        {"model_name": "cats", "inputs": row(), "request_id": "2"},
        {"model_name": "digits", "inputs": row(), "request_id": "3"},
    ]
    found = await answers(entrance, *requests)
    assert [error is None for _, error in found] == [True, False, True]
    assert "no node of this mesh" in str(found[1][1])


async def test_an_answer_that_breaks_off_says_so(
    open_entrance: Callable[..., Any],
    serve: Callable[..., None],
    manifest: Manifest,
    local: FakeLocal,
) -> None:
    async def behave(_request: InferRequest) -> InferResponse:
        return InferResponse("digits", 1, parts_of([1], InferenceFailed("it broke")))

    serve(what=decoupled(manifest))
    entrance = await open_entrance()
    local.inline, local.behave = False, behave
    found = await answers(entrance, {"model_name": "digits", "inputs": row()})
    assert found[0][1] is None
    assert "it broke" in str(found[1][1])
    assert len(found) == 2


async def test_a_stream_that_is_cancelled_ends_the_work(
    entrance: Entrance, local: FakeLocal
) -> None:
    begun, ended = asyncio.Event(), asyncio.Event()

    async def behave(_request: InferRequest) -> InferResponse:
        begun.set()
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()
        raise AssertionError

    local.inline, local.behave = False, behave
    call = entrance.stub.ModelStreamInfer()
    await call.write(answered_request())
    await begun.wait()
    call.cancel()
    async with asyncio.timeout(5):
        await ended.wait()


async def test_streams_end_when_the_node_leaves(entrance: Entrance) -> None:
    call = entrance.stub.ModelStreamInfer()
    await call.write(answered_request())
    assert (await call.read()).infer_response.model_name == "digits"
    entrance.server.stop_accepting()
    async with asyncio.timeout(5):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert "leaving" in str(caught.value.details())


async def test_a_caller_that_takes_nothing_is_given_up(
    open_entrance: Callable[..., Any],
    serve: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(grpc_stream, "BODY_GRACE_S", 0.2)
    serve()
    bodies = Bodies()
    entrance = await open_entrance(bodies=bodies)
    request = service_pb2.ModelInferRequest(model_name="digits")
    request.inputs.add(name="x", datatype="FP32", shape=[50_000, 4])
    request.raw_input_contents.append(bytes(800_000))
    call = entrance.stub.ModelStreamInfer()
    for _ in range(20):
        await call.write(request)
    async with asyncio.timeout(10):
        assert bodies.held_bytes
        while bodies.held_bytes:  # noqa: ASYNC110 - though nothing is read
            await asyncio.sleep(0.01)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            [_ async for _ in call]
    assert caught.value.code() is grpc.StatusCode.CANCELLED
    assert "took nothing" in str(caught.value.details())


async def test_a_defect_is_logged_under_the_calls_id_and_not_told(
    entrance: Entrance, local: FakeLocal, caplog: pytest.LogCaptureFixture
) -> None:
    local.fail = ZeroDivisionError("secret")  # type: ignore[assignment]
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await entrance.stub.ModelInfer(answered_request(), metadata=(("x-request-id", "abc"),))
    assert caught.value.code() is grpc.StatusCode.INTERNAL
    assert "request abc" in str(caught.value.details())
    assert "secret" not in str(caught.value.details())
    assert "call abc failed" in caplog.text
    call = entrance.stub.ModelStreamInfer(metadata=(("x-request-id", "def"),))
    await call.write(answered_request(id="1"))
    told = await call.read()
    assert "request def" in told.error_message
    assert told.infer_response.id == "1"
    local.fail = None
    await call.write(answered_request(id="2"))
    assert not (await call.read()).error_message
    call.cancel()


async def test_a_message_of_a_stream_that_is_none_does_not_end_it(entrance: Entrance) -> None:
    call = entrance.channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")()
    await call.write(b"\xff\xff")
    told = service_pb2.ModelStreamInferResponse.FromString(await call.read())
    assert "no ModelInferRequest" in told.error_message
    await call.write(answered_request().SerializeToString())
    assert service_pb2.ModelStreamInferResponse.FromString(await call.read()).infer_response.outputs
    call.cancel()


# Many calls


async def _unsent() -> AsyncIterator[Any]:
    """A message that never comes."""
    await asyncio.Event().wait()
    yield None


@pytest.mark.parametrize("method", ["ModelInfer", "ServerLive"])
async def test_calls_that_send_nothing_do_not_stop_those_of_others(
    entrance: Entrance, method: str
) -> None:
    path = f"/inference.GRPCInferenceService/{method}"
    silent = [entrance.channel.stream_unary(path)(_unsent()) for _ in range(300)]
    await asyncio.gather(*(call.wait_for_connection() for call in silent))
    # A connection of its own: channels of one process may share theirs.
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with (
        grpc.aio.insecure_channel(str(entrance.address), options) as channel,
        asyncio.timeout(3),
    ):
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        assert (await stub.ServerLive(service_pb2.ServerLiveRequest())).live
        assert (await stub.ModelInfer(answered_request())).model_name == "digits"
        health = health_pb2_grpc.HealthStub(channel)
        assert (await health.Check(health_pb2.HealthCheckRequest())).status
    for call in silent:
        call.cancel()


async def test_three_thousand_calls_at_once_are_answered(entrance: Entrance) -> None:
    options = [("grpc.use_local_subchannel_pool", 1)]
    channels = [grpc.aio.insecure_channel(str(entrance.address), options) for _ in range(4)]
    stubs = [service_pb2_grpc.GRPCInferenceServiceStub(channel) for channel in channels]
    request = answered_request()
    answers = await asyncio.gather(
        *(stub.ModelInfer(request) for _ in range(750) for stub in stubs)
    )
    assert len(answers) == 3000
    for channel in channels:
        await channel.close()


# Health


async def test_a_balancer_is_told_whether_the_node_serves(
    entrance: Entrance, control: FakeControl
) -> None:
    stub = health_pb2_grpc.HealthStub(entrance.channel)
    serving = health_pb2.HealthCheckResponse.SERVING
    for name in ("", "inference.GRPCInferenceService"):
        answer = await stub.Check(health_pb2.HealthCheckRequest(service=name))
        assert answer.status == serving
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Check(health_pb2.HealthCheckRequest(service="other"))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    control.is_ready = False
    answer = await stub.Check(health_pb2.HealthCheckRequest())
    assert answer.status == health_pb2.HealthCheckResponse.NOT_SERVING


async def test_who_watches_is_told_when_the_node_leaves(entrance: Entrance) -> None:
    stub = health_pb2_grpc.HealthStub(entrance.channel)
    watching = stub.Watch(health_pb2.HealthCheckRequest())
    assert (await watching.read()).status == health_pb2.HealthCheckResponse.SERVING
    entrance.server.stop_accepting()
    async with asyncio.timeout(5):
        assert (await watching.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING


# Shared memory


async def test_tensors_go_through_shared_memory_both_ways(
    entrance: Entrance, memory: SharedMemory, tmp_path: Path
) -> None:
    object_path = tmp_path / "mine"
    object_path.write_bytes(ROW.tobytes() + bytes(16))
    client = entrance.client
    await client.register_system_shared_memory("in", "/mine", 16)
    await client.register_system_shared_memory("out", "/mine", 16, offset=16)
    status = await client.get_system_shared_memory_status()
    assert {name: region.offset for name, region in status.regions.items()} == {"in": 0, "out": 16}
    item = InferInput("x", [1, 4], "FP32")
    item.set_shared_memory("in", 16)
    wanted = InferRequestedOutput("x")
    wanted.set_shared_memory("out", 16)
    answer = await client.infer("digits", [item], outputs=[wanted])
    assert answer.get_response().raw_output_contents == [b""]
    assert answer.get_output("x").parameters["shared_memory_region"].string_param == "out"
    assert object_path.read_bytes()[16:] == ROW.tobytes()
    await client.unregister_system_shared_memory("in")
    with pytest.raises(InferenceServerException, match="no shared memory region 'in'"):
        await client.infer("digits", [item])
    await client.unregister_system_shared_memory()
    assert not memory.status()


async def test_gpu_memory_is_never_shared(entrance: Entrance) -> None:
    assert not (await entrance.client.get_cuda_shared_memory_status()).regions
    await entrance.client.unregister_cuda_shared_memory()
    with pytest.raises(InferenceServerException) as caught:
        await entrance.client.register_cuda_shared_memory("r", b"aGFuZGxl", 0, 16)
    assert caught.value.status() == "StatusCode.UNIMPLEMENTED"


# A release: the header that it names is metadata here, and every request has an id for feedback


@pytest.fixture
def release(
    router: Router, serve: Callable[..., None], make_manifest: Callable[..., Manifest]
) -> Release:
    for version in (1, 2):
        serve(what=make_manifest(version=version))
    plan = Release("ab", 1, 2, (Step(0.5),), split_by="header:X-Cohort", only=("staff",))
    router.release_changed("digits", (7, 7), plan, Progress((7, 7), "running", 0, 0))
    return plan


async def test_metadata_decides_which_version_answers(
    entrance: Entrance, release: Release, local: FakeLocal
) -> None:
    for cohort, version in (("staff", "2"), ("all", "1")):
        metadata = (("x-cohort", cohort),)
        answer = await entrance.stub.ModelInfer(answered_request(), metadata=metadata)
        assert answer.model_version == version


async def test_each_request_of_a_stream_has_an_id_for_feedback(
    entrance: Entrance, release: Release, dispatcher: Dispatcher
) -> None:
    requests = (answered_request(id=name) for name in ("mine", "", "n" * 300))
    metadata = (("x-cohort", "staff"), ("x-request-id", "call-7"))
    call = entrance.stub.ModelStreamInfer(requests, metadata=metadata)
    answers = [answer async for answer in call]
    assert [answer.infer_response.model_version for answer in answers] == ["2"] * 3
    assert dict(await call.initial_metadata())["x-request-id"] == "call-7"
    releasing = dispatcher.inference.pipeline.releasing
    for name in ("call-7:mine", "call-7:2", "call-7:3"):
        told = releasing.tell(Feedback(name, {"stars": 4}), "")
        assert told is not None
        assert (told.version, told.counted) == (2, ("stars",))
