"""Who is in good standing: what the mesh's statements make of a chain that holds by itself.

A chain shows that a key was admitted. Whether it still counts depends on what has been stated since
(`statements`), and on how many others its invite has admitted. The rules:

- A statement counts if its author was an admin in good standing at its stamp. (A key may also revoke
  itself: that is how it hands over to its successor.)
- A chain counts if its subject is not revoked, and each admission and succession in it counts.
- An admission counts unless whoever witnessed or invited it is revoked, or may not invite any more;
  then it does only if the subject is *kept* by that statement, to that role at least. The same goes
  for promotions and for the root key. Where several admins revoke a key, it is enough that one
  keeps the subject; the key's own word on whom to keep counts only if no admin has revoked it.
- An invite limited to n devices admits the first n, by the time of admission, then node id. Those
  whose witness or inviter is revoked without keeping them come last.
- A member's role is that of the last change of it that counts, else the highest of its chain. A change
  to a higher role by an author that was revoked later counts only if that revocation keeps it.

All of it is a function of the *set* of statements and admissions: they are taken in the order of their
stamps, so nodes that hold the same ones agree, in whatever order these arrived. Two admins who
evict each other across a partition: the earlier stamp counts, and the later author was out by then.

`flaw` and `role` are asked for a point of that order, such as that of an entry of the desired state, or
for now. That takes the word of whoever wrote the stamp, so what was done before a right was lost stays
only if it is named by the statement that took it (`unnamed`): the entries of whoever is out, or has a
lower role, and those of whoever was let in or promoted by such a key without being kept. What an
evicted admin *states* is not named. It can still date a statement back, if it finds a member that passes
it on; it can let nobody in that way, but against another admin only its eviction in good time helps.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Final

from meshnode.limits import MAX_CLOCK_SKEW_S
from meshnode.trust.chain import Step, VerifiedMember, highest
from meshnode.trust.reasons import Reason
from meshnode.trust.records import Promotion, Succession, rfc3339
from meshnode.trust.statements import Revocation, RoleChange, Statement, keeps
from meshnode.types import NodeId, Role

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from meshnode.trust.records import InviteGrant

Order = tuple[int, int, str, bytes]
"""Where an entry of the desired state stands among all: wall clock in ms, counter, author, value."""

_Place = tuple[bool, int, NodeId]
"""Where a device stands among those that one invite admitted."""

_SKEW_MS: Final = MAX_CLOCK_SKEW_S * 1000


@dataclass(frozen=True, slots=True)
class Stated:
    """A statement, with its author and stamp.

    Attributes:
        order: Its entry's place.
        statement: What it says.
        kept: Who stays, and up to which role.
        entries: The digests of the subject's entries of the desired state that stay.
    """

    order: Order
    statement: Statement
    kept: Mapping[NodeId, Role] = field(repr=False)
    entries: frozenset[bytes] = field(repr=False, default=frozenset())

    @classmethod
    def of(cls, order: Order, statement: Statement) -> Stated:
        """Read who is kept, and what."""
        return cls(order, statement, keeps(statement), frozenset(statement.entries))

    @property
    def author(self) -> NodeId:
        """Who states it."""
        return NodeId(self.order[2])

    def spares(self, node: NodeId, role: Role) -> bool:
        """Whether a node stays, with this role."""
        kept = self.kept.get(node)
        return kept is not None and kept.allows(role)


@dataclass(frozen=True, slots=True)
class Flaw:
    """Why a chain that holds by itself does not count.

    Attributes:
        reason: `Reason.REVOKED` or `Reason.USED_UP`.
        sentence: What happened and what to do, safe to show.
        by: The statement that it is due to; None for an invite that is used up.
    """

    reason: Reason
    sentence: str
    by: Stated | None = None


@dataclass(frozen=True, slots=True)
class _Period:
    """A time with one role, from a wall time in ms on; `due_to` is the statement that took some of it."""

    since_ms: float
    role: Role
    due_to: Stated | None


class InviteUses:
    """Which devices each limited invite has admitted, as far as admissions are known.

    Attributes:
        version: Rises with every admission that is counted.
    """

    def __init__(self) -> None:
        """Know of none."""
        self.version = 0
        self._users: dict[tuple[bytes, bytes], dict[NodeId, tuple[Step, ...]]] = {}

    def __repr__(self) -> str:
        return f"<InviteUses of {len(self._users)} invites>"

    def register(self, member: VerifiedMember) -> bool:
        """Count the admissions of a chain; return whether an invite has more than it may now."""
        overfull = False
        for step in member.steps:
            if step.grant is None or not step.grant.uses:
                continue
            users = self._users.setdefault(_invite(step.grant), {})
            known = users.get(step.subject, ())
            if step not in known:
                users[step.subject] = (*known, step)
                self.version += 1
                overfull |= len(users) > step.grant.uses
        return overfull

    def is_registered(self, member: VerifiedMember) -> bool:
        """Whether every admission of a chain by a limited invite is counted."""
        return all(
            step.grant is None
            or not step.grant.uses
            or step in self._users.get(_invite(step.grant), {}).get(step.subject, ())
            for step in member.steps
        )

    def users(self, grant: InviteGrant) -> Mapping[NodeId, tuple[Step, ...]]:
        """Return the devices that an invite has admitted, each with how, gone ones included."""
        return self._users.get(_invite(grant), {})


def _invite(grant: InviteGrant) -> tuple[bytes, bytes]:
    # With the inviter: whoever grants somebody else's invite key takes none of its uses.
    return grant.invite_key, grant.issuer


class Standing:
    """What a set of statements says about every chain. Made by `standing_of`."""

    def __init__(self, uses: InviteUses | None = None) -> None:
        """Know of no statement: every chain counts that holds by itself."""
        self.uses = uses or InviteUses()
        self._revocations: dict[NodeId, list[Stated]] = {}
        self._changes: dict[NodeId, list[Stated]] = {}
        self._places: dict[tuple[bytes, bytes], tuple[int, list[_Place]]] = {}

    def __repr__(self) -> str:
        return f"<Standing with {len(self._revocations)} revoked, {len(self._changes)} changed>"

    def revoked(self) -> list[Stated]:
        """Return the first revocation that counts of each key, in order."""
        return sorted((first[0] for first in self._revocations.values()), key=_order)

    def revocation(self, node: NodeId) -> Stated | None:
        """Return the first revocation of a key that counts, or None."""
        found = self._revocations.get(node)
        return found[0] if found else None

    def is_used_up(self, grant: InviteGrant, subject: NodeId) -> bool:
        """Whether an invite admits no further device; those that it has admitted are none."""
        users = self.uses.users(grant)
        return bool(grant.uses) and len(users) >= grant.uses and subject not in users

    def is_untouched(self, member: VerifiedMember) -> bool:
        """Whether no statement and no limited invite bears on a chain: it counts, and always did."""
        touched = self._revocations.keys() | self._changes.keys()
        return not any(
            step.subject in touched
            or step.by in touched
            or (step.grant is not None and (step.grant.uses or step.grant.inviter in touched))
            for step in member.steps
        )

    def flaw(self, member: VerifiedMember, before: Order | None = None) -> Flaw | None:
        """Say why a member's chain does not count, or None.

        Args:
            member: The member, with its verified chain.
            before: The point in the order of statements for which it is asked; None for now.
        """
        out = self._first_revocation(member.node_id, before)
        if out is not None:
            return Flaw(Reason.REVOKED, _sentence(out), out)
        for index, step in enumerate(member.steps):
            if step.kind is not Promotion:
                flaw = self._flaw_of(step, member.steps[:index], before)
                if flaw is not None:
                    return flaw
        return None

    def role(self, member: VerifiedMember, before: Order | None = None) -> Role:
        """Return a member's role at a point of the order, or now; its chain must hold."""
        return self._periods(member.node_id, member.steps, before)[-1].role

    def unnamed(
        self, member: VerifiedMember, needed: Role, order: Order, digest: bytes
    ) -> str | None:
        """Say why an entry does not stay that its author might write at its stamp, or None.

        Args:
            member: The author, with one of its verified chains.
            needed: The role that the entry takes.
            order: Its place.
            digest: Of the entry.
        """
        flaw = self.flaw(member)
        if flaw is not None and not self._is_named_by(flaw.by, digest):
            return flaw.sentence
        periods = self._periods(member.node_id, member.steps, None)
        then = [each for each in periods[1:] if each.due_to is None or each.due_to.order < order]
        now, *later = periods[len(then) :]
        if not now.role.allows(needed) and not self._is_named_by(now.due_to, digest):
            return "the role that it had by then does not count any more"
        for fall in _falls([now, *later], needed):
            if not any(digest in each.entries for each in fall):
                return f"{fall[0].author} has given it a lower role since"
        return None

    # Revocations

    def _is_named_by(self, by: Stated | None, digest: bytes) -> bool:
        """Whether an entry stays by a statement, or by another revocation of the same key."""
        if by is None:
            return False
        found = self._words_on(by.statement.node_id) if _is_revocation(by) else [by]
        return any(digest in each.entries for each in found)

    def _words_on(self, node: NodeId, before: Order | None = None) -> list[Stated]:
        """Return the revocations of a key by whose word others stay: those by admins, if any."""
        found = [
            each
            for each in self._revocations.get(node, ())
            if before is None or each.order < before
        ]
        return [each for each in found if each.author != node] or found

    def _first_revocation(self, node: NodeId, before: Order | None) -> Stated | None:
        found = self._revocations.get(node)
        return found[0] if found and (before is None or found[0].order < before) else None

    def _not_kept(
        self, issuer: NodeId, subject: NodeId, role: Role, before: Order | None
    ) -> Stated | None:
        """Return the revocation by which what `issuer` gave `subject` does not count, or None."""
        words = self._words_on(issuer, before)
        if not words or any(each.spares(subject, role) for each in words):
            return None
        return words[0]

    # Steps

    def _flaw_of(self, step: Step, earlier: Sequence[Step], before: Order | None) -> Flaw | None:
        """Say why an admission or succession does not count, given the steps it rests on."""
        out = self._not_kept(step.by, step.subject, step.role, before)
        if out is None and step.grant is not None:
            out = self._not_kept(step.grant.inviter, step.subject, step.role, before)
        if out is not None:
            return Flaw(
                Reason.REVOKED,
                f"the admission of {step.subject} rests on a key that is out: {_sentence(out)}",
                out,
            )
        if step.grant is None:
            return None
        grant = step.grant
        needed = highest((grant.role, Role.OPERATOR))
        barred = self._barred(step, grant.inviter, needed, grant.issued_at_s, earlier, before)
        if barred is not None:
            return Flaw(
                Reason.REVOKED,
                f"{step.subject} was invited by {grant.inviter}, which may not invite any more; ask "
                "for a new invite",
                barred,
            )
        if grant.uses and self._rank(grant, step, before) >= grant.uses:
            return Flaw(
                Reason.USED_UP,
                f"invite {grant.invite_id} was for {grant.uses} "
                f"{'device' if grant.uses == 1 else 'devices'}, and {step.subject} came too late; "
                "ask for a new invite",
            )
        return None

    def _barred(
        self,
        step: Step,
        issuer: NodeId,
        needed: Role,
        at_s: int,
        earlier: Sequence[Step],
        before: Order | None,
    ) -> Stated | None:
        """Return the change of its role by which `issuer` might not give what it gave, or None.

        Args:
            step: What was given.
            issuer: Who gave it, at `at_s`.
            needed: The role that this takes.
            at_s: Wall time, by the issuer's clock.
            earlier: The steps that it rests on.
            before: The point in the order of statements.
        """
        periods = self._periods(issuer, earlier, before)
        at_ms = at_s * 1000
        then = next(each for each in reversed(periods) if each.since_ms <= at_ms)
        # The issuer's clock may be behind that of the admin who raised its role.
        soon = (each for each in periods if at_ms < each.since_ms <= at_ms + _SKEW_MS)
        if not any(each.role.allows(needed) for each in (then, *soon)):
            return then.due_to
        for later in periods:
            if later.since_ms <= at_ms or later.role.allows(needed) or later.due_to is None:
                continue
            if not later.due_to.spares(step.subject, step.role):
                return later.due_to
        return None

    def _rank(self, grant: InviteGrant, step: Step, before: Order | None) -> int:
        """Return how many devices come before this one, of those that its invite admitted."""
        users = self.uses.users(grant)
        own = self._place((*users.get(step.subject, ()), step), before)
        return bisect_left(self._taken_places(grant, before), own)

    def _taken_places(self, grant: InviteGrant, before: Order | None) -> list[_Place]:
        """Return the places of an invite's devices, in order; those of now are remembered."""
        key = _invite(grant)
        known = self._places.get(key)
        if before is None and known is not None and known[0] == self.uses.version:
            return known[1]
        places = sorted(self._place(steps, before) for steps in self.uses.users(grant).values())
        if before is None:
            self._places[key] = (self.uses.version, places)
        return places

    def _place(self, steps: Iterable[Step], before: Order | None) -> _Place:
        return min((self._is_tainted(each, before), each.at_s, each.subject) for each in steps)

    def _is_tainted(self, step: Step, before: Order | None) -> bool:
        assert step.grant is not None
        return any(
            self._not_kept(issuer, step.subject, step.role, before) is not None
            for issuer in (step.by, step.grant.inviter)
        )

    # Roles

    def _periods(self, node: NodeId, steps: Sequence[Step], before: Order | None) -> list[_Period]:
        """Return a member's roles in the order of time; the first is that of its chain."""
        periods = [_Period(float("-inf"), *self._base(node, steps, before))]
        for change in self._changes.get(node, ()):
            if before is not None and change.order >= before:
                break
            assert isinstance(change.statement, RoleChange)
            role = change.statement.role
            rises = not periods[-1].role.allows(role)
            if rises and self._not_kept(change.author, node, role, before) is not None:
                continue
            periods.append(_Period(change.order[0], role, change))
        return periods

    def _base(
        self, node: NodeId, steps: Sequence[Step], before: Order | None
    ) -> tuple[Role, Stated | None]:
        """Return the highest role that steps give to a node, and what took one of them, if any."""
        roles = []
        taken: Stated | None = None
        for index, step in enumerate(steps):
            if step.subject != node:
                continue
            if before is not None and step.at_s * 1000 > before[0] + _SKEW_MS:
                continue
            role, due_to = step.role, None
            if step.kind is Succession:
                inherited = self._periods(step.by, steps[:index], before)[-1]
                role, due_to = inherited.role, inherited.due_to
            elif step.kind is Promotion:
                due_to = self._not_promoted(step, steps[:index], before)
                role = role if due_to is None else Role.MEMBER
            roles.append(role)
            taken = taken or due_to
        return highest(roles), taken

    def _not_promoted(
        self, step: Step, earlier: Sequence[Step], before: Order | None
    ) -> Stated | None:
        out = self._not_kept(step.by, step.subject, step.role, before)
        return out or self._barred(step, step.by, Role.ADMIN, step.at_s, earlier, before)

    # Made once

    def _counts(self, stated: Stated, chains: Iterable[VerifiedMember]) -> bool:
        """Whether the author may state this, by what was stated before."""
        is_own = (
            isinstance(stated.statement, Revocation) and stated.statement.node_id == stated.author
        )
        return any(
            self.flaw(member, stated.order) is None
            and (is_own or self.role(member, stated.order) is Role.ADMIN)
            for member in chains
        )

    def _take(self, stated: Stated) -> None:
        kind = self._revocations if isinstance(stated.statement, Revocation) else self._changes
        kind.setdefault(stated.statement.node_id, []).append(stated)


