"""Runs the speed probe when it has to be, and keeps its result across restarts.

The result lies in `DATA_DIR/hardware.json` under a fingerprint of the machine: processor, how many of
them may be used, memory, accelerators, versions of the packages that compute. While the fingerprint
stays, the probe is not run again. A probe that crashes, hangs or prints garbage leaves a line in the
log; it is tried again at the next start.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

import meshnode
from meshnode.capabilities import RuntimeDetails, read
from meshnode.limits import (
    MAX_HARDWARE_FILE_BYTES,
    MAX_PROBE_OUTPUT_BYTES,
    MIN_PROBE_COPY_BYTES,
    PROBE_COPY_BYTES,
    PROBE_PROCESS_BYTES,
    PROBE_THREAD_BYTES,
    SPEED_PROBE_TIMEOUT_S,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from meshnode.capabilities import Accelerator
    from meshnode.hardware.machine import Machine

_ONE_THREAD = dict.fromkeys(
    (
        "OMP_NUM_THREADS",
        "OPENBLAS_NUM_THREADS",
        "MKL_NUM_THREADS",
        "BLIS_NUM_THREADS",
        "VECLIB_MAXIMUM_THREADS",
    ),
    "1",
)
"""Variables that keep each library under NumPy to one thread; set before the process starts."""

_PACKAGES = (
    "numpy", "onnxruntime", "onnxruntime-gpu", "onnxruntime-directml", "onnxruntime-silicon", "torch",
    "ai-edge-litert",
)  # fmt: skip
"""Packages that compute; other ones or other versions make a measurement stale."""

_ERROR_SHOWN_LENGTH = 200  # of what a failed probe printed: its last line says why


class ProbeFailed(Exception):
    """The speed probe gave no result; nothing was kept."""


class Measured(NamedTuple):
    """What the probe found.

    Attributes:
        runtimes: Version and providers by runtime.
        speed: Figures by name (`meshnode.capabilities.SPEEDS`).
    """

    runtimes: dict[str, RuntimeDetails]
    speed: dict[str, float]


def fingerprint(machine: Machine, accelerators: Sequence[Accelerator]) -> str:
    """Return what a measurement is valid for: the same for the same machine and software."""
    facts = [
        machine.cpu.model,
        machine.usable_cpus,
        machine.memory_bytes,
        [[each.kind, each.name, each.memory_bytes, each.driver] for each in accelerators],
        sorted(package_versions().items()),
    ]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def package_versions() -> dict[str, str]:
    """Return which packages that compute are installed, without importing them.

    Their names and versions stand in the names of `site-packages`' folders. `importlib.metadata`
    knows more kinds of places, and costs an idle daemon a megabyte.
    """
    found: dict[str, str] = {}
    for place in sys.path:
        for folder in Path(place).glob("*.dist-info"):
            package, _, version = folder.stem.partition("-")
            package = package.replace("_", "-").lower()
            if package in _PACKAGES:
                found.setdefault(package, version)
    return found


def parse(output: bytes) -> Measured:
    """Read what the probe printed.

    Raises:
        ProbeFailed: if it is not that.
    """
    try:
        document = json.loads(output)
        said = {"runtime_details": document["runtimes"], "speed": document["speed"]}
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ProbeFailed("the speed probe printed no result") from None
    facts = read(said)
    if not facts.speed:
        raise ProbeFailed("the speed probe printed no figures")
    return Measured(facts.runtime_details, facts.speed)


def probe_least_bytes(cpus: int) -> int:
    """Return the memory that the smallest probe takes with so many processors."""
    return PROBE_PROCESS_BYTES + cpus * PROBE_THREAD_BYTES + 2 * MIN_PROBE_COPY_BYTES


def copy_bytes_within(room_bytes: int | None, cpus: int) -> int:
    """Return the size of the block that a probe may copy, or 0 if there is no room to measure at all.

    Args:
        room_bytes: Memory that the probe's process may take; None for any amount.
        cpus: Processors that it uses at once.
    """
    if room_bytes is None:
        return PROBE_COPY_BYTES
    left_bytes = room_bytes - PROBE_PROCESS_BYTES - cpus * PROBE_THREAD_BYTES
    copy_bytes = min(PROBE_COPY_BYTES, left_bytes // 2)
    return copy_bytes if copy_bytes >= MIN_PROBE_COPY_BYTES else 0


async def measure(
    folder: Path, cpus: int, copy_bytes: int, command: Sequence[str] | None = None
) -> Measured:
    """Run the probe in a process of its own, and end it if it takes too long.

    It has this process's processors, and the lowest priority.

    Args:
        folder: The data folder, whose disk is measured.
        cpus: Processors that it uses at once.
        copy_bytes: Size of the block that it copies, see `copy_bytes_within`.
        command: What to run instead; for tests.

    Raises:
        ProbeFailed: if it could not be run, crashed, took too long or printed something else.
    """
    where = str(Path(meshnode.__file__).parent.parent)
    paths = [where, *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, **_ONE_THREAD, "PYTHONPATH": os.pathsep.join(paths)}
    # -P: a file called numpy.py in the folder where somebody starts the daemon is not imported.
    probe = ("meshnode.hardware.probe", str(folder), str(cpus), str(copy_bytes))
    command = command or (sys.executable, "-P", "-m", *probe)
    pipe = asyncio.subprocess.PIPE
    try:
        process = await asyncio.create_subprocess_exec(
            *command, stdin=asyncio.subprocess.DEVNULL, stdout=pipe, stderr=pipe, env=environment
        )
    except OSError as error:
        raise ProbeFailed(f"the speed probe could not be started: {error}") from None
    try:
        async with asyncio.timeout(SPEED_PROBE_TIMEOUT_S):
            output, errors = await _outputs(process)
            code = await process.wait()
    except TimeoutError:
        raise ProbeFailed(
            f"the speed probe was stopped after {SPEED_PROBE_TIMEOUT_S:.0f} s"
        ) from None
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await _outputs(process)  # asyncio counts a process as ended once its pipes are empty
        await process.wait()
    if len(output) > MAX_PROBE_OUTPUT_BYTES:
        raise ProbeFailed(f"the speed probe printed more than {MAX_PROBE_OUTPUT_BYTES} bytes")
    if code != 0:
        lines = errors.decode(errors="replace").split("\n")
        why = next((line for line in reversed(lines) if line.strip()), "it said nothing")
        raise ProbeFailed(
            f"the speed probe ended with code {code}: {why.strip()[:_ERROR_SHOWN_LENGTH]}"
        )
    return parse(output)


async def _outputs(process: asyncio.subprocess.Process) -> tuple[bytes, bytes]:
    """Read both outputs to their ends, side by side."""
    assert process.stdout is not None
    assert process.stderr is not None
    output, errors = await asyncio.gather(_beginning(process.stdout), _beginning(process.stderr))
    return output, errors


async def _beginning(stream: asyncio.StreamReader) -> bytes:
    """Read to the end, and return a little more than the limit at most."""
    data = bytearray()
    while piece := await stream.read(4096):
        if len(data) <= MAX_PROBE_OUTPUT_BYTES:
            data += piece
    return bytes(data)


def kept(data: bytes | None, of: str) -> Measured | None:
    """Return the measurement that a data folder holds, if it is of this fingerprint.

    Args:
        data: The file `hardware.json`, or None if there is none. Garbage counts as none.
        of: The machine's fingerprint now.
    """
    if data is None or len(data) > MAX_HARDWARE_FILE_BYTES:
        return None
    try:
        document = json.loads(data)
        if document["fingerprint"] != of:
            return None
        return parse(json.dumps(document["measured"]).encode())
    except (ValueError, KeyError, TypeError, RecursionError, ProbeFailed):
        return None


def to_keep(measured: Measured, of: str, measured_at: str) -> bytes:
    """Return the file `hardware.json`.

    Args:
        measured: What the probe found.
        of: The fingerprint of the machine that it was found on.
        measured_at: When, in RFC 3339.
    """
    document: dict[str, Any] = {
        "fingerprint": of,
        "measured_at": measured_at,
        "measured": {
            "runtimes": msgspec.to_builtins(measured.runtimes),
            "speed": measured.speed,
        },
    }
    return msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n"
