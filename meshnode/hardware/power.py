"""Whether the machine runs on mains, and how hot its processor is.

On Linux both come from sysfs, where psutil looks too, because two of its answers would mislead here:
it takes a wireless mouse's battery for the machine's, and mixes disks and radios into the
temperatures. Elsewhere psutil is asked, as far as it can tell.

The folders are listed once, when a `PowerReader` is made; a reading then opens a handful of small
files. A battery or charger that is plugged in later is seen, since supplies are listed each time.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NamedTuple

import psutil

from meshnode.hardware.sysfs import listed, text_of

_CPU_SENSORS = (
    "coretemp", "k10temp", "zenpower", "cpu_thermal", "cpu-thermal", "x86_pkg_temp", "soc_thermal",
    "soc-thermal", "cpu0_thermal", "cpuss", "bigcore", "acpitz",
)  # fmt: skip
"""Names of processors' sensors in the kernel's hwmon and thermal classes, the most exact first."""


_NEAR_CRITICAL_C = 5.0
"""So close to the critical temperature firmware slows a processor down, or is about to."""


class Power(NamedTuple):
    """What the machine runs on.

    Attributes:
        on_mains: None where it cannot be told. A machine without a battery is on mains.
        battery_percent: Charge of its battery, or None without one.
        why_unknown: Why it cannot be told, or empty.
    """

    on_mains: bool | None
    battery_percent: float | None = None
    why_unknown: str = ""


class Supply(NamedTuple):
    """One entry of `/sys/class/power_supply`, as its files say."""

    kind: str
    online: str
    status: str
    scope: str
    capacity: str


def power_of(supplies: list[Supply]) -> Power:
    """Decide from the power supplies what the machine runs on.

    A battery of a device (a mouse, a pen) does not feed the machine. A charger that is online
    decides; otherwise what the battery does.
    """
    batteries = [each for each in supplies if each.kind == "Battery" and each.scope != "Device"]
    if not batteries:
        return Power(on_mains=True)
    chargers = [each for each in supplies if each.kind not in ("Battery", "UPS", "")]
    charges = [float(each.capacity) for each in batteries if each.capacity.isdigit()]
    percent = min(100.0, max(charges)) if charges else None
    if any(each.online not in ("0", "") for each in chargers):
        return Power(True, percent)
    said = {each.status for each in batteries}
    if "Discharging" in said:
        return Power(False, percent)
    if said & {"Charging", "Full", "Not charging"}:
        return Power(True, percent)
    if chargers:
        return Power(False, percent)
    return Power(None, percent, "the battery does not say whether it is being used")


class PowerReader:
    """Reads power and temperature of this machine; cheap enough for once a second.

    `on_linux` and `root` stand for the machine in tests.
    """

    def __init__(self, root: Path = Path("/"), *, on_linux: bool | None = None) -> None:
        """Find the sensors."""
        self._on_linux = sys.platform == "linux" if on_linux is None else on_linux
        self._supplies = root / "sys/class/power_supply"
        self._sensors = _sensors(root / "sys/class") if self._on_linux else []
        self._critical_c = hottest_allowed([text_of(_critical_of(each)) for each in self._sensors])
        self._counters = _throttle_counters(root) if self._on_linux else []
        self._throttled = self._throttle_count()

    def __repr__(self) -> str:
        return f"<PowerReader with {len(self._sensors)} temperature sensors>"

    def power(self) -> Power:
        """Return what the machine runs on now."""
        if not self._on_linux:
            return _power_by_psutil()
        try:
            folders = sorted(self._supplies.iterdir())
        except FileNotFoundError:  # a kernel without the class: no battery that it could use
            return Power(on_mains=True)
        except OSError as error:  # Android keeps it from applications
            return Power(None, None, f"{self._supplies} cannot be read ({error.strerror})")
        return power_of([_supply(folder) for folder in folders])

    def temperature_c(self) -> float | None:
        """Return the hottest of the processor's sensors in degrees Celsius, or None."""
        if self._on_linux:
            return hottest([text_of(sensor) for sensor in self._sensors])
        return _temperature_by_psutil()

    def is_held_back(self) -> bool:
        """Whether the processor was slowed down for its heat since the last call, or is about to be.

        Intel's kernel drivers count that; elsewhere it is taken to be so a few degrees below the temperature that
        the sensor calls critical. Where neither is told, it is taken to be well.
        """
        before, self._throttled = self._throttled, self._throttle_count()
        if self._throttled > before:
            return True
        if self._critical_c is None:
            return False
        heat_c = self.temperature_c()
        return heat_c is not None and heat_c >= self._critical_c - _NEAR_CRITICAL_C

    def _throttle_count(self) -> int:
        texts = [text_of(each) for each in self._counters]
        return sum(int(text) for text in texts if text.isdigit())


