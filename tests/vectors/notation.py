"""Messages as JSON, and which classes have a place on the wire or on disk.

A struct is an object with its class's name under `is`; bytes are `{"hex": ...}`, and a message that
lies undecoded within another one `{"undecoded": ...}`.
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from typing import TYPE_CHECKING, Any, Final

import msgspec

import meshnode
from meshnode.wire.codec import Codec, Message

if TYPE_CHECKING:
    from collections.abc import Iterator

_PARTIAL: Final = ("_Beginning",)  # read a part of what another one writes, and are never written
_ELSEWHERE: Final = (
    "meshnode.examples", "meshnode.sim", "meshnode.__main__", "meshnode.models.workers",
)  # fmt: skip
"""Modules whose structs never leave a process, or go to one that the same version has started."""


@cache
def _modules() -> tuple[Any, ...]:
    names = (found.name for found in pkgutil.walk_packages(meshnode.__path__, "meshnode."))
    return tuple(importlib.import_module(name) for name in names if not name.startswith(_ELSEWHERE))


@cache
def classes() -> dict[str, type[msgspec.Struct]]:
    """Return every struct that is written as an array, by its name."""
    found: dict[str, type[msgspec.Struct]] = {}
    for module in _modules():
        for thing in vars(module).values():
            if not (isinstance(thing, type) and issubclass(thing, msgspec.Struct)):
                continue
            if thing in (msgspec.Struct, Message) or not thing.__struct_config__.array_like:
                continue
            if thing.__name__ in _PARTIAL:
                continue
            other = found.setdefault(thing.__name__, thing)
            assert other is thing, f"two structs are called {thing.__name__}: rename one"
    return found


@cache
def codecs() -> dict[str, Codec]:
    """Return every codec of the package, by the messages that it knows."""
    found: dict[str, Codec] = {}
    for module in _modules():
        holders = [module, *(each for each in vars(module).values() if isinstance(each, type))]
        for thing in (thing for holder in holders for thing in vars(holder).values()):
            if isinstance(thing, Codec):
                names = ", ".join(each.__name__ for each in messages_of(thing).values())
                assert found.setdefault(names, thing) is thing, f"two codecs of {names}"
    return found


def messages_of(codec: Codec) -> dict[int, type[Message]]:
    """Return the classes that a codec knows, by number."""
    return {number: decoder.type for number, decoder in codec._decoders.items()}


def to_plain(value: Any) -> Any:
    """Return a decoded message as JSON can hold it."""
    if isinstance(value, msgspec.Struct):
        fields = {name: to_plain(getattr(value, name)) for name in value.__struct_fields__}
        return {"is": type(value).__name__, **fields}
    if isinstance(value, msgspec.Raw):
        return {"undecoded": bytes(value).hex()}
    if isinstance(value, bytes):
        return {"hex": value.hex()}
    if isinstance(value, dict):
        return {key: to_plain(each) for key, each in value.items()}
    if isinstance(value, frozenset):
        return {"set": [to_plain(each) for each in sorted(value)]}
    if isinstance(value, list | tuple):
        return [to_plain(each) for each in value]
    return str(value) if isinstance(value, str) else value  # without the type of an enumeration


def from_plain(plain: Any) -> Any:
    """Return what `to_plain` was given; fields that a class got since then have their defaults."""
    if isinstance(plain, list):
        return tuple(from_plain(each) for each in plain)
    if not isinstance(plain, dict):
        return plain
    if plain.keys() == {"hex"}:
        return bytes.fromhex(plain["hex"])
    if plain.keys() == {"undecoded"}:
        return msgspec.Raw(bytes.fromhex(plain["undecoded"]))
    if plain.keys() == {"set"}:
        return frozenset(from_plain(plain["set"]))
    fields = {key: from_plain(each) for key, each in plain.items() if key != "is"}
    return classes()[plain["is"]](**fields) if "is" in plain else fields


def structs_in(plain: Any) -> Iterator[tuple[str, frozenset[str]]]:
    """Yield the class and the fields of every struct within a message as JSON."""
    children = plain if isinstance(plain, list) else ()
    if isinstance(plain, dict):
        children = list(plain.values())
        if "is" in plain:
            yield plain["is"], frozenset(plain) - {"is"}
    for child in children:
        yield from structs_in(child)


def has_grown(plain: Any) -> bool:
    """Whether a class within a message has got fields since the message was written down."""
    return any(
        fields != set(classes()[name].__struct_fields__) for name, fields in structs_in(plain)
    )


def with_more_fields(value: Any) -> Any:
    """Return a message as a later version would write it: each struct has one more field."""
    if isinstance(value, msgspec.Struct):
        tag = value.__struct_config__.tag
        fields = [with_more_fields(getattr(value, name)) for name in value.__struct_fields__]
        return [*([] if tag is None else [tag]), *fields, {"of a later version": [1, None]}]
    if isinstance(value, dict):
        return {key: with_more_fields(each) for key, each in value.items()}
    if isinstance(value, list | tuple | frozenset):
        return [with_more_fields(each) for each in value]
    return value
