"""Streams that go on without their readers: what they hold meanwhile, and who may take them over."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from meshnode.errors import IdempotencyKeyReused, InferenceFailed, NotFound, Saturated
from meshnode.gateway import event_streams as module
from meshnode.gateway.event_streams import EventStreams
from meshnode.gateway.idempotency import AnswersOnce
from meshnode.gateway.matching import Match
from meshnode.gateway.metrics import GatewayMetrics
from meshnode.gateway.protocols.caller import LOCAL, Caller
from meshnode.gateway.protocols.event_ids import goes_on
from meshnode.gateway.protocols.holding import Holding
from meshnode.gateway.protocols.http import HttpRequest, HttpResponse, HttpStream
from meshnode.limits import (
    CLIENT_STREAM_SILENCE_S,
    DEFAULT_REQUEST_TIMEOUT_S,
    JOB_HEARTBEAT_S,
    MAX_IDEMPOTENT_ANSWER_BYTES,
    STREAM_HEARTBEAT_S,
    STREAM_RESUME_S,
)
from meshnode.types import Scope

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from meshnode.gateway.dispatch import Dispatcher
    from tests.unit.gateway.conftest import FakeClock


class Story:
    """A model that tells its parts when the test lets it, behind a gateway's memory of keys."""

    def __init__(self, clock: FakeClock, *, resume: bool = True) -> None:
        self.streams = EventStreams()
        self.once = AnswersOnce(clock.now, GatewayMetrics())
        self.resume = resume
        self.runs = 0
        self.stopped = 0
        self.told: asyncio.Queue[bytes | Exception | None] = asyncio.Queue()

    async def _parts(self) -> AsyncIterator[bytes]:
        try:
            while (part := await self.told.get()) is not None:
                if isinstance(part, Exception):
                    raise part
                yield part
        finally:
            self.stopped += 1

    async def _answer(self, http: HttpRequest, request_id: str) -> HttpResponse | HttpStream:
        del request_id
        self.runs += 1
        answer = HttpStream(200, {"Content-Type": "text/event-stream"}, self._parts())
        return self.streams.open(
            answer, "", resume=self.resume, path=http.path, holding=http.holding
        )

    async def ask(self, key: str = "a", body: bytes = b"{}") -> Any:
        http = HttpRequest("POST", "/x", "", {"idempotency-key": key}, body, LOCAL)
        return await self.once.answer(Match(self._answer, Scope.INFER), http, "r")

    def tell(self, *parts: bytes | Exception | None) -> None:
        for part in parts:
            self.told.put_nowait(part)


@pytest.fixture
def story(clock: FakeClock) -> Story:
    return Story(clock)


async def piece(stream: HttpStream) -> bytes:
    found = await anext(aiter(stream.parts))
    return bytes(found).split(b"\n", 1)[1]


async def rest(stream: HttpStream) -> list[bytes]:
    return [bytes(each).split(b"\n", 1)[1] async for each in stream.parts]


async def hang_up(stream: HttpStream) -> None:
    parts: Any = stream.parts
    await parts.aclose()


async def test_a_repetition_takes_over_the_stream_of_a_client_that_hung_up(story: Story) -> None:
    first = await story.ask()
    story.tell(b"1", b"2")
    assert await piece(first) == b"1"
    await hang_up(first)
    again = await story.ask()
    assert again.headers["Idempotent-Replayed"] == "true"
    story.tell(b"3", None)
    text = b"".join([bytes(each) async for each in again.parts])
    assert [int(after[:1]) for after in text.split(b".")[1:]] == [1, 2, 3]  # the numbers in ids
    assert (story.runs, story.stopped) == (1, 1)
    kept = await story.ask()  # once more, after its end
    assert isinstance(kept, HttpResponse)
    assert kept.body == text
    assert story.runs == 1


