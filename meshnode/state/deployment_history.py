"""The revisions of one deployment: which is which, and which of them were overwritten unseen.

Each revision says which one it was made from (`Origin.base`). From the one that counts, that leads back along a
line. What is kept beside that line was written by somebody who did not know of it, most often on the other side of a
network that was cut in two: the last writer won, everywhere alike, and the others are told so.

A revision of an older version of meshnode says nothing of where it comes from, and counts as made from the one before.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from meshnode.errors import MeshError
from meshnode.state.deployment import (
    KEY_PREFIX,
    NOTHING_BEFORE,
    UNKNOWN_ORIGIN,
    Deployment,
    Origin,
    removal_of,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from meshnode.state.desired import DesiredState
    from meshnode.state.desired_messages import Entry

_AUTHOR_CHARACTERS = 6  # of an author's id, enough to tell two that wrote in the same millisecond


@dataclass(frozen=True, slots=True)
class Revision:
    """One revision of a deployment.

    Attributes:
        id: Names it.
        entry: As it was written.
        deployment: What it asks for; None where it deletes, or is of a later version of meshnode.
        removes: Whether it deletes.
        origin: How it came about.
    """

    id: str
    entry: Entry
    deployment: Deployment | None
    removes: bool
    origin: Origin


def revision_id(entry: Entry) -> str:
    """Return what names a revision, the same on every node."""
    stamp = entry.stamp
    return f"{stamp.wall_ms}.{stamp.counter}.{entry.author[:_AUTHOR_CHARACTERS]}"


def base_of(entry: Entry | None) -> str:
    """Return what a revision says that is made from this entry, or from none."""
    return NOTHING_BEFORE if entry is None or entry.deleted else revision_id(entry)


def read_revision(entry: Entry) -> Revision:
    """Return what an entry of a deployment's key says."""
    removal = None if entry.deleted else removal_of(entry.value)
    if entry.deleted or removal is not None:
        origin = UNKNOWN_ORIGIN if removal is None else removal.origin
        return Revision(revision_id(entry), entry, None, True, origin)
    try:
        deployment = Deployment.decode(entry.value)
    except MeshError:
        return Revision(revision_id(entry), entry, None, False, UNKNOWN_ORIGIN)
    return Revision(revision_id(entry), entry, deployment, False, deployment.origin)


def entries_of(desired: DesiredState, name: str) -> tuple[Entry, ...]:
    """Return what is kept of a deployment, newest first; empty if nothing ever was."""
    newest = desired.entry(KEY_PREFIX + name)
    return () if newest is None else (newest, *desired.history(KEY_PREFIX + name))


def revisions(desired: DesiredState, name: str) -> list[Revision]:
    """Return the kept revisions of a deployment, newest first."""
    return [read_revision(entry) for entry in entries_of(desired, name)]


def overwritten(kept: Sequence[Revision]) -> dict[str, str]:
    """Return the revisions that were overwritten unseen, each with the one that took its place.

    Args:
        kept: Revisions of one deployment, newest first.
    """
    return _beside_the_line([(each.id, each.origin.base) for each in kept])


def overwritten_entries(kept: Sequence[Entry]) -> dict[str, str]:
    """Return the same of entries, of which no more is read than that takes."""
    return _beside_the_line([(revision_id(each), origin_of(each).base) for each in kept])


def origin_of(entry: Entry) -> Origin:
    """Return how a revision came about; nothing is said of one that cannot be read."""
    removal = None if entry.deleted else removal_of(entry.value)
    if removal is not None:
        return removal.origin
    try:
        return _BEGINNINGS.decode(entry.value).origin
    except (msgspec.MsgspecError, ValueError):
        return UNKNOWN_ORIGIN


class _Beginning(msgspec.Struct, array_like=True, frozen=True):
    """As much of a deployment's value as `origin_of` needs, the rest unread."""

    name: msgspec.Raw
    manifests: msgspec.Raw
    replicas: msgspec.Raw = msgspec.Raw()
    on: msgspec.Raw = msgspec.Raw()
    enabled: msgspec.Raw = msgspec.Raw()
    constraints: msgspec.Raw = msgspec.Raw()
    resources: msgspec.Raw = msgspec.Raw()
    standby: msgspec.Raw = msgspec.Raw()
    env: msgspec.Raw = msgspec.Raw()
    origin: Origin = UNKNOWN_ORIGIN


_BEGINNINGS = msgspec.msgpack.Decoder(_Beginning)


def _beside_the_line(kept: Sequence[tuple[str, str]]) -> dict[str, str]:
    """Return what is not on the line that leads back from the first; (id, base) of each, newest first."""
    places = {each: place for place, (each, _) in enumerate(kept)}
    lost: dict[str, str] = {}
    at = 0
    while at < len(kept):
        winner, base = kept[at]
        if base == NOTHING_BEFORE:
            following = len(kept)
        else:
            following = places.get(base, at) if base else at + 1
        if following <= at:
            break  # what it was made from is not kept: of older ones nothing can be said
        lost.update((each, winner) for each, _ in kept[at + 1 : following])
        at = following
    return lost
