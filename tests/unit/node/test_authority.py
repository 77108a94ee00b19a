"""Statements as they arrive at a node: in any order, from anybody, and what they take with them."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshnode.effects import Effect, Emit, SendNote
from meshnode.errors import Forbidden, InvalidRequest, TooLarge, UsageError
from meshnode.events import LinkUp, NoteReceived, Start
from meshnode.limits import MAX_CHAIN_RECORDS, MAX_STATEMENTS_PER_AUTHOR
from meshnode.membership.messages import MemberRecord, sign_record
from meshnode.node import Node, NodeTrust
from meshnode.sim.trust import Admissions, Papers
from meshnode.state.desired_messages import DESIRED, DesiredEntries, Entry
from meshnode.state.desired_store import pack
from meshnode.state.hybrid_clock import Stamp
from meshnode.state.statements import admission_key, revocation_key, role_key
from meshnode.trust.chain import found_mesh, promote, succeed
from meshnode.trust.identity import Identity
from meshnode.trust.reasons import Reason
from meshnode.trust.statements import Revocation, RoleChange, pack_keeps, write_statement
from meshnode.types import Address, NodeId, Role

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from meshnode.state.desired import Draft

WALL_S = 1_800_000_000.0
ROLES = {
    "founder": Role.ADMIN,
    "second": Role.ADMIN,
    "mason": Role.OPERATOR,
    "lent": Role.MEMBER,
}


@dataclass
class Village:
    """People of one mesh, what they sign, and nodes that hear of it."""

    admissions: Admissions
    people: dict[str, Papers]

    def __init__(self) -> None:
        self.admissions = Admissions(1)
        self.people = {
            name: self.admissions.admit(name, role, WALL_S) for name, role in ROLES.items()
        }

    def id(self, name: str) -> NodeId:
        return self.people[name].identity.node_id

    def entry(self, author: str, key: str, value: bytes, at: float) -> Entry:
        """Return what an author signs at a second, whoever may do so."""
        papers = self.people[author]
        stamp = Stamp(int((WALL_S + at) * 1000), 0)
        unsigned = Entry(key, stamp, papers.identity.node_id, value)
        signature = papers.identity.sign(papers.authority.bound(unsigned.signed_bytes))
        return msgspec.structs.replace(unsigned, signature=signature)

    def admission(self, name: str) -> Entry:
        return self.entry(name, admission_key(self.id(name)), self.people[name].member.chain, 0)

    def revocation(
        self,
        author: str,
        subject: str,
        at: float,
        kept: Iterable[str] = ROLES,
        written: Iterable[Entry] = (),
    ) -> Entry:
        public_key = self.people[subject].identity.public_key
        packed = pack_keeps({self.id(name): Role.ADMIN for name in kept})
        entries = tuple(each.digest for each in written)
        value = write_statement(
            Revocation(public_key, "", int(WALL_S + at), packed, entries=entries)
        )
        return self.entry(author, revocation_key(self.id(subject)), value, at)

    def change(
        self, author: str, subject: str, role: Role, at: float, written: Iterable[Entry] = ()
    ) -> Entry:
        public_key = self.people[subject].identity.public_key
        kept = pack_keeps({self.id(name): Role.ADMIN for name in ROLES})
        entries = tuple(each.digest for each in written)
        value = write_statement(RoleChange(public_key, role, kept=kept, entries=entries))
        return self.entry(author, role_key(self.id(subject)), value, at)

    def node(self, name: str, **options: object) -> Stage:
        """Start a node that knows nobody but itself."""
        papers = self.people[name]
        return Stage(Papers(papers.identity, papers.member))


class Stage:
    """A node, and what it asked of its driver last."""

    def __init__(self, papers: Papers) -> None:
        self.papers = papers
        self.stored: bytes | None = None
        self.at = 500.0
        self.boot()

    def boot(self) -> None:
        """Start the node, from what it has stored."""
        papers = self.papers
        unsigned = MemberRecord(
            papers.identity.public_key, "n", "eu", "", {}, (Address("10.0.0.1", 1),), "",
            1, 0, 7, {}, papers.member.chain,
        )  # fmt: skip
        self.node = Node(
            record=sign_record(unsigned, papers.identity.sign),
            trust=NodeTrust(papers.identity, papers.authority),
            rng=random.Random(1),
            stored_desired=self.stored,
        )
        self.effects = self.node.handle(Start(), 0.0, WALL_S)

    def hear(self, *entries: Entry, sender: NodeId | None = None) -> list[Effect]:
        note = DESIRED.encode(DesiredEntries(entries))
        event = NoteReceived(sender or NodeId("a" * 32), note)
        self.effects = self.node.handle(event, 1.0, WALL_S + self.at)
        return self.effects

    def hear_again_and_again(self, entries: list[Entry]) -> None:
        """Hear entries one by one, again as every sync offers what was refused, until all is said."""
        before = None
        while before != (before := self.map()):
            for entry in entries:
                self.hear(entry)

    def write(self, prepare: Callable[[float], Draft]) -> tuple[Entry, ...]:
        draft = prepare(WALL_S + self.at)
        self.effects = self.node.commit(draft, 1.0)
        return draft.entries

    def reboot(self, *, with_roster: bool) -> None:
        """Start the node again from its desired state, and from its roster or not."""
        held = (entry for kept in self.map().values() for entry in kept)
        self.stored = pack(held, None)
        if not with_roster:
            self.papers = Papers(self.papers.identity, self.papers.member)
        self.papers.boot(self.stored)
        self.boot()

    def view(self) -> tuple[object, ...]:
        """Return what the node makes of all that it has heard."""
        papers = self.papers
        roles = {member.node_id: member.role for member in papers.roster}
        out = [(each.order, each.kept) for each in papers.authority.standing.revoked()]
        return self.map(), roles, out

    def map(self) -> dict[str, tuple[Entry, ...]]:
        return {key: held.entries for key, held in self.node.desired._keys.items()}

    def members(self) -> set[NodeId]:
        return {member.node_id for member in self.papers.roster}

    def told(self, kind: str) -> list[str]:
        return [
            each.subject for each in self.effects if isinstance(each, Emit) and each.kind == kind
        ]

    def refusal(self) -> str:
        [refused] = [e for e in self.effects if isinstance(e, Emit) and e.kind == "desired.refused"]
        return refused.detail


@pytest.fixture
def village() -> Village:
    return Village()


def introduced(village: Village, name: str = "lent") -> Stage:
    """Return a node that knows everybody."""
    stage = village.node(name)
    stage.hear(*(village.admission(each) for each in ROLES))
    return stage


# What an eviction takes with it.


def test_an_evicted_node_is_shown_why_and_forgotten(village: Village) -> None:
    stage = introduced(village)
    mason = village.id("mason")
    stage.node.handle(LinkUp(mason, Address("10.0.0.2", 1)), 1.0, WALL_S)
    stage.hear(village.revocation("founder", "mason", 100))
    assert stage.told("trust.revoked") == [mason]
    assert mason not in stage.members()
    assert stage.papers.roster.public_key(mason) is None
    shown = [e.payload for e in stage.effects if isinstance(e, SendNote) and e.to == mason]
    entries = [entry for payload in shown for entry in DESIRED.decode(payload).entries]
    assert {revocation_key(mason), admission_key(village.id("founder"))} <= {e.key for e in entries}


def test_the_evicted_node_itself_says_so_once(village: Village) -> None:
    stage = introduced(village, "mason")
    stage.hear(village.revocation("founder", "mason", 100))
    assert stage.told("trust.evicted") == [village.id("mason")]
    stage.hear(village.revocation("second", "mason", 101))
    assert stage.told("trust.evicted") == []


def test_it_knows_it_still_after_a_restart(village: Village) -> None:
    stage = introduced(village, "mason")
    stage.hear(village.revocation("founder", "mason", 100))
    stage.boot()
    assert stage.told("trust.evicted") == [village.id("mason")]


def test_what_it_wrote_later_goes_and_the_value_before_comes_back(village: Village) -> None:
    stage = introduced(village)
    before = village.entry("founder", "policy/x", b"before", 50)
    earlier = village.entry("mason", "policy/y", b"by mason", 90)
    later = village.entry("mason", "policy/x", b"after", 110)
    stage.hear(before, earlier, later)
    assert stage.node.desired.get("policy/x") == b"after"
    stage.hear(village.revocation("founder", "mason", 100, written=[earlier]))
    assert stage.node.desired.get("policy/x") == b"before"
    assert stage.node.desired.get("policy/y") == b"by mason"
    assert stage.told("desired.changed")[-1] == "policy/x"
    stage.hear(later)
    assert "was out by then" in stage.refusal()


def test_the_newer_value_of_a_good_author_stays(village: Village) -> None:
    stage = introduced(village)
    stage.hear(village.entry("mason", "policy/x", b"after", 110))
    stage.hear(village.entry("second", "policy/x", b"newest", 120))
    stage.hear(village.revocation("founder", "mason", 100))
    assert stage.node.desired.get("policy/x") == b"newest"
    assert [each.value for each in stage.node.desired.history("policy/x")] == []


@pytest.mark.parametrize("is_eviction", [True, False])
def test_of_what_it_dates_back_nothing_counts_that_was_not_known(
    village: Village, is_eviction: bool
) -> None:
    """Whoever can sign can write any date; so an eviction, or a lower role, names what stays."""
    stage = introduced(village)
    known = village.entry("mason", "key/known", b"1", 90)
    stage.hear(known)
    stage.hear(
        village.revocation("founder", "mason", 100, written=[known])
        if is_eviction
        else village.change("founder", "mason", Role.MEMBER, 100, [known])
    )
    stage.hear(village.entry("mason", "key/backdoor", b"2", 80))
    assert "not among the entries of its author that stay" in stage.refusal()
    assert stage.node.desired.get("key/known") == b"1"
    assert stage.node.desired.get("key/backdoor") is None
    again = introduced(village)  # in the other order it goes when the statement comes
    again.hear(known, village.entry("mason", "key/backdoor", b"2", 80))
    again.hear(*(each for held in stage.map().values() for each in held))
    assert again.map() == stage.map()


def test_an_accomplice_that_was_let_in_with_a_false_date_writes_nothing_either(
    village: Village,
) -> None:
    stage = introduced(village)
    people, admissions = village.people, village.admissions
    invite = admissions.invite(people["mason"], Role.OPERATOR, WALL_S)
    people["accomplice"] = admissions.join("accomplice", invite, people["mason"], WALL_S + 50)
    stage.hear(village.revocation("founder", "mason", 100))
    stage.hear(village.admission("accomplice"))
    stage.hear(village.entry("accomplice", "key/backdoor", b"1", 60))
    assert "rests on a key that is out" in stage.refusal()


def test_one_whom_an_evicted_admin_raised_with_a_false_date_writes_nothing_either(
    village: Village,
) -> None:
    stage = introduced(village)
    stage.hear(village.revocation("founder", "second", 100, kept=["mason"]))
    stage.hear(village.change("second", "lent", Role.OPERATOR, 50))
    stage.hear(village.entry("lent", "key/backdoor", b"1", 60))
    assert "does not count any more" in stage.refusal()


def test_what_a_role_allowed_goes_when_that_role_turns_out_never_to_have_counted(
    village: Village,
) -> None:
    """Nothing that counts is stated of its author then, so only its chain says what it may write."""
    eviction = village.revocation("founder", "second", 90, kept=[])
    raised = village.change("second", "lent", Role.OPERATOR, 91)
    by_founder = village.entry("founder", "policy/x", b"before", 90)
    by_lent = village.entry("lent", "policy/x", b"after", 91)
    stage = introduced(village)
    stage.hear(raised, by_lent, by_founder)
    assert stage.node.desired.get("policy/x") == b"after"
    stage.hear(eviction)
    assert stage.node.desired.get("policy/x") == b"before"
    again = introduced(village)  # in the other order it is never taken in
    again.hear(eviction, raised, by_lent, by_founder)
    assert again.map() == stage.map()


def test_a_promotion_in_its_chain_allows_nothing_that_was_written_before_it(
    village: Village,
) -> None:
    stage, people = introduced(village), village.people
    promoted = promote(
        admin=people["founder"].identity, admin_member=people["founder"].member,
        member=people["lent"].member, role=Role.OPERATOR, now_wall_s=WALL_S + 1000,
    )  # fmt: skip
    stage.hear(village.change("second", "lent", Role.OPERATOR, 91))
    stage.hear(village.entry("lent", "policy/early", b"1", 92))
    stage.at = 2000.0
    stage.hear(village.entry("lent", admission_key(promoted.node_id), promoted.chain, 1000))
    stage.hear(village.entry("lent", "policy/late", b"1", 1100))
    stage.hear(village.revocation("founder", "second", 90, kept=[]))
    assert stage.papers.roster.role(village.id("lent")) is Role.OPERATOR
    assert stage.node.desired.get("policy/early") is None
    assert stage.node.desired.get("policy/late") == b"1"


def test_a_successor_of_a_lesser_member_with_a_false_date_writes_nothing_either(
    village: Village,
) -> None:
    stage = introduced(village)
    mason, heir = village.people["mason"], Identity(b"heir".ljust(32))
    member = succeed(
        former=mason.identity, member=mason.member, successor=heir, now_wall_s=WALL_S + 50
    )
    village.people["heir"] = Papers(heir, member)
    stage.hear(village.change("founder", "mason", Role.MEMBER, 100))
    stage.hear(village.admission("heir"), village.revocation("mason", "mason", 51, ["heir"]))
    assert stage.papers.roster.role(heir.node_id) is Role.MEMBER
    stage.hear(village.entry("heir", "key/backdoor", b"1", 60))
    assert "does not count any more" in stage.refusal()


def test_several_lower_roles_keep_together_what_each_of_them_names(village: Village) -> None:
    stage = introduced(village)
    known = village.entry("mason", "key/known", b"1", 90)
    stage.hear(known, village.change("founder", "mason", Role.MEMBER, 100, [known]))
    stage.hear(village.change("second", "mason", Role.MEMBER, 101))
    assert stage.node.desired.get("key/known") == b"1"
    stage.hear(village.change("founder", "mason", Role.OPERATOR, 110))
    assert stage.node.desired.get("key/known") == b"1"
    stage.hear(village.change("founder", "mason", Role.MEMBER, 120))
    assert stage.node.desired.get("key/known") is None


def test_what_a_node_evicts_or_lowers_or_leaves_behind_keeps_its_entries(village: Village) -> None:
    for act in ("evict", "lower", "rotate"):
        founder, mason = introduced(village, "founder"), introduced(village, "mason")
        written = mason.write(lambda wall_s: mason.node.desired.draft({"policy/x": b"1"}, wall_s))  # noqa: B023
        founder.hear(*written)
        node = village.id("mason")
        if act == "evict":
            founder.write(lambda at: founder.node.drafts.eviction(node, "", True, at + 1))  # noqa: B023
        elif act == "lower":
            founder.write(lambda at: founder.node.drafts.role(node, Role.MEMBER, at + 1))  # noqa: B023
        else:
            successor = succeed(
                former=mason.papers.identity, member=mason.papers.member,
                successor=Identity(b"heir".ljust(32)), now_wall_s=WALL_S + 501,
            )  # fmt: skip
            founder.hear(
                *mason.write(lambda at: mason.node.drafts.rotation(successor, at + 1))  # noqa: B023
            )
        assert founder.papers.roster.role(node) is not Role.OPERATOR
        assert founder.node.desired.get("policy/x") == b"1"


def test_a_node_takes_the_role_that_it_is_given_and_shows_it(village: Village) -> None:
    founder, stage = introduced(village, "founder"), introduced(village)
    lent = village.id("lent")
    entries = founder.write(lambda wall_s: founder.node.drafts.role(lent, Role.OPERATOR, wall_s))
    stage.hear(*entries)
    assert stage.papers.member.role is Role.OPERATOR
    assert stage.node.membership.record.chain == stage.papers.member.chain
    written = stage.write(lambda wall_s: stage.node.desired.draft({"policy/x": b"1"}, wall_s + 1))
    founder.hear(*written)
    assert founder.node.desired.get("policy/x") == b"1"


# Who may state what.


@pytest.mark.parametrize("author", ["mason", "lent"])
def test_who_was_never_an_admin_is_not_even_heard(village: Village, author: str) -> None:
    stage = introduced(village, "second")
    stage.hear(village.revocation(author, "founder", 100))
    assert "its author is no admin" in stage.refusal()
    stage.hear(village.change(author, author, Role.ADMIN, 100))
    assert "its author is no admin" in stage.refusal()
    assert stage.node.desired.statements(revocation_key(village.id("founder"))) == ()


def test_a_statement_about_another_node_than_its_key_is_refused(village: Village) -> None:
    stage = introduced(village)
    good = village.revocation("founder", "mason", 100)
    stage.hear(village.entry("founder", revocation_key(village.id("second")), good.value, 100))
    assert "another node than its key says" in stage.refusal()


@pytest.mark.parametrize("key", [revocation_key, role_key])
def test_garbage_under_the_key_of_a_statement_is_refused(
    village: Village, key: Callable[[NodeId], str]
) -> None:
    stage = introduced(village)
    stage.hear(village.entry("founder", key(village.id("mason")), b"garbage", 100))
    assert "a value is not a" in stage.refusal()


def test_a_statement_is_never_deleted(village: Village) -> None:
    stage = introduced(village)
    stage.hear(village.revocation("founder", "mason", 100))
    stage.hear(village.entry("founder", revocation_key(village.id("mason")), b"", 200))
    assert "cannot be deleted" in stage.refusal()
    assert village.id("mason") not in stage.members()


def test_an_admission_that_is_not_the_keys_own_is_refused(village: Village) -> None:
    stage = introduced(village)
    chain = village.people["mason"].member.chain
    stage.hear(village.entry("lent", admission_key(village.id("second")), chain, 100))
    assert "it is another node's" in stage.refusal()


def test_an_entry_of_one_mesh_means_nothing_in_another(village: Village) -> None:
    """The same people, keys and names, in a mesh that they founded elsewhere."""
    stage = introduced(village)
    entry = village.entry("founder", "policy/x", b"1", 100)
    founder = village.people["founder"].identity
    other = Papers(founder, found_mesh(founder, b"another root".ljust(32), WALL_S)).authority
    assert other.roster.mesh_id != stage.papers.roster.mesh_id
    for signed in (other.bound(entry.signed_bytes), entry.signed_bytes):
        stage.hear(village.entry("founder", "policy/y", b"good", 99))  # a refusal is told once
        stage.hear(msgspec.structs.replace(entry, signature=founder.sign(signed)))
        assert stage.node.desired.get("policy/x") is None
        assert (
            stage.papers.authority.verify_entry(
                msgspec.structs.replace(entry, signature=founder.sign(signed))
            )
            == "its signature does not fit"
        )
    stage.hear(entry)
    assert stage.node.desired.get("policy/x") == b"1"


def test_an_author_fills_only_its_own_room_with_statements(village: Village) -> None:
    """A former admin dates a flood of them back; the founder's still counts."""
    stage = introduced(village)
    stage.hear(village.revocation("founder", "second", 100))
    for number in range(2 * MAX_STATEMENTS_PER_AUTHOR):
        stage.hear(village.revocation("second", "mason", 101 + number))
    key = revocation_key(village.id("mason"))
    assert len(stage.node.desired.statements(key)) == MAX_STATEMENTS_PER_AUTHOR
    assert village.id("mason") in stage.members()
    stage.hear(village.revocation("founder", "mason", 400))
    assert village.id("mason") not in stage.members()


