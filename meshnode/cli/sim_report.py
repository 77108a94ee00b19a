"""`--report` of the simulator's commands."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meshnode.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from meshnode.sim.running.result import Result


def require_writable(path: str | None) -> None:
    """Refuse a report's file that cannot be written, before anything is played for it.

    Nothing is left there; a file that is there stays as it is.

    Raises:
        UsageError: if it cannot be written there.
    """
    if path is None:
        return
    from pathlib import Path

    file = Path(path)
    is_new = not file.exists()
    if file.exists() and not (file.is_file() or file.is_dir()):
        return  # a pipe or a device: to open it is to begin with it
    try:
        file.open("ab").close()
        if is_new:
            file.unlink()
    except OSError as error:
        raise _cannot(path, error) from None


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
        raise _cannot(path, error) from None


def _cannot(path: str, error: OSError) -> UsageError:
    return UsageError(
        f"the report cannot be written to {path}: {error.strerror}; name a file in a folder that is there"
    )
