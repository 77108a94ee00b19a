"""What the cores report, as events for programs that follow the mesh."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from meshnode.advertisement import decode_replica, parse_replica_key
from meshnode.daemon.rollouts import KIND_PREFIX
from meshnode.errors import MeshError
from meshnode.gateway.mesh_events import MeshEvents
from meshnode.state.deployment import KEY_PREFIX
from meshnode.trust.records import rfc3339
from meshnode.types import NodeId

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from meshnode.clock import Clock
    from meshnode.daemon.rollouts import Rollouts
    from meshnode.effects import Emit
    from meshnode.node import Node

_MEMBER: Final = "member."
_STATES: Final = frozenset({"alive", "suspect", "refuted", "dead", "left", "evicted", "updated"})
_GONE: Final = "gone"
_SCALINGS: Final = frozenset({"scale.up", "scale.down", "scale.heard", "steward.changed"})


class EventFeed:
    """Turns reports into events; a replica is told of only when its state changes."""

    def __init__(
        self, node: Node, clock: Clock, name_of: Callable[[NodeId], str], rollouts: Rollouts
    ) -> None:
        """Look at a node's cores.

        Args:
            node: This node.
            clock: Says when.
            name_of: Gives a node's name.
            rollouts: Is told of what is decided about releases, and knows how they stand.
        """
        self._node = node
        self._rollouts = rollouts
        self._name_of = name_of
        self._replicas: dict[tuple[NodeId, str], tuple[str, str]] = {}
        # A run is told from others by when it began: two never begin in the same millisecond.
        self.events = MeshEvents(f"{int(clock.wall_s() * 1000):x}", lambda: rfc3339(clock.wall_s()))

    def __repr__(self) -> str:
        return f"<EventFeed of {self._node.me[:8]}: {self.events!r}>"

    def heard(self, emit: Emit) -> None:
        """Take a report, after the node's cores have followed it."""
        kind, subject = emit.kind, emit.subject
        if kind.startswith(_MEMBER):
            state = kind.removeprefix(_MEMBER)
            if state in _STATES:
                name = self._name_of(NodeId(subject))
                self.events.add("member", node=name, node_id=subject, state=state)
        elif kind == "desired.changed" and subject.startswith(KEY_PREFIX):
            name = subject.removeprefix(KEY_PREFIX)
            change = "removed" if self._node.deployment(name) is None else "written"
            self.events.add("deployment", name=name, change=change)
        elif kind == "deployment.overwritten":
            self.events.add("deployment", name=subject, change="overwritten", reason=emit.detail)
        elif kind in _SCALINGS:
            self._scaled(subject)
        elif kind.startswith(KIND_PREFIX):
            self._released(emit)
        elif kind in ("node.paused", "node.resumed"):
            state = kind.removeprefix("node.")
            self.events.add("node", state=state, reason=emit.detail)

    def _scaled(self, name: str) -> None:
        """Tell that a deployment is to have another number of replicas, or another steward."""
        deployment = self._node.deployment(name)
        if deployment is None:
            return
        seen = self._node.scaling(deployment)
        steward = None if seen.steward is None else self._name_of(seen.steward)
        self.events.add(
            "deployment", name=name, change="scaled", replicas=seen.wanted, steward=steward,
            reason=seen.reason,
        )  # fmt: skip

    def _released(self, emit: Emit) -> None:
        """Tell what was decided about a release, and where it stands."""
        if not self._rollouts.heard(emit):
            return
        brief = self._rollouts.brief(emit.subject) or {}
        told = {key: brief.get(key) for key in ("phase", "step", "share", "outcome")}
        self.events.add(
            "deployment", name=emit.subject, change="release", **told,
            decision=emit.kind.removeprefix(KIND_PREFIX), reason=emit.detail,
        )  # fmt: skip

    def replicas_changed(self, changed: Iterable[tuple[NodeId, str]]) -> None:
        """Take note that what nodes say about replicas has changed: their ids, and the keys of their states."""
        for node, key in changed:
            found = parse_replica_key(key)
            told = self._state(node, key)
            if found is None or self._replicas.get((node, key), (_GONE, "")) == told:
                continue
            if told[0] == _GONE:
                del self._replicas[node, key]
            else:
                self._replicas[node, key] = told
            self.events.add(
                "model", model=found[0], version=found[1], node=self._name_of(node),
                node_id=node, state=told[0], reason=told[1],
            )  # fmt: skip

    def _state(self, node: NodeId, key: str) -> tuple[str, str]:
        """Return the state of a replica, and why; `gone` if its node does not tell of it any more."""
        value = self._node.owners.get(node, key)
        try:
            advert = decode_replica(key, value) if value is not None else None
        except MeshError:
            advert = None
        return (_GONE, "") if advert is None else (str(advert.state), advert.reason)
