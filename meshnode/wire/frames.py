"""The layout of frames.

Every frame begins with 12 bytes, little-endian::

    u32 length    of what follows the header: meta and data
    u16 meta      length of the meta, which comes first
    u8  type      OPEN DATA WINDOW RESET PING PONG NOTE GOAWAY
    u8  flags     END MORE; unknown bits are ignored
    u32 stream    0 for frames that concern the whole link

| type   | stream | meta             | data                                                |
|--------|--------|------------------|-----------------------------------------------------|
| OPEN   | new id | first part's     | first part's, or u64 total with MORE                |
| DATA   | id     | a part's or none | a part's, u64 total with MORE, or a piece of a part |
| WINDOW | id     |                  | u32 bytes of further credit                         |
| RESET  | id     | a `Reset`        |                                                     |
| PING   | 0      |                  | u64 token                                           |
| PONG   | 0      |                  | the ping's token                                    |
| NOTE   | 0      | payload          |                                                     |
| GOAWAY | 0      |                  | (the sender takes no new streams; it may open some) |

A *part* is meta and data. It is either one frame, or an announcement (its meta, the flag MORE and
its total length), followed by DATA frames without meta that carry pieces of its data until the
total is reached. An announcement costs no credit, so it never waits, and lets the receiver
allocate once and read the pieces straight into place. END, on a part's only or last frame, says
that its sender's half of the stream is done.

The dialler's streams have odd ids, the acceptor's even ones; ids only rise. Frames of a type that
a receiver does not know are skipped, as are bytes behind those it knows in WINDOW, PING and PONG.
"""

from __future__ import annotations

from struct import Struct
from typing import Final

from meshnode.errors import ProtocolError
from meshnode.limits import MAX_RESET_CODE_LENGTH, MAX_RESET_MESSAGE_LENGTH
from meshnode.wire.codec import Codec, Message

WIRE_VERSIONS: Final = (1, 1)
"""Lowest and highest version spoken; the hello agrees on the highest that both speak."""

HEADER: Final = Struct("<IHBBI")
"""length, meta length, type, flags, stream."""

HEADER_BYTES: Final = HEADER.size

OPEN: Final = 1
DATA: Final = 2
WINDOW: Final = 3
RESET: Final = 4
PING: Final = 5
PONG: Final = 6
NOTE: Final = 7
GOAWAY: Final = 8

END: Final = 0x01
MORE: Final = 0x02

AMOUNT: Final = Struct("<I")
"""A WINDOW's credit."""

TOTAL: Final = Struct("<Q")
"""An announcement's total and a PING's token."""


class Reset(Message, frozen=True, tag=8):
    """Why a stream ends early; `code` is that of an error in `meshnode.errors`."""

    code: str = "cancelled"
    message: str = ""


_RESETS = Codec(Reset)


def part_header(kind: int, flags: int, stream: int, meta: bytes, data_bytes: int) -> bytes:
    """Return a frame's header and meta; `data_bytes` of data follow."""
    return HEADER.pack(len(meta) + data_bytes, len(meta), kind, flags, stream) + meta


def announcement_frame(kind: int, stream: int, meta: bytes, total_bytes: int) -> bytes:
    """Return the frame that says how much data follows in DATA frames."""
    return part_header(kind, MORE, stream, meta, TOTAL.size) + TOTAL.pack(total_bytes)


def window_frame(stream: int, amount_bytes: int) -> bytes:
    """Return a grant of credit."""
    return HEADER.pack(AMOUNT.size, 0, WINDOW, 0, stream) + AMOUNT.pack(amount_bytes)


def reset_frame(stream: int, code: str, message: str) -> bytes:
    """Return the early end of a stream; overlong texts are cut."""
    meta = _RESETS.encode(Reset(code[:MAX_RESET_CODE_LENGTH], message[:MAX_RESET_MESSAGE_LENGTH]))
    return HEADER.pack(len(meta), len(meta), RESET, 0, stream) + meta


def read_reset(meta: memoryview) -> Reset:
    """Read a RESET's meta; one of an unknown type still resets.

    Raises:
        ProtocolError: if it is no message.
    """
    reset: Reset | None = _RESETS.decode(meta)
    if reset is None:
        return Reset()
    return Reset(reset.code[:MAX_RESET_CODE_LENGTH], reset.message[:MAX_RESET_MESSAGE_LENGTH])


def token_frame(kind: int, token: int) -> bytes:
    """Return a PING or PONG."""
    return HEADER.pack(TOTAL.size, 0, kind, 0, 0) + TOTAL.pack(token)


def note_frame(payload: bytes) -> bytes:
    """Return a one-way message."""
    return part_header(NOTE, 0, 0, payload, 0)


GOAWAY_FRAME: Final = HEADER.pack(0, 0, GOAWAY, 0, 0)


def read_number(layout: Struct, data: memoryview, what: str) -> int:
    """Read the number at the front of a frame's data.

    Raises:
        ProtocolError: if the data is too short.
    """
    if len(data) < layout.size:
        raise ProtocolError(f"{what} has {len(data)} bytes of data instead of {layout.size}")
    number: int = layout.unpack_from(data)[0]
    return number
