"""Values of the moment that nodes tell about themselves: their load.

A hint is worth little and changes often, so it is not signed, not compared between nodes and never
asked for. Its owner pushes it to a few peers, each node to which it is new passes it on once, and
the owner tells it to the peer of each sync that has not heard it from itself; the next one repairs
what still got lost. Whoever reads it must expect to be lied to.

A liar can also claim a version so great that the truth looks old. Hence two exceptions to "greater
wins": what an owner says of itself, over its own link, always counts; and what is held gives way to
any other word once it is `HINT_TRUST_S` old.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from meshnode.effects import Effect, Emit, SendNote, StartTimer
from meshnode.state.owner_messages import OWNER, Hint, hint_notes
from meshnode.types import NodeId

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from meshnode.state.config import OwnerConfig

HINT_TRUST_S: Final = 10.0
"""Seconds after which an older-looking hint replaces one that is held: ten samples of a load."""


@dataclass(frozen=True, slots=True)
class OwnerHintsDue:
    """Time to push this node's hints."""

    boot: int


class Hints:
    """This node's own hints, and those of others: at most one for each hint key of an owner."""

    def __init__(
        self,
        me: NodeId,
        epoch: int,
        keys: frozenset[str],
        config: OwnerConfig,
        epoch_of: Callable[[NodeId], int | None],
        some_peers: Callable[[int, NodeId | None], list[NodeId]],
    ) -> None:
        """Have none yet.

        Args:
            me: This node.
            epoch: Its boot epoch.
            keys: Which keys are hints; only these are taken from others.
            config: How quickly they spread.
            epoch_of: The boot epoch of a live member's record, or None for anybody else.
            some_peers: Draws linked peers: at most so many, without the one that is named.
        """
        self.keys: Final = keys
        self._me = me
        self._boot = epoch
        self._epoch = epoch  # of the record, which may rise
        self._config = config
        self._epoch_of = epoch_of
        self._some_peers = some_peers
        self._version = 0
        self._held: dict[str, dict[str, tuple[Hint, float]]] = {}  # by owner and key; with arrival
        self._told: dict[NodeId, int] = {}  # linked peers, with the version that they heard
        self._is_pending = False
        self._push_from = float("-inf")

    def __repr__(self) -> str:
        return f"<Hints of {len(self._held)} owners, own version {self._version}>"

    def get(self, owner: str, key: str) -> bytes | None:
        """Return what an owner's hint says, or None."""
        held = self._held.get(owner, {}).get(key)
        return held[0].value if held else None

    def of(self, owner: str) -> list[Hint]:
        """Return an owner's hints."""
        return [hint for hint, _ in self._held.get(owner, {}).values()]

    def forget(self, owner: str) -> list[str]:
        """Drop an owner's hints and return their keys."""
        return [*self._held.pop(owner, {})]

    # This node's own.

    def write(self, key: str, value: bytes | None, now: float) -> list[Effect]:
        """Change one of this node's own; None takes it back."""
        self._own(key, value, now)
        effects: list[Effect] = [Emit("state.changed", self._me, key)]
        if not self._is_pending:
            self._is_pending = True
            delay_s = max(self._config.flush_delay_s, self._push_from - now)
            effects.append(StartTimer(OwnerHintsDue(self._boot), delay_s))
        return effects

    def follow_epoch(self, epoch: int) -> None:
        """Say the same again in the epoch of this node's record, which rose while it ran."""
        if epoch > self._epoch:
            self._epoch = epoch
            for key, (hint, since) in [*self._held.get(self._me, {}).items()]:
                self._own(key, hint.value, since)

    def push(self, now: float) -> list[Effect]:
        """Tell this node's own to a few peers; the more owners there are, the longer until the next."""
        self._is_pending = False
        self._push_from = now + self._config.hint_spacing_s * len(self._held)
        peers = self._some_peers(self._config.hint_fanout, None)
        return [effect for peer in peers for effect in self.tell(peer)]

    def tell(self, peer: NodeId) -> list[Effect]:
        """Tell a linked peer this node's own, unless it has heard them from this node already."""
        if self._told.get(peer, 0) == self._version:
            return []
        self._told[peer] = self._version
        return _notes(peer, self.of(self._me))

    def link_down(self, peer: NodeId) -> None:
        """Forget what a peer has heard."""
        self._told.pop(peer, None)

    def _own(self, key: str, value: bytes | None, now: float) -> None:
        self._version += 1
        hint = Hint(self._me, self._epoch, self._version, key, value)
        self._held.setdefault(self._me, {})[key] = (hint, now)

    # Others'.

    def hear(self, sender: NodeId, hints: Iterable[Hint], now: float) -> list[Effect]:
        """Take hints of live members, and pass on those that are new."""
        effects: list[Effect] = []
        news: list[Hint] = []
        for hint in hints:
            owner = NodeId(hint.owner)
            if hint.key not in self.keys:
                effects.append(Emit("state.refused", sender, f"{hint.key!r} is no hint"))
            elif owner != self._me and hint.epoch == self._epoch_of(owner):
                counts, is_news = self._take(sender, hint, now)
                effects += [Emit("state.changed", owner, hint.key)] if counts else []
                news += [hint] if is_news else []
        for peer in self._some_peers(self._config.hint_fanout, sender) if news else ():
            effects += _notes(peer, [hint for hint in news if hint.owner != peer])
        return effects

    def _take(self, sender: NodeId, hint: Hint, now: float) -> tuple[bool, bool]:
        """Hold a hint if it counts; return whether it does, and whether it is worth passing on."""
        held = self._held.setdefault(hint.owner, {})
        before, since = held.get(hint.key, (None, now))
        if hint == before:
            return False, False
        is_news = before is None or (before.epoch, before.version) < (hint.epoch, hint.version)
        counts = is_news or sender == hint.owner or now - since > HINT_TRUST_S
        if counts:
            held[hint.key] = (hint, now)
        return counts, is_news


def _notes(to: NodeId, hints: list[Hint]) -> list[Effect]:
    return [SendNote(to, OWNER.encode(note)) for note in hint_notes(hints)]
