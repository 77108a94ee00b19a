"""How busy this machine is (psutil)."""

from __future__ import annotations

import psutil


def utilisation() -> tuple[float, int]:
    """Return the CPU load since the last call (0..1 over all cores) and the free memory in bytes."""
    return psutil.cpu_percent(interval=None) / 100.0, psutil.virtual_memory().available
