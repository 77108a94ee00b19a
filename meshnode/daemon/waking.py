"""Notices that this process stood still, and takes up its links again.

With its machine (a closed lid) or alone (SIGSTOP, a swapping disk).
The timers of a loop do not tell of a sleep: they go on with what they had left. The clock does, which counts it
(`meshnode.net.clock`): a look that comes seconds later than it should follows a sleep. Then

- the cores blame nobody for what came or went meanwhile, and dial again at once (`Woke`);
- each peer must say something soon, or its link is parted with: it may have given this node up long ago, and the
  machine may be in another network now, from which nothing comes back on a former connection;
- where others reach this machine is looked up.

What a deadline or a belief about a load is worth after a sleep needs no event: both are read by the same clock.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from meshnode.events import Woke
from meshnode.limits import SLEPT_S, WAKE_LOOK_S, WAKE_PROOF_S

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshnode.clock import Clock
    from meshnode.events import Event

log = logging.getLogger("meshnode")


class Waking:
    """Watches the clock for one node."""

    def __init__(
        self,
        clock: Clock,
        tell: Callable[[Event], None],
        prove_links: Callable[[float], None],
        look_where: Callable[[], object] = lambda: None,
    ) -> None:
        """Watch.

        Args:
            clock: One that counts sleep.
            tell: Takes the event, for the cores.
            prove_links: Parts with peers that say nothing in so many seconds.
            look_where: Looks up where this machine is.
        """
        self._clock = clock
        self._tell = tell
        self._prove_links = prove_links
        self._look_where = look_where
        self._looked_at = clock.now()

    def __repr__(self) -> str:
        return f"<Waking, looked at {self._looked_at:.1f} s>"

    async def follow(self) -> None:
        """Look every second; never returns."""
        while True:
            self._looked_at = self._clock.now()
            await asyncio.sleep(WAKE_LOOK_S)
            self.look()

    def look(self) -> float:
        """Look once; return for how many seconds this process stood still since the last look, 0.0 if it did not."""
        before, self._looked_at = self._looked_at, self._clock.now()
        slept_s = self._looked_at - before - WAKE_LOOK_S
        if slept_s < SLEPT_S:
            return 0.0
        log.info("this node slept for %.0f s, or stood still; it takes up its links again", slept_s)
        self._look_where()
        self._tell(Woke(slept_s))
        self._prove_links(WAKE_PROOF_S)
        return slept_s