def standing_of(
    statements: Iterable[Stated],
    uses: InviteUses,
    chains_of: Callable[[NodeId], Iterable[VerifiedMember]],
) -> Standing:
    """Work out what a set of statements says.

    Args:
        statements: All that are known, those that do not count included, in any order.
        uses: The admissions by limited invites; kept, so that later ones count at once.
        chains_of: The verified chains of an author that are known; a chain that counts is enough.
    """
    standing = Standing(uses)
    for stated in sorted(statements, key=_order):
        if standing._counts(stated, chains_of(stated.author)):
            standing._take(stated)
    return standing


def _is_revocation(stated: Stated) -> bool:
    return isinstance(stated.statement, Revocation)


def _falls(periods: Sequence[_Period], needed: Role) -> list[list[Stated]]:
    """Return the changes by which a member lost a role, each with those that lowered it further."""
    falls: list[list[Stated]] = []
    for before, period in pairwise(periods):
        if period.due_to is None or period.role.allows(needed):
            continue
        if before.role.allows(needed):
            falls.append([])
        if falls:
            falls[-1].append(period.due_to)
    return falls


def _order(stated: Stated) -> Order:
    return stated.order


def _printable(text: str) -> str:
    return "".join(each if each.isprintable() else " " for each in text).strip()


def _sentence(out: Stated) -> str:
    """Say in words that a key is out."""
    revocation = out.statement
    assert isinstance(revocation, Revocation)
    when = rfc3339(revocation.at_wall_s)
    if out.author == revocation.node_id:
        return f"{out.author} was replaced by a new key of the same device at {when}"
    why = _printable(revocation.reason)
    return (
        f"{_printable(revocation.name) or revocation.node_id} was evicted by {out.author} at {when}"
        f"{f' ({why})' if why else ''}; to come back, the device joins with a new invite"
    )
