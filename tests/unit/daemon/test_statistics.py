"""Statistics of the whole mesh: asked of those who serve, added up, and kept where a node is silent."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import msgspec
import pytest

from meshnode.daemon import statistics
from meshnode.daemon.statistics import Statistics
from meshnode.errors import LinkLost, ModelNotFound
from meshnode.models.serving.statistics import BatchStatistics, Duration, VersionStatistics
from meshnode.types import NodeId, ReplicaState
from meshnode.wire.messages import (
    STREAMS,
    AskStatistics,
    Failure,
    FileStates,
    StatisticsAnswer,
    VersionCounts,
)

if TYPE_CHECKING:
    from meshnode.clock import Clock
    from meshnode.daemon.forwarding import Reach
    from meshnode.net.connection import Connection
    from meshnode.node import Node

ME, BETA, GAMMA = (NodeId(letter * 32) for letter in "abc")
COUNTS = VersionCounts("digits", 1, 500.0, 10, 5, ((10, 1000),), ((2, (5, 1), (5, 2), (5, 3)),))


class Models:
    """What this node has counted: two runs at second 8 of its timer, which shows 10."""

    def timer_s(self) -> float:
        return 10.0

    def statistics(self) -> dict[tuple[str, int], VersionStatistics]:
        two, none = Duration(2, 20), Duration()
        counted = VersionStatistics(
            last_inference_s=8.0, inference_count=2, execution_count=2, success=two, fail=none, queue=none,
            compute_input=none, compute_infer=two, compute_output=none, cache_hit=none, cache_miss=none,
            batches=(BatchStatistics(1, none, two, none),),
        )  # fmt: skip
        return {("digits", 1): counted, ("other", 1): counted}


class Link:
    """Answers each question with what the test says."""

    def __init__(self, answer: Any = None) -> None:
        self.answer = answer
        self.asked: list[AskStatistics] = []
        self.replies: list[tuple[bytes, list[bytes]]] = []

    def open(self, meta: bytes, _data: Any, handler: Any) -> int:
        self.asked.append(STREAMS.decode(meta))
        if isinstance(self.answer, LinkLost):
            handler.lost(self.answer)
        elif isinstance(self.answer, tuple):
            data = memoryview(msgspec.msgpack.encode(self.answer))
            handler.part(STREAMS.encode(StatisticsAnswer(len(self.answer))), data, True)
        elif self.answer is not None:
            handler.part(STREAMS.encode(self.answer), memoryview(b""), True)
        return 1

    def cancel(self, _stream: int) -> None: ...

    def reply(self, _stream: int, meta: bytes, data: list[bytes], *, end: bool) -> None:
        assert end
        self.replies.append((meta, data))


class World:
    """A mesh in which this node and others serve `digits`."""

    def __init__(self, *serving: NodeId) -> None:
        self.links: dict[NodeId, Link] = {}
        self.serving = serving
        self.reach = SimpleNamespace(linked=self.links.get, link=self._link)
        table = SimpleNamespace(models=lambda: {"digits": (1,)}, replicas=self._replicas)
        self.node = SimpleNamespace(
            me=ME,
            router=SimpleNamespace(table=table),
            membership=SimpleNamespace(members={ME: 1, BETA: 1, GAMMA: 1}),
        )
        clock = SimpleNamespace(wall_s=lambda: 1000.0)
        self.statistics = Statistics(
            cast("Node", self.node), cast("Reach", self.reach), Models(), cast("Clock", clock)
        )

    async def _link(self, _node: NodeId) -> None:
        return None

    def _replicas(self, _model: str, _version: int) -> list[Any]:
        return [SimpleNamespace(node=each, state=ReplicaState.READY) for each in self.serving]


async def test_what_all_nodes_counted_is_added_up() -> None:
    world = World(ME, BETA)
    link = world.links[BETA] = Link((COUNTS, msgspec.structs.replace(COUNTS, model="other")))
    (total,) = await world.statistics.of("digits", 1)
    assert (total.inference_count, total.execution_count) == (12, 7)
    assert total.success == Duration(12, 1020)
    assert total.fail == Duration()  # of which the other node said nothing
    assert total.last_inference_ms == 999_500
    assert [each.batch_size for each in total.batches] == [1, 2]
    assert link.asked == [AskStatistics("digits")]
    assert {each.model for each in await world.statistics.of(None, None)} == {"digits", "other"}


async def test_a_silent_node_counts_with_what_it_said_last(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(statistics, "STATISTICS_TIMEOUT_S", 0.01)
    world = World(BETA)
    world.links[BETA] = Link((COUNTS,))
    before = await world.statistics.of("digits", None)
    for answer in (None, LinkLost("gone"), Failure("usage", "what?"), FileStates(1)):
        world.links[BETA].answer = answer
        assert await world.statistics.of("digits", None) == before
    del world.links[BETA]
    assert await world.statistics.of("digits", None) == before
    world.serving = ()
    assert await world.statistics.of("digits", None) == []
    world.serving = (BETA,)
    assert await world.statistics.of("digits", None) == []  # it was forgotten


async def test_unknown_models_and_versions_are_told() -> None:
    world = World(ME)
    with pytest.raises(ModelNotFound, match="no node of this mesh"):
        await world.statistics.of("nothing", None)
    with pytest.raises(ModelNotFound, match="no version 2; there is 1"):
        await world.statistics.of("digits", 2)


async def test_a_node_answers_for_its_own_models_only() -> None:
    world = World(ME)
    link = Link()
    world.statistics.answer(cast("Connection", link), 1, AskStatistics("digits", 1))
    ((meta, data),) = link.replies
    assert STREAMS.decode(meta) == StatisticsAnswer(1)
    (counts,) = msgspec.msgpack.decode(data[0], type=tuple[VersionCounts, ...])
    assert (counts.model, counts.idle_ms, counts.times[0]) == ("digits", 2000.0, (2, 20))
    await asyncio.sleep(0)
