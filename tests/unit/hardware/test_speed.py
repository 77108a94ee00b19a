"""The speed probe: what it prints, what is made of garbage, and when it is not run again."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from meshnode.capabilities import Accelerator, Cpu, RuntimeDetails
from meshnode.hardware import probe, speed
from meshnode.hardware.machine import Machine
from meshnode.hardware.speed import (
    Measured,
    ProbeFailed,
    copy_bytes_within,
    fingerprint,
    kept,
    measure,
    probe_least_bytes,
    to_keep,
)
from meshnode.limits import MIB

if TYPE_CHECKING:
    from pathlib import Path

MEASURED = Measured(
    {"onnx": RuntimeDetails("1.2.3", ("CPUExecutionProvider",))}, {"matmul_gflops": 42.0}
)
MACHINE = Machine(Cpu("some processor", 4, 8, 3000), 8, 16 * 10**9, "linux", "x86_64")


def python(code: str) -> tuple[str, ...]:
    return (sys.executable, "-c", code)


async def test_the_real_probe_measures_this_machine_and_names_its_runtime(tmp_path: Path) -> None:
    measured = await measure(tmp_path, 2, 8 * MIB)
    assert measured.speed["matmul_gflops_one_core"] > 0.1
    assert measured.speed["memory_gb_per_s"] > 0.1
    assert "CPUExecutionProvider" in measured.runtimes["onnx"].providers
    assert set(measured.runtimes) == {"onnx", "torch", "litert", "python", "ensemble"}
    assert measured.runtimes["onnx"].devices[-1] == "cpu"
    assert measured.runtimes["python"].version
    left = [*tmp_path.iterdir()]  # noqa: ASYNC240 - a folder of its own
    assert left == []  # what it wrote for the measurement is gone


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("print('garbage')", "printed no result"),
        ("print('[]')", "printed no result"),
        ('print(\'{"runtimes": 1, "speed": {"matmul_gflops": -3}}\')', "no figures"),
        ("print('[' * 60000)", "printed no result"),
        ("pass", "printed no result"),
        ("import sys; sys.exit('a driver is broken')", "code 1: a driver is broken"),
        ("import os; os.abort()", "it said nothing"),
        ("import sys; print('x' * 10_000_000, file=sys.stderr); sys.exit(1)", "code 1"),
        ("print('x' * 10_000_000)", "printed more than 65536 bytes"),
    ],
)
async def test_a_probe_that_fails_says_how(tmp_path: Path, code: str, message: str) -> None:
    with pytest.raises(ProbeFailed, match=message):
        await measure(tmp_path, 1, MIB, python(code))


async def test_a_probe_that_hangs_is_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speed, "SPEED_PROBE_TIMEOUT_S", 0.2)
    begin = time.monotonic()
    for code in ("import time; time.sleep(60)", "while True: print('x' * 10_000)"):
        with pytest.raises(ProbeFailed, match="was stopped after"):
            await measure(tmp_path, 1, MIB, python(code))
    assert time.monotonic() - begin < 10


async def test_a_probe_that_cannot_be_started_says_so(tmp_path: Path) -> None:
    with pytest.raises(ProbeFailed, match="could not be started"):
        await measure(tmp_path, 1, MIB, (str(tmp_path / "nothing"),))


async def test_a_daemon_that_stops_takes_its_probe_with_it(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    code = f"import os, time; open({str(pid_file)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    task = asyncio.ensure_future(measure(tmp_path, 1, MIB, python(code)))
    while not pid_file.exists() or not pid_file.read_text():  # noqa: ASYNC110 - another process's
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    import psutil

    assert not psutil.pid_exists(int(pid_file.read_text()))


def test_what_was_measured_is_kept_for_the_same_machine_only() -> None:
    of = fingerprint(MACHINE, ())
    data = to_keep(MEASURED, of, "2026-01-02T03:04:05Z")
    assert kept(data, of) == MEASURED
    assert json.loads(data)["measured_at"] == "2026-01-02T03:04:05Z"
    for other in (
        fingerprint(MACHINE._replace(usable_cpus=4), ()),
        fingerprint(MACHINE._replace(memory_bytes=8 * 10**9), ()),
        fingerprint(MACHINE._replace(cpu=Cpu("another")), ()),
        fingerprint(MACHINE, (Accelerator("cuda", "NVIDIA H200"),)),
    ):
        assert kept(data, other) is None


def test_other_packages_make_a_measurement_stale(monkeypatch: pytest.MonkeyPatch) -> None:
    before = fingerprint(MACHINE, ())
    monkeypatch.setattr(speed, "package_versions", lambda: {"onnxruntime": "99"})
    assert fingerprint(MACHINE, ()) != before


def test_installed_packages_are_named_without_importing_them() -> None:
    found = speed.package_versions()
    assert {"numpy", "onnxruntime"} <= set(found) <= set(speed._PACKAGES)
    import numpy as np

    assert found["numpy"] == np.__version__


@pytest.mark.parametrize(
    "data",
    [
        None, b"", b"garbage", b"[]", b"{}", b'{"fingerprint": "f"}', b"\xff",
        b'{"fingerprint": "f", "measured": 3}', b'{"fingerprint": "f", "measured": {"runtimes": 1}}',
        b'{"fingerprint": "f", "measured": {"runtimes": {}, "speed": {}}}', b"[" * 50_000,
        b'{"fingerprint": "f"}' + b" " * 100_000,
    ],
)  # fmt: skip
def test_a_damaged_file_counts_as_none(data: bytes | None) -> None:
    assert kept(data, "f") is None


def test_a_full_disk_leaves_its_figure_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert probe.disk_speed(tmp_path / "nothing", 0.01) == 0.0
    monkeypatch.setattr(probe, "compute_speed", lambda *_: (10.0, 20.0, 5.12345))
    assert probe.speed(tmp_path / "nothing", 1, MIB) == {
        "matmul_gflops_one_core": 10.0,
        "matmul_gflops": 20.0,
        "memory_gb_per_s": 5.12,
    }


@pytest.mark.parametrize(
    ("room_mib", "cpus", "copied_mib"),
    [
        (None, 64, 64),
        (1000, 2, 64),
        (176, 2, 50),
        (92, 2, 8),
        (91, 2, 0),
        (176, 40, 12),
        (-5, 1, 0),
    ],
)
def test_a_probe_copies_what_its_memory_allows(
    room_mib: int | None, cpus: int, copied_mib: int
) -> None:
    room_bytes = None if room_mib is None else room_mib * MIB
    assert copy_bytes_within(room_bytes, cpus) == copied_mib * MIB


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_smallest_probe_keeps_to_its_memory(tmp_path: Path) -> None:
    code = (
        "import sys; from meshnode.hardware.probe import main;"
        f"main([{str(tmp_path)!r}, '2', '{8 * MIB}']);"
        "status = open('/proc/self/status').read();"
        "sys.stderr.write(status.partition('VmHWM:')[2].split()[0])"
    )
    done = subprocess.run(python(code), capture_output=True, check=True, text=True)
    assert int(done.stderr) * 1024 <= probe_least_bytes(2)
