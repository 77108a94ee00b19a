"""What a daemon takes from the machine that it runs on, in one place.

Everything that a daemon cannot decide by itself comes in here: time, chance, the machine and its
sensors, what executes models, what secures its links, and whom it talks to besides the mesh (the
person at its terminal, its supervisor). `real_surroundings` is the machine. The simulator
(`meshnode.sim.virtual`) gives a daemon other surroundings and the same code runs in virtual time, with
one seed for all chance. Sockets, timers, threads and signals are the event loop's, and come with it.
"""

from __future__ import annotations

import os
import random
import secrets
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn, Protocol

from meshnode.daemon import ports, terminal
from meshnode.daemon.enforcement import rss_bytes
from meshnode.daemon.supervisor import notify
from meshnode.hardware import machine, speed, usage
from meshnode.hardware.accelerators import Accelerators
from meshnode.hardware.power import PowerReader
from meshnode.models.runtimes.registry import all_runtimes, installed_runtimes
from meshnode.models.serving.server import ModelServer
from meshnode.net.clock import RealClock
from meshnode.net.tls import client_tls

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from meshnode.advertisement import AcceleratorLoad
    from meshnode.capabilities import Accelerator, Disk
    from meshnode.clock import Clock
    from meshnode.effects import Emit
    from meshnode.hardware.machine import Machine
    from meshnode.hardware.power import Power
    from meshnode.hardware.speed import Measured
    from meshnode.models.runtimes.base import Environment, Runtime
    from meshnode.net.tls import ServerTls
    from meshnode.node import Node


class FoundAccelerators(Protocol):
    """What computes besides the processor; see `meshnode.hardware.accelerators.Accelerators`."""

    found: tuple[Accelerator, ...]
    absent: tuple[str, ...]

    @property
    def measurable(self) -> bool:
        """Whether any of them tells how busy it is."""
        ...

    def loads(self) -> tuple[AcceleratorLoad, ...]:
        """Return how busy those are that tell."""
        ...


class Hardware(Protocol):
    """The machine: what it is, and how it fares now."""

    def machine(self) -> Machine:
        """Return what it is."""
        ...

    def disk(self, folder: Path) -> Disk:
        """Return the size of the file system under a folder, and what is free of it."""
        ...

    def accelerators(self) -> FoundAccelerators:
        """Look for what computes besides the processor."""
        ...

    def power(self) -> Power:
        """Return what it runs on."""
        ...

    def temperature_c(self) -> float | None:
        """Return how hot its processor is, in degrees Celsius, or None."""
        ...

    def is_held_back(self) -> bool:
        """Whether its processor was slowed down for its heat since the last call, or is about to be."""
        ...

    def utilisation(self) -> tuple[float, int]:
        """Return the CPU load since the last call (0 to 1 over all cores) and the free memory in bytes."""
        ...

    def rss_bytes(self) -> int:
        """Return the memory that this process takes."""
        ...

    def runtimes(self, *, allow_code: bool) -> tuple[str, ...]:
        """Return the runtimes whose libraries are here; those of models that are code only if allowed."""
        ...

    async def measure(self, folder: Path, cpus: int, copy_bytes: int) -> Measured:
        """Measure its speed; see `meshnode.hardware.speed.measure`.

        Raises:
            ProbeFailed: if that gave no result.
        """
        ...


class RealHardware:
    """The machine that this process runs on."""

    def __init__(self) -> None:
        """Find its sensors."""
        self._sensors = PowerReader()

    def __repr__(self) -> str:
        return f"<RealHardware {self._sensors!r}>"

    def machine(self) -> Machine:
        """Return what it is."""
        return machine.this_machine()

    def disk(self, folder: Path) -> Disk:
        """Return the size of the file system under a folder, and what is free of it."""
        return machine.disk_of(folder)

    def accelerators(self) -> FoundAccelerators:
        """Look for what computes besides the processor."""
        return Accelerators()

    def power(self) -> Power:
        """Return what it runs on."""
        return self._sensors.power()

    def temperature_c(self) -> float | None:
        """Return how hot its processor is, in degrees Celsius, or None."""
        return self._sensors.temperature_c()

    def is_held_back(self) -> bool:
        """Whether its processor was slowed down for its heat since the last call, or is about to be."""
        return self._sensors.is_held_back()

    def utilisation(self) -> tuple[float, int]:
        """Return the CPU load since the last call (0 to 1 over all cores) and the free memory in bytes."""
        return usage.utilisation()

    def rss_bytes(self) -> int:
        """Return the memory that this process takes."""
        return rss_bytes()

    def runtimes(self, *, allow_code: bool) -> tuple[str, ...]:
        """Return the runtimes whose libraries are here; those of models that are code only if allowed."""
        return installed_runtimes(allow_code=allow_code)

    async def measure(self, folder: Path, cpus: int, copy_bytes: int) -> Measured:
        """Measure its speed; see `meshnode.hardware.speed.measure`."""
        return await speed.measure(folder, cpus, copy_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What one daemon takes from outside.

    Attributes:
        clock: Its monotonic and its wall clock.
        random_bytes: Draws so many bytes that nobody can guess, for keys, nonces and the seeds of `rng`.
        hardware: Its machine.
        runtimes: Makes what executes models, by name.
        model_server: Makes what serves them, of runtimes by name and the number of processors.
        mesh_tls: Makes this start's TLS for incoming links; gets the data folder. Raises ConfigError.
        dial_tls: Makes the TLS context for links that it opens.
        platform: As `sys.platform`: decides where its control channel is.
        say: Prints a line for the person who started it.
        notify: Tells its supervisor something, as sd_notify.
        exit_now: Ends the process at once; gets the exit code.
        made: Told of its cores once they are made, before they hear of anything.
        reported: Told of everything that they report.
    """

    clock: Clock
    random_bytes: Callable[[int], bytes]
    hardware: Hardware
    runtimes: Callable[[Environment], Mapping[str, Runtime]]
    model_server: Callable[[Mapping[str, Runtime], int], ModelServer]
    mesh_tls: Callable[[Path], ServerTls]
    dial_tls: Callable[[], ssl.SSLContext]
    platform: str
    say: Callable[[str], None]
    notify: Callable[[str], None]
    exit_now: Callable[[int], NoReturn]
    made: Callable[[Node], None]
    reported: Callable[[Emit], None]

    def rng(self) -> random.Random:
        """Return a generator of its own, for cores that draw."""
        return random.Random(int.from_bytes(self.random_bytes(16), "big"))


def real_surroundings() -> Surroundings:
    """Return this machine's."""
    return Surroundings(
        clock=RealClock(),
        random_bytes=secrets.token_bytes,
        hardware=RealHardware(),
        runtimes=all_runtimes,
        model_server=_model_server,
        mesh_tls=ports.mesh_tls,
        dial_tls=client_tls,
        platform=sys.platform,
        say=terminal.say,
        notify=notify,
        exit_now=_exit_now,
        made=_not_watched,
        reported=_not_recorded,
    )


def _model_server(runtimes: Mapping[str, Runtime], cores: int) -> ModelServer:
    return ModelServer(runtimes, cores=cores)


def _exit_now(code: int) -> NoReturn:
    terminal.flush()
    os._exit(code)


def _not_watched(node: Node) -> None:
    """Nobody looks over the cores' shoulders."""
    del node


def _not_recorded(emit: Emit) -> None:
    """The log has it; nobody else wants to know."""
    del emit
