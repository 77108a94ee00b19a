"""Answering peers: each wrong question fails alone, and nothing runs for nobody."""

from __future__ import annotations

import asyncio
import logging
import math
from typing import TYPE_CHECKING, Any, cast

import pytest

from meshnode.daemon import file_serving
from meshnode.daemon.kept_streams import KeptStreams
from meshnode.daemon.serving import PeerServer
from meshnode.errors import (
    InvalidRequest,
    MeshError,
    NotFound,
    NotServing,
    ProtocolError,
    Saturated,
    TransferFailed,
)
from meshnode.limits import BLOB_CHUNK_BYTES
from meshnode.net.infer_call import tensor_headers
from meshnode.types import DataType, InferRequest, InferResponse, ResponsePart, Tensor
from meshnode.wire.messages import (
    STREAMS,
    BlobChunk,
    Failure,
    FetchBlob,
    Infer,
    Keep,
    LoadReport,
    Result,
    Resumed,
    ResumeStream,
    TensorHeader,
)
from tests.unit.daemon.conftest import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from meshnode.models.artifacts.chunks import Chunks
    from meshnode.net.connection import Connection

LOAD = LoadReport(1, 2, 3.0)
TENSOR = Tensor("x", DataType.FP32, (2,), bytes(8))
NO_DATA = memoryview(b"")


class FakeConnection:
    """Notes what is answered; may be full."""

    def __init__(self) -> None:
        self.replies: list[tuple[int, Any, bytes, bool]] = []
        self.refused: list[tuple[int, MeshError]] = []
        self.closed_with: list[MeshError] = []
        self.going_away = False
        self.room = asyncio.Event()
        self.room.set()
        self.fails: Exception | None = None

    def reply(self, stream: int, meta: bytes, data: Any = (), *, end: bool) -> None:
        if self.fails is not None:
            raise self.fails
        self.replies.append((stream, STREAMS.decode(meta), b"".join(map(bytes, data)), end))

    def refuse(self, stream: int, error: MeshError) -> None:
        self.refused.append((stream, error))

    def close(self, error: MeshError) -> None:
        self.closed_with.append(error)

    async def drained(self, stream: int) -> None:
        await self.room.wait()


class FakeExecutor:
    """Runs nothing; answers what the test says."""

    def __init__(self) -> None:
        self.inline: ResponsePart | Exception | None = None
        self.response: InferResponse | Exception | None = None
        self.serves = True
        self.asked: list[InferRequest] = []

    def try_infer_inline(self, request: InferRequest) -> ResponsePart | None:
        self.asked.append(request)
        if isinstance(self.inline, Exception):
            raise self.inline
        return self.inline

    async def infer(self, request: InferRequest) -> InferResponse:
        if isinstance(self.response, Exception):
            raise self.response
        if self.response is None:
            await asyncio.Event().wait()
        assert self.response is not None
        return self.response

    def load_report(self, model: str, version: int) -> LoadReport:
        if not self.serves:
            raise NotServing("it is gone")
        return LOAD


class FakeBlobs:
    def __init__(self) -> None:
        self.content = bytes(range(256)) * 8 * 1024 + b"end"  # two chunks and a bit
        self.fails_at: int | None = None
        self.shrunk_to: int | None = None

    def size_bytes(self, sha256: bytes) -> int:
        if sha256 != bytes(32):
            raise TransferFailed("not on this node")
        return len(self.content)

    def read_chunk(self, sha256: bytes, offset: int, length: int) -> bytes:
        if self.fails_at is not None and offset >= self.fails_at:
            raise TransferFailed("it cannot be read")
        return self.content[: self.shrunk_to][offset : offset + length]

    def state_of(self, sha256: bytes) -> tuple[bool, bytes]:
        return sha256 == bytes(32), b""

    def chunks_of(self, sha256: bytes) -> Chunks:
        raise TransferFailed("not on this node")


class Served:
    """A server between fakes."""

    def __init__(self) -> None:
        self.executor = FakeExecutor()
        self.blobs = FakeBlobs()
        self.connection = FakeConnection()
        self.server = PeerServer(self.executor, self.blobs)

    def ask(self, message: Any, data: bytes = b"", stream: int = 1) -> None:
        meta = message if isinstance(message, bytes) else STREAMS.encode(message)
        self.server.opened(cast("Connection", self.connection), stream, meta, memoryview(data))

    def infer(self, stream: int = 1, **changes: Any) -> None:
        fields: dict[str, Any] = {
            "model": "m", "version": 3, "inputs": tensor_headers([TENSOR]), "timeout_ms": 500.0,
            **changes,
        }  # fmt: skip
        self.ask(Infer(**fields), bytes(8), stream)

    async def answered(self) -> list[tuple[int, Any, bytes, bool]]:
        await eventually(lambda: self.connection.replies and not self.server.running)
        return self.connection.replies

    def failure(self) -> Failure:
        (_, failure, _, end) = self.connection.replies[-1]
        assert isinstance(failure, Failure)
        assert end
        return failure


