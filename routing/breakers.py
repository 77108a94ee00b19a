"""The breakers of a gateway: one per replica, one per node, and how they act together.

What a request's end says is told to the breaker whose business it is: a link that broke is the
node's, whatever was asked of it, so that one lost request of one model spares all others; a model
that raised, or that does not answer, is the replica's. Any answer that came from the node, be it a
refusal, says that the way to it is open. Where most models of a node fail one after the other, it
is the node again (a driver that is gone): then its breaker opens as well.

A `Guard` is the pair that a request to a replica has to pass; it looks like one breaker. The guards
of a model version form a group, which knows how many of them are out of use: failures and
comparison with the others (`meshnode.routing.outliers`) may take out a share at most, since where
most replicas fail it is not they that are to blame. All of it lives as long as the gateway's
process: nothing is stored or told to others. A node's breaker outlasts its replicas, so one that
crashes and comes back again and again is known for that.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING, Final, NamedTuple

from meshnode.errors import Cancelled, DeadlineExceeded, LinkLost, NotServing
from meshnode.routing.breaker import Breaker, BreakerState, Verdict
from meshnode.routing.outliers import TALLY_AGE_S, Tally, outliers

if TYPE_CHECKING:
    import random

    from meshnode.routing.config import RoutingConfig
    from meshnode.types import NodeId

LATE: Final = "late"
"""Cause of a failure: no answer in a time that usually suffices."""

COMPARED_EVERY_S: Final = 1.0
"""How often the replicas of a group are compared: of 1,000 it takes about a millisecond."""

FAILING_MODELS: Final = 2
"""So many models of a node, and more than half of those that are asked there, fail before it is the node."""

_CLOSED = BreakerState.CLOSED
_SILENT = frozenset({"", LATE, Cancelled.code, DeadlineExceeded.code})
_OWN_WORD = frozenset({LinkLost.code, NotServing.code})


class Permit(NamedTuple):
    """What a request takes along, of both breakers that it passed."""

    replica: int
    node: int


class Guard:
    """The breaker of a replica together with that of its node.

    Attributes:
        state: The worse of both; open if any is.
        replica: The replica's own.
        node: Shared by all replicas of the node.
        tally: What became of requests lately.
    """

    __slots__ = ("_group", "_reopened", "node", "replica", "state", "tally")

    def __init__(self, replica: WatchedBreaker, node: WatchedBreaker, group: _Group) -> None:
        self.replica = replica
        self.node = node
        self.tally = Tally(-math.inf)
        self._group = group
        self.state = _CLOSED
        self.refresh()

    def __repr__(self) -> str:
        return f"<Guard {self.replica!r} of node {self.node!r}>"

    @property
    def epoch(self) -> int:
        """Changes of state of both breakers so far."""
        return self.replica.epoch + self.node.epoch

    @property
    def yields(self) -> bool:
        """Whether requests may go there when there is nobody else."""
        return self.replica.yields and self.node.yields

    @property
    def retry_at(self) -> float:
        """When a probe may go out, while one of both is open (monotonic seconds)."""
        return max(each.retry_at for each in self._worse)

    @property
    def cause(self) -> str:
        """Why it opened last: the node's cause before the replica's."""
        return self._worse[0].cause

    @property
    def is_ejected(self) -> bool:
        """Whether failures or comparison took the replica out of use, rather than a lost link or its own word."""
        return self.replica.state is not _CLOSED and self.replica.cause not in _OWN_WORD

    @property
    def _worse(self) -> tuple[Breaker, ...]:
        found = tuple(each for each in (self.node, self.replica) if each.state is not _CLOSED)
        return found or (self.replica,)

    def allows(self, now: float) -> bool:
        """Whether a request may go out now; changes nothing."""
        return self.replica.allows(now) and self.node.allows(now)

    def take(self, now: float) -> Permit:
        """Return the permit of a request that is sent now."""
        return Permit(self.replica.take(now), self.node.take(now))

    def record(
        self,
        permit: Permit,
        verdict: Verdict,
        now: float,
        cause: str = "",
        slowness: float | None = None,
    ) -> bool:
        """Take a request's verdict; False if it says nothing that was not known.

        Args:
            permit: What `take` returned.
            verdict: What the request's end says.
            now: Monotonic seconds.
            cause: Code of the error, or `LATE`; empty without one.
            slowness: Observed over predicted time, where it is known.
        """
        if cause == LinkLost.code:
            self.replica.record(permit.replica, Verdict.NEUTRAL, now)
            return self.node.record(permit.node, verdict, now, cause)
        counts = self.replica.record(permit.replica, verdict, now, cause)
        self.node.record(permit.node, self._of_node(verdict, cause), now, cause)
        if verdict is Verdict.FAILURE and self.replica.state is BreakerState.OPEN:
            self._judge_node(now, cause)
        if verdict in (Verdict.SUCCESS, Verdict.FAILURE):
            self.tally.count(ok=verdict is Verdict.SUCCESS, slowness=slowness)
            self._group.compare(now)
        return counts

    def pardon(self, permit: Permit, now: float) -> None:
        """The failure that was recorded for this permit was the request's own."""
        self.replica.pardon(permit.replica, now)

    def renewed(self, now: float) -> None:
        """The replica announced itself anew."""
        self.replica.renewed(now)

    def refresh(self) -> None:
        """One of both changed its state."""
        states = {self.replica.state, self.node.state}
        for state in (BreakerState.OPEN, BreakerState.HALF_OPEN, _CLOSED):
            if state in states:
                self.state = state
                return

    def _of_node(self, verdict: Verdict, cause: str) -> Verdict:
        """Return what a request's end says of the node: any answer speaks for the way to it."""
        if self.node.cause == LinkLost.code and cause not in _SILENT:
            return Verdict.SUCCESS
        failed_again = verdict is Verdict.FAILURE and self.node.state is not _CLOSED
        return verdict if failed_again or verdict is Verdict.SUCCESS else Verdict.NEUTRAL

    def _judge_node(self, now: float, cause: str) -> None:
        """The replica is out of use: open the node's breaker if most of what it serves is."""
        asked = [each for each in self.node.guards.values() if each.is_ejected or each.tally.ended]
        ejected = sum(each.is_ejected for each in asked)
        if ejected >= FAILING_MODELS and 2 * ejected > len(asked):
            self.node.eject(now, cause)