def test_news_that_takes_rights_away_goes_over_every_link(village: Village) -> None:
    stage = introduced(village)
    peers = [NodeId(f"{number:032}") for number in range(10)]
    for peer in peers:
        stage.node.desired.handle(LinkUp(peer, Address("10.0.0.2", 1)), 1.0, WALL_S)
    stage.hear(village.revocation("founder", "mason", 100), sender=peers[0])
    told = {each.to for each in stage.effects if isinstance(each, SendNote)}
    assert told >= set(peers[1:])


# What an admin's node prepares.


def test_an_eviction_keeps_whom_the_node_let_in(village: Village) -> None:
    founder = introduced(village, "founder")
    second = village.id("second")
    guest = village.admissions.join(
        "guest", village.admissions.invite(village.people["second"], Role.MEMBER, WALL_S),
        village.people["second"], WALL_S,
    )  # fmt: skip
    founder.papers.authority.learn(guest.member)
    founder.write(lambda wall_s: founder.node.drafts.eviction(second, "", True, wall_s))
    assert founder.told("trust.revoked") == [second]
    assert guest.identity.node_id in founder.members()


def test_an_eviction_with_those_invited_names_each_of_them(village: Village) -> None:
    """But whom one of them only witnessed, with somebody else's invite, stays."""
    founder = introduced(village, "founder")
    people, admissions = village.people, village.admissions
    for name, by, witness in (
        ("guest", "second", "second"),
        ("guests guest", "guest", "guest"),
        ("witnessed", "founder", "guest"),
    ):
        people[witness].authority.learn(people[by].member)
        invite = admissions.invite(people[by], Role.OPERATOR, WALL_S)
        people[name] = admissions.join(name, invite, people[witness], WALL_S)
        founder.papers.authority.learn(people[name].member)
    second = village.id("second")
    written = founder.write(lambda wall_s: founder.node.drafts.eviction(second, "x", False, wall_s))
    assert len(written) == 3
    gone = {village.id(name) for name in ("second", "guest", "guests guest")}
    assert set(founder.told("trust.revoked")) == gone
    assert village.id("witnessed") in founder.members()
    again = founder.node.drafts.eviction(second, "x", False, WALL_S + 501)
    assert again.entries == ()


