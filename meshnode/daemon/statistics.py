"""What a model has done on the whole mesh: asked of every node that serves it, and added up.

A node that does not answer in time counts with what it said last, so that a slow link is not taken for a
model that did less than before. What a node counted is gone when it restarts, or loads the model anew.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, Protocol

import msgspec

from meshnode.errors import LinkLost, MeshError, ModelNotFound, ProtocolError
from meshnode.limits import MAX_STATISTICS_ASKED, MAX_STATISTICS_VERSIONS, STATISTICS_TIMEOUT_S
from meshnode.models.serving.statistics import (
    TIMES,
    BatchStatistics,
    Duration,
    ModelStatistics,
    VersionStatistics,
    summed,
)
from meshnode.net.one_answer import OneAnswer, answer_message
from meshnode.types import ReplicaState
from meshnode.wire.messages import STREAMS, AskStatistics, StatisticsAnswer, VersionCounts

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from meshnode.clock import Clock
    from meshnode.daemon.forwarding import Reach
    from meshnode.net.connection import Connection
    from meshnode.node import Node
    from meshnode.types import NodeId

_COUNTS: Final = msgspec.msgpack.Decoder(tuple[VersionCounts, ...])
_SERVING: Final = (ReplicaState.READY, ReplicaState.PAUSED)


class Counting(Protocol):
    """The models of this node."""

    def statistics(self) -> Mapping[tuple[str, int], VersionStatistics]:
        """Return what each ready version has done so far."""
        ...

    def timer_s(self) -> float:
        """Return the seconds by which they measure."""
        ...


class Statistics:
    """Asks, and answers who asks."""

    def __init__(self, node: Node, reach: Reach, models: Counting, clock: Clock) -> None:
        """Count for a node.

        Args:
            node: Knows who serves what.
            reach: Its links.
            models: What it has counted itself.
            clock: Says when a model last ran, as a date.
        """
        self._node = node
        self._reach = reach
        self._models = models
        self._clock = clock
        # The last answers of nodes, by node and what was asked; forgotten when a node serves none of it.
        self._said: dict[tuple[NodeId, str], tuple[VersionCounts, ...]] = {}

    def __repr__(self) -> str:
        return f"<Statistics of {self._node.me[:8]}>"

    def own(self, model: str = "", version: int = 0) -> tuple[VersionCounts, ...]:
        """Return what this node's versions of a model have done; of all models if its name is empty."""
        now = self._models.timer_s()
        found = [
            _counts(*key, counted, now)
            for key, counted in self._models.statistics().items()
            if (not model or key[0] == model) and (not version or key[1] == version)
        ]
        return tuple(found[:MAX_STATISTICS_VERSIONS])

    def answer(self, connection: Connection, stream: int, ask: AskStatistics) -> None:
        """Answer a node that asks."""
        counts = self.own(ask.model, ask.version)
        meta = STREAMS.encode(StatisticsAnswer(len(counts)))
        connection.reply(stream, meta, [msgspec.msgpack.encode(counts)], end=True)

    async def of(self, model: str | None, version: int | None) -> list[ModelStatistics]:
        """Return what the mesh's versions of a model have done, ascending; of all models if None.

        Raises:
            ModelNotFound: if the mesh does not know the model or the version.
        """
        nodes = self._serving(model, version)
        free = asyncio.Semaphore(MAX_STATISTICS_ASKED)

        async def asked(node: NodeId) -> tuple[VersionCounts, ...]:
            async with free:
                return await self._of_node(node, model or "")

        self._forget(nodes, model or "")
        answers = await asyncio.gather(*map(asked, nodes))
        wall_ms = int(self._clock.wall_s() * 1e3)
        return summed(
            _statistics(each, wall_ms)
            for counts in answers
            for each in counts
            if (model is None or each.model == model) and version in (None, each.version)
        )

    def _serving(self, model: str | None, version: int | None) -> list[NodeId]:
        table = self._node.router.table
        known = table.models()
        if model is not None:
            versions = known.get(model)
            if versions is None:
                raise ModelNotFound(f"no node of this mesh has a model {model!r}")
            if version is not None and version not in versions:
                names = ", ".join(map(str, versions))
                raise ModelNotFound(f"model {model!r} has no version {version}; there is {names}")
            known = {model: versions if version is None else (version,)}
        nodes = {
            replica.node
            for name, versions in known.items()
            for number in versions
            for replica in table.replicas(name, number)
            if replica.state in _SERVING
        }
        return sorted(nodes)

    async def _of_node(self, node: NodeId, model: str) -> tuple[VersionCounts, ...]:
        if node == self._node.me:
            return self.own(model)
        try:
            async with asyncio.timeout(STATISTICS_TIMEOUT_S):
                counts = await self._asked(node, model)
        except (MeshError, TimeoutError):
            return self._said.get((node, model), ())
        self._said[node, model] = counts
        return counts

    async def _asked(self, node: NodeId, model: str) -> tuple[VersionCounts, ...]:
        connection = self._reach.linked(node) or await self._reach.link(node)
        if connection is None:
            raise LinkLost(f"{node} cannot be reached")
        call = OneAnswer(_answer_of)
        stream = connection.open(STREAMS.encode(AskStatistics(model)), [], call)
        try:
            return await call.answer
        finally:
            connection.cancel(stream)

    def _forget(self, nodes: Iterable[NodeId], model: str) -> None:
        """Forget what nodes said that do not serve any more."""
        members = self._node.membership.members
        serving = {*nodes}
        self._said = {
            key: counts
            for key, counts in self._said.items()
            if key[0] in members and (key[1] != model or key[0] in serving)
        }


def _answer_of(meta: bytes, data: memoryview, end: bool) -> tuple[VersionCounts, ...]:
    message = answer_message(meta)
    if not isinstance(message, StatisticsAnswer) or not end:
        raise ProtocolError("a peer answered a question for statistics in an unknown form")
    try:
        counts = _COUNTS.decode(data)
    except msgspec.MsgspecError as error:
        raise ProtocolError(f"a peer answered with statistics that are none: {error}") from error
    return counts[:MAX_STATISTICS_VERSIONS]


def _counts(model: str, version: int, counted: VersionStatistics, now: float) -> VersionCounts:
    idle_ms = (now - counted.last_inference_s) * 1e3 if counted.last_inference_s else -1.0
    return VersionCounts(
        model,
        version,
        idle_ms,
        counted.inference_count,
        counted.execution_count,
        tuple((each.count, each.ns) for each in (getattr(counted, name) for name in TIMES)),
        tuple(
            (
                each.batch_size,
                (each.compute_input.count, each.compute_input.ns),
                (each.compute_infer.count, each.compute_infer.ns),
                (each.compute_output.count, each.compute_output.ns),
            )
            for each in counted.batches
        ),
    )


def _statistics(counts: VersionCounts, wall_ms: int) -> ModelStatistics:
    """Return a node's counts; durations that it does not know are none."""
    told = [Duration(*pair) for pair in counts.times]
    times = dict(zip(TIMES, (*told, *[Duration()] * len(TIMES)), strict=False))
    idle_ms = counts.idle_ms
    return ModelStatistics(
        model=counts.model,
        version=counts.version,
        last_inference_ms=max(0, wall_ms - int(idle_ms)) if 0 <= idle_ms < wall_ms else 0,
        inference_count=counts.inference_count,
        execution_count=counts.execution_count,
        batches=tuple(
            BatchStatistics(rows, *(Duration(*pair) for pair in pairs))
            for rows, *pairs in counts.batches
        ),
        **times,
    )
