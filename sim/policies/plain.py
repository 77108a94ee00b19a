"""The policies that every load balancer offers: random, in turn, and by counts of requests."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meshnode.sim.policies.policy import Policy

if TYPE_CHECKING:
    import random
    from collections.abc import Sequence

    from meshnode.routing.choice import Candidate


class Random(Policy):
    """Any replica, all alike: the `RANDOM` policy of Envoy, `random` of NGINX."""

    def pick(self, able: Sequence[Candidate], now: float, rng: random.Random) -> Candidate:
        """Return any."""
        del now
        return able[int(rng.random() * len(able))]


class WeightedRandom(Policy):
    """Any replica, each in proportion to its capacity: slots over the run time that was measured at its warm-up.

    The weighted random split of NGINX (`random` with weights) and of most service meshes, with
    weights that stand still and are right: what people reach who tune them by hand. What replicas report
    is no such weight: of runs that are long, the short ones end and are averaged first, so that slow
    replicas seem up to twice as fast for their first seconds. It counts only where nothing was measured.
    """

    def pick(self, able: Sequence[Candidate], now: float, rng: random.Random) -> Candidate:
        """Return one, by capacity."""
        del now
        weights = [
            each.load.slots / (each.replica.service_ms or each.load.service_ms) for each in able
        ]
        return rng.choices(able, weights)[0]


class RoundRobin(Policy):
    """All replicas in turn; each gateway begins at a random one, as Envoy's `ROUND_ROBIN` does."""

    def __init__(self) -> None:
        self._turn: int | None = None

    def pick(self, able: Sequence[Candidate], now: float, rng: random.Random) -> Candidate:
        """Return the next one."""
        del now
        turn = int(rng.random() * len(able)) if self._turn is None else self._turn + 1
        self._turn = turn
        return able[turn % len(able)]


class LeastLoaded(Policy):
    """The replica with the fewest requests per slot, as far as its gateway knows.

    Envoy's `LEAST_REQUEST` with `FULL_SCAN`, NGINX's `least_conn`: all are looked at, equals are drawn
    at random. Those count the gateway's own requests only; here the load that a replica reported last
    counts too, so that several gateways know of each other's requests, late. How fast a replica is
    plays no part.
    """

    def pick(self, able: Sequence[Candidate], now: float, rng: random.Random) -> Candidate:
        """Return one of those with the fewest."""
        del now
        shares = [each.load.queued / each.load.slots for each in able]
        least = min(shares)
        equal = [each for each, share in zip(able, shares, strict=True) if share == least]
        return equal[int(rng.random() * len(equal))]


class TwoChoices(Policy):
    """Of two random replicas the one that has fewer of this gateway's requests.

    Mitzenmacher, "The power of two choices in randomized load balancing" (IEEE TPDS 12(10), 2001);
    with the gateway's own count as the load it is Envoy's `LEAST_REQUEST` with its default choice of
    two, and `random two least_conn` of NGINX.
    """

    def pick(self, able: Sequence[Candidate], now: float, rng: random.Random) -> Candidate:
        """Return the better of two."""
        del now
        one, other = two_of(able, rng)
        return one if one.load.outstanding <= other.load.outstanding else other


def two_of(able: Sequence[Candidate], rng: random.Random) -> tuple[Candidate, Candidate]:
    """Return two different ones of at least two, drawn uniformly, in random order."""
    first = int(rng.random() * len(able))
    second = int(rng.random() * (len(able) - 1))
    return able[first], able[second + (second >= first)]
