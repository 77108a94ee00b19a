"""Joining without an invite: six digits, shown on the new device and typed on a member.

A device that has no invite shares no secret with the mesh, and the network between them may belong to
anybody. What they do share is a person who stands before both, and can carry a few digits from one to
the other. So the device asks a member, both work out a *short authentication string* from what each has
seen of the conversation, the device shows it, and the person types it on the member::

    device (asks)                                       member (approves)
       │ Hello(versions, nonce, key, mesh, boot) ───────────> │
       │ <─────────── Hello(versions, nonce, key, mesh, boot) │
       │ <─────────────────────────── Proof(signature, chain) │  as in every hello
       │ PairRequest(signature, name, commitment) ──────────> │  the key's holder? room? not too often?
       │ <──────────────────────────────── PairNonce(nonce_m) │
       │ PairReveal(nonce_d) ───────────────────────────────> │  does it fit the commitment?
       │ <──────────────────────────── PairWaiting(seconds) … │  and again, every few seconds
       ┊ shows the code                 `meshnode approve CODE`┊  a person types what the device shows
       │ <───────────────────────────────────── Welcome(chain)│  or Refusal

    commitment = H(nonce_d)
    code = H(certificate, both Hellos, commitment, nonce_m, nonce_d, name) mod 10^6

What each side knows. The member knows that the asker holds the key that it showed, for it signed the
request with it; not whose key that is. The device knows that the other end holds a chain of some mesh;
not that this is the mesh which the person means: the mesh's id came from mDNS or from the other end
itself, and both may lie. The code closes the gap: it is the same on both sides only if both saw the same
two Hellos (with both keys), the same TLS certificate and the same nonces, that is if nobody stands in
between. The member does not show the code either. A person who only had to say "yes, the same" would
say it unread; one who has to type it must have looked at the device.

Why six digits are enough. Somebody in between has two conversations, one with each side, and wants
them to come to the same code. Codes of six digits can be tried out by the million in a second, so it
must not be able to choose anything *after* it can compute the outcome:

- Towards the member it plays the device. It must send its commitment before it sees nonce_m, and then has
  one value that it can reveal. So this conversation's code is drawn by the member's nonce.
- Towards the device it plays the member. It must send nonce_m before it sees nonce_d, of which it knows the
  commitment only. So this conversation's code is drawn by the device's nonce.

Neither code can be steered: each pair of conversations agrees with a chance of one in a million, whatever
the computer. Without the commitment the second side to speak would search for a nonce that fits.
What is left is to try often. The device asks once: each further code is shown only when a person asks
for it anew. The member answers few requests (`JOIN_REQUEST_BURST`, then one every `JOIN_REQUEST_REFILL_S`,
over all sources, and fewer from one source), keeps few of them waiting, each for minutes only, and takes
few wrong codes; `meshnode.trust.join_requests` counts. In the five minutes that a code is
shown an attacker on the path has some thirty tries: one chance in thirty thousand, all of it in the log.
The price is that a flood of requests keeps honest devices out for as long as it lasts. Invites work
meanwhile.

What a request can do by itself: nothing. The member admits on `approve` alone, and then through a fresh
invite of its own that is used up at once, so that the chain looks like every other and whatever holds for
invites (roles, revocation) holds here. Conversely an impostor can welcome the device into a mesh of its
own without any code. No protocol prevents that while the device knows nothing of its mesh; therefore
the device says which mesh it has joined, and that `meshnode leave` undoes it if nobody typed the code.

Asked by address, without mDNS, a device does not know a mesh's id. It sends an empty one; the member
answers as it would to who knows the id, and takes no other request than this one on that connection.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Final

import msgspec

from meshnode.limits import MAX_NAME_LENGTH
from meshnode.trust.records import MeshId, Signature
from meshnode.wire.codec import Message

if TYPE_CHECKING:
    from meshnode.types import NodeId

CODE_DIGITS: Final = 6
NONCE_BYTES: Final = 32
COMMITMENT_BYTES: Final = 32

ANY_MESH: Final = MeshId("")
"""What a device says that asks by address and knows no mesh's id."""

