"""The handshake that opens every link: who are you, and are you one of us?

TLS below it gives secrecy, but its certificate is self-made and proves nothing. The hello proves
both ends, in one round trip and a half, the same way for members and for joiners::

    dialler                                              acceptor
       │ Hello(versions, nonce, key, mesh, boot) ────────────> │  this mesh? not myself? a version?
       │ <──────────── Hello(versions, nonce, key, mesh, boot) │
       │ <──────────────────────────── Proof(signature, chain) │
       │  signature? chain? the node I meant?                  │
       │ Proof(signature, chain) ────────────────────────────> │  signature? chain?
       │   or JoinProof(signature, grant, invite signature) ─> │  ... invite valid, inviter known?
       │ <────────────────────────────────────── Welcome(chain)│  (a joiner's new chain)
       │   or Passed(wall time) <───────────────────────────── │  (a trial: nothing comes of it)

A signature covers the side that makes it, SHA-256 of the server's certificate in DER as that side
sees it, and both Hellos byte by byte: nonces, keys, mesh, boots and version ranges. So

- a message replayed from an earlier handshake fails, because one nonce is new;
- somebody in between fails, because the certificate that the dialler sees is not the acceptor's;
- a message sent back to its author fails, because the side is signed (and the key is its own);
- versions cannot be talked down: both ends choose the highest common one from ranges that are signed.

The chain and the invite need no signature here: each names the key that it is about. What a joiner
gives away before the mesh has proven itself is its public key; what the acceptor gives away to a
stranger that knows the mesh's id is its Hello and its chain; to others nothing but a refusal. The
acceptor checks in the order of cost: mesh and version (no cryptography), then one signature, and
only for the holder of that key the chain or the invite.

At any step either end may send Refusal(reason, sentence) instead and be done. Both ends are one
machine: a table from (state, message) to what is done. A pair that is not in the table, a frame
that is no message of the handshake, or too many bytes end it with a refusal:

| state | dialler, on | acceptor, on |
|---|---|---|
| `AWAIT_HELLO` | Hello: check; `AWAIT_PROOF` | Hello: check, send Hello and Proof; `AWAIT_PROOF` |
| `AWAIT_PROOF` | Proof: verify, send Proof or JoinProof; `AWAIT_WELCOME` | Proof or JoinProof: verify or admit, send Welcome; `DONE` |
| `AWAIT_WELCOME` | Welcome: verify the new chain, if a joiner; `DONE`. Passed: `DONE`, in a trial | |
| `DONE` | the link speaks from here on | the same |
| `FAILED` | whatever comes is dropped | the same |

Frames are a u32 length (big-endian) and a message. This much never changes between versions, so
that two versions that cannot talk can still say so. The driver bounds the time
(`HANDSHAKE_TIMEOUT_S`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Final

import msgspec

from meshnode.errors import ProtocolError
from meshnode.limits import MAX_HELLO_BYTES, MAX_REFUSAL_LENGTH
from meshnode.trust.admission import admit_joiner
from meshnode.trust.chain import VerifiedMember, verify_chain
from meshnode.trust.identity import Identity, verify
from meshnode.trust.invite import Invite
from meshnode.trust.reasons import Reason, TrustError
from meshnode.trust.records import MeshId, PublicKey, Signature, SignedRecord
from meshnode.types import Buffer, NodeId, node_id_of
from meshnode.wire.codec import Codec, Message

if TYPE_CHECKING:
    from meshnode.trust.pairing import Asking
    from meshnode.trust.roster import Roster

NONCE_BYTES: Final = 32

_LENGTH_BYTES: Final = 4
_SIGNED_BY_DIALLER: Final = b"meshnode hello dialler 1\0"
_SIGNED_BY_ACCEPTOR: Final = b"meshnode hello acceptor 1\0"

_Version = Annotated[int, msgspec.Meta(ge=0, le=0xFFFF)]


class Hello(Message, frozen=True, tag=60):
    """Who speaks, for which mesh, in which protocol versions.

    `boot` is a random number of each start of a node: it tells a restarted peer from the same one,
    and one key that runs twice from one node with two addresses.
    """

    min_version: _Version
    max_version: _Version
    nonce: Annotated[bytes, msgspec.Meta(min_length=NONCE_BYTES, max_length=NONCE_BYTES)]
    public_key: PublicKey
    mesh_id: str
    boot: Annotated[int, msgspec.Meta(ge=0)]


class Proof(Message, frozen=True, tag=61):
    """A member: its signature over the handshake, and its admission chain; see `JoinProof.is_trial`."""

    signature: Signature
    chain: bytes
    is_trial: bool = False


class JoinProof(Message, frozen=True, tag=62):
    """A joiner: its signature, the invite's grant, and the invite key's signature over its key.

    A trial is judged like any other hello, and ends there: nobody is admitted and no link comes up.
    """

    signature: Signature
    grant: SignedRecord
    invite_proof: Signature
    is_trial: bool = False


class Welcome(Message, frozen=True, tag=63):
    """The acceptor takes the dialler; for a joiner with its new chain."""

    chain: bytes = b""


class Refusal(Message, frozen=True, tag=64):
    """The handshake is over; `reason` is a `Reason`, `sentence` is for the person who waits.

    `wall_s` is the acceptor's wall time once it has shown who it is: a wrong clock explains a lot.
    `evidence` are signed entries of the desired state that show a revoked node that it is one:
    nobody needs to believe the other end's mere word for that.
    """

    reason: str
    sentence: str
    wall_s: float = 0.0
    evidence: bytes = b""


class Passed(Message, frozen=True, tag=79):
    """The acceptor would have taken the dialler, whose hello was a trial; with its wall time."""

    wall_s: float


MESSAGES: Final[tuple[type[Message], ...]] = (Hello, Proof, JoinProof, Welcome, Refusal, Passed)


class State(Enum):
    """Where a side of the handshake stands."""

    NEW = "new"
    AWAIT_HELLO = "await hello"
    AWAIT_PROOF = "await proof"
    AWAIT_WELCOME = "await welcome"
    AWAIT_REQUEST = "await request"
    """From here to `AWAIT_APPROVAL`: a device asks to join (`meshnode.trust.pairing_hello`)."""
    ASKED = "asked"
    AWAIT_NONCE = "await nonce"
    AWAIT_REVEAL = "await reveal"
    AWAIT_APPROVAL = "await approval"
    DONE = "done"
    FAILED = "failed"


Steps = Mapping[tuple[State, type[Message]], Callable[[Any, Any], None]]
"""What is done with a message in a state: the table of the module's docstring."""


