"""How this node runs the processes of models: where, with how much memory, and how patiently."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from meshnode.limits import (
    WORKER_CANCEL_GRACE_S,
    WORKER_RESTART_FIRST_S,
    WORKER_RESTART_MAX_S,
    WORKER_SHARED_BYTES,
    WORKER_SILENCE_S,
    WORKER_START_TIMEOUT_S,
    WORKER_STOP_GRACE_S,
    WORKER_WATCH_S,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSettings:
    """What holds for all worker processes of a node.

    Attributes:
        allow_code: Whether models that are code may run here, wherever they come from.
        own_folders: Folders whose models may run in any case: what the owner passed as `--models`.
        data_folder: The node's data folder, which worker processes are kept out of; None: there is none.
        work_folder: Where each process gets a private folder; None: where temporary files go.
        memory_limit_bytes: Resident memory of one process and its descendants; None: most of the machine's.
        disk_limit_bytes: What one process's temporary files and cache may take at most, whatever its model asks
            for; None: what the model asks for, else a share of the disk.
        shared_bytes: Address space for tensors between the node and one process; pages are taken as needed.
        start_timeout_s: Seconds until a process must be ready.
        stop_grace_s: Seconds that it has to finish when it is closed.
        cancel_grace_s: Seconds that a cancelled request may run on before its process is ended. More is
            allowed to a model whose requests were seen to take long.
        silence_s: Seconds without a sign of life after which it counts as hung.
        watch_s: Seconds between two looks at it.
        restart_first_s: Seconds before it is started again; doubled each time it does not last.
        restart_max_s: Seconds at most.
    """

    allow_code: bool = False
    own_folders: tuple[Path, ...] = field(default=())
    data_folder: Path | None = None
    work_folder: Path | None = None
    memory_limit_bytes: int | None = None
    disk_limit_bytes: int | None = None
    shared_bytes: int = WORKER_SHARED_BYTES
    start_timeout_s: float = WORKER_START_TIMEOUT_S
    stop_grace_s: float = WORKER_STOP_GRACE_S
    cancel_grace_s: float = WORKER_CANCEL_GRACE_S
    silence_s: float = WORKER_SILENCE_S
    watch_s: float = WORKER_WATCH_S
    restart_first_s: float = WORKER_RESTART_FIRST_S
    restart_max_s: float = WORKER_RESTART_MAX_S

    def why_refused(self, folder: Path) -> str:
        """Return why a model in this folder may not run its code here, or an empty text."""
        if self.allow_code:
            return ""
        # A link in an own folder was put there by the owner, so it counts where it lies as well.
        places = (folder.resolve(), Path(os.path.abspath(folder)))  # noqa: PTH100 - links are kept
        for own in self.own_folders:
            mine = (own.resolve(), Path(os.path.abspath(own)))  # noqa: PTH100
            if any(place.is_relative_to(each) for place in places for each in mine):
                return ""
        return (
            "this model is code (Python or TorchScript), and the owner of this node has not allowed that; "
            "join with --allow-code, or put it into the node's own --models folder"
        )
