"""Links between virtual nodes: dialled, used, stalled, broken.

A link behaves as TCP below a daemon does. Notes arrive in order. What a cut loses is sent again, so
notes wait while either direction is blocked and arrive when it opens; if it stays blocked for
`dead_after_s`, both ends give the link up and what waits is lost. A crashed node's kernel closes its
links, so its peers hear of it one latency later, after the notes that were on their way; a frozen
node's kernel keeps them open, so its peers notice only after `dead_after_s`.

| what happens | this end | other end |
|---|---|---|
| dial succeeds | `LinkUp` after 1.5 RTT | `LinkUp` at the same time |
| nobody at the address, path blocked, frozen, behind a router | `DialFailed` after `dial_timeout_s` | nothing |
| host up, daemon down | `DialFailed` after 1 RTT | nothing |
| one refuses the other's hello | `DialFailed` after 1.5 RTT | nothing |
| `CloseLink` | `LinkDown` at once | `LinkDown` one latency later |
| crash, leave | nothing | `LinkDown` one latency later |
| path blocked or end frozen | `LinkDown` after `dead_after_s` | the same |
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from meshnode.events import DialFailed, Event, LinkDown, LinkUp, NoteReceived
from meshnode.sim.lines import Line, Lines

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshnode.effects import Dial
    from meshnode.sim.network import Network
    from meshnode.sim.scheduler import Scheduler
    from meshnode.types import Address, NodeId

NOTE_OVERHEAD_BYTES: Final = 100
"""What a frame, a TLS record, TCP and IP add to a note, about."""

_SMALL_BYTES: Final = 100  # what has no size of its own: a frame without a body

MAX_WAITING_NOTES: Final = 4096
"""Notes that wait on one stalled link, or are on their way on one that is too narrow or too long for them;
later ones are dropped, as a full socket's are."""


class LinkHost:
    """What links need to know of a node, and how to reach it: a view kept by the world."""

    __slots__ = ("address", "boot", "frozen", "node", "region", "running", "tell")

    def __init__(
        self, node: NodeId, address: Address, region: str, tell: Callable[[int, Event], None]
    ) -> None:
        """Describe a node that does not run yet; `tell(boot, event)` delivers to one boot of it."""
        self.node = node
        self.address = address
        self.region = region
        self.tell = tell
        self.boot = 0
        self.running = False
        self.frozen = False

    def __repr__(self) -> str:
        state = "frozen" if self.frozen else "running" if self.running else "down"
        return f"<LinkHost {self.node} boot {self.boot}, {state}>"


@dataclass(eq=False, slots=True)
class _End:
    """One end of a link, and what is on its way to it."""

    host: LinkHost
    boot: int
    line: Line
    late_line: Line  # of notes that come later than what is sent with them
    open: bool = True  # until the host has been told that the link is down


class _Link:
    """One open link between two hosts."""

    __slots__ = ("ends", "stall", "stalled_at", "waiting")

    def __init__(self, one: LinkHost, other: LinkHost, lines: Lines) -> None:
        self.ends = {one.node: _end(one, other, lines), other.node: _end(other, one, lines)}
        self.waiting: deque[tuple[NodeId, Event]] = deque()
        self.stall: object | None = None  # a new token for each stall, None while it flows
        self.stalled_at = 0.0

    def other(self, node: NodeId) -> _End:
        return next(end for name, end in self.ends.items() if name != node)


def _end(host: LinkHost, other: LinkHost, lines: Lines) -> _End:
    line = Line(lines, other.node, host.node)
    return _End(host, host.boot, line, Line(lines, other.node, host.node, is_gossip=True))


