"""Loads that wait for room: placement promises memory once, but what moves away is still there for a while.

A replica that is placed elsewhere serves on until it has been handed over (`meshnode.reconcile`), and another one may be
placed into its memory meanwhile. That one waits for it to go, if the node has no room for both, and not for longer than
`ROOM_WAIT_S`: two nodes that exchange replicas would wait for each other. What is loaded then all the same is the
business of whoever looks after the machine's memory.

Only replicas of other deployments are waited for: those of the same one go when the new ones serve.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from meshnode.owner_limits import load_estimate_bytes
from meshnode.routing.placement import Charge

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from meshnode.deployments import Deployments, Known, Target
    from meshnode.fleet import Fleet
    from meshnode.reconcile import OwnReplica
    from meshnode.types import NodeId

ROOM_WAIT_S: Final = 60.0
"""Seconds for which a load waits at most: a handover takes some, and the load of the replica elsewhere before it."""

_Key = tuple[str, int]


class LoadingRoom:
    """Which loads of this node wait, and since when."""

    def __init__(
        self,
        me: NodeId,
        own: Mapping[_Key, OwnReplica],
        deployments: Deployments,
        fleet: Fleet,
    ) -> None:
        """Begin with none.

        Args:
            me: This node.
            own: Its replicas by (model, version); a live view.
            deployments: What is wanted.
            fleet: Where it is placed, and what it takes.
        """
        self._me = me
        self._own = own
        self._deployments = deployments
        self._fleet = fleet
        self._since: dict[_Key, float] = {}  # bounded by what is placed here

    def __repr__(self) -> str:
        return f"<LoadingRoom of {self._me[:8]}: {len(self._since)} wait>"

    @property
    def waiting(self) -> set[str]:
        """The models that wait: one that goes may have made room."""
        return {model for model, _ in self._since}

    def wait_until(self, known: Known, target: Target, now: float) -> float | None:
        """Return when to look at a load again that has no room yet, or None if it may begin.

        Args:
            known: What is deployed.
            target: The version of it.
            now: Monotonic seconds.
        """
        key = (target.manifest.model, target.manifest.version)
        since = self._since.get(key, now)
        if since + ROOM_WAIT_S <= now or not self._must_wait(known, target):
            self._since.pop(key, None)
            return None
        self._since[key] = since
        return since + ROOM_WAIT_S

    def forget(self, model: str) -> None:
        """Take that nothing of a model is to be loaded now."""
        for key in [key for key in self._since if key[0] == model]:
            del self._since[key]

    def _must_wait(self, known: Known, target: Target) -> bool:
        """Whether there is room for a load only without what is on its way out."""
        new = self._fleet.charge(self._me, target, known.deployment)
        leaving = [*self._charges(known.deployment.name, leaving=True)]
        if not leaving:
            return False
        staying = [new, *self._charges(known.deployment.name, leaving=False)]
        return self._fits(staying) and not self._fits([*staying, *leaving])

    def _charges(self, loads: str, *, leaving: bool) -> Iterable[Charge]:
        """Yield what the replicas here take that stay, or that leave; those of the model that loads stay."""
        for (model, version), replica in self._own.items():
            known = self._deployments.get(model)
            placement = None if known is None else self._fleet.placement_of(known, version)
            placed = placement is not None and self._me in placement.hosts
            if (replica.deployed and not placed and model != loads) is not leaving:
                continue
            if known is not None and version in known.versions:
                chosen = self._fleet.chosen(self._me, known, version)
                yield self._fleet.charge(self._me, chosen, known.deployment)
            else:
                yield Charge(load_estimate_bytes(replica.manifest.size_bytes))

    def _fits(self, charges: Iterable[Charge]) -> bool:
        budget = self._fleet.budget(self._me)
        memory_bytes = accelerator_bytes = 0
        for each in charges:
            memory_bytes += each.memory_bytes
            accelerator_bytes += each.accelerator_bytes
        in_memory = not budget.memory_bytes or memory_bytes <= budget.memory_bytes
        return in_memory and accelerator_bytes <= sum(budget.accelerators)
