"""Room on the disk for model files: made before they come, given back when nobody wants them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meshnode.errors import TransferFailed
from meshnode.models.artifacts.disk_budget import (
    DiskState,
    budget_bytes,
    require_room,
    spare_bytes,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from meshnode.models.artifacts.store import BlobStore
    from meshnode.models.manifest import Manifest


class DiskRoom:
    """What model files may take of a node's disk. Its functions block."""

    def __init__(self, store: BlobStore, max_disk: float | None = None) -> None:
        """Look after a store.

        Args:
            store: Where the files are.
            max_disk: What they may take: bytes if it is above 1, else a share of the disk; None for all
                but what must stay free.
        """
        self._store = store
        self._max_disk = max_disk

    def __repr__(self) -> str:
        return f"<DiskRoom of {self._max_disk}>"

    def make(
        self,
        keep: Sequence[Manifest],
        what: str,
        *,
        coming: Sequence[Manifest] = (),
        copied_bytes: int = 0,
    ) -> None:
        """Make room for files that are to come, at the cost of what nobody wants.

        Args:
            keep: Every version whose files must stay if they are here.
            what: What comes, for the message.
            coming: The versions whose files are to come.
            copied_bytes: What else is to come.

        Raises:
            TransferFailed: if that is not enough.
            ConfigError: if the data folder cannot be written.
        """
        self._collect(keep, self._state(keep, coming, copied_bytes), min_age_s=0.0)
        require_room(self._state(keep, coming, copied_bytes), what)

    def has_room(
        self, keep: Sequence[Manifest], coming: Sequence[Manifest], copied_bytes: int
    ) -> bool:
        """Whether files that are to come fit as the disk stands; arguments as those of `make`."""
        try:
            require_room(self._state(keep, coming, copied_bytes), "")
        except TransferFailed:
            return False
        return True

    def give_back(self, keep: Sequence[Manifest], coming: Sequence[Manifest]) -> None:
        """Remove what nobody wants and there is no room for.

        Args:
            keep: Every version whose files must stay if they are here.
            coming: The versions that are being fetched.

        Raises:
            ConfigError: if the data folder cannot be written.
        """
        self._collect(keep, self._state(keep, coming, 0), None)

    def _collect(self, keep: Sequence[Manifest], disk: DiskState, min_age_s: float | None) -> None:
        def spare(unused_bytes: int) -> int:
            return spare_bytes(disk, unused_bytes)

        if min_age_s is None:
            self._store.collect(keep, spare=spare)
        else:
            self._store.collect(keep, spare=spare, min_age_s=min_age_s)

    def _state(
        self, keep: Sequence[Manifest], coming: Sequence[Manifest], copied_bytes: int
    ) -> DiskState:
        free, size = self._store.free_bytes()
        budget = budget_bytes(self._max_disk, size)
        missing = self._store.missing_bytes(coming) + copied_bytes
        kept = self._store.here_bytes(keep) + self._store.caches.size_bytes() + missing
        return DiskState(size, free, kept, missing, budget)
