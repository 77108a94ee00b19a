"""The IP addresses of host names, looked up in the background: a datagram does not wait for DNS."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING

from meshnode.limits import MAX_NAME_LOOKUPS, MAX_NAMES, MAX_RESOLVED_ADDRESSES, NAME_LIFETIME_S

if TYPE_CHECKING:
    from meshnode.clock import Clock


class Names:
    """Names that members advertise, with what they stood for last; the oldest make room."""

    def __init__(self, clock: Clock) -> None:
        """Know none."""
        self._clock = clock
        self._known: dict[str, tuple[tuple[str, ...], float]] = {}
        self._lookups: dict[str, asyncio.Task[None]] = {}

    def __repr__(self) -> str:
        return f"<Names: {len(self._known)} known, {len(self._lookups)} looked up>"

    def literals(self, name: str) -> tuple[str, ...]:
        """Return the addresses of a name, as far as they are known; see to a lookup if they are old."""
        found, good_until = self._known.get(name, ((), float("-inf")))
        is_due = good_until <= self._clock.now() and name not in self._lookups
        if is_due and len(self._lookups) < MAX_NAME_LOOKUPS:
            self._lookups[name] = asyncio.ensure_future(self._look_up(name))
        return found

    async def _look_up(self, name: str) -> None:
        try:
            found = await asyncio.get_running_loop().getaddrinfo(name, None, type=socket.SOCK_DGRAM)
            hosts = dict.fromkeys(str(where[0]) for *_, where in found)
            literals = tuple(hosts)[:MAX_RESOLVED_ADDRESSES]
        except (OSError, UnicodeError):  # the latter of a label that DNS cannot carry
            literals = self._known.get(name, ((), 0.0))[0]  # rather what it was than nothing
        finally:
            del self._lookups[name]
        self._known.pop(name, None)
        self._known[name] = (literals, self._clock.now() + NAME_LIFETIME_S)
        if len(self._known) > MAX_NAMES:
            del self._known[next(iter(self._known))]
