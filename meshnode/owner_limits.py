"""What a node's owner allows it, decided from readings of the machine.

The owner's limits (`--max-memory`, `--only-on-mains`, `--max-temperature`) and a reading every second
give a decision: serve, pause, or refuse for want of memory. Each limit is a small state machine of its
own, with hysteresis, so that a value that trembles around its limit does not make the node come and go:

=============  ===============================  ================================================
limit          it is over the limit             it is back once
=============  ===============================  ================================================
mains          at once when on battery          it was on mains for `MAINS_STEADY_S`
temperature    at once above the limit          it was `TEMPERATURE_STEP_C` or more below the limit
                                                for `TEMPERATURE_STEADY_S`
memory         at once above the limit          it is below `MEMORY_RESUME` of the limit, or was within
                                                the limit for `MEMORY_STEADY_S`
=============  ===============================  ================================================

So a node resumes late and pauses at once: the owner's word counts more than another second of work.
A value that cannot be read says nothing: the state stays as it was, at first "within the limit".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

MAINS_STEADY_S: Final = 5.0
"""Seconds on mains before a node serves again: a plug that is put in makes and breaks a few times."""

POWER_STEADY_S: Final = 120.0
"""Seconds for which a machine must be on battery, or on mains again, before placement is told so: a laptop that is
unplugged for a minute keeps its replicas."""

TEMPERATURE_STEP_C: Final = 5.0
"""Degrees Celsius below the limit that count as cool: an idle processor cools that far at once."""

TEMPERATURE_STEADY_S: Final = 30.0
"""Seconds for which it must stay cool: a case and its heat sink take longer than the processor."""

MEMORY_RESUME: Final = 0.95
"""Share of the memory limit below which requests are taken again at once."""

MEMORY_STEADY_S: Final = 10.0
"""Seconds within the limit after which they are taken again too: a node whose models fill most of
what it may use would wait for ever to fall below `MEMORY_RESUME`."""

LOAD_FACTOR: Final = 1.1
"""Memory of a loaded model per byte of its files; ONNX Runtime takes 1.05 for plain weights."""

LOAD_COPY_BYTES: Final = 2 * 1024**3
"""While it opens a model, ONNX Runtime holds the file beside the weights read from it. An ONNX file
has at most so many bytes (protobuf's limit); larger weights lie in files that it maps."""

LOAD_OVERHEAD_BYTES: Final = 32 * 1024**2
"""Memory that a model needs besides: the runtime's own, and the tensors between its layers."""

ON_BATTERY: Final = "on battery"
"""Why a node pauses that may serve on mains only."""


@dataclass(frozen=True, slots=True)
class OwnerLimits:
    """What the owner allows.

    Attributes:
        max_memory_bytes: Resident memory of the daemon, or None for no limit.
        only_on_mains: Serve only while the machine is not on battery.
        max_temperature_c: Serve only up to this temperature in degrees Celsius, or None.
    """

    max_memory_bytes: int | None = None
    only_on_mains: bool = False
    max_temperature_c: float | None = None


@dataclass(frozen=True, slots=True)
class Reading:
    """The machine at one moment.

    Attributes:
        rss_bytes: Resident memory of this process.
        on_mains: Whether it runs on mains; None where that cannot be told.
        temperature_c: Of the processor in degrees Celsius; None where it cannot be read.
    """

    rss_bytes: int
    on_mains: bool | None = None
    temperature_c: float | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """What the owner's limits mean now.

    Attributes:
        paused: Why this node's replicas serve nobody, or empty.
        refusing: Why requests are refused for now, or empty: memory is above its limit.
        room_bytes: What a model may take that is loaded now, or None for no limit.
    """

    paused: str = ""
    refusing: str = ""
    room_bytes: int | None = None


class OwnerPolicy:
    """Follows readings; `decide` is its only door."""

    def __init__(self, limits: OwnerLimits) -> None:
        """Begin within all limits; the first reading counts at once."""
        self.limits = limits
        self._battery = _Held(MAINS_STEADY_S)
        self._heat = _Held(TEMPERATURE_STEADY_S)
        self._heat_reason = ""
        self._memory = _Held(MEMORY_STEADY_S)

    def __repr__(self) -> str:
        return f"<OwnerPolicy of {self.limits}: {self._paused() or 'serving'}>"

    def decide(self, reading: Reading, now: float) -> Decision:
        """Return what follows from a reading taken at monotonic second `now`."""
        if self.limits.only_on_mains and reading.on_mains is not None:
            self._battery.see(over=not reading.on_mains, back=reading.on_mains, now=now)
        self._look_at_heat(reading.temperature_c, now)
        return Decision(self._paused(), *self._look_at_memory(reading.rss_bytes, now))

    def _paused(self) -> str:
        reasons = [ON_BATTERY if self._battery.is_over else "", self._heat_reason]
        return "; ".join(filter(None, reasons))

    def _look_at_heat(self, temperature_c: float | None, now: float) -> None:
        limit_c = self.limits.max_temperature_c
        if limit_c is None or temperature_c is None:
            return
        was_over = self._heat.is_over
        cool = temperature_c <= limit_c - TEMPERATURE_STEP_C
        self._heat.see(over=temperature_c > limit_c, back=cool, now=now)
        if not self._heat.is_over:
            self._heat_reason = ""
        elif not was_over:  # told once: a sentence that changes each second would be news each time
            self._heat_reason = f"too hot: {temperature_c:.0f} °C, and the limit is {limit_c:g} °C"

    def _look_at_memory(self, rss_bytes: int, now: float) -> tuple[str, int | None]:
        limit_bytes = self.limits.max_memory_bytes
        if limit_bytes is None:
            return "", None
        over = rss_bytes > limit_bytes
        self._memory.see(over=over, back=not over, now=now)
        if rss_bytes < MEMORY_RESUME * limit_bytes:
            self._memory.is_over = False
        refusing = ""
        if self._memory.is_over:
            refusing = (
                f"this node uses {size_text(rss_bytes)} of memory and its owner allows "
                f"{size_text(limit_bytes)} (--max-memory); try again later"
            )
        return refusing, max(0, limit_bytes - rss_bytes)


class SteadyPower:
    """What a node tells of its power in its record, from readings that come and go.

    Deployments may ask for mains power, and a move of their replicas costs more than a laptop that is carried to
    another desk: what changes is told once it has lasted. Requests avoid a node on battery at once (its load tells).
    """

    def __init__(self) -> None:
        """Begin with nothing read; the first reading counts at once."""
        self._told = ""
        self._differs_since: float | None = None

    def __repr__(self) -> str:
        return f"<SteadyPower: {self._told or 'not read'}>"

    def see(self, power: str, now: float) -> str:
        """Return what is told after a reading at monotonic second `now`."""
        if not self._told or power == self._told:
            self._told, self._differs_since = power, None
        elif self._differs_since is None:
            self._differs_since = now
        elif now - self._differs_since >= POWER_STEADY_S:
            self._told, self._differs_since = power, None
        return self._told


class _Held:
    """Something that is over its limit at once, and back only after it was fine for a while."""

    __slots__ = ("_back_since", "_steady_s", "is_over")

    def __init__(self, steady_s: float) -> None:
        self.is_over = False
        self._steady_s = steady_s
        self._back_since: float | None = None

    def see(self, *, over: bool, back: bool, now: float) -> None:
        if over:
            self.is_over = True
        if not back:
            self._back_since = None
        elif self._back_since is None:
            self._back_since = now
        if self._back_since is not None and now - self._back_since >= self._steady_s:
            self.is_over = False


def load_estimate_bytes(files_bytes: int) -> int:
    """Return the memory that a model takes while it is opened, which is when it takes most.

    That is `LOAD_FACTOR` times its files, and `LOAD_OVERHEAD_BYTES`, and the copy of its file (see
    `LOAD_COPY_BYTES`).

    Args:
        files_bytes: Size of all files of the model's version.
    """
    copy_bytes = min(files_bytes, LOAD_COPY_BYTES)
    return int(LOAD_FACTOR * files_bytes) + copy_bytes + LOAD_OVERHEAD_BYTES


def why_no_room(files_bytes: int, room_bytes: int, limit_bytes: int) -> str:
    """Return why a model may not be loaded, or an empty text if there is room for it."""
    need_bytes = load_estimate_bytes(files_bytes)
    if need_bytes <= room_bytes:
        return ""
    return (
        f"it would take about {size_text(need_bytes)} of memory (its files have "
        f"{size_text(files_bytes)}); this node's owner allows {size_text(limit_bytes)} "
        f"(--max-memory), of which {size_text(room_bytes)} are left"
    )


def size_text(size_bytes: int) -> str:
    """Return a size for people, such as `310 KiB`, `12 MiB`, `1 GiB` or `3.4 GiB`.

    In powers of 1024, as owners write them (`--max-memory 1G`) and as memory is sold.
    """
    for power, name in ((4, "TiB"), (3, "GiB")):
        if size_bytes >= 1024**power:
            return f"{size_bytes / 1024**power:.1f}".removesuffix(".0") + f" {name}"
    if round(size_bytes / 1024) >= 1024 or size_bytes <= 0:
        return f"{size_bytes / 1024**2:.0f} MiB"
    return f"{size_bytes / 1024:.0f} KiB" if size_bytes >= 1024 else f"{size_bytes} bytes"
