"""Who may say what: records and entries of the desired state, checked against admissions.

The cores of membership and state are given these checks as functions, since they know nothing of
trust. What is learnt on the way, a member's verified chain, goes into the roster; what is stated about
members (`meshnode.state.statements`) makes the standing by which all are judged.

Who may write which keys of the desired state stands in one table, `_WRITERS`. An entry counts if its
author was in good standing at its stamp, and its role then allowed it. Statements are taken in even
where that is not so, from whoever has ever been given the right: whether one counts may depend on
another that is still on its way, and all nodes must come to the same end.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from meshnode.errors import ProtocolError
from meshnode.limits import (
    MAX_ADMISSIONS_BYTES_OF_OPERATORS,
    MAX_ADMISSIONS_BYTES_PER_OPERATOR,
    MAX_EVIDENCE_BYTES,
)
from meshnode.state.desired_messages import DESIRED, DesiredEntries
from meshnode.state.statements import (
    ADMISSION,
    REVOCATION,
    ROLE,
    admission_key,
    is_statement,
    revocation_key,
    role_key,
    subject_of,
)
from meshnode.trust.chain import VerifiedMember, highest, verify_chain
from meshnode.trust.identity import verify
from meshnode.trust.overview import MemberRow, RevokedRow, member_rows, revoked_rows
from meshnode.trust.parts import joined
from meshnode.trust.reasons import Reason, TrustError
from meshnode.trust.records import mesh_id_of
from meshnode.trust.shares import Shares, rests_on
from meshnode.trust.standing import Flaw, InviteUses, Order, Standing, Stated, standing_of
from meshnode.trust.statements import RoleChange, Statement, read_revocation, read_role_change
from meshnode.types import NodeId, Role

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from meshnode.membership.messages import MemberRecord
    from meshnode.state.desired_messages import Entry
    from meshnode.trust.roster import Roster

_WRITERS: Final = {
    ADMISSION: Role.MEMBER,  # a witness writes that of a device; it proves itself
    REVOCATION: Role.ADMIN,  # or the key that it is about
    ROLE: Role.ADMIN,
}
"""The role that writing a key takes, by the key's prefix; of all others that of an operator."""


_ARTICLES: Final = {Role.MEMBER: "a", Role.OPERATOR: "an", Role.ADMIN: "an"}


def needed_role(key: str) -> Role:
    """Return the role that writing a key of the desired state takes."""
    return _WRITERS.get(f"{key.partition('/')[0]}/", Role.OPERATOR)


