"""`--report` of the simulator's commands."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meshnode.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from meshnode.sim.running.result import Result


def write_html(results: Sequence[Result], path: str | None) -> None:
    """Write a page about some runs, if a file was named for it.

    Raises:
        UsageError: if it cannot be written there.
    """
    if path is None:
        return
    from pathlib import Path

    from meshnode.sim.running.report import write_report

    try:
        write_report(results, Path(path))
    except OSError as error:
        raise UsageError(f"the report cannot be written to {path}: {error.strerror}") from None
