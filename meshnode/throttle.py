"""How often a source may do something: token buckets in a bounded table.

A bucket is the time at which it will be full again, so a source that does nothing costs nothing and
its row goes by itself. The oldest row is the first to be full, or nearly, since a row moves to the end
whenever it is used. Where no row is free, sources share one: a flood from everywhere throttles
strangers, never what already has a row.
"""

from __future__ import annotations

import ipaddress
from collections import OrderedDict
from typing import Final

_ROUNDING_S: Final = 1e-6  # sums of many small times are not exact

_SHARED: Final = ""  # the source of all that have no row of their own


class Throttle:
    """Counts events by source; at most `max_sources` rows."""

    def __init__(self, *, burst: int, refill_s: float, max_sources: int) -> None:
        """Allow each source `burst` events at once, and one more every `refill_s` seconds."""
        self._spread_s = (burst - 1) * refill_s
        self._refill_s = refill_s
        self._max_sources = max_sources
        self._full_at: OrderedDict[str, float] = OrderedDict()

    def __repr__(self) -> str:
        return f"<Throttle of {len(self._full_at)} sources>"

    def take(self, source: str, now: float) -> float:
        """Count an event of a source, if it may have one.

        Returns:
            0 if it may, else after how many seconds it may again; nothing is counted then.
        """
        while self._full_at and next(iter(self._full_at.values())) <= now:
            self._full_at.popitem(last=False)
        row = self._row(source)
        full_at = max(self._full_at.get(row, now), now)
        latest = now + self._spread_s
        if full_at > latest + _ROUNDING_S:
            return full_at - latest
        self._full_at[row] = full_at + self._refill_s
        self._full_at.move_to_end(row)
        return 0.0

    def is_spent(self, source: str, now: float) -> bool:
        """Whether a source may do nothing more for now; counts nothing."""
        return self._full_at.get(self._row(source), now) > now + self._spread_s + _ROUNDING_S

    def _row(self, source: str) -> str:
        if source not in self._full_at and len(self._full_at) >= self._max_sources:
            return _SHARED
        return source


def source_of(host: str) -> str:
    """Return what a host is counted as: an IPv4 address, or the /64 that one IPv6 host has."""
    if ":" not in host:
        return host
    try:
        address = ipaddress.IPv6Address(host.partition("%")[0])
    except ValueError:
        return host
    mapped = address.ipv4_mapped
    return str(mapped) if mapped else address.packed[:8].hex()
