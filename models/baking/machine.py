"""Which machine this is, as far as compiled models and measured times depend on it."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

from meshnode.hardware.accelerators import Accelerators
from meshnode.hardware.machine import this_machine
from meshnode.hardware.speed import package_versions
from meshnode.models.baking.index import Machine


def machine_here(root: Path = Path("/"), cores: int | None = None) -> Machine:
    """Look at this machine; takes some milliseconds.

    Args:
        root: The root folder of the file system.
        cores: How many of them models may use; None for all that this process may.
    """
    machine = this_machine(root)
    return Machine(
        system=machine.os,
        architecture=machine.architecture,
        features=_features(root) or machine.cpu.model,
        python=f"{sys.version_info.major}.{sys.version_info.minor}",
        packages=package_versions(),
        accelerators=tuple(
            " ".join(filter(None, (each.name or each.kind, each.driver)))
            for each in Accelerators(root).found
        ),
        processor=machine.cpu.model,
        cores=cores or machine.usable_cpus,
    )


def _features(root: Path) -> str:
    """Return a hash of the first processor's instruction sets, whatever their order; empty if it is not told."""
    try:
        text = (root / "proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            words = " ".join(sorted(set(value.split())))
            return hashlib.sha256(words.encode()).hexdigest()[:32]
    return ""
