"""Mains or battery, and how hot, from recorded sysfs trees."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from meshnode.hardware.power import Power, PowerReader

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Tree = Callable[[dict[str, str]], Path]

SUPPLY = "sys/class/power_supply"


def battery(status: str, capacity: str = "63") -> dict[str, str]:
    return {
        f"{SUPPLY}/BAT0/type": "Battery\n",
        f"{SUPPLY}/BAT0/status": f"{status}\n",
        f"{SUPPLY}/BAT0/capacity": f"{capacity}\n",
    }


def charger(online: str) -> dict[str, str]:
    return {f"{SUPPLY}/AC/type": "Mains\n", f"{SUPPLY}/AC/online": f"{online}\n"}


MOUSE = {
    f"{SUPPLY}/hidpp_battery_0/type": "Battery\n",
    f"{SUPPLY}/hidpp_battery_0/scope": "Device\n",
    f"{SUPPLY}/hidpp_battery_0/status": "Discharging\n",
    f"{SUPPLY}/hidpp_battery_0/capacity": "12\n",
}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, Power(on_mains=True)),
        ({f"{SUPPLY}/readme": ""}, Power(on_mains=True)),
        (MOUSE, Power(on_mains=True)),
        (charger("1") | battery("Charging"), Power(True, 63.0)),
        (charger("1") | battery("Discharging"), Power(True, 63.0)),
        (charger("0") | battery("Discharging"), Power(False, 63.0)),
        (charger("0") | battery("Unknown"), Power(False, 63.0)),
        (charger("0") | battery("Discharging") | MOUSE, Power(False, 63.0)),
        (charger("2") | battery("Discharging"), Power(True, 63.0)),  # a programmable USB supply
        (charger("") | battery("Discharging"), Power(False, 63.0)),
        (battery("Discharging", "250"), Power(False, 100.0)),
        (battery("Full", "x"), Power(on_mains=True)),
    ],
)
def test_what_feeds_the_machine_is_told_from_its_supplies(
    tree: Tree, files: dict[str, str], expected: Power
) -> None:
    assert PowerReader(tree(files), on_linux=True).power() == expected


def test_a_battery_that_tells_nothing_is_unknown_and_says_so(tree: Tree) -> None:
    power = PowerReader(tree(battery("Unknown")), on_linux=True).power()
    assert power.on_mains is None
    assert "does not say" in power.why_unknown


def test_a_reading_follows_the_plug(tree: Tree) -> None:
    root = tree(charger("1") | battery("Charging"))
    reader = PowerReader(root, on_linux=True)
    assert reader.power().on_mains is True
    tree(charger("0") | battery("Discharging", "62"))
    assert reader.power() == Power(False, 62.0)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, None),
        (
            {
                "sys/class/hwmon/hwmon0/name": "nvme\n",
                "sys/class/hwmon/hwmon0/temp1_input": "90000\n",
                "sys/class/hwmon/hwmon1/name": "coretemp\n",
                "sys/class/hwmon/hwmon1/temp1_input": "61000\n",
                "sys/class/hwmon/hwmon1/temp2_input": "64500\n",
                "sys/class/thermal/thermal_zone0/type": "acpitz\n",
                "sys/class/thermal/thermal_zone0/temp": "99000\n",
            },
            64.5,
        ),
        (
            {
                "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
                "sys/class/thermal/thermal_zone0/temp": "48312\n",
                "sys/class/thermal/cooling_device0/type": "acpitz\n",
            },
            48.312,
        ),
        (
            {
                "sys/class/hwmon/hwmon0/name": "k10temp\n",
                "sys/class/hwmon/hwmon0/temp1_input": "-273000\n",
            },
            None,
        ),
        (
            {  # 150 and more is a sensor that is not connected
                "sys/class/hwmon/hwmon0/name": "k10temp\n",
                "sys/class/hwmon/hwmon0/temp1_input": "149900\n",
                "sys/class/hwmon/hwmon0/temp2_input": "150000\n",
                "sys/class/hwmon/hwmon0/temp3_input": "255000\n",
            },
            149.9,
        ),
        (
            {
                "sys/class/hwmon/hwmon0/name": "k10temp\n",
                "sys/class/hwmon/hwmon0/temp1_input": "nonsense\n",
            },
            None,
        ),
    ],
)
def test_the_processors_own_sensors_count_and_no_others(
    tree: Tree, files: dict[str, str], expected: float | None
) -> None:
    assert PowerReader(tree(files), on_linux=True).temperature_c() == expected


@pytest.mark.parametrize(
    ("battery_said", "expected"),
    [
        (None, Power(on_mains=True)),
        (SimpleNamespace(percent=80, power_plugged=True), Power(True, 80.0)),
        (SimpleNamespace(percent=40, power_plugged=False), Power(False, 40.0)),
    ],
)
def test_elsewhere_psutil_is_asked(
    tree: Tree, monkeypatch: pytest.MonkeyPatch, battery_said: Any, expected: Power
) -> None:
    monkeypatch.setattr(psutil, "sensors_battery", lambda: battery_said, raising=False)
    monkeypatch.setattr(
        psutil,
        "sensors_temperatures",
        lambda: {
            "cpu": [SimpleNamespace(current=55.0)],
            "odd": [SimpleNamespace(current=150.0), SimpleNamespace(current=0.5)],
        },
        raising=False,
    )
    reader = PowerReader(tree({}), on_linux=False)
    assert reader.power() == expected
    assert reader.temperature_c() == 55.0


def test_where_psutil_cannot_tell_it_is_unknown_with_the_reason(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing() -> None:
        raise NotImplementedError("no interface")

    reader = PowerReader(tree({}), on_linux=False)
    monkeypatch.setattr(psutil, "sensors_battery", failing, raising=False)
    monkeypatch.setattr(psutil, "sensors_temperatures", failing, raising=False)
    assert reader.power() == Power(None, None, "it cannot be read (no interface)")
    assert reader.temperature_c() is None
    monkeypatch.delattr(psutil, "sensors_battery")
    monkeypatch.delattr(psutil, "sensors_temperatures")
    assert reader.power().why_unknown.startswith("it cannot be read on")
    assert reader.temperature_c() is None
    unsure = SimpleNamespace(percent=40, power_plugged=None)
    monkeypatch.setattr(psutil, "sensors_battery", lambda: unsure, raising=False)
    assert reader.power().on_mains is None
