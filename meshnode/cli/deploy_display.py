"""How far a deployment or publication is, on stderr."""

import time
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

import typer

from meshnode.cli.output import plain, terminal
from meshnode.client.results import DeployProgress

if TYPE_CHECKING:
    from rich.progress import Progress
    from rich.status import Status

_LINE_INTERVAL_S: Final = 5.0
"""Between lines about files on their way where there is no terminal: a log stays short."""

_WORDS: Final = {"waiting": "nodes fetch"}


class Display:
    """Shows on stderr how far a deployment is: a bar and a spinner on a terminal, else lines."""

    def __init__(self) -> None:
        self._console = terminal(stderr=True)
        self._bar: Progress | None = None
        self._spinner: Status | None = None
        self._said_s = float("-inf")
        self._stage = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Give the terminal back."""
        self._clear()

    def show(self, progress: DeployProgress) -> None:
        """Show the newest state."""
        if not self._console.is_terminal:
            self._say(progress)
        elif _moves_bytes(progress):
            self._draw(progress)
        else:
            if self._spinner is None:
                self._clear()
                self._spinner = self._console.status("")
                self._spinner.start()
            self._spinner.update(plain(progress.text))

    def _say(self, progress: DeployProgress) -> None:
        now = time.monotonic()
        if _moves_bytes(progress):
            if now - self._said_s < _LINE_INTERVAL_S and progress.sent_bytes < progress.total_bytes:
                return
            self._said_s = now
        typer.echo(plain(progress.text), err=True)

    def _draw(self, progress: DeployProgress) -> None:
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TextColumn,
            TransferSpeedColumn,
        )

        if self._bar is None or self._stage != progress.stage:
            self._clear()
            self._stage = progress.stage
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                DownloadColumn(),
                TransferSpeedColumn(),
            )
            self._bar = Progress(*columns, console=self._console, transient=True)
            self._bar.add_task("", total=progress.total_bytes)
            self._bar.start()
        self._bar.update(
            self._bar.task_ids[0],
            completed=progress.sent_bytes,
            total=progress.total_bytes,
            description=_WORDS.get(progress.stage, progress.stage),
        )

    def _clear(self) -> None:
        if self._bar is not None:
            self._bar.stop()
        if self._spinner is not None:
            self._spinner.stop()
        self._bar = self._spinner = None


def _moves_bytes(progress: DeployProgress) -> bool:
    """Whether files are on their way, here or between nodes."""
    return (
        progress.stage in ("fetching", "uploading")
        or 0 < progress.sent_bytes < progress.total_bytes
    )
