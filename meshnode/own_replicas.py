"""This node's replicas, and what the mesh is told of them.

A replica is advertised as it is, with one exception: a ready one of a node that serves nobody at present (its
owner paused it, or it is drained so far) is told to be paused, so that no gateway sends anything there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from meshnode import advertisement, suitability
from meshnode.advertisement import replica_key
from meshnode.capabilities import paused_of
from meshnode.effects import Effect, Emit
from meshnode.errors import TooLarge
from meshnode.limits import MAX_OWNER_VALUE_BYTES
from meshnode.suitability import NOTHING_SAID, SUITABILITY_KEY, Suitability, mark_of
from meshnode.types import ReplicaState

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from meshnode.membership.core import Membership
    from meshnode.reconcile import OwnReplica
    from meshnode.state.owner import OwnerStates
    from meshnode.suitability import Failing


class OwnReplicas:
    """What this node serves, and says of it.

    Attributes:
        by_version: Its replicas by (model, version).
    """

    def __init__(self, membership: Membership, owners: OwnerStates) -> None:
        """Begin with none.

        Args:
            membership: Whose own record says whether this node is paused.
            owners: Where replicas are advertised.
        """
        self.by_version: dict[tuple[str, int], OwnReplica] = {}
        self._membership = membership
        self._owners = owners
        self._suitability = NOTHING_SAID
        self._withdrawn = ""  # why they serve nobody, if the node's drain is so far

    def __repr__(self) -> str:
        why = self.paused or self._withdrawn
        return f"<OwnReplicas: {len(self.by_version)}{f', not served: {why}' if why else ''}>"

    @property
    def paused(self) -> str:
        """Why the node's owner lets them serve nobody at present, or an empty text."""
        return paused_of(self._membership.record.capabilities)

    def shown_state(self, replica: OwnReplica) -> ReplicaState:
        """Return what others are told of a replica: a ready one of a paused node is paused."""
        is_held = replica.state is ReplicaState.READY and bool(self.paused or self._withdrawn)
        return ReplicaState.PAUSED if is_held else replica.state

    def withdraw(self, why: str, now: float) -> list[Effect]:
        """Tell the mesh that they serve nobody, or with an empty text that they do again."""
        if why == self._withdrawn:
            return []
        self._withdrawn = why
        return self.publish_all(now)

    def publish_all(self, now: float) -> list[Effect]:
        """Advertise all of them anew."""
        effects: list[Effect] = []
        for model, version in self.by_version:
            effects += self.publish(model, version, now)
        return effects

    def publish(self, model: str, version: int, now: float) -> list[Effect]:
        """Advertise a replica; one that cannot be described is told to have failed."""
        replica = self.by_version[model, version]
        key = replica_key(model, version)
        state = self.shown_state(replica)
        is_held = state is not replica.state
        full = advertisement.advert(
            replica.manifest,
            state,
            digest=replica.digest,
            reason=(self.paused or self._withdrawn) if is_held else replica.reason,
            slots=replica.slots,
            deployed=replica.deployed,
            service_ms=replica.service_ms,
            profile=replica.profile,
            shown=replica.shown,
        )
        value = advertisement.encode(full)
        if len(value) > MAX_OWNER_VALUE_BYTES:
            value = advertisement.encode(advertisement.undescribed(full))
        try:
            return self._owners.set(key, value, now)
        except TooLarge as error:
            return [Emit("replica.hidden", model, f"version {version}: {error}")]

    def tell_failing(self, failing: Sequence[Failing], now: float) -> list[Effect]:
        """Tell the mesh what cannot be loaded here at present."""
        if tuple(failing) == self._suitability.failing:
            return []
        return self._tell(Suitability(tuple(failing), self._suitability.files), now)

    def tell_files(self, digests: Iterable[str], now: float) -> list[Effect]:
        """Tell the mesh of which versions, by the digests of their manifests, all files are on this disk."""
        marks = frozenset(map(mark_of, digests))
        return self._tell(Suitability(self._suitability.failing, marks), now)

    def _tell(self, said: Suitability, now: float) -> list[Effect]:
        said = suitability.bounded(said)
        if said == self._suitability:
            return []
        self._suitability = said
        return self._owners.set(SUITABILITY_KEY, suitability.encode(said), now)

    def drop(self, model: str, version: int, now: float) -> list[Effect]:
        """Forget a replica that is not here any more, and advertise it no longer."""
        self.by_version.pop((model, version), None)
        return self._owners.delete(replica_key(model, version), now)
