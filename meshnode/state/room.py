"""How much the desired state may hold: admissions, other statements and all else have their own room."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

from meshnode.errors import TooLarge, UsageError
from meshnode.limits import (
    MAX_ADMISSION_KEYS,
    MAX_ADMISSIONS_TOTAL_BYTES,
    MAX_DESIRED_KEY_LENGTH,
    MAX_DESIRED_VALUE_BYTES,
    MAX_MODELS,
    MAX_STATEMENT_KEYS,
    MAX_STATEMENTS_TOTAL_BYTES,
)
from meshnode.state.statements import ADMISSION, is_statement

if TYPE_CHECKING:
    from meshnode.state.desired_messages import Entry


class _Kind(StrEnum):
    """What has room of its own; the value says it to people."""

    ADMISSION = "admissions of members"
    STATEMENT = "statements about members"
    OTHER = "deployments and API keys"


def _kind(key: str) -> _Kind:
    if key.startswith(ADMISSION):
        return _Kind.ADMISSION
    return _Kind.STATEMENT if is_statement(key) else _Kind.OTHER


class Room:
    """What is held, counted apart for admissions, for evictions with roles, and for everything else.

    Plain members may state admissions, and only admins what takes them away: so a mesh that is full of
    either kind of thing can still evict.

    A node's own writes keep to the limits; those of peers are taken up to twice that, so that racing
    writers never make maps differ.
    """

    __slots__ = ("_held_bytes", "_held_keys", "_max_bytes", "_max_keys")

    def __init__(self, max_total_bytes: int) -> None:
        """Hold nothing yet; `max_total_bytes` bounds everything but statements."""
        self._held_keys = dict.fromkeys(_Kind, 0)
        self._held_bytes = dict.fromkeys(_Kind, 0)
        self._max_keys = {
            _Kind.ADMISSION: MAX_ADMISSION_KEYS,
            _Kind.STATEMENT: MAX_STATEMENT_KEYS,
            _Kind.OTHER: MAX_MODELS,
        }
        self._max_bytes = {
            _Kind.ADMISSION: MAX_ADMISSIONS_TOTAL_BYTES,
            _Kind.STATEMENT: MAX_STATEMENTS_TOTAL_BYTES,
            _Kind.OTHER: max_total_bytes,
        }

    def __repr__(self) -> str:
        return f"<Room with {sum(self._held_keys.values())} keys, {self.size_bytes} bytes>"

    @property
    def size_bytes(self) -> int:
        """All that is held."""
        return sum(self._held_bytes.values())

    def count(self, key: str, keys: int, size_bytes: int) -> None:
        """Count what came under a key, or went."""
        kind = _kind(key)
        self._held_keys[kind] += keys
        self._held_bytes[kind] += size_bytes

    def copy(self) -> Room:
        """Return another one that is as full."""
        made = Room(self._max_bytes[_Kind.OTHER])
        made._held_keys = dict(self._held_keys)
        made._held_bytes = dict(self._held_bytes)
        return made

    def require(self, key: str, value: bytes, *, is_new: bool) -> None:
        """Check that this node may write a value, and count it.

        Raises:
            UsageError: if the key is empty.
            TooLarge: if the key or the value is, or there is no room for it.
        """
        if not key:
            raise UsageError("a key of the desired state cannot be empty")
        if len(key) > MAX_DESIRED_KEY_LENGTH:
            raise TooLarge(f"a key has {len(key)} characters; at most {MAX_DESIRED_KEY_LENGTH}")
        if len(value) > MAX_DESIRED_VALUE_BYTES:
            raise TooLarge(
                f"the value of {key!r} has {len(value)} bytes; at most {MAX_DESIRED_VALUE_BYTES}"
            )
        kind = _kind(key)
        if is_new and self._held_keys[kind] >= self._max_keys[kind]:
            raise TooLarge(
                f"the mesh has room for {self._max_keys[kind]} keys of {kind}, and has as many; "
                + ("delete some first" if kind is _Kind.OTHER else "found a new mesh")
            )
        if self._held_bytes[kind] + len(value) > self._max_bytes[kind]:
            raise TooLarge(
                f"the desired state would exceed {self._max_bytes[kind]} bytes with {key!r}"
            )
        self.count(key, int(is_new), len(value))

    def why_none(self, entry: Entry, *, is_new: bool) -> str | None:
        """Say why an entry of another node finds no room, or None."""
        kind = _kind(entry.key)
        if is_new and self._held_keys[kind] >= 2 * self._max_keys[kind]:
            return f"there are {self._held_keys[kind]} keys already"
        if self._held_bytes[kind] + entry.size_bytes > 2 * self._max_bytes[kind]:
            return f"the desired state has {self._held_bytes[kind]} bytes already"
        return None
