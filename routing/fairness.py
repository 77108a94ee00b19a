"""Who gets the places that an overloaded gateway has: each caller its share, and within it the more urgent first.

    admit      the places that are for this priority are not all taken
    admit      they are, but the caller has fewer than its share: whoever has more waits until it has less
    refuse     otherwise

Each priority may use a part of the limit (`PARTS`), so that the requests of a lower one are refused while those of
a higher one still come in. That decides about places to which nobody has a claim: a caller's share is its own whatever
the others ask for, since a priority is a word in a request, and who says the loudest one must not have everything. Within
its share a caller's urgent requests come first, too: only what is as urgent counts against it.

Shares are in proportion to the callers' weights, among those who have requests here at the moment; what one of them
leaves of its share is shared by the others. So whoever sends more than its share uses what others leave (the limit is
never left idle), and is the one that is refused when they come. Places that are taken are never taken away: a caller
under its share is let in beyond the limit, and what is too much is gone after the next answers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from meshnode.types import Priority

if TYPE_CHECKING:
    from collections.abc import Sequence

PARTS: Final[tuple[float, ...]] = (0.6, 0.85, 1.0)
"""Of the limit, by priority: low, normal, high. The limit follows from how long answers take, so with requests of
one priority only, as many are in flight as with any other part. Of its share a caller has the same part for what it
calls low itself; for its usual requests all of it, as soon as others have more urgent ones."""

_LEVELS: Final = len(Priority)
_NOTHING: Final = (0,) * _LEVELS


class _Caller:
    """One caller with requests here."""

    __slots__ = ("running", "share", "total")

    def __init__(self, share: int) -> None:
        self.share = share
        self.running = [0] * _LEVELS
        self.total = 0


class FairShares:
    """The requests of one model that are in flight at one gateway, by caller and priority.

    Attributes:
        in_flight: All of them.
    """

    __slots__ = ("_by_priority", "_callers", "in_flight")

    def __init__(self) -> None:
        """Begin with nobody."""
        self.in_flight = 0
        self._callers: dict[str, _Caller] = {}
        self._by_priority = [0] * _LEVELS

    def __repr__(self) -> str:
        return f"<FairShares {self.in_flight} of {len(self._callers)} callers>"

    def may_enter(self, caller: str, share: int, priority: Priority, limit: float) -> bool:
        """Whether a request may come in.

        Args:
            caller: Whose it is.
            share: That caller's weight, at least 1.
            priority: Of the request.
            limit: Requests that should be in flight at most.
        """
        if self.in_flight < PARTS[priority] * limit:
            return True
        known = self._callers.get(caller)
        running = known.running if known is not None else _NOTHING
        places = self._part(running, priority) * limit
        return sum(running[priority:]) < self._share(caller, share, places)

    def _part(self, running: Sequence[int], priority: Priority) -> float:
        """Return of which part of the limit a caller has a share who has so many running by priority."""
        if priority is Priority.LOW:
            return PARTS[priority]
        others = [each for each in Priority if self._by_priority[each] > running[each]]
        return PARTS[max([priority, *others])]

    def _share(self, caller: str, share: int, places: float) -> float:
        """Return how many of these places are a caller's: each has as many by its weight, or what it takes of them."""
        others = sorted(
            (each.total / each.share, each.total, each.share)
            for name, each in self._callers.items()
            if name != caller
        )
        weights = share + sum(weight for _, _, weight in others)
        for by_weight, total, weight in others:
            if by_weight >= places / weights:
                break
            places -= total
            weights -= weight
        return places * share / weights

    def enter(self, caller: str, share: int, priority: Priority) -> None:
        """Count a request that came in."""
        known = self._callers.get(caller)
        if known is None:
            known = self._callers[caller] = _Caller(share)
        known.share = share
        known.running[priority] += 1
        known.total += 1
        self._by_priority[priority] += 1
        self.in_flight += 1

    def leave(self, caller: str, priority: Priority) -> None:
        """Count the end of a request that came in."""
        known = self._callers[caller]
        known.running[priority] -= 1
        known.total -= 1
        if not known.total:
            del self._callers[caller]
        self._by_priority[priority] -= 1
        self.in_flight -= 1
