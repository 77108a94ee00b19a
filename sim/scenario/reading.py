"""Reads scenarios from TOML, and says line by line what is wrong with one that cannot be played.

    scenario = read("region-loss")            # from the library
    scenario = read("rehearsals/office.toml")

All that is wrong is told at once, up to `MAX_SCENARIO_MISTAKES`: with the line, the key, what was found and
what is allowed. After `MAX_SCENARIO_MISTAKES_SOUGHT` no more are looked for.
"""

from __future__ import annotations

import re
import tomllib
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

import msgspec

from meshnode.errors import ConfigError
from meshnode.limits import (
    MAX_SCENARIO_BYTES,
    MAX_SCENARIO_MISTAKES,
    MAX_SCENARIO_MISTAKES_SOUGHT,
)
from meshnode.sim.running.result import METRICS
from meshnode.sim.scenario import checks, shapes
from meshnode.sim.scenario.library import library, path_of
from meshnode.sim.scenario.mistakes import Mistake
from meshnode.sim.scenario.model import Scenario
from meshnode.sim.scenario.positions import line_of, positions
from meshnode.sim.scenario.traces import file_text, with_traces

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from meshnode.sim.scenario.mistakes import KeyPath

__all__ = ["library", "parse", "path_of", "read"]

_PLACE: Final = re.compile(r" \(at (?:line (\d+), column \d+|end of document)\)$")


def read(path_or_name: str | Path) -> Scenario:
    """Read a scenario from a file, or one of the library by its name.

    Args:
        path_or_name: See `path_of`.

    Returns:
        A scenario without mistakes; the files that its traces name are read into it.

    Raises:
        ConfigError: if there is no such file, it cannot be read, or something is wrong with it.
    """
    path = path_of(path_or_name)
    text = file_text(path, MAX_SCENARIO_BYTES)
    return parse(text, str(path), folder=path.parent)


def parse(text: str, source_name: str, *, folder: Path | None = None) -> Scenario:
    """Read a scenario from text.

    Args:
        text: TOML.
        source_name: What messages call it.
        folder: Where the files of traces are; None if it may name none.

    Raises:
        ConfigError: if something is wrong with it; the message has a line for each mistake.
    """
    if len(text.encode("utf-8", "surrogatepass")) > MAX_SCENARIO_BYTES:
        raise ConfigError(f"{source_name} is too large: at most {MAX_SCENARIO_BYTES:,} bytes")
    data = _toml(text, source_name)
    lines = positions(text)
    found = [*islice(shapes.mistakes(data), MAX_SCENARIO_MISTAKES_SOUGHT)]
    rest = shapes.readable(data, [mistake.at for mistake in found])
    if rest is None or len(found) == MAX_SCENARIO_MISTAKES_SOUGHT:
        raise _refusal(source_name, lines, found)
    try:
        scenario = msgspec.convert(rest.data, Scenario)
    except msgspec.ValidationError as error:  # what the walk over the types has missed
        raise ConfigError(f"{source_name}: {error}") from None
    scenario, more = _checked(scenario, folder)
    found += [Mistake(rest.original(each.at), each.message) for each in more]
    if found:
        for number, load in enumerate(data.get("load", ())):
            if isinstance(load, dict) and "file" in load and "arrivals" not in load:
                # What is wrong with an arrival is told where its file is named.
                lines["load", number, "arrivals"] = lines["load", number, "file"]
        raise _refusal(source_name, lines, found)
    return scenario


def _checked(scenario: Scenario, folder: Path | None) -> tuple[Scenario, list[Mistake]]:
    """Return a scenario with what its traces say, and whatever is wrong with both."""
    found = [*islice(checks.mistakes(scenario, METRICS), MAX_SCENARIO_MISTAKES_SOUGHT)]
    if not any(load.file is not None for load in scenario.load):
        return scenario, found
    scenario, in_files = with_traces(scenario, folder)
    in_arrivals = (
        each
        for each in checks.mistakes(scenario, METRICS)
        if each.at[:1] == ("load",) and each.at[2:3] == ("arrivals",) and each not in found
    )
    found += [*in_files, *islice(in_arrivals, MAX_SCENARIO_MISTAKES_SOUGHT)]
    return scenario, found


def _toml(text: str, source_name: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        found = _PLACE.search(str(error))
        last = text.count("\n") + 1
        line = int(found.group(1)) if found is not None and found.group(1) else last
        said = _PLACE.sub("", str(error))
        message = f"{source_name}:{line}: this is not TOML: {said[:1].lower()}{said[1:]}"
        raise ConfigError(message) from None
    except RecursionError:
        message = f"{source_name}: this is not a scenario: lists or tables are nested too deeply"
        raise ConfigError(message) from None
    except ValueError as error:  # a whole number with more digits than Python reads
        raise ConfigError(f"{source_name}: a value cannot be read: {error}") from None


def _refusal(source_name: str, lines: dict[KeyPath, int], found: Sequence[Mistake]) -> ConfigError:
    """Return an error that tells what was found, by line; of many mistakes the first."""
    placed = sorted(
        ((line_of(mistake.at, lines), mistake) for mistake in found), key=lambda each: each[0]
    )
    told = [f"{source_name}:{line}: {mistake}" for line, mistake in placed[:MAX_SCENARIO_MISTAKES]]
    if len(placed) > MAX_SCENARIO_MISTAKES:
        least = "at least " if len(placed) >= MAX_SCENARIO_MISTAKES_SOUGHT else ""
        more = len(placed) - MAX_SCENARIO_MISTAKES
        told.append(f"{source_name}: and {least}{more} more mistakes")
    error = ConfigError("\n".join(told))
    error.lines = tuple(told)
    return error
