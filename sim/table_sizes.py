"""Finds every table of an object, and how large it is.

Whoever adds a table to a core or to a daemon need not tell anybody: this goes through the attributes of all
objects of meshnode's own classes and measures what can grow. The simulator's own are left out, but for
those that stand in for a real part: subclasses of one.

Large tables are looked into a window of entries at a time: each turn looks into the next, so that after
some looks all entries were seen, and a look costs little.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from itertools import islice
from types import MethodType
from typing import Any, Final, NamedTuple

WINDOW: Final = 24
"""Entries of one table that are looked into in one turn."""

MAX_OBJECTS: Final = 20_000
"""Objects looked at in one go: a node of a small mesh has some hundreds, a daemon some thousands."""

_TABLES: Final = (dict, list, set, deque, Mapping)
_BYTES: Final = (bytes, bytearray, memoryview)


_NO_ATTRIBUTES: Final = ("__dict__", "__weakref__")


class _Kind(NamedTuple):
    """What is known of a class.

    Attributes:
        is_ours: Whether its objects are parts of a node: its own, or what stands in for one.
        is_table: Whether they have entries.
        slots: Their attributes beside those of `__dict__`.
    """

    is_ours: bool
    is_table: bool
    slots: tuple[str, ...]


class Sizes(NamedTuple):
    """What is below an object, by the path of attributes that leads to it.

    Attributes:
        tables: Entries of each table; of tables in a table those of the largest that was looked into.
        texts: Bytes of each bytes-like value likewise.
    """

    tables: dict[str, int]
    texts: dict[str, int]


def table_sizes(root: object, turn: int | None = None) -> Sizes:
    """Return the size of every table and bytes-like value below an object.

    Tables that limit themselves (a `deque` with `maxlen`) and fixed ones (tuples) are not counted.

    Args:
        root: Where to begin.
        turn: Which window of large tables is looked into, counted from 0; None for all entries.
    """
    sizes = Sizes({}, {})
    seen: set[int] = {id(root)}
    waiting: deque[tuple[str, object]] = deque([("", root)])
    while waiting and len(seen) < MAX_OBJECTS:
        path, what = waiting.popleft()
        below = (
            _attributes(path, what) if _known[type(what)].is_ours else _entries(path, what, turn)
        )
        if isinstance(what, _TABLES) and getattr(what, "maxlen", None) is None:
            sizes.tables[path] = max(sizes.tables.get(path, 0), len(what))
        for name, each in below:
            if isinstance(each, _BYTES):
                if len(each) > sizes.texts.get(name, 0):
                    sizes.texts[name] = len(each)
                continue
            found = _followed(each)
            if found is not None and id(found) not in seen:
                seen.add(id(found))
                waiting.append((name, found))
    return sizes


def _followed(what: object) -> object | None:
    """Return what is looked into in the place of a value, or None."""
    if isinstance(what, MethodType):
        what = what.__self__
    elif isinstance(what, asyncio.Queue):
        what = vars(what).get("_queue")
    kind = _known[type(what)]
    return what if kind.is_table or kind.is_ours else None


class _Known(dict[type, _Kind]):
    """What is known of classes; filled as they are met."""

    def __missing__(self, kind: type) -> _Kind:
        modules = [each.__module__ for each in kind.__mro__]
        is_ours = any(
            each.startswith("meshnode.") and not each.startswith("meshnode.sim.")
            for each in modules
        )
        slots: list[str] = []
        for each in kind.__mro__:
            named = each.__dict__.get("__slots__", ())
            slots += (named,) if isinstance(named, str) else named
        is_table = issubclass(kind, (*_TABLES, tuple))
        made = _Kind(is_ours, is_table, tuple(name for name in slots if name not in _NO_ATTRIBUTES))
        self[kind] = made
        return made


_known: Final = _Known()


def _entries(path: str, table: Any, turn: int | None) -> Iterator[tuple[str, object]]:
    """Yield some of a table's values; of a set none, which holds only names."""
    if isinstance(table, AbstractSet):
        return
    values = table.values() if isinstance(table, Mapping) else table
    count = len(table)
    if turn is None or count <= WINDOW:
        begin, end = 0, count
    else:
        begin = turn % -(-count // WINDOW) * WINDOW
        end = begin + WINDOW
    name = f"{path}[]"
    for value in islice(values, begin, end):
        yield name, value


def _attributes(path: str, what: object) -> Iterator[tuple[str, object]]:
    stem = f"{path}." if path else ""
    for name, value in getattr(what, "__dict__", {}).items():
        yield stem + name, value
    for name in _known[type(what)].slots:
        if hasattr(what, name):
            yield stem + name, getattr(what, name)
    if _known[type(what)].is_table:
        yield from _entries(path, what, 0)
