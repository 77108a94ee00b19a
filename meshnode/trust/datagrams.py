"""Authenticated encryption of UDP datagrams between two members.

A datagram is a header in the clear and a sealed payload::

    version u8 │ sender's id 20 B │ sender's boot u64 │ counter u64 │ ciphertext │ tag 16 B

Both ends derive the same key from their identity keys (X25519, no exchange needed), and from it
one key for each direction between two *runs* of two nodes::

    shared  = X25519(own key, peer's key)                                  (`Identity.shared_key`)
    key     = BLAKE2b(shared, context ‖ sender ‖ receiver ‖ sender's boot ‖ receiver's boot)
    sealed  = ChaCha20-Poly1305(key, nonce = counter, associated data = header)       (RFC 8439)

With ids, direction and both boots inside the key, a datagram opens in exactly one place: not when
it is sent back to its author, not at a third node, not after either end has restarted. What is
left is replay within the life of both runs, which the counter and a window of 64 refuse.

So a node needs the peer's boot before the first datagram. The peer signs it twice: in the hello of
a link (`set_peer_boot`) and in its member record (`follow_record`), which reaches those that have no
link to it. To who is no member a node is silent. A hello with a former boot is refused: two processes
with one key that try to alternate are told apart here. A record may bring one back, for among records
the newest incarnation decides and no message of an earlier day has it; the window of a former run is
kept with it, so that nothing recorded then opens a second time.

There is no forward secrecy: whoever gets a node's key later can read recorded datagrams. They
carry membership news, which every member knows anyhow; requests travel over TLS.
"""

from __future__ import annotations

import base64
import hashlib
import struct
from collections import OrderedDict
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Final

import nacl.bindings
import nacl.exceptions

from meshnode.errors import PeerError, TooLarge
from meshnode.limits import MAX_DATAGRAM_BYTES, MAX_FORMER_BOOTS, MAX_MEMBERS

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshnode.trust.identity import Identity
    from meshnode.types import NodeId

_VERSION: Final = 1
_HEADER: Final = struct.Struct(">B20sQQ")
_TAG_BYTES: Final = 16
_NONCE: Final = struct.Struct(">4xQ")
_BOOTS: Final = struct.Struct(">QQ")
_CONTEXT: Final = b"meshnode datagram 1\0"

OVERHEAD_BYTES: Final = _HEADER.size + _TAG_BYTES
"""What sealing adds to a payload."""

MAX_PAYLOAD_BYTES: Final = MAX_DATAGRAM_BYTES - OVERHEAD_BYTES
"""The largest payload that fits a datagram."""

WINDOW_DATAGRAMS: Final = 64
"""How far datagrams may overtake each other (RFC 4303 asks for 64); bits of one number."""


class DropReason(StrEnum):
    """Why a datagram was not sealed or not opened."""

    MALFORMED = "malformed"
    """Too short, too long, or another version."""
    NO_SESSION = "no_session"
    """Neither a link nor a record has told which run of that node this is."""
    UNKNOWN = "unknown"
    """Not a member, or no longer one."""
    STALE_BOOT = "stale_boot"
    """From another run of the peer than the one that it last signed."""
    REPLAYED = "replayed"
    """Seen before, or too old to tell."""
    FORGED = "forged"
    """The tag does not fit: damaged, forged, reflected, for another node, or for a former run."""


class DatagramError(PeerError):
    """A datagram was dropped, as the network may do to any. It never leaves the node that raises it.

    Changed: nothing.
    To do: nothing; what matters is sent again. A count that grows says that somebody forges them.

    Attributes:
        reason: What callers count.
    """

    def __init__(self, reason: DropReason) -> None:
        super().__init__(f"a datagram was dropped: {reason}")
        self.reason = reason


@dataclass(slots=True)
class _Session:
    """One run of a peer, as seen from this run of this node."""

    boot: int
    former: OrderedDict[int, _Session] = field(default_factory=OrderedDict)  # by boot
    keys: tuple[bytes, bytes] | None = None  # to and from the peer; derived on first use
    next_counter: int = 0
    highest: int = -1
    window: int = 0  # bit i: counter `highest - i` was opened

    def is_new(self, counter: int) -> bool:
        age = self.highest - counter
        return age < 0 or (age < WINDOW_DATAGRAMS and not self.window >> age & 1)

    def remember(self, counter: int) -> None:
        advance = counter - self.highest
        if advance > 0:
            # A shift by more than the window would only build a large number to cut off.
            shifted = self.window << advance if advance < WINDOW_DATAGRAMS else 0
            self.window = (shifted | 1) & (1 << WINDOW_DATAGRAMS) - 1
            self.highest = counter
        else:
            self.window |= 1 << -advance


