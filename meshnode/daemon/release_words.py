"""What gateways ask each other about releases: who gave an answer that somebody judges, and which disagreements they saw.

A gateway remembers its own answers only. Feedback that comes to another one goes to those that may have given the answer:
first those that tell of a release in their state (`evidence/NAME`), then the rest of the nodes that live, a bounded
number of them, all at once.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, TypeVar

import msgspec

from meshnode.daemon.named import name_of
from meshnode.errors import InvalidRequest, LinkLost, MeshError, ProtocolError
from meshnode.gateway.disagreements import Seen, View
from meshnode.gateway.feedback import Counted, Feedback, read_feedback
from meshnode.limits import GATEWAY_ASKED_TIMEOUT_S, MAX_GATEWAYS_ASKED
from meshnode.net.one_answer import OneAnswer, answer_message
from meshnode.rollout import evidence_key
from meshnode.wire.messages import (
    STREAMS,
    AskDisagreements,
    DisagreementsTold,
    FeedbackTold,
    TellFeedback,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from meshnode.daemon.forwarding import Reach
    from meshnode.gateway.releasing import Releasing
    from meshnode.net.connection import Connection
    from meshnode.node import Node
    from meshnode.types import NodeId
    from meshnode.wire.codec import Message

_Found = TypeVar("_Found")
_COUNTED: Final = msgspec.json.Decoder(Counted)
_VIEW: Final = msgspec.json.Decoder(View)


class ReleaseWords:
    """Asks other gateways, and answers those that ask."""

    def __init__(self, node: Node, reach: Reach, releasing: Releasing) -> None:
        """Ask for a node.

        Args:
            node: Knows who lives, and what others tell of releases.
            reach: Its links.
            releasing: What this node's own gateway remembers.
        """
        self._node = node
        self._reach = reach
        self._releasing = releasing

    def __repr__(self) -> str:
        return f"<ReleaseWords of {self._node.me[:8]}>"

    # Asking

    async def tell(self, feedback: Feedback, caller: str) -> Counted | None:
        """Have the gateway that gave an answer count what is said of it; None if none remembers it.

        Raises:
            InvalidRequest: if what is said does not fit the answer.
        """
        body = msgspec.json.encode(feedback)

        async def one(node: NodeId) -> Counted | None:
            return await self._asked(node, TellFeedback(caller), body, _counted_in)

        refusal: InvalidRequest | None = None
        for found in await self._of_all(self._gateways(), one):
            if isinstance(found, Counted):
                return found
            if isinstance(found, InvalidRequest) and found.code == InvalidRequest.code:
                refusal = found
        if refusal is not None:
            raise refusal
        return None

    async def disagreements(self, model: str) -> Seen:
        """Return what other gateways saw of a model's release, and the names of those that did not say."""

        async def one(node: NodeId) -> View | None:
            return await self._asked(node, AskDisagreements(model), b"", _view_in)

        nodes = self._gateways()
        found = await self._of_all(nodes, one)
        members = self._node.membership.members
        return Seen(
            [each for each in found if isinstance(each, View)],
            sorted(
                name_of(members, node)
                for node, each in zip(nodes, found, strict=True)
                if isinstance(each, MeshError)
            ),
        )

    def _gateways(self) -> list[NodeId]:
        """Return the live nodes to ask, those first that tell of a release."""
        node = self._node
        keys = [evidence_key(live.model) for live in node.router.releases]
        live = [
            each
            for each, member in node.membership.members.items()
            if member.live and each != node.me
        ]
        telling = {each for each in live if any(node.owners.get(each, key) for key in keys)}
        return sorted(live, key=lambda each: (each not in telling, each))[:MAX_GATEWAYS_ASKED]

    async def _of_all(
        self, nodes: Sequence[NodeId], ask: Callable[[NodeId], Awaitable[_Found]]
    ) -> list[_Found | MeshError]:
        async def one(node: NodeId) -> _Found | MeshError:
            try:
                async with asyncio.timeout(GATEWAY_ASKED_TIMEOUT_S):
                    return await ask(node)
            except TimeoutError:
                return LinkLost(f"{node} did not answer in time")
            except MeshError as error:
                return error

        return await asyncio.gather(*map(one, nodes))

    async def _asked(
        self,
        node: NodeId,
        message: Message,
        body: bytes,
        read: Callable[[bytes, memoryview, bool], _Found],
    ) -> _Found:
        connection = self._reach.linked(node) or await self._reach.link(node)
        if connection is None:
            raise LinkLost(f"{node} cannot be reached")
        call = OneAnswer(read)
        stream = connection.open(STREAMS.encode(message), [body] if body else [], call)
        try:
            return await call.answer
        finally:
            connection.cancel(stream)

    # Answering

    def answer(
        self,
        connection: Connection,
        stream: int,
        ask: TellFeedback | AskDisagreements,
        data: memoryview,
    ) -> None:
        """Answer a node that asks.

        Raises:
            MeshError: if what it passes on is no feedback, or does not fit the answer.
        """
        if isinstance(ask, TellFeedback):
            counted = self._releasing.tell(read_feedback(data), ask.caller)
            told = FeedbackTold(counted is not None)
            body = b"" if counted is None else msgspec.json.encode(counted)
            connection.reply(stream, STREAMS.encode(told), [body] if body else [], end=True)
            return
        view = self._releasing.mirroring.disagreements.view(ask.model)
        body = b"" if view is None else msgspec.json.encode(view)
        meta = STREAMS.encode(DisagreementsTold(view is not None))
        connection.reply(stream, meta, [body] if body else [], end=True)


def _counted_in(meta: bytes, data: memoryview, end: bool) -> Counted | None:
    message = answer_message(meta)
    if not isinstance(message, FeedbackTold) or not end:
        raise ProtocolError("a peer answered a feedback in an unknown form")
    return _read(_COUNTED, data) if message.found else None


def _view_in(meta: bytes, data: memoryview, end: bool) -> View | None:
    message = answer_message(meta)
    if not isinstance(message, DisagreementsTold) or not end:
        raise ProtocolError("a peer answered a question for disagreements in an unknown form")
    return _read(_VIEW, data) if message.found else None


def _read(decoder: msgspec.json.Decoder[_Found], data: memoryview) -> _Found:
    try:
        return decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(f"a peer's word about a release is not valid: {error}") from error
