"""Inference and model files over a real link, and what a peer that misbehaves can do: little."""

from __future__ import annotations

import asyncio
import hashlib
import time
from typing import TYPE_CHECKING, Any

import pytest

from meshnode.errors import (
    DeadlineExceeded,
    LinkLost,
    MeshError,
    ModelNotFound,
    ProtocolError,
    Saturated,
    TransferFailed,
)
from meshnode.limits import BLOB_CHUNK_BYTES, MIB
from meshnode.net import infer_call, peers
from meshnode.net.infer_call import tensor_headers, tensors_of
from meshnode.net.peers import PeerClient
from meshnode.types import DataType, InferRequest, NodeId, ResponsePart, Tensor
from meshnode.wire.messages import (
    STREAMS,
    BlobChunk,
    Failure,
    FetchBlob,
    Infer,
    LoadReport,
    Result,
    TensorHeader,
)
from tests.unit.net.conftest import Mute, Node, eventually

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshnode.net.connection import Connection
    from tests.unit.net.conftest import MeshMaker

LOAD = LoadReport(3, 2, 1.5)


class Scripted(Mute):
    """Does with each stream what the test says."""

    def __init__(self, script: Callable[[Connection, int, Any, memoryview], None]) -> None:
        super().__init__()
        self._script = script

    def opened(self, connection: Connection, stream: int, meta: bytes, data: memoryview) -> None:
        self.asked.append(meta)
        self._script(connection, stream, STREAMS.decode(meta), data)


class Caller:
    """A client on node `one` that asks node `two`."""

    def __init__(self, one: Node, two: Node) -> None:
        self.one = one
        self.two = two
        self.reports: list[tuple[NodeId, str, int, LoadReport]] = []
        self.client = PeerClient(one.hub, lambda *report: self.reports.append(report))

    def script(self, script: Callable[[Connection, int, Any, memoryview], None]) -> Scripted:
        self.two.user.serve = scripted = Scripted(script)
        return scripted

    async def infer(self, timeout_s: float = 5.0) -> Any:
        request = InferRequest("m", (floats(4),), 2, timeout_s=timeout_s)
        return await self.client.infer(self.two.id, request)

    async def fetch(self, sink: Sink, node: NodeId | None = None) -> None:
        await self.client.fetch_blob(node or self.two.id, hashlib.sha256(b"x").digest(), sink)


class Sink:
    def __init__(self, have: bytes = b"") -> None:
        self.content = bytearray(have)

    @property
    def offset(self) -> int:
        return len(self.content)

    def write(self, data: memoryview) -> None:
        self.content += data


def floats(count: int, name: str = "x") -> Tensor:
    return Tensor(name, DataType.FP32, (count,), bytes(range(4)) * count)


def result(*tensors: Tensor, load: LoadReport | None = None) -> bytes:
    return STREAMS.encode(Result(tensor_headers(tensors), load))


@pytest.fixture
async def caller(mesh: MeshMaker) -> Caller:
    one, two, _ = await mesh.pair()
    return Caller(one, two)


# Tensors


def test_tensors_are_cut_out_of_the_data_without_a_copy() -> None:
    data = memoryview(bytes(32))
    headers = tensor_headers([floats(4, "a"), floats(4, "b")])
    first, second = tensors_of(headers, data)
    assert (first.name, second.name) == ("a", "b")
    assert isinstance(second.data, memoryview)
    assert second.data.obj is data.obj


@pytest.mark.parametrize(
    ("header", "size_bytes", "says"),
    [
        (TensorHeader("x", "FP8", (4,), 4), 4, "unknown type 'FP8'"),
        (TensorHeader("x", "FP32", (4,), 16), 8, "does not fit its data"),
        (TensorHeader("x", "FP32", (-1, -4), 16), 16, "does not fit its data"),
        (TensorHeader("x", "FP32", (1,) * 65, 4), 4, "does not fit its data"),
        (TensorHeader("x", "BYTES", (1,), -4), 16, "does not fit its data"),
        (TensorHeader("x", "FP32", (5,), 16), 16, "does not fit its shape"),
        (TensorHeader("x", "FP32", (2**62, 2**62), 16), 16, "does not fit its shape"),
        (TensorHeader("x", "FP32", (4,), 16), 20, "more data than tensors"),
    ],
)
def test_tensors_that_do_not_fit_are_a_protocol_error(
    header: TensorHeader, size_bytes: int, says: str
) -> None:
    with pytest.raises(ProtocolError, match=says):
        tensors_of([header], memoryview(bytes(size_bytes)))


# Inference


