"""Who belongs to the mesh, as its people see and change it on one node.

What an eviction, a role or a rotation means is decided by the trust core from signed entries of the
desired state; this module names nodes, asks for drafts, writes them and tells what came of it.

Whose word counts. A change is signed by this node, so this node's role must allow it. A caller who
shows an API key must not do more than the node that made the key could have done: operators make
keys, admins alone evict. So the role of that node, as it is now, must allow the change as well.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from meshnode.daemon.named import name_of, node_named
from meshnode.errors import ConfigError, Forbidden, InvalidRequest
from meshnode.gateway.protocols.caller import OWNER
from meshnode.limits import MAX_INVITE_SEEDS, MAX_NAME_LENGTH, MAX_NODES_NAMED
from meshnode.membership.addresses import seeds_of_invite
from meshnode.options import is_name
from meshnode.state.api_keys import KEY_PREFIX, Keyring
from meshnode.trust.records import rfc3339
from meshnode.types import NodeId, Role

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshnode.clock import Clock
    from meshnode.daemon.credentials import Credentials
    from meshnode.daemon.driver import Driver
    from meshnode.gateway.protocols.caller import Caller
    from meshnode.node import Node
    from meshnode.state.desired import Draft
    from meshnode.trust.overview import MemberRow, RevokedRow

log = logging.getLogger(__name__)


class Trust:
    """The members of the mesh, as one node shows and changes them.

    Attributes:
        rotates: Whether this node is about to go on with another key.
        on_rotated: Called once the other key is this device's.
    """

    def __init__(self, node: Node, driver: Driver, credentials: Credentials, clock: Clock) -> None:
        """Work with these."""
        self._node = node
        self._driver = driver
        self._credentials = credentials
        self._clock = clock
        self.rotates = False
        self.on_rotated: Callable[[], None] = lambda: None

    def __repr__(self) -> str:
        return f"<Trust on {self._node.me[:8]}>"

    def create_invite(
        self,
        ttl_s: float,
        role: Role = Role.OPERATOR,
        uses: int = 0,
        region: str = "",
        caller: Caller = OWNER,
    ) -> dict[str, Any]:
        """Make an invite.

        Args:
            ttl_s: How long it may be used, in seconds.
            role: What whoever uses it will be.
            uses: How many devices may join with it; 0 for any number.
            region: Where they are, unless they say otherwise; empty for where they say.
            caller: Who asks.

        Raises:
            Forbidden: if this node, or the one that made the caller's key, may not invite to that role.
            InvalidRequest: if the time, the number or the region is out of range.
        """
        if region and not is_name(region):
            raise InvalidRequest(
                f"{region!r} is no region: use 1 to {MAX_NAME_LENGTH} letters, digits, '-', '_' or '.'"
            )
        self.require_inviting(role, caller)
        members = self._node.membership.members
        own = members[self._node.me].record.addresses
        live = [member for member in members.values() if member.live]
        others = [member.record.addresses for member in live if member.node_id != self._node.me]
        seeds = seeds_of_invite(own, others, MAX_INVITE_SEEDS)
        invite = self._credentials.create_invite(ttl_s, seeds, role=role, uses=uses, region=region)
        grant = invite.grant
        log.info("invite %s as %s was made by %s", grant.invite_id, role, caller)
        return {
            "invite": invite.to_text(),
            "invite_id": grant.invite_id,
            "expires_at": invite.expires_at,
            "addresses": [str(seed) for seed in seeds],
            "role": str(role),
            "uses": uses,
            "region": region,
        }

    def require_inviting(self, role: Role, caller: Caller) -> None:
        """Pass if an invite for this role may be made here, for this caller.

        Raises:
            Forbidden: if not; says what to do.
        """
        self._require(max(role, Role.OPERATOR, key=list(Role).index), caller)

    def view(self) -> dict[str, Any]:
        """Describe who is a member, by whose word, and who is none any more."""
        authority = self._credentials.authority
        return {
            "mesh": self._credentials.mesh_id,
            "node": self._node.me,
            "role": str(self._role_of(self._node.me) or ""),
            "sealed": authority.is_sealed,
            "members": [self._member_view(row) for row in authority.members()],
            "revoked": [self._revoked_view(row) for row in authority.revoked() if not row.is_root],
        }

    def evict(
        self, node: str, reason: str, *, with_invited: bool, caller: Caller
    ) -> dict[str, Any]:
        """Take a node out of the mesh for ever; a second time changes nothing.

        The root key goes out of use with the node that has it: who holds it could admit itself anew.

        Args:
            node: Its name or its id; by its id, it need not be known to membership any more.
            reason: Why, for people; may be empty.
            with_invited: Evict those that it invited as well, and those that these invited.
            caller: Who asks.

        Raises:
            Forbidden: if this node, or the one that made the caller's key, is no admin.
            InvalidRequest: if there is no such node, or it is this one, or the call came through it.
            ConfigError: if it could not be written to disk; nobody is evicted then.
        """
        self._require(Role.ADMIN, caller)
        target = self._known(node)
        name = self._name(target)
        if target == caller.via_id:
            raise InvalidRequest(
                f"{name} cannot be evicted through its own gateway, since the answer would find no way "
                f"back to it; ask another node, or leave the mesh for good with `meshnode leave` on {name}"
            )
        before = {row.node for row in self._credentials.authority.revoked()}
        wall_s = self._clock.wall_s()
        sealed = self._is_founder(target) and self._write(self._node.drafts.seal(wall_s))
        names = {each: member.record.name for each, member in self._node.membership.members.items()}
        draft = self._node.drafts.eviction(
            target, reason, not with_invited, self._clock.wall_s(), names
        )
        changed = self._write(draft)
        gone = {row.node for row in self._credentials.authority.revoked()} - before
        if changed:
            log.info("%s was evicted by %s: %s", name, caller, reason or "no reason was given")
        return {
            "node": target,
            "name": name,
            "reason": reason,
            "changed": changed,
            "sealed": sealed,
            "evicted": [{"id": each, "name": names.get(each, each)} for each in sorted(gone)],
            "keys": self._keys_made_by({target, *gone}),
        }

    def set_role(self, node: str, role: Role, caller: Caller) -> dict[str, Any]:
        """Give a member another role; the same one again changes nothing.

        Raises:
            Forbidden: if this node, or the one that made the caller's key, is no admin.
            InvalidRequest: if there is no such member, or it is the last admin and would be none.
            ConfigError: if it could not be written to disk; the role is as it was then.
        """
        self._require(Role.ADMIN, caller)
        target = self._known(node)
        changed = self._write(self._node.drafts.role(target, role, self._clock.wall_s()))
        name = self._name(target)
        if changed:
            log.info("%s is %s of the mesh now, by %s", name, role, caller)
        return {"node": target, "name": name, "role": str(role), "changed": changed}

    def rotate(self) -> dict[str, Any]:
        """Give this node another key; once this is answered the daemon goes on as the new node.

        Raises:
            ConfigError: if something could not be written to disk; nothing has changed then.
        """
        successor = self._credentials.make_successor()
        draft = self._node.drafts.rotation(successor, self._clock.wall_s())
        self.rotates = True
        try:
            self._driver.write(draft)
        except BaseException:
            self.rotates = False
            raise
        try:
            self._credentials.succeed()
        except (
            ConfigError
        ) as error:  # there is no way back: the next start does it, or says why not
            log.error("the new key is not in its place yet: %s", error)
        log.info("this node has a new key and is %s from now on", successor.node_id)
        self.on_rotated()
        return {"node": successor.node_id, "former": self._node.me}

    def seal(self) -> dict[str, Any]:
        """Put the mesh's root key out of use for ever, and forget its seed if this node has it.

        Raises:
            Forbidden: if this node is no admin.
            ConfigError: if it could not be written to disk; it is not sealed then.
        """
        self._require(Role.ADMIN, OWNER)
        changed = self._write(self._node.drafts.seal(self._clock.wall_s()))
        self.forget_root()
        return {"mesh": self._credentials.mesh_id, "changed": changed}

    def forget_root(self) -> None:
        """Remove the root key's seed from this device once the mesh is sealed, by whomever."""
        if not self._credentials.has_root or not self._credentials.authority.is_sealed:
            return
        try:
            self._credentials.drop_root()
        except ConfigError as error:
            log.error("the root key of the mesh is sealed, and still on this disk: %s", error)
        else:
            log.info("the root key of the mesh is sealed; its seed is removed from this device")

    # Inside

    def _write(self, draft: Draft) -> bool:
        """Let a draft count; return whether there was anything to change."""
        if draft.entries:
            self._driver.write(draft)
        return bool(draft.entries)

    def _known(self, text: str) -> NodeId:
        """Return whom a name or an id means; membership forgets who was away for long."""
        authority = self._credentials.authority
        members, revoked = self._node.membership.members, authority.revoked()
        if any(row.node == text for row in authority.members()):
            return NodeId(text)
        if any(row.node == text for row in revoked):
            return NodeId(text)
        named = [row.node for row in revoked if row.name == text]
        if len(named) == 1 and all(each.record.name != text for each in members.values()):
            return named[0]
        return node_named(members, text)

    def _name(self, node: NodeId) -> str:
        rows = self._credentials.authority.revoked()
        former = next((row.name for row in rows if row.node == node and row.name), node)
        found = name_of(self._node.membership.members, node)
        return former if found == node else found

    def _is_founder(self, node: NodeId) -> bool:
        members = self._credentials.authority.members()
        return any(row.node == node and row.how == "founded" for row in members)

    def _keys_made_by(self, nodes: set[NodeId]) -> list[dict[str, Any]]:
        """Return the API keys that still open gateways and that these nodes have made."""
        wall_s = self._clock.wall_s()
        return [
            {"id": key.id, "name": key.name, "scopes": list(key.scopes)}
            for key in Keyring(self._node.desired).all()
            if key.state(wall_s) == "valid" and self._author_of(key.key) in nodes
        ]

    def _author_of(self, key: str) -> NodeId | None:
        entry = self._node.desired.entry(key)
        return None if entry is None else NodeId(entry.author)

    def _member_view(self, row: MemberRow) -> dict[str, Any]:
        member = self._node.membership.members.get(row.node)
        return {
            "id": row.node,
            "name": self._name(row.node),
            "role": str(row.role),
            "state": "unknown" if member is None else str(member.state),
            "how": row.how,
            "by": row.by,
            "by_name": None if row.by is None else self._name(row.by),
            "witness": row.witness,
            "at": rfc3339(row.admitted_at_s),
            "invite_id": row.invite_id,
            "uses": row.uses,
            "used": row.used,
        }

    def _revoked_view(self, row: RevokedRow) -> dict[str, Any]:
        return {
            "id": row.node,
            "name": row.name or self._name(row.successor or row.node),
            "reason": str(row.reason),
            "why": row.why,
            "by": row.by,
            "by_name": None if row.by is None else self._name(row.by),
            "at": rfc3339(row.at_wall_s),
            "successor": row.successor,
        }

    def _require(self, needed: Role, caller: Caller) -> None:
        """Pass if this node and the one that made the caller's key may do what needs this role.

        Raises:
            Forbidden: if not; says which of the two, and what to do.
        """
        role = self._role_of(self._node.me)
        if role is None or not role.allows(needed):
            raise Forbidden(
                f"this node is {role or 'no member'} in its mesh, and that needs the node of an {needed}: "
                f"run the command there{self._where(needed)}"
            )
        if not caller.key_id:
            return
        author = self._author_of(KEY_PREFIX + caller.key_id)
        made_by = None if author is None else self._role_of(author)
        if made_by is None or not made_by.allows(needed):
            raise Forbidden(
                f"the API key {caller.name!r} was made on a node that is {made_by or 'no member'} in the "
                f"mesh now, and that needs an {needed}: use a key made on such a node, or the command there"
            )

    def _where(self, needed: Role) -> str:
        """Return the names of some live nodes that may do what needs this role, in brackets."""
        names = sorted(
            self._name(node)
            for node, member in self._node.membership.members.items()
            if member.live and (role := self._role_of(node)) is not None and role.allows(needed)
        )
        return f" ({', '.join(names[:MAX_NODES_NAMED])})" if names else ""

    def _role_of(self, node: NodeId) -> Role | None:
        return self._credentials.roster.role(node)
