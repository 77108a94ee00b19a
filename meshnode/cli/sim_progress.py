"""The progress bar of the simulator's commands: on a terminal's stderr, nowhere else."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@contextmanager
def shown_progress(title: str) -> Iterator[Callable[[str, float], None]]:
    """Show a bar while something is played.

    Args:
        title: What it is.

    Yields:
        What to tell what goes on ("" for the same as before) and which share of it is done, 0 to 1.
    """
    if not sys.stderr.isatty():
        yield lambda _what, _share: None
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from meshnode.cli.output import terminal

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=terminal(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=1.0)

        def tell(what: str, share: float) -> None:
            bar.update(task, completed=share, description=f"{title}: {what}" if what else title)

        yield tell
