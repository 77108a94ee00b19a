"""Nodes that fetch one version from each other, in virtual time, over links of limited speed.

Each node has an uplink and a downlink. A piece waits for its turn on the sender's uplink, then on the
receiver's downlink; what others have is heard of a moment later.
"""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any

from meshnode.models.artifacts.transfer import Ask, Cancel, Transfer
from meshnode.types import NodeId

if TYPE_CHECKING:
    from collections.abc import Callable

PIECE_BYTES = 1 << 20
LATENCY_S = 0.002
NEWS_S = 0.1
TICK_S = 0.25


class Swarm:
    """A publisher and nodes that fetch."""

    def __init__(self, names: list[str], pieces: int, *, bytes_s: float = 20e6) -> None:
        self.now = 0.0
        self.pieces = pieces
        self.up_s: dict[str, float] = defaultdict(lambda: PIECE_BYTES / bytes_s)
        self.down_s: dict[str, float] = defaultdict(lambda: PIECE_BYTES / bytes_s)
        self.sent: Counter[str] = Counter()
        self.done_at: dict[str, float] = {}
        self.has: dict[str, int] = {"publisher": (1 << pieces) - 1}
        self.corrupt: set[str] = set()
        self.silent: set[str] = set()
        self._free_at: defaultdict[tuple[str, str], float] = defaultdict(float)
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        self._cancelled: set[tuple[str, str, int]] = set()
        self.transfers: dict[str, Transfer] = {}
        for name in names:
            self.has[name] = 0
            self.transfers[name] = Transfer(
                NodeId(name), [PIECE_BYTES] * pieces, range(pieces), 0.0
            )

    def run(self, until_s: float = 600.0) -> None:
        for name, transfer in self.transfers.items():
            for other in self.has:
                if other != name:
                    transfer.joined(NodeId(other), is_fetching=other != "publisher")
                    if other not in self.silent:
                        self._at(LATENCY_S, self._news(name, other))
            self._at(0.0, self._tick(name))
        while (
            self._queue and self._queue[0][0] <= until_s and len(self.done_at) < len(self.transfers)
        ):
            self.now, _, act = heapq.heappop(self._queue)
            act()

    def _at(self, delay_s: float, act: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._queue, (self.now + delay_s, self._count, act))

    def _news(self, name: str, other: str) -> Callable[[], None]:
        def act() -> None:
            has = self.has[other]
            complete = has == (1 << self.pieces) - 1
            effects = self.transfers[name].heard(
                NodeId(other), has, is_complete=complete, is_fetching=not complete, now=self.now
            )
            self._carry_out(name, effects)
            if not complete:
                self._at(NEWS_S, self._news(name, other))

        return act

    def _tick(self, name: str) -> Callable[[], None]:
        def act() -> None:
            self._carry_out(name, self.transfers[name].tick(self.now))
            self._at(TICK_S, self._tick(name))

        return act

    def _carry_out(self, name: str, effects: list[Ask | Cancel]) -> None:
        for effect in effects:
            key = (name, effect.node, effect.piece)
            if isinstance(effect, Cancel):
                self._cancelled.add(key)
            elif effect.node not in self.silent:
                self._cancelled.discard(key)
                self._at(LATENCY_S, self._send(name, effect))

    def _send(self, name: str, ask: Ask) -> Callable[[], None]:
        def act() -> None:
            key = (name, ask.node, ask.piece)
            if key in self._cancelled:
                return
            self.sent[ask.node] += 1
            self._at(self._turn(ask.node, "up", self.up_s), self._receive(name, ask))

        return act

    def _receive(self, name: str, ask: Ask) -> Callable[[], None]:
        def act() -> None:
            # Both links carry a piece at the same time: only where many arrive does one wait here.
            waits_s = self._turn(name, "down", self.down_s) - self.down_s[name]
            slower_s = max(0.0, self.down_s[name] - self.up_s[ask.node])
            self._at(waits_s + slower_s + LATENCY_S, self._arrive(name, ask))

        return act

    def _turn(self, node: str, way: str, takes_s: dict[str, float]) -> float:
        """Take the next turn on a link; return after how long it is over."""
        free_at = max(self.now, self._free_at[node, way]) + takes_s[node]
        self._free_at[node, way] = free_at
        return free_at - self.now

    def _arrive(self, name: str, ask: Ask) -> Callable[[], None]:
        def act() -> None:
            transfer = self.transfers[name]
            if (name, ask.node, ask.piece) in self._cancelled:
                return
            if ask.node in self.corrupt:
                self._carry_out(name, transfer.corrupt(ask.node, ask.piece, "wrong", self.now))
                return
            self.has[name] |= 1 << ask.piece
            self._carry_out(name, transfer.arrived(ask.node, ask.piece, self.now))
            if transfer.is_done:
                self.done_at.setdefault(name, self.now)

        return act

    def copies(self, node: str) -> float:
        """Return how many copies of the version a node has sent."""
        return self.sent[node] / self.pieces

    def report(self) -> dict[str, Any]:
        """Return what happened, for a failing test."""
        return {"done": self.done_at, "sent": dict(self.sent)}
