"""Why a request would go where it would go: every replica with the terms of its score, and the odds of each.

`explain` asks the same `choose` that decides about requests, with draws of its own, so it cannot tell anything else
than what happens. It takes thousands of times as long as a decision, and changes nothing.
"""

from __future__ import annotations

import random
from collections import Counter
from typing import TYPE_CHECKING, Final, NamedTuple

from meshnode.limits import EXPLAINED_DRAWS, MAX_CANDIDATES_SCORED
from meshnode.routing.choice import choose
from meshnode.routing.decisions import Seen, seen

if TYPE_CHECKING:
    from collections.abc import Iterator

    from meshnode.routing.choice import Candidates
    from meshnode.routing.request import RoutedRequest
    from meshnode.types import NodeId

_STRATA: Final = 2 * MAX_CANDIDATES_SCORED
"""Draws that meet each of at most `MAX_CANDIDATES_SCORED` equals."""


class Explained(NamedTuple):
    """One replica that is ready, as a request looks at it.

    Attributes:
        seen: What is believed about it.
        outstanding: This gateway's requests in flight there.
        queued: Requests believed to be there.
        age_s: Seconds since its last word about its load; None if there was none.
        odds: Share of such requests that it would get, 0 to 1.
        dropped: Why it cannot take the request, or empty.
        later: Why others are asked first, or empty.
    """

    seen: Seen
    outstanding: int
    queued: int
    age_s: float | None
    odds: float
    dropped: str
    later: str


class Explanation(NamedTuple):
    """What would become of a request.

    Attributes:
        replicas: Those that are ready: the likeliest first, then by score.
        excluded: Node name and reason of each replica that is not ready.
        reason: Why the likeliest would be picked, as in `Mesh-Route`; empty if nobody would.
        estimated: Whether the odds were counted in draws rather than worked out: of many candidates, each
            request looks at some.
    """

    replicas: tuple[Explained, ...]
    excluded: tuple[tuple[str, str], ...]
    reason: str
    estimated: bool


def explain(candidates: Candidates, request: RoutedRequest, now: float) -> Explanation:
    """Return what would become of a request.

    Args:
        candidates: Who could serve it.
        request: As `Router.plan` would place it (`Router.placed`).
        now: Monotonic seconds.
    """
    is_sampled = len(candidates.ready) > MAX_CANDIDATES_SCORED
    odds, reason = _odds(candidates, request, now, is_sampled=is_sampled)
    replicas = []
    for each in candidates.ready:
        reported_at = each.load.reported_at
        dropped = each.drop_reason(request, now, (), ()) or ""
        replicas.append(
            Explained(
                seen=seen(each, request, now),
                outstanding=each.load.outstanding,
                queued=each.load.queued,
                age_s=max(0.0, now - reported_at) if reported_at > -_FOREVER else None,
                odds=odds.get(each.replica.node, 0.0),
                dropped=dropped,
                later="" if dropped else each.why_later(request, now),
            )
        )
    replicas.sort(key=lambda each: (-each.odds, bool(each.dropped), each.seen.score_ms))
    return Explanation(tuple(replicas), candidates.excluded, reason, is_sampled)


_FOREVER: Final = float("inf")


def _odds(
    candidates: Candidates, request: RoutedRequest, now: float, *, is_sampled: bool
) -> tuple[dict[NodeId, float], str]:
    """Return the odds of each node that may be picked, and the reason why the likeliest would be."""
    found: Counter[NodeId] = Counter()
    reasons: dict[NodeId, str] = {}
    draws = _seeded() if is_sampled else _strata()
    for rng in draws:
        route = choose(candidates, request, now, rng)
        if route is None:
            return {}, ""
        found[route.replica.node] += 1
        reasons[route.replica.node] = route.reason
    likeliest = reasons[found.most_common(1)[0][0]]
    if is_sampled:
        return {node: count / found.total() for node, count in found.items()}, likeliest
    # Equals are drawn from evenly, and the strata have met each of them.
    return dict.fromkeys(found, 1 / len(found)), likeliest


def _seeded() -> Iterator[random.Random]:
    for number in range(EXPLAINED_DRAWS):
        yield random.Random(number)


class _Stratum(random.Random):
    """Draws always the same number."""

    def __init__(self, drawn: float) -> None:
        super().__init__()
        self._drawn = drawn

    def random(self) -> float:
        return self._drawn


def _strata() -> Iterator[random.Random]:
    for number in range(_STRATA):
        yield _Stratum((number + 0.5) / _STRATA)