def hottest_allowed(millidegrees: list[str]) -> float | None:
    """Return the lowest of sensors' critical temperatures in degrees Celsius; None if none says a likely one."""
    values = [int(text) / 1000 for text in millidegrees if text.isdigit()]
    return min((value for value in values if 60 <= value < 150), default=None)


def hottest(millidegrees: list[str]) -> float | None:
    """Return the highest of the readings that can be a processor's, in degrees Celsius."""
    values = [int(text) / 1000 for text in millidegrees if text.lstrip("-").isdigit()]
    return max((value for value in values if 0 < value < 150), default=None)


def _supply(folder: Path) -> Supply:
    return Supply(
        *(text_of(folder / name) for name in ("type", "online", "status", "scope", "capacity"))
    )


def _sensors(classes: Path) -> list[Path]:
    """Return the files of the most exact kind of processor sensor that there is."""
    found: dict[str, list[Path]] = {}
    for folder in listed(classes / "hwmon"):
        inputs = sorted(folder.glob("temp*_input"))
        found.setdefault(text_of(folder / "name"), []).extend(inputs)
    for folder in listed(classes / "thermal"):
        kind = text_of(folder / "type")
        names = [kind, *(name for name in _CPU_SENSORS if kind.startswith(name))]
        if folder.name.startswith("thermal_zone"):
            found.setdefault(names[-1], []).append(folder / "temp")
    return next((found[name] for name in _CPU_SENSORS if found.get(name)), [])


def _critical_of(sensor: Path) -> Path:
    """Return the file beside a `temp1_input` that says which temperature is critical."""
    return sensor.with_name(sensor.name.removesuffix("_input") + "_crit")


def _throttle_counters(root: Path) -> list[Path]:
    """Return the files in which the kernel counts how often processors were slowed down for their heat."""
    return sorted((root / "sys/devices/system/cpu").glob("cpu*/thermal_throttle/*_throttle_count"))


def _power_by_psutil() -> Power:
    sensors_battery = getattr(psutil, "sensors_battery", None)
    if sensors_battery is None:
        return Power(None, None, f"it cannot be read on {sys.platform}")
    try:
        battery = sensors_battery()
    except (OSError, RuntimeError, NotImplementedError) as error:
        return Power(None, None, f"it cannot be read ({error})")
    if battery is None:
        return Power(on_mains=True)
    percent = min(100.0, max(0.0, float(battery.percent)))
    if battery.power_plugged is None:
        return Power(None, percent, "the battery does not say whether it is being used")
    return Power(bool(battery.power_plugged), percent)


def _temperature_by_psutil() -> float | None:
    sensors_temperatures = getattr(psutil, "sensors_temperatures", None)
    if sensors_temperatures is None:
        return None
    try:
        groups = sensors_temperatures()
    except (OSError, RuntimeError, NotImplementedError):
        return None
    values = [float(each.current) for group in groups.values() for each in group if each.current]
    return max((value for value in values if 0 < value < 150), default=None)
