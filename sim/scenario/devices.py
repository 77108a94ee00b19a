"""Classes of devices that every scenario knows; its own `devices` add to them or replace them.

A speed of 1 is the mini-PC's. The others are what people see with vision models of ResNet-50's size at
batch one, in round numbers: the point is the spread of a real mesh (three hundred to one), not a
benchmark. A scenario that wants its own fleet's figures measures them and writes a class.
"""

from __future__ import annotations

from typing import Final

from meshnode.sim.scenario.model import Device

BUILT_IN: Final[dict[str, Device]] = {
    "raspberry-pi": Device(speed=0.2, slots=1, cpus=4, memory_gb=4.0),
    "phone": Device(speed=0.5, slots=1, cpus=8, memory_gb=6.0, battery=True),
    "mini-pc": Device(speed=1.0, slots=2, cpus=4, memory_gb=8.0),
    "laptop": Device(speed=2.0, slots=2, cpus=8, memory_gb=16.0, battery=True),
    "server": Device(speed=4.0, slots=8, cpus=32, memory_gb=128.0),
    "jetson": Device(speed=5.0, slots=2, cpus=6, memory_gb=8.0),
    "workstation": Device(speed=10.0, slots=4, cpus=16, memory_gb=64.0),
    "a100": Device(speed=50.0, slots=4, cpus=32, memory_gb=80.0),
    "h100": Device(speed=90.0, slots=4, cpus=52, memory_gb=80.0),
}
"""The classes by name."""

REASONS: Final[dict[str, str]] = {
    "raspberry-pi": "four small cores without wide vector units, a fifth of a mini-PC; one run fills it",
    "phone": "fast cores for a second, then heat: half a mini-PC if it is to last; on battery",
    "mini-pc": "four efficient cores (Intel N100 class), the least that people buy to serve with",
    "laptop": "six to eight fast cores, thermally limited; on battery when its lid is about to close",
    "server": "per request 4 times a mini-PC, as one run takes several of its 32 cores; 8 runs side by side",
    "jetson": "Orin-Nano-like: a small GPU at 7 to 15 W, shared by two streams",
    "workstation": "one consumer GPU; 1:10 to a mini-PC, as in the published reference simulations",
    "a100": "a data-centre GPU; 1:50 to a mini-PC, as there; what a replica may take is GPU memory",
    "h100": "one generation later; not quite twice an A100 at batch one",
}
"""Why each class is as it is."""


def device(name: str, own: dict[str, Device]) -> Device | None:
    """Return a class, a scenario's own before a built-in one; None if there is none of this name."""
    return own.get(name) or BUILT_IN.get(name)
