"""The beliefs of a gateway about all replicas and paths, and what it has learned of model versions and devices."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from meshnode.limits import MAX_CLAIMED_SERVICE_MS, MAX_DEVICE_CLASSES
from meshnode.routing.alike import Alike
from meshnode.routing.load import MIN_SERVICE_MS, Path, ReplicaLoad
from meshnode.routing.service_model import SizeModel

if TYPE_CHECKING:
    from meshnode.types import NodeId


class LoadBook:
    """The beliefs about all replicas and paths.

    It holds an entry per replica of the table and a path per member, and is bounded with them:
    whoever removes a replica or node there removes it here (`Router` does both).
    """

    def __init__(self, first_service_ms: float) -> None:
        self._first_service_ms = first_service_ms
        self._loads: dict[tuple[str, int], dict[NodeId, ReplicaLoad]] = {}
        self._sizes: dict[tuple[str, int], dict[str, SizeModel]] = {}
        self._alike: dict[tuple[str, int], dict[str, Alike]] = {}
        self._paths: dict[NodeId, Path] = {}

    def __repr__(self) -> str:
        loads = sum(len(group) for group in self._loads.values())
        return f"<LoadBook {loads} replicas, {len(self._paths)} paths>"

    def load(
        self, node: NodeId, model: str, version: int, slots: int = 1, profiled_ms: float = 0.0
    ) -> ReplicaLoad:
        """Return the beliefs about a replica, made on first use.

        A replica that has not reported yet is believed to take what its profile says. Without one it is
        taken to be as fast as the fastest of the same version: high enough in the ranking to be tried.
        One report corrects either.

        Args:
            node: Where it is.
            model: What it serves.
            version: Of that.
            slots: Requests that it says it runs at once.
            profiled_ms: Time of one request as it was measured at its warm-up; 0 if it does not say.
        """
        group = self._loads.setdefault((model, version), {})
        load = group.get(node)
        if load is None:
            known = [each.service_ms for each in group.values() if each.reported_at > -math.inf]
            load = group[node] = ReplicaLoad(slots, min(known, default=self._first_service_ms))
        if profiled_ms > 0 and load.reported_at == -math.inf:
            load.service_ms = min(MAX_CLAIMED_SERVICE_MS, max(MIN_SERVICE_MS, profiled_ms))
        return load

    def sizes(self, model: str, version: int, device: str) -> SizeModel:
        """Return what sizes say of a version's run time on a class of devices, made on first use.

        Devices beyond `MAX_DEVICE_CLASSES` are taken to be of no known class.
        """
        group = self._sizes.setdefault((model, version), {})
        if device not in group and len(group) >= MAX_DEVICE_CLASSES:
            device = ""
        found = group.get(device)
        if found is None:
            found = group[device] = SizeModel()
        return found

    def sort_in(self, load: ReplicaLoad, model: str, version: int, device: str) -> None:
        """Compare a replica from now on with those of the same version on the same class of devices.

        One of no known class is compared with none, nor is one of a class beyond `MAX_DEVICE_CLASSES`.
        """
        group = self._alike.setdefault((model, version), {})
        alike = group.get(device)
        if alike is None and device and len(group) < MAX_DEVICE_CLASSES:
            alike = group[device] = Alike()
        if alike is not load.alike:
            if load.alike is not None:
                load.alike.forget(load)
            load.alike = alike

    def path(self, node: NodeId) -> Path:
        """Return the path to a node, made on first use (down, not measured)."""
        path = self._paths.get(node)
        if path is None:
            path = self._paths[node] = Path()
        return path

    def forget(self, node: NodeId, model: str, version: int) -> None:
        """Drop the beliefs about a replica; requests in flight there keep theirs."""
        group = self._loads.get((model, version), {})
        load = group.pop(node, None)
        if load is not None and load.alike is not None:
            load.alike.forget(load)
            load.alike = None  # requests that are still in flight there bring reports
        if not group:
            self._loads.pop((model, version), None)
            self._alike.pop((model, version), None)
            self._sizes.pop((model, version), None)

    def forget_path(self, node: NodeId) -> None:
        """Drop the path to a node."""
        self._paths.pop(node, None)
