"""Timers of membership: data with a token, so that a stale one dies harmlessly.

`due` is when the timer should come, in monotonic seconds of this node: one that comes much later
shows that this node itself was asleep.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from meshnode.membership.messages import Incarnation
    from meshnode.types import Address, NodeId


@dataclass(frozen=True, slots=True)
class MembershipTimer:
    """Base of all timers that membership starts: its driver tells them from others by it."""


@dataclass(frozen=True, slots=True)
class ProbePeriod(MembershipTimer):
    """Probe the next member."""


@dataclass(frozen=True, slots=True)
class ProbeTimeout(MembershipTimer):
    """A probe has no direct answer yet: ask helpers."""

    sequence: int
    due: float


@dataclass(frozen=True, slots=True)
class ProbeDeadline(MembershipTimer):
    """A probe's period is over: judge it."""

    sequence: int
    due: float


@dataclass(frozen=True, slots=True)
class NackDue(MembershipTimer):
    """A probe carried out for another member has no answer yet: tell it that this node is there."""

    sequence: int


@dataclass(frozen=True, slots=True)
class RelayExpired(MembershipTimer):
    """A probe carried out for another member is of no use to it any more."""

    sequence: int


@dataclass(frozen=True, slots=True)
class SuspicionExpired(MembershipTimer):
    """A suspect had its time to refute, in this incarnation; `due` tells which of its timers counts."""

    node_id: NodeId
    incarnation: Incarnation
    due: float


@dataclass(frozen=True, slots=True)
class GossipRound(MembershipTimer):
    """Tell rumours to a few members."""


@dataclass(frozen=True, slots=True)
class PushRound(MembershipTimer):
    """Pass on over links what changed."""


@dataclass(frozen=True, slots=True)
class RequestRound(MembershipTimer):
    """Ask for records that are still missing."""


@dataclass(frozen=True, slots=True)
class LinkRound(MembershipTimer):
    """Part with links that neither end needs."""


@dataclass(frozen=True, slots=True)
class LinkSync(MembershipTimer):
    """A link came up, and its other end had the time to begin comparing views."""

    peer: NodeId


@dataclass(frozen=True, slots=True)
class CheckDue(MembershipTimer):
    """Compare views with one linked peer: members joined, and it may have missed that."""


@dataclass(frozen=True, slots=True)
class SyncRound(MembershipTimer):
    """Compare views with one linked peer; forget what is too old."""


@dataclass(frozen=True, slots=True)
class ReconnectRound(MembershipTimer):
    """Dial one of those that are gone."""


@dataclass(frozen=True, slots=True)
class DialDue(MembershipTimer):
    """Dial a member, or a seed, unless the wait was overtaken (its token is another)."""

    target: NodeId | Address
    token: int


@dataclass(frozen=True, slots=True)
class PersistDue(MembershipTimer):
    """Write the known members to disk."""
