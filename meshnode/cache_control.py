"""What a request says about kept answers: the part of `Cache-Control` (RFC 9111, 5.2.1) that means something here.

| directive | here |
|---|---|
| `no-cache` | run the model; keep its answer |
| `no-store` | run the model; keep nothing |
| `max-age=N` | take an answer that was kept at most N seconds ago, else run |
| `only-if-cached` | take a kept answer, or refuse (504); never run |

It travels to the replica as text, in the spelling of `CacheControl.text`; unknown directives are dropped.
"""

from __future__ import annotations

import math
from functools import lru_cache

import msgspec

from meshnode.limits import MAX_CACHE_CONTROL_LENGTH


class CacheControl(msgspec.Struct, frozen=True):
    """What is asked of a response cache.

    Attributes:
        look_up: Whether a kept answer will do.
        keep: Whether the answer may be kept.
        max_age_s: The greatest age of a kept answer that will do, in seconds.
        only_if_cached: Whether nothing but a kept answer will do.
    """

    look_up: bool = True
    keep: bool = True
    max_age_s: float = math.inf
    only_if_cached: bool = False

    @property
    def text(self) -> str:
        """The header that says this; empty if it asks for nothing unusual."""
        words = []
        if not self.look_up and self.keep:
            words.append("no-cache")
        if not self.keep:
            words.append("no-store")
        if self.look_up and self.max_age_s < math.inf:
            words.append(f"max-age={self.max_age_s:.0f}")
        if self.only_if_cached:
            words.append("only-if-cached")
        return ", ".join(words)


PLAIN = CacheControl()
"""Of a request that says nothing about it."""


@lru_cache(maxsize=64)
def read_cache_control(header: str) -> CacheControl:
    """Return what a `Cache-Control` header asks for.

    As the standard says, what cannot be read is ignored: it is never an error.
    """
    look_up = keep = True
    max_age_s = math.inf
    only_if_cached = False
    for directive in header[:MAX_CACHE_CONTROL_LENGTH].lower().split(","):
        name, _, value = directive.strip().partition("=")
        value = value.strip().strip('"')
        if name == "no-cache":
            look_up = False
        elif name == "no-store":
            look_up = keep = False
        elif name == "only-if-cached":
            only_if_cached = True
        elif name == "max-age" and value.isascii() and value.isdigit() and len(value) < 12:
            max_age_s = min(max_age_s, float(value))
    return CacheControl(look_up, keep, max_age_s, only_if_cached)
