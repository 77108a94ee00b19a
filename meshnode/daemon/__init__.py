"""The daemon: the cores wired to the world, from start to stop."""

from meshnode.daemon.process import run

__all__ = ["run"]
