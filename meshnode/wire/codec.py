"""Typed messages as MessagePack arrays: `[type, field, field, ...]`.

The type number comes first, so that a receiver reads it before anything else and skips a message
that it does not know. Fields that a newer version appended are ignored, missing trailing fields
take their defaults, and an array cannot repeat a key. Decoding validates every type (msgspec).

A codec knows a set of message classes::

    class Ping(Message, frozen=True, tag=1):
        sequence: int

    codec = Codec(Ping)
    codec.decode(codec.encode(Ping(7)))  # Ping(sequence=7)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from meshnode.errors import ProtocolError

if TYPE_CHECKING:
    from meshnode.types import Buffer


class Message(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=0):
    """Base of all messages. A subclass names its number: `class Ping(Message, frozen=True, tag=1)`."""


class Codec:
    """Encodes and decodes a set of message classes.

    Encoders keep no state between calls; one codec serves a whole process.
    """

    def __init__(self, *types: type[Message]) -> None:
        """Know these classes; their tags must differ."""
        self._encoder = msgspec.msgpack.Encoder()
        self._decoders: dict[int, msgspec.msgpack.Decoder[Any]] = {}
        for message in types:
            tag = message.__struct_config__.tag
            if not isinstance(tag, int) or tag in self._decoders:
                raise ValueError(f"{message.__name__} needs a tag of its own, not {tag!r}")
            self._decoders[tag] = msgspec.msgpack.Decoder(message)

    def __repr__(self) -> str:
        return f"<Codec of {len(self._decoders)} messages>"

    def encode(self, message: Message) -> bytes:
        """Return the message's bytes."""
        return self._encoder.encode(message)

    def decode(self, data: Buffer) -> Any:
        """Return the message, or None if its type is not one of this codec's.

        Raises:
            ProtocolError: if the bytes are no message, or a known one with wrong fields.
        """
        decoder = self._decoders.get(message_type(data))
        if decoder is None:
            return None
        try:
            return decoder.decode(data)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, ValueError) as error:
            raise ProtocolError(
                f"a message does not have the shape of its type: {error}"
            ) from error


def message_type(data: Buffer) -> int:
    """Read the type number at the front of a message without decoding the rest.

    Raises:
        ProtocolError: if the bytes are not an array that begins with a small number.
    """
    # MessagePack: 0x9N is an array of N elements, 0xdc one with a 16-bit count, 0xdd a 32-bit one;
    # numbers below 128 are one byte, those below 256 follow 0xcc.
    view = memoryview(data)
    first = view[0] if view.nbytes else 0
    start = 1 if 0x91 <= first <= 0x9F else {0xDC: 3, 0xDD: 5}.get(first, 0)
    if start and view.nbytes > start:
        number = view[start]
        if number < 0x80:
            return number
        if number == 0xCC and view.nbytes > start + 1:
            return view[start + 1]
    raise ProtocolError("a message is not an array that begins with its type number")
