"""How many of one thing each caller has, so that none has all of them."""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING

from meshnode.errors import Saturated

if TYPE_CHECKING:
    from collections.abc import Iterator

    from meshnode.gateway.protocols.caller import Caller


class CallerShares:
    """Counts streams by the key of their caller; callers without keys have one share together."""

    def __init__(self, most: int) -> None:
        """Let each caller have so many at once."""
        self._most = most
        self._open: Counter[str] = Counter()

    def __repr__(self) -> str:
        return f"<CallerShares: {self._open.total()} of {len(self._open)} callers>"

    @contextmanager
    def one_of(self, caller: Caller) -> Iterator[None]:
        """Count one more of a caller while it is open.

        Raises:
            Saturated: if the caller has as many as one may.
        """
        who = caller.key_id or str(caller.scope)
        if self._open[who] >= self._most:
            raise Saturated(
                f"you have {self._most} gRPC streams open at this gateway already, as many as one caller may; close "
                "some, or use one stream for several requests"
            )
        self._open[who] += 1
        try:
            yield
        finally:
            self._open[who] -= 1
            if not self._open[who]:
                del self._open[who]
