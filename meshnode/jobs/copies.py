"""The copies of a job: on how many nodes it is, who lacks one, and whether this node's own may go."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meshnode.jobs.effects import JobEffect, Send
from meshnode.jobs.job import Told
from meshnode.types import NodeId

if TYPE_CHECKING:
    from meshnode.jobs.effects import Held
    from meshnode.jobs.keepers import Keepers


class Copies:
    """Compares who has a job with who should."""

    def __init__(self, me: NodeId, keepers: Keepers) -> None:
        """Compare for node `me`, by its view of who should keep a job."""
        self._me = me
        self._keepers = keepers

    def __repr__(self) -> str:
        return f"<Copies as {self._me[:8]} sees them>"

    def count(self, held: Held) -> int:
        """Return on how many live nodes a job is known to be on disk, this one included."""
        return 1 + sum(node in self._keepers.live for node in held.acked)

    def may_accept(self, held: Held, *, has_key: bool) -> bool:
        """Whether so many nodes have a job that its caller may be told so; see `JobBook.may_accept`."""
        if len(self._keepers.live) == 1:
            return True
        first = self._keepers.of(held)[:1]
        first_has_it = not first or first[0] == self._me or first[0] in held.acked
        return self.count(held) > 1 and (first_has_it or not has_key)

    def spread(self, held: Held, keepers: list[NodeId]) -> list[JobEffect]:
        """Send a job to those of these nodes that lack it, and to the node that runs it if that is to know more."""
        targets = dict.fromkeys(keepers)
        runner = self._runner_to_tell(held)
        if runner is not None:
            targets[runner] = None
        effects: list[JobEffect] = []
        for node in targets:
            if node == self._me or node in held.sending or held.acked.get(node) == held.state:
                continue
            held.sending.add(node)
            effects.append(Send(node, held.job.id, held.state))
        return effects

    def _runner_to_tell(self, held: Held) -> NodeId | None:
        """Return the node that runs a job and is to know how it fares: another outcome than its own stops it."""
        runner, end = NodeId(held.state.node), held.state.outcome
        if not self._keepers.is_able(runner):
            return None
        return None if end is not None and end.node == runner else runner

    def is_handed_over(self, held: Held, keepers: list[NodeId]) -> bool:
        """Whether this node's copy may go: the keepers have theirs on disk, and nothing is done here any more."""
        return (
            self._me not in keepers
            and self._keepers.are_enough(keepers)
            and not held.running
            and not held.sending
            and not held.telling
            and all(held.acked.get(node) == held.state for node in keepers)
        )

    def is_settled(self, held: Held, keepers: list[NodeId]) -> bool:
        """Whether nothing is left to do for a job until it expires, as long as the members stay the same."""
        return (
            held.state.ended
            and self._me in keepers
            and (held.job.webhook is None or held.state.told is not Told.WAITING)
            and all(held.acked.get(node) == held.state for node in keepers if node != self._me)
            and self._keepers.are_enough(keepers)
        )
