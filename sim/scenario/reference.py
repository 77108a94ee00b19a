"""What a scenario's file may contain, as rows for documentation: made from the types and their docstrings."""

from __future__ import annotations

import inspect as python_inspect
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import msgspec
from msgspec import inspect

from meshnode.sim.faults import VERBS, Fault, NetworkFault
from meshnode.sim.scenario import model
from meshnode.sim.scenario.devices import BUILT_IN, REASONS
from meshnode.sim.scenario.shapes import wanted
from meshnode.sim.scenario.writing import value_text

if TYPE_CHECKING:
    from collections.abc import Iterator

_ATTRIBUTES: Final = re.compile(r"^Attributes:\n(.*)", re.MULTILINE | re.DOTALL)
_ATTRIBUTE: Final = re.compile(r"^    (\w+): (.*?)(?=^    \w+: |\Z)", re.MULTILINE | re.DOTALL)

SECTIONS: Final[tuple[tuple[str, type[msgspec.Struct]], ...]] = (
    ("The scenario", model.Scenario),
    ("`[regions]`: a table per region, by its name", model.Place),
    ("`[[paths]]`", model.Path),
    ("`[network]`", model.NetworkPart),
    ("`[devices.CLASS]`", model.Device),
    ("`[[nodes]]`", model.Nodes),
    ("`[[models]]`", model.Model),
    ("`service` of a model", model.ServiceTime),
    ("`autoscaling` of a model", model.Autoscaling),
    ("`[[load]]`", model.Load),
    ("An element of `arrivals`", model.Arrival),
    ("`[[expect]]`", model.Expect),
)
"""The tables of a file, with the type that each is read into."""


@dataclass(frozen=True, slots=True)
class KeyRow:
    """A key of a table.

    Attributes:
        name: The key.
        takes: What it must be.
        default: As TOML; empty where it must be given, or is absent by default.
        is_required: Whether it must be given.
        meaning: What it says.
    """

    name: str
    takes: str
    default: str
    is_required: bool
    meaning: str


@dataclass(frozen=True, slots=True)
class VerbRow:
    """A verb of a fault.

    Attributes:
        verb: Its name.
        meaning: What it does.
        keys: What it takes besides `at_s`, `for_s`, `nodes` and `others`.
        selections: Which selections it takes: none, `nodes`, or `nodes` and `others`.
        can_be_undone: Whether it takes `for_s`.
    """

    verb: str
    meaning: str
    keys: tuple[KeyRow, ...]
    selections: tuple[str, ...]
    can_be_undone: bool


def keys(part: type[msgspec.Struct]) -> list[KeyRow]:
    """Return the keys of a table in the order of its type."""
    info = inspect.type_info(part)
    assert isinstance(info, inspect.StructType)
    meanings = _meanings(part)
    return [
        KeyRow(
            field.encode_name,
            _takes(field.type),
            _default(field),
            field.required,
            meanings.get(field.name, ""),
        )
        for field in info.fields
    ]


def verbs() -> Iterator[VerbRow]:
    """Yield the verbs in the order of their module."""
    for name, cls in VERBS.items():
        own = tuple(
            row for row in keys(cls) if row.name not in ("at_s", "for_s", "nodes", "others")
        )
        names = [field.name for field in msgspec.structs.fields(cls)]
        selections = tuple(each for each in ("nodes", "others") if each in names)
        meaning = _text(python_inspect.cleandoc(cls.__doc__ or "").partition("\n\n")[0])
        yield VerbRow(name, meaning, own, selections, cls.can_be_undone)


def fault_keys() -> list[KeyRow]:
    """Return the keys that faults have in common."""
    rows = {row.name: row for each in (Fault, NetworkFault) for row in keys(each)}
    return [rows[name] for name in ("at_s", "for_s", "nodes", "others")]


def devices() -> Iterator[tuple[str, model.Device, str]]:
    """Yield name, figures and reason of each built-in class."""
    for name, device in BUILT_IN.items():
        yield name, device, REASONS[name]


def _meanings(part: type) -> dict[str, str]:
    found: dict[str, str] = {}
    for cls in reversed(part.__mro__):
        listed = _ATTRIBUTES.search(python_inspect.cleandoc(cls.__doc__ or ""))
        if listed is not None:
            found |= {name: _text(said) for name, said in _ATTRIBUTE.findall(listed[1])}
    return found


def _text(text: str) -> str:
    """Return a docstring's text in one line; a file has no None, only keys that are absent."""
    return " ".join(text.split()).replace("None for", "if absent,").replace("None ", "absent, it ")


def _takes(kind: inspect.Type) -> str:
    is_part = isinstance(kind, inspect.StructType) and not kind.array_like
    is_tables = isinstance(kind, inspect.DictType) and not isinstance(
        kind.value_type, inspect.AnyType
    )
    is_parts = is_tables or (
        isinstance(kind, inspect.VarTupleType)
        and isinstance(kind.item_type, inspect.StructType | inspect.UnionType)
    )
    return "see below" if is_part or is_parts else wanted(kind)


def _default(field: inspect.Field) -> str:
    if field.required or field.default_factory is not msgspec.NODEFAULT:
        return ""
    value = field.default
    is_empty = value is None or value == () or isinstance(value, msgspec.Struct)
    return "" if is_empty else value_text(value)
