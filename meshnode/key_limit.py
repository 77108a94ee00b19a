"""How much the holder of one API key may ask: a rate, how many requests at once, and what goes first.

Rate and concurrency hold always. Priority and share count where a gateway has more to do than it can: then the
requests of a lower priority are refused first, and what is left is shared among keys by their shares.

The rate is a number of requests per second, minute, hour or day, as people write it: `10/s`, `600/min`.
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

from meshnode.errors import InvalidRequest
from meshnode.limits import MAX_KEY_CONCURRENCY, MAX_KEY_RATE_REQUESTS, MAX_KEY_SHARE
from meshnode.types import Priority

_SECONDS: Final = {"s": 1, "min": 60, "h": 3600, "d": 86_400}
_WORDS: Final = {seconds: word for word, seconds in _SECONDS.items()}
_RATE: Final = re.compile(r"([0-9]{1,9})/(s|min|h|d)")


class KeyLimit(msgspec.Struct, array_like=True, frozen=True):
    """What one key may ask of one gateway.

    Attributes:
        requests: Requests within `window_s`, which may also come all at once; 0 for any number.
        window_s: 1, 60, 3600 or 86,400 seconds; 0 where any number may come.
        concurrency: Requests that are answered at once; 0 for any number.
        priority: The highest priority that its requests may have, as a `Priority`.
        share: What is the key's of an overloaded gateway, beside 1 of another key.
    """

    requests: int = 0
    window_s: int = 0
    concurrency: int = 0
    priority: int = int(Priority.HIGH)
    share: int = 1

    @property
    def rate(self) -> str:
        """The rate as people write it; empty if there is none."""
        return f"{self.requests}/{_WORDS[self.window_s]}" if self.requests else ""

    @property
    def is_valid(self) -> bool:
        """Whether every field is within its limits; one that came from elsewhere may not be."""
        has_rate = 1 <= self.requests <= MAX_KEY_RATE_REQUESTS and self.window_s in _WORDS
        has_none = self.requests == 0 and self.window_s == 0
        return (
            (has_rate or has_none)
            and 0 <= self.concurrency <= MAX_KEY_CONCURRENCY
            and Priority.LOW <= self.priority <= Priority.HIGH
            and 1 <= self.share <= MAX_KEY_SHARE
        )

    def capped(self, priority: Priority) -> Priority:
        """Return the priority that a request of the key has, whatever it asks for."""
        return min(priority, Priority(self.priority))


NO_LIMIT: Final = KeyLimit()
"""Of a key that may ask as much as everybody."""


def read_limit(
    rate: str | None,
    concurrency: int | None,
    priority: str | None = None,
    share: int | None = None,
) -> KeyLimit:
    """Return the limit that was written; None leaves one part unlimited, and the share at 1.

    Raises:
        InvalidRequest: if either is not of its form.
    """
    requests, window_s = (0, 0) if rate is None else _read_rate(rate)
    if concurrency is not None and not 1 <= concurrency <= MAX_KEY_CONCURRENCY:
        raise InvalidRequest(
            f"a key has 1 to {MAX_KEY_CONCURRENCY} requests at once, not {concurrency}; leave it out for "
            "no limit"
        )
    if share is not None and not 1 <= share <= MAX_KEY_SHARE:
        raise InvalidRequest(
            f"a key's share of an overloaded gateway is 1 to {MAX_KEY_SHARE}, not {share}; the others have 1"
        )
    highest = Priority.HIGH if priority is None else read_priority(priority)
    return KeyLimit(requests, window_s, concurrency or 0, int(highest), share or 1)


def read_priority(text: str) -> Priority:
    """Return the priority of a word: `low`, `normal` or `high`.

    Raises:
        InvalidRequest: if it is none of them.
    """
    found = Priority.__members__.get(text.strip().upper())
    if found is None:
        raise InvalidRequest(f"{text[:40]!r} is not a priority: write low, normal or high")
    return found


def _read_rate(text: str) -> tuple[int, int]:
    found = _RATE.fullmatch(text.strip().lower())
    if found is None or not 1 <= int(found[1]) <= MAX_KEY_RATE_REQUESTS:
        raise InvalidRequest(
            f"{text[:40]!r} is not a rate: write a number of requests, 1 to {MAX_KEY_RATE_REQUESTS}, and per "
            "what: 10/s, 600/min, 5000/h, 100000/d"
        )
    return int(found[1]), _SECONDS[found[2]]
