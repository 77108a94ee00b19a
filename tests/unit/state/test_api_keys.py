"""API keys as values of the desired state."""

from __future__ import annotations

import hashlib
from typing import Any

import msgspec
import pytest

from meshnode.errors import InvalidRequest, ProtocolError
from meshnode.limits import (
    API_KEY_FORGET_S,
    MAX_API_KEY_ENTRIES,
    MAX_API_KEYS,
    MAX_KEY_TTL_S,
)
from meshnode.state.api_keys import (
    ApiKey,
    Keyring,
    hash_of,
    id_in,
    make_api_key,
    to_forget,
    why_kept,
)
from meshnode.types import Scope

RANDOM = bytes(range(42))
NOW = 1_700_000_000.9


def make(
    name: str = "phone",
    scopes: tuple[str, ...] = ("infer",),
    ttl_s: int | None = None,
    random: bytes = RANDOM,
    existing: tuple[ApiKey, ...] = (),
) -> tuple[ApiKey, str]:
    return make_api_key(name, scopes, ttl_s, NOW, random, existing)


def test_a_keys_text_carries_its_id_and_the_entry_only_its_hash() -> None:
    key, text = make(ttl_s=60)
    assert text.startswith(f"mesh_{key.id}_")
    assert len(text) == 74
    assert id_in(text) == key.id
    assert key.sha256 == hash_of(text) == hashlib.sha256(text.encode()).digest()
    assert (key.created_at_s, key.expires_at_s, key.revoked_at_s) == (NOW // 1, NOW // 1 + 60, None)
    secret = text.rpartition("_")[2]
    assert secret.encode() not in key.encode()
    assert secret not in repr(key)
    assert ApiKey.decode(key.encode()) == key


def test_two_keys_have_nothing_in_common() -> None:
    first, second = make()[1], make(random=bytes(42))[1]
    assert first.split("_")[1] != second.split("_")[1]
    assert first.split("_")[2] != second.split("_")[2]
    with pytest.raises(ValueError, match="full randomness"):
        make(random=bytes(41))


@pytest.mark.parametrize(
    ("wish", "sentence"),
    [
        ({"name": ""}, "not a key's name"),
        ({"name": "a b"}, "not a key's name"),
        ({"name": "x" * 64}, "not a key's name"),
        ({"name": "../x"}, "not a key's name"),
        ({"name": "a\n"}, "not a key's name"),
        ({"scopes": ()}, "needs a scope"),
        ({"scopes": ("root",)}, "'root' is no scope; there are infer, deploy and admin"),
        ({"scopes": ("infer", "owner")}, "'owner' is no scope"),
        ({"ttl_s": 0}, "1 second to 3650 days"),
        ({"ttl_s": -5}, "1 second to"),
        ({"ttl_s": MAX_KEY_TTL_S + 1}, "1 second to"),
    ],
)
def test_a_wish_that_breaks_a_rule_is_explained(wish: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InvalidRequest, match=sentence):
        make(**wish)


def test_a_name_is_taken_until_its_key_is_revoked() -> None:
    first, _ = make()
    with pytest.raises(InvalidRequest, match="meshnode keys revoke phone"):
        make(existing=(first,), random=bytes(42))
    revoked = msgspec.structs.replace(first, revoked_at_s=1)
    assert make(existing=(revoked,), random=bytes(42))[0].name == "phone"


def test_only_valid_keys_count_against_the_limit_of_keys() -> None:
    valid = make("old")[0]
    revoked = msgspec.structs.replace(valid, revoked_at_s=1)
    expired = msgspec.structs.replace(valid, name="older", expires_at_s=int(NOW))
    with pytest.raises(InvalidRequest, match=r"1024 valid keys .*revoke some .*keys revoke NAME"):
        make(existing=(valid,) * MAX_API_KEYS)
    make(existing=(valid,) * (MAX_API_KEYS - 1) + (revoked, expired) * 500)


def test_what_expired_long_ago_makes_room_and_nothing_else_does() -> None:
    key = make("old")[0]
    revoked = msgspec.structs.replace(key, revoked_at_s=1)
    gone = msgspec.structs.replace(key, expires_at_s=int(NOW) - API_KEY_FORGET_S)
    longer = msgspec.structs.replace(gone, revoked_at_s=1, expires_at_s=5)
    recent = msgspec.structs.replace(revoked, expires_at_s=int(NOW) - API_KEY_FORGET_S + 1)
    full = [revoked, recent] * (MAX_API_KEY_ENTRIES // 2 - 1)
    assert to_forget(full, NOW) is None
    assert to_forget([*full, gone], NOW) is None
    assert to_forget([*full, gone, longer], NOW) is longer
    with pytest.raises(InvalidRequest, match=r"remembers 2048 keys.*30 days after its expiry"):
        to_forget([*full, revoked, revoked], NOW)
    for kept in (key, revoked, recent):
        assert "deleted only long after its expiry" in str(why_kept(kept.encode(), NOW))
    assert why_kept(gone.encode(), NOW) is None
    assert "another" in str(why_kept(b"later version", NOW))


@pytest.mark.parametrize(
    ("scopes", "widest"),
    [
        (("infer",), Scope.INFER),
        (("infer", "admin"), Scope.ADMIN),
        (("deploy", "later"), Scope.DEPLOY),
        (("owner",), None),
        (("later",), None),
        ((), None),
    ],
)
def test_the_widest_scope_counts_and_unknown_ones_allow_nothing(
    scopes: tuple[str, ...], widest: Scope | None
) -> None:
    assert msgspec.structs.replace(make()[0], scopes=scopes).scope is widest


def test_each_scope_includes_those_before_it() -> None:
    order = list(Scope)
    for rank, scope in enumerate(order):
        assert [each for each in order if scope.allows(each)] == order[: rank + 1]


def test_a_key_is_valid_then_expired_and_once_revoked_for_ever_so() -> None:
    key, _ = make(ttl_s=60)
    end = NOW // 1 + 60
    assert [key.state(at) for at in (0.0, end - 0.01, end, end + 1e9)] == [
        "valid", "valid", "expired", "expired"
    ]  # fmt: skip
    revoked = msgspec.structs.replace(key, revoked_at_s=5)
    assert {revoked.state(at) for at in (0.0, end + 1)} == {"revoked"}
    assert make()[0].state(1e12) == "valid"


@pytest.mark.parametrize(
    "change",
    [
        {"id": "short"},
        {"id": "K" * 16},
        {"name": ""},
        {"name": "a\x1b[2J"},
        {"sha256": b"x" * 31},
        {"created_at_s": -1},
        {"expires_at_s": 2**60},
        {"revoked_at_s": -1},
    ],
)
def test_values_that_are_no_keys_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError, match="not an API key"):
        ApiKey.decode(msgspec.structs.replace(make()[0], **change).encode())


@pytest.mark.parametrize("value", [b"", b"\xc0", b"\x90", b"\xff" * 40, make()[0].encode()[:-1]])
def test_nonsense_is_refused(value: bytes) -> None:
    with pytest.raises(ProtocolError):
        ApiKey.decode(value)


def test_fields_of_later_versions_are_ignored() -> None:
    key, _ = make()
    longer = [*msgspec.structs.astuple(key), "later"]
    assert ApiKey.decode(msgspec.msgpack.encode(longer)) == key


TEXT = make()[1]


@pytest.mark.parametrize(
    "text",
    ["", "mesh_", TEXT[:-1], TEXT + "a", TEXT.upper(), TEXT + "\n", " " + TEXT,
     TEXT.replace("_", "-"), TEXT.replace("mesh", "mash"), TEXT[:-1] + "1", TEXT[:-1] + "\u0131"],
)  # fmt: skip
def test_only_the_exact_form_is_a_key(text: str) -> None:
    assert id_in(text) is None


class FakeDesired:
    """A map, as the keyring sees the desired state."""

    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}

    def get(self, key: str) -> bytes | None:
        return self.values.get(key)

    def items(self) -> list[tuple[str, bytes]]:
        return sorted(self.values.items())


