"""Models that are code, opened in worker processes: what the runtimes of such models share."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from meshnode.errors import ModelError
from meshnode.models.runtimes.base import Described

if TYPE_CHECKING:
    from meshnode.models.execution import Spelling
    from meshnode.models.runtimes.base import Opening
    from meshnode.models.workers.host import Infer, WorkerProcess
    from meshnode.models.workers.settings import WorkerSettings


def load_worker(
    runtime: str,
    spelling: Spelling,
    opening: Opening,
    settings: WorkerSettings,
    infer: Infer | None = None,
) -> WorkerProcess:
    """Open a model in a process of its own; blocks until it is ready.

    Raises:
        ModelError: if code is not allowed here, or the model cannot be opened.
    """
    # On demand: NumPy comes with it.
    from meshnode.models.workers.host import open_worker
    from meshnode.models.workers.launch import Plan

    return open_worker(Plan(runtime, spelling, _checked(opening), settings), infer)


def describe_worker(
    runtime: str, spelling: Spelling, opening: Opening, settings: WorkerSettings
) -> Described:
    """Ask a model in a process of its own what it takes and gives; blocks.

    Raises:
        ModelError: as `load_worker`.
    """
    from meshnode.models.workers.launch import Plan, launch

    plan = Plan(runtime, spelling, replace(_checked(opening), cache_folder=None), settings)
    child, started = launch(plan, only_describe=True)
    child.end(settings.stop_grace_s)
    return Described(started.inputs, started.outputs, started.max_batch_size, started.execution)


def _checked(opening: Opening) -> Opening:
    if not (opening.folder / opening.entry).exists():
        raise ModelError(f"{opening.entry!r} is missing in {opening.folder}")
    return opening
