"""What a core asks its driver to do.

A core never acts: it returns these frozen values, and the daemon or the simulator carries them
out. A timer is data: the driver hands `StartTimer.timer` back unchanged when it is due, and a core
recognises a stale one by the token inside it, so timers are never cancelled.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Hashable

    from meshnode.types import Address, NodeId


@dataclass(frozen=True, slots=True)
class Effect:
    """Base of all effects."""


@dataclass(frozen=True, slots=True)
class SendDatagram(Effect):
    """Send a payload to a member by UDP, sealed by the driver; it may be lost."""

    to: NodeId
    payload: bytes


@dataclass(frozen=True, slots=True)
class SendNote(Effect):
    """Send a one-way payload over the link to a member; dropped when there is no link."""

    to: NodeId
    payload: bytes


@dataclass(frozen=True, slots=True)
class Dial(Effect):
    """Open a link to one of these addresses, tried in order.

    Attributes:
        addresses: Where to try.
        expect: The NodeId that must answer, or None to accept any member of the mesh (a seed).
    """

    addresses: tuple[Address, ...]
    expect: NodeId | None = None


@dataclass(frozen=True, slots=True)
class CloseLink(Effect):
    """Close the link to a member; the reason is told to it.

    Attributes:
        to: The member.
        reason: A sentence.
        only_if_idle: Leave the link up if something runs on it; the core asks again if it still cares.
    """

    to: NodeId
    reason: str
    only_if_idle: bool = False


@dataclass(frozen=True, slots=True)
class StartTimer(Effect):
    """Hand `timer` back to the core after `delay_s` seconds."""

    timer: Hashable
    delay_s: float


@dataclass(frozen=True, slots=True)
class Persist(Effect):
    """Write `value` under `key` durably (fsync) before carrying out any later effect.

    A driver that cannot goes on trying, and meanwhile tells nobody what only this value holds.
    """

    key: str
    value: bytes


@dataclass(frozen=True, slots=True)
class LoadModel(Effect):
    """Make a model version of a deployment servable here, fetching its files where missing.

    Attributes:
        model: Its public name.
        version: Its number.
        digest: Of its manifest.
        holders: Nodes that have its files, best first.
        companions: Nodes on which it is placed too, which fetch it or have it; in the order in which to
            ask them.
    """

    model: str
    version: int
    digest: str
    holders: tuple[NodeId, ...]
    companions: tuple[NodeId, ...] = ()


@dataclass(frozen=True, slots=True)
class UnloadModel(Effect):
    """Stop serving a model version after what runs has finished."""

    model: str
    version: int


@dataclass(frozen=True, slots=True)
class OfferModel(Effect):
    """Offer a model version that is here otherwise (`meshnode.models.exposure`); what runs goes on."""

    model: str
    version: int


@dataclass(frozen=True, slots=True)
class Emit(Effect):
    """Tell people what happened: an event for logs, watchers and tests.

    Attributes:
        kind: A dotted word such as `member.dead`.
        subject: What it is about: a NodeId, a model name.
        detail: A sentence.
    """

    kind: str
    subject: str
    detail: str = ""
