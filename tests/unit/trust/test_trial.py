"""A hello that only asks whether it would succeed: it is judged like any other, and comes to nothing."""

from __future__ import annotations

import hashlib

import msgspec
import pytest

from meshnode.trust.chain import VerifiedMember, admit, found_mesh
from meshnode.trust.hello import AcceptorHello, DiallerHello, Passed, State
from meshnode.trust.identity import Identity
from meshnode.trust.invite import Invite, create_invite
from meshnode.trust.reasons import Reason
from meshnode.trust.roster import Roster
from meshnode.types import NodeId, Role

WALL_S = 1_800_000_000.0
LATER_S = 7200.0
CERTIFICATE = hashlib.sha256(b"certificate").digest()


def identity(name: str) -> Identity:
    return Identity(hashlib.sha256(name.encode()).digest())


FOUNDER = identity("founder")
ROOT = found_mesh(FOUNDER, hashlib.sha256(b"root").digest(), WALL_S)


def invite() -> Invite:
    return create_invite(
        identity=FOUNDER, member=ROOT, role=Role.OPERATOR, ttl_s=3600, now_wall_s=WALL_S, seeds=(),
        random_seed=hashlib.sha256(b"invite").digest(),
    )  # fmt: skip


def member(name: str) -> VerifiedMember:
    joiner, line = identity(name), invite()
    return admit(
        witness=FOUNDER, witness_member=ROOT, inviter=ROOT, grant=line.signed_grant,
        subject=joiner.public_key, invite_proof=line.prove(joiner.public_key), now_wall_s=WALL_S,
    )  # fmt: skip


def dialler(
    credential: VerifiedMember | Invite,
    name: str = "joiner",
    *,
    is_trial: bool = True,
    expect: NodeId | None = None,
) -> DiallerHello:
    return DiallerHello(
        identity=identity(name), credential=credential, boot=1, nonce=b"d" * 32,
        certificate_hash=CERTIFICATE, versions=(1, 1), expect=expect, is_trial=is_trial,
    )  # fmt: skip


def acceptor(wall_s: float = WALL_S) -> AcceptorHello:
    roster = Roster(ROOT.mesh_id)
    roster.add(ROOT.chain)
    return AcceptorHello(
        identity=FOUNDER, member=ROOT, roster=roster, boot=2, nonce=b"a" * 32,
        certificate_hash=CERTIFICATE, versions=(1, 1), wall_s=wall_s,
    )  # fmt: skip


def talk(one: DiallerHello, other: AcceptorHello) -> None:
    other.start()
    data = one.start()
    for side in (other, one, other, one):
        data = side.receive(data)


@pytest.mark.parametrize("credential", [invite(), member("joiner")], ids=["joiner", "member"])
def test_a_trial_that_would_succeed_says_so_and_nobody_is_admitted_or_linked(
    credential: VerifiedMember | Invite,
) -> None:
    one, other = dialler(credential), acceptor(WALL_S + 100)
    talk(one, other)
    assert one.result is not None
    assert one.result.peer.node_id == FOUNDER.node_id
    assert one.result.admitted is None
    assert one.result.peer_wall_s == WALL_S + 100
    assert other.result is not None
    assert other.result.is_trial
    assert other.result.admitted is None


def test_a_trial_with_an_expired_invite_is_refused_with_the_time_over_there() -> None:
    one, other = dialler(invite()), acceptor(WALL_S + LATER_S)
    talk(one, other)
    assert one.failed is not None
    assert one.failed.reason is Reason.EXPIRED
    assert one.failed.by_peer
    assert one.failed.peer_wall_s == WALL_S + LATER_S


def test_a_stranger_is_not_even_told_the_time() -> None:
    root = found_mesh(identity("stranger"), hashlib.sha256(b"other").digest(), WALL_S)
    one, other = dialler(root, "stranger"), acceptor()
    talk(one, other)
    assert one.failed is not None
    assert one.failed.reason is Reason.WRONG_MESH
    assert one.failed.peer_wall_s == 0


def test_a_hello_that_is_no_trial_does_not_take_the_answer_of_one() -> None:
    """Else a member could keep a joiner waiting for ever, telling it that all is well."""
    one, other = dialler(invite(), is_trial=False), acceptor()
    other.start()
    assert one.receive(other.receive(one.start()))
    passed = msgspec.msgpack.encode(Passed(WALL_S))
    one.receive(len(passed).to_bytes(4, "big") + passed)
    assert one.state is State.FAILED
    assert one.failed is not None
    assert one.failed.reason is Reason.PROTOCOL
