"""What a set of statements makes of chains that hold by themselves."""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshnode.trust.chain import VerifiedMember, admit, found_mesh, promote, succeed
from meshnode.trust.identity import Identity
from meshnode.trust.invite import Invite, create_invite
from meshnode.trust.reasons import Reason
from meshnode.trust.standing import InviteUses, Order, Standing, Stated, standing_of
from meshnode.trust.statements import (
    Revocation,
    RoleChange,
    Statement,
    keeps,
    pack_keeps,
    read_revocation,
    read_role_change,
    write_statement,
)
from meshnode.types import NodeId, Role, node_id_of

BEGIN_S = 1_800_000_000


def seed_of(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()


@dataclass
class Town:
    """A founder and whom they and others invited; statements about them, each at its second."""

    members: dict[str, VerifiedMember] = field(default_factory=dict)
    stated: list[Stated] = field(default_factory=list)
    uses: InviteUses = field(default_factory=InviteUses)

    def __post_init__(self) -> None:
        self.members["founder"] = found_mesh(Identity(seed_of("founder")), seed_of("root"), BEGIN_S)

    def id(self, name: str) -> NodeId:
        return node_id_of(self.key(name))

    def key(self, name: str) -> bytes:
        return Identity(seed_of(name)).public_key

    def invite(self, by: str, role: Role = Role.OPERATOR, at: int = 0, uses: int = 0) -> Invite:
        return create_invite(
            identity=Identity(seed_of(by)), member=self.members[by], role=role, ttl_s=86_400,
            now_wall_s=BEGIN_S + at, seeds=(), uses=uses,
            random_seed=seed_of(f"invite {by} {role} {at} {uses}"),
        )  # fmt: skip

    def join(self, name: str, invite: Invite, by: str, at: int = 0, witness: str = "") -> None:
        witness = witness or by
        joiner = Identity(seed_of(name))
        self.members[name] = member = admit(
            witness=Identity(seed_of(witness)), witness_member=self.members[witness],
            inviter=self.members[by], grant=invite.signed_grant, subject=joiner.public_key,
            invite_proof=invite.prove(joiner.public_key), now_wall_s=BEGIN_S + at,
        )  # fmt: skip
        self.uses.register(member)

    def add(
        self, name: str, by: str, role: Role = Role.OPERATOR, at: int = 0, witness: str = ""
    ) -> None:
        self.join(name, self.invite(by, role, at), by, at, witness)

    def order(self, author: str, at: float, value: bytes = b"") -> Order:
        return (int((BEGIN_S + at) * 1000), 0, self.id(author), value)

    def state(self, author: str, at: float, statement: Statement) -> Stated:
        order = self.order(author, at, write_statement(statement))
        self.stated.append(Stated.of(order, statement))
        return self.stated[-1]

    def evict(self, by: str, whom: str, at: float, keep: dict[str, Role] | None = None) -> None:
        kept = pack_keeps({self.id(name): role for name, role in (keep or {}).items()})
        self.state(by, at, Revocation(self.key(whom), "", BEGIN_S + int(at), kept))

    def change(
        self, by: str, whom: str, role: Role, at: float, keep: dict[str, Role] | None = None
    ) -> None:
        kept = pack_keeps({self.id(name): role for name, role in (keep or {}).items()})
        self.state(by, at, RoleChange(self.key(whom), role, kept=kept))

    def standing(self) -> Standing:
        known = {member.node_id: [member] for member in self.members.values()}
        return standing_of(self.stated, self.uses, lambda node: known.get(node, ()))

    def out(self) -> list[str]:
        standing = self.standing()
        return sorted(n for n, member in self.members.items() if standing.flaw(member) is not None)

    def role(self, name: str) -> Role:
        return self.standing().role(self.members[name])


@pytest.fixture
def town() -> Town:
    """A second admin, two operators of whom one invited the other, and a lent device."""
    made = Town()
    made.add("second", "founder", Role.ADMIN, at=10)
    made.add("mason", "founder", at=20)
    made.add("apprentice", "mason", at=30)
    made.add("lent", "mason", Role.MEMBER, at=40, witness="second")
    return made


# Evictions.


def test_without_statements_every_chain_counts_with_its_own_role(town: Town) -> None:
    assert town.out() == []
    assert town.role("second") is Role.ADMIN
    assert town.role("lent") is Role.MEMBER


def test_who_was_evicted_is_out_and_those_kept_stay(town: Town) -> None:
    town.evict("founder", "mason", 100, {"apprentice": Role.OPERATOR, "lent": Role.MEMBER})
    assert town.out() == ["mason"]
    flaw = town.standing().flaw(town.members["mason"])
    assert flaw is not None
    assert flaw.reason is Reason.REVOKED
    assert flaw.sentence.startswith(
        f"{town.id('mason')} was evicted by {town.id('founder')} at 2027"
    )


def test_without_being_kept_those_that_were_let_in_go_too(town: Town) -> None:
    town.evict("founder", "mason", 100, {"lent": Role.MEMBER})
    assert town.out() == ["apprentice", "mason"]
    flaw = town.standing().flaw(town.members["apprentice"])
    assert flaw is not None
    assert "rests on a key that is out" in flaw.sentence


def test_the_witness_counts_as_the_inviter_does(town: Town) -> None:
    town.evict("founder", "second", 100)
    assert town.out() == ["lent", "second"]


def test_an_evicted_operator_that_dates_an_admission_back_lets_nobody_in(town: Town) -> None:
    town.evict("founder", "mason", 100, {"apprentice": Role.OPERATOR, "lent": Role.MEMBER})
    town.add("accomplice", "mason", at=50)
    assert town.out() == ["accomplice", "mason"]


def test_nor_does_it_raise_the_role_of_somebody_who_was_kept(town: Town) -> None:
    town.evict("founder", "mason", 100, {"apprentice": Role.OPERATOR, "lent": Role.MEMBER})
    town.add("lent", "mason", Role.OPERATOR, at=50, witness="apprentice")
    assert town.out() == ["lent", "mason"]


def test_only_an_admins_word_evicts(town: Town) -> None:
    town.evict("mason", "apprentice", 100)
    town.evict("lent", "mason", 100)
    assert town.out() == []


def test_of_two_admins_who_evict_each_other_the_earlier_stays(town: Town) -> None:
    town.evict("second", "founder", 101)
    town.evict("founder", "second", 100, {"lent": Role.MEMBER})
    assert town.out() == ["second"]


def test_what_an_admin_stated_before_its_own_eviction_stays(town: Town) -> None:
    town.evict("second", "mason", 100, {"apprentice": Role.OPERATOR, "lent": Role.MEMBER})
    town.evict("founder", "second", 101, {"lent": Role.MEMBER})
    town.evict("second", "apprentice", 102)
    assert town.out() == ["mason", "second"]


def test_a_chain_of_evictions_is_judged_from_its_beginning(town: Town) -> None:
    """The third one counts because the second does not: its author was out."""
    town.add("third", "founder", Role.ADMIN, at=10)
    town.evict("founder", "second", 100, {"lent": Role.MEMBER})
    town.evict("second", "third", 101)
    town.evict("third", "apprentice", 102)
    assert town.out() == ["apprentice", "second"]


def test_what_was_done_before_an_eviction_counts(town: Town) -> None:
    town.evict("founder", "mason", 100)
    standing, mason = town.standing(), town.members["mason"]
    assert standing.flaw(mason, town.order("mason", 99.999)) is None
    assert standing.flaw(mason, town.order("mason", 100.001)) is not None
    apprentice = town.members["apprentice"]
    assert standing.flaw(apprentice, town.order("apprentice", 99)) is None


def test_several_admins_keep_together_what_each_of_them_keeps(town: Town) -> None:
    town.evict("founder", "mason", 100, {"lent": Role.MEMBER})
    town.evict("second", "mason", 101, {"apprentice": Role.OPERATOR})
    assert town.out() == ["mason"]


def test_a_sealed_root_admits_nobody_any_more(town: Town) -> None:
    root = Identity(seed_of("root")).public_key
    kept = pack_keeps({town.id("founder"): Role.ADMIN})
    town.state("second", 100, Revocation(root, "sealed", BEGIN_S + 100, kept))
    assert town.out() == []
    thief = Identity(seed_of("thief"))
    assert town.standing().flaw(found_mesh(thief, seed_of("root"), BEGIN_S)) is not None


# Roles.


def test_a_role_is_the_last_one_given(town: Town) -> None:
    town.change("founder", "mason", Role.MEMBER, 100, {"apprentice": Role.OPERATOR})
    assert town.role("mason") is Role.MEMBER
    town.change("second", "mason", Role.ADMIN, 110)
    assert town.role("mason") is Role.ADMIN
    before = town.order("mason", 105)
    assert town.standing().role(town.members["mason"], before) is Role.MEMBER


def test_only_an_admin_changes_roles(town: Town) -> None:
    town.change("apprentice", "apprentice", Role.ADMIN, 100)
    assert town.role("apprentice") is Role.OPERATOR


def test_an_admin_that_was_one_no_more_changes_nothing(town: Town) -> None:
    town.change("founder", "second", Role.OPERATOR, 100)
    town.change("second", "mason", Role.MEMBER, 101)
    town.evict("second", "mason", 101)
    assert town.role("mason") is Role.OPERATOR
    assert town.out() == []


def test_who_may_invite_no_more_lets_nobody_in_later_nor_dated_back(town: Town) -> None:
    kept = {"apprentice": Role.OPERATOR, "lent": Role.MEMBER}
    town.change("founder", "mason", Role.MEMBER, 100, kept)
    assert town.out() == []
    town.add("late", "mason", at=200)
    town.add("early", "mason", at=50)
    assert town.out() == ["early", "late"]


def test_who_may_invite_again_does(town: Town) -> None:
    town.change(
        "founder", "mason", Role.MEMBER, 100, {"apprentice": Role.OPERATOR, "lent": Role.MEMBER}
    )
    town.change("founder", "mason", Role.OPERATOR, 200)
    town.add("guest", "mason", at=300)
    town.add("between", "mason", at=150 - 300)  # before the admin's time, whatever its clock says
    assert town.out() == ["between"]


def test_a_clock_that_is_behind_that_of_the_admin_does_not_void_an_invite(town: Town) -> None:
    town.change("founder", "lent", Role.OPERATOR, 500)
    town.members["lent"] = promote(
        admin=Identity(seed_of("founder")), admin_member=town.members["founder"],
        member=town.members["lent"], role=Role.OPERATOR, now_wall_s=BEGIN_S + 500,
    )  # fmt: skip
    town.add("guest", "lent", at=498)
    assert town.out() == []


def test_a_promotion_by_an_evicted_admin_counts_if_it_was_known_by_then(town: Town) -> None:
    def promoted() -> VerifiedMember:
        return promote(
            admin=Identity(seed_of("second")), admin_member=town.members["second"],
            member=town.members["lent"], role=Role.ADMIN, now_wall_s=BEGIN_S + 90,
        )  # fmt: skip

    town.members["lent"] = promoted()
    town.change("second", "lent", Role.ADMIN, 90)
    assert town.role("lent") is Role.ADMIN
    before = len(town.stated)
    town.evict("founder", "second", 100, {"lent": Role.ADMIN})
    assert (town.role("lent"), town.out()) == (Role.ADMIN, ["second"])
    del town.stated[before:]
    town.evict("founder", "second", 100, {"lent": Role.MEMBER})
    assert (town.role("lent"), town.out()) == (Role.MEMBER, ["second"])
    town.add("guest", "lent", Role.MEMBER, at=95)  # by the role that it has not
    assert town.out() == ["guest", "second"]


def test_before_its_admission_a_key_has_no_more_than_the_lowest_role(town: Town) -> None:
    standing, second = town.standing(), town.members["second"]
    assert standing.role(second, town.order("second", 9)) is Role.ADMIN  # clocks differ a little
    assert standing.role(second, town.order("second", -300)) is Role.MEMBER


def test_a_standing_says_how_much_it_rests_on(town: Town) -> None:
    town.evict("founder", "lent", 100)
    town.change("founder", "mason", Role.ADMIN, 100)
    assert repr(town.standing()) == "<Standing with 1 revoked, 1 changed>"
    assert repr(town.uses) == "<InviteUses of 0 invites>"
    assert town.standing().is_untouched(town.members["second"])
    assert not town.standing().is_untouched(town.members["apprentice"])


# Rotation.


def rotated(town: Town, name: str, at: int) -> None:
    """Let a member hand over to a new key, which revokes the old one by its own hand."""
    heir = f"new {name}"
    town.members[heir] = succeed(
        former=Identity(seed_of(name)), member=town.members[name],
        successor=Identity(seed_of(heir)), now_wall_s=BEGIN_S + at,
    )  # fmt: skip
    town.evict(name, name, at, {heir: Role.ADMIN, "apprentice": Role.OPERATOR, "lent": Role.MEMBER})


def test_a_new_key_takes_the_place_and_the_role_of_the_old_one(town: Town) -> None:
    rotated(town, "mason", 100)
    assert town.out() == ["mason"]
    assert town.role("new mason") is Role.OPERATOR
    town.add("guest", "new mason", at=110)
    assert town.out() == ["mason"]
    flaw = town.standing().flaw(town.members["mason"])
    assert flaw is not None
    assert "replaced by a new key of the same device" in flaw.sentence


def test_a_rotation_brings_no_role_back(town: Town) -> None:
    town.change(
        "founder", "mason", Role.MEMBER, 90, {"apprentice": Role.OPERATOR, "lent": Role.MEMBER}
    )
    rotated(town, "mason", 100)
    assert town.role("new mason") is Role.MEMBER


def test_nobody_escapes_an_eviction_by_a_rotation_that_is_dated_back(town: Town) -> None:
    town.evict("founder", "mason", 100, {"apprentice": Role.OPERATOR, "lent": Role.MEMBER})
    rotated(town, "mason", 90)
    assert town.out() == ["mason", "new mason"]


def test_a_key_that_handed_over_to_one_hands_over_to_no_other(town: Town) -> None:
    rotated(town, "mason", 100)
    town.members["thief"] = succeed(
        former=Identity(seed_of("mason")), member=town.members["mason"],
        successor=Identity(seed_of("thief")), now_wall_s=BEGIN_S + 95,
    )  # fmt: skip
    assert town.out() == ["mason", "thief"]


# Uses of invites.


def test_an_invite_for_one_admits_the_first_wherever_they_were_admitted(town: Town) -> None:
    invite = town.invite("founder", at=50, uses=1)
    town.join("one", invite, "founder", at=61, witness="mason")
    town.join("other", invite, "founder", at=60, witness="apprentice")
    assert town.out() == ["one"]
    flaw = town.standing().flaw(town.members["one"])
    assert flaw is not None
    assert flaw.reason is Reason.USED_UP
    assert "was for 1 device" in flaw.sentence
    assert town.standing().is_used_up(invite.grant, town.id("third"))
    assert not town.standing().is_used_up(invite.grant, town.id("one"))


def test_in_the_same_second_the_lower_id_is_first(town: Town) -> None:
    invite = town.invite("founder", at=50, uses=1)
    for name, witness in (("one", "mason"), ("other", "apprentice")):
        town.join(name, invite, "founder", at=60, witness=witness)
    assert town.out() == [max("one", "other", key=town.id)]


def test_a_device_that_two_witnesses_admit_is_one_use(town: Town) -> None:
    invite = town.invite("founder", at=50, uses=2)
    town.join("one", invite, "founder", at=60, witness="mason")
    town.join("one", invite, "founder", at=61, witness="apprentice")
    town.join("other", invite, "founder", at=62)
    assert town.out() == []
    town.join("third", invite, "founder", at=63)
    assert town.out() == ["third"]


def test_who_has_gone_keeps_their_use(town: Town) -> None:
    invite = town.invite("founder", at=50, uses=1)
    town.join("one", invite, "founder", at=60)
    town.evict("founder", "one", 70)
    assert town.standing().is_used_up(invite.grant, town.id("other"))


def test_an_evicted_witness_that_dates_an_admission_back_takes_nobodys_use(town: Town) -> None:
    invite = town.invite("founder", at=50, uses=1)
    town.join("one", invite, "founder", at=60)
    town.evict("founder", "mason", 100, {"apprentice": Role.OPERATOR, "lent": Role.MEMBER})
    town.join("fake", invite, "founder", at=55, witness="mason")
    assert town.out() == ["fake", "mason"]


def test_what_a_loser_of_the_race_let_in_goes_with_it(town: Town) -> None:
    invite = town.invite("founder", Role.ADMIN, at=50, uses=1)
    town.join("one", invite, "founder", at=61, witness="mason")
    town.join("other", invite, "founder", at=60, witness="apprentice")
    town.add("guest", "one", at=70)
    town.evict("one", "other", 71)
    assert town.out() == ["guest", "one"]


# Bytes.


def test_statements_survive_their_encoding(town: Town) -> None:
    kept = {town.id("lent"): Role.MEMBER, town.id("mason"): Role.OPERATOR}
    out = Revocation(town.key("mason"), "stolen", BEGIN_S, pack_keeps(kept))
    assert read_revocation(write_statement(out)) == out
    assert keeps(out) == kept
    change = RoleChange(town.key("mason"), Role.MEMBER, b"chain", pack_keeps(kept))
    assert read_role_change(write_statement(change)) == change
    of_later = Revocation(town.key("mason"), "", 0, (bytes(20) + b"\x07",))
    assert keeps(of_later) == {}


def test_a_reason_cannot_write_to_a_terminal(town: Town) -> None:
    revocation = Revocation(town.key("mason"), "\x1b[2Jgone", BEGIN_S)
    town.state("founder", 100, revocation)
    flaw = town.standing().flaw(town.members["mason"])
    assert flaw is not None
    assert "([2Jgone)" in flaw.sentence


# Whatever is stated.

NAMES = ("founder", "second", "mason", "apprentice", "lent", "one", "other")

statements = st.tuples(
    st.sampled_from(("evict", "change")),
    st.sampled_from(NAMES),
    st.sampled_from(NAMES),
    st.integers(90, 110),
    st.sets(st.sampled_from(NAMES)),
    st.sampled_from(list(Role)),
)


@given(st.lists(statements, max_size=12), st.integers())
def test_any_order_of_statements_and_admissions_is_the_same_standing(
    said: list[tuple[str, str, str, int, set[str], Role]], seed: int
) -> None:
    def build(rng: random.Random | None) -> tuple[list[str], dict[str, Role]]:
        town = Town()
        town.add("second", "founder", Role.ADMIN, at=10)
        town.add("mason", "founder", at=20)
        town.add("apprentice", "mason", at=30)
        town.add("lent", "mason", Role.MEMBER, at=40, witness="second")
        invite = town.invite("founder", Role.ADMIN, at=50, uses=1)
        joins = [("one", 61, "mason"), ("other", 60, "apprentice")]
        acts = [*said]
        if rng is not None:
            rng.shuffle(joins)
            rng.shuffle(acts)
        for name, at, witness in joins:
            town.join(name, invite, "founder", at=at, witness=witness)
        for kind, author, subject, at, kept, role in acts:
            keep = dict.fromkeys(kept, Role.ADMIN)
            if kind == "evict":
                town.evict(author, subject, at, keep)
            else:
                town.change(author, subject, role, at, keep)
        return town.out(), {name: town.role(name) for name in town.members}

    assert build(None) == build(random.Random(seed))


@given(st.lists(st.tuples(st.booleans(), st.integers(90, 110)), max_size=12))
def test_no_dispute_between_admins_evicts_all_of_them(said: list[tuple[bool, int]]) -> None:
    town = Town()
    town.add("second", "founder", Role.ADMIN, at=10)
    both = dict.fromkeys(("founder", "second"), Role.ADMIN)  # as `Drafts` does
    for is_founder, at in said:
        by, whom = ("founder", "second") if is_founder else ("second", "founder")
        town.evict(by, whom, at, both)
    assert len(town.out()) == bool(said)


@given(st.lists(statements, max_size=8), st.permutations(NAMES))
def test_uses_are_the_same_whatever_was_registered_first(
    said: list[tuple[str, str, str, int, set[str], Role]], names: list[str]
) -> None:
    town = Town()
    town.add("mason", "founder", at=20)
    invite = town.invite("founder", at=50, uses=2)
    for at, name in enumerate(("a", "b", "c", "d")):
        town.join(name, invite, "founder", at=60 + at, witness="mason" if at % 2 else "founder")
    out = town.out()
    assert len(out) == 2
    again = InviteUses()
    for name in random.Random(str(names)).sample(list(town.members), len(town.members)):
        again.register(town.members[name])
    town.uses = again
    assert town.out() == out
