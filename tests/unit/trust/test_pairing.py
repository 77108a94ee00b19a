"""Asking to be admitted without an invite: both sides, and whoever stands in between."""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec
import pytest

from meshnode.trust.chain import VerifiedMember, found_mesh, verify_chain
from meshnode.trust.hello import Hello, JoinProof, Proof, Refusal, State, Welcome
from meshnode.trust.identity import Identity
from meshnode.trust.invite import Invite, create_invite
from meshnode.trust.pairing import (
    ANY_MESH,
    Asking,
    Pairing,
    PairNonce,
    PairRequest,
    PairReveal,
    PairWaiting,
    code_of,
    commitment_to,
    shown_code,
    signed_request,
    typed_code,
)
from meshnode.trust.pairing_hello import ApprovingHello, AskingHello
from meshnode.trust.reasons import Reason, TrustError
from meshnode.trust.records import MeshId
from meshnode.trust.roster import Roster
from meshnode.trust.standing import Standing
from meshnode.types import NodeId, Role

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshnode.wire.codec import Message

NOW_S = 1_800_000_000.0
VERSIONS = (1, 3)
CERTIFICATE = hashlib.sha256(b"the member's certificate").digest()
OTHER_CERTIFICATE = hashlib.sha256(b"the certificate in between").digest()


def key(name: str) -> Identity:
    return Identity(hashlib.sha256(name.encode()).digest())


def nonce(*of: object) -> bytes:
    return hashlib.sha256(repr(of).encode()).digest()


@dataclass
class Member:
    """A member that takes requests, as its daemon would drive it."""

    identity: Identity
    member: VerifiedMember

    def accept(self, certificate: bytes = CERTIFICATE, salt: object = 0) -> ApprovingHello:
        roster = Roster(self.member.mesh_id)
        roster.add(self.member.chain)
        hello = ApprovingHello(
            identity=self.identity, member=self.member, roster=roster, boot=1,
            nonce=nonce("member", salt), certificate_hash=certificate, versions=VERSIONS,
            wall_s=NOW_S,
        )  # fmt: skip
        hello.start()
        return hello

    def invite(self, role: Role = Role.OPERATOR) -> Invite:
        return create_invite(
            identity=self.identity, member=self.member, role=role, ttl_s=60, now_wall_s=NOW_S,
            seeds=(), random_seed=nonce("invite", role),
        )  # fmt: skip


@pytest.fixture
def alpha(founder: Identity, founded: VerifiedMember) -> Member:
    return Member(founder, founded)


def device(
    mesh_id: MeshId,
    certificate: bytes = CERTIFICATE,
    *,
    name: str = "new-device",
    who: str = "device",
    expect: NodeId | None = None,
    salt: object = 0,
) -> AskingHello:
    return AskingHello(
        identity=key(who), asking=Asking(mesh_id, name), boot=2, nonce=nonce("device", salt),
        pairing_nonce=nonce("pairing of the device", salt), certificate_hash=certificate,
        versions=VERSIONS, expect=expect,
    )  # fmt: skip


def pump(asking: AskingHello, approving: ApprovingHello, salt: object = 0) -> None:
    """Carry bytes both ways, byte by byte, letting each request go on, until a person is needed."""
    to_member, to_device = asking.start(), b""
    while to_member or to_device:
        if to_member:
            byte, to_member = to_member[:1], to_member[1:]
            to_device += approving.receive(byte)
            if approving.asked_by is not None:
                to_device += approving.take_request(nonce("pairing of the member", salt))
        if to_device:
            byte, to_device = to_device[:1], to_device[1:]
            to_member += asking.receive(byte)


def codes(asking: AskingHello, approving: ApprovingHello) -> tuple[str, str]:
    assert asking.pairing is not None
    assert approving.pairing is not None
    return asking.pairing.code, approving.pairing.code


def frame(message: Message) -> bytes:
    body = msgspec.msgpack.encode(message)
    return len(body).to_bytes(4, "big") + body


def failure(side: AskingHello | ApprovingHello) -> TrustError:
    assert side.state is State.FAILED
    assert side.result is None
    assert side.failed is not None
    return side.failed


# What works


