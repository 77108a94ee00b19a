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
from meshnode.limits import (
    MAX_SCENARIO_MISTAKES_SOUGHT,
    MAX_TRACE_ARRIVALS,
    MAX_TRACE_BYTES,
)
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
        if load.file is not None and load.shape == "trace":
            read = read_trace(folder / load.file) if folder is not None else ((), [])
            arrivals, wrong = read
            mistakes += [Mistake(("load", number, "file"), each) for each in wrong]
            if folder is None:
                message = "this scenario comes from no file, so it can name none: give 'arrivals'"
                mistakes.append(Mistake(("load", number, "file"), message))
            load = msgspec.structs.replace(load, file=None, arrivals=arrivals)
        loads.append(load)
    return msgspec.structs.replace(scenario, load=tuple(loads)), mistakes


def read_trace(path: Path) -> tuple[tuple[Arrival, ...], list[str]]:
    """Read a file of arrivals.

    Returns:
        The arrivals of lines that are as they should be, and what is wrong with the others, or with the
        whole file.
    """
    try:
        text = file_text(path, MAX_TRACE_BYTES)
    except ConfigError as error:
        return (), [str(error)]
    arrivals: list[Arrival] = []
    wrong: list[str] = []
    for number, at_s, gateway in _lines(text):
        if len(arrivals) == MAX_TRACE_ARRIVALS:
            return (), [f"{path} has more than {MAX_TRACE_ARRIVALS:,} arrivals; cut it"]
        seconds = _seconds(at_s)
        if seconds is None:
            wrong.append(
                f"{path}:{number}: it begins with {shown(at_s)}; it must begin with seconds, 0 or more, "
                "such as '0.25, eu-1'"
            )
        else:
            if arrivals and seconds < arrivals[-1].at_s:
                found = f"{path}:{number}: {seconds:g} s is before the line above"
                wrong.append(f"{found}; lines must be in order")
            arrivals.append(Arrival(seconds, gateway))
        if len(wrong) == MAX_SCENARIO_MISTAKES_SOUGHT:
            break
    if not arrivals and not wrong:
        wrong.append(f"{path} has no arrivals: one per line, such as '0.25' or '0.25, eu-1'")
    return () if wrong else tuple(arrivals), wrong


def _lines(text: str) -> Iterator[tuple[int, str, str]]:
    """Yield number, time and gateway of each line that says something."""
    is_first = True
    for number, line in enumerate(text.splitlines(), start=1):
        at_s, _, gateway = (each.strip() for each in line.partition(","))
        if at_s.startswith("#") or not (at_s or gateway):
            continue
        if not (is_first and at_s in _HEADINGS):
            yield number, at_s, gateway
        is_first = False


def _seconds(text: str) -> float | None:
    try:
        at_s = float(text)
    except ValueError:
        return None
    return at_s if 0 <= at_s < math.inf else None


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
