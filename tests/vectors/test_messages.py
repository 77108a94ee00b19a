"""The bytes of every message as they were frozen, and what later versions may do to them."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from tests.vectors import freeze
from tests.vectors.notation import (
    classes,
    codecs,
    from_plain,
    has_grown,
    messages_of,
    structs_in,
    to_plain,
    with_more_fields,
)

if TYPE_CHECKING:
    from pathlib import Path

    from meshnode.wire.codec import Codec

FROZEN = freeze.frozen()
MESSAGES = {
    f"{file}: {name}": vector
    for file, vectors in FROZEN.items()
    for name, vector in vectors.items()
    if "fields" in vector
}
CODECS = codecs()

each_message = pytest.mark.parametrize("vector", MESSAGES.values(), ids=MESSAGES.keys())
each_codec = pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS.keys())


def readers(vector: freeze.Vector) -> list[Any]:
    """Return all that reads a message: the codecs that know it, or its class alone."""
    kind = classes()[vector["fields"]["is"]]
    knowing: list[Any] = [
        codec.decode for codec in CODECS.values() if kind in messages_of(codec).values()
    ]
    return knowing or [msgspec.msgpack.Decoder(kind).decode]


def within(plain: Any, frozen: Any) -> Any:
    """Return of a decoded message what was there when its vector was frozen."""
    if isinstance(frozen, dict):
        return {key: within(plain[key], value) for key, value in frozen.items()}
    if isinstance(frozen, list):
        return [within(*pair) for pair in zip(plain, frozen, strict=True)]
    return plain


@each_message
def test_frozen_bytes_decode_to_the_frozen_fields(vector: freeze.Vector) -> None:
    for decode in readers(vector):
        decoded = to_plain(decode(bytes.fromhex(vector["bytes"])))
        assert within(decoded, vector["fields"]) == vector["fields"]


@each_message
def test_the_frozen_fields_encode_to_the_frozen_bytes(vector: freeze.Vector) -> None:
    encoded = msgspec.msgpack.encode(from_plain(vector["fields"]))
    if has_grown(
        vector["fields"]
    ):  # then the new fields are at the end, and another vector has them
        first_fields = msgspec.msgpack.decode(bytes.fromhex(vector["bytes"]))
        assert len(msgspec.msgpack.decode(encoded)) >= len(first_fields)
    else:
        assert encoded.hex() == vector["bytes"]


@each_message
def test_fields_that_a_later_version_appends_are_ignored(vector: freeze.Vector) -> None:
    message = from_plain(vector["fields"])
    longer = msgspec.msgpack.encode(with_more_fields(message))
    assert longer.hex() != vector["bytes"]
    for decode in readers(vector):
        assert to_plain(decode(longer)) == to_plain(message)


@each_message
def test_the_number_of_a_message_never_changes(vector: freeze.Vector) -> None:
    assert classes()[vector["fields"]["is"]].__struct_config__.tag == vector["number"]


@each_codec
def test_a_message_of_an_unknown_number_is_ignored(codec: Codec) -> None:
    unknown = set(range(256)) - set(messages_of(codec))
    for number in unknown:
        assert codec.decode(msgspec.msgpack.encode([number, "of a later version", {}])) is None


@each_codec
def test_every_message_of_a_codec_has_a_vector(codec: Codec) -> None:
    frozen = {vector["fields"]["is"] for vector in MESSAGES.values()}
    missing = {kind.__name__ for kind in messages_of(codec).values()} - frozen
    assert not missing, "add them to tests/vectors/cases.py, and run python -m tests.vectors.freeze"


def test_every_field_that_is_written_as_an_array_is_in_a_vector() -> None:
    covered: dict[str, set[str]] = {}
    for vector in MESSAGES.values():
        for name, fields in structs_in(vector["fields"]):
            covered.setdefault(name, set()).update(fields)
    missing = {
        f"{name}.{field}"
        for name, kind in classes().items()
        for field in kind.__struct_fields__ or ("(no fields)",)
        if name not in covered or (field in kind.__struct_fields__ and field not in covered[name])
    }
    assert not missing, (
        "a new message needs a case in tests/vectors/cases.py; one with a new field a case of another "
        "name beside the frozen one; then run python -m tests.vectors.freeze"
    )


def test_this_version_makes_every_frozen_vector_and_has_frozen_all_it_makes() -> None:
    for file, made in freeze.fresh().items():
        for name, vector in made.items():
            assert name in FROZEN.get(file, {}), f"{file}: {name} is not frozen yet"
            assert freeze.is_same(FROZEN[file][name], vector), f"{file}: {name} has other bytes"


def test_numbers_of_notes_and_datagrams_are_unique_over_all_codecs() -> None:
    reset = importlib.import_module("meshnode.wire.frames").Reset  # alone in a RESET frame's meta
    by_number: dict[int, set[type]] = {}
    for codec in CODECS.values():
        for number, kind in messages_of(codec).items():
            if kind is not reset:
                by_number.setdefault(number, set()).add(kind)
    assert {number: kinds for number, kinds in by_number.items() if len(kinds) > 1} == {}


def test_frozen_bytes_are_not_overwritten_without_a_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(freeze, "FOLDER", tmp_path)
    assert freeze.freeze(None) == []
    path = tmp_path / "membership.json"
    whole = path.read_bytes()
    changed = whole.replace(b'"bytes": "92', b'"bytes": "93')
    assert changed != whole
    path.write_bytes(changed)
    assert freeze.freeze(None)
    assert path.read_bytes() == changed
    assert freeze.freeze("the test changed them") == []
    assert freeze.load("membership")["changes"][0]["because"] == "the test changed them"
    assert freeze.is_same(
        freeze.load("membership")["vectors"]["unwanted"], FROZEN["membership"]["unwanted"]
    )
