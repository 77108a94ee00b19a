"""What a node asks of its mesh: changes of the desired state, checked and prepared.

A draft has no effect before it is durable and committed (`Node.commit`). What every other node would
refuse is refused here, before this one holds it alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from meshnode import advertisement
from meshnode.errors import Forbidden, ModelNotFound, UsageError
from meshnode.state.admission import admission_key
from meshnode.state.deployment import KEY_PREFIX, Deployment
from meshnode.state.desired_messages import Entry
from meshnode.state.hybrid_clock import Stamp

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from meshnode.membership.core import Membership
    from meshnode.reconcile import OwnReplica
    from meshnode.state.api_keys import ApiKey
    from meshnode.state.desired import DesiredState, Draft
    from meshnode.types import NodeId


class Drafts:
    """The changes that one node may prepare."""

    def __init__(
        self,
        me: NodeId,
        *,
        desired: DesiredState,
        membership: Membership,
        own: Mapping[tuple[str, int], OwnReplica],
        sign: Callable[[bytes], bytes],
        verify_entry: Callable[[Entry], str | None],
    ) -> None:
        """Prepare changes of `desired`.

        Args:
            me: The author.
            desired: What the mesh is asked to do.
            membership: Has this node's admission chain.
            own: This node's replicas by (model, version).
            sign: Ed25519 with the node's key.
            verify_entry: Why an entry is refused, or None.
        """
        self._me = me
        self._desired = desired
        self._membership = membership
        self._own = own
        self._sign = sign
        self._verify_entry = verify_entry

    def __repr__(self) -> str:
        return f"<Drafts of {self._me[:8]}>"

    def deployment(self, deployment: Deployment, wall_s: float) -> Draft:
        """Prepare to ask the mesh to serve a model.

        Raises:
            Forbidden: if this node's role does not allow it.
            ModelError: if a field is not within its limits.
            TooLarge: if it is too large to be shared, or a version's description is.
            UsageError: if this node's clock is far behind what it has seen.
        """
        for manifest in deployment.manifests:
            advertisement.require_advertisable(manifest)
        value = deployment.encode()
        self._require_permission(deployment.key)
        return self._draft(deployment.key, value, wall_s)

    def undeployment(self, name: str, wall_s: float) -> Draft:
        """Prepare to ask the mesh to stop serving a model.

        Raises:
            Forbidden: if this node's role does not allow it.
            ModelNotFound: if there is no such deployment.
            UsageError: if the model lies in this node's own folder, or the clock is far behind.
        """
        key = KEY_PREFIX + name
        if self._desired.get(key) is None:
            if any(model == name and not own.deployed for (model, _), own in self._own.items()):
                raise UsageError(
                    f"{name!r} is served from a node's own model folder (--models), not deployed"
                )
            raise ModelNotFound(f"nothing is deployed under the name {name!r}")
        self._require_permission(key)
        return self._draft(key, b"", wall_s)

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
        self._require_permission(key.key, value)
        dropped = {} if forget is None else {forget.key: b""}
        return self._draft(key.key, value, wall_s, dropped)

    def _draft(
        self, key: str, value: bytes, wall_s: float, dropped: Mapping[str, bytes] | None = None
    ) -> Draft:
        """Draft a change, with this node's admission beside it where the mesh does not have it.

        A node that joins while the author is away could not check the author's entries otherwise.
        """
        admission, chain = admission_key(self._me), self._membership.record.chain
        changes = {} if self._desired.get(admission) == chain else {admission: chain}
        return self._desired.draft({**changes, **(dropped or {}), key: value}, wall_s)

    def _require_permission(self, key: str, value: bytes = b"") -> None:
        entry = Entry(key, Stamp(0, 0), self._me, value)
        signed = Entry(key, entry.stamp, self._me, value, self._sign(entry.signed_bytes))
        reason = self._verify_entry(signed)
        if reason is not None:
            raise Forbidden(f"this node may not change what the mesh serves: {reason}")
