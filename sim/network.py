"""The space between nodes: who reaches whom, how late, and what is lost on the way.

`Network` is a model without time of its own, for depths A and B alike. Nodes go by a key, any string
(depth A: their NodeId; depth B: their host's name). It knows regions and the rules that faults lay on
paths (`impairments`), and answers how long something takes from one node to another, or that it does
not arrive; its caller lets that happen. Whoever lets things wait (streams, held datagrams) asks with
`on_change` to be told when rules change.

A *cut* loses what is sent in one direction; a *hold* keeps it until it is released; a *block* loses
datagrams only, as a firewall does. A node *behind a router* can be dialled by nobody, and datagrams
reach it only from where it has sent one itself in the last `ROUTER_MEMORY_S`.

What a datagram meets is drawn by `arrivals`, what a stream meets by `stream_delay_s`; both take the
queue before a limited bandwidth into account.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from meshnode.sim.impairments import Condition, Impairment, Rule, impaired

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterable, Mapping

MAX_QUEUE_S: Final = 0.5
"""Seconds of datagrams that wait before a limited bandwidth; later ones are lost, as in a home router."""

MAX_SEGMENT_BYTES: Final = 1460
"""Bytes of a stream in one packet: Ethernet's 1,500 less the headers of IPv4 and TCP."""

MAX_RETRANSMITS: Final = 6
"""How often one packet of a stream is lost at most, by default; the waits double, so the sixth ends after a
minute's fifth."""

ROUTER_MEMORY_S: Final = 60.0
"""For how long a router lets answers in after a datagram went out; RFC 4787 asks for 120, many do 30 to 60."""

_MAX_CONDITIONS: Final = 262_144
"""Pairs of nodes whose condition is remembered while rules are on; some 40 MB."""

_MAX_IDLE_QUEUES: Final = 65_536
"""Pairs of nodes before those whose queue has emptied are forgotten."""


@dataclass(frozen=True, slots=True)
class PathConfig:
    """What differs between two regions from the network's own figures; None where nothing does.

    Attributes:
        rtt_s: Mean round trip in seconds.
        jitter: Greatest relative deviation of one delay, 0 to 1.
        loss: Share of packets that are lost, 0 to 1.
        bytes_per_s: What one node can send one other.
    """

    rtt_s: float | None = None
    jitter: float | None = None
    loss: float | None = None
    bytes_per_s: float | None = None


@dataclass(frozen=True, slots=True)
class NetworkConfig:
    """How the virtual network behaves.

    Attributes:
        rtt_s: Mean round-trip seconds between two regions, under their names in either order. 0.0001
            (one switch) to 0.6 (a satellite).
        near_rtt_s: Between two nodes of one region.
        far_rtt_s: Between two regions that `rtt_s` does not name.
        jitter: Greatest relative deviation of one delay from its mean, 0 to 1. It reorders
            datagrams, never what travels on a link.
        loss: Probability that a datagram is lost, 0 to 1. What is lost on a link is sent again.
        retransmit_s: How much later a link delivers what was lost once: TCP's least timeout, 0.2. It
            doubles with each further loss.
        max_retransmits: How often one packet on a link is lost at most. 1 takes it that what is sent
            again arrives, which is mild to links.
        note_loss: Probability that a note is dropped before it is sent, as a driver does whose link
            has no room, 0 to 1.
        dial_timeout_s: Seconds after which a dial that nobody answers fails. 1 to 30.
        dead_after_s: Seconds without a sign of life after which both ends give a link up. Above
            several RTTs and a loop's worst stall: 2 to 60.
        leave_grace_s: Seconds that a leaving node keeps running to say goodbye. 0 to 5.
        paths: What differs between two regions, or within one named twice; in either order. Counts
            more than `rtt_s`.
    """

    rtt_s: Mapping[tuple[str, str], float] = field(default_factory=dict)
    near_rtt_s: float = 0.0005
    far_rtt_s: float = 0.08
    jitter: float = 0.1
    loss: float = 0.0
    retransmit_s: float = 0.2
    max_retransmits: int = MAX_RETRANSMITS
    note_loss: float = 0.0
    dial_timeout_s: float = 5.0
    dead_after_s: float = 8.0
    leave_grace_s: float = 0.5
    paths: Mapping[tuple[str, str], PathConfig] = field(default_factory=dict)


