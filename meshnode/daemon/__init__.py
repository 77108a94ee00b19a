"""The daemon: the cores wired to the world, from start to stop."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshnode.options import JoinOptions

__all__ = ["run"]


def run(options: JoinOptions, on_ready: Callable[[], None] = lambda: None) -> int:
    """Run the daemon (`meshnode.daemon.process.run`).

    It is imported here and not above: `meshnode logs` needs only the log's format.
    """
    from meshnode.daemon import process

    return process.run(options, on_ready)
