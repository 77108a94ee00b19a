"""What a container (a Linux control group) leaves of its machine.

A limit holds for a group and all below it, so the least of the group's own limit and its ancestors'
counts. Version 2 keeps everything in one tree, version 1 a tree for each controller; both may be
mounted. Inside a container the tree's root usually is the container's own group, while
`/proc/self/cgroup` may still tell the host's path: a folder that is not there is passed over.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_UNLIMITED_BYTES = 2**60  # version 1 says "no limit" with a number close to 2 to the 63rd


class ContainerLimits(NamedTuple):
    """Limits of the control group that this process runs in; None where there is none."""

    memory_bytes: int | None
    cpus: float | None


def container_limits(root: Path) -> ContainerLimits:
    """Read the limits of this process's control group.

    Args:
        root: The root folder of the file system, `/`.
    """
    groups = _groups(_read(root / "proc/self/cgroup"))
    tree = root / "sys/fs/cgroup"
    memory: list[int] = []
    cpus: list[float] = []
    for folder in _folders(tree, groups.get("")):
        memory += _bytes(_read(folder / "memory.max"))
        cpus += _quota(_read(folder / "cpu.max"))
    for folder in _folders(tree / "memory", groups.get("memory")):
        memory += _bytes(_read(folder / "memory.limit_in_bytes"))
    for folder in _folders(tree / "cpu", groups.get("cpu")):
        quota = _read(folder / "cpu.cfs_quota_us").strip()
        cpus += _quota(f"{quota} {_read(folder / 'cpu.cfs_period_us')}")
    return ContainerLimits(min(memory, default=None), min(cpus, default=None))


def _groups(text: str) -> dict[str, str]:
    """Return the group's path by controller; version 2 is the empty name."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        found.update(dict.fromkeys(controllers.split(","), path))
    return found


def _folders(tree: Path, path: str | None) -> Iterator[Path]:
    """Yield the group's folder and its ancestors' as far as they are there, the tree's root last."""
    parts = [part for part in (path or "").split("/") if part and part != ".."]
    for length in range(len(parts), -1, -1):
        yield tree.joinpath(*parts[:length])


def _bytes(text: str) -> list[int]:
    limit = text.strip()
    return [int(limit)] if limit.isdigit() and int(limit) < _UNLIMITED_BYTES else []


def _quota(text: str) -> list[float]:
    """Read `QUOTA PERIOD` in microseconds; `max` or -1 for no quota."""
    quota, _, period = text.strip().partition(" ")
    if quota.isdigit() and period.strip().isdigit() and int(quota) and int(period):
        return [int(quota) / int(period)]
    return []


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""
