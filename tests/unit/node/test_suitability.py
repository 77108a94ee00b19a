from __future__ import annotations

import pytest

from meshnode.limits import MAX_FAILING_TOLD, MAX_FILES_TOLD, MAX_OWNER_VALUE_BYTES
from meshnode.suitability import (
    NOTHING_SAID,
    Suitability,
    bounded,
    decode,
    encode,
    failing,
    mark_of,
)

DIGEST = "ab" * 32


def test_what_is_said_is_read_and_equal_words_have_equal_bytes() -> None:
    marks = [number.to_bytes(8, "big") for number in range(40)]
    said = Suitability((failing("m", 1, DIGEST, "it is broken"),), frozenset(marks))
    assert decode(encode(said)) == said
    assert encode(Suitability(said.failing, frozenset(reversed(marks)))) == encode(said)
    assert said.failing[0].mark == mark_of(DIGEST) == b"\xab" * 8


@pytest.mark.parametrize(
    "data",
    [None, b"", b"\xc1", b"\x80", b"\x92\xc0\xc0", encode(Suitability())[:-1] + b"\x01\x01"],
)
def test_garbage_says_nothing(data: bytes | None) -> None:
    assert decode(data) == NOTHING_SAID


def test_a_liar_can_say_no_more_than_an_honest_node() -> None:
    far_too_much = Suitability(
        tuple(failing(f"m{number}", 1, DIGEST, "no") for number in range(MAX_FAILING_TOLD + 1))
    )
    assert decode(encode(far_too_much)) == NOTHING_SAID


def test_what_does_not_fit_is_left_out_alike_every_time() -> None:
    said = Suitability(
        tuple(failing(f"m{n:03}", 1, DIGEST, "\U0001f4a5" * 1000) for n in reversed(range(90))),
        frozenset(number.to_bytes(8, "big") for number in range(2 * MAX_FILES_TOLD)),
    )
    kept = bounded(said)
    assert len(encode(kept)) <= MAX_OWNER_VALUE_BYTES
    assert kept.failing[0].model == "m000"
    assert len(kept.files) == MAX_FILES_TOLD
    assert bounded(kept) == kept == decode(encode(kept))


def test_a_reason_that_utf_8_cannot_hold_is_told_all_the_same() -> None:
    said = Suitability((failing("m", 1, DIGEST, "no file \udce4"),))
    assert decode(encode(said)).failing[0].why == "no file ?"