def test_an_eviction_spares_the_admin_whom_the_node_had_invited(village: Village) -> None:
    second = introduced(village, "second")
    founder = village.id("founder")
    second.write(lambda wall_s: second.node.drafts.eviction(founder, "", False, wall_s))
    assert second.members() == {village.id("second")}


@pytest.mark.parametrize("author", ["mason", "lent"])
def test_only_an_admin_may_prepare_an_eviction_or_a_role(village: Village, author: str) -> None:
    drafts = introduced(village, author).node.drafts
    founder = village.id("founder")
    with pytest.raises(Forbidden, match="may not"):
        drafts.eviction(founder, "", True, WALL_S)
    with pytest.raises(Forbidden, match="may not"):
        drafts.role(founder, Role.MEMBER, WALL_S)
    with pytest.raises(Forbidden, match="may not"):
        drafts.seal(WALL_S)


def test_what_cannot_be_meant_is_refused_with_what_to_do(village: Village) -> None:
    stage = village.node("founder")
    drafts, me = stage.node.drafts, village.id("founder")
    with pytest.raises(InvalidRequest, match="meshnode leave"):
        drafts.eviction(me, "", True, WALL_S)
    with pytest.raises(InvalidRequest, match="was ever seen in this mesh"):
        drafts.eviction(NodeId("a" * 32), "", True, WALL_S)
    with pytest.raises(InvalidRequest, match="is no member"):
        drafts.role(NodeId("a" * 32), Role.ADMIN, WALL_S)
    with pytest.raises(InvalidRequest, match="the last admin"):
        drafts.role(me, Role.MEMBER, WALL_S)
    assert drafts.role(me, Role.ADMIN, WALL_S).entries == ()


