"""Watches the machine for its owner: what it is, how it fares, and whether it may serve.

Every second (every ten where nothing depends on it) a look at power, temperature and memory goes
through the owner's limits (`meshnode.owner_limits`), and what follows is done:

| decision | what is done |
|---|---|
| paused | the mesh is told (`CapabilitiesChanged`) at once; from the next look on, requests that still come are refused; those that run go on |
| memory above its limit | requests are refused with `Saturated`, and free memory goes back to the system |
| neither | requests are taken |

What the machine is goes into the node's record, and is told anew when it changed: at most every
`MIN_CAPABILITIES_INTERVAL_S`, pausing and resuming apart.
"""

from __future__ import annotations

import asyncio
import logging
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import msgspec

from meshnode.capabilities import Capabilities, Limits, RuntimeDetails
from meshnode.daemon.enforcement import not_enforced
from meshnode.daemon.surroundings import Hardware, RealHardware
from meshnode.errors import ConfigError, MeshError, NotServing, Saturated
from meshnode.hardware.accelerators import missing_providers
from meshnode.hardware.memory import give_memory_back
from meshnode.hardware.speed import (
    ProbeFailed,
    copy_bytes_within,
    fingerprint,
    kept,
    package_versions,
    probe_least_bytes,
    to_keep,
)
from meshnode.limits import MIN_CAPABILITIES_INTERVAL_S
from meshnode.models.workers import isolation
from meshnode.node_events import CapabilitiesChanged
from meshnode.owner_limits import (
    Decision,
    OwnerLimits,
    OwnerPolicy,
    Reading,
    SteadyPower,
    size_text,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshnode.advertisement import AcceleratorLoad
    from meshnode.clock import Clock
    from meshnode.datafolder import DataFolder
    from meshnode.events import Event
    from meshnode.options import JoinOptions

log = logging.getLogger(__name__)

LOOK_INTERVAL_S = 1.0
"""Seconds between looks where the owner set a limit, or an accelerator tells how busy it is."""

IDLE_LOOK_INTERVAL_S = 10.0
"""Seconds between looks otherwise: what they find is only shown."""

HELD_BACK_S = 30.0
"""How long a processor that was slowed down for its heat counts as slow: it cools, and is slowed down again."""

PROBE_DELAY_S = 3.0
"""Seconds after the start before the speed is measured: the first belong to joining and serving."""

PROBE_PATIENCE_S = 60.0
"""How long the probe waits for a moment without requests, which both would suffer from."""

_COUNTED = frozenset({"cuda", "rocm"})  # kinds of accelerators that programs choose by a number
_DISK_STEP = 0.1  # a change of free space, as a share of what was told, that is worth telling
_POWER_WORDS = {True: "mains", False: "battery", None: "unknown"}


class Gate(Protocol):
    """What takes requests or refuses them: the model server."""

    def refuse(self, error: type[MeshError], reason: str) -> None:
        """Refuse new requests."""
        ...

    def accept(self) -> None:
        """Take them."""
        ...


class Fares(NamedTuple):
    """How the machine fares, for the node's load.

    Attributes:
        temperature_c: Of its processor, or None.
        battery_percent: Charge of its battery, or None.
        accelerators: How busy those are that tell.
        on_battery: Whether it runs on a battery; None where it cannot be told.
        held_back: Whether its processor was slowed down for its heat lately.
    """

    temperature_c: float | None = None
    battery_percent: float | None = None
    accelerators: tuple[AcceleratorLoad, ...] = ()
    on_battery: bool | None = None
    held_back: bool = False


class Watch:
    """One daemon's eye on its machine.

    Attributes:
        fares: What the last look saw.
        cpus: Processors that runtimes may use: the machine's or the owner's number.
    """

    def __init__(
        self,
        options: JoinOptions,
        folder: DataFolder,
        clock: Clock,
        *,
        hardware: Hardware | None = None,
    ) -> None:
        """Look at the machine for the first time; nothing is done about it yet.

        Args:
            options: The owner's limits.
            folder: The data folder: its disk, and what was measured before.
            clock: For the limits' hysteresis.
            hardware: The machine; the real one by default.
        """
        self._options = options
        self._folder = folder
        self._clock = clock
        self._hardware: Hardware = hardware or RealHardware()
        self._machine = self._hardware.machine()
        self._accelerators = self._hardware.accelerators()
        self._installed = _installed_runtimes()
        self._runtimes = self._hardware.runtimes(allow_code=options.allow_code)
        self._fingerprint = fingerprint(self._machine, self._accelerators.found)
        self._measured = kept(folder.hardware(), self._fingerprint)
        limits = OwnerLimits(
            options.max_memory_bytes, options.only_on_mains, options.max_temperature_c
        )
        self._policy = OwnerPolicy(limits)
        self._not_enforced = self._shortcomings()
        most = options.max_cpus or self._machine.usable_cpus
        self.cpus = min(self._machine.usable_cpus, most)
        self.fares = Fares()
        self._steady_power = SteadyPower()
        self._power = "unknown"
        self._is_trimming = False
        self._held_back_until = float("-inf")
        self._unmeasured = ""  # why the speed is not known, as a sentence
        self._told = self._facts(self._read())
        self._told_at = float("-inf")

    def __repr__(self) -> str:
        return f"<Watch: {self._told.paused or 'serving'}, on {self._power}>"

    @property
    def memory_bytes(self) -> int:
        """What this node may use of the machine's memory."""
        return self._told.memory_bytes

    def first(self) -> dict[str, Any]:
        """Return the capabilities for the record that this node starts with, and say what is odd."""
        for sentence in self._not_enforced:
            log.warning("not enforced: %s", sentence)
        limit_bytes = self._options.max_memory_bytes
        if limit_bytes is not None and (used := self._hardware.rss_bytes()) > limit_bytes:
            log.warning(
                "--max-memory %s: this node alone takes %s, so it will load no model",
                size_text(limit_bytes), size_text(used),
            )  # fmt: skip
        if self._told.paused:
            log.info("paused: %s", self._told.paused)
        return self._told.to_record()

    def free_bytes(self, available_bytes: int) -> int:
        """Return the memory that is left to this node.

        Args:
            available_bytes: What the machine has free; a container and the owner may allow less.
        """
        allowed_bytes = self._told.memory_bytes - self._hardware.rss_bytes()
        return max(0, min(available_bytes, allowed_bytes))

    @property
    def total_bytes(self) -> int:
        """The machine's memory; 0 if it does not tell."""
        return self._machine.memory_bytes

    @property
    def gpus(self) -> int:
        """Accelerators whose instances are counted by themselves."""
        return sum(each.kind in _COUNTED for each in self._accelerators.found)

    @property
    def interval_s(self) -> float:
        """Seconds between looks."""
        limited = self._policy.limits != OwnerLimits()
        return LOOK_INTERVAL_S if limited or self._accelerators.measurable else IDLE_LOOK_INTERVAL_S

    async def run(self, tell: Callable[[Event], None], gate: Gate) -> None:
        """Look at the machine until cancelled.

        Args:
            tell: Takes events for the node.
            gate: What takes requests.
        """
        while True:
            await asyncio.sleep(self.interval_s)
            if self._accelerators.measurable:
                loads = await asyncio.to_thread(self._accelerators.loads)
                self.fares = self.fares._replace(accelerators=loads)
            self.look(tell, gate)
            if self._is_trimming:
                await asyncio.to_thread(give_memory_back)

    def look(self, tell: Callable[[Event], None], gate: Gate) -> None:
        """Look once, and do what follows."""
        decision = self._read()
        was_paused = bool(self._told.paused)
        if decision.paused and was_paused:
            gate.refuse(NotServing, f"this node is paused: {decision.paused}")
        elif decision.refusing:
            if not self._is_trimming:
                log.warning("requests are refused: %s", decision.refusing)
            gate.refuse(Saturated, decision.refusing)
        else:
            gate.accept()
        self._is_trimming = bool(decision.refusing)
        self._tell_if_changed(self._facts(decision), tell)

    def _tell_if_changed(self, facts: Capabilities, tell: Callable[[Event], None]) -> None:
        now = self._clock.now()
        paused_changed = facts.paused != self._told.paused
        may_tell = now - self._told_at >= MIN_CAPABILITIES_INTERVAL_S
        if not paused_changed and not (may_tell and _is_news(self._told, facts)):
            return
        try:
            tell(CapabilitiesChanged(facts.to_record()))
        except MeshError as error:
            log.error("what this machine is cannot be told: %s", error)
        self._told, self._told_at = facts, now

    async def measure_speed(self, is_busy: Callable[[], bool]) -> None:
        """Measure this machine's speed, unless it is known; keep what was found.

        The owner's limits hold for it too: it waits while the node is paused, and takes no more
        memory than is left.
        """
        if self._measured is not None:
            return
        await asyncio.sleep(PROBE_DELAY_S)
        await self._good_moment(is_busy)
        limit_bytes = self._options.max_memory_bytes
        room_bytes = None if limit_bytes is None else limit_bytes - self._hardware.rss_bytes()
        copy_bytes = copy_bytes_within(room_bytes, self.cpus)
        if room_bytes is not None and not copy_bytes:
            self._unmeasured = (
                f"speed: not measured, which takes {size_text(probe_least_bytes(self.cpus))} of memory; "
                f"--max-memory leaves {size_text(max(0, room_bytes))}"
            )
            log.warning("%s", self._unmeasured)
            return
        log.info("measuring the speed of this machine once, for some seconds")
        try:
            self._measured = await self._hardware.measure(self._folder.path, self.cpus, copy_bytes)
        except ProbeFailed as error:
            log.warning("the speed of this machine is not known: %s", error)
            return
        at = datetime.fromtimestamp(self._clock.wall_s(), UTC)
        data = to_keep(self._measured, self._fingerprint, f"{at:%Y-%m-%dT%H:%M:%SZ}")
        try:
            self._folder.save_hardware(data)
        except ConfigError as error:
            log.warning("the speed of this machine is measured again at the next start: %s", error)

    async def _good_moment(self, is_busy: Callable[[], bool]) -> None:
        """Wait for as long as the node is paused, and a while for requests to end."""
        told = False
        deadline = self._clock.now() + PROBE_PATIENCE_S
        while (paused := self._told.paused) or (is_busy() and self._clock.now() < deadline):
            if paused:
                deadline = self._clock.now() + PROBE_PATIENCE_S
                if not told:
                    log.info("the speed of this machine is measured later: %s", paused)
                told = True
            await asyncio.sleep(LOOK_INTERVAL_S)

    def _read(self) -> Decision:
        power = self._hardware.power()
        temperature_c = self._hardware.temperature_c()
        now = self._clock.now()
        self._power = self._steady_power.see(_POWER_WORDS[power.on_mains], now)
        if self._hardware.is_held_back():
            self._held_back_until = now + HELD_BACK_S
        self.fares = self.fares._replace(
            temperature_c=temperature_c,
            battery_percent=power.battery_percent,
            on_battery=None if power.on_mains is None else not power.on_mains,
            held_back=now < self._held_back_until,
        )
        reading = Reading(self._hardware.rss_bytes(), power.on_mains, temperature_c)
        return self._policy.decide(reading, now)

    def _shortcomings(self) -> tuple[str, ...]:
        options = self._options
        found = not_enforced(options.max_cpus, options.nice)
        power = self._hardware.power()
        if options.only_on_mains and power.on_mains is None:
            found.append(f"--only-on-mains: {power.why_unknown}")
        if options.max_temperature_c is not None and self._hardware.temperature_c() is None:
            found.append(
                "--max-temperature: this machine does not tell its processor's temperature"
            )
        if options.allow_code:
            found.extend(isolation.not_enforced(isolation.enforced_here()))
        return tuple(found)

    def _facts(self, decision: Decision) -> Capabilities:
        options, machine, measured = self._options, self._machine, self._measured
        runtimes = measured.runtimes if measured is not None else self._installed
        providers = runtimes["onnx"].providers if "onnx" in runtimes else ()
        found = self._accelerators.found
        absent = self._accelerators.absent + missing_providers(found, providers)
        absent += (self._unmeasured,) if self._unmeasured else ()
        memory_bytes = machine.memory_bytes
        if options.max_memory_bytes is not None:
            memory_bytes = min(memory_bytes, options.max_memory_bytes)
        return Capabilities(
            cpus=self.cpus,
            memory_bytes=memory_bytes,
            os=machine.os,
            architecture=machine.architecture,
            runtimes=self._runtimes,
            cpu=machine.cpu,
            memory_total_bytes=machine.memory_bytes,
            disk=self._hardware.disk(self._folder.path),
            power=self._power,
            accelerators=found,
            absent=absent,
            runtime_details=runtimes,
            speed=measured.speed if measured is not None else {},
            limits=Limits(
                options.max_memory_bytes or 0,
                options.max_cpus or 0,
                options.nice or 0,
                options.only_on_mains,
                options.max_temperature_c,
                self._not_enforced,
            ),
            paused=decision.paused,
            cost=options.cost,
        )


def _installed_runtimes() -> dict[str, RuntimeDetails]:
    """Return what is known of the runtimes before the probe has asked them."""
    versions = package_versions()
    found = [version for name, version in versions.items() if name.startswith("onnxruntime")]
    return {"onnx": RuntimeDetails(found[0])} if found else {}


def _is_news(told: Capabilities, facts: Capabilities) -> bool:
    """Whether anything changed but free space by a little."""
    if abs(told.disk.free_bytes - facts.disk.free_bytes) > _DISK_STEP * told.disk.free_bytes:
        return True
    return msgspec.structs.replace(facts, disk=told.disk) != told
