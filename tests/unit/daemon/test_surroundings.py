"""What a daemon takes from its machine, and that it takes it there."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path
from typing import TYPE_CHECKING

from meshnode.daemon.process import Daemon
from meshnode.daemon.surroundings import RealHardware, real_surroundings
from meshnode.datafolder import DataFolder
from meshnode.net.certificate import self_signed
from meshnode.options import JoinOptions
from meshnode.sim.scenario.model import Device
from meshnode.sim.stand_in_machine import StandInHardware
from meshnode.types import Address

if TYPE_CHECKING:
    import pytest

    from meshnode.effects import Emit
    from meshnode.node import Node


def options(folder: Path) -> JoinOptions:
    return JoinOptions(
        None, "alpha", "eu", "", (), Address("127.0.0.1", 0), None, str(folder), None, True, False,
    )  # fmt: skip


def test_the_real_machine_is_the_one_that_this_runs_on() -> None:
    here = real_surroundings()
    assert here.random_bytes(16) != here.random_bytes(16)
    assert here.hardware.machine().usable_cpus >= 1
    assert here.hardware.rss_bytes() > 2**20
    assert repr(RealHardware()).startswith("<RealHardware")


async def test_a_daemon_takes_chance_machine_and_words_from_its_surroundings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said: list[str] = []
    told: list[str] = []
    made: list[Node] = []
    reported: list[Emit] = []
    rng = random.Random(1)
    surroundings = dataclasses.replace(
        real_surroundings(),
        random_bytes=rng.randbytes,
        hardware=StandInHardware(Device(cpus=7, memory_gb=3.0)),
        platform="win32",
        say=said.append,
        notify=told.append,
        made=made.append,
        reported=reported.append,
    )
    folder = DataFolder(tmp_path / "data", random.Random(2).randbytes)
    daemon = Daemon(
        options(folder.path),
        folder,
        lambda: daemon._shut_down(leave=False),
        surroundings=surroundings,
    )
    try:
        assert await daemon.run() == 0
    finally:
        folder.close()
    assert daemon.mesh is not None
    assert daemon.mesh.node is made[0]
    capabilities = daemon.mesh.node.membership.record.capabilities
    assert (capabilities["cpus"], capabilities["memory_bytes"]) == (7, 3 * 2**30)
    assert said[0].endswith("node alpha of mesh " + str(daemon.mesh.credentials.mesh_id))
    assert told == ["READY=1", "STOPPING=1"]
    assert capsys.readouterr().out == ""
    assert rng.randbytes(8) != random.Random(1).randbytes(8)


def test_the_same_chance_makes_the_same_certificate() -> None:
    assert self_signed(random.Random(1).randbytes) == self_signed(random.Random(1).randbytes)


async def test_a_stand_in_machine_says_what_its_device_is() -> None:
    machine = StandInHardware(Device(speed=2.0, cpus=4, memory_gb=8.0, battery=True), lambda: 0.5)
    assert machine.machine().usable_cpus == 4
    assert machine.power().on_mains is True
    machine.battery_percent = 5.0
    assert (machine.power().on_mains, machine.power().battery_percent) == (False, 5.0)
    machine.is_disk_full = True
    assert machine.disk(Path()).free_bytes == 0
    assert machine.utilisation()[0] == 0.5
    assert machine.temperature_c() is None
    assert machine.accelerators().loads() == ()
    assert (await machine.measure(Path(), 4, 0)).speed["matmul_gflops"] == 400.0