def test_a_sealed_root_is_sealed_once(village: Village) -> None:
    founder = introduced(village, "founder")
    assert founder.papers.authority.revoked() == []
    founder.write(founder.node.drafts.seal)
    assert founder.papers.authority.is_sealed
    assert len(founder.members()) == len(ROLES)
    assert founder.node.drafts.seal(WALL_S + 501).entries == ()
    [row] = founder.papers.authority.revoked()
    assert row.is_root


def test_the_parts_say_what_they_hold(village: Village) -> None:
    stage = introduced(village)
    stage.hear(village.revocation("founder", "mason", 100))
    me = village.id("lent")[:8]
    assert repr(stage.papers.authority).endswith("3 members>, 1 statements>")
    assert repr(stage.node._evictions) == f"<Evictions at {me}>"
    assert repr(stage.node.drafts) == f"<Drafts of {me}>"


def test_a_role_with_a_chain_that_does_not_hold_is_refused(village: Village) -> None:
    stage = introduced(village)
    public_key = village.people["mason"].identity.public_key
    value = write_statement(RoleChange(public_key, Role.ADMIN, b"garbage"))
    stage.hear(village.entry("founder", role_key(village.id("mason")), value, 100))
    assert "its admission does not hold" in stage.refusal()


def test_an_evicted_node_may_change_nothing(village: Village) -> None:
    stage = introduced(village, "mason")
    stage.hear(village.revocation("founder", "mason", 100))
    with pytest.raises(Forbidden, match="was evicted"):
        stage.node.drafts.seal(WALL_S)