@pytest.mark.parametrize("knows_the_mesh", [True, False])
@pytest.mark.parametrize("role", [Role.MEMBER, Role.OPERATOR])
def test_both_sides_come_to_one_code_and_the_approval_admits(
    alpha: Member, role: Role, knows_the_mesh: bool
) -> None:
    """With the mesh's id from mDNS, and by address alone, where the member tells it."""
    mesh_id = alpha.member.mesh_id
    asking = device(mesh_id if knows_the_mesh else ANY_MESH)
    approving = alpha.accept()
    pump(asking, approving)
    at_device, at_member = codes(asking, approving)
    assert at_device == at_member
    assert typed_code(at_device) == at_device
    assert asking.pairing == Pairing(alpha.identity.node_id, "new-device", at_device, mesh_id)
    assert approving.pairing == Pairing(key("device").node_id, "new-device", at_device, mesh_id)
    assert at_device not in f"{asking.pairing!r}{approving.pairing!r}"
    assert (asking.waits_s, asking.reminders) == (300, 1)
    for side in (asking, approving):
        assert side.result is None
    asking.receive(approving.remind(123.9))
    assert (asking.waits_s, asking.reminders) == (123, 2)
    asking.receive(approving.approve(alpha.member, alpha.invite(role), NOW_S))
    assert asking.result is not None
    assert approving.result is not None
    admitted = asking.result.admitted
    assert admitted is not None
    assert (admitted.node_id, admitted.role) == (key("device").node_id, role)
    assert verify_chain(admitted.chain, mesh_id) == admitted == approving.result.admitted
    assert approving.result.peer == admitted
    assert asking.result.peer == alpha.member


def test_members_and_joiners_are_taken_as_ever_by_a_side_that_takes_requests_too() -> None:
    assert {
        (State.AWAIT_PROOF, Proof),
        (State.AWAIT_PROOF, JoinProof),
    } <= set(ApprovingHello._STEPS)


def test_a_code_is_shown_in_two_groups_and_typed_in_any_way() -> None:
    assert shown_code("012345") == "012 345"
    for typed in ("012345", "012 345", " 012-345 "):
        assert typed_code(typed) == "012345"
    for typed in ("01234", "0123456", "o12345", "", "０１２３４５", "٠١٢٣٤٥"):
        assert typed_code(typed) is None


def test_the_code_depends_on_everything_that_was_said() -> None:
    said = {
        "transcript": nonce("t"),
        "commitment": nonce("c"),
        "member_nonce": nonce("m"),
        "device_nonce": nonce("d"),
    }
    drawn = {code_of(**said, name="a"), code_of(**said, name="b")}
    for part in said:
        drawn.add(code_of(**{**said, part: nonce("other")}, name="a"))
    assert len(drawn) == 6


def test_codes_are_spread_evenly() -> None:
    """100 bins over 20,000 codes: chi-squared with 99 degrees of freedom, beyond 3.5 sigma never."""
    bins = Counter(
        int(
            code_of(
                transcript=nonce("t"), commitment=nonce("c"), member_nonce=nonce("m"),
                device_nonce=nonce(i), name="a",
            )
        )
        // 10_000
        for i in range(20_000)
    )  # fmt: skip
    chi_squared = sum((bins[i] - 200) ** 2 / 200 for i in range(100))
    assert 50 < chi_squared < 150


# Somebody in between


def relayed(alpha: Member, attacker: Member, salt: int) -> tuple[str, str]:
    """A device that believes to talk to alpha, and alpha, which believes to talk to the device.

    The attacker has a TLS connection with each, and answers both with keys of its own: it can read and
    write whatever it likes. Returns the code at the device and the one at the member.
    """
    asking = device(ANY_MESH, OTHER_CERTIFICATE, salt=salt)
    towards_device = attacker.accept(OTHER_CERTIFICATE, salt=salt)
    towards_member = device(alpha.member.mesh_id, who="attacker", salt=("attacker", salt))
    approving = alpha.accept(salt=salt)
    # First towards the member, to know the code that it will be; then towards the device, knowing it.
    pump(towards_member, approving, salt=("alpha", salt))
    pump(asking, towards_device, salt=("attacker", salt))
    return codes(asking, towards_device)[0], codes(towards_member, approving)[1]


def test_a_machine_in_the_middle_makes_the_codes_differ(alpha: Member) -> None:
    identity = key("attacker")
    attacker = Member(identity, found_mesh(identity, nonce("its own root"), NOW_S))
    pairs = [relayed(alpha, attacker, salt) for salt in range(100)]
    assert all(at_device != at_member for at_device, at_member in pairs)


def test_a_member_of_the_same_mesh_in_the_middle_makes_the_codes_differ_too(
    alpha: Member, admit_through: Callable[..., VerifiedMember]
) -> None:
    """It may admit by itself; but it cannot make the device believe that it talks to alpha."""
    identity = key("insider")
    insider = Member(identity, admit_through(identity, (alpha.identity, alpha.member)))
    at_device, at_member = relayed(alpha, insider, 7)
    assert at_device != at_member


def test_one_that_passes_all_bytes_on_but_ends_tls_itself_is_noticed(alpha: Member) -> None:
    asking, approving = device(alpha.member.mesh_id, OTHER_CERTIFICATE), alpha.accept()
    pump(asking, approving)
    assert failure(asking).reason is Reason.SIGNATURE
    assert approving.pairing is None