@dataclass(frozen=True, slots=True)
class HelloResult:
    """What a handshake established.

    Attributes:
        peer: The other end, verified; the roster should have its chain.
        peer_boot: Its boot number.
        version: The protocol version that both speak from here on.
        admitted: The member that this handshake admitted: oneself at a joiner, the peer at its
            witness (also when it repeats an admission that was lost on the way), else None.
        leftover: Bytes after the handshake: the first of the link.
        is_trial: Whether nothing may come of it: no link, and no member.
        peer_wall_s: The peer's wall time, at the dialler of a trial.
    """

    peer: VerifiedMember
    peer_boot: int
    version: int
    admitted: VerifiedMember | None
    leftover: bytes = field(repr=False)
    is_trial: bool = False
    peer_wall_s: float = 0.0


class _Side:
    """What dialler and acceptor share: frames, transcript, the table's engine, the end.

    Attributes:
        state: Where it stands.
        result: Set when the handshake succeeded.
        failed: Set when it did not. What `receive` returned still has to be sent: it tells the
            other end why.
    """

    _STEPS: ClassVar[Steps]
    _CODEC: ClassVar = Codec(*MESSAGES)
    _OWN_CONTEXT: ClassVar[bytes]
    _PEER_CONTEXT: ClassVar[bytes]

    def __init__(
        self,
        *,
        identity: Identity,
        mesh_id: MeshId,
        boot: int,
        nonce: bytes,
        certificate_hash: bytes,
        versions: tuple[int, int],
    ) -> None:
        if len(nonce) != NONCE_BYTES:
            raise ValueError(f"a hello's nonce has {NONCE_BYTES} random bytes, not {len(nonce)}")
        self.state = State.NEW
        self.result: HelloResult | None = None
        self.failed: TrustError | None = None
        self._identity = identity
        self._mesh_id = mesh_id
        self._own = Hello(*versions, nonce, identity.public_key, mesh_id, boot)
        self._transcript = hashlib.sha256(certificate_hash)
        self._peer: Hello | None = None
        self._version = 0
        self._input = bytearray()
        self._taken_bytes = 0
        self._output: list[bytes] = []
        self._wall_s = 0.0

    def __repr__(self) -> str:
        peer = node_id_of(self._peer.public_key) if self._peer else "an unknown peer"
        return f"<{type(self).__name__} {self.state.value}, with {peer}>"

    def receive(self, data: Buffer) -> bytes:
        """Take bytes from the peer; return what has to be sent to it.

        Raises:
            RuntimeError: after the handshake succeeded: those bytes belong to the link.
        """
        if self.state is State.DONE:
            raise RuntimeError("the handshake is over; its result has what was left over")
        if self.state is State.FAILED:
            return b""
        self._input += data
        try:
            while self.result is None and (frame := self._next_frame()) is not None:
                self._handle(frame)
        except TrustError as error:
            self._fail(error)
        return self._take_output()

    def _next_frame(self) -> bytes | None:
        if len(self._input) < _LENGTH_BYTES:
            return None
        end = _LENGTH_BYTES + int.from_bytes(self._input[:_LENGTH_BYTES], "big")
        # The length is judged before its bytes are waited for.
        if self._taken_bytes + end > MAX_HELLO_BYTES:
            raise TrustError(Reason.PROTOCOL, "the peer sent more than a handshake may hold")
        if len(self._input) < end:
            return None
        self._taken_bytes += end
        frame = bytes(self._input[_LENGTH_BYTES:end])
        del self._input[:end]
        return frame

    def _handle(self, frame: bytes) -> None:
        try:
            message = self._CODEC.decode(frame)
        except ProtocolError as error:
            raise TrustError(Reason.PROTOCOL, f"the peer sent no handshake: {error}") from error
        if isinstance(message, Refusal):
            raise _refused(message, by_member=self._is_peer_proven())
        step = self._STEPS.get((self.state, type(message)))
        if step is None:
            raise TrustError(Reason.PROTOCOL, "the peer's messages do not follow the handshake")
        if isinstance(message, Hello):
            self._transcript.update(frame)
        step(self, message)

    def _check_hello(self, hello: Hello) -> Hello:
        """Check what costs nothing and choose the version."""
        if not self._is_of_my_mesh(hello):
            raise TrustError(Reason.WRONG_MESH, "this node belongs to another mesh")
        if hello.public_key == self._identity.public_key and hello.boot == self._own.boot:
            raise TrustError(Reason.SELF, "the node dialled its own address")
        version = min(hello.max_version, self._own.max_version)
        if version < max(hello.min_version, self._own.min_version):
            raise TrustError(
                Reason.VERSION,
                "no common protocol version: one node speaks "
                f"{self._own.min_version} to {self._own.max_version}, the other "
                f"{hello.min_version} to {hello.max_version}; update the older one",
            )
        self._peer, self._version = hello, version
        return hello

    def _is_of_my_mesh(self, hello: Hello) -> bool:
        return hello.mesh_id == self._mesh_id

    def _sign(self) -> bytes:
        return self._identity.sign(self._OWN_CONTEXT + self._transcript.digest())

    def _check_signature(self, signature: bytes) -> Hello:
        return self._check_signed(signature, self._PEER_CONTEXT + self._transcript.digest())

    def _check_signed(self, signature: bytes, signed: bytes) -> Hello:
        assert self._peer is not None
        if not verify(self._peer.public_key, signed, signature):
            raise TrustError(
                Reason.SIGNATURE,
                "the peer's signature does not fit this connection: it was replayed, damaged, or "
                "somebody stands in between",
            )
        # Judged only here, so that nobody can raise this alarm without the key.
        if self._peer.public_key == self._identity.public_key:
            raise TrustError(
                Reason.TWIN,
                f"another process runs with the identity of {self._identity.node_id}: a data "
                "folder was copied, or is used twice; stop one, and give it a folder of its own",
            )
        return self._peer

    def _send(self, message: Message) -> None:
        frame = self._CODEC.encode(message)
        if isinstance(message, Hello):
            self._transcript.update(frame)
        self._output.append(len(frame).to_bytes(_LENGTH_BYTES, "big") + frame)

    def _take_output(self) -> bytes:
        output = b"".join(self._output)
        self._output.clear()
        return output

    def _succeed(
        self,
        peer: VerifiedMember,
        admitted: VerifiedMember | None,
        *,
        is_trial: bool = False,
        peer_wall_s: float = 0.0,
    ) -> None:
        assert self._peer is not None
        leftover = bytes(self._input)
        self._input.clear()
        self.result = HelloResult(
            peer, self._peer.boot, self._version, admitted, leftover, is_trial, peer_wall_s
        )
        self.state = State.DONE

    def _fail(self, error: TrustError) -> None:
        self._input.clear()
        self.failed = error
        if not error.by_peer:
            self._send(Refusal(error.reason, str(error), self._told_wall_s(), error.evidence))
        self.state = State.FAILED

    def _is_peer_proven(self) -> bool:
        """Whether the other end has proven that it is a member."""
        return False

    def take_back(self, error: TrustError) -> bytes:
        """Refuse a peer after all, whose Welcome was not sent; return what to send instead of it."""
        self.result = None
        self._output.clear()
        self._fail(error)
        return self._take_output()

    def _told_wall_s(self) -> float:
        """Return what a refusal says of the time: nothing before this side has shown who it is."""
        return self._wall_s


