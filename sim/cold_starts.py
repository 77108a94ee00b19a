"""The requests of a virtual gateway that wait for a replica, as those of a real one (`meshnode.gateway.cold_starts`)."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

from meshnode.errors import Saturated
from meshnode.gateway.cold_starts import patience_s
from meshnode.limits import COLD_GRACE_S, MAX_WAITING_FOR_REPLICAS

if TYPE_CHECKING:
    from meshnode.routing.router import Router
    from meshnode.sim.requests import Request


class _Waiting(NamedTuple):
    request: Request
    began: float


class ColdStarts:
    """Who waits, and for how long; whoever drives it looks every `LOOK_S` while anybody does.

    Attributes:
        learns_until: Until when the gateway may not have heard of all nodes yet (its seconds).
    """

    def __init__(self, router: Router) -> None:
        """Wait for replicas that this router knows."""
        self.learns_until = -math.inf
        self._router = router
        self._waiting: dict[int, _Waiting] = {}  # by number

    def __repr__(self) -> str:
        return f"<ColdStarts: {len(self._waiting)} requests wait>"

    def __len__(self) -> int:
        return len(self._waiting)

    def begins(self, now: float) -> None:
        """The gateway starts, in a mesh that has other nodes: it does not know yet what they serve."""
        self.learns_until = now + COLD_GRACE_S

    def takes(self, request: Request, now: float) -> bool:
        """Keep a request until a replica can be asked; False if one can be already, or there is no hope.

        Raises:
            Saturated: if too many wait already.
        """
        waiting = _Waiting(request, now)
        if self._is_over(waiting, now):
            return False
        if len(self._waiting) >= MAX_WAITING_FOR_REPLICAS:
            raise Saturated("too many requests wait at this gateway for models; try again later")
        self._waiting[request.number] = waiting
        return True

    def over(self, now: float) -> list[tuple[Request, float]]:
        """Return those that wait no longer, with the seconds that they did, in the order of their coming."""
        over = [each for each in self._waiting.values() if self._is_over(each, now)]
        for each in over:
            del self._waiting[each.request.number]
        return [(each.request, now - each.began) for each in over]

    def models(self) -> dict[str, int]:
        """Return how many wait, by model."""
        return dict(Counter(each.request.model for each in self._waiting.values()))

    def drop(self, number: int) -> Request | None:
        """Forget a request, and return it; None if it does not wait."""
        dropped = self._waiting.pop(number, None)
        return dropped.request if dropped is not None else None

    def drop_all(self) -> list[Request]:
        """Forget all that wait, and return them."""
        dropped = [each.request for each in self._waiting.values()]
        self._waiting.clear()
        return dropped

    def _is_over(self, waiting: _Waiting, now: float) -> bool:
        request, began = waiting
        if self._router.is_reachable(request.model, request.version):
            return True
        learns_s = self.learns_until - began
        most_s = patience_s(self._router, request.model, request.version, learns_s)
        return now - began >= min(request.timeout_s, most_s)