# What people see.


def test_the_rows_say_who_is_in_by_whose_word_and_who_is_out(village: Village) -> None:
    founder = introduced(village, "founder")
    papers, authority = village.people, founder.papers.authority
    invite = village.admissions.invite(papers["founder"], Role.MEMBER, WALL_S, uses=2)
    guest = village.admissions.join("guest", invite, papers["founder"], WALL_S)
    authority.learn(guest.member)
    founder.node.handle(LinkUp(guest.identity.node_id, Address("10.0.0.9", 1)), 1.0, WALL_S + 500)
    founder.hear(village.revocation("second", "mason", 100))
    rows = {row.node: row for row in authority.members()}
    assert rows[village.id("founder")].how == "founded"
    row = rows[guest.identity.node_id]
    assert (row.how, row.by, row.witness) == ("invited", village.id("founder"), row.by)
    assert (row.invite_id, row.uses, row.used) == (invite.grant.invite_id, 2, 1)
    [out] = authority.revoked()
    assert (out.node, out.by, out.reason) == (
        village.id("mason"), village.id("second"), Reason.REVOKED,
    )  # fmt: skip
    assert out.at_wall_s == WALL_S + 100


# Order of arrival.

acts = st.tuples(
    st.sampled_from(("evict", "change", "write", "delete")),
    st.sampled_from(list(ROLES)),
    st.sampled_from(list(ROLES)),
    st.integers(90, 100),
    st.sets(st.sampled_from(list(ROLES))),
    st.sampled_from(list(Role)),
)
VILLAGE = Village()


