from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar

import msgspec
import pytest

from meshnode.trust.chain import VerifiedMember, found_mesh, verify_chain
from meshnode.trust.hello import (
    AcceptorHello,
    DiallerHello,
    Hello,
    HelloResult,
    JoinProof,
    Proof,
    State,
    Welcome,
)
from meshnode.trust.identity import Identity
from meshnode.trust.invite import Invite, create_invite
from meshnode.trust.reasons import Reason, TrustError
from meshnode.trust.records import SignedRecord, prove_invite
from meshnode.trust.roster import Roster
from meshnode.types import NodeId, Role

if TYPE_CHECKING:
    from meshnode.wire.codec import Message

NOW_S = 1_800_000_000.0
CERTIFICATE = hashlib.sha256(b"certificate").digest()
VERSIONS = (1, 3)
Side = DiallerHello | AcceptorHello
Admit = Callable[..., VerifiedMember]


def key(name: str) -> Identity:
    return Identity(hashlib.sha256(name.encode()).digest())


@dataclass
class Node:
    """A member as its daemon would hold it."""

    identity: Identity
    member: VerifiedMember
    boot: int
    roster: Roster
    wall_s: float = NOW_S
    nonces: list[bytes] = field(default_factory=list)

    def nonce(self) -> bytes:
        self.nonces.append(f"{self.identity.node_id} {len(self.nonces)}".encode().ljust(32)[-32:])
        return self.nonces[-1]

    def accept(
        self, certificate_hash: bytes = CERTIFICATE, versions: tuple[int, int] = VERSIONS
    ) -> AcceptorHello:
        hello = AcceptorHello(
            identity=self.identity, member=self.member, roster=self.roster, boot=self.boot,
            nonce=self.nonce(), certificate_hash=certificate_hash, versions=versions,
            wall_s=self.wall_s,
        )  # fmt: skip
        assert hello.start() == b""
        return hello

    def dial(
        self,
        expect: NodeId | None = None,
        certificate_hash: bytes = CERTIFICATE,
        versions: tuple[int, int] = VERSIONS,
    ) -> DiallerHello:
        return DiallerHello(
            identity=self.identity, credential=self.member, boot=self.boot, nonce=self.nonce(),
            certificate_hash=certificate_hash, versions=versions, expect=expect,
        )  # fmt: skip

    def invite(self, role: Role = Role.OPERATOR, ttl_s: float = 3600) -> Invite:
        invite = create_invite(
            identity=self.identity, member=self.member, role=role, ttl_s=ttl_s,
            now_wall_s=NOW_S, seeds=(), random_seed=self.nonce(),
        )  # fmt: skip
        return Invite.parse(invite.to_text())


def node_of(identity: Identity, member: VerifiedMember, boot: int, *others: VerifiedMember) -> Node:
    roster = Roster(member.mesh_id)
    for known in (member, *others):
        roster.add(known.chain)
    return Node(identity, member, boot, roster)


@pytest.fixture
def first(founder: Identity, founded: VerifiedMember) -> Node:
    return node_of(founder, founded, 2**64 - 1)


@pytest.fixture
def second(first: Node, admit_through: Admit) -> Node:
    identity = key("second")
    member = admit_through(identity, (first.identity, first.member))
    return node_of(identity, member, 2)


def join_with(invite: Invite, name: str = "joiner", expect: NodeId | None = None) -> DiallerHello:
    return DiallerHello(
        identity=key(name), credential=invite, boot=77, nonce=b"j" * 32,
        certificate_hash=CERTIFICATE, versions=VERSIONS, expect=expect,
    )  # fmt: skip


def pump(dialler: DiallerHello, acceptor: AcceptorHello, step_bytes: int = 1 << 20) -> None:
    """Carry bytes both ways, in steps of some size, until nobody has more to say."""
    to_acceptor, to_dialler = dialler.start(), b""
    while to_acceptor or to_dialler:
        if to_acceptor:
            data, to_acceptor = to_acceptor[:step_bytes], to_acceptor[step_bytes:]
            to_dialler += acceptor.receive(data)
        if to_dialler:
            data, to_dialler = to_dialler[:step_bytes], to_dialler[step_bytes:]
            to_acceptor += dialler.receive(data)


