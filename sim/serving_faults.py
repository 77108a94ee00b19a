"""What can be wrong with a virtual model server: slow, failing, lying, or late to say how busy it is."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from msgspec import structs

if TYPE_CHECKING:
    from collections.abc import Hashable

    from meshnode.wire.messages import LoadReport


@dataclass(slots=True, eq=False)
class ServingFaults:
    """The faults of one device's model server; they outlast its process.

    Attributes:
        slowness: All run times are multiplied by this.
        failing: Share of requests that fail at once, 0 to 1.
        told_share: What it says of its load is this share of the truth; 1 for the truth.
        told_late_s: What it says of its load is so old; 0 for the present.
        load_error: Why no model can be loaded there, such as a full disk; empty if they can.
    """

    slowness: float = 1.0
    failing: float = 0.0
    told_share: float = 1.0
    told_late_s: float = 0.0
    load_error: str = ""
    _history: dict[Hashable, deque[tuple[float, LoadReport]]] = field(default_factory=dict)

    def told(self, key: Hashable, truth: LoadReport, now: float) -> LoadReport:
        """Return what is said of a replica's load.

        Args:
            key: Which replica.
            truth: How busy it is.
            now: Seconds of the world.
        """
        said = self._as_it_was(key, truth, now) if self.told_late_s > 0 else truth
        if self.told_share == 1:
            return said
        return structs.replace(said, in_system=round(said.in_system * self.told_share))

    def _as_it_was(self, key: Hashable, truth: LoadReport, now: float) -> LoadReport:
        history = self._history.setdefault(key, deque())
        history.append((now, truth))
        then = now - self.told_late_s
        while len(history) > 1 and history[1][0] <= then:
            history.popleft()
        return history[0][1]

    def forget(self) -> None:
        """The process is gone, and what it remembered of its load."""
        self._history.clear()
