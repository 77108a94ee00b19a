"""The tables of a deployment file: what one says by the fields of its struct, and what is wrong with it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from meshnode.deployment_values import Wrong
from meshnode.settings.readers import nearest

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    Readers = Mapping[str, Callable[[object], Any]]

_SHOWN: Final = 60  # characters of an unknown key that a message repeats


class Fault(NamedTuple):
    """A mistake.

    Attributes:
        key: The key that it is about, such as `where.regions`; empty for all of it.
        sentence: What is wrong.
        line: Where; 0 if that is not known.
    """

    key: str
    sentence: str
    line: int = 0

    def told(self, source: str) -> str:
        """Return the mistake with where it is."""
        place = f"{source}, line {self.line}" if self.line else source
        return ": ".join(filter(None, (place, self.key, self.sentence)))


def read_table(
    table: object,
    prefix: str,
    readers: Readers,
    faults: list[Fault],
    *,
    known: Sequence[str],
    tables: Sequence[str] = (),
    fields: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Return what a table says by the fields of its struct; note what is wrong with it.

    Args:
        table: What stands in the file.
        prefix: The table's name; empty for the top of a deployment.
        readers: How the value of each key is read.
        faults: Where mistakes are noted.
        known: All keys of a deployment, such as `where.regions`: an unknown one is told with the nearest.
        tables: Further keys, which are read elsewhere.
        fields: Keys that are called otherwise in the struct.
    """
    if not isinstance(table, dict):
        faults.append(
            Fault(
                prefix, f"this is no table; write [{prefix}], and one KEY = VALUE per line below it"
            )
        )
        return {}
    said: dict[str, Any] = {}
    for key, raw in ((str(key), raw) for key, raw in table.items()):
        place = f"{prefix}.{key}" if prefix else key
        if key in readers:
            try:
                said[(fields or {}).get(key, key)] = readers[key](raw)
            except Wrong as mistake:
                faults.append(Fault(place, str(mistake)))
        elif key not in tables:
            faults.append(Fault(place[:_SHOWN], unknown_key(key, prefix, known)))
    return said


def unknown_key(key: str, table: str, known: Sequence[str]) -> str:
    """Return what is told of a key that a table does not have.

    Args:
        key: The key.
        table: The table's name; empty for the top.
        known: All keys of a deployment.
    """
    leaf = key.replace("-", "_")
    here = [each.rpartition(".")[2] for each in known if each.rpartition(".")[0] == table]
    elsewhere = [each for each in known if each.rpartition(".")[2] == leaf]
    if leaf in here:
        return f"unknown key; did you mean {leaf!r}?"
    if elsewhere:
        home = elsewhere[0].rpartition(".")[0]
        return f"unknown key; it belongs {f'into [{home}]' if home else 'to the top, above every table'}"
    # One that is written wrongly here comes before one of another table.
    tables = dict.fromkeys(each.partition(".")[0] for each in known if "." in each)
    near = nearest(leaf, here if table else [*here, *tables]) or nearest(leaf, known)
    return f"unknown key{near}"
