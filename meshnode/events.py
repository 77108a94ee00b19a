"""What a driver tells a core: the only ways in which a core's state changes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Hashable

    from meshnode.types import Address, NodeId


@dataclass(frozen=True, slots=True)
class Event:
    """Base of all events."""


@dataclass(frozen=True, slots=True)
class Start(Event):
    """The driver is ready to carry out effects. Comes first, once."""


@dataclass(frozen=True, slots=True)
class DatagramReceived(Event):
    """A member's datagram, already opened and authenticated by the driver."""

    sender: NodeId
    payload: bytes


@dataclass(frozen=True, slots=True)
class NoteReceived(Event):
    """A one-way message from a member over its link."""

    sender: NodeId
    payload: bytes


@dataclass(frozen=True, slots=True)
class LinkUp(Event):
    """A link to a member is authenticated and usable (again)."""

    peer: NodeId
    address: Address


@dataclass(frozen=True, slots=True)
class LinkDown(Event):
    """The last link to a member is gone."""

    peer: NodeId
    reason: str


@dataclass(frozen=True, slots=True)
class DialFailed(Event):
    """None of a `Dial` effect's addresses answered, or the one that did was refused."""

    addresses: tuple[Address, ...]
    expect: NodeId | None
    reason: str


@dataclass(frozen=True, slots=True)
class TimerFired(Event):
    """A timer that the core started is due."""

    timer: Hashable


@dataclass(frozen=True, slots=True)
class Woke(Event):
    """This process stood still, with its machine or alone: whatever it waited for may have come meanwhile."""

    slept_s: float


@dataclass(frozen=True, slots=True)
class Leave(Event):
    """The owner asks the node to leave: say goodbye now; the driver stops soon after."""