def done(side: Side) -> HelloResult:
    assert side.failed is None
    assert side.result is not None
    assert side.state is State.DONE
    return side.result


def failed(side: Side) -> TrustError:
    assert side.result is None
    assert side.failed is not None
    assert side.state is State.FAILED
    return side.failed


def assert_refused(refuser: Side, refused: Side, reason: Reason) -> None:
    """One side refuses, and the other learns why in the same words."""
    assert (failed(refuser).reason, failed(refuser).by_peer) == (reason, False)
    assert (failed(refused).reason, failed(refused).by_peer) == (reason, True)
    assert str(failed(refused)) == f"the other node refused: {failed(refuser)}"


def frame(message: Message) -> bytes:
    body = msgspec.msgpack.encode(message)
    return len(body).to_bytes(4, "big") + body


def frames(data: bytes) -> list[bytes]:
    """Split a side's output into frames, each with its length in front."""
    found = []
    while data:
        end = 4 + int.from_bytes(data[:4], "big")
        found.append(data[:end])
        data = data[end:]
    return found


# Success


@pytest.mark.parametrize("step_bytes", [1, 7, 1 << 20])
def test_two_members_prove_themselves_to_each_other(
    first: Node, second: Node, step_bytes: int
) -> None:
    dialler, acceptor = second.dial(first.identity.node_id), first.accept()
    pump(dialler, acceptor, step_bytes)
    at_dialler, at_acceptor = done(dialler), done(acceptor)
    assert (at_dialler.peer, at_dialler.peer_boot) == (first.member, first.boot)
    assert (at_acceptor.peer, at_acceptor.peer_boot) == (second.member, second.boot)
    assert at_dialler.version == at_acceptor.version == 3
    assert at_dialler.admitted is None
    assert at_acceptor.admitted is None
    assert at_dialler.leftover == at_acceptor.leftover == b""


@pytest.mark.parametrize("step_bytes", [1, 7, 1 << 20])
@pytest.mark.parametrize("role", list(Role))
def test_an_invite_makes_a_member(first: Node, role: Role, step_bytes: int) -> None:
    """The founder makes a mesh and an invite; the joiner ends up with a chain that all accept."""
    dialler, acceptor = join_with(first.invite(role)), first.accept()
    pump(dialler, acceptor, step_bytes)
    admitted = done(dialler).admitted
    assert admitted is not None
    assert (admitted.node_id, admitted.role) == (key("joiner").node_id, role)
    assert verify_chain(admitted.chain, first.member.mesh_id) == admitted
    assert done(acceptor).admitted == done(acceptor).peer == admitted
    assert done(dialler).peer == first.member


def test_a_joiner_is_a_member_to_everyone_from_then_on(first: Node, second: Node) -> None:
    dialler, acceptor = join_with(first.invite()), first.accept()
    pump(dialler, acceptor)
    admitted = done(dialler).admitted
    assert admitted is not None
    joiner = node_of(key("joiner"), admitted, 3)
    dialler, acceptor = joiner.dial(), second.accept()
    pump(dialler, acceptor)
    assert done(acceptor).peer.node_id == joiner.identity.node_id


def test_the_invite_of_a_joined_operator_is_honoured_by_a_third_member(
    first: Node, second: Node, admit_through: Admit
) -> None:
    member = admit_through(key("third"), (first.identity, first.member), Role.MEMBER)
    third = node_of(key("third"), member, 3, second.member)
    dialler, acceptor = join_with(second.invite()), third.accept()
    pump(dialler, acceptor)
    admitted = done(dialler).admitted
    assert admitted is not None
    assert admitted.role is Role.OPERATOR
    assert third.member.role is Role.MEMBER


