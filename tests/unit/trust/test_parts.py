"""Statements that name more who stay than one value holds."""

from __future__ import annotations

import random

import msgspec
import pytest

from meshnode.limits import (
    ENTRY_DIGEST_BYTES,
    MAX_CHAIN_BYTES,
    MAX_DESIRED_VALUE_BYTES,
    MAX_ENTRIES_KEPT,
    MAX_EVICTION_REASON_LENGTH,
    MAX_KEPT_PER_STATEMENT,
    MAX_MEMBERS,
    MAX_NAME_LENGTH,
)
from meshnode.trust.parts import KEPT_IN_ALL_PARTS, joined, split
from meshnode.trust.standing import Stated
from meshnode.trust.statements import Revocation, RoleChange, write_statement
from meshnode.types import Role

AUTHOR = "a" * 32
KEPT = tuple(number.to_bytes(20, "big") + b"\0" for number in range(2 * MAX_KEPT_PER_STATEMENT + 1))


def stated(
    parts: list[Revocation | RoleChange], at_ms: int = 5, author: str = AUTHOR
) -> list[Stated]:
    return [
        Stated.of((at_ms, counter, author, write_statement(part)), part)
        for counter, part in enumerate(parts)
    ]


@pytest.mark.parametrize(
    "statement",
    [Revocation(b"k" * 32, "why", 5, KEPT, "name"), RoleChange(b"k" * 32, Role.MEMBER, b"", KEPT)],
)
def test_parts_count_as_one_at_the_place_of_the_first_in_any_order(
    statement: Revocation | RoleChange,
) -> None:
    parts = stated(split(statement))
    assert len(parts) == 3
    random.Random(1).shuffle(parts)
    [one] = joined(parts)
    assert one.order[:3] == (5, 0, AUTHOR)
    assert one.statement == msgspec.structs.replace(statement, parts=3)
    assert len(one.kept) == len(KEPT)


def test_parts_that_are_not_all_there_say_nothing() -> None:
    """Those whom a missing part keeps would be out for a while, and a daemon that is out ends."""
    parts = stated(split(Revocation(b"k" * 32, "", 5, KEPT)))
    for missing in range(3):
        assert not [*joined(parts[:missing] + parts[missing + 1 :])]
    elsewhere = stated(split(Revocation(b"k" * 32, "", 5, KEPT)), author="b" * 32)
    later = stated(split(Revocation(b"k" * 32, "", 5, KEPT)), at_ms=6)
    other = stated(split(Revocation(b"l" * 32, "", 5, KEPT)))
    assert not [*joined([parts[0], elsewhere[1], later[2], other[1]])]


def test_a_statement_that_fits_one_value_is_one() -> None:
    for kept in ((), KEPT[:MAX_KEPT_PER_STATEMENT]):
        revocation = Revocation(b"k" * 32, "", 5, kept)
        assert split(revocation) == [revocation]
        [one] = joined(stated([revocation]))
        assert one.statement == revocation


def test_a_part_fits_a_value_and_the_parts_have_room_for_a_mesh() -> None:
    assert KEPT_IN_ALL_PARTS >= MAX_MEMBERS
    kept = KEPT[:MAX_KEPT_PER_STATEMENT]
    longest = Revocation(
        b"k" * 32, "é" * MAX_EVICTION_REASON_LENGTH, 5, kept, "n" * MAX_NAME_LENGTH
    )
    change = RoleChange(b"k" * 32, Role.MEMBER, bytes(MAX_CHAIN_BYTES), kept)
    for statement in (longest, change):
        full = msgspec.structs.replace(
            statement, entries=(bytes(ENTRY_DIGEST_BYTES),) * MAX_ENTRIES_KEPT
        )
        assert len(write_statement(full)) <= MAX_DESIRED_VALUE_BYTES