class DiallerHello(_Side):
    """The side that opened the connection: a member with its chain, or a joiner with an invite."""

    _OWN_CONTEXT = _SIGNED_BY_DIALLER
    _PEER_CONTEXT = _SIGNED_BY_ACCEPTOR

    def __init__(
        self,
        *,
        identity: Identity,
        credential: VerifiedMember | Invite | Asking,
        boot: int,
        nonce: bytes,
        certificate_hash: bytes,
        versions: tuple[int, int],
        expect: NodeId | None = None,
        is_trial: bool = False,
        roster: Roster | None = None,
    ) -> None:
        """Prepare to say hello.

        Args:
            identity: This node.
            credential: Itself as a member, or the invite that it joins with. (A device that asks
                without one is an `AskingHello`.)
            boot: This start's random number, below 2^64.
            nonce: 32 random bytes, never used before.
            certificate_hash: SHA-256 of the certificate that the server showed, in DER.
            versions: Lowest and highest protocol version of this node.
            expect: The node that must answer, or None for any member of the mesh.
            is_trial: Only ask whether this hello would succeed: the other end closes after it.
            roster: The members that this node knows and who is out; None for a joiner. Read only.
        """
        super().__init__(
            identity=identity, mesh_id=credential.mesh_id, boot=boot, nonce=nonce,
            certificate_hash=certificate_hash, versions=versions,
        )  # fmt: skip
        self._credential = credential
        self._expect = expect
        self._is_trial = is_trial
        self._roster = roster
        self._acceptor: VerifiedMember | None = None

    def start(self) -> bytes:
        """Return the bytes to send first."""
        self._send(self._own)
        self.state = State.AWAIT_HELLO
        return self._take_output()

    def _on_hello(self, hello: Hello) -> None:
        hello = self._check_hello(hello)
        answered = node_id_of(hello.public_key)
        if self._expect is not None and answered != self._expect:
            raise TrustError(
                Reason.WRONG_NODE, f"{answered} answered where {self._expect} was dialled"
            )
        self.state = State.AWAIT_PROOF

    def _on_proof(self, proof: Proof) -> None:
        peer = self._check_signature(proof.signature)
        acceptor = verify_chain(proof.chain, self._mesh_id, subject=peer.public_key)
        if self._roster is not None:
            self._roster.require_good(acceptor)
        self._acceptor = acceptor
        # Only now, to a proven member, does this side show what it is.
        if isinstance(self._credential, Invite):
            invite_proof = self._credential.prove(self._identity.public_key)
            grant = self._credential.signed_grant
            self._send(JoinProof(self._sign(), grant, invite_proof, self._is_trial))
        elif isinstance(self._credential, VerifiedMember):
            self._send(Proof(self._sign(), self._credential.chain, self._is_trial))
        self.state = State.AWAIT_WELCOME

    def _on_welcome(self, welcome: Welcome) -> None:
        assert self._acceptor is not None
        admitted = None
        if isinstance(self._credential, Invite):
            admitted = verify_chain(welcome.chain, self._mesh_id, subject=self._identity.public_key)
        self._succeed(self._acceptor, admitted)

    def _is_peer_proven(self) -> bool:
        return self._acceptor is not None

    def _on_passed(self, passed: Passed) -> None:
        assert self._acceptor is not None
        if not self._is_trial:
            raise TrustError(Reason.PROTOCOL, "the peer took this hello for a trial")
        self._succeed(self._acceptor, None, is_trial=True, peer_wall_s=passed.wall_s)

    _STEPS: ClassVar[Steps] = {
        (State.AWAIT_HELLO, Hello): _on_hello,
        (State.AWAIT_PROOF, Proof): _on_proof,
        (State.AWAIT_WELCOME, Welcome): _on_welcome,
        (State.AWAIT_WELCOME, Passed): _on_passed,
    }


