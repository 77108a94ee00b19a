from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshnode.errors import Forbidden, InvalidRequest, InviteError
from meshnode.limits import MAX_INVITE_TTL_S
from meshnode.trust.invite import Invite, create_invite
from meshnode.trust.records import is_invite_proof
from meshnode.types import Address, Role

if TYPE_CHECKING:
    from meshnode.trust.chain import VerifiedMember
    from meshnode.trust.identity import Identity

SECRET = b"the invite's very secret seed 32"
SEEDS = (
    Address("192.168.100.123", 8471),
    Address("2001:db8:85a3:8d3:1319:8a2e:370:7348", 8471),
    Address("mesh.example.org", 443),
    Address("fe80::1%eth0", 8471),
)
Make = Callable[..., Invite]


@pytest.fixture
def make(founder: Identity, founded: VerifiedMember, now_wall_s: float) -> Make:
    def make_invite(
        role: Role = Role.OPERATOR, ttl_s: float = 86400, seeds: tuple[Address, ...] = SEEDS
    ) -> Invite:
        return create_invite(
            identity=founder, member=founded, role=role, ttl_s=ttl_s, now_wall_s=now_wall_s,
            seeds=seeds, random_seed=SECRET,
        )  # fmt: skip

    return make_invite


def test_an_invite_comes_back_from_its_line(make: Make) -> None:
    invite = make()
    text = invite.to_text()
    assert Invite.parse(text) == invite
    assert Invite.parse(text).seeds == SEEDS


def test_white_space_of_a_mail_or_a_terminal_does_no_harm(make: Make) -> None:
    text = make().to_text()
    wrapped = "\n".join(text[start : start + 40] for start in range(0, len(text), 40))
    assert Invite.parse(f"  {wrapped}\r\n") == make()


def test_the_line_is_short_enough_to_copy(make: Make) -> None:
    assert len(make(seeds=SEEDS[:1]).to_text()) <= 260
    four = tuple(Address(f"192.168.100.{n}", 8471) for n in range(200, 204))
    assert len(make(seeds=four).to_text()) <= 304
    six = tuple(Address(f"2001:db8:85a3:8d3:1319:8a2e:370:{n}", 8471) for n in range(1000, 1004))
    assert len(make(seeds=four[:2] + six[:2]).to_text()) <= 350
    assert len(make(seeds=six).to_text()) <= 370


def test_only_four_addresses_are_kept(make: Make) -> None:
    assert make(seeds=SEEDS + SEEDS).seeds == SEEDS


def test_the_line_carries_the_key_and_the_joiner_can_prove_it(
    make: Make, founded: VerifiedMember
) -> None:
    invite = Invite.parse(make().to_text())
    proof = invite.prove(b"j" * 32)
    assert is_invite_proof(invite.grant.invite_key, founded.mesh_id, b"j" * 32, proof)
    assert not is_invite_proof(invite.grant.invite_key, founded.mesh_id, b"k" * 32, proof)


def test_repr_never_shows_the_secret(make: Make) -> None:
    invite = make()
    assert SECRET.decode() not in repr(invite)
    assert str(invite) == repr(invite)
    assert repr(invite.signed_grant.signature) not in repr(invite)


def test_every_changed_character_is_noticed(make: Make) -> None:
    text = make().to_text()
    for position in range(5, len(text)):
        other = "A" if text[position] != "A" else "B"
        with pytest.raises(InviteError, match="damaged: copy the whole line"):
            Invite.parse(text[:position] + other + text[position + 1 :])


def test_bits_that_base64_would_drop_are_noticed(make: Make) -> None:
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    for count in range(3):  # all three lengths modulo three
        text = make(seeds=(Address("h" * (count + 1), 1),)).to_text()
        for last in alphabet:
            if last != text[-1]:
                with pytest.raises(InviteError, match="damaged"):
                    Invite.parse(text[:-1] + last)


def test_every_truncation_is_noticed(make: Make) -> None:
    text = make().to_text()
    for length in range(5, len(text)):
        with pytest.raises(InviteError, match="damaged"):
            Invite.parse(text[:length])


@pytest.mark.parametrize("addition", ["A", "=", "!", "é", " mesh1", "A" * 4000])
def test_additions_are_noticed(make: Make, addition: str) -> None:
    with pytest.raises(InviteError, match="damaged"):
        Invite.parse(make().to_text() + addition)


@pytest.mark.parametrize("text", ["", "  ", "hello", "mesh", "meshnode join", "1mesh", "MESH1AAAA"])
def test_what_is_no_invite_is_told_so(text: str) -> None:
    with pytest.raises(InviteError, match="begins with mesh1"):
        Invite.parse(text)


