"""A virtual node's disk: what its cores persisted, what a full disk keeps out, what a crash tears.

The rules of a full disk are those of the real driver: what could not be written is kept in memory and
tried again, and is lost with the process; a change of the node's own is refused instead (see `is_full`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import random


class Disk:
    """Values by key.

    Attributes:
        stored: What is on the disk; it outlives the process.
        unsaved: What is to be written and could not be; it does not.
        is_full: Whether nothing more can be written.
    """

    __slots__ = ("_before_last", "_last_key", "is_full", "stored", "unsaved")

    def __init__(self) -> None:
        """Begin empty."""
        self.stored: dict[str, bytes] = {}
        self.unsaved: dict[str, bytes] = {}
        self.is_full = False
        self._last_key: str | None = None
        self._before_last: bytes | None = None

    def __repr__(self) -> str:
        full = ", full" if self.is_full else ""
        return f"<Disk with {sorted(self.stored)}{full}>"

    def write(self, key: str, value: bytes) -> bool:
        """Write a value, or keep it for a later try; return whether it was written."""
        if self.is_full:
            self.unsaved[key] = value
            return False
        self.unsaved.pop(key, None)
        self._last_key, self._before_last = key, self.stored.get(key)
        self.stored[key] = value
        return True

    def write_unsaved(self) -> bool:
        """Try again what could not be written; return whether nothing is left."""
        return all(self.write(key, value) for key, value in [*self.unsaved.items()])

    def lose_memory(self) -> None:
        """The process is gone, and with it what it had yet to write."""
        self.unsaved.clear()

    def tear(self, rng: random.Random) -> str:
        """Damage what was written last, as a machine does that loses power in the middle of it.

        Either the new file is cut at a random byte, or the old one is there still: it was renamed over,
        and the folder's entry had yet to be written.

        Returns:
            What was done, for people; empty if nothing was ever written.
        """
        key = self._last_key
        if key is None:
            return ""
        if rng.random() < 0.5:
            value = self.stored[key]
            length = rng.randrange(len(value)) if value else 0
            self.stored[key] = value[:length]
            return f"{key} is cut after {length} of {len(value)} bytes"
        if self._before_last is None:
            self.stored.pop(key, None)
        else:
            self.stored[key] = self._before_last
        return f"{key} is as it was before it was last written"
