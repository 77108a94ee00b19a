"""An inference on a peer, between its message and its end: a stream that stalls is found out, a slow one is not."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, cast

import pytest

from meshnode.errors import DeadlineExceeded, LinkLost, ProtocolError
from meshnode.limits import STREAM_ALIVE_S
from meshnode.net import infer_call as module
from meshnode.net.infer_call import InferCall, ResumeCall
from meshnode.types import InferRequest, KeptAs, NodeId, Priority, ResponsePart, RoutingHints
from meshnode.wire.messages import STREAMS, Infer, Keep, Result, Resumed, ResumeStream

if TYPE_CHECKING:
    from meshnode.net.connection import Connection

PEER = NodeId("b" * 32)
NO_DATA = memoryview(b"")
ALIVE_MS = STREAM_ALIVE_S * 1e3


class FakeLink:
    """A connection that notes what is cancelled."""

    def __init__(self) -> None:
        self.cancelled: list[int] = []
        self.left = 0

    def cancel(self, stream: int) -> None:
        self.cancelled.append(stream)

    def consumed(self, stream: int, size_bytes: int) -> None: ...

    def left_bytes(self, stream: int) -> int:
        return self.left


def begun(alive_ms: float = ALIVE_MS, timeout_s: float = 30.0) -> tuple[InferCall, FakeLink]:
    """Return a stream whose first part is here."""
    link = FakeLink()
    request = InferRequest("m", (), timeout_s=timeout_s)
    call = InferCall(asyncio.get_running_loop(), lambda *_: None, PEER, request)
    call.attach(cast("Connection", link), 7)
    tell(call, 1, alive_ms=alive_ms)
    return call, link


def tell(call: InferCall, number: int, *, alive_ms: float = ALIVE_MS, end: bool = False) -> None:
    call.part(STREAMS.encode(Result((), None, {"n": number}, alive_ms)), NO_DATA, end)


def sign(call: InferCall) -> None:
    call.part(STREAMS.encode(Result((), None, {}, ALIVE_MS)), NO_DATA, False)


async def numbers(call: InferCall) -> list[Any]:
    return [part.parameters["n"] async for part in call.parts(await call.first)]


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STREAM_STALL_S", 0.1)
    monkeypatch.setattr(module, "STREAM_ALIVE_S", STREAM_ALIVE_S * 1000)


@pytest.mark.usefixtures("impatient")
async def test_a_stream_without_a_part_and_a_sign_of_life_has_stalled() -> None:
    call, link = begun()
    with pytest.raises(LinkLost, match="stalled"):
        await asyncio.wait_for(numbers(call), 5)
    assert link.cancelled == [7]


@pytest.mark.usefixtures("impatient")
async def test_signs_of_life_are_no_parts_and_keep_a_slow_stream() -> None:
    call, _ = begun()
    reading = asyncio.ensure_future(numbers(call))
    for _ in range(10):
        await asyncio.sleep(0.03)
        sign(call)
    assert not reading.done()
    tell(call, 2)
    tell(call, 3, end=True)
    assert await reading == [1, 2, 3]


@pytest.mark.usefixtures("impatient")
async def test_a_large_part_on_its_way_is_a_sign_of_life() -> None:
    call, link = begun()
    reading = asyncio.ensure_future(numbers(call))
    for left in range(30, 0, -3):
        link.left = left
        await asyncio.sleep(0.03)
    assert not reading.done()
    link.left = 0
    tell(call, 2, end=True)
    assert await reading == [1, 2]


@pytest.mark.usefixtures("impatient")
async def test_a_peer_that_tells_no_signs_has_a_pause_from_one_part_to_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "STREAM_PAUSE_S", 0.3)
    call, _ = begun(alive_ms=0.0, timeout_s=0.1)
    with pytest.raises(DeadlineExceeded, match="no further part"):
        await asyncio.wait_for(numbers(call), 5)


@pytest.mark.usefixtures("impatient")
async def test_a_stream_that_goes_on_outlives_the_time_of_its_request_and_any_pause(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "STREAM_PAUSE_S", 0.1)
    call, _ = begun(timeout_s=0.05)
    reading = asyncio.ensure_future(numbers(call))
    for number in range(2, 12):
        await asyncio.sleep(0.04)
        tell(call, number)
    tell(call, 12, end=True)
    assert await reading == [*range(1, 13)]


@pytest.mark.usefixtures("impatient")
async def test_a_model_that_is_at_work_for_ever_ends_the_stream_although_its_node_lives(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "STREAM_PAUSE_S", 0.2)
    call, _ = begun(timeout_s=0.05)
    reading = asyncio.ensure_future(numbers(call))
    for _ in range(20):
        await asyncio.sleep(0.03)
        sign(call)
    with pytest.raises(DeadlineExceeded, match="no further part"):
        await reading


@pytest.mark.usefixtures("impatient")
async def test_a_reader_that_was_busy_elsewhere_waits_anew() -> None:
    call, _ = begun()
    parts = aiter(call.parts(await call.first))
    await anext(parts)
    await asyncio.sleep(0.15)  # the client took its time, and nothing was due meanwhile
    following = asyncio.ensure_future(anext(parts))
    await asyncio.sleep(0.03)
    assert not following.done()
    tell(call, 2)
    assert (await following).parameters == {"n": 2}


async def test_a_gateway_that_was_itself_asleep_blames_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "STREAM_STALL_S", 0.05)
    monkeypatch.setattr(module, "STREAM_ALIVE_S", 1000.0)
    monkeypatch.setattr(module, "STREAM_LATE_S", 0.02)
    import time

    call, _ = begun()
    reading = asyncio.ensure_future(numbers(call))
    await asyncio.sleep(0)
    time.sleep(0.1)  # noqa: ASYNC251 - the loop itself stands still
    await asyncio.sleep(0.02)
    assert not reading.done()
    tell(call, 2, end=True)
    assert await reading == [1, 2]


async def test_the_question_says_how_urgent_it_is_and_how_its_answer_is_kept() -> None:
    request = InferRequest(
        "m", (), hints=RoutingHints(priority=Priority.HIGH), keep=KeptAs("s" * 24, "me", 3)
    )
    call = InferCall(asyncio.get_running_loop(), lambda *_: None, PEER, request)
    asked = STREAMS.decode(call.meta())
    assert isinstance(asked, Infer)
    assert (asked.priority, asked.alive_ms, asked.keep) == (2, ALIVE_MS, Keep("s" * 24, "me", 3))


async def test_a_stream_that_was_kept_goes_on_with_what_its_first_part_said() -> None:
    link = FakeLink()
    keep = KeptAs("s" * 24, "me", 3)
    call = ResumeCall(asyncio.get_running_loop(), lambda *_: None, PEER, keep, 5.0)
    call.attach(cast("Connection", link), 7)
    assert STREAMS.decode(call.meta()) == ResumeStream("s" * 24, "me", 3, ALIVE_MS)
    call.part(STREAMS.encode(Resumed("m", 2, {"head": "x"})), NO_DATA, False)
    assert (await call.first) == ResponsePart((), {"head": "x"})
    tell(call, 4)
    tell(call, 5, end=True)
    assert [part.parameters["n"] async for part in call.parts(None)] == [4, 5]
    assert call.resumed == Resumed("m", 2, {"head": "x"})


async def test_a_peer_that_answers_something_else_is_not_believed() -> None:
    call = ResumeCall(asyncio.get_running_loop(), lambda *_: None, PEER, KeptAs("s", "", 0), 5.0)
    tell(call, 4)
    with pytest.raises(ProtocolError):
        await call.first
    other = InferCall(asyncio.get_running_loop(), lambda *_: None, PEER, InferRequest("m", ()))
    other.part(STREAMS.encode(Resumed("m", 2)), NO_DATA, False)
    with pytest.raises(ProtocolError):
        await other.first
