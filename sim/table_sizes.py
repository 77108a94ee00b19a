"""Finds every table of an object, and how large it is.

Whoever adds a table to a core need not tell anybody: this goes through the attributes of the cores'
objects and measures what can grow.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from typing import Any, Final

from meshnode.sim.flight_watch import FlightWatch

LOOKED_INTO: Final = 3
"""Entries of one table that are looked into for further tables: they are all of one kind."""

MAX_OBJECTS: Final = 20_000
"""Objects looked at in one go: a node of a small mesh has some hundreds."""

_CORES: Final = (
    "meshnode.advertisement", "meshnode.deployments", "meshnode.directory", "meshnode.drafts",
    "meshnode.eviction", "meshnode.membership", "meshnode.node", "meshnode.reconcile",
    "meshnode.request_links", "meshnode.routing", "meshnode.sim.flight_watch", "meshnode.state",
)  # fmt: skip


def table_sizes(root: object) -> dict[str, int]:
    """Return the size of every table below an object, by the path of attributes that leads to it.

    Tables that limit themselves (a `deque` with `maxlen`) and fixed ones (tuples) are left out. Where
    tables hold tables, the largest of those that were looked into counts.
    """
    found: dict[str, int] = {}
    seen: set[int] = {id(root)}
    waiting: deque[tuple[str, object]] = deque([("", root)])
    while waiting and len(seen) < MAX_OBJECTS:
        path, what = waiting.popleft()
        if isinstance(what, dict | list | set | deque | Mapping):
            if not (isinstance(what, deque) and what.maxlen is not None):
                found[path] = max(found.get(path, 0), len(what))
            below = _entries(path, what)
        else:
            below = _attributes(path, what)
        for name, each in below:
            if id(each) not in seen and _may_hold(each):
                seen.add(id(each))
                waiting.append((name, each))
    return found


def _may_hold(what: object) -> bool:
    if isinstance(what, dict | list | set | deque | Mapping):
        return True
    # The watch hangs on what it watches, and is no part of the node.
    return type(what).__module__.startswith(_CORES) and not isinstance(what, FlightWatch)


def _entries(path: str, table: Any) -> Iterator[tuple[str, object]]:
    """Yield some of a table's values; of a set none, which holds only names."""
    if isinstance(table, AbstractSet):
        return
    values = table.values() if isinstance(table, Mapping) else table
    for number, value in enumerate(values):
        if number == LOOKED_INTO:
            return
        yield f"{path}[]", value


def _attributes(path: str, what: object) -> Iterator[tuple[str, object]]:
    stem = f"{path}." if path else ""
    for name, value in getattr(what, "__dict__", {}).items():
        yield stem + name, value
    for kind in type(what).__mro__:
        slots = kind.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if hasattr(what, name):
                yield stem + name, getattr(what, name)
