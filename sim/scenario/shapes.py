"""Whether data from a file has the shape of a scenario; where it has not, what is allowed there.

msgspec checks the same when it converts, but tells of the first mistake only, and in the words of a
program. This walk over the same types (`msgspec.inspect`) finds all of them. What passes here converts.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from datetime import date, datetime, time
from functools import cache
from typing import TYPE_CHECKING, Any, Final

from msgspec import inspect

from meshnode.sim.scenario.mistakes import KeyPath, Mistake, shown, unknown
from meshnode.sim.scenario.model import Scenario

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

_NAMES: Final = {
    dict: "a table",
    list: "a list",
    tuple: "a list",
    str: "a text",
    bool: "a truth value",
    type(None): "nothing",
}
_REFINED: Final = {int: "a whole number", float: "a number"}
_ALONE: Final = ("load", "faults", "expect")
"""Lists whose elements nothing else in a scenario refers to."""
_UNREFERRED: Final = (*_ALONE, "name", "title", "story", "seed", "network")
_WORD: Final = "letters, digits, '.', '_' and '-', the first a letter or digit"


@cache
def _root() -> inspect.Type:
    return inspect.type_info(Scenario)


def mistakes(data: Mapping[str, Any]) -> Iterator[Mistake]:
    """Yield what does not fit the types of a scenario, in the order of the types.

    Args:
        data: What tomllib has read, or `msgspec.to_builtins` has made of a scenario built in Python.
    """
    yield from _any(_root(), dict(data), ())


@dataclass(frozen=True, slots=True)
class Readable:
    """What of a scenario can be read although something else in it is wrong.

    Attributes:
        data: Without what is wrong.
        kept: Of each list in it from which something is missing: which of its elements are there.
    """

    data: dict[str, Any]
    kept: dict[str, list[int]]

    def original(self, at: KeyPath) -> KeyPath:
        """Return where in the whole scenario something stands that is at this place in `data`."""
        if len(at) < 2 or at[0] not in self.kept:
            return at
        assert isinstance(at[0], str)
        assert isinstance(at[1], int)
        return at[0], self.kept[at[0]][at[1]], *at[2:]


def readable(data: Mapping[str, Any], wrong: Iterable[KeyPath]) -> Readable | None:
    """Leave out of a scenario what is wrong with its shape, if nothing else is wrong because of that.

    Args:
        data: What `mistakes` was asked about.
        wrong: Where it has found some.

    Returns:
        The rest; None if something is wrong that others refer to, such as a node or the duration.
    """
    rest = dict(data)
    bad: dict[str, set[int]] = {}
    fields = {field.encode_name for field in inspect.type_info(Scenario).fields}  # type: ignore[attr-defined]
    for at in wrong:
        if not at or (at[0] in fields and at[0] not in _UNREFERRED):
            return None
        part = str(at[0])
        if part in _ALONE and len(at) > 1:
            assert isinstance(at[1], int)
            bad.setdefault(part, set()).add(at[1])
        elif part == "name":
            rest[part] = "unnamed"
        else:
            rest.pop(part, None)
    kept = {
        part: [number for number in range(len(data[part])) if number not in numbers]
        for part, numbers in bad.items()
        if part in rest
    }
    rest |= {part: [data[part][number] for number in numbers] for part, numbers in kept.items()}
    return Readable(rest, kept)


def _any(kind: inspect.Type, value: Any, at: KeyPath) -> Iterator[Mistake]:
    if isinstance(kind, inspect.AnyType):
        return  # read elsewhere: a table of a deployment file
    if isinstance(kind, inspect.StructType):
        yield from _array_struct(kind, value, at) if kind.array_like else _struct(kind, value, at)
    elif isinstance(kind, inspect.UnionType):
        yield from _union(kind, value, at)
    elif isinstance(kind, inspect.VarTupleType):
        yield from _list(kind, value, at)
    elif isinstance(kind, inspect.TupleType):
        yield from _tuple(kind, value, at)
    elif isinstance(kind, inspect.DictType):
        yield from _table(kind, value, at)
    elif isinstance(kind, inspect.LiteralType):
        if value not in kind.values:
            allowed = ", ".join(repr(each) for each in kind.values)
            yield Mistake(at, f"it is {shown(value)}; allowed: {allowed}")
    elif isinstance(kind, inspect.BoolType):
        if not isinstance(value, bool):
            yield _wrong(at, value, "true or false")
    elif isinstance(kind, inspect.StrType):
        yield from _text(kind, value, at)
    else:
        assert isinstance(kind, inspect.IntType | inspect.FloatType), kind
        yield from _number(kind, value, at)


def _struct(kind: inspect.StructType, value: Any, at: KeyPath) -> Iterator[Mistake]:
    if not isinstance(value, dict):
        yield _wrong(at, value, f"a table with {_keys(kind)}")
        return
    fields = {field.encode_name: field for field in kind.fields}
    for key in value:
        if key not in fields and key != kind.tag_field:
            yield Mistake((*at, key), unknown("key", key, fields))
    for name, field in fields.items():
        if name in value:
            yield from _any(field.type, value[name], (*at, name))
        elif field.required:
            yield Mistake(at, f"the key {name!r} is missing; it must be {wanted(field.type)}")


def _array_struct(kind: inspect.StructType, value: Any, at: KeyPath) -> Iterator[Mistake]:
    needed = sum(field.required for field in kind.fields)
    if not isinstance(value, list | tuple) or not needed <= len(value) <= len(kind.fields):
        yield _wrong(at, value, wanted(kind))
        return
    for number, (field, each) in enumerate(zip(kind.fields, value, strict=False)):
        yield from _any(field.type, each, (*at, number))


def _union(kind: inspect.UnionType, value: Any, at: KeyPath) -> Iterator[Mistake]:
    """Check one of several tagged tables, or something that may also be absent."""
    tagged = {
        each.tag: each for each in kind.types if isinstance(each, inspect.StructType) and each.tag
    }
    if not tagged:
        (only,) = (each for each in kind.types if not isinstance(each, inspect.NoneType))
        if value is not None:
            yield from _any(only, value, at)
        return
    tag_field = next(iter(tagged.values())).tag_field or ""
    names = [str(tag) for tag in tagged]
    if not isinstance(value, dict):
        yield _wrong(at, value, f"a table with a {tag_field!r}: one of {', '.join(names)}")
    elif tag_field not in value:
        yield Mistake(at, f"the key {tag_field!r} is missing; it is one of {', '.join(names)}")
    else:
        name = value[tag_field]
        if not isinstance(name, str) or name not in tagged:
            yield Mistake((*at, tag_field), unknown(tag_field, name, names))
        else:
            yield from _struct(tagged[name], value, at)


def _list(kind: inspect.VarTupleType, value: Any, at: KeyPath) -> Iterator[Mistake]:
    if not isinstance(value, list | tuple):
        yield _wrong(at, value, wanted(kind))
        return
    for number, each in enumerate(value):
        yield from _any(kind.item_type, each, (*at, number))


def _tuple(kind: inspect.TupleType, value: Any, at: KeyPath) -> Iterator[Mistake]:
    if not isinstance(value, list | tuple) or len(value) != len(kind.item_types):
        yield _wrong(at, value, wanted(kind))
        return
    for number, (each_kind, each) in enumerate(zip(kind.item_types, value, strict=True)):
        yield from _any(each_kind, each, (*at, number))


def _table(kind: inspect.DictType, value: Any, at: KeyPath) -> Iterator[Mistake]:
    if not isinstance(value, dict):
        yield _wrong(at, value, wanted(kind))
        return
    for key, each in value.items():
        yield from _text(kind.key_type, key, (*at, key))
        yield from _any(kind.value_type, each, (*at, key))


def _text(kind: inspect.Type, value: Any, at: KeyPath) -> Iterator[Mistake]:
    assert isinstance(kind, inspect.StrType)
    if not isinstance(value, str) or not _is_spelled_right(kind, value):
        yield _wrong(at, value, wanted(kind))
    elif kind.max_length is not None and len(value) > kind.max_length:
        yield Mistake(at, f"it has {len(value)} characters; at most {kind.max_length} are allowed")


def _is_spelled_right(kind: inspect.StrType, value: str) -> bool:
    return kind.pattern is None or re.fullmatch(kind.pattern.strip("^$"), value) is not None


def _number(
    kind: inspect.IntType | inspect.FloatType, value: Any, at: KeyPath
) -> Iterator[Mistake]:
    allowed = int if isinstance(kind, inspect.IntType) else (int, float)
    is_number = isinstance(value, allowed) and not isinstance(value, bool)
    if not is_number:
        yield _wrong(at, value, wanted(kind))
    elif isinstance(value, float) and not math.isfinite(value):
        yield _wrong(at, value, "finite")
    elif not _in_range(kind, value):
        yield Mistake(at, f"it is {shown(value)}; it must be {_range(kind)}")


def _in_range(kind: inspect.IntType | inspect.FloatType, value: float) -> bool:
    return (
        abs(value) < 2**1023  # a larger whole number fits no float
        and (kind.ge is None or value >= kind.ge)
        and (kind.gt is None or value > kind.gt)
        and (kind.le is None or value <= kind.le)
        and (kind.lt is None or value < kind.lt)
    )


def _range(kind: inspect.IntType | inspect.FloatType) -> str:
    least = [f"at least {kind.ge:,}"] if kind.ge is not None else []
    least += [f"above {kind.gt:,}"] if kind.gt is not None else []
    most = [f"at most {kind.le:,}"] if kind.le is not None else []
    most += [f"below {kind.lt:,}"] if kind.lt is not None else []
    return " and ".join(least + most)


def _wrong(at: KeyPath, value: Any, wanted_text: str) -> Mistake:
    return Mistake(at, f"it is {_found(value)}; it must be {wanted_text}")


def _found(value: Any) -> str:
    if isinstance(value, datetime | date | time):
        return f"a date or time, {value}"
    if isinstance(value, dict):
        return "a table"
    name = _NAMES.get(type(value)) or _REFINED[type(value)]
    return f"{name}, {shown(value)}"


def _keys(kind: inspect.StructType) -> str:
    return ", ".join(field.encode_name for field in kind.fields)


def wanted(kind: inspect.Type) -> str:
    """Return what a type takes, in words."""
    match kind:
        case inspect.IntType() | inspect.FloatType():
            name = _REFINED[int if isinstance(kind, inspect.IntType) else float]
            limits = _range(kind)
            return f"{name} {limits}" if limits else name
        case inspect.StrType():
            length = f"1 to {kind.max_length} " if kind.max_length is not None else ""
            return f"{length}{_WORD}" if kind.pattern is not None else "a text in quotation marks"
        case inspect.BoolType():
            return "true or false"
        case inspect.LiteralType():
            return "one of " + ", ".join(repr(each) for each in kind.values)
        case inspect.UnionType():
            return _wanted_of_union(kind)
        case inspect.VarTupleType(item_type=inspect.StrType()):
            return 'a list of texts, such as ["all"]'
        case inspect.VarTupleType():
            return f"a list, each of {wanted(kind.item_type)}"
        case inspect.TupleType():
            return f"a list of two: {' and '.join(wanted(each) for each in kind.item_types)}"
        case inspect.DictType():
            return _wanted_of_tables(kind)
        case inspect.StructType(array_like=True):
            inside = [wanted(field.type) for field in kind.fields]
            return f"a list of {inside[0]} and, if you like, {inside[1]}"
        case inspect.StructType():
            return f"a table with {_keys(kind)}"
    message = f"{kind} is no part of a scenario"
    raise AssertionError(message)


def _wanted_of_tables(kind: inspect.DictType) -> str:
    if isinstance(kind.value_type, inspect.AnyType):
        return "a table"
    return f"tables by name, each of {wanted(kind.value_type)}"


def _wanted_of_union(kind: inspect.UnionType) -> str:
    there = [each for each in kind.types if not isinstance(each, inspect.NoneType)]
    tags = [str(each.tag) for each in there if isinstance(each, inspect.StructType) and each.tag]
    return f"a table with a verb: {', '.join(tags)}" if tags else wanted(there[0])
