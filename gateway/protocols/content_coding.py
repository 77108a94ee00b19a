"""Content-Encoding of whole bodies: gzip and deflate, with a limit on what a body may become.

"deflate" is the zlib format (RFC 9110, section 8.4.1.2), which Triton's clients send too.
Decompression stops at the limit, so that a small body which unpacks to gigabytes costs no more
than a large one (a zip bomb).
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

from meshnode.errors import InvalidRequest, TooLarge

if TYPE_CHECKING:
    from meshnode.types import Buffer

_WINDOW_BITS = {"gzip": 31, "x-gzip": 31, "deflate": 15}  # zlib's: 16 added selects gzip's header
_LEVEL = 1  # tensors hardly shrink at higher levels, which take 5 to 20 times as long


def decompress(body: Buffer, coding: str, limit_bytes: int) -> bytes:
    """Undo a request's Content-Encoding.

    Args:
        body: The compressed bytes.
        coding: The header's value, not empty.
        limit_bytes: What the result may be at most.

    Raises:
        InvalidRequest: if the coding is unknown or the bytes are damaged, or several gzip members: no client sends
            them, and millions of tiny ones would cost a multiple of what their bytes do.
        TooLarge: if the result would exceed the limit; no more than the limit was unpacked.
    """
    window_bits = _WINDOW_BITS.get(coding.strip().lower())
    if window_bits is None:
        raise InvalidRequest(
            f"Content-Encoding {coding[:40]!r} is not supported; use gzip, deflate or none"
        )
    stream = zlib.decompressobj(window_bits)
    try:
        plain = stream.decompress(body, limit_bytes + 1)
    except zlib.error as error:
        raise InvalidRequest(
            f"the body is no valid {coding.strip().lower()} data: {error}"
        ) from error
    if len(plain) > limit_bytes:
        raise TooLarge(f"the body is larger than {limit_bytes} bytes when decompressed")
    if not stream.eof:
        raise InvalidRequest(f"the {coding.strip().lower()} data of the body is cut off")
    if stream.unused_data:
        raise InvalidRequest(f"bytes follow the {coding.strip().lower()} data of the body")
    return plain


def wanted_coding(accept_encoding: str | None) -> str:
    """Return the coding that an answer should have: `gzip`, `deflate`, or `` for none.

    Only a client that names exactly one coding asks for it, as Triton's clients do. The lists that
    browsers and HTTP libraries send with everything ("gzip, deflate, br") permit compression, and
    tensors are rarely worth it: a core packs less per second than a local network carries.
    """
    if not accept_encoding:
        return ""
    coding = accept_encoding.strip().lower()
    return coding if coding in ("gzip", "deflate") else ""


def compress(parts: list[Buffer], coding: str) -> bytes:
    """Return the parts, one after the other, as one body under `gzip` or `deflate`."""
    stream = zlib.compressobj(_LEVEL, zlib.DEFLATED, _WINDOW_BITS[coding])
    return b"".join([*(stream.compress(part) for part in parts), stream.flush()])
