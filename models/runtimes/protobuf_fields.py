"""Walks through a protobuf message in a file field by field, reading only what its caller reads.

Model files are gigabytes of weights around a few kilobytes of structure; the protobuf package would read all of
it. The layout is the published wire format (https://protobuf.dev/programming-guides/encoding).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, BinaryIO, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

_VARINT: Final = 0
_LENGTH_PREFIXED: Final = 2
_FIXED: Final = {1: 8, 5: 4}
"""Bytes that fields of these wire types take."""
_VARINT_BYTES: Final = 10  # bytes of 64 bits, seven in each


class Unreadable(ValueError):
    """It is no such message, or cut off."""


def fields(stream: BinaryIO, end: int) -> Iterator[tuple[int, int]]:
    """Yield the number and the end of each field with a length, up to a place in the file.

    The stream stands at the field's first byte; whatever is read of it, the next one is found.

    Raises:
        Unreadable: if the bytes are no message.
    """
    while stream.tell() < end:
        tag = _varint(stream)
        kind = tag & 7
        if kind == _VARINT:
            _varint(stream)
        elif kind in _FIXED:
            stream.seek(_FIXED[kind], 1)
        elif kind == _LENGTH_PREFIXED:
            length = _varint(stream)
            field_end = stream.tell() + length
            if field_end > end:
                raise Unreadable("a field is longer than its message")
            yield tag >> 3, field_end
            stream.seek(field_end)
        else:
            raise Unreadable("no such kind of field")


def _varint(stream: BinaryIO) -> int:
    value = 0
    for count in range(_VARINT_BYTES):
        byte = stream.read(1)
        if not byte:
            raise Unreadable("the file ends within a number")
        value |= (byte[0] & 0x7F) << (7 * count)
        if byte[0] < 0x80:
            return value
    raise Unreadable("a number is too long")