def test_joining_again_after_a_lost_welcome_changes_nothing(first: Node) -> None:
    invite = first.invite(ttl_s=60)
    dialler, acceptor = join_with(invite), first.accept()
    pump(dialler, acceptor)
    admitted = done(acceptor).peer
    first.roster.add(admitted.chain)
    first.wall_s += 3600  # the invite has expired meanwhile
    dialler, acceptor = join_with(invite), first.accept()
    pump(dialler, acceptor)
    assert done(dialler).admitted == admitted


def test_a_member_can_be_promoted_by_a_new_invite(first: Node) -> None:
    dialler, acceptor = join_with(first.invite(Role.MEMBER)), first.accept()
    pump(dialler, acceptor)
    first.roster.add(done(acceptor).peer.chain)
    dialler, acceptor = join_with(first.invite(Role.OPERATOR)), first.accept()
    pump(dialler, acceptor)
    assert first.roster.add(done(acceptor).peer.chain).role is Role.OPERATOR


def test_what_follows_the_handshake_belongs_to_the_link(first: Node, second: Node) -> None:
    dialler, acceptor = second.dial(), first.accept()
    answer = acceptor.receive(dialler.start())
    welcome = acceptor.receive(dialler.receive(answer) + b"from the dialler")
    dialler.receive(welcome + b"from the acceptor" * 10_000)
    assert done(dialler).leftover == b"from the acceptor" * 10_000
    assert done(acceptor).leftover == b"from the dialler"
    with pytest.raises(RuntimeError, match="over"):
        dialler.receive(b"more")


@pytest.mark.parametrize(
    ("dialler_versions", "acceptor_versions", "chosen"),
    [
        ((1, 1), (1, 1), 1),
        ((1, 4), (2, 3), 3),
        ((2, 2), (1, 9), 2),
        ((0, 65535), (5, 65535), 65535),
    ],
)
def test_the_highest_common_version_is_chosen(
    first: Node,
    second: Node,
    dialler_versions: tuple[int, int],
    acceptor_versions: tuple[int, int],
    chosen: int,
) -> None:
    dialler = second.dial(versions=dialler_versions)
    acceptor = first.accept(versions=acceptor_versions)
    pump(dialler, acceptor)
    assert done(dialler).version == done(acceptor).version == chosen


# Refusals


@pytest.mark.parametrize(
    ("dialler_versions", "acceptor_versions"), [((1, 2), (3, 4)), ((3, 4), (1, 2))]
)
def test_without_a_common_version_both_ends_learn_the_ranges(
    first: Node,
    second: Node,
    dialler_versions: tuple[int, int],
    acceptor_versions: tuple[int, int],
) -> None:
    dialler = second.dial(versions=dialler_versions)
    acceptor = first.accept(versions=acceptor_versions)
    pump(dialler, acceptor)
    assert_refused(acceptor, dialler, Reason.VERSION)
    assert "1 to 2" in str(dialler.failed)
    assert "3 to 4" in str(dialler.failed)


def test_another_mesh_is_refused_and_shown_nothing(first: Node) -> None:
    stranger = key("stranger")
    elsewhere = node_of(stranger, found_mesh(stranger, bytes(32), NOW_S), 5)
    dialler, acceptor = elsewhere.dial(), first.accept()
    answer = acceptor.receive(dialler.start())
    assert first.identity.public_key not in answer
    assert first.member.mesh_id.encode() not in answer
    dialler.receive(answer)
    assert_refused(acceptor, dialler, Reason.WRONG_MESH)


def test_a_joiner_trusts_no_mesh_but_the_one_of_its_invite(first: Node) -> None:
    """The acceptor claims the invite's mesh, but its chain comes down from another root."""
    invite = first.invite()
    impostor = key("impostor")
    fake = found_mesh(impostor, bytes(32), NOW_S)
    dialler = join_with(invite)
    hello = Hello(1, 3, b"n" * 32, impostor.public_key, invite.mesh_id, 1)
    start = dialler.start()
    transcript = hashlib.sha256(CERTIFICATE + start[4:] + msgspec.msgpack.encode(hello)).digest()
    signature = impostor.sign(b"meshnode hello acceptor 1\0" + transcript)
    answer = dialler.receive(frame(hello) + frame(Proof(signature, fake.chain)))
    assert failed(dialler).reason is Reason.WRONG_MESH
    assert len(frames(answer)) == 1  # the refusal: neither grant nor proof was shown


