"""The desired state as bytes on disk: a version, a checksum, and MessagePack.

The checksum tells a file that was torn or changed from one that is whole; whether the entries are
genuine was checked when they were accepted.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final

import msgspec

from meshnode.errors import ConfigError
from meshnode.state.desired_messages import Entry

if TYPE_CHECKING:
    from collections.abc import Iterable

_MAGIC: Final = b"meshnode-desired-1\n"
_SUM_BYTES: Final = 32


class Stored(msgspec.Struct, array_like=True, frozen=True):
    """What survives a restart.

    Attributes:
        entries: All revisions of all keys.
        contact_ms: Wall clock of the last contact with another node; None if there was none.
    """

    entries: tuple[Entry, ...]
    contact_ms: int | None


_DECODER = msgspec.msgpack.Decoder(Stored)


def pack(entries: Iterable[Entry], contact_ms: int | None) -> bytes:
    """Return the bytes to persist."""
    body = msgspec.msgpack.encode(Stored(tuple(entries), contact_ms))
    return _MAGIC + hashlib.sha256(body).digest() + body


def unpack(stored: bytes) -> Stored:
    """Read what `pack` wrote.

    Raises:
        ConfigError: if the bytes are torn, changed, or of another version; the message says what
            to do. Nothing was read.
    """
    body_at = len(_MAGIC) + _SUM_BYTES
    body = stored[body_at:]
    if not stored.startswith(_MAGIC):
        raise _unusable("does not begin as this version of meshnode writes it")
    if stored[len(_MAGIC) : body_at] != hashlib.sha256(body).digest():
        raise _unusable("is torn or was changed: its checksum does not match")
    try:
        return _DECODER.decode(body)
    except (msgspec.MsgspecError, ValueError) as error:
        raise _unusable(f"does not hold what it should: {error}") from error


def _unusable(what: str) -> ConfigError:
    return ConfigError(
        f"the stored desired state {what}; move the file away, and this node takes the desired "
        "state over from its mesh again"
    )
