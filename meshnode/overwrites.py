"""Tells of changes to deployments that were overwritten by somebody who had not seen them.

Events (`Emit`): `deployment.overwritten`, about the deployment's name, with a sentence. Every node that holds both
revisions tells it once, when it learns of the second.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from meshnode.effects import Effect, Emit
from meshnode.state.deployment import KEY_PREFIX
from meshnode.state.deployment_history import (
    entries_of,
    origin_of,
    overwritten_entries,
    revision_id,
)
from meshnode.types import NodeId

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from meshnode.state.desired import DesiredState
    from meshnode.state.desired_messages import Entry


class _Known(NamedTuple):
    """What was known of a deployment: the id of the revision that counts, and those that were overwritten unseen."""

    newest: str
    lost: frozenset[str]


class Overwrites:
    """Compares what is kept of each deployment with what was known before."""

    def __init__(self, desired: DesiredState, name_of: Callable[[NodeId], str]) -> None:
        """Begin with what is kept now, of which nothing is told any more.

        Args:
            desired: What the mesh is asked to do.
            name_of: A node's name, for people.
        """
        self._desired = desired
        self._name_of = name_of
        names = [
            key.removeprefix(KEY_PREFIX) for key, _ in desired.items() if key.startswith(KEY_PREFIX)
        ]
        self._known = {name: _known(entries_of(desired, name)) for name in names}

    def __repr__(self) -> str:
        return f"<Overwrites of {len(self._known)} deployments>"

    def look(self, name: str) -> list[Effect]:
        """Return what to tell, once something of a deployment has changed or came late."""
        known, kept = self._known.get(name), entries_of(self._desired, name)
        if not kept:
            self._known.pop(name, None)
            return []
        newest = revision_id(kept[0])
        before = [revision_id(each) for each in kept[1:2]]
        if known is not None and [known.newest] == before == [origin_of(kept[0]).base]:
            # The usual case, of which the others need not be read: one more, made from the last.
            self._known[name] = _Known(newest, known.lost)
            return []
        lost = overwritten_entries(kept)
        self._known[name] = _known(kept)
        if known is None:  # this node has just joined, or nothing was there
            return []
        entries = {revision_id(each): each for each in kept}
        return [
            Emit("deployment.overwritten", name, self._sentence(entries[each], entries[by]))
            for each, by in lost.items()
            if each not in known.lost
        ]

    def _sentence(self, lost: Entry, by: Entry) -> str:
        return (
            f"revision {revision_id(lost)} by {self._who(lost)} was overwritten unseen by revision "
            f"{revision_id(by)} by {self._who(by)}"
        )

    def _who(self, entry: Entry) -> str:
        asked = origin_of(entry).by
        node = self._name_of(NodeId(entry.author))
        return f"{asked} on {node}" if asked else node


def _known(kept: Sequence[Entry]) -> _Known:
    return _Known(revision_id(kept[0]), frozenset(overwritten_entries(kept)))
