"""Why trust is refused: one word for programs, one sentence for people.

The word crosses the link in a refusal and labels a metric, so that both ends count the same thing.
"""

from __future__ import annotations

from enum import StrEnum

from meshnode.errors import HandshakeError


class Reason(StrEnum):
    """Why a peer, a chain or an invite was refused."""

    WRONG_MESH = "wrong_mesh"
    """The other end belongs to another mesh."""
    WRONG_NODE = "wrong_node"
    """A member answered, but not the one that was dialled."""
    SELF = "self"
    """The node dialled its own address."""
    TWIN = "twin"
    """Another process runs with this node's key: a data folder was copied."""
    VERSION = "version"
    """The two ends have no protocol version in common."""
    NOT_A_MEMBER = "not_a_member"
    """The peer shows no admission, or somebody else's."""
    CHAIN = "chain"
    """An admission chain does not hold."""
    ROLE = "role"
    """An invite or admission gives more than its issuer may give."""
    EXPIRED = "expired"
    """The invite was used after its time."""
    CLOCK = "clock"
    """Times contradict each other: a clock is wrong, or a record was back-dated."""
    UNKNOWN_INVITER = "unknown_inviter"
    """The witness does not know the member that made the invite."""
    SIGNATURE = "signature"
    """A signature does not match what it should have signed."""
    REVOKED = "revoked"
    """The peer was evicted, or its admission rests on a key that was."""
    USED_UP = "used_up"
    """The invite has admitted as many devices as it may."""
    FULL = "full"
    """No room for another member."""
    THROTTLED = "throttled"
    """Too many ask to be admitted, or too often."""
    UNAPPROVED = "unapproved"
    """Nobody approved the request to join in its time."""
    TRIAL = "trial"
    """Nothing was refused: the hello only asked whether it would succeed."""
    PROTOCOL = "protocol"
    """The peer does not speak this handshake."""
    OTHER = "other"
    """A reason that this version has no word for."""


class TrustError(HandshakeError):
    """Somebody could not prove what they claim, or refused us; `reason` says which of both and why.

    Changed: nothing; no link and no member came of it.
    To do: what the message says: most often a new invite, or setting a clock.

    Attributes:
        reason: The word for programs.
        by_peer: True if the other end refused us, False if we refused it.
        peer_wall_s: The other end's wall time, if it said it; else 0.
        evidence: Signed entries of the desired state that show the refused one why; may be empty.
        by_member: True if the other end had proven before that it is a member.
    """

    def __init__(
        self,
        reason: Reason,
        sentence: str,
        *,
        by_peer: bool = False,
        peer_wall_s: float = 0.0,
        evidence: bytes = b"",
        by_member: bool = False,
    ) -> None:
        super().__init__(sentence)
        self.reason = reason
        self.by_peer = by_peer
        self.peer_wall_s = peer_wall_s
        self.evidence = evidence
        self.by_member = by_member
