"""Requests that wait for a replica, instead of being refused while one is about to serve.

| what is there | how long a request waits, at most |
|---|---|
| replicas that fetch or load the model | its own time, up to `MAX_COLD_WAIT_S` |
| a deployment, but no replica has begun yet | `COLD_GRACE_S`: the node that it is placed on is about to |
| ready replicas, but no link to any | `COLD_GRACE_S`: links are dialled again at once |
| nothing, at a gateway that has just started | until `COLD_GRACE_S` after its start: it has not heard of all nodes |

Only so many wait at once, and what they wait for is looked at every few milliseconds for all of them together.
Time that a request waits is taken off its own. What is over tells why no replica is ready, as it would have at once.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from typing import TYPE_CHECKING, Final, NamedTuple

from meshnode.errors import MeshError, Saturated
from meshnode.limits import COLD_GRACE_S, MAX_COLD_WAIT_S, MAX_WAITING_FOR_REPLICAS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from meshnode.routing.router import Router

LOOK_S: Final = 0.02
"""Between looks at what requests wait for: little beside the time that a model takes to load."""


class _Look(NamedTuple):
    """What is there of a model version.

    Attributes:
        is_known: Whether somebody has said what it is.
        is_reachable: Whether a replica can be asked.
        patience_s: How long a request waits for that; None for as long as the gateway may not have heard of all nodes.
    """

    is_known: bool
    is_reachable: bool
    patience_s: float | None


class ColdStarts:
    """The requests of one gateway that wait for a replica.

    Attributes:
        waiting: How many there are.
        learns_until: Until when this gateway may not have heard of all nodes yet (monotonic seconds).
    """

    def __init__(self, router: Router, now: Callable[[], float]) -> None:
        """Wait for replicas that this router knows, by this clock."""
        self._router = router
        self._now = now
        self.waiting = 0
        self._looked: asyncio.Future[None] | None = None
        self._seen: dict[tuple[str, int | None], _Look] = {}  # at the last look, for all who wait
        self._models: Counter[str] = Counter()  # of those that wait for a replica
        self.learns_until = -math.inf
        self.on_waits: Callable[[Mapping[str, int]], None] = lambda _: None
        """Told for which models how many requests wait for a replica, when those are other models than before."""

    def __repr__(self) -> str:
        return f"<ColdStarts: {self.waiting} requests wait>"

    def begins(self) -> None:
        """The gateway starts, in a mesh that has other nodes: it does not know yet what they serve."""
        self.learns_until = self._now() + COLD_GRACE_S

    def is_unheard_of(self, model: str, version: int | None) -> bool:
        """Whether this gateway has not heard of a model version, and may just not have heard of it yet."""
        return self.learns_until > self._now() and not self._is_known(model, version)

    async def until_known(self, model: str, version: int | None) -> None:
        """Wait until a model version has been heard of, or what a new gateway hears is heard."""
        is_known = self._is_known(model, version)
        while (
            not is_known
            and self.learns_until > self._now()
            and self.waiting < MAX_WAITING_FOR_REPLICAS
        ):
            is_known = (await self._next_look(model, version)).is_known

    def _is_known(self, model: str, version: int | None) -> bool:
        table = self._router.table
        known = table.versions(model)
        group = table.group(model, version or max(known, default=0))
        return group is not None and group.manifest is not None

    async def until_ready(self, model: str, version: int | None, timeout_s: float) -> float:
        """Wait until a replica can be asked, or there is no hope, and return how long that took in seconds.

        Args:
            model: Public name.
            version: The version to use, or None for any.
            timeout_s: The time that the request has.

        Raises:
            Saturated: if too many wait already.
        """
        began = self._now()
        if self.waiting >= MAX_WAITING_FOR_REPLICAS:
            raise Saturated(
                f"{self.waiting} requests wait at this gateway for models that are not ready yet; try again later"
            )
        seen = self._look(model, version)
        if seen.is_reachable:
            return self._now() - began
        self._begins_to_wait(model)
        try:
            while not seen.is_reachable:
                most_s = seen.patience_s
                if most_s is None:
                    most_s = max(0.0, self.learns_until - began)
                if self._now() - began >= min(timeout_s, most_s):
                    break
                seen = await self._next_look(model, version)
        finally:
            self._waits_no_more(model)
        return self._now() - began

    def _begins_to_wait(self, model: str) -> None:
        self._models[model] += 1
        if self._models[model] == 1:
            self.on_waits(self._models)

    def _waits_no_more(self, model: str) -> None:
        self._models[model] -= 1
        if not self._models[model]:
            del self._models[model]
            self.on_waits(self._models)

    def _look(self, model: str, version: int | None) -> _Look:
        """Return what is there now."""
        router = self._router
        return _Look(
            self._is_known(model, version),
            router.is_reachable(model, version),
            _patience_s(router, model, version),
        )

    async def _next_look(self, model: str, version: int | None) -> _Look:
        """Wait for the next look, and return what is there then: one look for all who wait for the same."""
        looked = self._looked
        if looked is None:
            loop = asyncio.get_running_loop()
            looked = self._looked = loop.create_future()
            loop.call_later(LOOK_S, self._wake)
        self.waiting += 1
        try:
            await asyncio.shield(looked)
        finally:
            self.waiting -= 1
        seen = self._seen.get((model, version))
        if seen is None:
            seen = self._seen[model, version] = self._look(model, version)
        return seen

    def _wake(self) -> None:
        self._seen.clear()
        looked, self._looked = self._looked, None
        if looked is not None and not looked.done():
            looked.set_result(None)


def patience_s(router: Router, model: str, version: int | None, learns_s: float) -> float:
    """Return how long a request may wait for a replica, as things are now, in seconds since it began to.

    Args:
        router: What the gateway knows.
        model: Public name.
        version: The version to use, or None for any.
        learns_s: How long after the request's beginning the gateway may not have heard of all nodes yet.
    """
    known_s = _patience_s(router, model, version)
    return max(0.0, learns_s) if known_s is None else known_s


def _patience_s(router: Router, model: str, version: int | None) -> float | None:
    """Return the same; None for as long as the gateway may not have heard of all nodes yet."""
    table = router.table
    group = table.coming(model, version)
    if group is not None and group.is_loading:
        return MAX_COLD_WAIT_S
    try:
        table.lookup(model, version)
    except MeshError:
        return None if group is None else COLD_GRACE_S
    return COLD_GRACE_S