class _Group:
    """The guards of one model version."""

    __slots__ = ("_compared_at", "_config", "guards")

    def __init__(self, config: RoutingConfig) -> None:
        self._config = config
        self._compared_at = -math.inf
        self.guards: dict[NodeId, Guard] = {}

    def __repr__(self) -> str:
        return f"<_Group {self.ejected} ejected of {len(self.guards)}>"

    @property
    def ejected(self) -> int:
        """How many are out of use by failures or comparison."""
        return sum(each.is_ejected for each in self.guards.values())

    def may_eject(self) -> bool:
        """Whether one more may be taken out of use."""
        allowed = max(1, math.ceil(self._config.ejected_share * len(self.guards)))
        return self.ejected < allowed

    def compare(self, now: float) -> None:
        """Eject those that stand out, at most once per `COMPARED_EVERY_S`."""
        if now - self._compared_at < COMPARED_EVERY_S:
            return
        self._compared_at = now
        used = {node: each for node, each in self.guards.items() if each.state is _CLOSED}
        for node, cause in outliers(
            {node: each.tally for node, each in used.items()}, self._config
        ).items():
            if self.may_eject():
                used[node].replica.eject(now, cause)
        enough = self._config.outlier_requests
        for each in self.guards.values():
            tally = each.tally
            if (
                tally.ended >= enough
                or each.state is not _CLOSED
                or now - tally.since > TALLY_AGE_S
            ):
                tally.begin(now)


class WatchedBreaker(Breaker):
    """Tells the guards that it is part of, by model and version, of each change of its state."""

    __slots__ = ("guards",)

    def __init__(
        self, config: RoutingConfig, rng: random.Random, group: _Group | None = None
    ) -> None:
        super().__init__(config, rng, group.may_eject if group is not None else lambda: True)
        self.guards: dict[tuple[str, int], Guard] = {}

    def _enter(self, state: BreakerState) -> None:
        super()._enter(state)
        for guard in self.guards.values():
            guard.refresh()


class Breakers:
    """All guards, made on first use: as many as the table has replicas, and a breaker per member."""

    def __init__(self, config: RoutingConfig, rng: random.Random) -> None:
        self._config = config
        self._rng = rng
        self._groups: dict[tuple[str, int], _Group] = {}
        self._nodes: dict[NodeId, WatchedBreaker] = {}

    def __repr__(self) -> str:
        states = self.states()
        return f"<Breakers {states[_CLOSED]} closed of {states.total()}>"

    def states(self) -> Counter[BreakerState]:
        """Return how many replicas' guards are in each state."""
        return Counter(
            each.state for group in self._groups.values() for each in group.guards.values()
        )

    def of(self, node: NodeId, model: str, version: int) -> Guard:
        """Return what guards a replica."""
        key = (model, version)
        group = self._groups.get(key)
        guard = group.guards.get(node) if group is not None else None
        if guard is not None:
            return guard
        if group is None:
            group = self._groups[key] = _Group(self._config)
        return self._made(node, key, group)

    def of_node(self, node: NodeId) -> Breaker:
        """Return a node's own breaker."""
        return self._of_node(node)

    def forget(self, node: NodeId, model: str, version: int) -> None:
        """Drop a replica's breaker; its node's stays."""
        key = (model, version)
        group = self._groups.get(key)
        if group is None or group.guards.pop(node, None) is None:
            return
        if not group.guards:
            del self._groups[key]
        self._of_node(node).guards.pop(key, None)

    def forget_node(self, node: NodeId) -> None:
        """Drop a node's breaker, once its replicas' are."""
        self._nodes.pop(node, None)

    def reachable(self, node: NodeId, now: float) -> None:
        """The link to a node is up again."""
        known = self._nodes.get(node)
        if known is not None:
            known.reachable(now)

    def lost(self, node: NodeId, now: float) -> None:
        """The link to a node broke, without a goodbye, whether or not a request was on its way there."""
        known = self._nodes.get(node)
        if known is not None:
            known.record(known.epoch, Verdict.FATAL, now, LinkLost.code)

    def told(
        self, node: NodeId, model: str, version: int, failing: int, made_at: float, now: float
    ) -> None:
        """A replica said how many runs failed in a row there (`Breaker.told`)."""
        group = self._groups.get((model, version))
        guard = group.guards.get(node) if group is not None else None
        if guard is not None:
            guard.replica.told(failing, made_at, now)

    def _made(self, node: NodeId, key: tuple[str, int], group: _Group) -> Guard:
        own = WatchedBreaker(self._config, self._rng, group)
        its_node = self._of_node(node)
        guard = group.guards[node] = Guard(own, its_node, group)
        own.guards[key] = its_node.guards[key] = guard
        return guard

    def _of_node(self, node: NodeId) -> WatchedBreaker:
        found = self._nodes.get(node)
        if found is None:
            found = self._nodes[node] = WatchedBreaker(self._config, self._rng)
        return found
