"""Asks replicas how busy they are, as routing decides (`meshnode.routing.probing`), while requests go their own way."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, Protocol

from meshnode.errors import MeshError, ProtocolError
from meshnode.limits import LOAD_PROBE_TIMEOUT_S
from meshnode.wire.messages import STREAMS, AskLoad, LoadTold

if TYPE_CHECKING:
    from meshnode.clock import Clock
    from meshnode.net.connection import Connection
    from meshnode.routing.probing import Probe
    from meshnode.routing.router import Router
    from meshnode.types import NodeId

LOOK_INTERVAL_S: Final = 0.05
"""Between looks for whom to ask: a quarter of the age from which on word of a load is worth renewing."""


class Links(Protocol):
    """The links of this node."""

    def connection(self, node: NodeId) -> Connection | None:
        """Return a node's usable link; None if there is none."""
        ...


class LoadProbes:
    """Sends the probes of one gateway."""

    def __init__(self, router: Router, links: Links, clock: Clock) -> None:
        """Ask for a router, over these links.

        Args:
            router: Says whom to ask, and is told what they say.
            links: Carry questions; none is dialled for one.
            clock: That of the router.
        """
        self._router = router
        self._links = links
        self._now = clock.now
        self._open: dict[Probe, tuple[Connection, int]] = {}

    def __repr__(self) -> str:
        return f"<LoadProbes: {len(self._open)} on their way>"

    async def run(self) -> None:
        """Ask until cancelled."""
        while True:
            await asyncio.sleep(LOOK_INTERVAL_S)
            self.look()

    def look(self) -> None:
        """Ask whom routing wants to hear from, and give up on those who do not answer."""
        now = self._now()
        for probe, (connection, stream) in [*self._open.items()]:
            if now - probe.sent_at > LOAD_PROBE_TIMEOUT_S:
                connection.cancel(stream)
                self.lost(probe)
        for probe in self._router.probes_due(now):
            self._ask(probe)

    def _ask(self, probe: Probe) -> None:
        connection = self._links.connection(probe.node)
        if connection is None:
            self._router.probing.ended(probe)
            return
        meta = STREAMS.encode(AskLoad(probe.model, probe.version))
        try:
            self._open[probe] = connection, connection.open(meta, (), _Answer(self, probe))
        except MeshError:
            self._router.probing.ended(probe)

    def answered(self, probe: Probe, meta: bytes, *, end: bool) -> None:
        """Take what a replica says; what is no report, such as that it serves nobody any more, says nothing here.

        One answer is all that is wanted: a stream that has not ended with it is given up.
        """
        asked = self._open.pop(probe, None)
        if asked is not None and not end:
            connection, stream = asked
            connection.cancel(stream)
        try:
            message = STREAMS.decode(meta)
        except ProtocolError:
            message = None
        if isinstance(message, LoadTold):
            self._router.probe_answered(probe, message.load, self._now())
        else:
            self._router.probing.ended(probe)

    def lost(self, probe: Probe) -> None:
        """There is no answer, and will be none."""
        self._open.pop(probe, None)
        self._router.probing.ended(probe)


class _Answer:
    """What comes on a probe's stream."""

    __slots__ = ("_probe", "_probes")

    def __init__(self, probes: LoadProbes, probe: Probe) -> None:
        self._probes = probes
        self._probe = probe

    def part(self, meta: bytes, data: memoryview, end: bool) -> None:
        del data
        self._probes.answered(self._probe, meta, end=end)

    def lost(self, error: MeshError) -> None:
        del error
        self._probes.lost(self._probe)