def test_a_device_shows_no_code_to_another_node_than_the_one_it_asked(alpha: Member) -> None:
    asking, approving = device(alpha.member.mesh_id, expect=key("other").node_id), alpha.accept()
    pump(asking, approving)
    assert failure(asking).reason is Reason.WRONG_NODE


def test_a_device_that_heard_of_a_mesh_asks_no_other_one(alpha: Member) -> None:
    asking, approving = device(MeshId("f" * 32)), alpha.accept()
    pump(asking, approving)
    assert failure(approving).reason is Reason.WRONG_MESH
    assert failure(asking).by_peer


def test_a_mesh_id_that_the_chain_does_not_come_down_from_is_refused(alpha: Member) -> None:
    """By address a device takes the id that the other end says, and holds its chain against it."""
    asking = device(ANY_MESH)
    hello = asking.start()
    liar = Hello(1, 3, nonce("n"), alpha.identity.public_key, "f" * 32, 1)
    transcript = hashlib.sha256(CERTIFICATE + hello[4:] + msgspec.msgpack.encode(liar)).digest()
    signature = alpha.identity.sign(b"meshnode hello acceptor 1\0" + transcript)
    asking.receive(frame(liar) + frame(Proof(signature, alpha.member.chain)))
    assert failure(asking).reason is Reason.WRONG_MESH


@pytest.mark.parametrize("claimed", ["", "F" * 32, "f" * 31, "\x1b" * 32, "f" * 33])
def test_what_is_no_mesh_id_is_not_taken_for_one(alpha: Member, claimed: str) -> None:
    asking = device(ANY_MESH)
    asking.start()
    asking.receive(frame(Hello(1, 3, nonce("n"), alpha.identity.public_key, claimed, 1)))
    assert failure(asking).reason is Reason.WRONG_MESH


# Who breaks the rules


def up_to_request(alpha: Member, request: Callable[[bytes], Message]) -> ApprovingHello:
    """A device written by hand, which knows the transcript and says what it likes."""
    approving = alpha.accept()
    hello = Hello(1, 3, nonce("n"), key("device").public_key, alpha.member.mesh_id, 1)
    answer = approving.receive(frame(hello))
    length = int.from_bytes(answer[:4], "big")
    theirs = answer[4 : 4 + length]
    transcript = hashlib.sha256(CERTIFICATE + msgspec.msgpack.encode(hello) + theirs).digest()
    approving.receive(frame(request(transcript)))
    return approving


def signed(transcript: bytes, who: str = "device") -> PairRequest:
    commitment = commitment_to(nonce("mine"))
    return PairRequest(key(who).sign(signed_request(transcript, commitment, "x")), "x", commitment)


def test_another_nonce_than_the_committed_one_is_refused(alpha: Member) -> None:
    """Else the second to speak would search for one that gives the code it wants."""
    approving = up_to_request(alpha, signed)
    assert approving.asked_by == key("device").node_id
    approving.take_request(nonce("theirs"))
    answer = approving.receive(frame(PairReveal(nonce("chosen later"))))
    assert failure(approving).reason is Reason.SIGNATURE
    assert approving.pairing is None
    assert b"chose the code" in answer or b"choose the code" in answer


def test_a_request_for_a_key_that_the_asker_does_not_hold_is_refused(alpha: Member) -> None:
    approving = up_to_request(alpha, lambda transcript: signed(transcript, "somebody else"))
    assert failure(approving).reason is Reason.SIGNATURE
    assert approving.asked_by is None


def test_a_replayed_request_is_refused(alpha: Member) -> None:
    approving = up_to_request(alpha, lambda _: signed(nonce("an earlier transcript")))
    assert failure(approving).reason is Reason.SIGNATURE


def test_a_device_whose_key_was_revoked_is_refused_before_anybody_is_asked(
    alpha: Member, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        Standing, "revocation", lambda _, node: node == key("device").node_id or None
    )
    asking, approving = device(alpha.member.mesh_id), alpha.accept()
    pump(asking, approving)
    assert failure(approving).reason is failure(asking).reason is Reason.REVOKED
    assert approving.asked_by is None


@pytest.mark.parametrize("name", ["", "a b", "\x1b[2J", "é", "n" * 64, "a\n"])
def test_a_name_that_is_no_name_never_gets_to_a_terminal(alpha: Member, name: str) -> None:
    def request(transcript: bytes) -> PairRequest:
        return msgspec.structs.replace(signed(transcript), name=name)

    assert failure(up_to_request(alpha, request)).reason is Reason.PROTOCOL


def test_a_device_that_named_no_mesh_can_do_nothing_but_ask(alpha: Member) -> None:
    approving = alpha.accept()
    hello = Hello(1, 3, nonce("n"), key("device").public_key, ANY_MESH, 1)
    approving.receive(frame(hello))
    approving.receive(frame(Proof(bytes(64), b"")))
    assert failure(approving).reason is Reason.PROTOCOL


