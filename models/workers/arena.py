"""Sharing out one stretch of memory: a pure allocator of regions.

First fit at the lowest offset, so that the same warm pages are used again and again and the far ones
can be given back. Neighbouring free regions are joined at once. Tens of regions are lent at a time, so
lists are enough.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import Final

ALIGNMENT_BYTES: Final = 4096
"""Regions begin on pages, so that whole pages are free when a region is."""


class Arena:
    """Lends regions of `size_bytes` bytes."""

    __slots__ = ("_free", "_lent", "size_bytes", "touched_bytes")

    def __init__(self, size_bytes: int) -> None:
        """Own the offsets 0 to `size_bytes`, a multiple of `ALIGNMENT_BYTES`.

        Attributes:
            size_bytes: All of it.
            touched_bytes: End of the highest region that was lent since the last `untouched`.
        """
        self.size_bytes = size_bytes
        self.touched_bytes = 0
        self._free: list[tuple[int, int]] = [(0, size_bytes)]  # (offset, length), by offset
        self._lent: dict[int, int] = {}

    def __repr__(self) -> str:
        return f"<Arena {len(self._lent)} lent, {self.lent_bytes} of {self.size_bytes} bytes>"

    @property
    def lent_bytes(self) -> int:
        """All regions that are lent."""
        return sum(self._lent.values())

    def lend(self, length_bytes: int) -> int | None:
        """Return the offset of a region of at least so many bytes (1 or more), or None if none is free."""
        length = -(-max(1, length_bytes) // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
        for index, (offset, free) in enumerate(self._free):
            if free >= length:
                if free == length:
                    del self._free[index]
                else:
                    self._free[index] = (offset + length, free - length)
                self._lent[offset] = length
                self.touched_bytes = max(self.touched_bytes, offset + length)
                return offset
        return None

    def length_of(self, offset: int) -> int:
        """Return the length of the region that was lent at this offset; 0 if none was."""
        return self._lent.get(offset, 0)

    def give_back(self, offset: int) -> bool:
        """Take a region back; False if none was lent at this offset."""
        length = self._lent.pop(offset, None)
        if length is None:
            return False
        index = bisect_left(self._free, (offset, 0))
        if index < len(self._free) and self._free[index][0] == offset + length:
            length += self._free.pop(index)[1]
        if index and sum(self._free[index - 1]) == offset:
            before, before_length = self._free[index - 1]
            self._free[index - 1] = (before, before_length + length)
        else:
            self._free.insert(index, (offset, length))
        return True

    def untouched(self, keep_bytes: int) -> list[tuple[int, int]]:
        """Return the free regions (offset, length) above `keep_bytes` whose pages can be dropped.

        They count as untouched from now on.
        """
        if self.touched_bytes <= keep_bytes:
            return []
        dropped = []
        for offset, length in self._free:
            start, end = max(offset, keep_bytes), min(offset + length, self.touched_bytes)
            if start < end:
                dropped.append((start, end - start))
        highest = max((offset + length for offset, length in self._lent.items()), default=0)
        self.touched_bytes = max(highest, min(self.touched_bytes, keep_bytes))
        return dropped