def entries_of(
    said: list[tuple[str, str, str, int, set[str], Role]],
) -> list[Entry]:
    made = [VILLAGE.admission(name) for name in ROLES]
    for number, (kind, author, subject, at, kept, role) in enumerate(said):
        if kind == "evict":
            made.append(VILLAGE.revocation(author, subject, at, kept))
        elif kind == "change":
            made.append(VILLAGE.change(author, subject, role, at))
        else:
            value = b"" if kind == "delete" else f"value {number}".encode()
            made.append(VILLAGE.entry(author, f"policy/{subject}", value, at))
    return made


@settings(max_examples=100, deadline=None)
@given(st.lists(acts, max_size=8), st.randoms(use_true_random=False))
def test_any_order_of_arrival_is_the_same_map_and_the_same_members(
    said: list[tuple[str, str, str, int, set[str], Role]], rng: random.Random
) -> None:
    entries = entries_of(said)
    ends = []
    for _ in range(3):
        stage = VILLAGE.node("lent")
        stage.hear_again_and_again(entries)
        papers = stage.papers
        roles = {member.node_id: member.role for member in papers.roster}
        ends.append((stage.map(), roles))
        rng.shuffle(entries)
    assert ends[0] == ends[1] == ends[2]


@settings(max_examples=100, deadline=None)
@given(st.lists(acts, max_size=10), st.randoms(use_true_random=False))
def test_a_node_makes_the_same_of_its_disk_as_of_what_it_heard(
    said: list[tuple[str, str, str, int, set[str], Role]], rng: random.Random
) -> None:
    """Copies of statements by others and floods that push some out included, in any order."""
    entries = entries_of(said)
    stated = [each for each in entries if each.key.startswith(("revocation/", "role/"))]
    for copied in stated:
        author, at = rng.choice(list(ROLES)), rng.uniform(80, 110)
        entries.append(VILLAGE.entry(author, copied.key, copied.value, at))
        if rng.random() < 0.2:
            flood = range(MAX_STATEMENTS_PER_AUTHOR + 2)
            entries += [
                VILLAGE.change("second", "mason", rng.choice(list(Role)), 70 + n) for n in flood
            ]
    rng.shuffle(entries)
    stage = VILLAGE.node("lent")
    stage.hear_again_and_again([*(VILLAGE.admission(name) for name in ROLES), *entries])
    before = stage.view()
    for with_roster in (True, False):
        stage.reboot(with_roster=with_roster)
        assert stage.view() == before