def test_nothing_is_admitted_before_the_approval_whatever_the_device_says(alpha: Member) -> None:
    for message in (
        Welcome(b""), PairWaiting(1), PairNonce(nonce("n")), PairReveal(nonce("n")),
        signed(nonce("t")), Proof(bytes(64), b""),
    ):  # fmt: skip
        asking, approving = device(alpha.member.mesh_id), alpha.accept()
        pump(asking, approving)
        approving.receive(frame(message))
        assert failure(approving).reason is Reason.PROTOCOL


def test_a_device_believes_no_welcome_before_it_has_shown_its_code(alpha: Member) -> None:
    asking = device(alpha.member.mesh_id)
    approving = alpha.accept()
    asking.receive(approving.receive(asking.start()))
    assert asking.state is State.AWAIT_NONCE
    asking.receive(frame(Welcome(alpha.member.chain)))
    assert failure(asking).reason is Reason.PROTOCOL


def test_a_welcome_for_another_node_is_refused_by_the_device(alpha: Member) -> None:
    asking, approving = device(alpha.member.mesh_id), alpha.accept()
    pump(asking, approving)
    asking.receive(frame(Welcome(alpha.member.chain)))
    assert failure(asking).reason is Reason.NOT_A_MEMBER


def test_a_refusal_tells_the_device_why(alpha: Member) -> None:
    asking, approving = device(alpha.member.mesh_id), alpha.accept()
    pump(asking, approving)
    asking.receive(approving.refuse(TrustError(Reason.UNAPPROVED, "nobody typed it")))
    assert failure(asking).reason is Reason.UNAPPROVED
    assert str(failure(asking)) == "the other node refused: nobody typed it"
    assert failure(approving).reason is Reason.UNAPPROVED


def test_a_device_that_gives_up_says_so(alpha: Member) -> None:
    asking, approving = device(alpha.member.mesh_id), alpha.accept()
    pump(asking, approving)
    approving.receive(frame(Refusal("other", "Ctrl-C")))
    assert failure(approving).by_peer


def test_an_approval_that_is_not_allowed_admits_nobody_and_the_device_waits_on(
    alpha: Member,
) -> None:
    asking, approving = device(alpha.member.mesh_id), alpha.accept()
    pump(asking, approving)
    with pytest.raises(TrustError) as caught:
        approving.approve(alpha.member, alpha.invite(), NOW_S + 61)
    assert caught.value.reason is Reason.EXPIRED
    assert approving.state is State.AWAIT_APPROVAL
    asking.receive(approving.approve(alpha.member, alpha.invite(), NOW_S))
    assert asking.result is not None


def test_a_roster_without_room_admits_nobody(alpha: Member) -> None:
    asking, approving = device(alpha.member.mesh_id), alpha.accept()
    full = Roster(alpha.member.mesh_id, max_members=1)
    full.add(alpha.member.chain)
    approving._roster = full
    pump(asking, approving)
    with pytest.raises(TrustError) as caught:
        approving.approve(alpha.member, alpha.invite(), NOW_S)
    assert caught.value.reason is Reason.FULL


def test_nonces_of_a_wrong_length_are_a_mistake_of_the_caller(alpha: Member) -> None:
    with pytest.raises(ValueError, match="32 random bytes"):
        AskingHello(
            identity=key("device"), asking=Asking(ANY_MESH, "x"), boot=2, nonce=nonce("n"),
            pairing_nonce=b"short", certificate_hash=CERTIFICATE, versions=VERSIONS,
        )  # fmt: skip
    approving = up_to_request(alpha, signed)
    with pytest.raises(ValueError, match="32 random bytes"):
        approving.take_request(b"short")


def test_garbage_at_any_point_fails_closed(alpha: Member) -> None:
    """Bytes of a good conversation with one bit turned: no result, and never an exception."""
    rng = random.Random(4)
    for _ in range(300):
        asking, approving = device(alpha.member.mesh_id), alpha.accept()
        flip_at = rng.randrange(900)
        to_member, to_device, count = asking.start(), b"", 0
        while to_member or to_device:
            data, to_member = bytearray(to_member), b""
            if count <= flip_at < count + len(data):
                data[flip_at - count] ^= 1 << rng.randrange(8)
            count += len(data)
            to_device += approving.receive(bytes(data))
            if approving.asked_by is not None:
                to_device += approving.take_request(nonce("pairing of the member"))
            data, to_device = bytearray(to_device), b""
            if count <= flip_at < count + len(data):
                data[flip_at - count] ^= 1 << rng.randrange(8)
            count += len(data)
            to_member += asking.receive(bytes(data))
        assert asking.result is approving.result is None
