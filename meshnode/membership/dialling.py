"""Who is dialled when: the links that are wanted, and the way back after everything else failed.

A *target* is a member (or a node known from disk) or a seed's address. A target has at most one
attempt, which is either *waiting* for its timer or *under way* at the driver::

    wanted ──> under way ── LinkUp ──────────────> done (forgotten)
                  │  ▲
      DialFailed  ▼  │ DialDue(token)
               waiting, 1 s, 2 s, 4 s … 30 s with jitter; forgotten once it is wanted no more

What is wanted:

| target | wanted | first dial |
|---|---|---|
| a live member without a link | if `linking.py` says so | the smaller NodeId at once, the greater after `dial_patience_s` |
| one that only this node wants | likewise | at once: the other side will not dial |
| one whose last link this node dialled | likewise | at once: the other side may not be able to, as into a home |
| a member that this node just came to suspect | never | at once, without retries: TCP may pass where UDP does not |
| a seed, a node known from disk | while no other member is live | at once |
| a dead member, a node known from disk | one of them per `reconnect_interval_s`, at random | no retries |
| a member that left | one of them in every `DEPARTED_ROUNDS`th such round, beside the dead one | no retries |
| a lost member: it died, and the table has forgotten it | one of them in such a round too | no retries |
| a seed that leads to no live member, while others are live | likewise | no retries |

A link that goes down soon after it came up counts as a failed dial: a peer that takes links only to
part with them (it holds this node for a copy, say) is not dialled several times a second.

One dead member per round is enough to heal a partition: the first link across it carries both views,
and everyone refutes. A member that left is dialled too: it may be back without a way to dial anybody,
like a box in a cloud after an upgrade, all of whose peers are behind NAT. It mostly is not, so it is
dialled less often, and however many have left, the dead wait no longer for their turn.

The table forgets both after `retention_s`. One that left is dialled no more then; one that died is *lost*,
and is dialled on, as seldom as the departed: a partition may last longer, and with two nodes on either
side neither is alone and looks at its seeds. So are nodes from disk that did not come in that time. A
lost member is found when it is a member again; it is given up when it is evicted or has left, or when
`MAX_LOST_MEMBERS` were lost after it.

A dial whose outcome never comes is given up after `dial_timeout_s`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from meshnode.effects import Dial, Effect, StartTimer
from meshnode.limits import MAX_LOST_MEMBERS
from meshnode.membership.addresses import dialable
from meshnode.membership.timers import DialDue, ReconnectRound
from meshnode.types import Address, NodeId, NodeState

if TYPE_CHECKING:
    import random
    from collections.abc import Iterable, Mapping

    from meshnode.membership.config import MembershipConfig
    from meshnode.membership.linking import Linking
    from meshnode.membership.member import MemberTable
    from meshnode.membership.messages import MemberRecord

Target = NodeId | Address

GONE: Final = (NodeState.DEAD, NodeState.LEFT)
"""The states of members that may come back."""

DEPARTED_ROUNDS: Final = 3
"""Every which round of reconnecting also dials a member that left, a lost one and a seed: at 10 s (LAN),
one of each in 30 s."""

SHORT_LINK_S: Final = 2.0
"""A link that stood for less was of no use: longer than a hello and a first exchange of views."""


@dataclass(slots=True)
class _Attempt:
    """An attempt: its failures so far, the token of its timer, and, while under way, its guard.

    Where it waits for a timer that ran already and is due sooner, `due_at` is when its own wait is over.
    """

    token: int
    failures: int = 0
    under_way_until: float | None = None
    due_at: float | None = None


class Dialler:
    """The attempts, at most one per target: members and seeds bound them."""

    def __init__(
        self,
        table: MemberTable,
        linking: Linking,
        config: MembershipConfig,
        rng: random.Random,
        seeds: Iterable[Address],
    ) -> None:
        """Dial for the table's owner."""
        self._table = table
        self._linking = linking
        self._config = config
        self._rng = rng
        self._seeds = tuple(dict.fromkeys(seeds))
        self._seed_ends: dict[Address, NodeId] = {}  # who answered there
        self._known: dict[NodeId, MemberRecord] = {}
        self._lost: dict[NodeId, MemberRecord] = {}  # the longest lost first
        self._attempts: dict[Target, _Attempt] = {}
        # The timers that run, as (due at, token), the soonest last: a target that comes and goes many times
        # a second must not leave one behind each time.
        self._timers: dict[Target, list[tuple[float, int]]] = {}
        self._links: dict[NodeId, tuple[float, int]] = {}  # up since, failures before; members only
        self._dialled: set[NodeId] = set()  # members whose last link this node dialled
        self._under_way = 0
        self._token = 0
        self._rounds = 0

    def __repr__(self) -> str:
        return f"<Dialler {self._under_way} of {len(self._attempts)} attempts under way>"

    @property
    def known(self) -> tuple[MemberRecord, ...]:
        """Nodes known from disk that have not shown themselves yet."""
        return tuple(self._known.values())

    @property
    def lost(self) -> Mapping[NodeId, MemberRecord]:
        """Members that died and that the table has forgotten, the longest lost first."""
        return self._lost

    def lose(self, record: MemberRecord) -> None:
        """Dial a member on, now and then, that the table forgets as dead."""
        self._lost[record.node_id] = record
        if len(self._lost) > MAX_LOST_MEMBERS:
            del self._lost[next(iter(self._lost))]

    def remember(self, records: Iterable[MemberRecord]) -> None:
        """Take nodes known from disk as targets."""
        for record in records:
            if record.node_id != self._table.own_id:
                self._known[record.node_id] = record

    def forget_known(self, node_id: NodeId | None = None) -> None:
        """Drop a node known from disk, or a lost one; or hold all that never came from disk for lost.

        Args:
            node_id: Who is a member now, or never will be; None for all nodes known from disk.
        """
        if node_id is not None:
            self._known.pop(node_id, None)
            self._lost.pop(node_id, None)
            return
        for record in self._known.values():
            self.lose(record)
        self._known.clear()

    def start(self, now: float) -> list[Effect]:
        """Dial seeds and known nodes, and begin the rounds that reconnect."""
        first = self._rng.uniform(0.5, 1.0) * self._config.reconnect_interval_s
        return [StartTimer(ReconnectRound(), first), *self.dial_everyone(now)]

    def dial_everyone(self, now: float) -> list[Effect]:
        """Dial all seeds and known nodes that have no attempt: there is no live member to ask."""
        effects: list[Effect] = []
        targets: list[Target] = [*self._seeds, *self._known]
        for target in targets:
            if target not in self._attempts:
                effects += self._dial(target, now)
        return effects

    def member_live(self, node_id: NodeId, now: float) -> list[Effect]:
        """See to a link to a live member, if one is wanted and there is none and no attempt."""
        if not self._is_free(node_id) or not self._linking.wants(node_id):
            return []
        is_ours = self._table.own_id < node_id or not self._linking.is_mutual(node_id)
        if is_ours or node_id in self._dialled:
            return self._dial(node_id, now)
        return self._wait(node_id, self._config.dial_patience_s, now)

    def fill(self, now: float) -> list[Effect]:
        """See to all links that are wanted: somebody is gone, or wishes have changed."""
        effects: list[Effect] = []
        for node_id in self._linking.wanted():
            effects += self.member_live(node_id, now)
        return effects

    def call(self, node_id: NodeId, now: float) -> list[Effect]:
        """Dial a member once that is silent, to hear whether it lives; it hears of its accusation."""
        return self._dial(node_id, now) if self._is_free(node_id) else []

    def _is_free(self, target: Target) -> bool:
        if target in self._attempts:
            return False
        return isinstance(target, Address) or not self._table.is_linked(target)

    def link_lost(self, node_id: NodeId, now: float) -> list[Effect]:
        """See to another link to a live member whose link went down."""
        since, failures = self._links.pop(node_id, (-math.inf, 0))
        if not self._linking.wants(node_id):
            return []
        if now - since >= SHORT_LINK_S or node_id in self._attempts:
            return self.member_live(node_id, now)
        return self._wait(node_id, self._delay_s(failures), now, failures + 1)

    def member_moved(self, node_id: NodeId, now: float) -> list[Effect]:
        """Begin anew with a member that has other addresses, or another life, than before."""
        self._forget(node_id)
        return self.member_live(node_id, now)

    def member_gone(self, node_id: NodeId) -> None:
        """Stop dialling a member that died, left or was evicted."""
        self._forget(node_id)
        self._links.pop(node_id, None)

    def link_up(self, peer: NodeId, address: Address, now: float) -> None:
        """End the attempts that a link has answered."""
        if address in self._seeds:
            self._seed_ends[address] = peer
        attempt = self._attempts.get(peer)
        if peer in self._table.view:
            self._links[peer] = (now, attempt.failures if attempt else 0)
        if attempt is not None and attempt.under_way_until is not None:
            self._dialled.add(peer)
        else:
            self._dialled.discard(peer)
        self._forget(peer)
        self._forget(address)

    def failed(
        self, addresses: tuple[Address, ...], expect: NodeId | None, now: float
    ) -> list[Effect]:
        """Wait before the next try of a target that is still wanted."""
        target: Target | None = expect
        if target is None and addresses:
            target = addresses[0]
        attempt = None if target is None else self._attempts.get(target)
        if target is None or attempt is None or attempt.under_way_until is None:
            return []
        failures = attempt.failures
        self._forget(target)
        if not self._is_wanted(target):
            return []
        return self._wait(target, self._delay_s(failures), now, failures + 1)

    def due(self, timer: DialDue, now: float) -> list[Effect]:
        """Dial a target whose wait is over."""
        self._timer_ended(timer)
        attempt = self._attempts.get(timer.target)
        if attempt is None or attempt.token != timer.token:
            return []
        if attempt.due_at is not None and attempt.due_at > now:
            return self._wait(timer.target, attempt.due_at - now, now, attempt.failures)
        self._forget(timer.target)
        if not self._is_wanted(timer.target):
            return []
        return self._dial(timer.target, now, attempt.failures)

    def reconnect(self, now: float) -> list[Effect]:
        """Dial one of the dead, now and then a departed one, and who is wanted without an attempt."""
        for target, attempt in list(self._attempts.items()):
            if attempt.under_way_until is not None and attempt.under_way_until < now:
                self._forget(target)
        self._dialled.intersection_update(self._table.view)
        delay_s = self._config.reconnect_interval_s * self._rng.uniform(0.8, 1.2)
        effects: list[Effect] = [StartTimer(ReconnectRound(), delay_s)]
        if self._table.is_alone:
            effects += self.dial_everyone(now)
        effects += self.fill(now)
        self._rounds += 1
        effects += self._dial_one([*self._table.in_state(NodeState.DEAD), *self._known], now)
        if self._rounds % DEPARTED_ROUNDS == 0:
            effects += self._dial_one(self._table.in_state(NodeState.LEFT), now)
            effects += self._dial_one(self._lost, now)
            effects += self._dial_one(self._strange_seeds(), now)
        return effects

    def woke(self, now: float) -> list[Effect]:
        """Dial at once whom this node waited to dial: what failed before its sleep says nothing of now."""
        effects: list[Effect] = []
        waiting = [
            target for target, each in self._attempts.items() if each.under_way_until is None
        ]
        for target in waiting:
            self._forget(target)
            if self._is_wanted(target):
                effects += self._dial(target, now)
        if self._table.is_alone:
            effects += self.dial_everyone(now)
        return [*effects, *self.fill(now)]

    def _strange_seeds(self) -> list[Address]:
        """Return the seeds that lead to no live member, as far as is known, nor to this node."""
        if not self._seeds:
            return []
        present = {self._table.own_id, *self._table.live}
        view = self._table.view
        theirs = {address for node_id in present for address in view[node_id].record.addresses}
        return [
            seed
            for seed in self._seeds
            if seed not in theirs and self._seed_ends.get(seed) not in present
        ]

    def _dial_one(self, targets: Iterable[Target], now: float) -> list[Effect]:
        """Dial one of those that have neither an attempt nor a link, at random."""
        free = [target for target in targets if self._is_free(target)]
        return self._dial(self._rng.choice(free), now) if free else []

    def _delay_s(self, failures: int) -> float:
        longest = self._config.dial_backoff_max_s
        delay_s = min(longest, self._config.dial_backoff_min_s * 2.0 ** min(failures, 32))
        # Half of the delay is random, so that a hundred nodes do not come back in step.
        return delay_s * self._rng.uniform(0.5, 1.0)

    def _is_wanted(self, target: Target) -> bool:
        member = None if isinstance(target, Address) else self._table.get(target)
        if member is not None:
            return member.live and not member.linked and self._linking.wants(member.node_id)
        return self._table.is_alone and (target in self._seeds or target in self._known)

    def _dial(self, target: Target, now: float, failures: int = 0) -> list[Effect]:
        if self._under_way >= self._config.dial_limit:
            return self._wait(target, self._rng.uniform(0.1, 1.0), now, failures)
        addresses, expect = self._route(target)
        if not addresses:
            return []
        self._under_way += 1
        self._token += 1
        guard = now + self._config.dial_timeout_s
        self._attempts[target] = _Attempt(self._token, failures, guard)
        return [Dial(addresses, expect)]

    def _wait(self, target: Target, delay_s: float, now: float, failures: int = 0) -> list[Effect]:
        due_at = now + delay_s
        timers = self._timers.setdefault(target, [])
        if timers and timers[-1][0] <= due_at:
            self._attempts[target] = _Attempt(timers[-1][1], failures, due_at=due_at)
            return []
        self._token += 1
        timers.append((due_at, self._token))
        self._attempts[target] = _Attempt(self._token, failures)
        return [StartTimer(DialDue(target, self._token), delay_s)]

    def _timer_ended(self, timer: DialDue) -> None:
        left = [each for each in self._timers.get(timer.target, ()) if each[1] != timer.token]
        if left:
            self._timers[timer.target] = left
        else:
            self._timers.pop(timer.target, None)

    def _forget(self, target: Target) -> None:
        attempt = self._attempts.pop(target, None)
        if attempt is not None and attempt.under_way_until is not None:
            self._under_way -= 1

    def _route(self, target: Target) -> tuple[tuple[Address, ...], NodeId | None]:
        if isinstance(target, Address):
            return (target,), None
        member = self._table.get(target)
        if member is not None:
            record = member.record
        else:
            record = self._known[target] if target in self._known else self._lost[target]
        return dialable(record.addresses, self._table.own.record.addresses), target