async def test_a_request_and_its_answer_cross_unchanged(caller: Caller) -> None:
    asked: list[Any] = []

    def answer(connection: Connection, stream: int, message: Any, data: memoryview) -> None:
        asked.append((message, bytes(data)))
        connection.reply(stream, result(floats(2, "y"), load=LOAD), [floats(2).data], end=True)

    caller.script(answer)
    response = await caller.infer()
    assert response.single == ResponsePart((floats(2, "y"),))
    assert (response.model, response.version) == ("m", 2)
    message, data = asked[0]
    assert isinstance(message, Infer)
    assert message.trace == ""
    assert (message.model, message.version, message.timeout_ms) == ("m", 2, 5000.0)
    assert data == floats(4).data
    assert caller.reports == [(caller.two.id, "m", 2, LOAD)]


async def test_an_answer_of_many_parts_arrives_whole_and_in_order(caller: Caller) -> None:
    def answer(connection: Connection, stream: int, message: Any, data: memoryview) -> None:
        for index in range(5):
            tensor = floats(1, f"part {index}")
            connection.reply(stream, result(tensor), [tensor.data], end=index == 4)

    caller.script(answer)  # all parts come in one chunk, before the caller runs again
    response = await caller.infer()
    assert response.single is None
    names = [part.outputs[0].name async for part in response]
    assert names == [f"part {index}" for index in range(5)]


@pytest.mark.parametrize("told", [{}, {"tokens": 3}])
async def test_the_end_of_an_answer_is_a_part_only_if_it_says_something(
    caller: Caller, told: dict[str, Any]
) -> None:
    def answer(connection: Connection, stream: int, message: Any, data: memoryview) -> None:
        connection.reply(stream, result(floats(1)), [floats(1).data], end=False)
        connection.reply(stream, STREAMS.encode(Result((), None, told)), end=True)

    caller.script(answer)
    parts = [part async for part in await caller.infer()]
    assert [dict(part.parameters) for part in parts] == [{}, told][: 1 + bool(told)]


async def test_a_link_that_breaks_within_an_answer_is_an_error_and_no_short_answer(
    caller: Caller,
) -> None:
    def answer(connection: Connection, stream: int, message: Any, data: memoryview) -> None:
        connection.reply(stream, result(floats(1)), [floats(1).data], end=False)
        connection.close()

    caller.script(answer)
    response = await caller.infer()
    parts = aiter(response)
    await anext(parts)
    with pytest.raises(LinkLost) as raised:
        await anext(parts)
    assert str(raised.value) == "the link to the node was lost"  # and not at which address


async def test_a_failure_after_the_first_part_is_raised_where_it_happened(caller: Caller) -> None:
    def answer(connection: Connection, stream: int, message: Any, data: memoryview) -> None:
        connection.reply(stream, result(floats(1)), [floats(1).data], end=False)
        connection.reply(stream, STREAMS.encode(Failure("not_found", "gone", LOAD)), end=True)

    caller.script(answer)
    response = await caller.infer()
    parts = aiter(response)
    await anext(parts)
    with pytest.raises(ModelNotFound, match="gone"):
        await anext(parts)
    assert len(caller.reports) == 1