def test_an_acceptor_that_answers_for_another_mesh_is_refused(first: Node) -> None:
    stranger = key("stranger")
    dialler = first.dial()
    dialler.start()
    dialler.receive(frame(Hello(1, 3, b"n" * 32, stranger.public_key, "f" * 32, 1)))
    assert failed(dialler).reason is Reason.WRONG_MESH


def test_a_member_that_was_not_dialled_is_refused(first: Node, second: Node) -> None:
    expected = key("somebody else").node_id
    dialler, acceptor = second.dial(expected), first.accept()
    pump(dialler, acceptor)
    assert_refused(dialler, acceptor, Reason.WRONG_NODE)
    assert expected in str(acceptor.failed)
    assert first.identity.node_id in str(acceptor.failed)


def test_a_node_that_dials_itself_is_told_so(first: Node) -> None:
    dialler, acceptor = first.dial(), first.accept()
    pump(dialler, acceptor)
    assert_refused(acceptor, dialler, Reason.SELF)


def test_an_identity_that_runs_twice_is_told_apart_by_its_boot(first: Node) -> None:
    twin = node_of(first.identity, first.member, first.boot - 1)
    dialler, acceptor = twin.dial(), first.accept()
    pump(dialler, acceptor)
    assert_refused(dialler, acceptor, Reason.TWIN)
    assert "copied" in str(acceptor.failed)


def test_a_welcome_that_was_not_sent_yet_can_be_taken_back(first: Node, second: Node) -> None:
    dialler, acceptor = second.dial(), first.accept()
    answer = dialler.receive(acceptor.receive(dialler.start()))
    welcome = acceptor.receive(answer)
    assert done(acceptor).peer.node_id == second.identity.node_id
    instead = acceptor.take_back(TrustError(Reason.TWIN, "the former run answers"))
    assert acceptor.result is None
    assert failed(acceptor).reason is Reason.TWIN
    assert instead != welcome
    dialler.receive(instead)
    refusal = failed(dialler)
    assert refusal.reason is Reason.TWIN
    assert refusal.by_peer
    assert "the former run answers" in str(refusal)


def test_only_the_holder_of_the_key_can_raise_the_twin_alarm(first: Node) -> None:
    acceptor = first.accept()
    hello = Hello(1, 3, b"n" * 32, first.identity.public_key, first.member.mesh_id, 1)
    acceptor.receive(frame(hello) + frame(Proof(bytes(64), first.member.chain)))
    assert failed(acceptor).reason is Reason.SIGNATURE


def test_an_echo_of_ones_own_hello_is_oneself(first: Node) -> None:
    dialler = first.dial()
    dialler.receive(dialler.start())
    assert failed(dialler).reason is Reason.SELF


def test_somebody_in_between_with_another_certificate_is_noticed(first: Node, second: Node) -> None:
    """It passes all bytes on unchanged, but terminates TLS with a certificate of its own."""
    dialler = second.dial(certificate_hash=hashlib.sha256(b"the intruder's").digest())
    acceptor = first.accept()
    pump(dialler, acceptor)
    assert_refused(dialler, acceptor, Reason.SIGNATURE)
    assert "in between" in str(dialler.failed)


def test_a_replayed_dialler_is_refused_by_the_same_acceptor_later(
    first: Node, second: Node
) -> None:
    dialler, acceptor = second.dial(), first.accept()
    hello = dialler.start()
    proof = dialler.receive(acceptor.receive(hello))
    acceptor.receive(proof)
    done(acceptor)
    later = first.accept()
    later.receive(hello)
    later.receive(proof)
    assert failed(later).reason is Reason.SIGNATURE


def test_a_replayed_acceptor_is_refused_by_the_same_dialler_later(
    first: Node, second: Node
) -> None:
    answer = first.accept().receive(second.dial().start())
    later = second.dial()
    later.start()
    later.receive(answer)
    assert failed(later).reason is Reason.SIGNATURE


