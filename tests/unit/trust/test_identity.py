from __future__ import annotations

import pytest

from meshnode.trust.identity import Identity, verify
from meshnode.types import node_id_of


def test_an_identity_is_its_seed() -> None:
    one, two = Identity(b"a" * 32), Identity(b"a" * 32)
    assert one.public_key == two.public_key
    assert one.node_id == node_id_of(one.public_key)
    assert one.sign(b"x") == two.sign(b"x")


def test_the_key_matches_the_first_vector_of_rfc_8032() -> None:
    seed = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
    identity = Identity(seed)
    assert identity.public_key.hex() == (
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
    )
    assert identity.sign(b"").hex().startswith("e5564300c360ac729086e2cc806e828a")


def test_a_signature_fits_its_data_and_key_only() -> None:
    identity, other = Identity(b"a" * 32), Identity(b"b" * 32)
    signature = identity.sign(b"data")
    assert verify(identity.public_key, b"data", signature)
    assert not verify(identity.public_key, b"Data", signature)
    assert not verify(other.public_key, b"data", signature)


@pytest.mark.parametrize(("key_bytes", "signature_bytes"), [(0, 64), (31, 64), (32, 63), (32, 65)])
def test_wrong_lengths_are_no_signature(key_bytes: int, signature_bytes: int) -> None:
    assert not verify(bytes(key_bytes), b"data", bytes(signature_bytes))


def test_a_seed_has_32_bytes() -> None:
    with pytest.raises(ValueError, match="32 bytes, not 31"):
        Identity(bytes(31))


def test_repr_shows_the_node_and_never_the_secret() -> None:
    identity = Identity(b"seedseed" * 4)
    assert repr(identity) == f"<Identity {identity.node_id}>"


def test_both_ends_compute_the_same_shared_key_and_nobody_else_does() -> None:
    one, two, three = (Identity(bytes([n]) * 32) for n in (1, 2, 3))
    assert one.shared_key(two.public_key) == two.shared_key(one.public_key)
    assert one.shared_key(two.public_key) != one.shared_key(three.public_key)


@pytest.mark.parametrize("key", [b"", bytes(31), bytes(32), b"\x01" + bytes(31), b"\xff" * 32])
def test_a_key_that_no_honest_node_has_gives_no_shared_key(key: bytes) -> None:
    with pytest.raises(ValueError, match="not usable"):
        Identity(b"a" * 32).shared_key(key)
