"""What is deployed on a mesh of cores, and how new versions take the place of old ones there."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, NamedTuple

from msgspec import structs

from meshnode.daemon.rollouts import standing_of
from meshnode.errors import MeshError, UsageError
from meshnode.limits import MAX_DEPLOYMENT_REPLICAS
from meshnode.models.manifest import FileEntry, Manifest, TensorSpec
from meshnode.owner_limits import LOAD_COPY_BYTES, LOAD_FACTOR, LOAD_OVERHEAD_BYTES
from meshnode.release_edits import released
from meshnode.release_file import read_release
from meshnode.sim.faults import Release
from meshnode.sim.model_behaviour import ModelBehaviour
from meshnode.sim.scenario.selection import select
from meshnode.sim.standings import ASKED, DEPLOYED
from meshnode.types import DataType

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from meshnode.sim.faults import OrderRelease
    from meshnode.sim.mesh import SimMesh
    from meshnode.sim.scenario.model import Model
    from meshnode.sim.stage import Machine
    from meshnode.state import release as plans

GIB = 1024**3


class _Asked(NamedTuple):
    """What somebody asks for in a release: the next version of a model."""

    model: Model
    fault: Release
    plan: plans.Release | None


class CoreReleases:
    """The versions of a scenario's models.

    Attributes:
        newest: The version of each model that was deployed last; 0 before the first.
        released: The models of which there was ever a release.
    """

    def __init__(
        self, mesh: SimMesh, machines: Sequence[Machine], up: Callable[[], list[str]]
    ) -> None:
        """Deploy on a mesh.

        Args:
            mesh: The nodes.
            machines: The crew.
            up: Returns the nodes whose process runs and does not stand still.
        """
        self.newest: dict[str, int] = {}
        self._mesh = mesh
        self._machines = machines
        self._up = up
        self.released: dict[str, None] = {}
        self._count: dict[str, int] = {}  # of what was deployed of a model
        self._candidates: set[tuple[str, int]] = set()

    def __repr__(self) -> str:
        return f"<CoreReleases: {self.newest}>"

    def deploy(self, model: Model, fault: Release | None = None) -> None:
        """Deploy the next version of a model, from the first node that takes it.

        Args:
            model: The model.
            fault: How the version behaves, and takes the other one's place; None for the first one.

        Raises:
            UsageError: if no node takes it.
        """
        fault = Release(model=model.name) if fault is None else fault
        self._count[model.name] = self._count.get(model.name, 0) + 1
        asked = _Asked(model, fault, read_release(fault.release, [], ()) if fault.release else None)
        world = self._mesh.world
        refusal = "no node runs that has room on its disk"
        nodes = [fault.node] if fault.node else self._up()
        for by in [name for name in nodes if world.is_running(name) and world.has_room(name)]:
            try:
                version = self._deploy_at(by, asked)
            except MeshError as error:  # such as that its clock is wrong: people try another node
                refusal = f"{by} says: {error}"
                self._record(by, "deploy.refused", model.name, str(error))
            else:
                break
        else:
            raise UsageError(f"{model.name!r} could not be deployed: {refusal}")
        self.newest[model.name] = version
        if asked.plan is not None:
            self.released[model.name] = None
            self._candidates.add((model.name, version))
            self._mesh.library.asked = self._count_asked
            self._record(by, DEPLOYED, model.name, str(version))

    def order(self, fault: OrderRelease) -> None:
        """Ask something of a release, at the first node that takes it; a refusal is noted."""
        for by in [fault.node] if fault.node else self._up():
            if not self._mesh.world.is_running(by):
                continue
            node = self._mesh.node(by)
            try:
                self._mesh.write(
                    by,
                    lambda _drafts, wall_s, node=node, by=by: node.release_order(  # type: ignore[misc]
                        fault.model, fault.order, wall_s, by=by
                    ),
                )
            except MeshError as error:
                self._record(by, "order.refused", fault.model, str(error))
            else:
                return

    def _deploy_at(self, by: str, asked: _Asked) -> int:
        """Deploy at one node, as it sees what is there; return the version."""
        model, fault, plan = asked
        node = self._mesh.node(by)
        current = node.deployment(model.name)
        version = self.newest.get(model.name, 0) + 1
        if plan is not None and current is not None:
            version = max(current.versions) + 1  # another one may have taken the number elsewhere
        takes = (
            model if fault.memory_gb is None else structs.replace(model, memory_gb=fault.memory_gb)
        )
        manifest = manifest_of(takes, version, self._count[model.name])
        self._mesh.behave(manifest, behaviour_of(model, fault))
        found = released(plan, (manifest,), current, standing_of(node.release_view(model.name)))
        on = [machine.name for machine in select(model.on, self._machines)]
        wanted = model.begins_with(len(on) or len(self._machines))
        self._mesh.deploy(
            by,
            *found.manifests,
            replicas=min(wanted, MAX_DEPLOYMENT_REPLICAS),
            on=on,
            scaling=model.scaling,
            standby=model.standby,
            release=found.release,
        )
        return version

    def _count_asked(self, model: str, version: int) -> None:
        if (model, version) in self._candidates:
            self._record("", ASKED, model, str(version))

    def _record(self, by: str, kind: str, model: str, detail: str) -> None:
        self._mesh.world.trace.record(self._mesh.world.now(), by, kind, model, detail)


def behaviour_of(model: Model, fault: Release) -> ModelBehaviour:
    """Return how a version of a scenario's model behaves on a device of speed 1; calls bring their own work."""
    return ModelBehaviour(
        service_s=model.service.mean_ms / 1000,
        fetch_s=model.fetch_s,
        load_s=model.load_s,
        load_error=fault.load_error,
        slowness=fault.slowness,
        fail_share=fault.fail_share,
        fails_on=fault.fails_on,
    )


def manifest_of(model: Model, version: int, release: int | None = None) -> Manifest:
    """Return a version of a scenario's model, as large as placement must take it to be.

    Args:
        model: The model.
        version: Its number.
        release: Counts what was deployed of the model, as two people may number alike; None for the version.
    """
    content = f"{model.name}/{version if release is None else release}"
    sha256 = hashlib.sha256(content.encode()).digest()
    spec = TensorSpec("x", DataType.FP32, (-1, 4))
    files = (FileEntry("model.onnx", files_bytes(model.memory_gb), sha256),)
    return Manifest(
        model.name, version, "onnx", "onnxruntime_onnx", (spec,), (spec,), 8, files, "model.onnx"
    )


def files_bytes(memory_gb: float) -> int:
    """Return how large a model's files are that takes so much memory (see `load_estimate_bytes`)."""
    room = max(0.0, memory_gb * GIB - LOAD_OVERHEAD_BYTES)
    small = room / (LOAD_FACTOR + 1)
    return int(small if small <= LOAD_COPY_BYTES else (room - LOAD_COPY_BYTES) / LOAD_FACTOR) + 1
