"""A node's capabilities: what it tells of its machine, and how others read it.

The one place that knows the words. A node writes a `Capabilities` into its signed record
(`to_record`); all others read it back from there (`read`, or a single fact with `cpus_of` and its
like). A record is the word of another node, of any version and any honesty, so reading never fails:
what makes no sense counts as not said, numbers are held within bounds, texts and lists are cut.

| key | meaning |
|---|---|
| `cpus`, `memory_bytes` | processors and memory that the node may use: after containers' and the owner's limits |
| `os`, `architecture` | such as `linux`, `x86_64` |
| `runtimes` | what it can execute |
| `cpu` | the processor: `model`, `physical_cores`, `logical_cores`, `max_mhz` |
| `memory_total_bytes` | of the machine, or of the container that it runs in |
| `disk` | of the data folder: `total_bytes`, `free_bytes` (coarse) |
| `power` | `mains`, `battery` or `unknown` |
| `accelerators` | each with `kind`, `name`, and where known `memory_bytes`, `driver`, `compute` |
| `absent` | what was looked for and is not there, as sentences |
| `runtime_details` | by runtime: `version`, `providers` |
| `speed` | what the speed probe measured (`meshnode.hardware.probe`) |
| `limits` | what the owner set, and under `not_enforced` what this platform cannot keep |
| `paused` | why the node serves nothing at present; absent while it serves |
| `cost` | what an hour of it costs, in a unit that the mesh's owners agree on; absent for nothing |
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from meshnode.limits import (
    MAX_CAPABILITIES_BYTES,
    MAX_CAPABILITY_ITEMS,
    MAX_CAPABILITY_TEXT_LENGTH,
    MAX_CLAIMED_COST,
    MAX_CLAIMED_CPUS,
    MAX_CLAIMED_MEMORY_BYTES,
)

SPEEDS: Final = (
    "matmul_gflops",
    "matmul_gflops_one_core",
    "memory_gb_per_s",
    "disk_write_mb_per_s",
)
"""What the speed probe measures, each as a number above 0."""

POWERS: Final = ("mains", "battery", "unknown")
"""What a machine can run on, as far as it can be told."""


class Cpu(msgspec.Struct, frozen=True, omit_defaults=True):
    """The processor; zeros and an empty name where something is not known."""

    model: str = ""
    physical_cores: int = 0
    logical_cores: int = 0
    max_mhz: int = 0


class Disk(msgspec.Struct, frozen=True, omit_defaults=True):
    """The file system of the data folder."""

    total_bytes: int = 0
    free_bytes: int = 0


class Accelerator(msgspec.Struct, frozen=True, omit_defaults=True):
    """Something that computes besides the processor.

    Attributes:
        kind: `cuda`, `rocm`, `apple`, `edgetpu`, `intel-gpu` or `intel-npu`.
        name: For people.
        memory_bytes: Its own memory, or that it shares where it has none; 0 if it is not known.
        driver: Version or name of its driver, or empty.
        compute: What programs are built for: a compute capability (`9.0`), an ISA (`gfx90a`).
    """

    kind: str
    name: str = ""
    memory_bytes: int = 0
    driver: str = ""
    compute: str = ""


_LEAST_RUNTIMES = 8  # all that there are, and a few


class RuntimeDetails(msgspec.Struct, frozen=True, omit_defaults=True):
    """A runtime: its version, the execution providers that were built in, and what it can run on.

    `missing` says why it cannot run anything, with what to install; empty if it can.
    """

    version: str = ""
    providers: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()
    missing: str = ""


class Limits(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the owner set. `not_enforced` says what this platform cannot keep, and why."""

    max_memory_bytes: int = 0
    max_cpus: int = 0
    nice: int = 0
    only_on_mains: bool = False
    max_temperature_c: float | None = None
    not_enforced: tuple[str, ...] = ()


