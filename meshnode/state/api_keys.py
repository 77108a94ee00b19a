"""API keys: who may call a gateway from elsewhere, as values under `key/ID` of the desired state.

A key is the text `mesh_<id>_<secret>`. The mesh knows the id, by which a gateway finds the entry,
and the SHA-256 of the whole text, never the text itself: whoever reads a node's disk or the gossip
learns no key. The secret has 256 random bits, so a fast hash is enough; slow ones are for passwords.

An entry is written when the key is made, when its limit changes and when it is revoked. It is deleted only when the
key expired long ago (`why_kept`): a revoked key's entry stays as long as the key could be good for
anything, so that no node that was away brings it back to life.
"""

from __future__ import annotations

import base64
import hashlib
import re
from typing import TYPE_CHECKING, Final

import msgspec

from meshnode.errors import InvalidRequest, ProtocolError
from meshnode.key_limit import NO_LIMIT, KeyLimit
from meshnode.limits import (
    API_KEY_FORGET_S,
    MAX_API_KEY_ENTRIES,
    MAX_API_KEYS,
    MAX_KEY_TTL_S,
    MAX_NAME_LENGTH,
    MAX_RECORD_WALL_S,
)
from meshnode.types import Scope

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from meshnode.state.desired import DesiredState

KEY_PREFIX: Final = "key/"
"""Keys of the desired state that hold API keys begin with this."""

ID_BYTES: Final = 10
"""Random bytes of an id: 80 bits never meet by chance."""

SECRET_BYTES: Final = 32
"""Random bytes of a secret."""

_ID = re.compile(r"[a-z2-7]{16}")
_TEXT = re.compile(r"mesh_([a-z2-7]{16})_[a-z2-7]{52}")
_NAME = re.compile(rf"[A-Za-z0-9._-]{{1,{MAX_NAME_LENGTH}}}")
_DIGEST_BYTES: Final = 32


class ApiKey(msgspec.Struct, array_like=True, frozen=True):
    """One API key as every node knows it.

    Attributes:
        id: 16 base32 characters; part of the key's text.
        name: What people call it; among the keys that are not revoked, nobody else's.
        scopes: What its holder may do, as words of `Scope`; words of later versions allow nothing.
        sha256: SHA-256 of the key's text, 32 bytes.
        created_at_s: Seconds since the Unix epoch.
        expires_at_s: Likewise; None if it does not expire.
        revoked_at_s: Likewise; None as long as it is not revoked.
        limit: How much its holder may ask of each gateway.
    """

    id: str
    name: str
    scopes: tuple[str, ...]
    sha256: bytes
    created_at_s: int
    expires_at_s: int | None = None
    revoked_at_s: int | None = None
    limit: KeyLimit = NO_LIMIT

    @property
    def key(self) -> str:
        """Where it is in the desired state."""
        return KEY_PREFIX + self.id

    @property
    def scope(self) -> Scope | None:
        """The widest of its scopes, which includes the others; None if it allows nothing."""
        return max(
            (Scope(word) for word in self.scopes if word in GRANTABLE),
            key=list(Scope).index,
            default=None,
        )

    def state(self, wall_s: float) -> str:
        """Return `valid`, `expired` or `revoked`."""
        if self.revoked_at_s is not None:
            return "revoked"
        if self.expires_at_s is not None and wall_s >= self.expires_at_s:
            return "expired"
        return "valid"

    def encode(self) -> bytes:
        """Return the value to put into the desired state."""
        return msgspec.msgpack.encode(self)

    @classmethod
    def decode(cls, value: bytes) -> ApiKey:
        """Read a value of the desired state.

        Raises:
            ProtocolError: if the bytes are no API key.
        """
        try:
            found = _DECODER.decode(value)
        except (msgspec.MsgspecError, ValueError) as error:
            raise ProtocolError(f"a value is not an API key: {error}") from error
        times = (found.created_at_s, found.expires_at_s or 0, found.revoked_at_s or 0)
        if (
            not _ID.fullmatch(found.id)
            or not _NAME.fullmatch(found.name)
            or len(found.sha256) != _DIGEST_BYTES
            or not all(0 <= time_s <= MAX_RECORD_WALL_S for time_s in times)
            or not found.limit.is_valid
        ):
            raise ProtocolError("a value is not an API key: a field is outside its limits")
        return found


_DECODER = msgspec.msgpack.Decoder(ApiKey)

GRANTABLE: Final = (Scope.INFER, Scope.DEPLOY, Scope.ADMIN)
"""The scopes that a key can have."""