_COMMITMENT_CONTEXT: Final = b"meshnode pairing commitment 1\0"
_REQUEST_CONTEXT: Final = b"meshnode pairing request 1\0"
_CODE_CONTEXT: Final = b"meshnode pairing code 1\0"

_Nonce = Annotated[bytes, msgspec.Meta(min_length=NONCE_BYTES, max_length=NONCE_BYTES)]
_Commitment = Annotated[
    bytes, msgspec.Meta(min_length=COMMITMENT_BYTES, max_length=COMMITMENT_BYTES)
]


class PairRequest(Message, frozen=True, tag=71):
    """A device asks to be admitted: its signature, how it calls itself, and H(its nonce)."""

    signature: Signature
    name: Annotated[
        str, msgspec.Meta(pattern=rf"^[A-Za-z0-9._-]{{1,{MAX_NAME_LENGTH}}}\Z")
    ]  # ends in a terminal
    commitment: _Commitment


class PairNonce(Message, frozen=True, tag=72):
    """The member takes the request, and adds its nonce."""

    nonce: _Nonce


class PairReveal(Message, frozen=True, tag=73):
    """The device's nonce: from here on both know the code."""

    nonce: _Nonce


class PairWaiting(Message, frozen=True, tag=74):
    """The request waits for a person; it ends in so many seconds. Also says that the member lives."""

    expires_in_s: Annotated[int, msgspec.Meta(ge=0, le=24 * 3600)]


@dataclass(frozen=True, slots=True)
class Asking:
    """What a device asks with instead of an invite.

    Attributes:
        mesh_id: The mesh that it means, as mDNS said, or `ANY_MESH`.
        name: How it calls itself; what a person reads on the member.
    """

    mesh_id: MeshId
    name: str


@dataclass(frozen=True, slots=True)
class Pairing:
    """A conversation that has come to its code.

    Attributes:
        peer: The other side: the member at the device, the device at the member.
        name: The device's name, as it says.
        code: Six digits.
        mesh_id: The mesh that the member belongs to.
    """

    peer: NodeId
    name: str
    code: str = field(repr=False)  # who reads it could approve without having seen the device
    mesh_id: MeshId


def commitment_to(nonce: bytes) -> bytes:
    """Return what binds a device to its nonce without showing it."""
    return hashlib.sha256(_COMMITMENT_CONTEXT + nonce).digest()


def signed_request(transcript: bytes, commitment: bytes, name: str) -> bytes:
    """Return what a device signs to ask.

    Args:
        transcript: Digest of the certificate and both Hellos.
        commitment: To its nonce.
        name: Its own.
    """
    return _REQUEST_CONTEXT + transcript + commitment + name.encode()


def code_of(
    *, transcript: bytes, commitment: bytes, member_nonce: bytes, device_nonce: bytes, name: str
) -> str:
    """Return the six digits of a conversation.

    Of 2^64 equally likely numbers, the remainder of 10^6 is as good as uniform.

    Args:
        transcript: Digest of the certificate and both Hellos, and so of both keys.
        commitment: As the device sent it.
        member_nonce: Sent by the member after that.
        device_nonce: Revealed by the device after that.
        name: Of the device.
    """
    # All but the last have a fixed length: no two conversations give the same bytes.
    said = b"".join((transcript, commitment, member_nonce, device_nonce, name.encode()))
    number = int.from_bytes(hashlib.sha256(_CODE_CONTEXT + said).digest()[:8], "big")
    return f"{number % 10**CODE_DIGITS:0{CODE_DIGITS}d}"


def shown_code(code: str) -> str:
    """Return a code as it is easiest to read: `123 456`."""
    half = CODE_DIGITS // 2
    return f"{code[:half]} {code[half:]}"


def typed_code(text: str) -> str | None:
    """Return the code that a person typed, spaces and hyphens left out; None if it is none."""
    digits = "".join(character for character in text if character not in " -\t")
    return digits if len(digits) == CODE_DIGITS and digits.isascii() and digits.isdigit() else None
