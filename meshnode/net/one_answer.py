"""A question on a stream of a link, whose answer has one part."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from meshnode.errors import MeshError
from meshnode.net.connection import peer_error
from meshnode.wire.messages import STREAMS, Failure

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshnode.wire.codec import Codec

_Found = TypeVar("_Found")


class OneAnswer(Generic[_Found]):
    """Receives the answer; the `StreamHandler` of its stream.

    Attributes:
        answer: What was made of it; fails with what the peer says instead, or with the loss of its link.
    """

    def __init__(self, read: Callable[[bytes, memoryview, bool], _Found]) -> None:
        """Wait for it on the running event loop.

        Args:
            read: Makes something of the part: its message, its data, and whether nothing follows. Raises
                MeshError if it is no answer.
        """
        self._read = read
        self.answer: asyncio.Future[_Found] = asyncio.get_running_loop().create_future()

    def __repr__(self) -> str:
        return f"<OneAnswer{', here' if self.answer.done() else ''}>"

    def part(self, meta: bytes, data: memoryview, end: bool) -> None:
        """Take it; what comes after it is nobody's."""
        if self.answer.done():
            return
        try:
            found = self._read(meta, data, end)
        except MeshError as error:
            self.answer.set_exception(error)
        else:
            self.answer.set_result(found)

    def lost(self, error: MeshError) -> None:
        """Fail, if it is not here."""
        if not self.answer.done():
            self.answer.set_exception(error)


def answer_message(meta: bytes, codec: Codec = STREAMS) -> Any:
    """Return the message of an answer, whatever it is.

    Raises:
        ProtocolError: if it is none.
        MeshError: what the peer says instead of an answer.
    """
    message = codec.decode(meta)
    if isinstance(message, Failure):
        raise peer_error(message.code, message.message)
    return message
