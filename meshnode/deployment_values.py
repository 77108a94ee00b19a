"""The values of a deployment's keys: how each is read from TOML, YAML or JSON, and what is wrong with it.

A reader takes what any of these can hold and returns the value, or raises `Wrong` with a sentence; it raises nothing
else, whatever it is given. There is one spelling for each thing: `replicas = "2"` is a mistake, not a 2.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any, Final

from meshnode.errors import MeshError
from meshnode.limits import (
    KIB,
    MAX_CLAIMED_MEMORY_BYTES,
    MAX_NOTE_LENGTH,
    MAX_ORIGIN_TEXT_LENGTH,
    MAX_PROVENANCE_METRICS,
    MAX_REPOSITORY_PATH_LENGTH,
    MAX_SHOWN_LENGTH,
    MAX_VARIANTS,
    MAX_VERSION,
)
from meshnode.models.exposure import exposed_path
from meshnode.models.manifest import check_model_name
from meshnode.models.tasks import check_tasks, read_task, written
from meshnode.models.variants import check_variant_name

if TYPE_CHECKING:
    from collections.abc import Callable

_SHOWN: Final = 60  # characters of a wrong value that a message repeats
_SIZE: Final = re.compile(r"([0-9]{1,19}(?:\.[0-9]{1,6})?) ?(B|[KMGT](?:i?B)?)", re.IGNORECASE)
_POWER: Final = {"B": 0, "K": 1, "M": 2, "G": 3, "T": 4}
_UNITS: Final = ("TiB", "GiB", "MiB", "KiB")
_KINDS: Final = {
    bool: "a boolean",
    int: "a number",
    float: "a number",
    str: "a text",
    list: "a list",
    dict: "a table",
}


class Wrong(Exception):
    """A value is not what its key takes; the message is a sentence without the key."""


def wrong(raw: object, expected: str) -> Wrong:
    """Return the mistake of a value that is something else."""
    kind = _KINDS.get(type(raw), "nothing" if raw is None else "a date or time")
    if isinstance(raw, list | dict) or raw is None:
        return Wrong(f"this is {kind}, not {expected}")
    if isinstance(raw, int) and raw.bit_length() > 64:
        return Wrong(
            f"this number is not {expected}"
        )  # Python refuses to write out thousands of digits
    shown = repr(raw) if isinstance(raw, str) else str(raw).lower()
    return Wrong(f"{shown[:_SHOWN]} ({kind}) is not {expected}")


def text(raw: object, expected: str, most: int, least: int = 0) -> str:
    """Return a text without characters that no file can hold."""
    if not isinstance(raw, str) or "\0" in raw or any("\ud800" <= char <= "\udfff" for char in raw):
        raise wrong(raw, expected)
    if not least <= len(raw) <= most:
        raise Wrong(f"this has {len(raw)} characters; {expected} has {least} to {most}")
    return raw


def items(raw: object, expected: str, read: Callable[[object], Any]) -> tuple[Any, ...]:
    """Return the values of a list, none of them twice."""
    if not isinstance(raw, list):
        raise wrong(raw, expected)
    found = tuple(read(each) for each in raw)
    twice = next((each for at, each in enumerate(found) if each in found[:at]), None)
    if twice is not None:
        raise Wrong(f"{twice!r} is there twice")
    return found


def _as_wrong(check: Callable[..., Any], *values: Any) -> Any:
    """Return what a check returns, with its error as a `Wrong`."""
    try:
        return check(*values)
    except MeshError as error:
        raise Wrong(str(error)) from None


def public_name(raw: object) -> str:
    """Return a model's public name."""
    return str(_as_wrong(check_model_name, text(raw, "a model's name", MAX_REPOSITORY_PATH_LENGTH)))


def model_text(raw: object) -> str:
    """Return where a model is: a path, a URL, or the name of what was published."""
    found = model_path(raw)
    if not found.isprintable():
        raise Wrong(f"{found[:_SHOWN]!r} has characters that no path, URL or name has")
    return found


def model_path(raw: object) -> str:
    """Return a path or a URL."""
    return text(
        raw, "a path, a URL, or the name of what was published", MAX_REPOSITORY_PATH_LENGTH, 1
    )


def flag(raw: object) -> bool:
    """Return true or false."""
    if not isinstance(raw, bool):
        raise wrong(raw, "true or false")
    return raw


def number(least: int, most: int) -> Callable[[object], int]:
    """Return a reader of whole numbers of a range."""

    def read(raw: object) -> int:
        if isinstance(raw, bool) or not isinstance(raw, int) or not least <= raw <= most:
            raise wrong(raw, f"a whole number of {least} to {most}")
        return raw

    return read


def amount(least: float, most: float) -> Callable[[object], float]:
    """Return a reader of numbers of a range."""

    def read(raw: object) -> float:
        expected = f"a number of {least:g} to {most:g}"
        if isinstance(raw, bool) or not isinstance(raw, int | float) or not least <= raw <= most:
            raise wrong(raw, expected)  # also for NaN
        return float(raw)

    return read


