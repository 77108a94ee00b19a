"""The homes of `Idempotency-Key`s: one live node knows, for the whole mesh, what a key was used for.

The home of a key is the live member that ranks first for it (rendezvous hashing), so all nodes name the same one as long as
they see the same members, and a node that comes or goes moves only its share.

    this gateway                                      the key's home
    Once(digest, fingerprint) ───────────────────────> known? running? wait …
        <── Forwarded(0)  carry it out; the stream stays open: while it is, the key is this gateway's
        <── Forwarded(status, headers) + body, end     it was answered so
        <── Failure(idempotency_key_reused)            the key came with another request
    Once(digest, fingerprint, status, headers) + body > what it was answered, sealed; or status 1: nothing to keep
        <── Forwarded(0), end                          and the first stream ends

When the gateway dies, its link ends, and with it the claim: whoever waits carries the request out. When the home dies, the
answers that it kept are gone; the gateway that gave one still has its own copy.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from typing import TYPE_CHECKING, Final

from meshnode.errors import IdempotencyKeyReused, LinkLost, MeshError, ProtocolError
from meshnode.gateway.sealed_answers import Kept
from meshnode.limits import (
    MAX_FORWARDED_HEADER_LENGTH,
    MAX_KEPT_HEADERS,
    MAX_SEALED_BYTES,
    ONCE_HOME_TIMEOUT_S,
)
from meshnode.net.connection import peer_error
from meshnode.wire.messages import STREAMS, Failure, Forwarded, Once

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meshnode.daemon.forwarding import Reach
    from meshnode.gateway.idempotency import AnswersOnce
    from meshnode.net.connection import Connection
    from meshnode.node import Node
    from meshnode.types import NodeId

log = logging.getLogger(__name__)

_GO_AHEAD: Final = 0
_NOTHING_KEPT: Final = 1


def home_of(digest: bytes, nodes: list[NodeId]) -> NodeId | None:
    """Return the node that is a key's home, or None if there are no nodes."""
    return max(
        nodes,
        key=lambda node: hashlib.sha256(digest + node.encode()).digest(),
        default=None,
    )


class KeyHomes:
    """Asks homes, as `meshnode.gateway.idempotency.Home`, and is one."""

    def __init__(self, node: Node, reach: Reach, once: AnswersOnce) -> None:
        """Know who lives by `node`, ask over its links, and keep what others ask in `once`."""
        self._node = node
        self._reach = reach
        self._once = once

    def __repr__(self) -> str:
        return f"<KeyHomes of {self._node.me[:8]}>"

    # The gateway's side

    async def claim(self, digest: bytes, fingerprint: bytes) -> HomeClaim | None:
        """Ask a key's home for a request; None if this node is the home, or the home cannot be asked.

        Raises:
            IdempotencyKeyReused: if the key came with another request.
        """
        live = [node for node, member in self._node.membership.members.items() if member.live]
        home = home_of(digest, live)
        if home is None or home == self._node.me:
            return None
        connection = self._reach.linked(home) or await self._reach.link(home)
        if connection is None:
            return None
        claim = HomeClaim(connection, digest, fingerprint)
        try:
            await claim.ask()
        except IdempotencyKeyReused:
            raise
        except (
            MeshError
        ) as error:  # a version that knows no homes, a lost link: answer by ourselves
            log.debug("the home of an Idempotency-Key could not be asked: %s", error)
            return None
        return claim

    # The home's side

    async def answer(
        self, connection: Connection, stream: int, ask: Once, body: memoryview
    ) -> None:
        """Answer a gateway that asks for a key, or tells what came of one.

        Raises:
            IdempotencyKeyReused: if the key came with another request.
            Saturated: if too many such requests run.
        """
        if ask.status != _GO_AHEAD:
            self._once.settle(ask.digest, _kept_of(ask.status, ask.headers, body))
            connection.reply(stream, STREAMS.encode(Forwarded(_GO_AHEAD)), end=True)
            return
        hello = connection.hello
        node = "" if hello is None else hello.peer.node_id
        known = await self._once.claim(ask.digest, ask.fingerprint, node)
        if known is not None:
            meta = STREAMS.encode(Forwarded(known.status, dict(known.headers)))
            connection.reply(stream, meta, [known.body], end=True)
            return
        try:
            connection.reply(stream, STREAMS.encode(Forwarded(_GO_AHEAD)), end=False)
            await self._once.ended(ask.digest)
        finally:  # cancelled where the link was lost, or the gateway gave up
            self._once.settle(ask.digest, None)
        connection.reply(stream, STREAMS.encode(Forwarded(_NOTHING_KEPT)), end=True)


