"""Files of arrivals: the times of real requests, played again.

A line has the seconds since the beginning, and after a comma optionally the name of the gateway; blank
lines and those that begin with `#` say nothing. Times are in order. A first line whose time is the word
`seconds` or `at_s` is a heading.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import msgspec

from meshnode.errors import ConfigError
from meshnode.limits import MAX_TRACE_ARRIVALS, MAX_TRACE_BYTES
from meshnode.sim.scenario.mistakes import Mistake, shown
from meshnode.sim.scenario.model import Arrival

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from meshnode.sim.scenario.model import Scenario

_HEADINGS: Final = ("seconds", "at_s")


def with_traces(scenario: Scenario, folder: Path | None) -> tuple[Scenario, list[Mistake]]:
    """Read the files that a scenario's loads name into the loads.

    Args:
        scenario: Some of its loads may name a file.
        folder: Where relative paths begin; None if no file may be named.

    Returns:
        The scenario, which names no file any more, and what is wrong with the files.
    """
    loads, mistakes = [], []
    for number, load in enumerate(scenario.load):
        if load.file is not None:
            try:
                arrivals = () if folder is None else read_trace(folder / load.file)
            except ConfigError as error:
                mistakes.append(Mistake(("load", number, "file"), str(error)))
                arrivals = ()
            if folder is None:
                message = "this scenario comes from no file, so it can name none: give 'arrivals'"
                mistakes.append(Mistake(("load", number, "file"), message))
            load = msgspec.structs.replace(load, file=None, arrivals=arrivals)
        loads.append(load)
    return msgspec.structs.replace(scenario, load=tuple(loads)), mistakes


def read_trace(path: Path) -> tuple[Arrival, ...]:
    """Read a file of arrivals.

    Raises:
        ConfigError: if it cannot be read, is too large, or a line is not as it should be.
    """
    arrivals = tuple(_lines(path, file_text(path, MAX_TRACE_BYTES)))
    if not arrivals:
        raise ConfigError(f"{path} has no arrivals: one per line, such as '0.25' or '0.25, eu-1'")
    return arrivals


def _lines(path: Path, text: str) -> Iterator[Arrival]:
    count, last_s, is_first = 0, 0.0, True
    for number, line in enumerate(text.splitlines(), start=1):
        first, _, gateway = line.partition(",")
        first = first.strip()
        if (not first and not gateway.strip()) or first.startswith("#"):
            continue
        if is_first and first in _HEADINGS:
            is_first = False
            continue
        is_first = False
        at_s = _seconds(path, number, first)
        if at_s < last_s:
            message = (
                f"{path}:{number}: {at_s:g} s is before the line above; lines must be in order"
            )
            raise ConfigError(message)
        count += 1
        if count > MAX_TRACE_ARRIVALS:
            raise ConfigError(f"{path} has more than {MAX_TRACE_ARRIVALS:,} arrivals; cut it")
        last_s = at_s
        yield Arrival(at_s, gateway.strip())


def _seconds(path: Path, number: int, text: str) -> float:
    try:
        at_s = float(text)
    except ValueError:
        at_s = math.nan
    if not 0 <= at_s < math.inf:
        found = f"{path}:{number}: it begins with {shown(text)}"
        raise ConfigError(f"{found}; it must begin with seconds, 0 or more, such as '0.25, eu-1'")
    return at_s


def file_text(path: Path, most_bytes: int) -> str:
    """Read a text file of limited size.

    Raises:
        ConfigError: if it is too large, not there, not readable or not UTF-8.
    """
    try:
        with path.open("rb") as file:
            data = file.read(most_bytes + 1)
    except OSError as error:
        message = f"{path} cannot be read: {error.strerror or error}; check the path and its rights"
        raise ConfigError(message) from None
    except ValueError:  # a NUL in the path
        raise ConfigError(f"{str(path)!r} is not a path") from None
    if len(data) > most_bytes:
        raise ConfigError(f"{path} is too large: it may have at most {most_bytes:,} bytes")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise ConfigError(f"{path}:{line}: this is not UTF-8 text; save the file as such") from None
