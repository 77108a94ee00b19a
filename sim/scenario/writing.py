"""Writes scenarios as TOML that a person wants to read, and that reads back as the same scenario.

What has its default is left out. Small tables (a service time, a place) stay on one line; what there are
several of (nodes, loads, faults) become `[[...]]`, in the order of `Scenario`.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, Final

import msgspec

from meshnode.sim.faults import Fault
from meshnode.sim.scenario.model import Arrival, Place

if TYPE_CHECKING:
    from collections.abc import Iterator

    from meshnode.sim.scenario.model import Scenario

_WIDTH: Final = 100
_BARE: Final = re.compile(r"[A-Za-z0-9_-]+")
_TABLES: Final = ("regions", "devices")  # by name
_SINGLE: Final = ("network",)
_LISTS: Final = ("paths", "nodes", "models", "load", "faults", "expect")
_ORDER: Final = ("regions", "paths", "network", "devices", "nodes", "models", "load", "faults", "expect")  # fmt: skip
_STATED: Final = {
    "at_s"
}  # of a fault: when it happens is worth a line even if it is at the beginning


def to_toml(scenario: Scenario) -> str:
    """Return a scenario as TOML.

    Args:
        scenario: Any; floats must be finite.

    Returns:
        A document that `meshnode.sim.scenario.reading.parse` reads as an equal scenario.
    """
    blocks = ["\n".join(_head(scenario))]
    for part in _ORDER:
        value = getattr(scenario, part)
        if part in _TABLES and value:
            blocks.append(_named(part, value))
        elif part in _SINGLE and (lines := [*_keys(value)]):
            blocks.append("\n".join([f"[{part}]", *lines]))
        elif part in _LISTS:
            blocks += ["\n".join([f"[[{part}]]", *_keys(each)]) for each in value]
    return "\n\n".join(blocks) + "\n"


def _head(scenario: Scenario) -> Iterator[str]:
    for name, value in _given(scenario):
        if name not in _ORDER:
            yield f"{name} = {_story(value) if name == 'story' else value_text(value)}"
    if not scenario.regions:
        yield "regions = {}"
    if not scenario.nodes:
        yield "nodes = []"


def _named(part: str, tables: dict[str, Any]) -> str:
    """Return tables by name: of places one line each, of devices one block each."""
    if all(isinstance(each, Place) for each in tables.values()):
        lines = [f"{_key(name)} = {_inline(each)}" for name, each in tables.items()]
        return "\n".join([f"[{part}]", *lines])
    blocks = ["\n".join([f"[{part}.{_key(name)}]", *_keys(each)]) for name, each in tables.items()]
    return "\n\n".join(blocks)


def _keys(part: msgspec.Struct) -> Iterator[str]:
    """Yield the lines of a table."""
    if isinstance(part, Fault):
        yield f"verb = {_text(part.verb)}"
    for name, value in _given(part):
        yield f"{name} = {value_text(value)}"


def _given(part: msgspec.Struct) -> Iterator[tuple[str, Any]]:
    """Yield the fields of a part that have not their default."""
    for field in msgspec.structs.fields(part):
        value = getattr(part, field.name)
        default = field.default
        if field.default_factory is not msgspec.NODEFAULT:
            default = field.default_factory()
        is_stated = isinstance(part, Fault) and field.name in _STATED
        if value is not None and (field.required or value != default or is_stated):
            yield field.name, value


def value_text(value: Any) -> str:
    """Return a value of a scenario as TOML."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, float):
        return _number(value)
    if isinstance(value, int):
        return str(value)
    if isinstance(value, Arrival):
        gateway = f", {_text(value.gateway)}" if value.gateway else ""
        return f"[{_number(value.at_s)}{gateway}]"
    if isinstance(value, msgspec.Struct):
        return _inline(value)
    if isinstance(value, dict):
        inside = ", ".join(f"{_key(name)} = {value_text(each)}" for name, each in value.items())
        return f"{{ {inside} }}"
    assert isinstance(value, tuple | list), value
    return _list([value_text(each) for each in value])


def _list(values: list[str]) -> str:
    """Return a list on one line, or on as many as it needs."""
    one = "[" + ", ".join(values) + "]"
    if len(one) <= _WIDTH:
        return one
    lines, line = [], ""
    for value in values:
        if line and len(line) + len(value) + 2 > _WIDTH - 4:
            lines.append(line)
            line = ""
        line += f"{value}, "
    lines.append(line)
    return "[\n" + "".join(f"    {each.rstrip()}\n" for each in lines) + "]"


def _inline(part: msgspec.Struct) -> str:
    inside = ", ".join(f"{name} = {value_text(value)}" for name, value in _given(part))
    return f"{{ {inside} }}" if inside else "{}"


def _number(value: float) -> str:
    """Return a float as short as it reads back; a whole one without its `.0`, as people write it."""
    return str(int(value)) if value.is_integer() and abs(value) < 2**53 else repr(value)


def _key(name: str) -> str:
    return name if _BARE.fullmatch(name) else _text(name)


def _text(text: str) -> str:
    """Return a basic string; JSON's escapes are among TOML's, but DEL must be escaped too."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _story(text: str) -> str:
    """Return a text of several lines as such where nothing in it needs escaping."""
    is_plain = not re.search(r'[\\\r\x00-\x08\x0b-\x1f\x7f]|"""', text) and not text.endswith('"')
    return f'"""\n{text}"""' if "\n" in text and is_plain else _text(text)