def test_a_proof_of_one_side_serves_the_other_side_nothing(first: Node, second: Node) -> None:
    """The acceptor's Proof, sent back to it by a dialler that claims the acceptor's key."""
    acceptor = first.accept()
    hello = Hello(1, 3, b"n" * 32, first.identity.public_key, first.member.mesh_id, 1)
    _, proof = frames(acceptor.receive(frame(hello)))
    acceptor.receive(proof)
    assert failed(acceptor).reason is Reason.SIGNATURE


@pytest.mark.parametrize("name", ["min_version", "max_version", "nonce", "public_key", "boot"])
@pytest.mark.parametrize("of_dialler", [True, False])
def test_every_field_of_both_hellos_is_signed(
    first: Node, second: Node, name: str, of_dialler: bool
) -> None:
    dialler, acceptor = second.dial(), first.accept()

    def changed(data: bytes) -> bytes:
        hello = msgspec.msgpack.decode(data[4:], type=Hello)
        values = {
            "min_version": 2, "max_version": 2, "nonce": b"?" * 32, "boot": 9,
            "public_key": key("stranger").public_key,
        }  # fmt: skip
        return frame(msgspec.structs.replace(hello, **{name: values[name]}))

    hello = dialler.start()
    answer, proof = frames(acceptor.receive(changed(hello) if of_dialler else hello))
    refusal = dialler.receive((answer if of_dialler else changed(answer)) + proof)
    assert failed(dialler).reason is Reason.SIGNATURE
    acceptor.receive(refusal)
    assert failed(acceptor).by_peer


def test_changing_any_byte_of_the_exchange_makes_no_member(first: Node) -> None:
    """Each byte in turn, in either direction, of a whole joining handshake."""
    invite = first.invite()

    def lengths_with(number_to_change: int, position: int) -> list[int]:
        dialler, acceptor = join_with(invite), first.accept()
        data, lengths = dialler.start(), []
        sides: tuple[Side, ...] = (acceptor, dialler, acceptor, dialler)
        for number, side in enumerate(sides):
            lengths.append(len(data))
            if number == number_to_change:
                data = data[:position] + bytes([data[position] ^ 2]) + data[position + 1 :]
            data = side.receive(data)
        # Only the last message can be lost after the acceptor has done its part.
        assert (dialler.result is None) == (number_to_change < 4)
        assert (acceptor.result is None) == (number_to_change < 3)
        return lengths

    lengths = lengths_with(4, 0)  # none is changed
    for number, length in enumerate(lengths):
        for position in range(0, length, 2):
            lengths_with(number, position)


def test_who_shows_no_chain_is_no_member(first: Node, second: Node) -> None:
    second.member = replace(second.member, chain=b"")
    dialler, acceptor = second.dial(), first.accept()
    pump(dialler, acceptor)
    assert_refused(acceptor, dialler, Reason.NOT_A_MEMBER)
    assert "join with an invite" in str(dialler.failed)


def test_who_shows_the_chain_of_another_is_no_member(first: Node, second: Node) -> None:
    stranger = Node(key("stranger"), second.member, 4, second.roster)
    dialler, acceptor = stranger.dial(), first.accept()
    pump(dialler, acceptor)
    assert_refused(acceptor, dialler, Reason.NOT_A_MEMBER)


# Joining


def test_an_expired_invite_says_when_it_expired(first: Node) -> None:
    invite = first.invite(ttl_s=60)
    first.wall_s += 61
    dialler, acceptor = join_with(invite), first.accept()
    pump(dialler, acceptor)
    assert_refused(acceptor, dialler, Reason.EXPIRED)
    assert "expired at 2027-01-15T08:01:00Z" in str(dialler.failed)


def test_a_witness_whose_clock_is_behind_says_so(first: Node) -> None:
    first.wall_s -= 3600
    dialler, acceptor = join_with(first.invite()), first.accept()
    pump(dialler, acceptor)
    assert_refused(acceptor, dialler, Reason.CLOCK)


