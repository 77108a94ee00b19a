"""What a node was told, in words: for the timeline of a failure."""

from __future__ import annotations

import re
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Final

from meshnode.events import DialFailed, Leave, LinkDown, LinkUp, Start, TimerFired
from meshnode.membership.timers import SuspicionExpired
from meshnode.node_events import CapabilitiesChanged, ReplicaChanged, ReplicaGone
from meshnode.reconcile_loop import ReconcileDue
from meshnode.stewardship import StewardDue

if TYPE_CHECKING:
    from collections.abc import Iterable

    from meshnode.types import Address

MAX_VALUE_LENGTH: Final = 80
"""Characters of one value; a longer text is cut after a word."""

_WORD_BEGINS: Final = re.compile(r"(?<=[a-z])(?=[A-Z])")


def kind_of(told: object) -> str:
    """Return what kind of event or timer it is, such as `link down`; many alike are counted by it."""
    event = told.timer if isinstance(told, TimerFired) else told
    return _WORD_BEGINS.sub(" ", type(event).__name__).lower()


def words(told: object) -> str:
    """Return an event or a timer in words; nodes stand there by their ids, which the caller replaces."""
    event = told.timer if isinstance(told, TimerFired) else told
    match event:
        case Start():
            return "starts"
        case Leave():
            return "is told to leave"
        case LinkUp(peer, address):
            return f"has a link to {peer} at {address}"
        case LinkDown(peer, reason):
            return f"loses its link to {peer}: {_cut(reason)}"
        case DialFailed(addresses, expect, reason):
            return f"cannot reach {expect or 'a node'} at {_listed(addresses)}: {_cut(reason)}"
        case ReplicaChanged():
            manifest = event.manifest
            text = f"{manifest.model} version {manifest.version} is {event.state}"
            return f"{text}: {_cut(event.reason)}" if event.reason else text
        case ReplicaGone(model, version):
            return f"{model} version {version} is gone"
        case CapabilitiesChanged():
            return "tells anew what it has"
        case SuspicionExpired():
            return f"the time of suspect {event.node_id} is over"
        case ReconcileDue():
            return "looks which models should run here"
        case StewardDue():
            return "looks at the models of which it decides the replicas"
    return _plainly(event)


def _plainly(event: object) -> str:
    """Return an event that has no sentence of its own: its kind, and what of it people can read."""
    said = []
    for field in fields(event) if is_dataclass(event) else ():
        value = getattr(event, field.name)
        if isinstance(value, str | int | float):
            said.append(f"{field.name.replace('_', ' ')} {_cut(str(value))}")
    return kind_of(event) + (f" ({', '.join(said)})" if said else "")


def _listed(addresses: Iterable[Address]) -> str:
    first, *more = [str(each) for each in addresses] or ["no address"]
    return first + (f" and {len(more)} other addresses" if more else "")


def _cut(text: str) -> str:
    if len(text) <= MAX_VALUE_LENGTH:
        return text
    kept, _, _ = text[:MAX_VALUE_LENGTH].rpartition(" ")
    return f"{kept or text[:MAX_VALUE_LENGTH]} ..."
