"""Records, digests and their bytes: limits, signatures, what survives a trip."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from meshnode.errors import ConfigError, ProtocolError, TooLarge
from meshnode.membership import Incarnation, MembershipConfig, leave_bytes, read_members
from meshnode.membership.messages import (
    CODEC,
    MESSAGE_TYPES,
    Ping,
    pack_id,
    record_flaw,
    unpack_id,
    write_members,
)
from meshnode.types import Address
from meshnode.wire.codec import Message

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshnode.membership import MemberRecord, Membership

    Make = Callable[..., MemberRecord]


def test_a_record_survives_its_encoding_and_its_signature_still_holds(make_record: Make) -> None:
    record = make_record("a")
    copy = CODEC.decode(CODEC.encode(record))
    assert copy == record
    assert copy.signed_bytes() == record.signed_bytes()
    assert isinstance(copy.addresses[0], Address)


def test_the_signature_covers_every_field_but_itself(make_record: Make) -> None:
    record = make_record("a")
    other = make_record("b")
    changes: dict[str, Any] = {
        "public_key": other.public_key, "name": "x", "region": "x", "zone": "x", "labels": {},
        "addresses": (), "http": "x", "epoch": 9, "counter": 9, "boot": 9, "capabilities": {},
        "chain": b"x",
    }  # fmt: skip
    assert {*changes, "signature"} == set(record.__struct_fields__)
    for name, value in changes.items():
        changed = msgspec.structs.replace(record, **{name: value})
        assert changed.signed_bytes() != record.signed_bytes(), name
    assert msgspec.structs.replace(record, signature=b"x").signed_bytes() == record.signed_bytes()


def test_a_leave_is_bound_to_its_node_and_its_incarnation(make_record: Make) -> None:
    one, other = make_record("a").public_key, make_record("b").public_key
    leaves = {
        leave_bytes(one, Incarnation(1, 0)),
        leave_bytes(one, Incarnation(1, 1)),
        leave_bytes(one, Incarnation(2, 0)),
        leave_bytes(other, Incarnation(1, 0)),
    }
    assert len(leaves) == 4


def nested(depth: int) -> Any:
    return [nested(depth - 1)] if depth else 1


@pytest.mark.parametrize(
    ("field", "value", "complaint"),
    [
        ("capabilities", {"x": b"bytes"}, "JSON values"),
        ("capabilities", {"x": {1: 2}}, "JSON values"),
        ("capabilities", {"x": 2**64}, "JSON values"),
        ("capabilities", {"x": nested(9)}, "nested at most 8"),
        ("chain", b"x" * 16_384, "limit is 16384"),
        ("name", "", "at least one"),
        ("region", "r" * 64, "at most 63"),
        ("labels", {str(number): "" for number in range(33)}, "32 labels"),
        ("addresses", (Address("h", 1),) * 17, "16 addresses"),
        ("addresses", (Address("", 1),), "an address is"),
        ("addresses", (Address("h", 0),), "an address is"),
        ("addresses", (Address("h", 65_536),), "an address is"),
    ],
)
def test_a_record_beyond_a_limit_is_refused_where_it_is_written(
    make_record: Make, make_core: Callable[..., Membership], field: str, value: Any, complaint: str
) -> None:
    record = msgspec.structs.replace(make_record("me"), **{field: value})
    assert complaint in (record_flaw(record) or "")
    core = make_core()
    before = core.record
    with pytest.raises((ConfigError, TooLarge), match=complaint):
        core.update_record(1.0, **{field: value})
    with pytest.raises((ConfigError, TooLarge), match=complaint):
        make_core(record=record)
    assert core.record == before


def test_plain_capabilities_pass(make_record: Make) -> None:
    facts = {"a": [1, 2.5, None, True, "x", (1, 2)], "b": {"c": {}}, "d": -(2**63)}
    assert record_flaw(make_record("a", capabilities=facts)) is None


def test_fields_of_identity_cannot_be_updated(make_core: Callable[..., Membership]) -> None:
    with pytest.raises(ConfigError, match="epoch, public_key cannot be changed"):
        make_core().update_record(1.0, public_key=b"", epoch=3)


def test_an_update_that_changes_nothing_does_nothing(make_core: Callable[..., Membership]) -> None:
    core = make_core()
    assert core.update_record(1.0, region=core.record.region) == []
    assert core.record.counter == 0


def test_node_ids_survive_their_packing(make_record: Make) -> None:
    node_id = make_record("a").node_id
    assert unpack_id(pack_id(node_id)) == node_id
    assert len(pack_id(node_id)) == 20


def test_members_survive_the_disk_and_other_bytes_are_refused(make_record: Make) -> None:
    records = (make_record("a"), make_record("b"))
    assert read_members(write_members(records)) == records
    for damaged in (b"", b"\xff", CODEC.encode(Ping(1)), write_members(records)[:-1]):
        with pytest.raises(ProtocolError):
            read_members(damaged)


def test_the_list_on_disk_is_bounded(make_record: Make) -> None:
    assert len(read_members(write_members([make_record("a")] * 257))) == 256


def test_message_numbers_are_membership_s_own() -> None:
    assert all(
        kind.__struct_config__.tag in MESSAGE_TYPES
        for kind in Message.__subclasses__()
        if kind.__module__ == "meshnode.membership.messages"
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"probe_timeout_s": 0.6},
        {"max_payload_bytes": 255},
        {"max_payload_bytes": 1401},
        {"link_degree": 2},
    ],
)
def test_a_configuration_that_cannot_work_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        MembershipConfig(**changes)
