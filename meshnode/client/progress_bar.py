"""A progress bar for deployments, publications and jobs, on a terminal."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Self

from meshnode.client.results import DeployProgress

if TYPE_CHECKING:
    from types import TracebackType
    from typing import TextIO

    from rich.progress import Progress

    from meshnode.client.jobs import JobInfo


class ProgressBar:
    """Shows how far something is; give it as `progress` to `deploy`, `publish`, `wait_ready` or `wait_job`.

    ::

        with ProgressBar() as bar:
            mesh.deploy("model", progress=bar)

    Where nobody looks (a file, a pipe), it shows nothing.
    """

    def __init__(self, file: TextIO | None = None, *, force: bool = False) -> None:
        """Show nothing yet.

        Args:
            file: Where it is drawn; None for stderr.
            force: Whether it is drawn even where that is no terminal.
        """
        self._file = file
        self._force = force
        self._bar: Progress | None = None

    def __repr__(self) -> str:
        return f"<ProgressBar{', shown' if self._bar else ''}>"

    def __enter__(self) -> Self:
        """Return the bar."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Give the terminal back."""
        bar, self._bar = self._bar, None
        if bar is not None:
            bar.stop()

    def __call__(self, progress: DeployProgress | JobInfo) -> None:
        """Show the newest state."""
        bar = self._bar or self._begun()
        done, total, said = (
            _of_deployment(progress) if isinstance(progress, DeployProgress) else _of_job(progress)
        )
        bar.update(bar.task_ids[0], completed=done, total=total or None, description=said)

    def _begun(self) -> Progress:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, Task, TextColumn, TimeElapsedColumn
        from rich.text import Text

        class Said(TextColumn):
            """What is done, as plain text: a model's name is no markup."""

            def render(self, task: Task) -> Text:
                return Text(task.description)

        console = Console(file=self._file or sys.stderr, force_terminal=self._force or None)
        self._bar = Progress(
            BarColumn(),
            Said("{task.description}"),
            TimeElapsedColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._bar.add_task("", total=None)
        self._bar.start()
        return self._bar


def _of_deployment(progress: DeployProgress) -> tuple[float, float, str]:
    """Return how much is done, of how much, and what."""
    if progress.total_bytes > 0:
        return progress.sent_bytes, progress.total_bytes, progress.text
    return progress.ready, progress.wanted, progress.text


def _of_job(job: JobInfo) -> tuple[float, float | None, str]:
    """Return the same of a job; how much there is to do is often unknown."""
    said = f"{job.model}: {job.status}"
    if job.has_ended:
        return 1.0, 1.0, said
    return job.progress or 0.0, None if job.progress is None else 1.0, said