@pytest.fixture
async def served() -> Served:
    return Served()


def result(*tensors: Tensor, load: LoadReport | None = LOAD) -> Result:
    return Result(tensor_headers(tensors), load)


async def test_a_short_model_answers_before_the_question_returns(served: Served) -> None:
    served.executor.inline = ResponsePart((TENSOR,))
    served.infer()
    assert served.connection.replies == [(1, result(TENSOR), bytes(8), True)]
    request = served.executor.asked[0]
    assert (request.model, request.version, request.timeout_s) == ("m", 3, 0.5)
    assert request.inputs[0].shape == (2,)


TRACEPARENT = f"00-{'a' * 32}-{'b' * 16}-01"


async def test_a_peer_s_request_id_is_bounded_and_its_trace_may_be_anything(
    served: Served,
) -> None:
    served.executor.inline = ResponsePart((TENSOR,))
    for trace in (TRACEPARENT, "", "nonsense", "0" * 10_000):
        served.infer(trace=trace, request_id="r" * 1000)
    assert {len(request.request_id) for request in served.executor.asked} == {128}
    assert served.server.log.outcomes == {"ok": 4}


async def test_each_request_is_a_line_with_its_ids_whatever_its_end(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "meshnode")
    served.server = PeerServer(served.executor, served.blobs, name_of=lambda _: "alpha")
    served.executor.inline = ResponsePart((TENSOR,))
    served.infer(1, trace=TRACEPARENT)
    served.executor.inline = NotServing("gone")
    served.infer(2, trace=TRACEPARENT)
    served.executor.inline = ZeroDivisionError("a defect")
    served.infer(3, trace=TRACEPARENT)
    served.executor.inline = None
    served.executor.response = RuntimeError("another")
    served.infer(4, trace=TRACEPARENT)
    await eventually(lambda: not served.server.running)
    served.executor.response = None
    served.infer(5, trace=TRACEPARENT)
    await asyncio.sleep(0)
    served.server.cancelled(cast("Connection", served.connection), 5)
    await eventually(lambda: not served.server.running)
    records = [vars(record) for record in caplog.records if record.name.endswith("serving_log")]
    ends = [record["outcome"] for record in records if "outcome" in record]
    assert ends == ["ok", "not_serving", "inference_failed", "inference_failed", "cancelled"]
    assert {record["trace_id"] for record in records} == {"a" * 32}
    assert {record["parent_id"] for record in records} == {"b" * 16}
    assert {record["peer"] for record in records} == {"alpha"}
    assert sum(record["exc_info"] is not None for record in records) == 2


async def test_a_longer_model_answers_when_it_is_done(served: Served) -> None:
    served.executor.response = InferResponse("m", 3, ResponsePart((TENSOR,)))
    served.infer()
    assert served.server.running == 1
    assert await served.answered() == [(1, result(TENSOR), bytes(8), True)]


async def test_a_stream_sends_its_parts_as_there_is_room_and_then_its_end(served: Served) -> None:
    async def parts() -> AsyncIterator[ResponsePart]:
        for _ in range(2):
            yield ResponsePart((TENSOR,))

    served.executor.response = InferResponse("m", 3, parts())
    served.connection.room.clear()
    served.infer()
    await eventually(lambda: served.connection.replies)
    assert len(served.connection.replies) == 1
    served.connection.room.set()
    part = (1, result(TENSOR), bytes(8), False)
    assert await served.answered() == [part, part, (1, result(), b"", True)]


@pytest.mark.parametrize("inline", [True, False])
async def test_an_error_crosses_with_its_code_and_the_load(served: Served, inline: bool) -> None:
    error = Saturated("the queue is full", retry_after_s=2.5)
    served.executor.inline = error if inline else None
    served.executor.response = error
    served.infer()
    await served.answered()
    assert served.failure() == Failure("saturated", "the queue is full", LOAD, 2500.0)


