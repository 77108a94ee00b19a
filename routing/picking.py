"""The last step of a decision: one of the replicas whose scores are about equal.

Scores within 1.25 of the lowest count as equal, as they are estimates; a request with a deadline takes none of them
that is not expected to keep it. Among equals:

1. the replica that has the request's session; if none of them has it, the first in the session's own order of
   nodes, which is the same at every gateway;
2. those that have seen how the input begins (`meshnode.routing.stickiness`);
3. those that cost least;
4. chance, so that many gateways with the same news do not all run to the same replica.

So neither a session, a beginning that all inputs share nor a price makes a hot spot: a replica that fills up is soon
not among the equals.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from meshnode.routing.rendezvous import weight
from meshnode.routing.stickiness import session_key

if TYPE_CHECKING:
    import random
    from collections.abc import Sequence

    from meshnode.routing.choice import Candidate
    from meshnode.routing.request import RoutedRequest

NEAR_LOWEST: Final = 1.25
"""Scores up to this multiple of the lowest count as equal."""


def pick(
    scores: Sequence[float],
    eligible: Sequence[Candidate],
    request: RoutedRequest,
    rng: random.Random,
) -> tuple[int, str]:
    """Return the place of the replica that gets the request, and the reason as `Route` has it.

    Args:
        scores: Expected time of each in milliseconds; at least one.
        eligible: The replicas, in the same order.
        request: What is asked for, and what time is left for it.
        rng: Draws among equals.
    """
    if len(scores) == 1:
        return 0, "only-candidate"
    lowest = min(scores)
    bound = max(lowest, NEAR_LOWEST * lowest)  # below zero, the multiple is the lesser
    remaining_ms = request.timeout_s * 1000
    if lowest <= remaining_ms < bound:
        bound = remaining_ms
    near = [index for index, each in enumerate(scores) if each <= bound]
    if len(near) > 1:
        near = _preferred(near, eligible, request)
    index = near[int(rng.random() * len(near))] if len(near) > 1 else near[0]
    return index, "lowest-expected" if scores[index] == lowest else "near-lowest"


def _preferred(near: list[int], eligible: Sequence[Candidate], request: RoutedRequest) -> list[int]:
    """Return those of equals that something speaks for; all of them if nothing does."""
    session = request.hints.session
    if session:
        home = request.home
        held = [index for index in near if eligible[index].replica.node == home]
        if held:
            return held
        key = session_key(request.model, session)
        return [max(near, key=lambda index: weight(key, eligible[index].replica.node))]
    if request.saves:
        near = [index for index in near if eligible[index].replica.node in request.saves] or near
    costs = [eligible[index].conditions.cost for index in near]
    least = min(costs)
    if least == max(costs):
        return near
    return [index for index, cost in zip(near, costs, strict=True) if cost == least]
