"""The hello of a device that asks to join, and of a member that may approve it.

`meshnode.trust.pairing` tells why it goes this way. These are the sides of `meshnode.trust.hello` with
further rows in their tables:

| state | device, on | member, on |
|---|---|---|
| `AWAIT_HELLO` | Hello: check; `AWAIT_PROOF` | Hello of no mesh: answer as ever; `AWAIT_REQUEST` |
| `AWAIT_PROOF` | Proof: verify, send PairRequest; `AWAIT_NONCE` | PairRequest: verify; `ASKED` |
| `AWAIT_REQUEST` | | PairRequest: verify; `ASKED` |
| `ASKED` | | *its driver* takes the request: send PairNonce; `AWAIT_REVEAL`, or refuses it; `FAILED` |
| `AWAIT_NONCE` | PairNonce: send PairReveal; `AWAIT_APPROVAL` | |
| `AWAIT_REVEAL` | | PairReveal: check, send PairWaiting; `AWAIT_APPROVAL` |
| `AWAIT_APPROVAL` | PairWaiting: note it; Welcome: verify the new chain; `DONE` | *its driver* approves: send Welcome; `DONE`, or refuses; `FAILED` |

The driver bounds the time up to `AWAIT_APPROVAL` as that of any hello, and from there on by the time
that the request has; a device gives up when no PairWaiting has come for `JOIN_SILENCE_S`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Final

from meshnode.limits import JOIN_REQUEST_TTL_S
from meshnode.trust.admission import admit_joiner
from meshnode.trust.chain import verify_chain
from meshnode.trust.hello import (
    MESSAGES,
    AcceptorHello,
    DiallerHello,
    Hello,
    Proof,
    State,
    Steps,
    Welcome,
)
from meshnode.trust.pairing import (
    ANY_MESH,
    NONCE_BYTES,
    Asking,
    Pairing,
    PairNonce,
    PairRequest,
    PairReveal,
    PairWaiting,
    code_of,
    commitment_to,
    signed_request,
)
from meshnode.trust.reasons import Reason, TrustError
from meshnode.trust.records import MESH_ID_BYTES, MeshId
from meshnode.types import NodeId, node_id_of
from meshnode.wire.codec import Codec

if TYPE_CHECKING:
    from meshnode.trust.chain import VerifiedMember
    from meshnode.trust.identity import Identity
    from meshnode.trust.invite import Invite

_MESSAGES: Final = Codec(*MESSAGES, PairRequest, PairNonce, PairReveal, PairWaiting)

_HEXADECIMAL: Final = frozenset("0123456789abcdef")


class AskingHello(DiallerHello):
    """The side of a device that has no invite and asks a member.

    Attributes:
        pairing: The code and whom it is with, once the member has taken the request.
        waits_s: How long the member said last that the request will wait yet, in seconds.
        reminders: How often it has said so.
    """

    def __init__(
        self,
        *,
        identity: Identity,
        asking: Asking,
        boot: int,
        nonce: bytes,
        pairing_nonce: bytes,
        certificate_hash: bytes,
        versions: tuple[int, int],
        expect: NodeId | None = None,
    ) -> None:
        """Prepare to ask.

        Args:
            identity: This device.
            asking: Which mesh, and under which name.
            boot: This start's random number, below 2^64.
            nonce: 32 random bytes for the hello, never used before.
            pairing_nonce: 32 further ones, which nobody may see before their time.
            certificate_hash: SHA-256 of the certificate that the server showed, in DER.
            versions: Lowest and highest protocol version of this node.
            expect: The node that must answer, or None for any member of the mesh.
        """
        super().__init__(
            identity=identity, credential=asking, boot=boot, nonce=nonce,
            certificate_hash=certificate_hash, versions=versions, expect=expect,
        )  # fmt: skip
        if len(pairing_nonce) != NONCE_BYTES:
            raise ValueError(f"a pairing's nonce has {NONCE_BYTES} random bytes")
        self._asking = asking
        self._pairing_nonce = pairing_nonce
        self._commitment = commitment_to(pairing_nonce)
        self._pairing: Pairing | None = None
        self.pairing: Pairing | None = None
        self.waits_s = 0
        self.reminders = 0

    def _is_of_my_mesh(self, hello: Hello) -> bool:
        if self._mesh_id != ANY_MESH:
            return super()._is_of_my_mesh(hello)
        if len(hello.mesh_id) != 2 * MESH_ID_BYTES or not _HEXADECIMAL.issuperset(hello.mesh_id):
            return False
        self._mesh_id = MeshId(hello.mesh_id)  # its chain must come down from it
        return True

    def _on_proof(self, proof: Proof) -> None:
        peer = self._check_signature(proof.signature)
        self._acceptor = verify_chain(proof.chain, self._mesh_id, subject=peer.public_key)
        name, commitment = self._asking.name, self._commitment
        signed = signed_request(self._transcript.digest(), commitment, name)
        self._send(PairRequest(self._identity.sign(signed), name, commitment))
        self.state = State.AWAIT_NONCE

    def _on_nonce(self, message: PairNonce) -> None:
        assert self._acceptor is not None
        self._send(PairReveal(self._pairing_nonce))
        code = code_of(
            transcript=self._transcript.digest(), commitment=self._commitment,
            member_nonce=message.nonce, device_nonce=self._pairing_nonce, name=self._asking.name,
        )  # fmt: skip
        self._pairing = Pairing(self._acceptor.node_id, self._asking.name, code, self._mesh_id)
        self.state = State.AWAIT_APPROVAL

    def _on_waiting(self, waiting: PairWaiting) -> None:
        self.pairing = self._pairing
        self.waits_s = waiting.expires_in_s
        self.reminders += 1

    def _on_welcome(self, welcome: Welcome) -> None:
        assert self._acceptor is not None
        own_key = self._identity.public_key
        admitted = verify_chain(welcome.chain, self._mesh_id, subject=own_key)
        self._succeed(self._acceptor, admitted)

    _CODEC: ClassVar = _MESSAGES
    _STEPS: ClassVar[Steps] = {
        (State.AWAIT_HELLO, Hello): DiallerHello._on_hello,
        (State.AWAIT_PROOF, Proof): _on_proof,
        (State.AWAIT_NONCE, PairNonce): _on_nonce,
        (State.AWAIT_APPROVAL, PairWaiting): _on_waiting,
        (State.AWAIT_APPROVAL, Welcome): _on_welcome,
    }


class ApprovingHello(AcceptorHello):
    """The side of a member: for members and joiners as ever, and for devices that ask.

    Attributes:
        pairing: The code and whom it is with, once the device has revealed its nonce.
    """

    pairing: Pairing | None = None
    _request: PairRequest | None = None
    _pairing_nonce = b""

    @property
    def asked_by(self) -> NodeId | None:
        """The device whose request waits for `take_request` or `refuse`, else None."""
        if self.state is not State.ASKED:
            return None
        assert self._peer is not None
        return node_id_of(self._peer.public_key)

    def take_request(self, nonce: bytes) -> bytes:
        """Go on with the device that asks; return the bytes to send.

        Args:
            nonce: 32 random bytes, never used before.
        """
        assert self.state is State.ASKED
        if len(nonce) != NONCE_BYTES:
            raise ValueError(f"a pairing's nonce has {NONCE_BYTES} random bytes")
        self._pairing_nonce = nonce
        self._send(PairNonce(nonce))
        self.state = State.AWAIT_REVEAL
        return self._take_output()

    def remind(self, expires_in_s: float) -> bytes:
        """Return the bytes that tell the device that it is waited for still, and how long yet."""
        assert self.state is State.AWAIT_APPROVAL
        self._send(PairWaiting(max(0, int(expires_in_s))))
        return self._take_output()

    def approve(self, member: VerifiedMember, invite: Invite, now_wall_s: float) -> bytes:
        """Admit the device; return the bytes to send. The handshake is over then.

        Args:
            member: This node as a member now; its role may have changed since the device asked.
            invite: Made by this node for this one device.
            now_wall_s: Wall time.

        Raises:
            TrustError: if this node may not admit it; nobody was admitted, and the device still waits.
        """
        assert self.state is State.AWAIT_APPROVAL
        assert self._peer is not None
        subject = self._peer.public_key
        admitted = admit_joiner(
            self._roster, witness=self._identity, witness_member=member, grant=invite.signed_grant,
            subject=subject, invite_proof=invite.prove(subject), now_wall_s=now_wall_s,
        )  # fmt: skip
        self._send(Welcome(admitted.chain))
        self._succeed(admitted, admitted)
        return self._take_output()

    def refuse(self, error: TrustError) -> bytes:
        """End it; return the bytes that tell the device why."""
        self._fail(error)
        return self._take_output()

    def _is_of_my_mesh(self, hello: Hello) -> bool:
        return hello.mesh_id == ANY_MESH or super()._is_of_my_mesh(hello)

    def _on_hello(self, hello: Hello) -> None:
        super()._on_hello(hello)
        if hello.mesh_id == ANY_MESH:
            self.state = State.AWAIT_REQUEST

    def _on_request(self, request: PairRequest) -> None:
        signed = signed_request(self._transcript.digest(), request.commitment, request.name)
        peer = self._check_signed(request.signature, signed)
        if self._roster.standing.revocation(node_id_of(peer.public_key)) is not None:
            raise TrustError(
                Reason.REVOKED,
                "this device was taken out of the mesh and its key is revoked: it can come back with a "
                "new one only",
            )
        self._request = request
        self.state = State.ASKED

    def _on_reveal(self, reveal: PairReveal) -> None:
        assert self._request is not None
        assert self._peer is not None
        if commitment_to(reveal.nonce) != self._request.commitment:
            raise TrustError(
                Reason.SIGNATURE,
                "the device revealed another number than the one that it had committed itself to: "
                "somebody tries to choose the code",
            )
        request = self._request
        code = code_of(
            transcript=self._transcript.digest(), commitment=request.commitment,
            member_nonce=self._pairing_nonce, device_nonce=reveal.nonce, name=request.name,
        )  # fmt: skip
        device = node_id_of(self._peer.public_key)
        self.pairing = Pairing(device, request.name, code, self._mesh_id)
        self.state = State.AWAIT_APPROVAL
        self._send(PairWaiting(int(JOIN_REQUEST_TTL_S)))

    _CODEC: ClassVar = _MESSAGES
    _STEPS: ClassVar[Steps] = {
        **AcceptorHello._STEPS,
        (State.AWAIT_HELLO, Hello): _on_hello,
        (State.AWAIT_PROOF, PairRequest): _on_request,
        (State.AWAIT_REQUEST, PairRequest): _on_request,
        (State.AWAIT_REVEAL, PairReveal): _on_reveal,
    }
