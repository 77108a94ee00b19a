"""What a node asks of its mesh: changes of the desired state, checked and prepared.

A draft has no effect before it is durable and committed (`Node.commit`). What every other node would
refuse is refused here, before this one holds it alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING

from msgspec import structs

from meshnode import advertisement
from meshnode.authority import needed_role
from meshnode.errors import (
    Forbidden,
    InvalidRequest,
    MeshError,
    ModelNotFound,
    ProtocolError,
    TooLarge,
    UsageError,
)
from meshnode.limits import MAX_ENTRIES_KEPT, MAX_RELEASE_REASON_LENGTH, MAX_REMOVED_DEPLOYMENTS
from meshnode.state.deployment import KEY_PREFIX, Deployment, Origin, Removal, removal_of
from meshnode.state.deployment_history import base_of
from meshnode.state.desired import Draft
from meshnode.state.drain import Drain, drain_key
from meshnode.state.release import END_PREFIX, ORDER_PREFIX, STEP_PREFIX, STOP_PREFIX, Order
from meshnode.state.statements import admission_key, revocation_key, role_key
from meshnode.trust.chain import highest, promote
from meshnode.trust.descent import Descent
from meshnode.trust.parts import KEPT_IN_ALL_PARTS, split
from meshnode.trust.reasons import TrustError
from meshnode.trust.statements import Revocation, RoleChange, pack_keeps, write_statement
from meshnode.types import NodeId, Role, node_id_of

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterable

    from meshnode.authority import Authority
    from meshnode.reconcile import OwnReplica
    from meshnode.rollout import Progress
    from meshnode.state.api_keys import ApiKey
    from meshnode.state.artifact import Artifact
    from meshnode.state.desired import DesiredState
    from meshnode.state.desired_messages import Entry
    from meshnode.state.release import Ending, Verb
    from meshnode.trust.chain import VerifiedMember
    from meshnode.trust.identity import Identity
    from meshnode.trust.statements import Statement


class Drafts:
    """The changes that one node may prepare."""

    def __init__(
        self,
        identity: Identity,
        *,
        desired: DesiredState,
        own: Mapping[tuple[str, int], OwnReplica],
        authority: Authority,
        verify_entry: Callable[[Entry], str | None],
    ) -> None:
        """Prepare changes of `desired`.

        Args:
            identity: The author.
            desired: What the mesh is asked to do.
            own: This node's replicas by (model, version).
            authority: Who may do what.
            verify_entry: Why an entry is refused, or None.
        """
        self._identity = identity
        self._me = identity.node_id
        self._desired = desired
        self._own = own
        self._authority = authority
        self._verify_entry = verify_entry

    def __repr__(self) -> str:
        return f"<Drafts of {self._me[:8]}>"

    def deployment(self, deployment: Deployment, wall_s: float) -> Draft:
        """Prepare to ask the mesh to serve a model; the revision says which one it was made from.

        Raises:
            Forbidden: if this node's role does not allow it.
            ModelError: if a field is not within its limits.
            TooLarge: if it is too large to be shared, or a version's description is.
            UsageError: if this node's clock is far behind what it has seen.
        """
        for manifest in deployment.manifests:
            advertisement.require_advertisable(manifest)
        base = base_of(self._desired.entry(deployment.key))
        origin = structs.replace(deployment.origin, base=base)
        release = deployment.release
        if release is not None and not release.begun_ms:
            release = structs.replace(release, begun_ms=int(wall_s * 1000))
        since_ms = self._since_ms(deployment.key, wall_s)
        value = structs.replace(
            deployment, origin=origin, since_ms=since_ms, release=release
        ).encode()
        self._require_role(deployment.key)
        return self._draft({deployment.key: value}, wall_s)

    def _since_ms(self, key: str, wall_s: float) -> int:
        """Return when a deployment was first made, which no change of it changes."""
        value = self._desired.get(key)
        if value is not None and removal_of(value) is None:
            with suppress(MeshError):  # what lies there may be no deployment
                return Deployment.decode(value).since_ms
        return int(wall_s * 1000)

    def undeployment(self, name: str, wall_s: float, by: str = "") -> Draft:
        """Prepare to ask the mesh to stop serving a model. Its revisions stay, and can be restored.

        Args:
            name: Of the deployment.
            wall_s: Seconds since the Unix epoch.
            by: Who asked for it.

        Raises:
            Forbidden: if this node's role does not allow it.
            ModelNotFound: if there is no such deployment.
            UsageError: if the model lies in this node's own folder, or the clock is far behind.
        """
        key = KEY_PREFIX + name
        value = self._desired.get(key)
        if value is None or removal_of(value) is not None:
            if any(model == name and not own.deployed for (model, _), own in self._own.items()):
                raise UsageError(
                    f"{name!r} is served from a node's own model folder (--models), not deployed"
                )
            raise ModelNotFound(f"nothing is deployed under the name {name!r}")
        self._require_role(key)
        removal = Removal(Origin(base_of(self._desired.entry(key)), by))
        said = [prefix + name for prefix in (ORDER_PREFIX, STOP_PREFIX, STEP_PREFIX, END_PREFIX)]
        void = {each: b"" for each in said if self._desired.get(each) is not None}
        return self._draft({**self._forgotten(), **void, key: removal.encode()}, wall_s)

    def _forgotten(self) -> dict[str, bytes]:
        """Return what to write so that one more deleted deployment finds room: the oldest are forgotten."""
        removed = [
            entry
            for key, value in self._desired.items()
            if key.startswith(KEY_PREFIX) and removal_of(value) is not None
            if (entry := self._desired.entry(key)) is not None
        ]
        removed.sort(key=lambda entry: entry.order)
        more = max(0, len(removed) + 1 - MAX_REMOVED_DEPLOYMENTS)
        return {entry.key: b"" for entry in removed[:more]}

    def release_order(
        self,
        name: str,
        verb: Verb,
        revision: tuple[int, int],
        wall_s: float,
        *,
        by: str = "",
        reason: str = "",
    ) -> Draft:
        """Prepare to ask something of a deployment's release.

        Args:
            name: The deployment.
            verb: What.
            revision: Of the release (`meshnode.state.deployment.release_id`).
            wall_s: Seconds since the Unix epoch.
            by: Who asks for it.
            reason: Why, for people; cut where it is too long.

        Raises:
            Forbidden: if this node's role does not allow it.
            TooLarge: if the desired state is full.
            UsageError: if this node's clock is far behind what it has seen.
        """
        key = (STOP_PREFIX if verb in ("abort", "undo") else ORDER_PREFIX) + name
        self._require_role(key)
        number = max(
            1, int(wall_s * 1000)
        )  # others may ask at the same time, and not know of each other
        value = self._desired.get(key)
        if value is not None:
            with suppress(ProtocolError):
                number = max(number, Order.decode(value).number + 1)
        order = Order(number, verb, revision, by, reason[:MAX_RELEASE_REASON_LENGTH])
        return self._draft({key: order.encode()}, wall_s)

    def release_step(self, name: str, progress: Progress, wall_s: float) -> Draft:
        """Prepare to keep how far a deployment's release has come.

        Raises:
            Forbidden, TooLarge, UsageError: as `release_order`.
        """
        key = STEP_PREFIX + name
        self._require_role(key)
        return self._draft({key: progress.encode()}, wall_s)

    def release_ending(self, name: str, ending: Ending, wall_s: float) -> Draft:
        """Prepare to settle how a deployment's release came out.

        Raises:
            Forbidden, TooLarge, UsageError: as `release_order`.
        """
        key = END_PREFIX + name
        self._require_role(key)
        return self._draft({key: ending.encode()}, wall_s)

    def publication(self, artifacts: Iterable[Artifact], wall_s: float) -> Draft:
        """Prepare to tell the mesh of versions that this node keeps for it.

        Raises:
            Forbidden: if this node's role does not allow it.
            ModelError: if a field is not within its limits.
            TooLarge: if one is too large to be shared.
            UsageError: if this node's clock is far behind what it has seen.
        """
        values = {artifact.key: artifact.encode() for artifact in artifacts}
        for key in values:
            self._require_role(key)
        return self._draft(values, wall_s)

    def withdrawal(self, artifacts: Iterable[Artifact], wall_s: float) -> Draft:
        """Prepare to take published versions back.

        Raises:
            Forbidden: if this node's role does not allow it.
            UsageError: if this node's clock is far behind what it has seen.
        """
        keys = [artifact.key for artifact in artifacts]
        for key in keys:
            self._require_role(key)
        return self._draft(dict.fromkeys(keys, b""), wall_s)

    def api_key(self, key: ApiKey, wall_s: float, forget: ApiKey | None = None) -> Draft:
        """Prepare to tell the mesh of an API key, one that was made or one that was revoked.

        Args:
            key: The key.
            wall_s: Seconds since the Unix epoch.
            forget: A key whose entry makes room for it.

        Raises:
            Forbidden: if this node's role does not allow it.
            TooLarge: if the desired state is full.
            UsageError: if this node's clock is far behind what it has seen.
        """
        value = key.encode()
        self._require_role(key.key)
        dropped = {} if forget is None else {forget.key: b""}
        return self._draft({**dropped, key.key: value}, wall_s)

    def drain(self, node: NodeId, drain: Drain | None, wall_s: float) -> Draft:
        """Prepare to have a node emptied, or to take that back.

        Args:
            node: Which.
            drain: How; None to take it back.
            wall_s: Seconds since the Unix epoch.

        Raises:
            Forbidden: if this node's role does not allow it.
            TooLarge: if the desired state is full.
            UsageError: if this node's clock is far behind what it has seen.
        """
        key = drain_key(node)
        self._require_role(key)
        return self._draft({key: b"" if drain is None else drain.encode()}, wall_s)

    # Who belongs to the mesh

    def eviction(
        self,
        node: NodeId,
        reason: str,
        keep_invited: bool,
        wall_s: float,
        names: Mapping[NodeId, str] | None = None,
    ) -> Draft:
        """Prepare to take a node out of the mesh for ever.

        Args:
            node: Whom; it need not be a live member, but its admission must be known.
            reason: Why, for people; may be empty.
            keep_invited: Whether those that it invited stay; else they are evicted too, and those that
                these invited, and so on.
            wall_s: Seconds since the Unix epoch.
            names: What nodes are called, for people.

        Returns:
            An empty draft if the node is evicted already (and nobody else is to be).

        Raises:
            Forbidden: if this node is no admin.
            InvalidRequest: if the node is not known, or is this node itself (`meshnode leave` does that).
            TooLarge: if the desired state has no room.
            UsageError: if this node's clock is far behind what it has seen.
        """
        key = revocation_key(node)
        self._require_role(key)
        if node == self._me:
            raise InvalidRequest(
                "a node cannot evict itself; to leave the mesh for good: meshnode leave"
            )
        members = {each.node_id: each for each in self._authority.chains()}
        if node not in members:
            raise InvalidRequest(
                f"no node {node} was ever seen in this mesh; `meshnode trust show` lists them"
            )
        descent = Descent(self._authority.chains())
        gone = {node: None} if keep_invited else descent.invited(node, but=self._me)
        # Members go by name: somebody who stays may rest on one of them as its witness. Who is none
        # comes to nothing by not being kept.
        named = [each for each in gone if each == node or each in self._authority.roster]
        unkept = gone.keys() - {*named}
        standing = self._authority.standing
        changes: list[tuple[str, bytes]] = []
        for target in named:
            if standing.revocation(target) is None:
                kept = self._kept(descent, target, unkept)
                name = (names or {}).get(target, "")
                public_key = members[target].public_key
                revocation = Revocation(
                    public_key, reason, int(wall_s), kept, name, entries=self._entries_of(target)
                )
                changes += self._stated(revocation_key(target), revocation)
        return self._draft(changes, wall_s) if changes else Draft()

    def role(self, node: NodeId, role: Role, wall_s: float) -> Draft:
        """Prepare to give a member another role.

        Returns:
            An empty draft if it has that role already.

        Raises:
            Forbidden: if this node is no admin.
            InvalidRequest: if the node is no member, or it is the last admin and would be none.
            TooLarge, UsageError: as `eviction`.
        """
        key = role_key(node)
        self._require_role(key)
        member = self._authority.roster.get(node)
        if member is None:
            raise InvalidRequest(f"{node} is no member; `meshnode trust show` lists them")
        if member.role is role:
            return Draft()
        admins = [each.node_id for each in self._authority.roster if each.role is Role.ADMIN]
        if admins == [node]:
            raise InvalidRequest(
                "it is the last admin of the mesh; make another one first: meshnode trust role NODE admin"
            )
        chain = b""
        if not highest(each.role for each in member.steps if each.subject == node).allows(role):
            chain = self._promoted(member, role, wall_s).chain
        falls = not role.allows(member.role)
        kept = self._kept(Descent(self._authority.chains()), node) if falls else ()
        entries = self._entries_of(node) if falls else ()
        change = RoleChange(member.public_key, role, chain, kept, entries=entries)
        return self._draft(self._stated(key, change), wall_s)

    def seal(self, wall_s: float) -> Draft:
        """Prepare to put the mesh's root key out of use for ever; whom it admitted stays.

        Returns:
            An empty draft if it was sealed before.

        Raises:
            Forbidden: if this node is no admin.
            TooLarge, UsageError: as `eviction`.
        """
        root = self._member.root_public_key
        key = revocation_key(node_id_of(root))
        self._require_role(key)
        if self._authority.is_sealed:
            return Draft()
        kept = self._kept(Descent(self._authority.chains()), node_id_of(root))
        revocation = Revocation(root, "sealed", int(wall_s), kept)
        return self._draft(self._stated(key, revocation), wall_s)

    def rotation(self, successor: VerifiedMember, wall_s: float) -> Draft:
        """Prepare to hand this node's membership over to another key (`Credentials.make_successor`).

        Once it is committed this node is out by its own hand (`trust.evicted`), and goes on as its
        successor (`Credentials.succeed`).

        Raises:
            TooLarge, UsageError: as `eviction`; also if it would lose what this node has written.
        """
        written = self._desired.written_by(self._me)
        current = sum(self._desired.entry(entry.key) is entry for entry in written)
        if current > MAX_ENTRIES_KEPT:
            raise TooLarge(
                f"{current} deployments and API keys were written by this node, and its next key can take "
                f"over {MAX_ENTRIES_KEPT}; write the others anew on another operator's node first"
            )
        kept = self._kept(Descent([*self._authority.chains(), successor]), self._me)
        revocation = Revocation(
            self._identity.public_key, "rotated", int(wall_s), kept,
            entries=self._entries_of(self._me),
        )  # fmt: skip
        changes = [
            # In this order: this node can state nothing after its own revocation.
            (admission_key(successor.node_id), successor.chain),
            *self._stated(revocation_key(self._me), revocation),
        ]
        return self._draft(changes, wall_s)

    def admission(self, node: NodeId, wall_s: float) -> Draft:
        """Prepare to count the admission of a member by an invite for a number of devices.

        Returns:
            An empty draft if it is counted already, or needs not be.

        Raises:
            TooLarge, UsageError: as `eviction`.
        """
        chain = self._authority.unregistered(node)
        return Draft() if chain is None else self._draft({admission_key(node): chain}, wall_s)

    def _kept(
        self, descent: Descent, giver: NodeId, gone: Container[NodeId] = ()
    ) -> tuple[bytes, ...]:
        """Return who stays of those that a node has let in, packed; none of those in `gone`.

        Should there be more than a statement can name, those that are members come first.
        """
        given = descent.given(giver)
        staying = [each for each in given if each not in gone]
        staying.sort(key=lambda each: (each not in self._authority.roster, each))
        return pack_keeps({each: given[each] for each in staying[:KEPT_IN_ALL_PARTS]})

    def _entries_of(self, author: NodeId) -> tuple[bytes, ...]:
        """Return the digests of an author's deployments and API keys that stay, as far as known here."""
        written = self._desired.written_by(author)[:MAX_ENTRIES_KEPT]
        return tuple(entry.digest for entry in written)

    def _stated(self, key: str, statement: Statement) -> list[tuple[str, bytes]]:
        """Return what to write for a statement, in as many parts as it takes."""
        return [(key, write_statement(part)) for part in split(statement)]

    def _promoted(self, member: VerifiedMember, role: Role, wall_s: float) -> VerifiedMember:
        try:
            return promote(
                admin=self._identity,
                admin_member=self._member,
                member=member,
                role=role,
                now_wall_s=wall_s,
            )
        except TrustError as error:
            raise UsageError(f"the node cannot be promoted by this one: {error}") from error

    @property
    def _member(self) -> VerifiedMember:
        """This node as a member.

        Raises:
            Forbidden: if it is none any more.
        """
        member = self._authority.roster.get(self._me)
        if member is None:
            raise Forbidden("this node was evicted from its mesh and may not change it")
        return member

    def _draft(
        self, changes: Mapping[str, bytes] | Iterable[tuple[str, bytes]], wall_s: float
    ) -> Draft:
        """Draft changes, with this node's admission before them where the mesh does not have it.

        A node that joins while the author is away could not check the author's entries otherwise.
        """
        chain = self._member.chain
        # With its own signature: who does not know the one that stated it could not check that.
        own_key = admission_key(self._me)
        beside = {} if self._desired.states(own_key, chain, self._me) else {own_key: chain}
        pairs = changes.items() if isinstance(changes, Mapping) else changes
        draft = self._desired.draft([*beside.items(), *pairs], wall_s)
        for entry in draft.entries:
            reason = self._verify_entry(entry)
            if reason is not None:
                raise Forbidden(f"this node may not change what the mesh serves: {reason}")
        return draft

    def _require_role(self, key: str) -> None:
        role = self._member.role
        if not role.allows(needed_role(key)):
            raise Forbidden(
                f"this node is an {role} and may not say who belongs to the mesh; ask an admin's node"
                if needed_role(key) is Role.ADMIN and role is not Role.MEMBER
                else f"this node is a plain {role} and may not change the mesh; ask an operator's node"
            )
