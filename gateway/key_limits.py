"""Holds the callers of one node's gateways to the limits of their API keys.

A rate is a token bucket: `10/s` lets ten requests come at once, and one more every 100 ms. What counts is a
request that reaches the gateway with a valid key, whatever becomes of it. One that is refused here costs its
caller nothing: neither a token nor a place.

Each node counts by itself. A mesh-wide count would cost every request a round trip; a client that spreads
its requests over several gateways has the limit at each.

A row goes when its bucket is full again and nothing runs, so that a key which is not used costs nothing.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from meshnode.errors import Throttled
from meshnode.limits import MAX_LIMITED_KEYS
from meshnode.metric_catalogue import HTTP_KEY_LIMITED
from meshnode.metrics import Counter

if TYPE_CHECKING:
    from meshnode.gateway.protocols.caller import Caller
    from meshnode.key_limit import KeyLimit

_ROUNDING_S: Final = 1e-6  # sums of many small times are not exact
_BUSY_RETRY_S: Final = 1  # a place is free as soon as an answer ends; most models answer within it


class _Row:
    __slots__ = ("full_at", "limit", "running")

    def __init__(self, limit: KeyLimit) -> None:
        self.limit = limit
        self.full_at = -math.inf
        self.running = 0


class KeyLimits:
    """Counts what the keys of this node's callers ask, at all entrances together.

    Attributes:
        refused: Requests that were refused so far: that came too often (`rate`), or too many at once (`concurrency`).
    """

    def __init__(self) -> None:
        """Begin with nobody asking."""
        self.refused = Counter.of(HTTP_KEY_LIMITED)
        self._rows: dict[str, _Row] = {}

    def __repr__(self) -> str:
        return f"<KeyLimits of {len(self._rows)} keys>"

    def begin(
        self, caller: Caller, now: float, *, takes_place: bool = True, takes_token: bool = True
    ) -> bool:
        """Count a request of a caller; where True is returned, call `end` when its answer has ended.

        Args:
            caller: Who asks; most have no limit.
            now: Monotonic seconds.
            takes_place: False for a request that goes on with what has a place: it counts against the rate only.
            takes_token: False for a request that was counted against the rate with the call that brought it.

        Raises:
            Throttled: if the caller's key allows no more for now; nothing is counted then.
        """
        limit = caller.limit
        if limit is None:
            return False
        row = self._row(caller.key_id, limit, now)
        if takes_place and 0 < limit.concurrency <= row.running:
            self.refused.add(("concurrency",))
            raise Throttled(
                f"the API key {caller.name!r} has {limit.concurrency} "
                f"request{'s' if limit.concurrency > 1 else ''} running at this gateway, and is allowed no more "
                "at once; wait for an answer, then ask again",
                _BUSY_RETRY_S,
            )
        if limit.requests and takes_token:
            every_s = limit.window_s / limit.requests
            full_at = max(row.full_at, now)
            wait_s = full_at - now - (limit.requests - 1) * every_s
            if wait_s > _ROUNDING_S:
                self.refused.add(("rate",))
                after_s = max(1, math.ceil(wait_s))
                raise Throttled(
                    f"the API key {caller.name!r} is allowed {limit.rate} at this gateway; try again in "
                    f"{after_s} s",
                    after_s,
                )
            row.full_at = full_at + every_s
        row.running += takes_place
        return takes_place

    def end(self, caller: Caller) -> None:
        """Count the end of an answer whose `begin` returned True."""
        row = self._rows.get(caller.key_id)
        if row is not None and row.running:
            row.running -= 1

    def _row(self, key_id: str, limit: KeyLimit, now: float) -> _Row:
        row = self._rows.get(key_id)
        if row is None:
            if len(self._rows) >= MAX_LIMITED_KEYS:
                self._rows = {
                    known: each
                    for known, each in self._rows.items()
                    if each.running or each.full_at > now
                }
            row = self._rows[key_id] = _Row(limit)
        elif row.limit != limit:  # what the former rate used up says nothing about this one
            row.limit, row.full_at = limit, -math.inf
        return row