class Capabilities(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """Everything that a node tells of its machine; the module's text has the table."""

    cpus: float = 0
    memory_bytes: int = 0
    os: str = ""
    architecture: str = ""
    runtimes: tuple[str, ...] = ()
    cpu: Cpu = Cpu()
    memory_total_bytes: int = 0
    disk: Disk = Disk()
    power: str = "unknown"
    accelerators: tuple[Accelerator, ...] = ()
    absent: tuple[str, ...] = ()
    runtime_details: dict[str, RuntimeDetails] = msgspec.field(default_factory=dict)
    speed: dict[str, float] = msgspec.field(default_factory=dict)
    limits: Limits = Limits()
    paused: str = ""
    cost: float = 0

    def to_record(self) -> dict[str, Any]:
        """Return it as a record holds it, in at most `MAX_CAPABILITIES_BYTES`.

        What does not fit goes in this order: sentences about what is absent, the runtimes'
        providers and what they miss, drivers and ISAs of accelerators, accelerators beyond the first
        four, what is not enforced, the runtimes' devices, and then all but what placement needs.
        """
        # Cleaned first: others read it by the same limits.
        documents = [_document(each) for each in _ever_shorter(read(_document(self)))]
        fitting = (
            each
            for each in documents
            if len(msgspec.msgpack.encode(each)) <= MAX_CAPABILITIES_BYTES
        )
        return next(fitting, documents[-1])


def _document(facts: Capabilities) -> dict[str, Any]:
    """Return it in plain values, as another node decodes it, without what is empty."""
    plain: dict[str, Any] = msgspec.msgpack.decode(msgspec.msgpack.encode(facts))
    return {key: value for key, value in plain.items() if value not in ({}, [])}


def _ever_shorter(full: Capabilities) -> list[Capabilities]:
    replace = msgspec.structs.replace
    forms = [full, replace(full, absent=())]
    details = {
        name: replace(each, providers=(), missing="") for name, each in full.runtime_details.items()
    }
    forms.append(replace(forms[-1], runtime_details=details))
    plain = tuple(replace(each, driver="", compute="") for each in full.accelerators)
    forms.append(replace(forms[-1], accelerators=plain))
    forms.append(replace(forms[-1], accelerators=plain[:4]))
    forms.append(replace(forms[-1], limits=replace(full.limits, not_enforced=())))
    bare = {name: RuntimeDetails(each.version) for name, each in full.runtime_details.items()}
    forms.append(replace(forms[-1], runtime_details=bare))
    least = Capabilities(
        cpus=full.cpus,
        memory_bytes=full.memory_bytes,
        os=full.os,
        architecture=full.architecture,
        runtimes=full.runtimes[:_LEAST_RUNTIMES],
        power=full.power,
        paused=full.paused,
        cost=full.cost,
    )
    return [*forms, least]


def shown(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record's capabilities for people and programs, with every list that has a place."""
    return {
        "cpus": 0,
        "memory_bytes": 0,
        "os": "",
        "architecture": "",
        "runtimes": [],
        "power": "unknown",
        "accelerators": [],
        "absent": [],
        **_document(read(raw)),
    }


def read(raw: Mapping[str, Any]) -> Capabilities:
    """Read a record's capabilities, whatever they are; what makes no sense counts as not said."""
    cpu, disk = _mapping(raw.get("cpu")), _mapping(raw.get("disk"))
    power = raw.get("power")
    return Capabilities(
        cpus=cpus_of(raw),
        memory_bytes=memory_of(raw),
        os=_text(raw.get("os")),
        architecture=_text(raw.get("architecture")),
        runtimes=runtimes_of(raw),
        cpu=Cpu(
            _text(cpu.get("model")),
            _count(cpu.get("physical_cores"), MAX_CLAIMED_CPUS),
            _count(cpu.get("logical_cores"), MAX_CLAIMED_CPUS),
            _count(cpu.get("max_mhz"), 1_000_000),
        ),
        memory_total_bytes=_bytes(raw.get("memory_total_bytes")),
        disk=Disk(_bytes(disk.get("total_bytes")), _bytes(disk.get("free_bytes"))),
        power=power if isinstance(power, str) and power in POWERS else "unknown",
        accelerators=tuple(map(_accelerator, _mappings(raw.get("accelerators")))),
        absent=_texts(raw.get("absent")),
        runtime_details=_runtime_details(raw.get("runtime_details")),
        speed=_speed(raw.get("speed")),
        limits=_limits(_mapping(raw.get("limits"))),
        paused=paused_of(raw),
        cost=cost_of(raw),
    )


_ACCELERATING = ("cuda", "tensorrt", "rocm", "migraphx", "coreml", "dml", "mps")
"""Words in the names of execution providers and devices that compute elsewhere than on the processor."""


def cpus_of(raw: Mapping[str, Any]) -> float:
    """Return the processors that a node may use, or 0 if it does not say."""
    return _number(raw.get("cpus"), MAX_CLAIMED_CPUS)


def memory_of(raw: Mapping[str, Any]) -> int:
    """Return the memory in bytes that a node may use, or 0 if it does not say."""
    return _bytes(raw.get("memory_bytes"))


def runtimes_of(raw: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of what a node can execute."""
    return _texts(raw.get("runtimes"))


def usable_of(raw: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the runtimes of which a node says that they can run something, offered or not."""
    details = _runtime_details(raw.get("runtime_details"))
    return tuple(name for name, each in details.items() if not each.missing and each.version)


def accelerators_of(raw: Mapping[str, Any]) -> tuple[Accelerator, ...]:
    """Return the accelerators that a node says it has, used by a runtime or not."""
    return tuple(map(_accelerator, _mappings(raw.get("accelerators"))))


def accelerating_of(raw: Mapping[str, Any]) -> frozenset[str]:
    """Return the runtimes that compute on an accelerator of the node."""
    details = _runtime_details(raw.get("runtime_details"))
    # What was built in need not run here; older nodes say no more than that.
    return frozenset(
        runtime
        for runtime, each in details.items()
        if any(
            word in name.lower()
            for name in each.devices or each.providers
            for word in _ACCELERATING
        )
    )


def accelerator_bytes_of(raw: Mapping[str, Any]) -> int:
    """Return the memory of the largest accelerator that a runtime of the node uses, or 0 without one."""
    if not accelerating_of(raw):
        return 0
    return max((each.memory_bytes for each in accelerators_of(raw)), default=0)


def device_class_of(raw: Mapping[str, Any]) -> str:
    """Return what a node computes with: nodes with the same word are alike in what a larger request costs them.

    Its accelerators if it has any, else its processor; empty if it says neither.
    """
    found = [_accelerator(each) for each in _mappings(raw.get("accelerators"))]
    if found:
        return " + ".join(sorted({f"{each.kind} {each.name}" for each in found}))
    return _text(_mapping(raw.get("cpu")).get("model"))


def cost_of(raw: Mapping[str, Any]) -> float:
    """Return what an hour of a node costs, or 0 if it does not say."""
    return _number(raw.get("cost"), MAX_CLAIMED_COST)


def on_battery_of(raw: Mapping[str, Any]) -> bool:
    """Whether a node says in its record that it runs on a battery."""
    return raw.get("power") == "battery"


def paused_of(raw: Mapping[str, Any]) -> str:
    """Return why a node serves nothing at present, or an empty text."""
    return _text(raw.get("paused"))


def _accelerator(raw: Mapping[str, Any]) -> Accelerator:
    return Accelerator(
        _text(raw.get("kind")) or "unknown",
        _text(raw.get("name")),
        _bytes(raw.get("memory_bytes")),
        _text(raw.get("driver")),
        _text(raw.get("compute")),
    )


def _runtime_details(raw: object) -> dict[str, RuntimeDetails]:
    pairs = [*_mapping(raw).items()][:MAX_CAPABILITY_ITEMS]
    return {
        _text(name): RuntimeDetails(
            _text(_mapping(each).get("version")),
            _texts(_mapping(each).get("providers")),
            _texts(_mapping(each).get("devices")),
            _text(_mapping(each).get("missing")),
        )
        for name, each in pairs
    }


def _speed(raw: object) -> dict[str, float]:
    said = _mapping(raw)
    values = {name: _number(said.get(name), 1e9) for name in SPEEDS}
    return {name: value for name, value in values.items() if value > 0}


def _limits(raw: Mapping[str, Any]) -> Limits:
    return Limits(
        _bytes(raw.get("max_memory_bytes")),
        _count(raw.get("max_cpus"), MAX_CLAIMED_CPUS),
        _count(raw.get("nice"), 19),
        raw.get("only_on_mains") is True,
        _number(raw.get("max_temperature_c"), 1000) or None,
        _texts(raw.get("not_enforced")),
    )


def _number(value: object, most: float) -> float:
    """Return a number from 0 to `most`, or 0 for what is no such number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return 0
    if isinstance(value, float) and not math.isfinite(value):
        return 0
    return min(most, max(0, value))


def _count(value: object, most: int) -> int:
    return int(_number(value, most))


def _bytes(value: object) -> int:
    return _count(value, MAX_CLAIMED_MEMORY_BYTES)


def _text(value: object) -> str:
    return value[:MAX_CAPABILITY_TEXT_LENGTH] if isinstance(value, str) else ""


def _texts(value: object) -> tuple[str, ...]:
    items = value[:MAX_CAPABILITY_ITEMS] if isinstance(value, list | tuple) else ()
    return tuple(filter(None, map(_text, items)))


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _mappings(value: object) -> list[Mapping[str, Any]]:
    items = value[:MAX_CAPABILITY_ITEMS] if isinstance(value, list | tuple) else ()
    return [item for item in items if isinstance(item, Mapping)]
