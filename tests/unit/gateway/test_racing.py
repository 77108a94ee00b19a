"""Tries side by side, in tasks of a real loop: who answers first is heard, and nobody else is left."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from meshnode.errors import InvalidRequest, LinkLost, NoReplica
from meshnode.gateway.racing import Race
from meshnode.routing.config import RoutingConfig
from meshnode.types import InferRequest, InferResponse, NodeId, ResponsePart
from tests.unit.gateway.conftest import PEERS
from tests.unit.gateway.test_pipeline import BETA, GAMMA, ask, outstanding

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from meshnode.gateway.pipeline import Pipeline
    from meshnode.routing.router import Router

SOON = RoutingConfig(first_byte_floor_s=0.01, first_byte_factor=0.0)


class Peers:
    """Peers that each answer, fail or hang when the test says so; the first that is asked hangs."""

    def __init__(self) -> None:
        self.asked: list[NodeId] = []
        self.cancelled: list[NodeId] = []
        self.gates: dict[int, asyncio.Future[Any]] = {}
        self.came = asyncio.Event()
        self.streams_ended = 0

    async def infer(self, node: NodeId, request: InferRequest) -> InferResponse:
        gate = asyncio.get_running_loop().create_future()
        self.gates[len(self.asked)] = gate
        self.asked.append(node)
        self.came.set()
        try:
            answer = await gate
        except asyncio.CancelledError:
            self.cancelled.append(node)
            raise
        if answer == "stream":
            return InferResponse(request.model, request.version or 0, self._parts())
        return InferResponse(request.model, request.version or 0, ResponsePart(()))

    async def _parts(self) -> AsyncIterator[ResponsePart]:
        try:
            yield ResponsePart(())
            yield ResponsePart(())
        finally:
            self.streams_ended += 1

    async def gate(self, number: int) -> asyncio.Future[Any]:
        """Return what lets the so manieth try end, once it is out."""
        async with asyncio.timeout(5):
            while number not in self.gates:
                self.came.clear()
                await self.came.wait()
        return self.gates[number]


@pytest.fixture
def slow(pipeline: Pipeline, router: Router, serve: Any) -> Peers:
    """Two peers, of which the first that is asked is late after 10 ms."""
    router.config = SOON
    serve("beta")
    serve("gamma")
    peers = Peers()
    pipeline._sending._peers = peers
    return peers


async def test_the_second_try_answers_and_the_first_is_cancelled(
    pipeline: Pipeline, slow: Peers, router: Router
) -> None:
    asking = asyncio.ensure_future(pipeline.infer(ask()))
    (await slow.gate(1)).set_result("whole")
    answered = await asking
    assert set(slow.asked) == {BETA, GAMMA}
    assert slow.cancelled == [slow.asked[0]]
    assert "attempts=2; reason=hedge" in answered.route_header
    assert outstanding(router, BETA, GAMMA) == 0
    assert pipeline.in_flight == 0


async def test_the_first_try_answers_after_all_and_the_second_is_cancelled(
    pipeline: Pipeline, slow: Peers, router: Router
) -> None:
    asking = asyncio.ensure_future(pipeline.infer(ask()))
    await slow.gate(1)
    slow.gates[0].set_result("whole")
    await asking
    await asyncio.sleep(0)
    assert slow.cancelled == [slow.asked[1]]
    assert outstanding(router, BETA, GAMMA) == 0


async def test_both_answer_in_the_same_turn_of_the_loop_and_one_is_heard(
    pipeline: Pipeline, slow: Peers, router: Router
) -> None:
    for first, second in [(0, 1), (1, 0)]:
        slow.gates.clear()
        slow.asked.clear()
        asking = asyncio.ensure_future(pipeline.infer(ask()))
        await slow.gate(1)
        slow.gates[first].set_result("whole")
        slow.gates[second].set_result("whole")
        await asking
        assert outstanding(router, BETA, GAMMA) == 0


async def test_a_stream_that_lost_by_a_hair_is_ended(pipeline: Pipeline, slow: Peers) -> None:
    asking = asyncio.ensure_future(pipeline.infer(ask()))
    await slow.gate(1)
    for gate in slow.gates.values():
        gate.set_result("stream")
    parts = [part async for part in (await asking).response]
    assert len(parts) == 2
    for _ in range(5):
        await asyncio.sleep(0)
    assert slow.streams_ended + len(slow.cancelled) == 2


async def test_a_first_try_that_fails_leaves_the_second_running(
    pipeline: Pipeline, slow: Peers
) -> None:
    asking = asyncio.ensure_future(pipeline.infer(ask()))
    await slow.gate(1)
    slow.gates[0].set_exception(LinkLost("gone"))
    await asyncio.sleep(0.01)
    assert not asking.done()
    slow.gates[1].set_result("whole")
    assert "link_lost" in (await asking).route_header


async def test_a_second_try_that_fails_leaves_the_first_running(
    pipeline: Pipeline, slow: Peers
) -> None:
    asking = asyncio.ensure_future(pipeline.infer(ask()))
    (await slow.gate(1)).set_exception(LinkLost("gone"))
    await asyncio.sleep(0.01)
    assert not asking.done()
    slow.gates[0].set_result("whole")
    await asking


async def test_a_defect_in_the_second_try_counts_as_its_failure(
    pipeline: Pipeline, slow: Peers, router: Router
) -> None:
    """Else it would be out for ever, and the request would wait for it once the first has failed."""
    said: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, told: said.append(told["exception"]))
    asking = asyncio.ensure_future(pipeline.infer(ask()))
    (await slow.gate(1)).set_exception(ZeroDivisionError("a defect"))
    await asyncio.sleep(0.01)
    slow.gates[0].set_exception(LinkLost("gone"))
    with pytest.raises(NoReplica, match="link_lost"):
        await asking
    assert [type(each) for each in said] == [ZeroDivisionError]
    assert outstanding(router, BETA, GAMMA) == 0


@pytest.mark.parametrize("ended", ["hung up", "answered"])
@pytest.mark.parametrize("turns", range(4))
async def test_a_second_try_that_fails_just_when_it_is_over_is_told_to_nobody(
    ended: str, turns: int, pipeline: Pipeline, slow: Peers, router: Router
) -> None:
    said: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, told: said.append(told["exception"]))
    asking = asyncio.ensure_future(pipeline.infer(ask()))
    gate = await slow.gate(1)
    if ended == "answered":
        slow.gates[0].set_result("whole")
    for _ in range(turns):
        await asyncio.sleep(0)
    if not gate.done():  # else it was cancelled in time
        gate.set_exception(LinkLost("gone"))
    if ended == "hung up":
        asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    await asyncio.sleep(0.01)
    assert said == []
    assert outstanding(router, BETA, GAMMA) == 0


async def test_both_fail_and_the_client_hears_why(
    pipeline: Pipeline, slow: Peers, router: Router
) -> None:
    asking = asyncio.ensure_future(pipeline.infer(ask()))
    (await slow.gate(1)).set_exception(LinkLost("gone"))
    slow.gates[0].set_exception(LinkLost("gone"))
    with pytest.raises(NoReplica, match="link_lost"):
        await asking
    assert outstanding(router, BETA, GAMMA) == 0


async def test_a_mistake_of_the_caller_ends_all_tries(pipeline: Pipeline, slow: Peers) -> None:
    asking = asyncio.ensure_future(pipeline.infer(ask()))
    await slow.gate(1)
    slow.gates[0].set_exception(InvalidRequest("shape"))
    with pytest.raises(InvalidRequest):
        await asking
    await asyncio.sleep(0)
    assert slow.cancelled == [slow.asked[1]]


@pytest.mark.parametrize("answered_just_then", [False, True])
async def test_a_client_that_hangs_up_ends_all_tries(
    answered_just_then: bool, pipeline: Pipeline, slow: Peers, router: Router
) -> None:
    asking = asyncio.ensure_future(pipeline.infer(ask()))
    gate = await slow.gate(1)
    if answered_just_then:
        gate.set_result("stream")
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    for _ in range(5):
        await asyncio.sleep(0)
    assert len(slow.cancelled) + slow.streams_ended == 2
    assert outstanding(router, BETA, GAMMA) == 0
    assert pipeline.in_flight == 0


async def test_a_race_says_how_many_run() -> None:
    assert repr(Race("plan", None, None, None, None)) == "<Race of 0 beside the first: 'plan'>"  # type: ignore[arg-type]  # nothing of it is used
    assert PEERS["beta"] == BETA
