"""An entrance that answers some paths only, such as `/metrics` for Prometheus on a port of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meshnode.gateway.dispatch import Dispatcher
from meshnode.gateway.matching import Match, unknown

if TYPE_CHECKING:
    from collections.abc import Collection


class SomePaths(Dispatcher):
    """The routes of another dispatcher, as far as they are named."""

    def __init__(self, whole: Dispatcher, paths: Collection[str]) -> None:
        """Answer these paths as the other dispatcher does, and nothing else."""
        self.__dict__.update(whole.__dict__)
        self._paths = frozenset(paths)

    def match(self, method: str, path: str) -> Match:
        """Return what answers a request; see `Dispatcher.match`.

        Raises:
            HttpRefusal: 404 also for paths that only other entrances answer.
        """
        if path.rstrip("/") not in self._paths:
            raise unknown(path)
        return super().match(method, path)
