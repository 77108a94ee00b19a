"""Who serves what and how busy it is, as the mesh's nodes say, brought to routing.

Nodes say it in their own versioned states (`advertisement`), which reach this node through others.
So it is hearsay until it fits what membership knows:

- a replica counts only while its node is a live member: a node that was invented, or died, has none;
- garbage counts as nothing: a value that a newer version wrote, or a liar;
- load is taken when it is said, never again later: an old one must not pass for a fresh one.

A node's conditions (labels, cost, battery, heat, memory) come the same way, in steps that are coarse enough that a
trembling value does not make routing rank its candidates anew.

The directory also remembers what routing does not need to know: which files each replica has.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Final

from meshnode import advertisement
from meshnode.advertisement import LOAD_KEY, parse_replica_key
from meshnode.capabilities import cost_of, device_class_of, on_battery_of
from meshnode.errors import ProtocolError
from meshnode.limits import MAX_BODY_BYTES, MIB
from meshnode.models.serving.profile import service_ms as profiled_ms
from meshnode.routing.table import Replica
from meshnode.types import NodeId, ReplicaState
from meshnode.wire.messages import LoadReport

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meshnode.advertisement import NodeLoad, ReplicaAdvert
    from meshnode.membership.member import Member
    from meshnode.models.manifest import Manifest
    from meshnode.routing.router import Router
    from meshnode.state.owner import OwnerStates

_HAS_FILES: Final = (
    ReplicaState.READY, ReplicaState.PAUSED, ReplicaState.LOADING, ReplicaState.UNLOADING,
)  # fmt: skip
"""States of a replica whose node has all of its files."""

_PERCENT_STEP: Final = 10.0
_AMPLE_BYTES: Final = 4 * MAX_BODY_BYTES
_LEAST_MEMORY_BYTES: Final = 16 * MIB

_Face = tuple[str, str, str]
"""What routing shows of a live member: name, region, zone."""


class Directory:
    """Follows members and their states; writes the router's table and beliefs.

    Attributes:
        moved: Models and versions that other nodes serve than when the reader last emptied it.
    """

    def __init__(
        self,
        me: NodeId,
        members: Mapping[NodeId, Member],
        owners: OwnerStates,
        router: Router,
    ) -> None:
        """Follow for node `me`.

        Args:
            me: This node, whose own word is always good.
            members: All members, live ones and others; a live view.
            owners: What each node says about itself.
            router: Where it goes.
        """
        self._me = me
        self._members = members
        self._owners = owners
        self._router = router
        # By model and version, as routing has them; routing's table bounds it.
        self._adverts: dict[tuple[str, int], dict[NodeId, ReplicaAdvert]] = {}
        self.moved: set[tuple[str, int]] = set()
        # Whom routing knows, and under which face; None for one that is gone.
        self._routed: dict[NodeId, _Face | None] = {me: _face(members[me])}
        self._record_heard(members[me])

    def __repr__(self) -> str:
        return f"<Directory of {self._me[:8]}: {len(self._adverts)} versions are served>"

    # What changed; each returns the models whose replicas may be other ones now.

    def member_changed(self, node: NodeId, now: float) -> list[str]:
        """Take a member's state and face as they are now."""
        member = self._members[node]
        self._router.node_changed(node, member.state)
        before, face = self._routed.get(node), _face(member) if member.live else None
        self._routed[node] = face
        if face is not None:
            self._record_heard(member)
        models: list[str] = []
        if face is not None and face != before:
            self._fares_known(node)
            for key in self._owners.entries(node):
                if key != LOAD_KEY:
                    models += self.state_changed(node, key, now)
        return models

    def state_changed(self, node: NodeId, key: str, now: float) -> list[str]:
        """Take the value that a node's key has now, or that it has none."""
        value = self._owners.get(node, key)
        if key == LOAD_KEY:
            if value is not None:
                self._load_heard(node, value, now)
            return []
        found = parse_replica_key(key)
        if found is None:
            return []
        member = self._members.get(node)
        if member is not None and (member.live or node == self._me):
            advert = _read(key, value)
            if advert is not None and self._replica_heard(member, advert, now):
                return [found[0]]
        self._replica_lost(node, found)
        return [found[0]]

    def forget_reaped(self) -> None:
        """Forget in routing whom membership has forgotten, which it does in silence."""
        if len(self._routed) > len(self._members):
            for node in [node for node in self._routed if node not in self._members]:
                del self._routed[node]
                self._router.node_removed(node)

    # What is known.

    def ready(self, manifest: Manifest, digest: str) -> frozenset[NodeId]:
        """Return the nodes that serve a version now, with the files of this digest."""
        return frozenset(
            node
            for node, advert in self._adverts_of(manifest)
            if advert.digest == digest and advert.state is ReplicaState.READY
        )

    def failed(self, manifest: Manifest, digest: str) -> dict[NodeId, str]:
        """Return the nodes that cannot load a version with the files of this digest, and why, as they say."""
        return {
            node: advert.reason
            for node, advert in self._adverts_of(manifest)
            if advert.digest == digest and advert.state is ReplicaState.FAILED
        }

    def with_files(self, manifest: Manifest, digest: str) -> list[NodeId]:
        """Return the nodes that have the files of this digest for a version, in a stable order."""
        return [
            node
            for node, advert in self._adverts_of(manifest)
            if advert.digest == digest and advert.state in _HAS_FILES
        ]

    def holders(self, model: str, version: int) -> list[NodeId]:
        """Return the nodes that have a replica of a version, in whatever state."""
        return [*self._adverts.get((model, version), {})]

    def _adverts_of(self, manifest: Manifest) -> list[tuple[NodeId, ReplicaAdvert]]:
        return [*self._adverts.get((manifest.model, manifest.version), {}).items()]

    def _replica_heard(self, member: Member, advert: ReplicaAdvert, now: float) -> bool:
        """Hand a replica to routing; return whether its table had room for it."""
        manifest, record = advert.manifest, member.record
        replica = Replica(
            node=member.node_id,
            node_name=record.name,
            region=record.region,
            zone=record.zone,
            model=manifest.model,
            version=manifest.version,
            state=advert.state,
            reason=advert.reason,
            manifest=manifest,
            slots=advert.slots,
            digest=advert.digest,
            service_ms=profiled_ms(advert.profile) or max(0.0, advert.service_ms),
        )
        if not self._router.replica_changed(replica, now):
            return False
        key = (manifest.model, manifest.version)
        adverts = self._adverts.setdefault(key, {})
        if replica.node not in adverts:
            self.moved.add(key)
        adverts[replica.node] = advert
        return True

    def _replica_lost(self, node: NodeId, key: tuple[str, int]) -> None:
        self._router.replica_removed(node, *key)
        adverts = self._adverts.get(key, {})
        if adverts.pop(node, None) is not None:
            self.moved.add(key)
        if not adverts:
            self._adverts.pop(key, None)

    def _load_heard(self, node: NodeId, value: bytes, now: float) -> None:
        try:
            load = advertisement.decode_load(value)
        except ProtocolError:
            return
        if node in self._members:
            self._fares_heard(node, load)
        for each in load.models:
            report = LoadReport(each.in_system, each.slots, each.service_ms, failing=each.failing)
            self._router.load_reported(node, each.model, each.version, report, now)

    def _record_heard(self, member: Member) -> None:
        """Take what a node's record says of its conditions; what its load says of them is newer, and stays."""
        node, record = member.node_id, member.record
        before = self._router.table.conditions(node)
        fresh = before._replace(
            labels=frozenset(record.labels.items()),
            cost=cost_of(record.capabilities),
            device=device_class_of(record.capabilities),
        )
        if self._owners.get(node, LOAD_KEY) is None:
            fresh = fresh._replace(on_battery=on_battery_of(record.capabilities))
        self._router.conditions_changed(node, fresh)

    def _fares_known(self, node: NodeId) -> None:
        """Take the conditions that a node told before it was known to be a member."""
        value = self._owners.get(node, LOAD_KEY)
        if value is not None:
            with suppress(ProtocolError):
                self._fares_heard(node, advertisement.decode_load(value))

    def _fares_heard(self, node: NodeId, load: NodeLoad) -> None:
        """Take what a node's load says of its conditions; what it does not say stays as it was."""
        before = self._router.table.conditions(node)
        on_battery = before.on_battery if load.on_battery is None else load.on_battery
        percent = load.battery_percent if on_battery else None
        fresh = before._replace(
            on_battery=on_battery,
            battery_percent=None if percent is None else _stepped(percent, _PERCENT_STEP),
            throttled=load.held_back,
            memory_free_bytes=_scarce(load.memory_available_bytes),
        )
        self._router.conditions_changed(node, fresh)


def _stepped(value: float, step: float) -> float:
    return value // step * step


def _scarce(free_bytes: int) -> int | None:
    """Return free memory, rounded down to a power of two, where it is so little that a request may not fit.

    None stands for enough, or for 0, which nodes say that do not tell their memory; 0 for less than any request needs.
    The steps are coarse because each change costs every gateway a look at all replicas that the node is among.
    """
    if free_bytes == 0 or free_bytes >= _AMPLE_BYTES:
        return None
    return 1 << (free_bytes.bit_length() - 1) if free_bytes >= _LEAST_MEMORY_BYTES else 0


def _read(key: str, value: bytes | None) -> ReplicaAdvert | None:
    if value is None:
        return None
    try:
        return advertisement.decode_replica(key, value)
    except ProtocolError:
        return None


def _face(member: Member) -> _Face:
    return (member.record.name, member.record.region, member.record.zone)
