"""Who published a version, and whether to believe it."""

from __future__ import annotations

import math

import msgspec
import pytest

from meshnode.errors import ModelError
from meshnode.limits import MAX_NOTE_LENGTH, MAX_PROVENANCE_METRICS
from meshnode.models.provenance import Provenance, Subject, check_provenance, flaw_of, sign
from meshnode.trust.identity import Identity, verify

PUBLISHER = Identity(b"p" * 32)
SUBJECT = Subject("ab" * 32, "digits", 3)
SAID = Provenance("", 1.5, "20260131_120000", (("accuracy", 0.97),), "a note")
SIGNED = sign(SAID, SUBJECT, PUBLISHER.public_key, PUBLISHER.sign)


def flaw(provenance: Provenance, subject: Subject = SUBJECT) -> str | None:
    return flaw_of(provenance, subject, verify)


def test_what_a_publisher_signs_names_it_and_is_believed() -> None:
    assert SIGNED.publisher == PUBLISHER.node_id
    assert (SIGNED.metrics, SIGNED.note) == (SAID.metrics, SAID.note)
    assert flaw(SIGNED) is None


@pytest.mark.parametrize(
    "changed",
    [
        {"note": "another"}, {"metrics": (("accuracy", 0.99),)}, {"published_s": 2.5}, {"label": ""},
    ],
)  # fmt: skip
def test_whoever_changes_a_word_is_found_out(changed: dict[str, object]) -> None:
    assert "was changed" in str(flaw(msgspec.structs.replace(SIGNED, **changed)))


def test_when_it_was_made_is_signed_too_and_without_it_older_nodes_believe_what_is_said() -> None:
    made = sign(
        msgspec.structs.replace(SAID, created_s=1.25), SUBJECT, PUBLISHER.public_key, PUBLISHER.sign
    )
    assert flaw(made) is None
    for other in (0.0, 2.0):
        assert "was changed" in str(flaw(msgspec.structs.replace(made, created_s=other)))
    subject = (SUBJECT.digest, "digits", 3, "")
    seven = [PUBLISHER.node_id, 1.5, SAID.label, SAID.metrics, "a note", PUBLISHER.public_key, b""]
    before = msgspec.msgpack.encode(["meshnode provenance", *subject, seven])
    assert verify(PUBLISHER.public_key, before, SIGNED.signature)


@pytest.mark.parametrize(
    "subject",
    [
        Subject("cd" * 32, "digits", 3), Subject(SUBJECT.digest, "other", 3),
        Subject(SUBJECT.digest, "digits", 4), Subject(SUBJECT.digest, "digits", 3, "int8"),
    ],
)  # fmt: skip
def test_it_is_of_one_version_only(subject: Subject) -> None:
    assert "not of this version" in str(flaw(SIGNED, subject))


def test_nobody_can_speak_as_another_node() -> None:
    other = Identity(b"o" * 32)
    posing = msgspec.structs.replace(SIGNED, publisher=other.node_id)
    assert flaw(posing) == "it is signed by another node than it names"
    assert flaw(SAID) == "nobody has signed it"


@pytest.mark.parametrize(
    "wrong",
    [
        {"note": "x" * (MAX_NOTE_LENGTH + 1)},
        {"metrics": tuple((f"m{i}", 0.0) for i in range(MAX_PROVENANCE_METRICS + 1))},
        {"metrics": (("accuracy", math.nan),)},
        {"metrics": (("", 1.0),)},
        {"published_s": math.inf},
        {"published_s": -1.0},
        {"created_s": math.inf},
        {"created_s": -1.0},
        {"label": "x" * 500},
        {"publisher": "x" * 500},
    ],
)
def test_what_is_beyond_its_limits_is_refused(wrong: dict[str, object]) -> None:
    check_provenance(SIGNED)
    with pytest.raises(ModelError):
        check_provenance(msgspec.structs.replace(SIGNED, **wrong))