def versions(raw: object) -> tuple[int, ...]:
    """Return one version, or a list of them, in ascending order."""
    one = number(1, MAX_VERSION)
    if not isinstance(raw, list):
        return (one(raw),)
    return tuple(sorted(items(raw, "a list of versions", one)))


def names(raw: object) -> tuple[str, ...]:
    """Return names of nodes, or their ids."""
    return items(raw, 'a list of nodes, such as ["laptop", "attic"]', _named)


def _named(raw: object) -> str:
    return text(raw, "a node's name or id", MAX_SHOWN_LENGTH, 1)


def words(raw: object) -> tuple[str, ...]:
    """Return a list of words, such as regions."""
    return items(raw, 'a list of words, such as ["eu", "us"]', word)


def word(raw: object) -> str:
    """Return a word; an empty one is none."""
    return text(raw, "a word", MAX_SHOWN_LENGTH)


def note(raw: object) -> str:
    """Return what is said of a version."""
    return text(raw, "a text", MAX_NOTE_LENGTH)


def revision(raw: object) -> str:
    """Return a revision's id."""
    return text(raw, "the id of a revision", MAX_ORIGIN_TEXT_LENGTH, 1)


def route(raw: object) -> str:
    """Return a path under which a model is offered."""
    return str(
        _as_wrong(exposed_path, text(raw, "a path such as /count-cars", MAX_REPOSITORY_PATH_LENGTH))
    )


def task_texts(raw: object) -> tuple[str, ...]:
    """Return tasks, each as it is written."""
    found = items(
        raw, 'a list of tasks, such as ["chat"]', lambda each: text(each, "a task", MAX_NOTE_LENGTH)
    )
    mappings = tuple(_as_wrong(read_task, each) for each in found)
    return tuple(written(each) for each in _as_wrong(check_tasks, mappings))


def size(raw: object) -> int:
    """Return bytes: a number of them, or a text with a unit."""
    expected = 'a size such as "8GiB", "512MiB" or a number of bytes'
    if isinstance(raw, str):
        match = _SIZE.fullmatch(raw)
        if match is None:
            raise wrong(raw, expected)
        unit = match[2].upper()
        base = 1000 if len(unit) == 2 else 1024  # 8GB is decimal, 8G and 8GiB are binary
        scale = base ** _POWER[unit[0]]
        raw = int(match[1]) * scale if match[1].isdigit() else int(float(match[1]) * scale)
    if (
        isinstance(raw, bool)
        or not isinstance(raw, int)
        or not 0 <= raw <= MAX_CLAIMED_MEMORY_BYTES
    ):
        raise wrong(raw, expected)
    return raw


def size_text(size_bytes: int) -> str | int:
    """Return bytes as `size` reads them, with a unit where there is an exact one."""
    for place, unit in enumerate(_UNITS):
        whole, rest = divmod(size_bytes, KIB ** (len(_UNITS) - place))
        if whole and not rest:
            return f"{whole}{unit}"
    return size_bytes


def text_table(raw: object) -> tuple[tuple[str, str], ...]:
    """Return pairs of texts, by name."""
    if not isinstance(raw, dict):
        raise wrong(raw, 'a table of texts, such as {camera = "usb"}')
    return tuple(
        sorted(
            (str(key), text(value, "a text", MAX_REPOSITORY_PATH_LENGTH))
            for key, value in raw.items()
        )
    )


def variables(raw: object) -> tuple[tuple[str, str], ...]:
    """Return variables, by name; what is wrong with their names is told with all of them."""
    if not isinstance(raw, dict):
        raise wrong(raw, 'a table of texts, such as {MODE = "fast"}')
    for key, value in raw.items():
        if not isinstance(value, str) or "\0" in value:
            kind = _KINDS.get(type(value), "no text")
            raise Wrong(
                f'the variable {str(key)[:_SHOWN]!r} is {kind}, not a text; write "…" around it'
            )
    return tuple(sorted(raw.items()))


def metric_table(raw: object) -> tuple[tuple[str, float], ...]:
    """Return metrics, by name."""
    if not isinstance(raw, dict):
        raise wrong(raw, "a table of numbers, such as {accuracy = 0.97}")
    if len(raw) > MAX_PROVENANCE_METRICS:
        raise Wrong(f"there are {len(raw)} metrics; at most {MAX_PROVENANCE_METRICS} are kept")
    found: dict[str, float] = {}
    for key, value in raw.items():
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or abs(value) > 1e300 or not math.isfinite(value):
            raise Wrong(f"the metric {key[:_SHOWN]!r} is not a finite number")
        found[text(key, "the name of a metric", MAX_SHOWN_LENGTH, 1)] = float(value)
    return tuple(sorted(found.items()))


def variant_table(raw: object) -> tuple[tuple[str, str], ...]:
    """Return the paths of further forms of a model, by name."""
    if not isinstance(raw, dict):
        raise wrong(raw, 'a table of paths, such as {int8 = "digits-int8.onnx"}')
    if len(raw) >= MAX_VARIANTS:
        raise Wrong(f"there are {len(raw)} further forms; at most {MAX_VARIANTS - 1} are kept")
    return tuple(
        sorted(
            (_as_wrong(check_variant_name, key), model_path(value)) for key, value in raw.items()
        )
    )