class AcceptorHello(_Side):
    """The side that was dialled: always a member; it may witness a joiner's admission."""

    _OWN_CONTEXT = _SIGNED_BY_ACCEPTOR
    _PEER_CONTEXT = _SIGNED_BY_DIALLER

    def __init__(
        self,
        *,
        identity: Identity,
        member: VerifiedMember,
        roster: Roster,
        boot: int,
        nonce: bytes,
        certificate_hash: bytes,
        versions: tuple[int, int],
        wall_s: float,
    ) -> None:
        """Prepare to answer a hello.

        Args:
            identity: This node.
            member: Itself as a member.
            roster: The members that it knows; read here, never changed.
            boot: This start's random number, below 2^64.
            nonce: 32 random bytes, never used before.
            certificate_hash: SHA-256 of this server's certificate, in DER.
            versions: Lowest and highest protocol version of this node.
            wall_s: Wall time, by which an invite is judged.
        """
        super().__init__(
            identity=identity, mesh_id=member.mesh_id, boot=boot, nonce=nonce,
            certificate_hash=certificate_hash, versions=versions,
        )  # fmt: skip
        self._member = member
        self._roster = roster
        self._wall_s = wall_s

    def start(self) -> bytes:
        """Return the bytes to send first: none, the dialler begins."""
        self.state = State.AWAIT_HELLO
        return b""

    def _on_hello(self, hello: Hello) -> None:
        self._check_hello(hello)
        self._send(self._own)
        self._send(Proof(self._sign(), self._member.chain))
        self.state = State.AWAIT_PROOF

    def _on_proof(self, proof: Proof) -> None:
        peer = self._check_signature(proof.signature)
        member = verify_chain(proof.chain, self._mesh_id, subject=peer.public_key)
        self._roster.require_good(member)
        self._send(Passed(self._wall_s) if proof.is_trial else Welcome())
        self._succeed(member, None, is_trial=proof.is_trial)

    def _on_join(self, join: JoinProof) -> None:
        peer = self._check_signature(join.signature)
        admitted = admit_joiner(
            self._roster, witness=self._identity, witness_member=self._member, grant=join.grant,
            subject=peer.public_key, invite_proof=join.invite_proof, now_wall_s=self._wall_s,
        )  # fmt: skip
        if join.is_trial:
            self._send(Passed(self._wall_s))
            self._succeed(admitted, None, is_trial=True)
        else:
            self._send(Welcome(admitted.chain))
            self._succeed(admitted, admitted)

    def _told_wall_s(self) -> float:
        return self._wall_s if self.state is State.AWAIT_PROOF else 0.0

    _STEPS: ClassVar[Steps] = {
        (State.AWAIT_HELLO, Hello): _on_hello,
        (State.AWAIT_PROOF, Proof): _on_proof,
        (State.AWAIT_PROOF, JoinProof): _on_join,
    }


def _refused(refusal: Refusal, *, by_member: bool) -> TrustError:
    """Turn the peer's refusal into an error that is safe to show in a terminal."""
    shown = "".join(
        character if character.isprintable() else " "
        for character in refusal.sentence[:MAX_REFUSAL_LENGTH]
    )
    reason = Reason(refusal.reason) if refusal.reason in set(Reason) else Reason.OTHER
    return TrustError(
        reason,
        f"the other node refused: {shown}",
        by_peer=True,
        peer_wall_s=refusal.wall_s,
        evidence=refusal.evidence,
        by_member=by_member,
    )
