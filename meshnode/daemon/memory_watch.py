"""Watches free memory for the models: batches shrink when it runs short, and a replacement asks for room."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meshnode.models.serving.pressure import Pressure

if TYPE_CHECKING:
    from meshnode.clock import Clock
    from meshnode.models.serving.server import ModelServer


class MemoryWatch:
    """Takes readings of memory and tells the model server what follows."""

    def __init__(self, models: ModelServer, total_bytes: int, clock: Clock) -> None:
        """Watch for a model server.

        Args:
            models: What is told.
            total_bytes: The machine's memory; 0 if it does not tell.
            clock: For the hysteresis.
        """
        self._models = models
        self._total_bytes = total_bytes
        self._now = clock.now
        self._pressure = Pressure()
        self._room_bytes: int | None = None
        models.room_bytes = lambda: self._room_bytes

    def __repr__(self) -> str:
        return f"<MemoryWatch {self._pressure!r}, room {self._room_bytes}>"

    def see(self, free_bytes: int, allowed_bytes: int) -> None:
        """Take a reading.

        Args:
            free_bytes: What the machine has free.
            allowed_bytes: What of it this node may take: its owner may allow less.
        """
        self._room_bytes = allowed_bytes
        is_over = allowed_bytes <= 0 < free_bytes
        level = self._pressure.see(free_bytes, self._total_bytes, self._now(), is_over=is_over)
        self._models.under_pressure(level)
