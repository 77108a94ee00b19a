"""The daemon's eye on its machine, with readings that a test decides."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import TYPE_CHECKING, Any

import pytest

from meshnode.capabilities import Disk, RuntimeDetails, read
from meshnode.daemon import watch as module
from meshnode.daemon.surroundings import RealHardware
from meshnode.daemon.watch import Watch
from meshnode.datafolder import DataFolder
from meshnode.errors import ConfigError, MeshError, NotServing, Saturated, TooLarge
from meshnode.hardware.power import Power
from meshnode.hardware.speed import Measured, ProbeFailed
from meshnode.node_events import CapabilitiesChanged
from meshnode.options import JoinOptions
from meshnode.types import Address

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from meshnode.events import Event

MIB = 1024**2
MEASURED = Measured(
    {"onnx": RuntimeDetails("1.2", ("CPUExecutionProvider",))}, {"matmul_gflops": 9}
)


class Machine(RealHardware):
    """What the sensors say, what the node is told, and what becomes of requests."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.on_mains: bool | None = True
        self.heat_c: float | None = 50.0
        self.rss = 60 * MIB
        self.free_bytes = 1000
        self.held_back = False
        self.told: list[dict[str, Any]] = []
        self.gate = "open"

    def power(self) -> Power:
        return Power(self.on_mains, 80.0, "" if self.on_mains is not None else "it hides")

    def disk(self, _: Path) -> Disk:
        return Disk(4000, self.free_bytes)

    def temperature_c(self) -> float | None:
        return self.heat_c

    def is_held_back(self) -> bool:
        return self.held_back

    def rss_bytes(self) -> int:
        return self.rss

    def tell(self, event: Event) -> None:
        assert isinstance(event, CapabilitiesChanged)
        self.told.append(event.capabilities)

    def refuse(self, error: type[MeshError], reason: str) -> None:
        self.gate = f"{error.code}: {reason}"

    def accept(self) -> None:
        self.gate = "open"


class Clock:
    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    def now(self) -> float:
        return self._machine.now

    def wall_s(self) -> float:
        return 1_700_000_000.0


@pytest.fixture
def machine() -> Machine:
    return Machine()


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[DataFolder]:
    opened = DataFolder(tmp_path / "data")
    yield opened
    opened.close()


def watch(machine: Machine, folder: DataFolder, **limits: Any) -> Watch:
    options = JoinOptions(
        None, "a", "default", "", (), Address("127.0.0.1", 0), None, str(folder.path), None, True,
        False, **limits,
    )  # fmt: skip
    return Watch(options, folder, Clock(machine), hardware=machine)


def look(machine: Machine, watched: Watch, after_s: float = 1.0) -> None:
    machine.now += after_s
    watched.look(machine.tell, machine)


def test_the_first_record_says_what_this_machine_is(machine: Machine, folder: DataFolder) -> None:
    record = watch(machine, folder).first()
    facts = read(record)
    assert facts.cpus >= 1
    assert facts.memory_bytes == facts.memory_total_bytes > 0
    assert {"onnx", "ensemble"} <= set(facts.runtimes)
    assert not {"python", "torch"} & set(facts.runtimes)  # they are code, and nobody allowed that
    assert facts.disk.total_bytes > 0
    assert facts.power == "mains"
    assert facts.runtime_details["onnx"].version
    assert facts.paused == ""


def test_what_placement_sees_is_what_the_owner_allows(machine: Machine, folder: DataFolder) -> None:
    watched = watch(machine, folder, max_cpus=1, max_memory_bytes=300 * MIB)
    facts = read(watched.first())
    assert (facts.cpus, facts.memory_bytes, watched.cpus) == (1, 300 * MIB, 1)
    assert facts.memory_total_bytes > 300 * MIB
    assert facts.limits.max_memory_bytes == 300 * MIB
    assert watched.free_bytes(10**12) == 240 * MIB
    assert watched.free_bytes(5 * MIB) == 5 * MIB
    machine.rss = 301 * MIB
    assert watched.free_bytes(10**12) == 0


def test_no_owner_can_allow_more_than_the_machine_has(machine: Machine, folder: DataFolder) -> None:
    watched = watch(machine, folder, max_cpus=100_000, max_memory_bytes=2**60)
    facts, bare = read(watched.first()), read(watch(machine, folder).first())
    assert (facts.cpus, watched.cpus) == (bare.cpus, bare.cpus)
    assert facts.memory_bytes == facts.memory_total_bytes < 2**60