def test_a_statement_that_was_pushed_out_is_forgotten_while_the_node_runs(
    village: Village,
) -> None:
    """Else it would count until the node is started again, and nowhere else."""
    stage = introduced(village)
    last = 100 + MAX_STATEMENTS_PER_AUTHOR
    for at in range(101, last):
        stage.hear(village.change("second", "lent", Role.MEMBER, at))
    stage.hear(village.change("second", "lent", Role.ADMIN, last))
    assert stage.papers.roster.role(village.id("lent")) is Role.ADMIN
    stage.hear(village.change("second", "lent", Role.MEMBER, 100))
    assert stage.papers.roster.role(village.id("lent")) is Role.MEMBER
    before = stage.view()
    stage.reboot(with_roster=True)
    assert stage.view() == before


@settings(max_examples=50, deadline=None)
@given(st.lists(acts, max_size=8), st.randoms(use_true_random=False))
def test_nodes_that_tell_each_other_what_they_hold_agree(
    said: list[tuple[str, str, str, int, set[str], Role]], rng: random.Random
) -> None:
    """Each heard some of it at first; nobody offers again what nobody holds."""
    entries = entries_of(said)
    stages = [VILLAGE.node("lent") for _ in range(3)]
    for stage in stages:
        stage.hear(*(VILLAGE.admission(name) for name in ROLES))
        for entry in rng.sample(entries, len(entries)):
            if rng.random() < 0.6:
                stage.hear(entry)
    before = None
    while before != (before := [stage.map() for stage in stages]):
        for stage in stages:
            for other in stages:
                held = [entry for kept in other.map().values() for entry in kept]
                for entry in held:
                    stage.hear(entry)
    assert before is not None
    assert before[0] == before[1] == before[2]
    assert stages[0].members() == stages[1].members() == stages[2].members()


# Rotation.


def test_a_node_hands_over_to_its_successor_with_all_that_it_let_in(village: Village) -> None:
    mason, observer = introduced(village, "mason"), introduced(village, "second")
    people, admissions = village.people, village.admissions
    invite = admissions.invite(people["mason"], Role.MEMBER, WALL_S)
    guest = admissions.join("guest", invite, people["mason"], WALL_S)
    mason.papers.authority.learn(guest.member)
    observer.papers.authority.learn(guest.member)
    heir = Identity(b"heir".ljust(32))
    successor = succeed(
        former=mason.papers.identity, member=mason.papers.member, successor=heir,
        now_wall_s=WALL_S + 500,
    )  # fmt: skip
    written = mason.write(lambda wall_s: mason.node.drafts.rotation(successor, wall_s))
    assert mason.told("trust.evicted") == [village.id("mason")]
    observer.hear(*written)
    assert observer.told("trust.revoked") == [village.id("mason")]
    roster = observer.papers.roster
    assert roster.role(heir.node_id) is Role.OPERATOR
    assert guest.identity.node_id in roster
    [out] = observer.papers.authority.revoked()
    assert (out.by, out.successor) == (village.id("mason"), heir.node_id)
    row = next(row for row in observer.papers.authority.members() if row.node == heir.node_id)
    assert (row.how, row.by) == ("rotated", village.id("mason"))


