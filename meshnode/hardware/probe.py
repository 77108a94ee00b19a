"""The speed probe: `python -m meshnode.hardware.probe DATA_DIR CPUS COPY_BYTES`, a process of its own.

It prints one JSON object and ends. It is a process because it imports what an idle daemon must not
hold in memory (NumPy, ONNX Runtime), and because whatever goes wrong in a library or a driver then
costs a line in the log and nothing else. It runs at the lowest priority. Who starts it
(`meshnode.hardware.speed`) keeps the libraries under NumPy to one thread, by environment variables.

What it measures, in `SPEED_PROBE_S` altogether:

- `matmul_gflops_one_core`: multiplying float32 matrices on one core, in 10^9 operations a second
  (2 n^3 for one product of two n x n matrices);
- `matmul_gflops`: the same on all processors that the node may use, one product on each;
- `memory_gb_per_s`: copying a block larger than most caches, or smaller where the owner allows little
  memory; reading and writing both count;
- `disk_write_mb_per_s`: writing a file in the data folder, until it is on the disk (fsync).
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from meshnode.limits import MAX_PROBE_WRITE_BYTES, MIB, SPEED_PROBE_S

if TYPE_CHECKING:
    from collections.abc import Callable

_SIDE = 384  # three matrices of 576 KB: they fit most second-level caches, as a layer's tile does
_WRITE_STEP_BYTES = 2 * MIB


def main(arguments: list[str]) -> int:
    """Measure, print one JSON object, and return the exit code."""
    folder, cpus, copy_bytes = arguments
    _step_back()
    measured = speed(Path(folder), int(cpus), int(copy_bytes))
    result: dict[str, Any] = {"runtimes": runtimes(), "speed": measured}
    sys.stdout.write(json.dumps(result) + "\n")
    return 0


def _step_back() -> None:
    """Take the lowest priority there is."""
    with suppress(OSError, psutil.Error):
        if sys.platform == "win32":
            psutil.Process().nice(psutil.IDLE_PRIORITY_CLASS)
        else:
            psutil.Process().nice(19)


def runtimes() -> dict[str, Any]:
    """Return what each runtime can do here; a library that breaks when it is asked counts as missing."""
    from meshnode.models.runtimes.registry import capabilities

    found: dict[str, Any] = {}
    for name, capability in capabilities().items():
        found[name] = {
            "version": capability.version,
            "devices": list(capability.devices),
            "missing": capability.missing,
        }
    with suppress(ImportError):
        import onnxruntime

        found["onnx"]["providers"] = list(onnxruntime.get_available_providers())
    return found


def speed(folder: Path, cpus: int, copy_bytes: int) -> dict[str, float]:
    """Measure processor, memory and disk; each gets a quarter of the time.

    Args:
        folder: Where a file is written.
        cpus: Processors that compute at once.
        copy_bytes: Size of the block that is copied.
    """
    quarter_s = SPEED_PROBE_S / 4
    one, every, copied = compute_speed(quarter_s, cpus, copy_bytes)
    measured = {
        "matmul_gflops_one_core": one,
        "matmul_gflops": every,
        "memory_gb_per_s": copied,
        "disk_write_mb_per_s": disk_speed(folder, quarter_s),
    }
    # Three digits: the fourth differs at each run.
    return {name: float(f"{value:.3g}") for name, value in measured.items() if value > 0}


def compute_speed(seconds: float, cpus: int, copy_bytes: int) -> tuple[float, float, float]:
    """Return GFLOPS of one core, of so many at once, and GB/s of a copy in memory."""
    from concurrent.futures import ThreadPoolExecutor

    import numpy as np

    left = np.full((_SIDE, _SIDE), 0.5, np.float32)

    def multiply(duration_s: float) -> float:
        out = np.empty_like(left)
        return _rate(lambda: np.matmul(left, left, out=out), duration_s) * 2 * _SIDE**3 / 1e9

    multiply(seconds / 10)  # the clock rises, and pages are mapped
    one = multiply(seconds * 0.9)
    with ThreadPoolExecutor(cpus) as pool:
        every = sum(pool.map(multiply, [seconds] * cpus))
    source = np.ones(copy_bytes, np.uint8)
    target = np.empty_like(source)
    np.copyto(target, source)
    copies = _rate(lambda: np.copyto(target, source), seconds)
    return one, every, copies * 2 * copy_bytes / 1e9


def disk_speed(folder: Path, seconds: float) -> float:
    """Return MB/s of writing a file in a folder, synced; 0 where that is not possible."""
    block = os.urandom(_WRITE_STEP_BYTES)  # some disks compress
    written = 0
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            begin = time.perf_counter()
            while written < MAX_PROBE_WRITE_BYTES and time.perf_counter() - begin < seconds:
                file.write(block)
                file.flush()
                os.fsync(file.fileno())
                written += len(block)
            elapsed_s = time.perf_counter() - begin
    except OSError:  # full, read-only
        return 0.0
    return written / 1e6 / max(elapsed_s, 1e-9)


def _rate(action: Callable[[], object], seconds: float) -> float:
    """Return how often a second the action runs, measured for so long, at least once."""
    count = 0
    begin = time.perf_counter()
    while True:
        action()
        count += 1
        elapsed_s = time.perf_counter() - begin
        if elapsed_s >= seconds:
            return count / elapsed_s


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