class Network:
    """Paths between nodes, by their keys."""

    def __init__(self, config: NetworkConfig, rng: random.Random) -> None:
        """Connect everybody to everybody; `rng` draws jitter, loss and the like."""
        self._config = config
        self._rng = rng
        self._regions: dict[str, str] = {}
        self._rules: dict[Rule, None] = {}  # in the order in which they were laid
        self._by_regions: dict[tuple[str, str], Condition] = {}
        self._by_pair: dict[tuple[str, str], Condition] = {}  # while there are rules
        # When the queue of a limited path is empty, and how the path was when it was filled.
        self._queues: dict[tuple[str, str], tuple[float, Condition]] = {}
        self._behind_router: set[str] = set()
        self._inside: set[tuple[str, str]] = (
            set()
        )  # who dials whom behind the router that both are behind
        self._let_in_until: dict[tuple[str, str], float] = {}  # from whom to whom behind a router
        self._watchers: list[Callable[[], None]] = []

    def __repr__(self) -> str:
        return f"<Network of {len(self._regions)} nodes, {len(self._rules)} rules>"

    @property
    def config(self) -> NetworkConfig:
        """How the network behaves where no rule says otherwise; may be replaced while it runs."""
        return self._config

    @config.setter
    def config(self, config: NetworkConfig) -> None:
        self._config = config
        self._by_regions.clear()
        self._by_pair.clear()

    # Nodes.

    def place(self, key: str, region: str) -> None:
        """Put a node into a region."""
        self._regions[key] = region

    def region_of(self, key: str) -> str:
        """Return where a node is."""
        return self._regions[key]

    def put_behind_router(self, key: str) -> None:
        """Let a router stand before a node: it dials out, and nobody dials it."""
        self._behind_router.add(key)

    def put_inside(self, source: str, target: str) -> None:
        """Let one node dial another that is behind the same router, as the programs of an office do."""
        self._inside.add((source, target))

    def may_dial(self, source: str, target: str) -> bool:
        """Whether a router lets one node dial another."""
        return (
            target not in self._behind_router
            or source == target
            or (source, target) in self._inside
        )

    # What is sent.

    def rtt_s(self, a: str, b: str) -> float:
        """Return the mean round-trip time between two nodes in seconds, faults included."""
        return self._condition(a, b).mean_s + self._condition(b, a).mean_s

    def arrivals(self, source: str, target: str, size_bytes: int, now: float) -> tuple[float, ...]:
        """Draw what becomes of a datagram that is sent at second `now`.

        Returns:
            After how many seconds it arrives: none if it is lost, two if it arrives twice. A hold is
            not looked at: ask `is_held` first, and this when it is released.
        """
        condition = self._condition(source, target)
        if self._behind_router and not self._passes_routers(source, target, now):
            return ()
        rng = self._rng
        if condition.cut or condition.blocked or (condition.loss and rng.random() < condition.loss):
            return ()
        delay_s = condition.mean_s
        if condition.jitter:
            delay_s *= 1 + condition.jitter * (2 * rng.random() - 1)
        if condition.is_plain:
            return (delay_s,)
        delay_s += condition.gossip_s
        if condition.bytes_per_s is not None:
            queue_s = self._queue_s(source, target, now)
            if queue_s > MAX_QUEUE_S:
                return ()
            delay_s += self._enqueue(source, target, size_bytes, condition, now)
        if condition.reordering and rng.random() < condition.reordering:
            delay_s += condition.reorder_by_s * rng.random()
        if condition.duplication and rng.random() < condition.duplication:
            return (delay_s, delay_s + condition.mean_s * rng.random())
        return (delay_s,)

    def stream_delay_s(self, source: str, target: str, size_bytes: int, now: float) -> float:
        """Draw how long bytes take that are sent on a stream at second `now`.

        What is lost is sent again, so it comes later; order is the caller's to keep, as is waiting
        while the path is cut or held. Gossip that travels on streams takes `extra_gossip_s` besides.
        """
        condition = self._condition(source, target)
        rng = self._rng
        delay_s = condition.mean_s
        if condition.jitter:
            delay_s *= 1 + condition.jitter * (2 * rng.random() - 1)
        if condition.loss:
            delay_s += self._retransmission_s(condition, size_bytes)
        if condition.bytes_per_s is not None:
            delay_s += self._enqueue(source, target, size_bytes, condition, now)
        return delay_s

    def extra_gossip_s(self, source: str, target: str) -> float:
        """Return by how much a note on a link is later than a request; `arrivals` has it included."""
        return self._condition(source, target).gossip_s if self._rules else 0.0

    def drops_note(self) -> bool:
        """Draw whether a note is dropped before it is sent."""
        return self._config.note_loss > 0 and self._rng.random() < self._config.note_loss

    def is_cut(self, source: str, target: str) -> bool:
        """Whether all that is sent this way is lost."""
        return bool(self._rules) and self._condition(source, target).cut

    def is_held(self, source: str, target: str) -> bool:
        """Whether what is sent this way is kept back."""
        return bool(self._rules) and self._condition(source, target).held

    def loses_datagrams(self, source: str, target: str) -> bool:
        """Whether no datagram that is sent this way arrives, by a cut or a block."""
        if not self._rules:
            return False
        condition = self._condition(source, target)
        return condition.cut or condition.blocked

    def passes(self, source: str, target: str) -> bool:
        """Whether what is sent this way on a stream is on its way at once."""
        if not self._rules:
            return True
        condition = self._condition(source, target)
        return not (condition.cut or condition.held)

    # Rules.

    def impair(
        self,
        impairment: Impairment,
        sources: Iterable[str],
        targets: Iterable[str],
        *,
        both_ways: bool = True,
        share: float = 1.0,
        salt: str = "",
    ) -> Rule:
        """Lay an impairment on the paths from some nodes to others; return what takes it off again.

        Args:
            impairment: What changes.
            sources: Keys of those that send.
            targets: Keys of those that are sent to; a node is never impaired towards itself.
            both_ways: Also on what the targets send to the sources.
            share: Of the pairs of nodes, 0 to 1, drawn for each pair from the salt and its keys.
            salt: Makes one draw differ from another; take it from the world's seed.
        """
        rule = Rule(impairment, sources, targets, both_ways=both_ways, share=share, salt=salt)
        self.lay(rule)
        return rule

    def lay(self, rule: Rule) -> None:
        """Lay a rule on its paths, after those that are on them."""
        self._rules[rule] = None
        self._changed()

    def mend(self, rule: Rule) -> None:
        """Take a rule off; one that is off already stays so."""
        if self._rules.pop(rule, rule) is None:
            self._changed()

    def mend_all(self, which: Callable[[Impairment], bool] = lambda _: True) -> None:
        """Take all rules off, or those whose impairment is such."""
        kept = {rule: None for rule in self._rules if not which(rule.impairment)}
        if len(kept) < len(self._rules):
            self._rules = kept
            self._changed()

    def cut(self, sources: Iterable[str], targets: Iterable[str]) -> Rule:
        """Lose everything from any of the sources to any of the targets."""
        return self.impair(Impairment(cut=True), sources, targets, both_ways=False)

    def hold(self, sources: Iterable[str], targets: Iterable[str]) -> Rule:
        """Keep everything from any of the sources to any of the targets back."""
        return self.impair(Impairment(held=True), sources, targets, both_ways=False)

    def block(self, sources: Iterable[str], targets: Iterable[str]) -> Rule:
        """Lose datagrams from any of the sources to any of the targets; links stay open."""
        return self.impair(Impairment(blocked=True), sources, targets, both_ways=False)

    def on_change(self, call: Callable[[], None]) -> None:
        """Call this after each change of the rules: what was stalled or held may pass now."""
        self._watchers.append(call)

    def _changed(self) -> None:
        self._by_pair.clear()
        # Whoever has something in the queue of a path that has become easier puts it there anew.
        self._queues = {
            pair: (free_at, condition)
            for pair, (free_at, before) in self._queues.items()
            if not (condition := self._condition(*pair)).eases(before)
        }
        for call in self._watchers:
            call()

    # Conditions.

    def condition(self, source: str, target: str) -> Condition:
        """Return how a path is now, in one direction."""
        return self._condition(source, target)

    def _condition(self, source: str, target: str) -> Condition:
        if not self._rules:
            pair = (self._regions[source], self._regions[target])
            found = self._by_regions.get(pair)
            return self._between_regions(pair) if found is None else found
        found = self._by_pair.get((source, target))
        return self._between_nodes(source, target) if found is None else found

    def _between_regions(self, pair: tuple[str, str]) -> Condition:
        config = self._config
        one, other = pair
        path = config.paths.get(pair) or config.paths.get((other, one)) or PathConfig()
        rtt_s = path.rtt_s
        if rtt_s is None:
            rtt_s = config.rtt_s.get(pair, config.rtt_s.get((other, one)))
        if rtt_s is None:
            rtt_s = config.near_rtt_s if one == other else config.far_rtt_s
        made = self._by_regions[pair] = Condition(
            mean_s=rtt_s / 2,
            jitter=config.jitter if path.jitter is None else path.jitter,
            loss=config.loss if path.loss is None else path.loss,
            bytes_per_s=path.bytes_per_s,
        )
        return made

    def _between_nodes(self, source: str, target: str) -> Condition:
        pair = (self._regions[source], self._regions[target])
        plain = self._by_regions.get(pair) or self._between_regions(pair)
        laid = [rule.impairment for rule in self._rules if rule.covers(source, target)]
        if len(self._by_pair) >= _MAX_CONDITIONS:
            self._by_pair.clear()
        made = self._by_pair[source, target] = impaired(plain, laid) if laid else plain
        return made

    # Queues, losses, routers.

    def _queue_s(self, source: str, target: str, now: float) -> float:
        queue = self._queues.get((source, target))
        return 0.0 if queue is None else max(0.0, queue[0] - now)

    def _enqueue(
        self, source: str, target: str, size_bytes: int, condition: Condition, now: float
    ) -> float:
        """Put bytes at the end of a path's queue; return after how many seconds they have left it."""
        if len(self._queues) >= _MAX_IDLE_QUEUES:
            self._queues = {pair: queue for pair, queue in self._queues.items() if queue[0] > now}
        assert condition.bytes_per_s is not None
        waited_s = self._queue_s(source, target, now) + size_bytes / condition.bytes_per_s
        self._queues[source, target] = now + waited_s, condition
        return waited_s

    def _retransmission_s(self, condition: Condition, size_bytes: int) -> float:
        """Draw by how much losses delay a stream's bytes; the last packet that is missing decides."""
        packets = max(1, -(-size_bytes // MAX_SEGMENT_BYTES))
        loss = condition.loss if packets == 1 else 1 - (1 - condition.loss) ** packets
        wait_s = max(self._config.retransmit_s, 2 * condition.mean_s)
        late_s = 0.0
        for _ in range(self._config.max_retransmits):
            if self._rng.random() >= loss:
                break
            late_s += wait_s
            wait_s *= 2
            loss = condition.loss  # of those that were lost only few are lost again
        return late_s

    def _passes_routers(self, source: str, target: str, now: float) -> bool:
        """Whether the target's router lets a datagram in; the source's notes that one went out."""
        if source in self._behind_router:
            if len(self._let_in_until) >= _MAX_IDLE_QUEUES:
                self._let_in_until = {
                    pair: until for pair, until in self._let_in_until.items() if until >= now
                }
            self._let_in_until[target, source] = now + ROUTER_MEMORY_S
        if target not in self._behind_router:
            return True
        return self._let_in_until.get((source, target), -1.0) >= now
