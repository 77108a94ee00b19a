"""Which nodes should keep a job now: those that rank first for it, live, stay, and could take a copy when last asked."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meshnode.jobs.ranking import Ranking
from meshnode.limits import JOB_COPIES, JOB_UNABLE_S
from meshnode.types import NodeId

if TYPE_CHECKING:
    from collections.abc import Collection

    from meshnode.jobs.effects import Held


class Keepers:
    """The live nodes as one of them ranks them for jobs.

    Attributes:
        live: All that live, this one included.
    """

    def __init__(self, me: NodeId) -> None:
        """Begin alone."""
        self._me = me
        self.live = frozenset({me})
        self._ranking = Ranking(self.live)
        self._unable: dict[NodeId, int] = {}  # until when, in ms

    def __repr__(self) -> str:
        return f"<Keepers: {len(self.live)} nodes live, {len(self._unable)} are passed over>"

    @property
    def staying(self) -> frozenset[NodeId]:
        """The nodes that keep jobs at all: those that live and are not to be emptied, unless all are."""
        return self._ranking.live

    def follow(
        self, live: Collection[NodeId], leaving: Collection[NodeId]
    ) -> frozenset[NodeId] | None:
        """Take who lives now, and who of them is to be emptied; return who is gone, or None if nothing has changed."""
        fresh = frozenset(live) | {self._me}
        staying = fresh.difference(leaving) or fresh
        if fresh == self.live and staying == self.staying:
            return None
        gone = self.live - fresh
        for node in gone:
            self._unable.pop(node, None)
        self.live = fresh
        self._ranking = Ranking(staying)
        return gone

    def pass_over(self, node: NodeId, now_ms: int) -> None:
        """A node could not be reached, or takes no jobs: it keeps none for a while."""
        self._unable[node] = now_ms + round(1000 * JOB_UNABLE_S)

    def heard(self, node: NodeId) -> None:
        """A node has shown that it takes jobs."""
        self._unable.pop(node, None)

    def tick(self, now_ms: int) -> None:
        """Pass nobody over any more whose time is over."""
        for node in [each for each, until_ms in self._unable.items() if until_ms <= now_ms]:
            del self._unable[node]

    def is_able(self, node: NodeId) -> bool:
        """Whether a node lives and is not passed over."""
        return node in self.live and node not in self._unable

    def first(self, job_id: str, count: int = JOB_COPIES) -> list[NodeId]:
        """Return the nodes that should keep a job, the one that runs it first, whether they can or not."""
        return self._ranking.first(job_id, count)

    def now(self, job_id: str) -> list[NodeId]:
        """Return the nodes that should keep a job while some cannot."""
        return self._ranking.first(job_id, JOB_COPIES, self._unable)

    def of(self, held: Held) -> list[NodeId]:
        """Return the nodes that should keep a job and can, the one that runs it first."""
        job_id, passed = held.job.id, held.state.passed
        if not passed:
            return self.now(job_id)
        found = self._ranking.first(job_id, JOB_COPIES, {*self._unable, *map(NodeId, passed)})
        # What is left of places goes to those that cannot run it: they may have room for a copy.
        others = self._ranking.first(job_id, JOB_COPIES, {*self._unable, *found})
        return [*found, *others[: JOB_COPIES - len(found)]]

    def worth_a_try(self, held: Held, keepers: list[NodeId]) -> list[NodeId]:
        """Return nodes that are passed over, once each: a caller waits, and they may have come back."""
        if len(keepers) >= JOB_COPIES:
            return []
        left = [
            node for node in self._ranking.first(held.job.id, 2 * JOB_COPIES)
            if node not in keepers and node not in held.tried
        ]  # fmt: skip
        held.tried.update(left)
        return left

    def are_enough(self, keepers: list[NodeId]) -> bool:
        """Whether these are as many as a job should have among the nodes that keep jobs."""
        return len(keepers) == min(JOB_COPIES, len(self.staying))
