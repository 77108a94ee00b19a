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
| a member that this node just came to suspect | never | at once, without retries: TCP may pass where UDP does not |
| a seed, a node known from disk | while no other member is live | at once |
| a dead member, a node known from disk | one of them per `reconnect_interval_s`, at random | no retries |
| a member that left | one of them in every `DEPARTED_ROUNDS`th such round, beside the dead one | no retries |

A link that goes down soon after it came up counts as a failed dial: a peer that takes links only to
part with them (it holds this node for a copy, say) is not dialled several times a second.

One dead member per round is enough to heal a partition: the first link across it carries both views,
and everyone refutes. A member that left is dialled too: it may be back without a way to dial anybody,
like a box in a cloud after an upgrade, all of whose peers are behind NAT. It mostly is not, so it is
dialled less often, and however many have left, the dead wait no longer for their turn. Both end when
the table forgets the member, after `retention_s`.

A dial whose outcome never comes is given up after `dial_timeout_s`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from meshnode.effects import Dial, Effect, StartTimer
from meshnode.membership.addresses import dialable
from meshnode.membership.timers import DialDue, ReconnectRound
from meshnode.types import Address, NodeId, NodeState

if TYPE_CHECKING:
    import random
    from collections.abc import Iterable

    from meshnode.membership.config import MembershipConfig
    from meshnode.membership.linking import Linking
    from meshnode.membership.member import MemberTable
    from meshnode.membership.messages import MemberRecord

Target = NodeId | Address

GONE: Final = (NodeState.DEAD, NodeState.LEFT)
"""The states of members that may come back."""

DEPARTED_ROUNDS: Final = 3
"""Every which round of reconnecting also dials a member that left: at 10 s (LAN), one in 30 s."""

SHORT_LINK_S: Final = 2.0
"""A link that stood for less was of no use: longer than a hello and a first exchange of views."""


@dataclass(slots=True)
class _Attempt:
    """An attempt: its failures so far, the token of its timer, and, while under way, its guard."""

    token: int
    failures: int = 0
    under_way_until: float | None = None


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
        self._known: dict[NodeId, MemberRecord] = {}
        self._attempts: dict[Target, _Attempt] = {}
        self._links: dict[NodeId, tuple[float, int]] = {}  # up since, failures before; members only
        self._under_way = 0
        self._token = 0
        self._rounds = 0

    def __repr__(self) -> str:
        return f"<Dialler {self._under_way} of {len(self._attempts)} attempts under way>"

    @property
    def known(self) -> tuple[MemberRecord, ...]:
        """Nodes known from disk that have not shown themselves yet."""
        return tuple(self._known.values())

    def remember(self, records: Iterable[MemberRecord]) -> None:
        """Take nodes known from disk as targets."""
        for record in records:
            if record.node_id != self._table.own_id:
                self._known[record.node_id] = record

    def forget_known(self, node_id: NodeId | None = None) -> None:
        """Drop a node known from disk (it is a member now), or all of them (nobody ever came)."""
        if node_id is None:
            self._known.clear()
        else:
            self._known.pop(node_id, None)

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
        if self._table.own_id < node_id or not self._linking.is_mutual(node_id):
            return self._dial(node_id, now)
        return self._wait(node_id, self._config.dial_patience_s)

    def fill(self, now: float) -> list[Effect]:
        """See to all links that are wanted: somebody is gone, or wishes have changed."""
        effects: list[Effect] = []
        for node_id in self._linking.wanted():
            effects += self.member_live(node_id, now)
        return effects

    def call(self, node_id: NodeId, now: float) -> list[Effect]:
        """Dial a member once that is silent, to hear whether it lives; it hears of its accusation."""
        return self._dial(node_id, now) if self._is_free(node_id) else []

    def _is_free(self, node_id: NodeId) -> bool:
        return node_id not in self._attempts and not self._table.is_linked(node_id)

    def link_lost(self, node_id: NodeId, now: float) -> list[Effect]:
        """See to another link to a live member whose link went down."""
        since, failures = self._links.pop(node_id, (-math.inf, 0))
        if not self._linking.wants(node_id):
            return []
        if now - since >= SHORT_LINK_S or node_id in self._attempts:
            return self.member_live(node_id, now)
        return self._wait(node_id, self._delay_s(failures), failures + 1)

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
        attempt = self._attempts.get(peer)
        if peer in self._table.view:
            self._links[peer] = (now, attempt.failures if attempt else 0)
        self._forget(peer)
        self._forget(address)

    def failed(self, addresses: tuple[Address, ...], expect: NodeId | None) -> list[Effect]:
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
        return self._wait(target, self._delay_s(failures), failures + 1)

    def due(self, timer: DialDue, now: float) -> list[Effect]:
        """Dial a target whose wait is over."""
        attempt = self._attempts.get(timer.target)
        if attempt is None or attempt.token != timer.token:
            return []
        self._forget(timer.target)
        if not self._is_wanted(timer.target):
            return []
        return self._dial(timer.target, now, attempt.failures)

    def reconnect(self, now: float) -> list[Effect]:
        """Dial one of the dead, now and then a departed one, and who is wanted without an attempt."""
        for target, attempt in list(self._attempts.items()):
            if attempt.under_way_until is not None and attempt.under_way_until < now:
                self._forget(target)
        delay_s = self._config.reconnect_interval_s * self._rng.uniform(0.8, 1.2)
        effects: list[Effect] = [StartTimer(ReconnectRound(), delay_s)]
        if self._table.is_alone:
            effects += self.dial_everyone(now)
        effects += self.fill(now)
        self._rounds += 1
        effects += self._dial_one([*self._table.in_state(NodeState.DEAD), *self._known], now)
        if self._rounds % DEPARTED_ROUNDS == 0:
            effects += self._dial_one(self._table.in_state(NodeState.LEFT), now)
        return effects

    def _dial_one(self, targets: Iterable[NodeId], now: float) -> list[Effect]:
        """Dial one of those that have neither an attempt nor a link, at random."""
        free = [node_id for node_id in targets if self._is_free(node_id)]
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
            return self._wait(target, self._rng.uniform(0.1, 1.0), failures)
        addresses, expect = self._route(target)
        if not addresses:
            return []
        self._under_way += 1
        self._token += 1
        guard = now + self._config.dial_timeout_s
        self._attempts[target] = _Attempt(self._token, failures, guard)
        return [Dial(addresses, expect)]

    def _wait(self, target: Target, delay_s: float, failures: int = 0) -> list[Effect]:
        self._token += 1
        self._attempts[target] = _Attempt(self._token, failures)
        return [StartTimer(DialDue(target, self._token), delay_s)]

    def _forget(self, target: Target) -> None:
        attempt = self._attempts.pop(target, None)
        if attempt is not None and attempt.under_way_until is not None:
            self._under_way -= 1

    def _route(self, target: Target) -> tuple[tuple[Address, ...], NodeId | None]:
        if isinstance(target, Address):
            return (target,), None
        member = self._table.get(target)
        record = self._known[target] if member is None else member.record
        return dialable(record.addresses, self._table.own.record.addresses), target
