"""What loading a version yields: its instances, ready to execute, and what was measured of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from meshnode.models.serving.thread_plan import Pace

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meshnode.models.runtimes.base import LoadedModel, ProcessModel
    from meshnode.models.serving.measure import RunTime
    from meshnode.models.serving.profile import Profile


@dataclass(frozen=True, slots=True)
class Instance:
    """One opened copy of a version.

    Attributes:
        model: What executes.
        slots: Runs that it takes at once, at least 1.
        passive: Opened, but given no requests.
        exclusive: Whether one run at a time is all that the model stands; else short requests run on
            the event loop beside those in its slots.
    """

    model: LoadedModel | ProcessModel
    slots: int = 1
    passive: bool = False
    exclusive: bool = False


@dataclass(frozen=True, slots=True)
class Opened:
    """A version that was opened and warmed up.

    Attributes:
        instances: At least one; whoever takes this owns them.
        run_time: What the warm-up taught of its run time; it goes on learning.
        profile: Service time by batch size.
        apart: Why requests must not be joined to batches that nobody configured; empty if joined rows
            were seen to give the answers that they give alone.
        first_s: Seconds of one run of one row, as the warm-up measured; 0 if that is unknown.
        pace: Which plan of threads that asked for.
        initial_states: Of a sequence model's states: the bytes of the first, by the input's name.
    """

    instances: tuple[Instance, ...]
    run_time: RunTime
    profile: Profile = ()
    apart: str = ""
    first_s: float = 0.0
    pace: Pace = Pace.SHORT
    initial_states: Mapping[str, bytes] = field(default_factory=dict)