def test_the_invite_of_an_unknown_member_says_what_to_do(first: Node, second: Node) -> None:
    dialler, acceptor = join_with(second.invite()), first.accept()
    pump(dialler, acceptor)
    assert_refused(acceptor, dialler, Reason.UNKNOWN_INVITER)
    assert second.identity.node_id in str(dialler.failed)
    assert "try again" in str(dialler.failed)


def test_a_full_mesh_admits_nobody_but_still_links_its_members(first: Node, second: Node) -> None:
    first.roster = Roster(first.member.mesh_id, max_members=2)
    first.roster.add(first.member.chain)
    first.roster.add(second.member.chain)
    dialler, acceptor = join_with(first.invite()), first.accept()
    pump(dialler, acceptor)
    assert_refused(acceptor, dialler, Reason.FULL)
    dialler, acceptor = second.dial(), first.accept()
    pump(dialler, acceptor)
    done(acceptor)


class Cheat(DiallerHello):
    """A joiner that shows another grant and proof than its invite's."""

    grant: SignedRecord
    proof: bytes

    def _on_proof(self, _: Proof) -> None:
        self._send(JoinProof(self._sign(), self.grant, self.proof))
        self.state = State.AWAIT_WELCOME

    _STEPS: ClassVar = {**DiallerHello._STEPS, (State.AWAIT_PROOF, Proof): _on_proof}


def cheat(invite: Invite, grant: SignedRecord, proof: bytes) -> Cheat:
    side = Cheat(
        identity=key("joiner"), credential=invite, boot=77, nonce=b"j" * 32,
        certificate_hash=CERTIFICATE, versions=VERSIONS,
    )  # fmt: skip
    side.grant, side.proof = grant, proof
    return side


def test_a_joiner_gets_no_more_than_its_invite_gives(first: Node) -> None:
    invite = first.invite(Role.MEMBER)
    joiner = key("joiner").public_key
    raised = msgspec.structs.replace(invite.grant, role=Role.ADMIN)
    prolonged = msgspec.structs.replace(invite.grant, expires_at_s=int(NOW_S) + 10**6)
    good, proof = invite.signed_grant, invite.prove(joiner)
    admission = first.member.records[0]
    cases = [
        (SignedRecord(msgspec.msgpack.encode(raised), good.signature), proof, Reason.SIGNATURE),
        (SignedRecord(msgspec.msgpack.encode(prolonged), good.signature), proof, Reason.SIGNATURE),
        (good, bytes(64), Reason.SIGNATURE),
        (good, invite.prove(b"x" * 32), Reason.SIGNATURE),
        (good, prove_invite(key("joiner"), invite.mesh_id, joiner), Reason.SIGNATURE),
        (admission, proof, Reason.CHAIN),
        (SignedRecord(b"", good.signature), proof, Reason.CHAIN),
    ]
    for grant, proof, reason in cases:
        dialler, acceptor = cheat(invite, grant, proof), first.accept()
        pump(dialler, acceptor)
        assert_refused(acceptor, dialler, reason)


def test_a_joiner_accepts_no_admission_but_its_own(first: Node, second: Node) -> None:
    dialler, acceptor = join_with(first.invite()), first.accept()
    acceptor.receive(dialler.receive(acceptor.receive(dialler.start())))
    refusal = dialler.receive(frame(Welcome(second.member.chain)))
    assert failed(dialler).reason is Reason.NOT_A_MEMBER
    assert len(frames(refusal)) == 1


def test_a_nonce_has_32_bytes(first: Node) -> None:
    first.nonce = lambda: b"short"  # type: ignore[method-assign]  # a driver's mistake
    with pytest.raises(ValueError, match="32 random bytes, not 5"):
        first.dial()


def test_repr_tells_the_state_and_the_peer(first: Node, second: Node) -> None:
    dialler, acceptor = second.dial(), first.accept()
    assert repr(dialler) == "<DiallerHello new, with an unknown peer>"
    acceptor.receive(dialler.start())
    assert repr(acceptor) == f"<AcceptorHello await proof, with {second.identity.node_id}>"
