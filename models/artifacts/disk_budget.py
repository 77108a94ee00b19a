"""How much of the disk model files may take, and what goes first where that is too much.

What is served, wanted or published here is never evicted: where it does not fit, the node says so and
takes no more. What nobody wants any more stays as long as there is room, and goes least recently wanted
first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from meshnode.errors import TransferFailed
from meshnode.limits import DISK_RESERVE_BYTES, DISK_RESERVE_SHARE, UNUSED_BLOBS_SHARE
from meshnode.owner_limits import size_text

if TYPE_CHECKING:
    from collections.abc import Iterable


@dataclass(frozen=True, slots=True)
class DiskState:
    """How a disk stands.

    Attributes:
        size_bytes: Of the file system.
        free_bytes: Of that, what is free.
        kept_bytes: All files that must stay, what versions keep for themselves, and files that are to come.
        missing_bytes: Of those, what is not here yet.
        budget_bytes: What model files may take, as the owner says; None without a limit.
    """

    size_bytes: int
    free_bytes: int
    kept_bytes: int
    missing_bytes: int
    budget_bytes: int | None = None

    @property
    def reserve_bytes(self) -> int:
        """What models leave free: for the node's own state, and for the system."""
        return min(DISK_RESERVE_BYTES, int(self.size_bytes * DISK_RESERVE_SHARE))


@dataclass(frozen=True, slots=True)
class Unused:
    """What lies of a blob that nothing wants: its name, its size, when it was last wanted (wall time)."""

    name: str
    size_bytes: int
    wanted_s: float


def budget_bytes(max_disk: float | None, size_bytes: int) -> int | None:
    """Return what models may take of a disk of this size.

    Args:
        max_disk: As the owner says it: bytes if it is above 1, else a share; None for no limit.
        size_bytes: The disk's size.
    """
    if max_disk is None:
        return None
    return int(max_disk * size_bytes if max_disk <= 1 else max_disk)


def spare_bytes(disk: DiskState, unused_bytes: int) -> int:
    """Return what blobs that nobody wants may take.

    Args:
        disk: How the disk stands.
        unused_bytes: What they take now.
    """
    free_for_all = unused_bytes + disk.free_bytes - disk.missing_bytes - disk.reserve_bytes
    within = int(disk.size_bytes * UNUSED_BLOBS_SHARE)
    if disk.budget_bytes is not None:
        within = disk.budget_bytes - disk.kept_bytes
    return max(0, min(free_for_all, within))


def require_room(disk: DiskState, what: str) -> None:
    """Check that what is wanted fits, once all that nobody wants is gone.

    Args:
        disk: How the disk stands now.
        what: The version that is to come, for the message.

    Raises:
        TransferFailed: saying by how much it does not, and what to do.
    """
    if disk.budget_bytes is not None and disk.kept_bytes > disk.budget_bytes:
        raise TransferFailed(
            f"{what} does not fit: with it, models would take {size_text(disk.kept_bytes)} of this "
            f"node's disk, and --max-disk allows {size_text(disk.budget_bytes)}; undeploy or "
            "unpublish something (meshnode models, meshnode artifacts), or allow more"
        )
    room_bytes = disk.free_bytes - disk.reserve_bytes
    if disk.missing_bytes > max(0, room_bytes):
        raise TransferFailed(
            f"{what} does not fit: {size_text(disk.missing_bytes)} are still to come, and the disk has "
            f"{size_text(max(0, room_bytes))} for them ({size_text(disk.reserve_bytes)} stay free); free "
            "some space on it"
        )


def evicted(unused: Iterable[Unused], spare: int, before_s: float) -> list[str]:
    """Return which blobs go, least recently wanted first.

    Args:
        unused: What nobody wants.
        spare: What of it may stay, in bytes.
        before_s: What was wanted later than this (wall time) stays in any case.
    """
    gone: list[str] = []
    total = 0
    # From the most recently wanted on: the first that has no room left, and all older ones, go.
    for each in sorted(unused, key=lambda each: (each.wanted_s, each.name), reverse=True):
        total += each.size_bytes
        if (total > spare or not spare) and each.wanted_s <= before_s:
            gone.append(each.name)
    return gone[::-1]