def test_the_keyring_follows_the_desired_state_at_once() -> None:
    desired: Any = FakeDesired()
    ring = Keyring(desired)
    key, _ = make()
    assert ring.get(key.id) is None
    desired.values[key.key] = key.encode()
    found = ring.get(key.id)
    assert found == key
    assert ring.get(key.id) is found  # decoded once
    revoked = msgspec.structs.replace(key, revoked_at_s=9)
    desired.values[key.key] = revoked.encode()
    assert ring.get(key.id) == revoked
    del desired.values[key.key]
    assert ring.get(key.id) is None
    assert repr(ring) == "<Keyring: 0 keys decoded>"


def test_the_keyring_leaves_out_what_is_no_key_or_under_anothers_id() -> None:
    desired: Any = FakeDesired()
    ring = Keyring(desired)
    late, _ = make("late")
    early = msgspec.structs.replace(
        make("early", random=bytes(42))[0], created_at_s=late.created_at_s - 1
    )
    desired.values = {
        late.key: late.encode(),
        early.key: early.encode(),
        "key/" + "b" * 16: late.encode(),
        "key/" + "c" * 16: b"nonsense",
        "deployment/key/": b"x",
    }
    assert [each.name for each in ring.all()] == ["early", "late"]
    assert ring.get("b" * 16) is None
