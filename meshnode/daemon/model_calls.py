"""Models that ask other models: what an ensemble's step calls, wherever in the mesh its model is served."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from meshnode.daemon.model_folder import SOURCES_FOLDER
from meshnode.errors import MeshError, NotServing
from meshnode.limits import WORKER_MEMORY_SHARE
from meshnode.models.artifacts.disk_budget import budget_bytes
from meshnode.models.repository.local_archive import is_local_archive
from meshnode.models.repository.source_urls import is_url
from meshnode.models.runtimes.base import Environment
from meshnode.models.workers import launch
from meshnode.models.workers.disk import disk_bytes
from meshnode.models.workers.settings import WorkerSettings

if TYPE_CHECKING:
    from meshnode.gateway.pipeline import Pipeline
    from meshnode.models.manifest import Manifest
    from meshnode.options import JoinOptions
    from meshnode.types import InferRequest, InferResponse

WORKERS_FOLDER: Final = "workers"
"""Folder of the data folder in which models' processes have their private folders."""


def worker_settings(options: JoinOptions, data_folder: Path, memory_bytes: int) -> WorkerSettings:
    """Return how this node runs models' processes; removes what those of an earlier run left behind.

    Args:
        options: What the owner allows, and where the node's own models are.
        data_folder: The node's.
        memory_bytes: What the node may use of the machine's memory.
    """
    work_folder = data_folder / WORKERS_FOLDER
    if work_folder.exists():
        launch.sweep(work_folder)
    own = options.models
    if own is None:
        own_folders: tuple[Path, ...] = ()
    else:
        own_folders = (
            data_folder / SOURCES_FOLDER
            if is_url(own) or is_local_archive(Path(own))
            else Path(own),
        )
    return WorkerSettings(
        allow_code=options.allow_code,
        own_folders=own_folders,
        data_folder=data_folder,
        work_folder=work_folder,
        memory_limit_bytes=int(memory_bytes * WORKER_MEMORY_SHARE) or None,
        disk_limit_bytes=budget_bytes(options.max_disk, disk_bytes(data_folder)),
    )


class ModelCalls:
    """Answers the requests of this node's own models through the node's pipeline.

    Attributes:
        pipeline: Set once it is made: runtimes are needed to make what it stands on.
    """

    def __init__(self) -> None:
        self.pipeline: Pipeline | None = None

    def __repr__(self) -> str:
        return f"<ModelCalls through {self.pipeline!r}>"

    def environment(self, workers: WorkerSettings) -> Environment:
        """Return what runtimes take of this node; `workers` is how it runs models' processes."""
        return Environment(
            infer=self.infer,
            manifest_of=self.manifest_of,
            workers=workers,
            announced=self.announced,
            why_absent=self.why_absent,
        )

    async def infer(self, request: InferRequest) -> InferResponse:
        """Answer a request from the best replica; a short model of this node runs at once.

        Raises:
            MeshError: as `Pipeline.infer`.
        """
        if self.pipeline is None:
            raise NotServing("this node is still starting; try again")
        return (await self.pipeline.infer(request)).response

    def manifest_of(self, model: str, version: int | None) -> Manifest | None:
        """Return what is known of a model that is served somewhere, or None."""
        if self.pipeline is None:
            return None
        try:
            return self.pipeline.resolve(model, version).manifest
        except MeshError:
            return None

    def announced(self, model: str, version: int | None) -> Manifest | None:
        """Return what is known of a model, whether or not it is ready anywhere, or None."""
        return None if self.pipeline is None else self.pipeline.announced(model, version)

    def why_absent(self, model: str, version: int | None) -> str:
        """Return why no replica of a model is ready; empty if one is."""
        if self.pipeline is None:
            return "this node is still starting"
        try:
            self.pipeline.resolve(model, version)
        except MeshError as error:
            return str(error)
        return ""