class Authority:
    """Checks what nodes of one mesh say, by the admissions in a roster and by what was stated."""

    def __init__(self, roster: Roster, on_learnt: Callable[[], None]) -> None:
        """`on_learnt` is called after a member was added or dropped, or its chain has changed."""
        self._roster = roster
        self._on_learnt = on_learnt
        self._verified: VerifiedMember | None = None  # the last chain: it is often asked for twice
        self._begin()
        self._dropped: dict[NodeId, VerifiedMember] = {}
        self._untouched: dict[NodeId, bool] = {}  # authors of whom nothing was stated; see `counts`
        self._is_stale = False
        self._is_thinned = False  # something was forgotten since
        self._is_unsettled = False
        roster.evidence = self.evidence
        roster.standing = Standing(self._uses)  # counts from the first admission on

    def _begin(self) -> None:
        """Know of no statement."""
        self._entries: dict[str, dict[Order, Entry]] = {}
        self._stated: dict[Order, Stated] = {}
        self._authors: set[NodeId] = set()
        self._raised: set[NodeId] = set()  # whom somebody has stated to be an admin
        self._shares = Shares(MAX_ADMISSIONS_BYTES_PER_OPERATOR, MAX_ADMISSIONS_BYTES_OF_OPERATORS)
        self._chains: dict[NodeId, dict[bytes, VerifiedMember]] = {}
        self._uses = InviteUses()

    def __repr__(self) -> str:
        return f"<Authority over {self._roster!r}, {len(self._stated)} statements>"

    # What is known

    @property
    def roster(self) -> Roster:
        """The members in good standing."""
        return self._roster

    @property
    def standing(self) -> Standing:
        """What all statements so far make of chains."""
        if self._is_thinned:
            self._take_stock()
        if self._is_stale:
            self._is_stale = False
            self._is_unsettled = True
            self._roster.standing = standing_of(
                joined(self._stated.values()), self._uses, self._chains_of
            )
        return self._roster.standing

    @property
    def is_sealed(self) -> bool:
        """Whether the mesh's root key is out of use (`meshnode trust seal`)."""
        return any(self._is_root(each) for each in self.standing.revoked())

    def members(self) -> list[MemberRow]:
        """Return the members in good standing, the earliest admission first."""
        return member_rows(self._roster, self._uses)

    def revoked(self) -> list[RevokedRow]:
        """Return the keys that are out, the latest first; the root key among them once sealed."""
        known = [member for chains in self._chains.values() for member in chains.values()]
        others = [
            each for each in (*known, *self._dropped.values()) if each.node_id not in self._roster
        ]
        return revoked_rows(self.standing, self._roster, others, self._is_root)

    @property
    def is_unsettled(self) -> bool:
        """Whether more was stated since `settle`."""
        return self._is_stale or self._is_unsettled

    def why_out(self, node: NodeId) -> Flaw | None:
        """Say why a node is no member any more, or None if it is one or never was."""
        if node in self._roster:
            return None
        flaws = (self.standing.flaw(member) for member in self._chains_of(node))
        return next((flaw for flaw in flaws if flaw is not None), None)

    def chains(self) -> list[VerifiedMember]:
        """Return every chain that is known, those of members that are out included."""
        stated = [member for chains in self._chains.values() for member in chains.values()]
        return [*self._roster, *stated, *self._dropped.values()]

    def unregistered(self, node: NodeId) -> bytes | None:
        """Return a member's chain if an invite that admits a number of devices does not count it yet."""
        member = self._roster.get(node)
        if member is None or self._uses.is_registered(member):
            return None
        return member.chain

    # What is learnt

    def learn(self, member: VerifiedMember) -> str | None:
        """Take a verified member into the roster; return why not, or None."""
        known = self._roster.get(member.node_id)
        if known is not None and known.chain == member.chain:
            return None
        try:
            kept = self._roster.take(member)
        except TrustError as error:
            return str(error)
        self._dropped.pop(member.node_id, None)
        if member.node_id in self._authors:  # what it has stated may count now
            self._is_stale = True
        if known is None or kept.chain != known.chain:  # of two chains the roster keeps one
            self._on_learnt()
        return None

    def take(self, entry: Entry) -> None:
        """Take in a statement that `verify_entry` has passed, here or before it was stored."""
        if entry.order in self._entries.setdefault(entry.key, {}):
            return
        self._entries[entry.key][entry.order] = entry
        if entry.key.startswith(ADMISSION):
            self._take_chain(subject_of(entry.key), entry.value)
            self._shares.count(self._room_of(entry), entry.size_bytes)
            return
        try:
            statement = _read(entry)
        except ProtocolError:
            return  # of a later version, by which it was stored; it says nothing to this one
        self._stated[entry.order] = Stated.of(entry.order, statement)
        self._authors.add(NodeId(entry.author))
        self._is_stale = True
        if isinstance(statement, RoleChange) and statement.role is Role.ADMIN:
            self._raised.add(statement.node_id)
        if isinstance(statement, RoleChange) and statement.chain:
            self._take_chain(statement.node_id, statement.chain)

    def forget(self, entry: Entry) -> None:
        """Forget a statement that another one has pushed out: no node has it after a restart."""
        self._entries[entry.key].pop(entry.order, None)
        self._is_stale = self._is_thinned = True

    def settle(self) -> list[tuple[VerifiedMember, Flaw]]:
        """Judge all members by what was stated since; drop and return those that are out, with why."""
        standing = self.standing
        if not self._is_unsettled:
            return []
        self._is_unsettled = False
        self._untouched.clear()
        dropped = self._roster.apply(standing)
        for member, _ in dropped:
            self._dropped[member.node_id] = member
        for chains in tuple(self._chains.values()):  # some may count again, or have another role
            for member in chains.values():
                self.learn(member)
        self._on_learnt()
        return dropped

    def _take_stock(self) -> None:
        """Take in what is still stated as if for the first time."""
        self._is_thinned = False
        entries = [entry for held in self._entries.values() for entry in held.values()]
        self._begin()
        for entry in sorted(entries, key=lambda each: each.order):
            self.take(entry)
        self._is_stale = True

    def _take_chain(self, node: NodeId, chain: bytes) -> None:
        try:
            member = self._member(node, chain)
        except TrustError:
            return  # as above
        self._chains.setdefault(node, {})[chain] = member
        if self._uses.register(member) or node in self._authors:
            self._is_stale = True
        self.learn(member)

    # Checks

    def bound(self, data: bytes) -> bytes:
        """Return what is signed for an entry's bytes: they count in one mesh only."""
        return self._roster.mesh_id.encode() + data

    def verify_record(self, record: MemberRecord) -> str | None:
        """Say why a member's record is refused, or None: its admission and signature hold."""
        flaw = self._verify_chain(record.node_id, record.chain)
        if flaw is None and not verify(record.public_key, record.signed_bytes(), record.signature):
            return "its signature does not fit"
        return flaw

    def verify_entry(self, entry: Entry) -> str | None:
        """Say why an entry of the desired state is refused, or None.

        An admission brings the member that it is about; anything else needs an author who is known.
        (Which API keys may be deleted depends on their values, which `meshnode.node` knows.)
        """
        author = NodeId(entry.author)
        chains = self._chains_of(author)
        if entry.key.startswith(ADMISSION):
            subject = subject_of(entry.key)
            try:
                admitted = self._member(subject, entry.value)
            except TrustError as error:
                return f"its admission does not hold: {error}"
            chains += [admitted] if subject == author else []
        if not chains:
            return "its author is not known here"
        if not verify(chains[0].public_key, self.bound(entry.signed_bytes), entry.signature):
            return "its signature does not fit"
        if not is_statement(entry.key):
            return self._why_not(entry, chains)
        if entry.key.startswith(ADMISSION):
            return self._shares.why_none(self._room_of(entry), entry.size_bytes)
        return self._why_unheard(entry, chains)

    def _room_of(self, entry: Entry) -> frozenset[NodeId]:
        """Return the keys, none of them an admin's, on which an admission rests, or who states it."""
        author, subject = NodeId(entry.author), subject_of(entry.key)
        chains = self._chains_of(author)
        try:
            admitted = self._member(subject, entry.value)
        except TrustError:
            return frozenset()
        found = rests_on(admitted)
        if author != subject and not self._was_ever_admin(author, chains):
            found = found.union({author}, *map(rests_on, chains))
        return found

    def counts(self, entry: Entry) -> bool:
        """Whether an entry that was taken in still counts: its author was in good standing by then."""
        author = NodeId(entry.author)
        member = self._roster.get(author)
        if author not in self._untouched:
            self._untouched[author] = member is not None and self.standing.is_untouched(member)
        if member is not None and self._untouched[author]:
            # Its chain counts, but a role by which it wrote this may not count any more.
            role = self.standing.role(member, entry.order)
            if role.allows(needed_role(entry.key)):
                return True
        return self._why_not(entry, self._chains_of(author)) is None

    def _why_not(self, entry: Entry, chains: list[VerifiedMember]) -> str | None:
        """Say why an author might not write an entry at its stamp, or it does not stay, or None."""
        needed = needed_role(entry.key)
        reason = "its author is not known here"
        for member in chains:
            flaw = self.standing.flaw(member, entry.order)
            if flaw is not None:
                reason = f"its author was out by then: {flaw.sentence}"
                continue
            role = self.standing.role(member, entry.order)
            if role.allows(needed):
                unnamed = self.standing.unnamed(member, needed, entry.order, entry.digest)
                if unnamed is None:
                    return None
                reason = f"it is not among the entries of its author that stay: {unnamed}"
                continue
            reason = f"its author is {_ARTICLES[role]} {role} and may not change that"
        return reason

    def _why_unheard(self, entry: Entry, chains: list[VerifiedMember]) -> str | None:
        """Say why a statement is not even looked at, or None.

        That must not depend on what else is known, except that more of it never makes it refused.
        """
        author = NodeId(entry.author)
        try:
            statement = _read(entry)
        except ProtocolError as error:
            return str(error)
        subject = statement.node_id
        if subject != subject_of(entry.key):
            return "it is about another node than its key says"
        if isinstance(statement, RoleChange) and statement.chain:
            try:
                self._member(subject, statement.chain)
            except TrustError as error:
                return f"its admission does not hold: {error}"
        elif not isinstance(statement, RoleChange) and subject == author:
            return None
        if not self._was_ever_admin(author, chains):
            return "its author is no admin and may not say who belongs to the mesh"
        return None

    def _was_ever_admin(self, node: NodeId, chains: Iterable[VerifiedMember]) -> bool:
        given = (step.role for each in chains for step in each.steps if step.subject == node)
        return node in self._raised or highest(given) is Role.ADMIN

    def _verify_chain(self, node: NodeId, chain: bytes) -> str | None:
        known = self._roster.get(node)
        if known is not None and known.chain == chain:
            return None
        try:
            member = self._member(node, chain)
        except TrustError as error:
            return f"its admission does not hold: {error}"
        return self.learn(member)

    def _member(self, node: NodeId, chain: bytes) -> VerifiedMember:
        """Verify a node's chain, unless that was done before."""
        known = self._chains.get(node, {}).get(chain)
        if known is not None:
            return known
        if self._verified is None or self._verified.chain != chain:
            self._verified = verify_chain(chain, self._roster.mesh_id)
        if self._verified.node_id != node:
            raise TrustError(Reason.NOT_A_MEMBER, "it is another node's")
        return self._verified

    def _chains_of(self, node: NodeId) -> list[VerifiedMember]:
        """Return the chains of a node that are known, whether or not they count."""
        known = (self._roster.get(node), self._dropped.get(node))
        stated = self._chains.get(node, {}).values()
        return [*(each for each in known if each is not None), *stated]

    def _is_root(self, stated: Stated) -> bool:
        return mesh_id_of(stated.statement.subject) == self._roster.mesh_id

    # Evidence

    def evidence_keys(self, member: VerifiedMember) -> list[str]:
        """Return the keys of all statements that may be why a chain does not count."""
        nodes = {member.node_id}
        for step in member.steps:
            nodes |= {step.subject, step.by}
            if step.grant is not None:
                nodes.add(step.grant.inviter)
                users = self._uses.users(step.grant)
                nodes |= {*sorted(users, key=lambda each: users[each][0].at_s)[: step.grant.uses]}
        keys = [key for node in nodes for key in (revocation_key(node), role_key(node))]
        stated = [entry for key in keys for entry in self._entries.get(key, {}).values()]
        authors = {NodeId(entry.author) for entry in stated}
        keys += [admission_key(node) for node in nodes | authors]
        return sorted(key for key in keys if key in self._entries)

    def evidence(self, member: VerifiedMember) -> bytes:
        """Return a note that shows a node that is out why it is; empty if it would be too large."""
        entries = [
            entry for key in self.evidence_keys(member) for entry in self._entries[key].values()
        ]
        note = DESIRED.encode(DesiredEntries(tuple(entries)))
        return note if len(note) <= MAX_EVIDENCE_BYTES else b""


def _read(entry: Entry) -> Statement:
    read = read_revocation if entry.key.startswith(REVOCATION) else read_role_change
    return read(entry.value)
