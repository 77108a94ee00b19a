"""Gives the sequences of a node that is emptied to other nodes, and takes those of others.

    this node                              the node that is first in the sequence's order without this one
        hold the sequence at rest: its requests wait
        ── TakeSequence(its states) ──────────────>  goes on with it
        <── SequenceTaken ─────────────────────────
        forget it; who asks for it, and who waited, is told where it is (`SequenceMoved`)

Where that fails, the sequence goes on here, and is tried again at the next look. One whose model remembers
more than its states, or that is never at rest, stays until it ends.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from meshnode.errors import LinkLost, MeshError, ProtocolError
from meshnode.limits import MAX_SEQUENCE_MOVES, SEQUENCE_MOVE_TIMEOUT_S
from meshnode.net.infer_call import tensor_headers, tensors_of
from meshnode.net.one_answer import OneAnswer, answer_message
from meshnode.routing.affinity import heir
from meshnode.wire.messages import STREAMS, SequenceTaken, TakeSequence

if TYPE_CHECKING:
    from meshnode.models.manifest import Manifest
    from meshnode.models.serving.sequence_handover import SequenceHandover
    from meshnode.models.serving.server import ModelServer
    from meshnode.net.connection import Connection
    from meshnode.net.links import LinkHub
    from meshnode.routing.router import Router
    from meshnode.types import NodeId, Tensor

log = logging.getLogger(__name__)


class SequenceMoves:
    """Both sides of it, for one node.

    Attributes:
        moved: Sequences that other nodes have taken.
        taken: Sequences of other nodes that go on here.
    """

    def __init__(self, me: NodeId, models: ModelServer, router: Router, hub: LinkHub) -> None:
        """Move nothing yet.

        Args:
            me: This node.
            models: Its models.
            router: Knows who else serves them.
            hub: Its links.
        """
        self.moved = 0
        self.taken = 0
        self._me = me
        self._models = models
        self._router = router
        self._hub = hub
        self._moving: set[asyncio.Task[None]] = set()

    def __repr__(self) -> str:
        return f"<SequenceMoves: {self.moved} moved, {self.taken} taken, {len(self._moving)} under way>"

    def look(self) -> None:
        """Begin to give away what is at rest, and let nothing begin; this node is to be emptied."""
        for handover in self._models.handovers():
            if self._heir(handover.manifest, "") is not None:
                handover.turn_away()
            for sequence_id in handover.at_rest():
                if len(self._moving) >= MAX_SEQUENCE_MOVES:
                    return
                self._begin(handover, sequence_id)

    def _begin(self, handover: SequenceHandover, sequence_id: int | str) -> None:
        node = self._heir(handover.manifest, sequence_id)
        if node is None:
            return
        states = handover.hold(sequence_id)
        if states is None:
            return
        task = asyncio.ensure_future(self._give(handover, sequence_id, states, node))
        self._moving.add(task)
        task.add_done_callback(self._moving.discard)

    def _heir(self, manifest: Manifest, sequence_id: int | str) -> NodeId | None:
        """Return the node that is to have a sequence; None if no other one can."""
        try:
            candidates = self._router.candidates(manifest.model, manifest.version)
        except MeshError:
            return None
        chosen = heir(candidates, manifest.model, sequence_id, self._me)
        return None if chosen is None else chosen.replica.node

    async def _give(
        self, handover: SequenceHandover, sequence_id: int | str, states: list[Tensor], node: NodeId
    ) -> None:
        manifest = handover.manifest
        ask = TakeSequence(
            manifest.model, manifest.version, manifest.digest, sequence_id, tensor_headers(states)
        )
        try:
            connection = self._hub.connection(node)
            if connection is None:
                raise LinkLost("there is no usable link to the node")
            call = OneAnswer(_taken)
            data = [each.data for each in states]
            stream = connection.open(STREAMS.encode(ask), data, call)
            try:
                async with asyncio.timeout(SEQUENCE_MOVE_TIMEOUT_S):
                    await call.answer
            finally:
                connection.cancel(stream)
        except (MeshError, TimeoutError, ValueError) as error:
            handover.keep(sequence_id)
            log.info(
                "sequence %r of %s stays for now: %s took it not (%s)",
                *(sequence_id, manifest.model, node[:8], str(error) or "no answer"),
            )
            return
        except asyncio.CancelledError:
            handover.keep(sequence_id)
            raise
        self.moved += 1
        handover.give(sequence_id, node)

    def take(
        self, connection: Connection, stream: int, ask: TakeSequence, data: memoryview
    ) -> None:
        """Go on with a sequence of a peer, and say so on the stream.

        Raises:
            MeshError: if it cannot go on here; nothing changed.
        """
        states = tensors_of(ask.states, data)
        self._models.take_sequence(ask.digest, ask.model, ask.version, ask.sequence_id, states)
        self.taken += 1
        connection.reply(stream, STREAMS.encode(SequenceTaken()), [], end=True)


def _taken(meta: bytes, data: memoryview, end: bool) -> None:
    """Take the answer to a `TakeSequence`.

    Raises:
        MeshError: if it is another one than yes.
    """
    del data, end
    if not isinstance(answer_message(meta), SequenceTaken):
        raise ProtocolError("a peer answered a question about a sequence with something else")