async def test_a_repetition_waits_while_somebody_reads_the_stream(story: Story) -> None:
    first = await story.ask()
    story.tell(b"1")
    assert await piece(first) == b"1"
    later = [asyncio.ensure_future(story.ask()) for _ in range(2)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not any(each.done() for each in later)
    await hang_up(first)
    done, waiting = await asyncio.wait(later, return_when=asyncio.FIRST_COMPLETED)
    assert (len(done), len(waiting)) == (1, 1)  # it has one reader at a time
    story.tell(b"2", None)
    assert len(b"".join([bytes(each) async for each in done.pop().result().parts])) > 2
    whole = await waiting.pop()
    assert isinstance(whole, HttpResponse)
    assert story.runs == 1


async def test_a_repetition_that_is_given_up_lets_the_next_one_have_the_stream(
    story: Story,
) -> None:
    await hang_up(await story.ask())  # before it was read at all
    await hang_up(await story.ask())
    last = await story.ask()
    story.tell(b"1", None)
    assert await rest(last) == [b"1"]
    assert story.runs == 1


async def test_another_request_does_not_get_a_stream_by_its_key(story: Story) -> None:
    await hang_up(await story.ask())
    with pytest.raises(IdempotencyKeyReused):
        await story.ask(body=b"{ }")
    await story.streams.close()


async def test_a_stream_that_nobody_took_over_in_time_is_run_again(
    story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "STREAM_RESUME_S", 0.01)
    await hang_up(await story.ask())
    await asyncio.sleep(0.1)
    assert story.stopped == 1
    again = await story.ask()
    story.tell(b"1", None)
    assert await rest(again) == [b"1"]
    assert story.runs == 2


@pytest.mark.parametrize("resume", [True, False])
async def test_a_stream_that_failed_is_not_given_again(story: Story, resume: bool) -> None:
    story.resume = resume
    first = await story.ask()
    story.tell(b"1", InferenceFailed("it broke"))
    assert len(await rest(first)) == 2  # the last one tells the error
    await asyncio.sleep(0)
    assert isinstance(await story.ask(), HttpStream)
    assert story.runs == 2
    await story.streams.close()


async def test_a_stream_whose_client_does_not_come_back_ends_with_it(story: Story) -> None:
    story.resume = False
    first = await story.ask()
    story.tell(b"1")
    await piece(first)
    await hang_up(first)
    again = await story.ask()
    story.tell(b"2", None)
    assert await rest(again) == [b"2"]
    assert (story.runs, story.stopped) == (2, 2)


async def test_a_stream_that_is_too_large_to_keep_is_not_taken_over(story: Story) -> None:
    first = await story.ask()
    story.tell(*[b"x" * (MAX_IDEMPOTENT_ANSWER_BYTES // 8)] * 10, None)
    assert len(await rest(first)) == 10
    await asyncio.sleep(0)
    assert isinstance(await story.ask(), HttpStream)
    assert story.runs == 2
    await story.streams.close()


async def test_a_place_is_given_back_when_the_work_ends_and_not_when_its_client_hangs_up(
    story: Story,
) -> None:
    given_back: list[str] = []
    holding = Holding(lambda: given_back.append("place"))
    http = HttpRequest("POST", "/x", "", {}, b"", LOCAL, None, holding)
    stream: Any = await story._answer(http, "r")
    story.tell(b"1")
    await piece(stream)
    await hang_up(stream)
    holding.end()  # as the entrance does when the connection has ended
    await asyncio.sleep(0)
    assert given_back == []
    story.tell(None)
    for _ in range(5):
        await asyncio.sleep(0)
    assert given_back == ["place"]
    await story.streams.close()


async def test_a_place_outlasts_what_began_the_stream_as_well() -> None:
    given_back: list[str] = []
    holding = Holding(lambda: given_back.append("place"))
    loop = asyncio.get_running_loop()
    beginning, stream = loop.create_future(), loop.create_future()
    holding.outlast(beginning)
    holding.end()
    holding.outlast(stream)
    beginning.set_result(None)
    await asyncio.sleep(0)
    assert given_back == []
    stream.set_result(None)
    await asyncio.sleep(0)
    assert given_back == ["place"]


async def test_a_stream_is_taken_up_only_where_it_was_begun(story: Story) -> None:
    http = HttpRequest("POST", "/mesh/v1/models/a/stream", "", {}, b"", LOCAL)
    stream: Any = await story._answer(http, "r")
    story.tell(b"1")
    event = bytes(await anext(stream.parts))
    last_id = event.split(b"\n")[0].removeprefix(b"id: ").decode()
    for other in ("/mesh/v1/models/b/stream", "/mesh/v1/models/a/versions/1/stream", ""):
        with pytest.raises(NotFound, match="at this path"):
            story.streams.resumed(last_id, "", other)
    assert story.streams.resumed(last_id, "", http.path).status == 200
    await story.streams.close()


async def test_complete_streams_make_room_before_those_that_still_work(
    monkeypatch: pytest.MonkeyPatch, clock: FakeClock
) -> None:
    monkeypatch.setattr(module, "MAX_EVENT_STREAMS", 2)
    working, complete = Story(clock), Story(clock)
    complete.streams = working.streams
    await hang_up(await working.ask())
    stream = await complete.ask()
    complete.tell(None)
    await rest(stream)
    await Story.ask(complete, "b")
    assert working.stopped == 0
    await working.streams.close()


async def test_a_stream_for_which_there_is_no_room_hears_of_its_end_although_it_was_never_begun(
    monkeypatch: pytest.MonkeyPatch, clock: FakeClock
) -> None:
    """Its end gives back what its request has taken of the gateway."""
    monkeypatch.setattr(module, "MAX_EVENT_STREAMS", 1)
    reading, refused = Story(clock), Story(clock)
    refused.streams = reading.streams
    await reading.ask()
    with pytest.raises(Saturated, match="too many streams"):
        await refused.ask("b")
    for _ in range(10):
        await asyncio.sleep(0)
    assert (reading.stopped, refused.stopped) == (0, 1), "without waiting for its first part"
    await reading.streams.close()


def test_a_client_that_learns_by_silence_that_its_line_is_gone_comes_back_in_time() -> None:
    assert CLIENT_STREAM_SILENCE_S + DEFAULT_REQUEST_TIMEOUT_S < STREAM_RESUME_S
    assert 2 * STREAM_HEARTBEAT_S < CLIENT_STREAM_SILENCE_S
    assert 1.5 * JOB_HEARTBEAT_S < CLIENT_STREAM_SILENCE_S


@pytest.mark.parametrize(
    ("method", "target", "named", "found"),
    [
        ("POST", "/mesh/v1/models/m/stream", True, True),
        ("POST", "/mesh/v1/models/m/versions/3/stream?x=1", True, True),
        ("POST", "/mesh/v1/models/m/stream", False, False),
        ("GET", "/mesh/v1/models/m/stream", True, False),
        ("POST", "/mesh/v1/models/m/infer", True, False),
        ("POST", "/v2/models/m/generate_stream", True, False),
        ("POST", "/mesh/v1/models/m/infer?/stream", True, False),
    ],
)
def test_only_the_rest_of_a_stream_takes_no_place_of_its_own(
    method: str, target: str, named: bool, found: bool
) -> None:
    headers = {"last-event-id": "s.1"} if named else {}
    assert goes_on(method, target, headers) is found


async def test_what_goes_on_with_a_stream_is_not_answered_by_its_key(
    dispatcher: Dispatcher,
) -> None:
    path = "/mesh/v1/models/digits/stream"
    asked: list[str] = []

    async def once(match: Match, http: HttpRequest, request_id: str) -> HttpResponse:
        del match, request_id
        asked.append(http.path)
        return HttpResponse(200, {})

    dispatcher.answer_once = once
    match = dispatcher.match("POST", path)
    phone = Caller(Scope.INFER, "k1", "phone")
    for more in ({}, {"last-event-id": "s.1"}):
        http = HttpRequest("POST", path, "", {"idempotency-key": "a", **more}, b"{}", phone)
        reply: Any = dispatcher.answer(match, http, "r")
        if more:
            with pytest.raises(NotFound):
                await reply
        else:
            await reply
    assert asked == [path]
