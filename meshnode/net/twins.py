"""One key, two processes: a data folder that was copied, or a disk that was restored beside the old one.

A node that starts again says hello with another boot while the link to its former run may still
stand: the machine lost its power, and nobody has noticed yet. That is taken at once where the former
run is gone. Where its link still stands it is asked for a sign of life, and the newcomer's welcome
waits meanwhile::

    newcomer's hello holds, boot differs ──> ping to the former run
                                               │
              its link breaks, or `TWIN_ANSWER_S` pass without an answer ──> welcome
              it answers ──> both live: the newcomer is refused as a twin, and both are told

The answer must be to a ping that was sent after the newcomer had proven itself, so what a process
said before it died is no sign of life.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from meshnode.limits import TWIN_ANSWER_S
from meshnode.trust.reasons import Reason, TrustError

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshnode.net.connection import Connection
    from meshnode.trust.hello import HelloResult


class Twins:
    """Newcomers whose welcome waits, by the link of the former run that is asked."""

    def __init__(self, met: Callable[[Connection, Connection, int], None]) -> None:
        """`met(former, newcomer, newcomer's boot)` is called when both have proven to live."""
        self._met = met
        self._loop = asyncio.get_running_loop()
        self._doubts: dict[Connection, list[tuple[Connection, int]]] = {}
        self._timers: dict[Connection, asyncio.TimerHandle] = {}

    def __repr__(self) -> str:
        return f"<Twins {sum(map(len, self._doubts.values()))} newcomers wait>"

    def must_wait(self, newcomer: Connection, result: HelloResult, former: Connection) -> bool:
        """Whether a peer that has proven itself must wait until its former run has had its say."""
        assert former.hello is not None
        if former.hello.peer_boot == result.peer_boot or former.stalled or former.peer_is_away:
            return False
        self._doubts.setdefault(former, []).append((newcomer, result.peer_boot))
        if former not in self._timers:
            former.ping()
            self._timers[former] = self._loop.call_later(TWIN_ANSWER_S, self._silent, former)
        return True

    def heard(self, former: Connection) -> None:
        """Look whether a former run has answered."""
        if former not in self._doubts or former.ping_is_out:
            return
        for newcomer, boot in self._end(former):
            if not newcomer.closed:
                self._met(former, newcomer, boot)
                newcomer.turn_away(
                    TrustError(
                        Reason.TWIN,
                        "another process runs with this node's key and answers: a data folder was "
                        "copied, or is used twice; stop one of them, or remove the copy and join again "
                        "with an invite of its own",
                    )
                )

    def gone(self, connection: Connection) -> None:
        """Welcome those that waited for a former run whose link is down."""
        for newcomer, _ in self._end(connection):
            if not newcomer.closed:
                newcomer.welcome()

    def _silent(self, former: Connection) -> None:
        if former.ping_is_out:
            self.gone(former)
        else:
            self.heard(former)

    def _end(self, former: Connection) -> list[tuple[Connection, int]]:
        timer = self._timers.pop(former, None)
        if timer is not None:
            timer.cancel()
        return self._doubts.pop(former, [])