async def test_a_stream_that_has_begun_goes_on_beyond_the_requests_time_until_nothing_comes(
    caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(infer_call, "STREAM_PAUSE_S", 0.3)

    def answer(connection: Connection, stream: int, message: Any, data: memoryview) -> None:
        connection.reply(stream, result(floats(1)), [floats(1).data], end=False)

    scripted = caller.script(answer)
    response = await caller.infer(timeout_s=0.1)
    parts = aiter(response)
    await anext(parts)
    began = time.monotonic()
    with pytest.raises(DeadlineExceeded, match="no further part"):
        await anext(parts)
    assert time.monotonic() - began >= 0.25
    await eventually(lambda: scripted.cancels)


async def test_an_answer_that_nobody_reads_is_bounded(
    caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(infer_call, "MAX_WAITING_PARTS", 3)

    def answer(connection: Connection, stream: int, message: Any, data: memoryview) -> None:
        for _ in range(10):
            connection.reply(stream, result(), end=False)

    scripted = caller.script(answer)
    response = await caller.infer()
    with pytest.raises(Saturated, match="more slowly"):
        async for _ in response:
            pass
    await eventually(lambda: scripted.cancels)


async def test_closing_an_answer_early_stops_the_work_over_there(caller: Caller) -> None:
    def answer(connection: Connection, stream: int, message: Any, data: memoryview) -> None:
        connection.reply(stream, result(floats(1)), [floats(1).data], end=False)

    scripted = caller.script(answer)
    response = await caller.infer()
    assert response._parts is not None
    await anext(response._parts)
    await response._parts.aclose()
    await eventually(lambda: scripted.cancels)


async def test_cancelling_a_request_stops_the_work_over_there(caller: Caller) -> None:
    mute = Mute()
    caller.two.user.serve = mute
    asking = asyncio.ensure_future(caller.infer())
    await eventually(lambda: mute.asked)
    asking.cancel()
    await eventually(lambda: mute.cancels)
    with pytest.raises(asyncio.CancelledError):
        await asking


async def test_no_first_byte_in_the_requests_time_is_the_end_of_it(caller: Caller) -> None:
    mute = Mute()
    caller.two.user.serve = mute
    with pytest.raises(DeadlineExceeded, match=r"within 0\.030 s"):
        await caller.infer(timeout_s=0.03)
    await eventually(lambda: len(mute.cancels) == 1)


async def test_a_refusal_is_raised_as_what_it_was(caller: Caller) -> None:
    def answer(connection: Connection, stream: int, message: Any, data: memoryview) -> None:
        connection.reply(stream, STREAMS.encode(Failure("saturated", "full", LOAD)), end=True)

    caller.script(answer)
    with pytest.raises(Saturated, match="full"):
        await caller.infer()
    assert caller.reports == [(caller.two.id, "m", 2, LOAD)]


@pytest.mark.parametrize(
    ("meta", "data"),
    [
        (b"\xc1", b""),
        (STREAMS.encode(LOAD), b""),
        (STREAMS.encode(BlobChunk(0, 1)), b"x"),
        (b"\x92\x7e\x01", b""),  # a type of a newer version
        (result(floats(4)), b"short"),
    ],
)
async def test_a_malformed_answer_fails_its_request_and_nothing_else(
    caller: Caller, meta: bytes, data: bytes
) -> None:
    answers = [(meta, data), (result(floats(1)), bytes(floats(1).data))]

    def answer(connection: Connection, stream: int, message: Any, _: memoryview) -> None:
        meta, data = answers.pop(0)
        connection.reply(stream, meta, [data], end=True)

    caller.script(answer)
    with pytest.raises(ProtocolError):
        await caller.infer()
    assert (await caller.infer()).single is not None
    assert caller.one.user.downs() == []


async def test_a_link_that_takes_no_more_streams_says_that_nothing_ran_and_one_that_breaks_does_not(
    caller: Caller,
) -> None:
    mute = Mute()
    caller.two.user.serve = mute
    asking = asyncio.ensure_future(caller.infer())
    await eventually(lambda: mute.asked)
    theirs = caller.two.hub.connection(caller.one.id)
    assert theirs is not None
    theirs.go_away()
    await eventually(lambda: caller.one.hub.connection(caller.two.id) is None)
    with pytest.raises(LinkLost) as never:
        await caller.infer()
    assert never.value.nothing_ran
    theirs.close()
    with pytest.raises(LinkLost) as broken:
        await asking
    assert not broken.value.nothing_ran


async def test_an_answer_that_comes_after_it_was_given_up_is_ignored(caller: Caller) -> None:
    call = infer_call.InferCall(
        asyncio.get_running_loop(), lambda *_: None, caller.two.id, InferRequest("m", ())
    )
    call.lost(Saturated("given up"))
    call.part(result(), memoryview(b""), True)
    call.lost(LinkLost("again"))
    with pytest.raises(Saturated, match="given up"):
        await call.first


async def test_without_a_link_nothing_is_asked(caller: Caller) -> None:
    with pytest.raises(LinkLost, match="no usable link") as caught:
        await caller.client.infer(NodeId("nobody"), InferRequest("m", ()))
    assert caught.value.nothing_ran
    with pytest.raises(LinkLost, match="no usable link"):
        await caller.fetch(Sink(), NodeId("nobody"))


# Model files


def sends(content: bytes, cut_after: int | None = None) -> Callable[..., None]:
    """A script that sends a blob in chunks, and cuts the link after so many."""

    def answer(connection: Connection, stream: int, ask: Any, _: memoryview) -> None:
        assert isinstance(ask, FetchBlob)
        offset, chunks = ask.offset, 0
        while True:
            chunk = content[offset : offset + BLOB_CHUNK_BYTES // 4]
            end = offset + len(chunk) >= len(content)
            meta = STREAMS.encode(BlobChunk(offset, len(content)))
            connection.reply(stream, meta, [chunk], end=end)
            offset, chunks = offset + len(chunk), chunks + 1
            if end:
                return
            if chunks == cut_after:
                asyncio.get_running_loop().call_later(0.05, connection.close)
                return

    return answer


CONTENT = bytes(range(256)) * 4 * 1024 + b"end"


async def test_a_file_arrives_whole(caller: Caller) -> None:
    caller.script(sends(CONTENT))
    sink = Sink()
    await caller.fetch(sink)
    assert sink.content == CONTENT


async def test_an_empty_file_arrives(caller: Caller) -> None:
    caller.script(sends(b""))
    await caller.fetch(Sink())


async def test_a_transfer_resumes_where_its_link_broke(caller: Caller) -> None:
    caller.script(sends(CONTENT, cut_after=2))
    sink = Sink()
    with pytest.raises(LinkLost):
        await caller.fetch(sink)
    arrived = sink.offset
    assert arrived == BLOB_CHUNK_BYTES // 2
    await caller.one.join(caller.two)
    scripted = caller.script(sends(CONTENT))
    await caller.fetch(sink)
    assert sink.content == CONTENT
    assert STREAMS.decode(scripted.asked[0]).offset == arrived


async def test_a_slow_disk_slows_the_sender_down(caller: Caller) -> None:
    sent = 0
    content = bytes(8 * MIB)
    written = asyncio.Semaphore(0)
    loop = asyncio.get_running_loop()

    class SlowSink(Sink):
        def write(self, data: memoryview) -> None:
            asyncio.run_coroutine_threadsafe(written.acquire(), loop).result()
            super().write(data)

    async def send(connection: Connection, stream: int) -> None:
        nonlocal sent
        for offset in range(0, len(content), MIB):
            meta = STREAMS.encode(BlobChunk(offset, len(content)))
            end = offset + MIB == len(content)
            connection.reply(stream, meta, [content[offset : offset + MIB]], end=end)
            sent += 1
            await connection.drained(stream)

    tasks: list[asyncio.Task[None]] = []
    caller.script(
        lambda connection, stream, message, data: tasks.append(
            asyncio.ensure_future(send(connection, stream))
        )
    )
    sink = SlowSink()
    fetching = asyncio.ensure_future(caller.fetch(sink))
    receiver = caller.one.hub.connection(caller.two.id)
    assert receiver is not None
    link = receiver._link
    assert link is not None
    # One chunk at the disk; the credit for a second is used up; two wait at the sender.
    await eventually(lambda: sent >= 3)
    for _ in range(20):
        await asyncio.sleep(0.005)
        assert sent <= 4
        assert link._buffered_bytes <= 3 * MIB
    for _ in range(8):
        written.release()
    await fetching
    await asyncio.gather(*tasks)
    assert sink.content == content


async def test_a_peer_without_the_file_says_so(caller: Caller) -> None:
    def answer(connection: Connection, stream: int, message: Any, data: memoryview) -> None:
        connection.reply(stream, STREAMS.encode(Failure("transfer", "not here")), end=True)

    caller.script(answer)
    with pytest.raises(TransferFailed, match="not here"):
        await caller.fetch(Sink())


async def test_a_peer_that_stops_sending_is_given_up(
    caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "BLOB_IDLE_TIMEOUT_S", 0.02)
    mute = Mute()
    caller.two.user.serve = mute
    with pytest.raises(TransferFailed, match="stopped sending"):
        await caller.fetch(Sink())
    await eventually(lambda: mute.cancels)


@pytest.mark.parametrize(
    ("meta", "data", "end"),
    [
        (b"\xc1", b"", True),
        (result(), b"", True),
        (STREAMS.encode(BlobChunk(0, 9)), b"x", True),  # not the offset that was asked for
        (STREAMS.encode(BlobChunk(3, 9)), b"", False),  # nothing, for ever
        (STREAMS.encode(BlobChunk(3, 9)), bytes(BLOB_CHUNK_BYTES + 1), False),
    ],
)
async def test_a_file_in_an_unknown_form_is_refused(
    caller: Caller, meta: bytes, data: bytes, end: bool
) -> None:
    def answer(connection: Connection, stream: int, message: Any, _: memoryview) -> None:
        connection.reply(stream, meta, [data], end=end)

    caller.script(answer)
    sink = Sink(b"abc")
    with pytest.raises(ProtocolError):
        await caller.fetch(sink)
    assert sink.content == b"abc"


async def test_a_disk_that_fails_ends_the_transfer(caller: Caller) -> None:
    class FullSink(Sink):
        def write(self, data: memoryview) -> None:
            raise TransferFailed("the disk is full")

    def answer(connection: Connection, stream: int, message: Any, data: memoryview) -> None:
        meta = STREAMS.encode(BlobChunk(0, 1000))
        connection.reply(stream, meta, [b"x"], end=False)

    scripted = caller.script(answer)
    with pytest.raises(MeshError, match="the disk is full"):
        await caller.fetch(FullSink())
    await eventually(lambda: scripted.cancels)
