"""A node's identity: one Ed25519 key, made from a 32-byte seed.

The seed is the node: whoever has it can speak as it. So it stays in this object; neither `repr`
nor a log line shows it. The same class holds a mesh's root key and an invite's delegated key,
which are Ed25519 keys too.
"""

from __future__ import annotations

from typing import Final

import nacl.bindings
import nacl.exceptions

from meshnode.types import NodeId, node_id_of

SEED_BYTES: Final = 32
PUBLIC_KEY_BYTES: Final = 32
SIGNATURE_BYTES: Final = 64


class Identity:
    """An Ed25519 key pair.

    Attributes:
        public_key: 32 bytes.
        node_id: The NodeId of that key.
    """

    __slots__ = ("_secret_key", "node_id", "public_key")

    def __init__(self, seed: bytes) -> None:
        """Derive the key pair from a seed of 32 random bytes.

        Raises:
            ValueError: if the seed has another length.
        """
        if len(seed) != SEED_BYTES:
            raise ValueError(f"an Ed25519 seed has {SEED_BYTES} bytes, not {len(seed)}")
        public_key, self._secret_key = nacl.bindings.crypto_sign_seed_keypair(seed)
        self.public_key: bytes = public_key
        self.node_id: NodeId = node_id_of(public_key)

    def __repr__(self) -> str:
        return f"<Identity {self.node_id}>"

    def sign(self, data: bytes) -> bytes:
        """Return the 64-byte signature of `data`."""
        return nacl.bindings.crypto_sign(data, self._secret_key)[:SIGNATURE_BYTES]

    def shared_key(self, peer_public_key: bytes) -> bytes:
        """Return the 32-byte key that only this node and the peer can compute (X25519, HSalsa20).

        Args:
            peer_public_key: The peer's Ed25519 public key.

        Raises:
            ValueError: if those bytes are not a point that an honest node could have as its key.
        """
        bindings = nacl.bindings
        try:
            peer = bindings.crypto_sign_ed25519_pk_to_curve25519(peer_public_key)
            own = bindings.crypto_sign_ed25519_sk_to_curve25519(self._secret_key)
            return bindings.crypto_box_beforenm(peer, own)
        except (nacl.exceptions.RuntimeError, nacl.exceptions.ValueError) as error:
            raise ValueError("the peer's public key is not usable") from error


def verify(public_key: bytes, data: bytes, signature: bytes) -> bool:
    """Whether `signature` is that of `data` by the holder of an Ed25519 public key.

    Wrong lengths are simply not a signature.
    """
    # libsodium reads 32 bytes of key whatever it is given: lengths are checked here.
    if len(public_key) != PUBLIC_KEY_BYTES or len(signature) != SIGNATURE_BYTES:
        return False
    try:
        nacl.bindings.crypto_sign_open(signature + data, public_key)
    except nacl.exceptions.BadSignatureError:
        return False
    return True