def test_a_rotation_that_would_lose_what_a_node_has_written_is_refused(
    village: Village, monkeypatch: pytest.MonkeyPatch
) -> None:
    mason = introduced(village, "mason")
    monkeypatch.setattr("meshnode.drafts.MAX_ENTRIES_KEPT", 0)
    successor = succeed(
        former=mason.papers.identity, member=mason.papers.member,
        successor=Identity(b"heir".ljust(32)), now_wall_s=WALL_S + 500,
    )  # fmt: skip
    mason.write(lambda at: mason.node.desired.draft({"policy/x": b"1"}, at))
    with pytest.raises(TooLarge, match="1 deployments and API keys were written by this node"):
        mason.node.drafts.rotation(successor, WALL_S + 501)
    assert mason.told("trust.evicted") == []


def test_who_came_too_late_for_an_invite_is_shown_among_those_that_are_out(
    village: Village,
) -> None:
    founder, admissions = introduced(village, "founder"), village.admissions
    village.people["second"].authority.learn(village.people["founder"].member)
    invite = admissions.invite(village.people["founder"], Role.MEMBER, WALL_S, uses=1)
    guests = [
        admissions.join(name, invite, village.people[by], WALL_S + at)
        for name, by, at in (("one", "founder", 10), ("other", "second", 11))
    ]
    for guest in guests:
        key = admission_key(guest.identity.node_id)
        founder.hear(village.entry("second", key, guest.member.chain, 20))
    assert guests[0].identity.node_id in founder.members()
    assert guests[1].identity.node_id not in founder.members()
    [out] = founder.papers.authority.revoked()
    assert (out.node, out.reason, out.by) == (
        guests[1].identity.node_id, Reason.USED_UP, None,
    )  # fmt: skip
    assert out.at_wall_s == WALL_S + 11
    shown = founder.papers.authority.evidence(guests[1].member)
    told = Stage(guests[1])
    told.hear(village.admission("second"))
    told.effects = told.node.handle(NoteReceived(told.node.me, shown), 1.0, WALL_S + 500)
    assert told.told("trust.evicted") == [told.node.me]


def test_an_admission_that_cannot_be_counted_is_told(village: Village) -> None:
    founder = introduced(village, "founder")
    invite = village.admissions.invite(village.people["founder"], Role.MEMBER, WALL_S, uses=1)
    guest = village.admissions.join("guest", invite, village.people["founder"], WALL_S)
    founder.papers.authority.learn(guest.member)
    founder.node.desired._clock.see(Stamp(int((WALL_S + 1000) * 1000), 0))
    link = LinkUp(guest.identity.node_id, Address("10.0.0.9", 1))
    founder.effects = founder.node.handle(link, 1.0, WALL_S)
    assert founder.told("trust.uncounted") == [guest.identity.node_id]


def test_what_a_later_version_stored_is_kept_and_says_nothing(village: Village) -> None:
    stage = introduced(village)
    authority = stage.papers.authority
    authority.take(village.entry("founder", role_key(village.id("mason")), b"of later", 1))
    authority.take(village.entry("founder", admission_key(village.id("mason")), b"of later", 1))
    assert len(stage.members()) == len(ROLES)


def test_evidence_that_would_not_fit_a_handshake_is_none(
    village: Village, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = introduced(village)
    stage.hear(village.revocation("founder", "mason", 100))
    mason = village.people["mason"].member
    assert stage.papers.authority.evidence(mason)
    monkeypatch.setattr("meshnode.authority.MAX_EVIDENCE_BYTES", 100)
    assert stage.papers.authority.evidence(mason) == b""


def test_a_node_whose_chain_is_full_cannot_be_promoted(village: Village) -> None:
    founder = introduced(village, "founder")
    member, former = village.people["lent"].member, village.people["lent"].identity
    while len(member.records) < MAX_CHAIN_RECORDS:
        heir = Identity(bytes([len(member.records)]) * 32)
        member = succeed(former=former, member=member, successor=heir, now_wall_s=WALL_S)
        former = heir
    founder.papers.authority.learn(member)
    with pytest.raises(UsageError, match="more than 32 records"):
        founder.node.drafts.role(member.node_id, Role.OPERATOR, WALL_S + 1)
