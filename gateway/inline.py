"""Models that run inline: this node is a ready replica, and a run is shorter than any other way to decide or to go."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from meshnode.routing.conditions import USUAL
from meshnode.routing.eligibility import broken_rule, group_of, is_plain

if TYPE_CHECKING:
    from meshnode.gateway.executors import LocalExecutor
    from meshnode.models.manifest import Manifest
    from meshnode.routing.load import ReplicaLoad
    from meshnode.routing.router import Router
    from meshnode.routing.table import Replica, ReplicaGroup
    from meshnode.types import InferRequest, NodeId, RoutingHints


Form = tuple[object, ...]
"""What the check of a request depends on: everything but the data."""


class InlineReplica:
    """What an inline answer of one model version needs at hand; stale once its group changes."""

    __slots__ = (
        "accepted", "candidates", "header", "load", "replica", "reported_at", "revision",
    )  # fmt: skip

    def __init__(self, revision: int, replica: Replica, candidates: int, load: ReplicaLoad) -> None:
        """Begin with a header that `InlineReplicas.refresh` makes."""
        self.revision = revision
        self.replica = replica
        self.candidates = candidates
        self.load = load
        self.reported_at = -math.inf
        self.header = ""
        # The form of the last request that passed the check. Clients repeat themselves, and
        # comparing costs a third of checking.
        self.accepted: Form | None = None

    def __repr__(self) -> str:
        return f"<InlineReplica {self.replica.label}>"


class InlineReplicas:
    """What this node serves that may run inline; one entry per version."""

    def __init__(self, me: NodeId, router: Router, local: LocalExecutor) -> None:
        """Know none yet.

        Args:
            me: This node.
            router: Says who is ready, and hears how busy this node is.
            local: Its model server.
        """
        self._me = me
        self._router = router
        self._local = local
        self._known: dict[tuple[str, int], InlineReplica] = {}

    def __repr__(self) -> str:
        return f"<InlineReplicas of {self._me}: {len(self)} versions>"

    def __len__(self) -> int:
        return len(self._known)

    def of(self, group: ReplicaGroup, model: str) -> InlineReplica | None:
        """Return the entry of a version of which this node is a ready replica, and that has no sequences.

        A request of a sequence is for the replica that holds the sequence, which may be another.
        """
        version = group.version
        known = self._known.get((model, version))
        if known is not None and known.revision == group.revision:
            return known
        me = next((replica for replica in group.ready if replica.node == self._me), None)
        if me is None or _has_sequences(group):
            self._known.pop((model, version), None)
            return None
        load = self._router.book.load(self._me, model, version, me.slots, me.service_ms)
        made = InlineReplica(group.revision, me, len(group.ready), load)
        self._known[model, version] = made
        return made

    def is_first_choice(self, replica: Replica, hints: RoutingHints) -> bool:
        """Whether a replica may run a request, and no other is to be asked before it."""
        conditions = self._router.table.conditions(replica.node)
        if conditions is USUAL and is_plain(hints):
            return True
        if broken_rule(replica.region, conditions, hints):
            return False
        return group_of(replica.region, conditions, hints) == 0

    def refresh(self, inline: InlineReplica, manifest: Manifest, now: float) -> None:
        """Tell routing how busy this node is, which inline answers do not, and renew the header."""
        report = self._local.load_report(manifest.model, manifest.version)
        self._router.load_reported(self._me, manifest.model, manifest.version, report, now)
        inline.reported_at = now
        inline.header = (
            f"{inline.replica.label}; expected_ms={inline.load.service_ms:.3g}; "
            f"candidates={inline.candidates}; attempts=1; reason=inline"
        )


def form_of(request: InferRequest) -> Form:
    """Return what the check of a request depends on: everything but the data."""
    if len(request.inputs) == 1:
        (tensor,) = request.inputs
        return (tensor.name, tensor.datatype, tensor.shape, request.outputs)
    inputs = [(tensor.name, tensor.datatype, tensor.shape) for tensor in request.inputs]
    return (*inputs, request.outputs)


def _has_sequences(group: ReplicaGroup) -> bool:
    return group.manifest is not None and group.manifest.execution.sequences is not None
