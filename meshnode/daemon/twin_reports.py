"""Reports of keys that run twice: in the log, as an event, in `meshnode status` and to the doctor."""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING, Final

from meshnode.errors import ProtocolError
from meshnode.limits import MAX_TWINS, TWIN_REMEMBERED_S
from meshnode.net.log_budget import LogBudget
from meshnode.trust.twins import TWINS, TwinMet
from meshnode.wire.codec import message_type

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable

    from meshnode.clock import Clock
    from meshnode.daemon.credentials import Credentials
    from meshnode.types import NodeId

log = logging.getLogger("meshnode")

TWIN_MET: Final = message_type(TWINS.encode(TwinMet(0)))
"""The type number of a `TwinMet`."""


class TwinReports:
    """What one node has seen of keys that run twice.

    Attributes:
        seen: When the last sign of it was, by node, in monotonic seconds.
    """

    def __init__(
        self,
        credentials: Credentials,
        clock: Clock,
        events: Counter[str],
        named: Callable[[str], str],
    ) -> None:
        """Report for this node.

        Args:
            credentials: Who it is.
            clock: The time.
            events: Counts `member.conflict`.
            named: Puts names where NodeIds are.
        """
        self.seen: dict[NodeId, float] = {}
        self._me = credentials.node_id
        self._boot = credentials.boot
        self._clock = clock
        self._events = events
        self._named = named
        self._log = LogBudget(log, clock)

    def __repr__(self) -> str:
        return f"<TwinReports of {len(self.seen)} nodes>"

    @property
    def about_me(self) -> str:
        """A sentence if this node's own key was seen to run elsewhere lately, or an empty text."""
        seen_at = self.seen.get(self._me)
        if seen_at is None or self._clock.now() - seen_at > TWIN_REMEMBERED_S:
            return ""
        return (
            "another process runs with this node's key: its data folder was copied or is used twice; "
            "stop one of them, and let the copy join again with an empty folder"
        )

    def note(self, node: NodeId) -> None:
        """Remember a sign that was reported already."""
        self.seen.pop(node, None)
        self.seen[node] = self._clock.now()
        if len(self.seen) > MAX_TWINS:
            del self.seen[next(iter(self.seen))]

    def report(self, node: NodeId, how: str) -> None:
        """Remember a sign, and tell people."""
        self.note(node)
        self._events["member.conflict"] += 1
        is_me = node == self._me
        who = "this node" if is_me else f"node {self._named(node)}"
        self._log.write(
            logging.ERROR if is_me else logging.WARNING,
            "nodes that run twice",
            f"{who} runs twice: {how}. A data folder was copied or is used by two processes; stop one "
            "of them, and let the copy join again with an empty folder",
        )

    def refused(self, sentence: str) -> None:
        """Report that a peer refused this node for a twin, or that one answered where it dialled."""
        self.report(self._me, sentence)

    def told(self, peer: NodeId, payload: bytes) -> None:
        """Take a peer's word that it refused another process with this node's key."""
        with contextlib.suppress(ProtocolError):
            told = TWINS.decode(payload)
            if isinstance(told, TwinMet) and told.boot != self._boot:
                self.report(self._me, f"{self._named(peer)} refused the other process")