class HomeClaim:
    """One question to a home, as `meshnode.gateway.idempotency.Claim`.

    Attributes:
        answer: What the request was answered elsewhere; None if it is to be carried out here.
    """

    def __init__(self, connection: Connection, digest: bytes, fingerprint: bytes) -> None:
        """Ask on this link; nothing is sent yet."""
        self.answer: Kept | None = None
        self._connection = connection
        self._digest = digest
        self._fingerprint = fingerprint
        self._stream: int | None = None
        self._said: asyncio.Future[Kept | None] = asyncio.get_running_loop().create_future()

    def __repr__(self) -> str:
        return f"<HomeClaim {self._digest.hex()[:8]}>"

    async def ask(self) -> None:
        """Ask, and wait until the home has said what it knows.

        However long another node works on the request, this waits: it has a deadline of its own.

        Raises:
            MeshError: what the home says, or LinkLost.
        """
        self._stream = self._connection.open(
            STREAMS.encode(Once(self._digest, self._fingerprint)), [], self
        )
        try:
            self.answer = await self._said
        except BaseException:
            self._connection.cancel(self._stream)
            raise

    async def settle(self, answer: Kept | None) -> None:
        """Tell the home what the request was answered; None: nothing that could be given again."""
        connection = self._connection
        told = _Told()
        try:
            if answer is None:
                message = Once(self._digest, self._fingerprint, _NOTHING_KEPT)
                stream = connection.open(STREAMS.encode(message), [], told)
            else:
                headers = dict(list(answer.headers.items())[:MAX_KEPT_HEADERS])
                message = Once(self._digest, self._fingerprint, answer.status, headers)
                stream = connection.open(STREAMS.encode(message), [answer.body], told)
            try:
                async with asyncio.timeout(ONCE_HOME_TIMEOUT_S):
                    await told.ended
            finally:
                connection.cancel(stream)
        except (MeshError, TimeoutError) as error:  # this gateway has the answer all the same
            log.debug("the home of an Idempotency-Key was not told: %s", error)
        finally:
            if self._stream is not None:
                connection.cancel(self._stream)

    # What the link calls.

    def part(self, meta: bytes, data: memoryview, end: bool) -> None:
        """Take what the home says."""
        if self._said.done():
            return
        try:
            message = STREAMS.decode(meta)
            if isinstance(message, Failure):
                raise peer_error(message.code, message.message)
            if not isinstance(message, Forwarded):
                raise ProtocolError("a peer answered for an Idempotency-Key in an unknown form")
            kept = _kept_of(message.status, message.headers, data)
            if kept is None and end:
                raise LinkLost("the home of the Idempotency-Key knows nothing of it")
        except MeshError as error:
            self._said.set_exception(error)
        else:
            self._said.set_result(kept)

    def lost(self, error: MeshError) -> None:
        """The link broke."""
        if not self._said.done():
            self._said.set_exception(error)


class _Told:
    """Waits for the end of a stream that says nothing."""

    def __init__(self) -> None:
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def part(self, meta: bytes, data: memoryview, end: bool) -> None:  # noqa: ARG002 - as links call it
        if not self.ended.done():
            self.ended.set_result(None)

    def lost(self, error: MeshError) -> None:
        if not self.ended.done():
            self.ended.set_exception(error)


def _kept_of(status: int, headers: Mapping[str, str], body: memoryview) -> Kept | None:
    """Return an answer that another node tells; None if it tells of none, or of none that may be given again."""
    if not 200 <= status < 300 or body.nbytes > MAX_SEALED_BYTES:
        return None
    passed = {
        name: value
        for name, value in list(headers.items())[:MAX_KEPT_HEADERS]
        if name.isascii()
        and name.replace("-", "").isalnum()
        and value.isprintable()
        and len(value) <= 4 * MAX_FORWARDED_HEADER_LENGTH
    }
    return Kept(status, passed, bytes(body))
