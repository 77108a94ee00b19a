"""Answers as they are kept for repetitions by callers with API keys: only who repeats the request can read them.

An answer may hold a secret (a new API key, an invite) or what is nobody's business (an inference), and the node that keeps
it for the whole mesh may be one that is lent. So what another node is told is told apart and sealed with the text of the
caller's API key, which no node knows but the gateways that the caller asks, and those only while they answer:

- the digest and the fingerprint are HMACs under it: they tell nothing, and nobody else can ask for them;
- the answer is sealed (PyNaCl's SecretBox) with a key made of it and of the `Idempotency-Key`: a home can neither read
  one nor forge one, only forget it.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec
from nacl.exceptions import CryptoError
from nacl.secret import SecretBox

from meshnode.limits import MAX_IDEMPOTENT_ANSWER_BYTES, MAX_SEALED_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_ENTRY_BYTES: Final = 1000
"""What an entry takes besides its body: its key, its headers and the objects that hold them."""


_DECODER: Final = msgspec.msgpack.Decoder(tuple[int, dict[str, str], bytes])


class Kept(NamedTuple):
    """An answer that can be given again.

    Attributes:
        status: Of the answer; of a sealed one 200.
        headers: Likewise; of a sealed one none.
        body: Likewise; of a sealed one all three, sealed.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def size_bytes(self) -> int:
        """What keeping it takes."""
        return _ENTRY_BYTES + len(self.body)


class Seal:
    """What one caller's request is known by, and how its answer is kept."""

    def __init__(self, secret: str | None, who: str, key: str) -> None:
        """Make the names of a request.

        Args:
            secret: The text of the caller's API key; None for a caller without one, whose answers leave this node never
                and so are kept as they are.
            who: What tells such a caller from others.
            key: The `Idempotency-Key`.
        """
        self._secret = None if secret is None else secret.encode()
        self._box: SecretBox | None = None
        if self._secret is not None:
            self._box = SecretBox(self._mac(b"answer", key.encode()))
        self.digest = self._mac(b"key", msgspec.msgpack.encode([who, key]))

    def __repr__(self) -> str:
        return f"<Seal {self.digest.hex()[:8]}{'' if self._box else ', open'}>"

    @property
    def is_closed(self) -> bool:
        """Whether other nodes may keep what it sealed."""
        return self._box is not None

    def fingerprint(self, request_hash: bytes) -> bytes:
        """Return what tells other requests under the same key apart."""
        return self._mac(b"request", request_hash)

    def close(self, answer: Kept, random_bytes: Callable[[int], bytes]) -> Kept | None:
        """Return an answer as it is kept; None if it is too large."""
        if len(answer.body) > MAX_IDEMPOTENT_ANSWER_BYTES:
            return None
        if self._box is None:
            return answer
        plain = msgspec.msgpack.encode([answer.status, dict(answer.headers), answer.body])
        sealed = bytes(self._box.encrypt(plain, random_bytes(SecretBox.NONCE_SIZE)))
        return Kept(200, {}, sealed) if len(sealed) <= MAX_SEALED_BYTES else None

    def open(self, kept: Kept) -> Kept | None:
        """Return an answer that was kept; None if it is not what this seal closed."""
        if self._box is None:
            return kept
        try:
            return Kept(*_DECODER.decode(self._box.decrypt(kept.body)))
        except (CryptoError, msgspec.MsgspecError, ValueError):
            return None

    def _mac(self, what: bytes, data: bytes) -> bytes:
        if self._secret is None:
            return hashlib.sha256(what + b"\0" + data).digest()
        return hmac.digest(self._secret, what + b"\0" + data, "sha256")