def test_an_invite_of_a_later_format_asks_for_an_update() -> None:
    with pytest.raises(InviteError, match="update meshnode"):
        Invite.parse("mesh2AAAA")


def line_of(*fields: object) -> str:
    body = msgspec.msgpack.encode(fields)
    checksum = hashlib.sha256(b"mesh1" + body).digest()[:4]
    return "mesh1" + base64.urlsafe_b64encode(body + checksum).decode().rstrip("=")


def fields_of(invite: Invite) -> list[object]:
    text = invite.to_text()[5:]
    decoded: list[object] = msgspec.msgpack.decode(
        base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))[:-4]
    )
    return decoded


@pytest.mark.parametrize(
    ("index", "value"),
    [
        (0, b"short"),
        (1, b"short"),
        (2, "emperor"),
        (3, -1),
        (4, 2**60),
        (5, bytes(31)),
        (6, b""),
        (7, [[b"host", 70000, True]]),
        (7, [[b"12345", 1, False]]),
        (7, [[b"\xff", 1, True]]),
        (7, [[b"host", 1, True]] * 5),
    ],
)
def test_a_well_summed_line_with_a_bad_field_is_not_valid(
    make: Make, index: int, value: object
) -> None:
    fields = fields_of(make())
    fields[index] = value
    with pytest.raises(InviteError, match="not valid"):
        Invite.parse(line_of(*fields))


@pytest.mark.parametrize(
    ("index", "value"),
    [(0, bytes(16)), (1, bytes(32)), (2, "admin"), (3, 0), (4, 2_000_000_000), (5, bytes(32))],
)
def test_a_field_that_the_inviter_did_not_sign_is_refused(
    make: Make, index: int, value: object
) -> None:
    fields = fields_of(make())
    fields[index] = value
    with pytest.raises(InviteError, match="not signed by its inviter"):
        Invite.parse(line_of(*fields))


def test_deep_nesting_is_refused_and_does_not_exhaust_the_stack(make: Make) -> None:
    body = msgspec.msgpack.encode(fields_of(make(seeds=())))
    body = bytes([body[0] + 1]) + body[1:] + b"\x91" * 1100 + b"\x90"
    checksum = hashlib.sha256(b"mesh1" + body).digest()[:4]
    text = "mesh1" + base64.urlsafe_b64encode(body + checksum).decode().rstrip("=")
    with pytest.raises(InviteError, match="not valid"):
        Invite.parse(text)


@given(st.text())
@settings(max_examples=100, deadline=None, derandomize=True)
def test_no_text_breaks_the_parser(text: str) -> None:
    for candidate in (text, "mesh1" + text):
        with pytest.raises(InviteError):
            Invite.parse(candidate)


def test_an_expired_invite_says_when(make: Make, now_wall_s: float) -> None:
    invite = make(ttl_s=60)
    invite.require_current(now_wall_s + 60)
    with pytest.raises(InviteError, match="expired at 2027-01-15T08:01:00Z; ask for a new one"):
        invite.require_current(now_wall_s + 61)
    assert invite.expires_at == "2027-01-15T08:01:00Z"


@pytest.mark.parametrize("ttl_s", [0, 0.5, -1, MAX_INVITE_TTL_S + 1, float("nan"), float("inf")])
def test_a_lifetime_out_of_range_is_refused(make: Make, ttl_s: float) -> None:
    with pytest.raises(InvalidRequest, match="30 days"):
        make(ttl_s=ttl_s)


@pytest.mark.parametrize("host", ["", "h" * 254])
def test_a_host_that_does_not_fit_is_refused(make: Make, host: str) -> None:
    with pytest.raises(InvalidRequest, match="not a host"):
        make(seeds=(Address(host, 1),))


def test_a_plain_member_may_not_invite_and_an_operator_makes_no_admin(
    founder: Identity,
    founded: VerifiedMember,
    now_wall_s: float,
    identity_of: Callable[[str], Identity],
    admit_through: Callable[..., VerifiedMember],
) -> None:
    for own, wanted, sentence in (
        (Role.MEMBER, Role.MEMBER, "plain member"),
        (Role.OPERATOR, Role.ADMIN, "operator and cannot invite an admin"),
    ):
        joiner = identity_of("joiner")
        member = admit_through(joiner, (founder, founded), own)
        with pytest.raises(Forbidden, match=sentence):
            create_invite(
                identity=joiner, member=member, role=wanted, ttl_s=60, now_wall_s=now_wall_s,
                seeds=(), random_seed=SECRET,
            )  # fmt: skip
