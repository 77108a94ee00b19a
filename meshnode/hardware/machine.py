"""What this machine is: processor, memory, disk, system, as far as this process may use them.

psutil tells most of it. Where the process runs in a container, the container's limits are the
machine as far as the node is concerned (`meshnode.hardware.containers`).
"""

from __future__ import annotations

import math
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from meshnode.capabilities import Cpu, Disk
from meshnode.hardware.containers import container_limits
from meshnode.limits import SYSCTL_TIMEOUT_S


class Machine(NamedTuple):
    """This machine, or the container's share of it.

    Attributes:
        cpu: The processor; its counts are the machine's own.
        usable_cpus: How many processors this process may use at once, at least 1: its affinity, and
            a container's quota rounded up.
        memory_bytes: The memory, or the container's limit if that is less.
        os: Such as `linux`.
        architecture: Such as `x86_64`.
    """

    cpu: Cpu
    usable_cpus: int
    memory_bytes: int
    os: str
    architecture: str


def this_machine(root: Path = Path("/")) -> Machine:
    """Look at this machine.

    Args:
        root: The root folder of the file system.
    """
    limits = container_limits(root)
    logical = psutil.cpu_count() or 1
    usable = allowed_cpus()
    if limits.cpus is not None:
        usable = min(usable, math.ceil(limits.cpus))
    total_bytes = psutil.virtual_memory().total
    return Machine(
        Cpu(_cpu_name(root), psutil.cpu_count(logical=False) or 0, logical, _max_mhz()),
        max(1, usable),
        total_bytes if limits.memory_bytes is None else min(total_bytes, limits.memory_bytes),
        platform.system().lower(),
        platform.machine(),
    )


def allowed_cpus() -> int:
    """Return on how many processors this process may run."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return psutil.cpu_count() or 1


def disk_of(folder: str | Path) -> Disk:
    """Return the size of the file system under a folder; its free space in steps of 1 %.

    Free space is what this user may still take. It is coarse so that it is seldom news.
    """
    try:
        usage = shutil.disk_usage(folder)
    except OSError:
        return Disk()
    step = max(1, usage.total // 100)
    return Disk(usage.total, usage.free // step * step)


def _cpu_name(root: Path) -> str:
    if sys.platform == "darwin":
        return sysctl("machdep.cpu.brand_string")
    if sys.platform == "linux":
        for file in ("proc/cpuinfo", "proc/device-tree/model"):
            name = cpu_name_in(_text(root / file))
            if name:
                return name
    return os.environ.get("PROCESSOR_IDENTIFIER", "") or platform.processor()


def cpu_name_in(text: str) -> str:
    """Return the processor's name from `/proc/cpuinfo`, or from a device tree's model."""
    lines = [line.partition(":") for line in text.splitlines()]
    found = {key.strip(): value.strip() for key, _, value in lines}
    for key in ("model name", "Model", "Hardware", "cpu model", "uarch"):
        if found.get(key):
            return found[key]
    return "" if ":" in text else text.strip("\0 \n")


def _max_mhz() -> int:
    try:
        frequency: Any = psutil.cpu_freq()  # None on some machines
    except (OSError, RuntimeError, NotImplementedError, AttributeError):
        return 0  # virtual machines and some ARM systems do not tell
    return round(frequency.max or frequency.current) if frequency else 0


def sysctl(name: str) -> str:
    """Return a value of macOS' kernel, or an empty text."""
    try:
        done = subprocess.run(  # noqa: S603 - the names are our own
            ["/usr/sbin/sysctl", "-n", name],
            capture_output=True, check=False, text=True, timeout=SYSCTL_TIMEOUT_S,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