async def test_an_answer_of_a_model_that_is_being_unloaded_has_no_load(served: Served) -> None:
    served.executor.inline = ResponsePart(())
    served.executor.serves = False
    served.infer()
    assert served.connection.replies[0][1] == result(load=None)


@pytest.mark.parametrize("inline", [True, False])
async def test_a_mistake_in_a_runtime_fails_its_request_and_is_logged(
    served: Served, inline: bool, caplog: pytest.LogCaptureFixture
) -> None:
    served.executor.inline = ZeroDivisionError("oh") if inline else None
    served.executor.response = ZeroDivisionError("oh")
    served.infer()
    await served.answered()
    assert served.failure().code == "inference_failed"
    assert "ZeroDivisionError" in caplog.text
    assert served.connection.closed_with == []


async def test_bytes_that_are_no_message_close_the_link(served: Served) -> None:
    served.ask(b"\xc1")
    assert isinstance(served.connection.closed_with[0], ProtocolError)


@pytest.mark.parametrize(
    ("message", "data", "code"),
    [
        (LOAD, b"", "invalid_request"),
        (b"\x92\x7e\x01", b"", "invalid_request"),  # of a newer version
        (Infer("m", 1, (TensorHeader("x", "FP8", (1,), 1),), 500.0), b"x", "protocol"),
        (Infer("m", 1, tensor_headers([TENSOR]), 500.0), b"short", "protocol"),
        (Infer("m", 1, (), math.nan), b"", "invalid_request"),
        (Infer("m", 1, (), math.inf), b"", "invalid_request"),
        (Infer("m", 1, (), 1e12), b"", "invalid_request"),
        (Infer("m", 1, (), 0.0), b"", "deadline"),
        (Infer("m", 1, (), -5.0), b"", "deadline"),
    ],
)
async def test_a_wrong_question_fails_and_nothing_runs(
    served: Served, message: Any, data: bytes, code: str
) -> None:
    served.ask(message, data)
    assert served.failure().code == code
    assert served.executor.asked == []
    assert served.connection.closed_with == []


async def test_a_cancelled_request_is_stopped(served: Served) -> None:
    served.infer(stream=1)
    served.infer(stream=3)
    connection = cast("Connection", served.connection)
    served.server.cancelled(connection, 1)
    served.server.cancelled(connection, 99)
    await eventually(lambda: served.server.running == 1)
    served.server.closed(cast("Connection", FakeConnection()))
    served.server.closed(connection)
    await eventually(lambda: served.server.running == 0)
    assert served.connection.replies == []


@pytest.mark.parametrize("error", [Saturated("x"), ValueError("it has ended")])
async def test_an_error_that_cannot_be_told_resets_the_stream(
    served: Served, error: Exception
) -> None:
    served.connection.fails = error
    served.executor.inline = InvalidRequest("no")
    served.infer()
    assert [stream for stream, _ in served.connection.refused] == [1]


# Files


async def test_a_file_is_sent_in_chunks_from_where_it_is_wanted(served: Served) -> None:
    content = served.blobs.content
    served.ask(FetchBlob(bytes(32), 3))
    replies = await served.answered()
    assert b"".join(data for _, _, data, _ in replies) == content[3:]
    assert [message.offset for _, message, _, _ in replies] == [3, 3 + BLOB_CHUNK_BYTES]
    assert [end for _, _, _, end in replies] == [False, True]
    assert all(message.total_bytes == len(content) for _, message, _, _ in replies)


async def test_the_end_of_a_file_and_an_empty_one_are_one_empty_chunk(served: Served) -> None:
    served.blobs.content = b""
    served.ask(FetchBlob(bytes(32), 0))
    assert await served.answered() == [(1, BlobChunk(0, 0), b"", True)]


async def test_a_file_that_shrinks_ends(served: Served) -> None:
    served.blobs.shrunk_to = BLOB_CHUNK_BYTES
    served.ask(FetchBlob(bytes(32), 0))
    replies = await served.answered()
    assert replies[-1] == (1, BlobChunk(BLOB_CHUNK_BYTES, len(served.blobs.content)), b"", True)


@pytest.mark.parametrize(
    ("ask", "code"),
    [
        (FetchBlob(b"\x01" * 32, 0), "transfer"),
        (FetchBlob(b"short", 0), "invalid_request"),
        (FetchBlob(bytes(32), -1), "invalid_request"),
        (FetchBlob(bytes(32), 2**40), "invalid_request"),
    ],
)
async def test_a_file_that_cannot_be_sent_is_refused(
    served: Served, ask: FetchBlob, code: str
) -> None:
    served.ask(ask)
    await served.answered()
    assert served.failure().code == code


