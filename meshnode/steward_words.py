"""Which steward's word counts: see `meshnode.stewardship` for the rule."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from meshnode.errors import ProtocolError
from meshnode.state.steward import StewardWord

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from meshnode.types import NodeId


class Held(NamedTuple):
    """A word, and who said it."""

    word: StewardWord
    by: NodeId


class StewardWords:
    """The words of all stewards, and of each deployment the one that counts, or counted last.

    Bounded by the deployments, and those by the live members.
    """

    def __init__(self, ranking: Callable[[str], Sequence[NodeId]]) -> None:
        """`ranking` returns the nodes that could serve a deployment, best first."""
        self._ranking = ranking
        self._words: dict[str, dict[NodeId, StewardWord]] = {}
        self._counting: dict[str, Held] = {}

    def __repr__(self) -> str:
        return f"<StewardWords about {len(self._words)} deployments>"

    def counting(self, name: str) -> Held | None:
        """Return the word that counts, or None before there was one."""
        return self._counting.get(name)

    def heard(self, name: str, node: NodeId, value: bytes | None) -> None:
        """Take what a node says of a deployment now; None, or garbage, for nothing."""
        word = None if value is None else _read(value)
        if word is not None:
            self._words.setdefault(name, {})[node] = word
        elif name in self._words:
            self._words[name].pop(node, None)
            if not self._words[name]:
                del self._words[name]

    def choose(self, name: str) -> Held | None:
        """Find the word that counts; where no live member has one, the last one counts on."""
        words = self._words.get(name)
        if words:
            greatest = max(word.epoch for word in words.values())
            best = [node for node, word in words.items() if word.epoch == greatest]
            node = best[0] if len(best) == 1 else min(best, key=self._rank(name))
            self._counting[name] = Held(words[node], node)
        return self._counting.get(name)

    def wrote(self, name: str, held: Held) -> None:
        """Let this node's own word count at once, so that the next look goes on from it."""
        self._counting[name] = held

    def forget(self, name: str) -> None:
        """Take that a deployment has no steward any more."""
        self._counting.pop(name, None)

    def _rank(self, name: str) -> Callable[[NodeId], tuple[int, NodeId]]:
        ranking = self._ranking(name)
        places = {node: place for place, node in enumerate(ranking)}
        return lambda node: (places.get(node, len(places)), node)


def _read(value: bytes) -> StewardWord | None:
    try:
        return StewardWord.decode(value)
    except ProtocolError:
        return None