def make_api_key(
    name: str,
    scopes: Sequence[str],
    ttl_s: int | None,
    now_wall_s: float,
    random_bytes: bytes,
    existing: Iterable[ApiKey],
    limit: KeyLimit = NO_LIMIT,
) -> tuple[ApiKey, str]:
    """Make a key.

    Args:
        name: 1 to 63 letters, digits, `.`, `_`, `-`.
        scopes: One or more of `infer`, `deploy`, `admin`.
        ttl_s: Seconds until it expires; None if it does not.
        now_wall_s: Seconds since the Unix epoch.
        random_bytes: `ID_BYTES + SECRET_BYTES` bytes from the operating system.
        existing: The keys that there are.
        limit: How much its holder may ask.

    Returns:
        The entry, and the key's text, which is told once and kept nowhere.

    Raises:
        InvalidRequest: if a field breaks its rule, a key of this name is not revoked, or there are
            too many valid ones.
    """
    if len(random_bytes) != ID_BYTES + SECRET_BYTES:
        raise ValueError("a key needs its full randomness")
    if not _NAME.fullmatch(name):
        raise InvalidRequest(
            f"{name[:80]!r} is not a key's name: use 1 to {MAX_NAME_LENGTH} letters, digits, "
            "'-', '_' or '.'"
        )
    unknown = [word for word in scopes if word not in GRANTABLE]
    if unknown or not scopes:
        raise InvalidRequest(
            f"{unknown[0][:40]!r} is no scope; there are infer, deploy and admin"
            if unknown
            else "a key needs a scope: infer, deploy or admin"
        )
    if ttl_s is not None and not 1 <= ttl_s <= MAX_KEY_TTL_S:
        raise InvalidRequest(
            f"a key lasts 1 second to {MAX_KEY_TTL_S // 86_400} days, or does not expire"
        )
    known = list(existing)
    if any(each.name == name and each.revoked_at_s is None for each in known):
        raise InvalidRequest(
            f"there is a key {name!r} already; choose another name, or revoke it first: "
            f"meshnode keys revoke {name}"
        )
    valid = sum(each.state(now_wall_s) == "valid" for each in known)
    if valid >= MAX_API_KEYS:
        raise InvalidRequest(
            f"the mesh has {valid} valid keys and takes no more; revoke some that nobody uses any "
            "more (meshnode keys list; meshnode keys revoke NAME), or let one key serve several "
            "callers"
        )
    key_id = _base32(random_bytes[:ID_BYTES])
    text = f"mesh_{key_id}_{_base32(random_bytes[ID_BYTES:])}"
    created_at_s = int(now_wall_s)
    made = ApiKey(
        key_id,
        name,
        tuple(scope for scope in GRANTABLE if scope in scopes),
        hash_of(text),
        created_at_s,
        None if ttl_s is None else created_at_s + ttl_s,
        limit=limit,
    )
    return made, text


def to_forget(existing: Sequence[ApiKey], wall_s: float) -> ApiKey | None:
    """Return the key whose entry must make room for another one; None if there is room.

    Raises:
        InvalidRequest: if there is no room, and none of them may be forgotten.
    """
    if len(existing) < MAX_API_KEY_ENTRIES:
        return None
    forgettable = [each for each in existing if _is_long_gone(each, wall_s)]
    if not forgettable:
        raise InvalidRequest(
            f"the mesh remembers {len(existing)} keys, expired and revoked ones included, and takes "
            f"no more: a key is forgotten {API_KEY_FORGET_S // 86_400} days after its expiry at the "
            "earliest, and never if it has none; let one key serve several callers, and give new "
            "ones a --ttl"
        )
    return min(forgettable, key=lambda each: each.expires_at_s or 0)


def why_kept(value: bytes, wall_s: float) -> str | None:
    """Return why an API key's entry may not be deleted, or None if its key expired long ago.

    Args:
        value: The entry's, as it is known here.
        wall_s: When it is to be deleted, in seconds since the Unix epoch.
    """
    try:
        key = ApiKey.decode(value)
    except ProtocolError:
        return "what is no API key to this version of meshnode may be one to another"
    if _is_long_gone(key, wall_s):
        return None
    return "an API key is revoked, and deleted only long after its expiry"


def _is_long_gone(key: ApiKey, wall_s: float) -> bool:
    return key.expires_at_s is not None and wall_s - key.expires_at_s >= API_KEY_FORGET_S


def id_in(text: str) -> str | None:
    """Return the id within a key's text, or None if the text is no key."""
    match = _TEXT.fullmatch(text)
    return match[1] if match else None


def hash_of(text: str) -> bytes:
    """Return the SHA-256 by which a key's text is known."""
    return hashlib.sha256(text.encode()).digest()


class Keyring:
    """The API keys as the desired state holds them at this moment."""

    def __init__(self, desired: DesiredState) -> None:
        """Read from `desired`."""
        self._desired = desired
        # By id: the value it was decoded from, and what came of it. Bounded as the desired state.
        self._decoded: dict[str, tuple[bytes, ApiKey | None]] = {}

    def __repr__(self) -> str:
        return f"<Keyring: {len(self._decoded)} keys decoded>"

    def get(self, key_id: str) -> ApiKey | None:
        """Return a key, whatever its state; None if there is none, or what is there is no key."""
        value = self._desired.get(KEY_PREFIX + key_id)
        if value is None:
            self._decoded.pop(key_id, None)
            return None
        before = self._decoded.get(key_id)
        if before is not None and before[0] is value:
            return before[1]
        try:
            found: ApiKey | None = ApiKey.decode(value)
        except ProtocolError:
            found = None  # of a later version, or nonsense: it opens nothing
        if found is not None and found.id != key_id:
            found = None
        self._decoded[key_id] = (value, found)
        return found

    def opens(self, key_id: str, wall_s: float) -> bool:
        """Whether the key of an id is valid."""
        found = self.get(key_id)
        return found is not None and found.state(wall_s) == "valid"

    def all(self) -> list[ApiKey]:
        """Return all keys, revoked and expired ones included, the oldest first."""
        ids = (key.removeprefix(KEY_PREFIX) for key, _ in self._desired.items() if is_api_key(key))
        found = [each for each in map(self.get, ids) if each is not None]
        return sorted(found, key=lambda each: (each.created_at_s, each.id))


def is_api_key(key: str) -> bool:
    """Whether a key of the desired state holds an API key."""
    return key.startswith(KEY_PREFIX)


def _base32(data: bytes) -> str:
    return base64.b32encode(data).decode().rstrip("=").lower()
