"""When a worker process has to go, and when the next one may come: pure decisions.

Each look at a process gives a `Reading`. `verdict` says why it has to be ended, if it has to. `Restarts`
counts how its predecessors fared.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from meshnode.limits import (
    MAX_WORKER_PROCESSES,
    WORKER_CANCEL_FACTOR,
    WORKER_STEADY_S,
    WORKER_STOPPED_LOOKS,
)

if TYPE_CHECKING:
    import random


@dataclass(frozen=True, slots=True)
class Reading:
    """One look at a process.

    Attributes:
        memory_bytes: Resident memory of it and its descendants.
        processes: It and its descendants.
        silent_s: Seconds since its last sign of life.
        overdue_s: Seconds by which the request that is longest cancelled or past its deadline runs on; 0 if
            none does.
        stopped_looks: Looks in a row, this one included, at which it was stopped: nothing runs there until
            somebody lets it go on, while a busy process may be silent for long.
    """

    memory_bytes: int
    processes: int
    silent_s: float
    overdue_s: float = 0.0
    stopped_looks: int = 0


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a process is held to.

    Attributes:
        memory_bytes: See `WorkerSettings.memory_limit_bytes`.
        silence_s: See `WorkerSettings`.
        cancel_grace_s: Likewise.
        processes: It and its descendants.
    """

    memory_bytes: int
    silence_s: float
    cancel_grace_s: float
    processes: int = MAX_WORKER_PROCESSES


def verdict(reading: Reading, bounds: Bounds, longest_run_s: float) -> str:
    """Return why a process must be ended, as a sentence, or an empty text.

    Args:
        reading: The last look.
        bounds: What it is held to.
        longest_run_s: The longest of its runs that ended well, in seconds.
    """
    if reading.memory_bytes > bounds.memory_bytes:
        return (
            f"its process took {_size(reading.memory_bytes)} of memory, above its limit of "
            f"{_size(bounds.memory_bytes)}, and was ended"
        )
    if reading.processes > bounds.processes:
        return f"it started {reading.processes} processes, above the limit of {bounds.processes}, and was ended"
    if reading.silent_s > bounds.silence_s:
        return f"its process gave no sign of life for {reading.silent_s:.0f} s and was ended"
    if reading.stopped_looks >= WORKER_STOPPED_LOOKS:
        return "its process was stopped by a signal, did not go on, and was ended"
    if reading.overdue_s > grace_s(bounds.cancel_grace_s, longest_run_s):
        return (
            f"a request ran on for {reading.overdue_s:.1f} s after nobody waited for it any more, and its process "
            "was ended"
        )
    return ""


def grace_s(cancel_grace_s: float, longest_run_s: float) -> float:
    """Return how long a cancelled request may run on, in seconds.

    A model that usually takes long is not ended for a client that hung up: it comes to its end by itself.
    """
    return max(cancel_grace_s, WORKER_CANCEL_FACTOR * longest_run_s)


class Pace:
    """How fast a process may talk: a bucket of one second's messages."""

    __slots__ = ("_per_s", "_room", "_then")

    def __init__(self, per_s: float, now: float) -> None:
        """Begin with room for a second's messages; `now` is in monotonic seconds."""
        self._per_s = per_s
        self._room = per_s
        self._then = now

    def __repr__(self) -> str:
        return f"<Pace {self._room:.0f} of {self._per_s:.0f}>"

    def pause_s(self, messages: int, now: float) -> float:
        """Return for how long to read nothing more, in seconds, after so many messages; mostly 0."""
        self._room = min(self._per_s, self._room + (now - self._then) * self._per_s) - messages
        self._then = now
        return max(0.0, -self._room / self._per_s)


class Restarts:
    """The pauses before a process is started again: doubled while they do not last, with jitter."""

    __slots__ = ("_first_s", "_max_s", "_rng", "count")

    def __init__(self, first_s: float, max_s: float, rng: random.Random) -> None:
        """Begin with `first_s` seconds; never more than `max_s`.

        Attributes:
            count: Restarts since the last process that lasted.
        """
        self.count = 0
        self._first_s = first_s
        self._max_s = max_s
        self._rng = rng

    def __repr__(self) -> str:
        return f"<Restarts {self.count}>"

    def next_pause_s(self, lasted_s: float) -> float:
        """Return how long to wait, in seconds, after a process that was ready for `lasted_s`.

        Half to one and a half times the nominal pause, so that many models that die together (a full
        memory) do not come back together.
        """
        if lasted_s >= WORKER_STEADY_S:
            self.count = 0
        nominal_s = min(self._max_s, self._first_s * 2.0 ** min(self.count, 32))
        self.count += 1
        return min(self._max_s, nominal_s * self._rng.uniform(0.5, 1.5))


def _size(size_bytes: int) -> str:
    return f"{size_bytes / 2**20:,.0f} MiB"
