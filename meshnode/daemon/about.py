"""One run of the daemon as a process: what `meshnode status` tells besides the mesh."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from meshnode.daemon.logs import LOG_FILE

if TYPE_CHECKING:
    from meshnode.clock import Clock
    from meshnode.options import JoinOptions


@dataclass(frozen=True, slots=True)
class About:
    """The facts of this run that do not change.

    Attributes:
        started_at: When it began, in RFC 3339.
        started: The same on the monotonic clock, in seconds.
        data_dir: Its data folder.
        log_file: Where it writes its log.
        config_files: The files that its settings came from.
        profile: The preset that its membership follows.
    """

    started_at: str
    started: float
    data_dir: str
    log_file: str
    config_files: tuple[str, ...]
    profile: str

    def view(self, now: float) -> dict[str, Any]:
        """Return all of it, with the memory that the process takes, as a JSON object's fields."""
        return {
            "pid": os.getpid(),
            "started_at": self.started_at,
            "uptime_s": round(now - self.started, 1),
            "data_dir": self.data_dir,
            "log_file": self.log_file,
            "config_files": self.config_files,
            "profile": self.profile,
            "memory_bytes": psutil.Process().memory_info().rss,
        }


def about(options: JoinOptions, clock: Clock) -> About:
    """Return the facts of a run that begins now."""
    folder = Path(options.data_dir)
    started_at = datetime.fromtimestamp(clock.wall_s(), UTC)
    return About(
        started_at=f"{started_at:%Y-%m-%dT%H:%M:%SZ}",
        started=clock.now(),
        data_dir=options.data_dir,
        log_file=str(folder.joinpath(*LOG_FILE)),
        config_files=options.config_files,
        profile=options.profile,
    )