def test_a_node_that_starts_on_battery_begins_paused(
    machine: Machine, folder: DataFolder, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    machine.on_mains = False
    assert watch(machine, folder, only_on_mains=True).first()["paused"] == "on battery"
    assert "paused: on battery" in caplog.text


def test_on_battery_the_mesh_is_told_first_and_requests_are_refused_a_look_later(
    machine: Machine, folder: DataFolder
) -> None:
    watched = watch(machine, folder, only_on_mains=True)
    look(machine, watched)
    assert (machine.told, machine.gate) == ([], "open")
    machine.on_mains = False
    look(machine, watched)
    assert [each["paused"] for each in machine.told] == ["on battery"]
    assert machine.gate == "open"  # gateways that have not heard yet are still answered
    look(machine, watched)
    assert machine.gate == f"{NotServing.code}: this node is paused: on battery"
    machine.on_mains = True
    look(machine, watched)
    assert machine.gate.startswith(NotServing.code)
    look(machine, watched, 5.0)
    assert machine.gate == "open"
    assert [each.get("paused") for each in machine.told] == ["on battery", None]


def test_heat_pauses_too(machine: Machine, folder: DataFolder) -> None:
    watched = watch(machine, folder, max_temperature_c=80.0)
    machine.heat_c = 91.0
    look(machine, watched)
    assert machine.told[0]["paused"] == "too hot: 91 °C, and the limit is 80 °C"
    assert watched.fares.temperature_c == 91.0
    assert watched.fares.battery_percent == 80.0


def test_above_the_memory_limit_requests_are_refused_until_there_is_room(
    machine: Machine, folder: DataFolder, caplog: pytest.LogCaptureFixture
) -> None:
    watched = watch(machine, folder, max_memory_bytes=100 * MIB)
    machine.rss = 120 * MIB
    look(machine, watched)
    look(machine, watched)
    assert machine.gate.startswith(f"{Saturated.code}: this node uses 120 MiB")
    assert caplog.text.count("requests are refused") == 1
    machine.rss = 80 * MIB
    look(machine, watched)
    assert machine.gate == "open"


async def test_memory_is_given_back_while_it_is_above_its_limit(
    machine: Machine, folder: DataFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    given_back = asyncio.Event()
    loop = asyncio.get_running_loop()
    monkeypatch.setattr(
        module, "give_memory_back", lambda: loop.call_soon_threadsafe(given_back.set)
    )
    monkeypatch.setattr(module, "LOOK_INTERVAL_S", 0.01)
    machine.rss = 120 * MIB
    watched = watch(machine, folder, max_memory_bytes=100 * MIB)
    task = asyncio.ensure_future(watched.run(machine.tell, machine))
    async with asyncio.timeout(10):
        await given_back.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def test_other_changes_are_told_at_most_every_thirty_seconds(
    machine: Machine, folder: DataFolder
) -> None:
    """Free space is only shown; it changes all the time here."""
    watched = watch(machine, folder)
    for second in range(1, 100):
        machine.free_bytes = 1000 + 1000 * (second % 2)
        look(machine, watched)
    assert 3 <= len(machine.told) <= 4
    assert all("paused" not in each for each in machine.told)


def test_a_laptop_that_is_unplugged_for_a_minute_is_not_told_to_run_on_battery(
    machine: Machine, folder: DataFolder
) -> None:
    """Placement goes by the record; requests avoid the node at once, by its load."""
    watched = watch(machine, folder)
    machine.on_mains = False
    for _ in range(6):
        look(machine, watched, 10.0)
    assert watched.fares.on_battery
    machine.on_mains = True
    look(machine, watched, 10.0)
    assert machine.told == []
    machine.on_mains = False
    for _ in range(14):
        look(machine, watched, 10.0)
    assert [each["power"] for each in machine.told] == ["battery"]


def test_pausing_does_not_wait_for_that(machine: Machine, folder: DataFolder) -> None:
    watched = watch(machine, folder, max_temperature_c=80.0)
    machine.free_bytes = 2000
    look(machine, watched)
    machine.heat_c = 95.0
    look(machine, watched)
    assert [each.get("paused", "")[:7] for each in machine.told] == ["", "too hot"]


def test_a_disk_that_fills_is_told_when_a_tenth_is_gone(
    machine: Machine, folder: DataFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = [890, 901, 950, 1000]
    monkeypatch.setattr(machine, "disk", lambda _: Disk(2000, left.pop()))
    watched = watch(machine, folder)
    for _ in range(3):
        look(machine, watched, 60.0)
    assert [each["disk"]["free_bytes"] for each in machine.told] == [890]


def test_a_record_that_cannot_be_told_is_logged(
    machine: Machine, folder: DataFolder, caplog: pytest.LogCaptureFixture
) -> None:
    def refused(_: Event) -> None:
        raise TooLarge("the record is too large")

    watched = watch(machine, folder)
    machine.free_bytes = 2000
    machine.now += 1
    watched.look(refused, machine)
    assert "cannot be told: the record is too large" in caplog.text


def test_what_cannot_be_kept_here_is_said_at_the_start_and_in_the_record(
    machine: Machine, folder: DataFolder, caplog: pytest.LogCaptureFixture
) -> None:
    machine.on_mains = machine.heat_c = None
    watched = watch(
        machine, folder, only_on_mains=True, max_temperature_c=80.0, max_memory_bytes=50 * MIB
    )
    record = watched.first()
    assert read(record).limits.not_enforced == (
        "--only-on-mains: it hides",
        "--max-temperature: this machine does not tell its processor's temperature",
    )
    assert caplog.text.count("not enforced: ") == 2
    assert "this node alone takes 60 MiB, so it will load no model" in caplog.text


async def immediately(*_: object) -> Measured:
    return MEASURED


async def test_the_speed_is_measured_once_and_kept_across_restarts(
    machine: Machine, folder: DataFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PROBE_DELAY_S", 0.0)
    monkeypatch.setattr(machine, "measure", immediately)
    first = watch(machine, folder)
    assert "speed" not in first.first()
    await first.measure_speed(lambda: False)
    look(machine, first)
    assert machine.told[-1]["speed"] == {"matmul_gflops": 9}
    assert json.loads((folder.path / "hardware.json").read_bytes())["measured"]["speed"]

    async def never(*_: object) -> Measured:
        pytest.fail("it is known already")

    monkeypatch.setattr(machine, "measure", never)
    second = watch(machine, folder)
    await second.measure_speed(lambda: False)
    facts = read(second.first())
    assert facts.speed == {"matmul_gflops": 9}
    assert facts.runtime_details["onnx"].providers == ("CPUExecutionProvider",)


async def test_the_probe_waits_for_requests_but_not_for_ever(
    machine: Machine, folder: DataFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PROBE_DELAY_S", 0.0)
    monkeypatch.setattr(module, "LOOK_INTERVAL_S", 0.0)
    monkeypatch.setattr(machine, "measure", immediately)
    asked = 0

    def is_busy() -> bool:
        nonlocal asked
        asked += 1
        machine.now += 10.0
        return True

    watched = watch(machine, folder)
    await watched.measure_speed(is_busy)
    assert asked == 6
    assert folder.hardware() is not None


async def test_the_probe_waits_while_the_owner_wants_no_work(
    machine: Machine,
    folder: DataFolder,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(module, "PROBE_DELAY_S", 0.0)
    monkeypatch.setattr(module, "LOOK_INTERVAL_S", 0.0)
    monkeypatch.setattr(machine, "measure", immediately)
    machine.on_mains = False
    watched = watch(machine, folder, only_on_mains=True)
    measuring = asyncio.ensure_future(watched.measure_speed(lambda: False))
    for _ in range(100):
        look(machine, watched)
        await asyncio.sleep(0)
    assert not measuring.done()
    assert caplog.text.count("is measured later: on battery") == 1
    machine.on_mains = True
    for _ in range(10):
        look(machine, watched)
    await measuring
    assert folder.hardware() is not None


async def test_the_probe_takes_no_more_memory_and_processors_than_the_owner_allows(
    machine: Machine, folder: DataFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, int]] = []

    async def noted(_: object, cpus: int, copy_bytes: int) -> Measured:
        asked.append((cpus, copy_bytes))
        return MEASURED

    monkeypatch.setattr(module, "PROBE_DELAY_S", 0.0)
    monkeypatch.setattr(machine, "measure", noted)
    watched = watch(machine, folder, max_memory_bytes=164 * MIB, max_cpus=1)
    await watched.measure_speed(lambda: False)  # 60 of 164 MiB are taken
    assert asked == [(1, 15 * MIB)]


async def test_a_probe_that_memory_does_not_allow_is_not_run_and_says_why(
    machine: Machine,
    folder: DataFolder,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(module, "PROBE_DELAY_S", 0.0)
    watched = watch(machine, folder, max_memory_bytes=120 * MIB, max_cpus=1)
    await watched.measure_speed(lambda: False)
    why = "speed: not measured, which takes 90 MiB of memory; --max-memory leaves 60 MiB"
    assert why in caplog.text
    look(machine, watched)
    assert why in machine.told[-1]["absent"]
    assert folder.hardware() is None


async def test_a_probe_that_fails_is_a_line_in_the_log(
    machine: Machine,
    folder: DataFolder,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def failing(*_: object) -> Measured:
        raise ProbeFailed("the speed probe printed no result")

    monkeypatch.setattr(module, "PROBE_DELAY_S", 0.0)
    monkeypatch.setattr(machine, "measure", failing)
    watched = watch(machine, folder)
    await watched.measure_speed(lambda: False)
    assert "the speed of this machine is not known: the speed probe printed no" in caplog.text
    assert folder.hardware() is None


async def test_a_result_that_cannot_be_kept_is_used_all_the_same(
    machine: Machine,
    folder: DataFolder,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def full(_: bytes) -> None:
        raise ConfigError("the disk is full")

    monkeypatch.setattr(module, "PROBE_DELAY_S", 0.0)
    monkeypatch.setattr(machine, "measure", immediately)
    monkeypatch.setattr(folder, "save_hardware", full)
    watched = watch(machine, folder)
    await watched.measure_speed(lambda: False)
    assert "measured again at the next start: the disk is full" in caplog.text
    look(machine, watched)
    assert machine.told[-1]["speed"] == {"matmul_gflops": 9}
