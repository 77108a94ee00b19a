"""The machine of a simulated daemon: what a scenario's device class says, instead of what is really there.

Every daemon of a rehearsal would find the same machine otherwise, and another one in each rehearsal.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from meshnode.capabilities import Cpu, Disk, RuntimeDetails
from meshnode.hardware.machine import Machine as MachineFacts
from meshnode.hardware.power import Power
from meshnode.hardware.speed import Measured

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from meshnode.advertisement import AcceleratorLoad
    from meshnode.capabilities import Accelerator
    from meshnode.sim.scenario.model import Device

GIB: Final = 2**30

PROCESS_BYTES: Final = 64 * 2**20
"""Memory of a daemon without models, about what a real one takes."""

_DISK_BYTES: Final = 256 * GIB
_GFLOPS: Final = 50.0  # of a device of speed 1; only shown

CHARGE_ON_MAINS_PERCENT: Final = 80.0
"""Of a battery while it is plugged in: many laptops keep it there, so that it lasts."""


class NoAccelerators:
    """What a device of a scenario has besides its processor: its speed says all."""

    found: tuple[Accelerator, ...] = ()
    absent: tuple[str, ...] = ()
    measurable = False

    def loads(self) -> tuple[AcceleratorLoad, ...]:
        """Return nothing."""
        return ()


class StandInHardware:
    """A device of a scenario; see `meshnode.daemon.surroundings.Hardware`.

    Attributes:
        battery_percent: Charge of its battery while it is off the mains, None while it is on them.
        is_disk_full: Whether its disk has no room.
    """

    def __init__(self, device: Device, busy: Callable[[], float] = lambda: 0.0) -> None:
        """Stand in for a device.

        Args:
            device: Its class.
            busy: Returns the share of its slots that work now, 0 to 1.
        """
        self.battery_percent: float | None = None
        self.is_disk_full = False
        self._device = device
        self._busy = busy

    def __repr__(self) -> str:
        return f"<StandInHardware {self._device.cpus} cpus, {self._device.memory_gb:g} GiB>"

    def machine(self) -> MachineFacts:
        """Return what it is."""
        cpus, memory_bytes = self._device.cpus, round(self._device.memory_gb * GIB)
        return MachineFacts(
            Cpu(f"stand-in of speed {self._device.speed:g}", cpus, cpus),
            cpus,
            memory_bytes,
            "linux",
            "stand-in",
        )

    def disk(self, folder: Path) -> Disk:
        """Return the size of its disk; half of it is free, or nothing."""
        del folder
        return Disk(_DISK_BYTES, 0 if self.is_disk_full else _DISK_BYTES // 2)

    def accelerators(self) -> NoAccelerators:
        """Return none."""
        return NoAccelerators()

    def power(self) -> Power:
        """Return what it runs on."""
        if self.battery_percent is not None:
            return Power(on_mains=False, battery_percent=self.battery_percent)
        charge = CHARGE_ON_MAINS_PERCENT if self._device.battery else None
        return Power(on_mains=True, battery_percent=charge)

    def temperature_c(self) -> float | None:
        """Return nothing: devices of scenarios do not tell."""
        return None

    def is_held_back(self) -> bool:
        """Return that it is not: devices of scenarios are slowed down by faults, which nobody tells."""
        return False

    def utilisation(self) -> tuple[float, int]:
        """Return how busy it is, and the memory that is free."""
        return self._busy(), max(0, round(self._device.memory_gb * GIB) - PROCESS_BYTES)

    def rss_bytes(self) -> int:
        """Return what a daemon takes."""
        return PROCESS_BYTES

    def runtimes(self, *, allow_code: bool) -> tuple[str, ...]:
        """Return the one that the stand-in for models takes the place of."""
        del allow_code
        return ("onnx",)

    async def measure(self, folder: Path, cpus: int, copy_bytes: int) -> Measured:
        """Return figures that follow from its speed, at once."""
        del folder, copy_bytes
        figure = round(_GFLOPS * self._device.speed * cpus, 1)
        return Measured({"onnx": RuntimeDetails("stand-in")}, {"matmul_gflops": figure})