async def test_a_file_that_cannot_be_read_any_more_fails_in_the_middle(served: Served) -> None:
    served.blobs.fails_at = BLOB_CHUNK_BYTES
    served.ask(FetchBlob(bytes(32), 0))
    await served.answered()
    assert served.failure() == Failure("transfer", "it cannot be read", None)


async def test_only_so_many_files_are_sent_at_once(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_serving, "MAX_BLOBS_SENT", 1)
    served.connection.room.clear()
    served.ask(FetchBlob(bytes(32), 0), stream=1)
    served.ask(FetchBlob(bytes(32), 0), stream=3)
    await eventually(lambda: len(served.connection.replies) == 2)
    failures = [each[1] for each in served.connection.replies if isinstance(each[1], Failure)]
    assert [failure.code for failure in failures] == ["saturated"]
    served.connection.room.set()
    await eventually(lambda: not served.server.running)
    served.ask(FetchBlob(bytes(32), 0), stream=5)
    await eventually(lambda: not served.server.running)
    assert served.connection.replies[-1][0] == 5


# Streams.


def told(number: int) -> ResponsePart:
    return ResponsePart((TENSOR,), {"n": number})


class Telling:
    """A stream that the test makes."""

    def __init__(self) -> None:
        self.parts: asyncio.Queue[ResponsePart | None] = asyncio.Queue()
        self.stopped = False

    async def _made(self) -> AsyncIterator[ResponsePart]:
        try:
            while (part := await self.parts.get()) is not None:
                yield part
        finally:
            self.stopped = True

    def answer(self) -> InferResponse:
        return InferResponse("m", 1, self._made())


def numbers(served: Served) -> list[Any]:
    """What was told of parts; None for signs of life and the end."""
    results = [each for _, each, _, _ in served.connection.replies if isinstance(each, Result)]
    return [each.parameters.get("n") for each in results]


async def test_a_stream_tells_signs_of_life_where_they_are_asked_for(served: Served) -> None:
    model = Telling()
    served.executor.response = model.answer()
    served.infer(alive_ms=100.0)
    model.parts.put_nowait(told(1))
    await eventually(lambda: numbers(served) == [1, None, None])
    served.connection.room.clear()  # the reader takes nothing: nothing is queued for it
    model.parts.put_nowait(told(2))
    await asyncio.sleep(0.35)
    assert numbers(served) == [1, None, None, 2]
    served.connection.room.set()
    model.parts.put_nowait(None)
    await eventually(lambda: served.connection.replies[-1][3])
    assert {each.alive_ms for _, each, _, _ in served.connection.replies} == {100.0}


async def test_a_stream_of_who_asked_for_no_signs_has_none(served: Served) -> None:
    model = Telling()
    served.executor.response = model.answer()
    served.infer()
    model.parts.put_nowait(told(1))
    await asyncio.sleep(0.25)
    model.parts.put_nowait(None)
    await eventually(lambda: served.connection.replies[-1][3])
    assert numbers(served) == [1, None]


@pytest.mark.parametrize("end", ["link lost", "gateway leaves", "cancelled"])
async def test_a_kept_stream_survives_its_link_and_its_gateway_but_not_the_gateways_word(
    served: Served, end: str
) -> None:
    is_lost = end != "cancelled"
    served.server.kept = KeptStreams()
    model = Telling()
    served.executor.response = model.answer()
    served.infer(keep=Keep("s" * 24, "me"))
    model.parts.put_nowait(told(1))
    await eventually(lambda: numbers(served) == [1])
    served.connection.going_away = end == "gateway leaves"
    if end == "link lost":
        served.server.closed(cast("Connection", served.connection))
    else:
        served.server.cancelled(cast("Connection", served.connection), 1)
    await eventually(lambda: served.server.running == 0)
    await asyncio.sleep(0)
    assert model.stopped is not is_lost
    served.connection = FakeConnection()
    served.ask(ResumeStream("s" * 24, "me", 0))
    await eventually(lambda: served.connection.replies != [])
    if not is_lost:
        assert isinstance(served.connection.replies[0][1], Failure)
        assert served.connection.replies[0][1].code == NotFound.code
        return
    model.parts.put_nowait(told(2))
    model.parts.put_nowait(None)
    await eventually(lambda: served.connection.replies[-1][3])
    assert served.connection.replies[0][1] == Resumed("m", 1, {"n": 1})
    assert numbers(served) == [1, 2, None]
    await served.server.kept.close()