class Links:
    """All links of a world, by the pair of their ends.

    Attributes:
        refusal: Says why a hello between two nodes (dialler, acceptor) fails, or None; by default all
            nodes are members of each other's mesh.
    """

    def __init__(self, scheduler: Scheduler, network: Network) -> None:
        """Begin without hosts."""
        self.refusal: Callable[[NodeId, NodeId], str | None] = lambda _dialler, _acceptor: None
        self._scheduler = scheduler
        self._network = network
        self._lines = Lines(network, scheduler)
        self._hosts: dict[NodeId, LinkHost] = {}
        self._by_address: dict[Address, LinkHost] = {}
        self._links: dict[tuple[NodeId, NodeId], _Link] = {}
        self._of: dict[NodeId, dict[NodeId, _Link]] = {}

    def __repr__(self) -> str:
        return f"<Links: {len(self._links)} between {len(self._hosts)} hosts>"

    def add(self, host: LinkHost) -> None:
        """Make a host reachable under its address."""
        self._hosts[host.node] = host
        self._by_address[host.address] = host
        self._of[host.node] = {}

    def peers(self, node: NodeId) -> list[NodeId]:
        """Return who the node has an open link to, stalled or not."""
        return [*self._of[node]]

    # Dialling.

    def dial(self, node: NodeId, dial: Dial) -> None:
        """Try a `Dial` effect's addresses in order, and tell the node how it ended."""
        self._dial_next(
            self._hosts[node], self._hosts[node].boot, dial, 0, "no addresses were given"
        )

    def _dial_next(self, host: LinkHost, boot: int, dial: Dial, index: int, reason: str) -> None:
        if index == len(dial.addresses):
            failed = DialFailed(dial.addresses, dial.expect, reason)
            self._scheduler.after(0, host.tell, boot, failed)
            return
        target = self._by_address.get(dial.addresses[index])
        if (
            target is None
            or not self._flows(host, target)
            or not self._network.may_dial(host.node, target.node)
        ):
            wait_s = self._network.config.dial_timeout_s
            self._scheduler.after(wait_s, self._dial_next, host, boot, dial, index + 1, "timed out")
            return
        rtt_s = self._network.rtt_s(host.node, target.node)
        obstacle, round_trips = _obstacle(host, target, dial)
        if obstacle:
            wait_s = round_trips * rtt_s
            self._scheduler.after(wait_s, self._dial_next, host, boot, dial, index + 1, obstacle)
        else:
            self._scheduler.after(
                1.5 * rtt_s, self._answered, host, boot, target, target.boot, dial, index
            )

    def _answered(
        self, host: LinkHost, boot: int, target: LinkHost, target_boot: int, dial: Dial, index: int
    ) -> None:
        if host.boot != boot or not host.running:
            return
        if target.boot != target_boot or not target.running or not self._flows(host, target):
            self._dial_next(host, boot, dial, index + 1, "broke during the handshake")
            return
        refusal = self.refusal(host.node, target.node)
        if refusal is not None:
            self._dial_next(host, boot, dial, index + 1, refusal)
            return
        if target.node not in self._of[host.node]:
            link = _Link(host, target, self._lines)
            self._links[_pair(host.node, target.node)] = link
            self._of[host.node][target.node] = self._of[target.node][host.node] = link
            target.tell(target_boot, LinkUp(host.node, host.address))
        host.tell(boot, LinkUp(target.node, target.address))

    # Using.

    def send_note(self, source: NodeId, to: NodeId, payload: bytes) -> None:
        """Send a note over the link to a peer; it is dropped where there is none."""
        if to in self._of[source] and not self._network.drops_note():
            self.send(source, to, NoteReceived(source, payload))

    def send(self, source: NodeId, to: NodeId, event: Event) -> None:
        """Send what arrives at a peer as `event`; it is dropped where there is no link."""
        link = self._of[source].get(to)
        if link is None:
            return
        if link.stall is None:
            self._carry(link, source, event)
        elif len(link.waiting) < MAX_WAITING_NOTES:
            link.waiting.append((source, event))

    def stalled_since(self, node: NodeId, peer: NodeId) -> float | None:
        """Return since when nothing gets through on an open link, or None while it flows."""
        link = self._of[node].get(peer)
        return link.stalled_at if link is not None and link.stall is not None else None

    def _carry(self, link: _Link, source: NodeId, event: Event) -> None:
        target = link.other(source)
        line = target.line
        if isinstance(event, NoteReceived):
            size_bytes = len(event.payload) + NOTE_OVERHEAD_BYTES
            if self._network.extra_gossip_s(source, target.host.node):
                # Gossip alone waits: it must not hold up the requests behind it.
                line = target.late_line
        else:
            size_bytes = getattr(event, "size_bytes", _SMALL_BYTES)
        if len(line) < MAX_WAITING_NOTES:
            line.send(size_bytes, self._deliver, target, event)

    def _deliver(self, target: _End, event: Event) -> None:
        if not target.open:
            return
        if isinstance(event, LinkDown):
            target.open = False
            if event.peer in self._of[target.host.node]:
                return  # a newer link to the same peer is up: not the last one went down
        target.host.tell(target.boot, event)

    # Ending.

    def close(self, node: NodeId, peer: NodeId, reason: str) -> None:
        """Close a link from one side."""
        link = self._of[node].get(peer)
        if link is not None:
            self._end(link, node, reason)
            self._scheduler.after(0, self._deliver, link.ends[node], LinkDown(peer, reason))

    def drop_all(self, node: NodeId, reason: str) -> None:
        """The node's process is gone: its kernel closes its links."""
        for link in [*self._of[node].values()]:
            self._end(link, node, reason)

    def _end(self, link: _Link, by: NodeId, reason: str) -> None:
        target = link.other(by)
        if link.stall is None:
            target.line.send(_SMALL_BYTES, self._deliver, target, LinkDown(by, reason))
        else:  # nothing gets through: the other side finds out by itself
            wait_s = self._network.config.dead_after_s
            self._scheduler.after(wait_s, self._deliver, target, LinkDown(by, "stalled"))
        self._remove(link)

    def _remove(self, link: _Link) -> None:
        one, other = link.ends
        del self._links[_pair(one, other)]
        del self._of[one][other], self._of[other][one]

    # Stalling.

    def recheck(self) -> None:
        """Look at every link after paths or hosts have changed: stall it, or let it flow again."""
        self._lines.paths_changed()
        for link in [*self._links.values()]:
            one, other = (end.host for end in link.ends.values())
            flows = self._flows(one, other)
            if flows and link.stall is not None:
                link.stall = None
                for source, event in link.waiting:
                    self._carry(link, source, event)
                link.waiting.clear()
            elif not flows and link.stall is None:
                link.stall = object()
                link.stalled_at = self._scheduler.now()
                self._scheduler.after(
                    self._network.config.dead_after_s, self._give_up, link, link.stall
                )

    def _give_up(self, link: _Link, stall: object) -> None:
        if link.stall is not stall or self._links.get(_pair(*link.ends)) is not link:
            return
        self._remove(link)
        for node, end in link.ends.items():
            self._deliver(end, LinkDown(link.other(node).host.node, "stalled"))

    def _flows(self, one: LinkHost, other: LinkHost) -> bool:
        return (
            not one.frozen
            and not other.frozen
            and self._network.passes(one.node, other.node)
            and self._network.passes(other.node, one.node)
        )


def _obstacle(host: LinkHost, target: LinkHost, dial: Dial) -> tuple[str, float]:
    """Return why a reachable host will not do, and after how many round trips that shows."""
    if target is host:
        return "that address is this node's own", 0.0
    if not target.running:
        return "connection refused", 1.0
    if dial.expect not in (None, target.node):
        return "another node answered", 1.5
    return "", 0.0


def _pair(one: NodeId, other: NodeId) -> tuple[NodeId, NodeId]:
    return (one, other) if one < other else (other, one)
