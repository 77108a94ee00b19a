"""Where a member takes datagrams, when that is elsewhere than its record says; decided without I/O.

A router that hides a home's addresses, and a laptop that changes networks, make a member's datagrams
come from where nobody can know beforehand. So a member that opens a datagram (`datagrams.py`) from
another place than it sends to asks whether the sender can be reached there::

    member at home ──── Ping, from the router's address ────────────> this node
                  <──── PathChallenge(token), to that address ─────── this node
                   ──── PathResponse(token) ──────────────────────> this node: uses the path

    new place ── datagram ──> candidate ── enough bytes came ──> challenged ── answered ──> path
                                  ▲                                 │                        │
                                  └─────── time is over (2, 4 … s) ─┘      silent 120 s: gone ┘

What an attacker can make of that:

- Who sends a copy of a datagram from a place of its choice gets nothing: a copy does not open. Where
  it overtakes the original, its place is challenged, and only the member itself can answer; the
  original's next datagram leads back.
- A challenge is sent only to a place from which at least as many bytes came as go there, and it is
  no longer than an answer: nobody is hit harder through this node than directly.
- A member that names somebody else's place learns nothing and moves nothing but its own path.

There is one candidate and one path per member, so members bound the table.

A node that is challenged knows by it that its peer sees it from elsewhere, most often through a
router, whose table forgets. It sends such peers a datagram now and then (`keepalive`); that is a
response that nobody asked for, long enough to be challenged.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Final

import msgspec

from meshnode.limits import (
    MAX_PATH_ANSWER_S,
    PATH_ANSWER_S,
    PATH_KEEPALIVE_S,
    PATH_LIFETIME_S,
    PATH_TOKEN_BYTES,
)
from meshnode.trust.datagrams import OVERHEAD_BYTES
from meshnode.wire.codec import Codec, Message

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from meshnode.types import Address, NodeId

_Token = Annotated[bytes, msgspec.Meta(min_length=PATH_TOKEN_BYTES, max_length=PATH_TOKEN_BYTES)]


class PathChallenge(Message, frozen=True, tag=77):
    """Asks the receiver to show that it is where this was sent to."""

    token: _Token


class PathResponse(Message, frozen=True, tag=78):
    """The answer, with the challenge's token; one that answers nothing only shows a place."""

    token: _Token


PATHS: Final = Codec(PathChallenge, PathResponse)
"""The messages between the two ends of a path."""

PATH_MESSAGES: Final = frozenset({77, 78})
"""Their type numbers."""

CHALLENGE_BYTES: Final = OVERHEAD_BYTES + len(PATHS.encode(PathChallenge(bytes(PATH_TOKEN_BYTES))))
"""A sealed challenge, and a sealed response."""

KEEPALIVE: Final = PATHS.encode(PathResponse(bytes(PATH_TOKEN_BYTES)))
"""Shows the sender's place to a peer, and keeps a router's mapping to it."""


@dataclass(slots=True)
class _Candidate:
    """A place from which a member was heard, and what is known of it."""

    place: Address
    credit_bytes: int = 0
    token: bytes | None = None
    due: float = 0.0  # when the answer was due, and the next challenge may go
    failures: int = 0


@dataclass(slots=True)
class _Path:
    """A place at which a member answered."""

    place: Address
    heard_at: float


@dataclass(slots=True)
class Paths:
    """The paths of one node to members.

    Attributes:
        make_token: Returns random bytes, `PATH_TOKEN_BYTES` of them.
        moved: Paths that were answered and are used since.
    """

    make_token: Callable[[], bytes]
    moved: int = 0
    _paths: dict[NodeId, _Path] = field(default_factory=dict)
    _candidates: dict[NodeId, _Candidate] = field(default_factory=dict)
    _seen_by: dict[NodeId, float] = field(default_factory=dict)  # last sent to who challenged us

    def __repr__(self) -> str:
        return f"<Paths: {len(self._paths)} in use, {len(self._candidates)} candidates>"

    def place(self, peer: NodeId, now: float) -> Address | None:
        """Return where a member has answered and was heard lately, or None."""
        path = self._paths.get(peer)
        if path is None or now - path.heard_at > PATH_LIFETIME_S:
            return None
        return path.place

    def heard(
        self, peer: NodeId, source: Address, size_bytes: int, used: Address | None, now: float
    ) -> bytes | None:
        """Take note of where a member's datagram came from, after it was opened.

        Args:
            peer: The member.
            source: Where the datagram came from.
            size_bytes: Its length.
            used: Where datagrams for the member go now.
            now: Monotonic seconds.

        Returns:
            A challenge to be sealed for the member and sent to `source`, or None.
        """
        path = self._paths.get(peer)
        if path is not None and path.place == source and used == source:
            path.heard_at = now
        if used == source:
            return None
        candidate = self._candidates.get(peer)
        if candidate is None or (candidate.place != source and now >= candidate.due):
            candidate = self._candidates[peer] = _Candidate(source)
        if candidate.place != source:
            return None
        candidate.credit_bytes += size_bytes
        if now < candidate.due or candidate.credit_bytes < CHALLENGE_BYTES:
            return None
        return self._challenge(candidate, now)

    def _challenge(self, candidate: _Candidate, now: float) -> bytes:
        if candidate.token is not None:
            candidate.failures += 1
        candidate.token = self.make_token()
        candidate.credit_bytes -= CHALLENGE_BYTES
        wait_s = PATH_ANSWER_S * 2.0 ** min(candidate.failures, 16)
        candidate.due = now + min(MAX_PATH_ANSWER_S, wait_s)
        return PATHS.encode(PathChallenge(candidate.token))

    def answered(self, peer: NodeId, token: bytes, now: float) -> bool:
        """Use the candidate's place from now on, if this is the answer to its challenge."""
        candidate = self._candidates.get(peer)
        if candidate is None or candidate.token is None or candidate.token != token:
            return False
        if now > candidate.due:
            return False
        del self._candidates[peer]
        self._paths[peer] = _Path(candidate.place, now)
        self.moved += 1
        return True

    def forget(self, peer: NodeId) -> None:
        """Drop what is known of a member that is gone."""
        for table in (self._paths, self._candidates, self._seen_by):
            table.pop(peer, None)

    # The other end: this node's own place, as others see it.

    def challenged(self, peer: NodeId, now: float) -> None:
        """Note that a peer sees this node elsewhere than its record says; it was answered now."""
        self._seen_by[peer] = now

    def sent(self, peer: NodeId, now: float) -> None:
        """Note that a datagram went to a peer."""
        if peer in self._seen_by:
            self._seen_by[peer] = now

    def silent(self, linked: Collection[NodeId], now: float) -> list[NodeId]:
        """Return the peers to which a keepalive is due; only linked ones are kept."""
        for peer in [peer for peer in self._seen_by if peer not in linked]:
            del self._seen_by[peer]
        return [
            peer for peer, sent_at in self._seen_by.items() if now - sent_at >= PATH_KEEPALIVE_S
        ]
