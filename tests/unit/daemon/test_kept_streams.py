"""Streamed answers that a node keeps for gateways that come for them."""

from __future__ import annotations

import asyncio
import traceback
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

from meshnode.daemon import kept_streams as module
from meshnode.daemon.kept_streams import KeptStreams, StreamFinder
from meshnode.errors import Cancelled, InferenceFailed, LinkLost, MeshError, NotFound, NotServing
from meshnode.types import (
    DataType,
    InferRequest,
    InferResponse,
    KeptAs,
    NodeId,
    ResponsePart,
    Tensor,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

ME, OTHER = NodeId("a" * 32), NodeId("b" * 32)
NAME = "s" * 24


def part(number: int, size_bytes: int = 4) -> ResponsePart:
    data = number.to_bytes(4, "little") + bytes(size_bytes - 4)
    return ResponsePart((Tensor("x", DataType.UINT8, (size_bytes,), data),), {"n": number})


def number_of(found: ResponsePart) -> int:
    return int.from_bytes(found.outputs[0].data[:4], "little")


class Model:
    """Gives a part for each number that the test tells."""

    def __init__(self) -> None:
        self.told: asyncio.Queue[int | Exception | None] = asyncio.Queue()
        self.given = 0
        self.stopped = False
        self.size_bytes = 4

    def tell(self, *numbers: int | Exception | None) -> None:
        for number in numbers:
            self.told.put_nowait(number)

    async def _parts(self) -> AsyncIterator[ResponsePart]:
        try:
            while (number := await self.told.get()) is not None:
                if isinstance(number, Exception):
                    raise number
                self.given += 1
                yield part(number, self.size_bytes)
            yield ResponsePart((), {"triton_final_response": True})
        finally:
            self.stopped = True

    def answer(self) -> InferResponse:
        return InferResponse("m", 3, self._parts())


@pytest.fixture
def model() -> Model:
    return Model()


@pytest_asyncio.fixture
async def kept() -> AsyncIterator[KeptStreams]:
    found = KeptStreams()
    yield found
    await found.close()
    assert len(found) == 0
    assert found.kept_bytes == 0


def asks(owner: str = "me", after: int = 0) -> InferRequest:
    return InferRequest("m", (), keep=KeptAs(NAME, owner, after))


def comes(after: int, owner: str = "me") -> KeptAs:
    return KeptAs(NAME, owner, after)


async def some(response: InferResponse, count: int) -> tuple[Any, list[int]]:
    parts = aiter(response)
    return parts, [number_of(await anext(parts)) for _ in range(count)]


async def rest(response: InferResponse) -> list[int]:
    return [number_of(each) async for each in response]


async def settled() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def lost(kept: KeptStreams, parts: Any) -> None:
    """The link of a reader breaks."""
    kept.reader_lost(NAME)
    await parts.aclose()


async def test_another_gateway_goes_on_after_what_came(kept: KeptStreams, model: Model) -> None:
    parts, came = await _begun(kept, model, 1, 2, 3)
    await lost(kept, parts)
    model.tell(4, None)
    await settled()
    assert not model.stopped or model.given == 4  # it went on meanwhile
    again = kept.resume(comes(2))  # the third was lost on its way
    assert (again.model, again.version, again.head) == ("m", 3, {"n": 1})
    assert came + await rest(again) == [1, 2, 3, 3, 4]


async def test_a_stream_without_a_reader_counts_as_work_until_it_is_made(
    kept: KeptStreams, model: Model
) -> None:
    parts, _ = await _begun(kept, model, 1)
    assert kept.unread == 0
    await lost(kept, parts)
    assert kept.unread == 1
    model.tell(2, None)
    await settled()
    assert (kept.unread, len(kept)) == (0, 1)


async def _begun(kept: KeptStreams, model: Model, *numbers: int) -> tuple[Any, list[int]]:
    model.tell(*numbers)
    return await some(kept.keep(asks(), model.answer()), len(numbers))


async def test_what_is_complete_is_kept_for_who_lost_its_end(
    kept: KeptStreams, model: Model
) -> None:
    model.tell(1, 2, None)
    assert await rest(kept.keep(asks(), model.answer())) == [1, 2]
    assert await rest(kept.resume(comes(1))) == [2]
    assert await rest(kept.resume(comes(2))) == []


async def test_a_reader_that_hangs_up_stops_the_work(kept: KeptStreams, model: Model) -> None:
    parts, _ = await _begun(kept, model, 1)
    await parts.aclose()
    await settled()
    assert model.stopped
    with pytest.raises(NotFound):
        kept.resume(comes(1))


@pytest.mark.parametrize(
    "wrong", [KeptAs(NAME, "you", 1), KeptAs("t" * 24, "me", 1), KeptAs(NAME, "me", 9)]
)
async def test_only_its_owner_takes_a_stream_up_and_only_where_it_is(
    kept: KeptStreams, model: Model, wrong: KeptAs
) -> None:
    parts, _ = await _begun(kept, model, 1, 2)
    with pytest.raises(NotFound):
        kept.resume(wrong)
    model.tell(3)
    assert number_of(await anext(parts)) == 3  # its reader noticed nothing
    await parts.aclose()


async def test_the_last_reader_counts_and_the_former_is_told(
    kept: KeptStreams, model: Model
) -> None:
    parts, _ = await _begun(kept, model, 1)
    again = kept.resume(comes(0))
    with pytest.raises(Cancelled, match="took the stream up"):
        await anext(parts)
    await parts.aclose()  # and does not end it
    model.tell(2, None)
    assert await rest(again) == [1, 2]


async def test_a_reader_that_is_replaced_does_not_end_the_stream_when_its_link_breaks_late(
    kept: KeptStreams, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "STREAM_RESUME_S", 0.01)
    parts, _ = await _begun(kept, model, 1)
    second, _ = await some(kept.resume(comes(0)), 1)
    await lost(kept, parts)
    await asyncio.sleep(0.05)
    model.tell(2)
    assert number_of(await anext(second)) == 2
    await second.aclose()
    await settled()
    assert model.stopped


async def test_a_stream_that_is_begun_anew_outlives_the_reader_of_the_former_one(
    kept: KeptStreams, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "STREAM_RESUME_S", 0.01)
    parts, _ = await _begun(kept, model, 1)
    anew = Model()
    second, _ = await _begun(kept, anew, 1)  # over a new link of the same gateway
    with pytest.raises(Cancelled):
        await anext(parts)
    await parts.aclose()  # the old link is lost only now
    await asyncio.sleep(0.05)
    await lost(kept, second)
    anew.tell(2, None)
    assert (model.stopped, len(kept)) == (True, 1)
    assert await rest(kept.resume(comes(1))) == [2]


async def test_another_owner_neither_ends_a_stream_nor_takes_its_name(
    kept: KeptStreams, model: Model
) -> None:
    parts, _ = await _begun(kept, model, 1)
    answer = Model().answer()
    assert kept.keep(asks(owner="you"), answer) is answer
    model.tell(2)
    assert number_of(await anext(parts)) == 2
    await parts.aclose()


async def test_what_tells_readers_of_the_end_does_not_grow_with_their_number(
    kept: KeptStreams, model: Model
) -> None:
    def depth(error: MeshError) -> int:
        return len(traceback.extract_tb(error.__traceback__))

    depths: list[int] = []
    model.tell(1, InferenceFailed("it broke"))
    parts, _ = await some(kept.keep(asks(), model.answer()), 1)
    for _ in range(3):
        again, _ = await some(kept.resume(comes(0)), 1)
        with pytest.raises(Cancelled) as replaced:
            await anext(parts)
        with pytest.raises(InferenceFailed) as broken:
            await anext(again)
        depths += [depth(replaced.value), depth(broken.value)]
        parts, _ = await some(kept.resume(comes(0)), 1)
    assert depths[:2] == depths[2:4] == depths[4:]


async def test_a_runtimes_own_mistake_is_told_to_the_reader(
    kept: KeptStreams, model: Model, caplog: pytest.LogCaptureFixture
) -> None:
    model.tell(1, ValueError("a mistake"))
    parts, _ = await some(kept.keep(asks(), model.answer()), 1)
    with pytest.raises(InferenceFailed, match="its log says why"):
        await asyncio.wait_for(anext(parts), 1)
    assert "a mistake" in caplog.text


async def test_a_stream_for_which_nobody_comes_is_stopped(
    kept: KeptStreams, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "STREAM_RESUME_S", 0.01)
    parts, _ = await _begun(kept, model, 1)
    await lost(kept, parts)
    stopped = [model.stopped]
    await asyncio.sleep(0.05)
    stopped.append(model.stopped)
    assert stopped == [False, True]
    with pytest.raises(NotFound):
        kept.resume(comes(1))


async def test_without_a_reader_the_model_runs_ahead_only_so_far(
    kept: KeptStreams, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_KEPT_ANSWER_BYTES", 4000)
    model.size_bytes = 1000
    parts, _ = await _begun(kept, model, 1)
    await lost(kept, parts)
    model.tell(*range(2, 20), None)
    await settled()
    assert model.given < 8
    assert kept.kept_bytes < 8000
    assert await rest(kept.resume(comes(1))) == list(range(2, 20))


async def test_of_what_was_sent_only_the_newest_is_kept(
    kept: KeptStreams, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_KEPT_ANSWER_BYTES", 4000)
    model.size_bytes = 1000
    parts, came = await _begun(kept, model, *range(1, 21))
    assert came == list(range(1, 21))
    assert kept.kept_bytes < 6000
    await lost(kept, parts)
    with pytest.raises(NotFound):
        kept.resume(comes(5))
    model.tell(None)
    assert await rest(kept.resume(comes(19))) == [20]


async def test_an_error_comes_after_what_was_made_before_it(
    kept: KeptStreams, model: Model
) -> None:
    parts, _ = await _begun(kept, model, 1)
    await lost(kept, parts)
    model.tell(2, InferenceFailed("it broke"))
    await settled()
    again, came = await some(kept.resume(comes(1)), 1)
    assert came == [2]
    with pytest.raises(InferenceFailed, match="it broke"):
        await anext(again)


async def test_what_asks_for_nothing_is_not_kept(kept: KeptStreams, model: Model) -> None:
    answer = model.answer()
    assert kept.keep(InferRequest("m", ()), answer) is answer
    unary = InferResponse("m", 1, part(1))
    assert kept.keep(asks(), unary) is unary
    assert len(kept) == 0


async def test_a_part_of_an_answer_that_began_elsewhere_has_the_numbers_that_follow(
    kept: KeptStreams, model: Model
) -> None:
    model.tell(8, 9, None)
    assert await rest(kept.keep(asks(after=7), model.answer())) == [8, 9]
    assert await rest(kept.resume(comes(8))) == [9]


async def test_there_is_room_for_new_streams_while_old_ones_have_no_reader(
    kept: KeptStreams, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_KEPT_ANSWERS", 2)
    models = [Model() for _ in range(4)]
    for number, model in enumerate(models):
        request = InferRequest("m", (), keep=KeptAs(f"{number}" * 24, "me"))
        model.tell(1)
        response = kept.keep(request, model.answer())
        parts, _ = await some(response, 1)
        if number == 0:
            kept.reader_lost("0" * 24)
            await parts.aclose()
        elif number == 3:  # two are read: this one is only passed on
            model.tell(None)
            assert [each.says_something async for each in parts] == [False]
        assert len(kept) <= 2
    await settled()
    assert models[0].stopped


async def test_a_node_that_stops_tells_its_readers(model: Model) -> None:
    kept = KeptStreams()
    parts, _ = await _begun(kept, model, 1)
    await kept.close()
    with pytest.raises(NotServing):
        await anext(parts)
    assert model.stopped


async def test_a_gateway_asks_the_node_that_keeps_a_stream(kept: KeptStreams, model: Model) -> None:
    class Peers:
        async def resume(self, node: NodeId, keep: KeptAs, timeout_s: float) -> InferResponse:
            assert (node, keep.after, timeout_s) == (OTHER, 1, 5.0)
            raise LinkLost("it is gone")

    finder = StreamFinder(ME, kept, Peers())
    with pytest.raises(LinkLost):
        await finder.resume(OTHER, comes(1), 5.0)
    parts, _ = await _begun(kept, model, 1)
    await lost(kept, parts)
    model.tell(2, None)
    here = await finder.resume(ME, comes(1), 5.0)
    assert here.executor == ME
    assert await rest(here) == [2]