class DatagramSeal:
    """Seals and opens the datagrams of one run of a node."""

    def __init__(self, identity: Identity, boot: int, *, max_peers: int = MAX_MEMBERS) -> None:
        """Seal as `identity`.

        Args:
            identity: This node.
            boot: The random number of this run, below 2^64, the same as in its hellos. A boot
                that was used before would repeat keys: it must be random, never a counter.
            max_peers: Sessions kept. None is ever forgotten, for with its window would go the
                knowledge of what was replayed; there is one for every member at most.
        """
        self._identity = identity
        self._boot = boot
        self._max_peers = max_peers
        self._raw_id = _raw_id(identity.node_id)
        self._sessions: dict[NodeId, _Session] = {}
        self._node_ids: dict[bytes, NodeId] = {}

    def __repr__(self) -> str:
        return f"<DatagramSeal of {self._identity.node_id}: {len(self._sessions)} peers>"

    def set_peer_boot(self, peer: NodeId, boot: int) -> bool:
        """Note the boot that a member signed in a hello: from now on its datagrams are for it.

        Returns:
            False, with nothing changed, if it is a former boot of the peer (its key runs twice) or
            there is no room; datagrams then do not flow, links still do.
        """
        session = self._sessions.get(peer)
        if session is not None and boot in session.former:
            return False
        return self._follow(peer, boot, session)

    def follow_record(self, peer: NodeId, boot: int) -> bool:
        """Note the boot of a member's newest record: from now on its datagrams are for it.

        Returns:
            False, with nothing changed, if there is no room.
        """
        return self._follow(peer, boot, self._sessions.get(peer))

    def claimed_sender(self, datagram: bytes) -> NodeId | None:
        """Return whose a datagram says it is, if it names the run of a member that this node knows.

        Nothing is proven by that; but a boot is a random number that strangers elsewhere do not know.
        """
        if not OVERHEAD_BYTES <= len(datagram) <= MAX_DATAGRAM_BYTES:
            return None
        _, raw_id, boot, _ = _HEADER.unpack_from(datagram)
        sender = self._node_ids.get(raw_id)
        return sender if sender is not None and self._sessions[sender].boot == boot else None

    def _follow(self, peer: NodeId, boot: int, session: _Session | None) -> bool:
        if session is None:
            if len(self._sessions) >= self._max_peers:
                return False
            self._sessions[peer] = _Session(boot)
            self._node_ids[_raw_id(peer)] = peer
            return True
        if boot == session.boot:
            return True
        former, session.former = session.former, OrderedDict()
        former[session.boot] = session
        if len(former) > MAX_FORMER_BOOTS:
            former.popitem(last=False)
        following = former.pop(boot, None) or _Session(boot)
        following.former = former
        # Counters go on, so that no key can ever meet the same nonce twice.
        following.next_counter = max(following.next_counter, session.next_counter)
        self._sessions[peer] = following
        return True

    def seal(self, peer: NodeId, peer_public_key: bytes, payload: bytes) -> bytes:
        """Encrypt a payload of at most `MAX_PAYLOAD_BYTES` for a member.

        Args:
            peer: Whom it is for.
            peer_public_key: Its Ed25519 public key, from the roster.
            payload: What to say.

        Raises:
            TooLarge: if the payload does not fit.
            DatagramError: `NO_SESSION` or `UNKNOWN`.
        """
        if len(payload) > MAX_PAYLOAD_BYTES:
            raise TooLarge(f"a datagram carries {MAX_PAYLOAD_BYTES} bytes, not {len(payload)}")
        session = self._sessions.get(peer)
        if session is None:
            raise DatagramError(DropReason.NO_SESSION)
        key, _ = session.keys or self._derive(peer, peer_public_key, session)
        header = _HEADER.pack(_VERSION, self._raw_id, self._boot, session.next_counter)
        nonce = _NONCE.pack(session.next_counter)
        session.next_counter += 1
        return header + nacl.bindings.crypto_aead_chacha20poly1305_ietf_encrypt(
            payload, header, nonce, key
        )

    def open(
        self, datagram: bytes, public_key_of: Callable[[NodeId], bytes | None]
    ) -> tuple[NodeId, bytes]:
        """Check and decrypt a datagram.

        Args:
            datagram: What came from the network.
            public_key_of: The roster: a member's public key, or None for anyone else.

        Returns:
            The sender and the payload.

        Raises:
            DatagramError: says why it was dropped. Never answer one: its address may be forged.
        """
        if not OVERHEAD_BYTES <= len(datagram) <= MAX_DATAGRAM_BYTES or datagram[0] != _VERSION:
            raise DatagramError(DropReason.MALFORMED)
        _, raw_id, boot, counter = _HEADER.unpack_from(datagram)
        # In the order of cost: a table, a comparison, the window, and only then cryptography.
        sender = self._node_ids.get(raw_id)
        if sender is None:
            raise DatagramError(DropReason.NO_SESSION)
        public_key = public_key_of(sender)
        if public_key is None:
            raise DatagramError(DropReason.UNKNOWN)
        session = self._sessions[sender]
        if boot != session.boot:
            raise DatagramError(DropReason.STALE_BOOT)
        if not session.is_new(counter):
            raise DatagramError(DropReason.REPLAYED)
        _, key = session.keys or self._derive(sender, public_key, session)
        try:
            payload = nacl.bindings.crypto_aead_chacha20poly1305_ietf_decrypt(
                datagram[_HEADER.size :], datagram[: _HEADER.size], _NONCE.pack(counter), key
            )
        except nacl.exceptions.CryptoError as error:
            raise DatagramError(DropReason.FORGED) from error
        session.remember(counter)
        return sender, payload

    def _derive(self, peer: NodeId, public_key: bytes, session: _Session) -> tuple[bytes, bytes]:
        try:
            shared = self._identity.shared_key(public_key)
        except ValueError as error:
            raise DatagramError(DropReason.UNKNOWN) from error
        own_id, peer_id = self._raw_id, _raw_id(peer)
        to_peer = own_id + peer_id + _BOOTS.pack(self._boot, session.boot)
        from_peer = peer_id + own_id + _BOOTS.pack(session.boot, self._boot)
        session.keys = _key(shared, to_peer), _key(shared, from_peer)
        return session.keys


def _key(shared: bytes, direction: bytes) -> bytes:
    return hashlib.blake2b(_CONTEXT + direction, key=shared, digest_size=32).digest()


def _raw_id(node_id: NodeId) -> bytes:
    """Return the 20 bytes that a NodeId spells in base32."""
    return base64.b32decode(node_id.upper())
