"""Streams whose client goes from one gateway to another and comes back: the node that makes the answer has the rest."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from meshnode.errors import Cancelled, LinkLost, NotFound
from meshnode.gateway.protocols.http import HttpStream
from meshnode.gateway.taking_up import take_up
from meshnode.models.execution import Resumable
from meshnode.types import DataType, InferResponse, KeptAs, NodeId, ResponsePart, Tensor
from tests.unit.gateway.conftest import ME
from tests.unit.gateway.test_answer_streams import TEXT, Writers, ask
from tests.unit.gateway.test_lasting_streams import Story, hang_up, piece
from tests.unit.gateway.test_native import ROW, begin, events_of, parts_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from meshnode.gateway.dispatch import Dispatcher
    from meshnode.gateway.pipeline import Pipeline
    from tests.unit.gateway.conftest import FakeClock, FakePeers

TAKEN_UP = Cancelled("another gateway took the stream up")


class Keeper:
    """The node that makes the answer: there is one part more, whatever the client has."""

    def __init__(self) -> None:
        self.asked: list[tuple[NodeId, int]] = []
        self.error: Exception | None = None

    async def resume(self, node: NodeId, keep: KeptAs, timeout_s: float) -> InferResponse:
        del timeout_s
        self.asked.append((node, keep.after))
        if self.error is not None:
            raise self.error
        response = InferResponse("digits", 1, self._parts())
        response.head = {}
        response.executor = node
        return response

    async def _parts(self) -> AsyncIterator[ResponsePart]:
        yield ResponsePart((Tensor("x", DataType.FP32, (1,), bytes(4)),))


@pytest.fixture
def streaming(serve: Callable[..., None], local: Any) -> Any:
    serve()
    local.inline = False
    return local


@pytest.fixture
def keeper(pipeline: Pipeline) -> Keeper:
    pipeline.kept = found = Keeper()
    return found


@pytest.fixture
def story(clock: FakeClock) -> Story:
    return Story(clock)


async def settled() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_a_client_that_comes_back_from_another_gateway_gets_the_rest_of_a_live_stream(
    dispatcher: Dispatcher, streaming: Any, keeper: Keeper
) -> None:
    streaming.behave = parts_of(2, TAKEN_UP)
    found = await events_of(await begin(dispatcher), most=2)
    await settled()  # the other gateway took it up, and this one is told so
    assert (len(dispatcher.streams), dispatcher.streams.kept_bytes) == (0, 0)
    last = found[-1]["id"].replace(".2.", ".6.")  # as far as it came there
    for back in (found[-1]["id"], last):
        number = int(back.split(".")[1])
        rest = await events_of(await begin(dispatcher, ROW, last_event_id=back))
        assert [each["event"] for each in rest] == ["part", "done"]
        assert rest[0]["id"] == f"{back.split('.')[0]}.{number + 1}.{ME}"
        assert keeper.asked[-1] == (ME, number)
    await dispatcher.streams.close()


async def test_a_client_that_is_back_before_this_gateway_is_told_gets_the_rest_too(
    dispatcher: Dispatcher, streaming: Any, keeper: Keeper
) -> None:
    streaming.behave = parts_of(2)
    found = await events_of(await begin(dispatcher))
    assert [each["event"] for each in found] == ["part", "part", "done"]
    further = found[-1]["id"].replace(".3.", ".6.")
    rest = await events_of(await begin(dispatcher, ROW, last_event_id=further))
    assert [each["event"] for each in rest] == ["part", "done"]
    assert keeper.asked == [(ME, 6)]
    await dispatcher.streams.close()


async def test_a_stream_that_this_gateway_knows_stays_when_its_maker_does_not_have_more(
    dispatcher: Dispatcher, streaming: Any, keeper: Keeper
) -> None:
    streaming.behave = parts_of(2)
    keeper.error = NotFound("it is not kept here")
    found = await events_of(await begin(dispatcher))
    with pytest.raises(NotFound):
        await begin(dispatcher, ROW, last_event_id=found[-1]["id"].replace(".3.", ".6."))
    again = await events_of(await begin(dispatcher, ROW, last_event_id=found[1]["id"]))
    assert [each["event"] for each in again] == ["done"]
    await dispatcher.streams.close()


async def test_who_still_reads_at_the_gateway_that_was_left_is_cut_and_not_told_an_error(
    story: Story,
) -> None:
    stream = story.streams.open(_stream(story), "", resume=True, executor=lambda: ME)
    story.tell(b"1", b"2", TAKEN_UP)
    await settled()
    assert len(story.streams) == 0  # nobody finds it here any more
    assert [await piece(stream), await piece(stream)] == [b"1", b"2"]
    with pytest.raises(ConnectionAbortedError, match="another gateway goes on"):
        await piece(stream)
    await hang_up(stream)
    assert story.streams.kept_bytes == 0


@pytest.mark.parametrize(("resume", "executor"), [(False, ME), (True, None)])
async def test_where_nobody_can_go_on_the_reader_is_told(
    story: Story, resume: bool, executor: NodeId | None
) -> None:
    stream = story.streams.open(_stream(story), "", resume=resume, executor=lambda: executor)
    story.tell(b"1", TAKEN_UP)
    assert await piece(stream) == b"1"
    assert b"event: error" in await piece(stream)
    await hang_up(stream)
    await story.streams.close()


def _stream(story: Story) -> HttpStream:
    return HttpStream(200, {}, story._parts())


async def test_nobody_goes_further_with_the_stream_of_another(story: Story) -> None:
    streams = story.streams
    stream = streams.open(_stream(story), "k1", resume=True, path="/p", executor=lambda: ME)
    story.tell(b"1")
    event = bytes(await anext(aiter(stream.parts)))
    further = event.split(b"\n")[0][4:].decode().replace(".1.", ".5.")
    assert not streams.has(further, "k1", "/p")
    for owner, path in (("k2", "/p"), ("k1", "/q")):
        assert streams.has(further, owner, path)
        with pytest.raises(NotFound):
            streams.resumed(further, owner, path)
    await streams.close()


async def test_a_stream_of_which_nothing_came_and_nothing_is_kept_runs_anew_whole(
    pipeline: Pipeline, keeper: Keeper, peers: FakePeers, serve: Callable[..., None]
) -> None:
    writers = Writers(peers, serve)
    writers.breaks = []
    writers.begin(Resumable.REPLAY)
    keeper.error = LinkLost("the node is gone")
    request = msgspec.structs.replace(ask(), keep=KeptAs("s" * 24, "me", 0))
    response, _ = await take_up(pipeline, request, pipeline.resolve("writer", None), ME)
    came = [bytes(each.outputs[0].data[4:]).decode() async for each in response if each.outputs]
    assert "".join(came) == TEXT
