"""The scenarios that come with meshnode, one story each: files in `meshnode/sim/scenarios`."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from meshnode.errors import ConfigError
from meshnode.sim.scenario.mistakes import unknown

FOLDER: Final = Path(__file__).parent.parent / "scenarios"
"""Where they are: in a checkout, and where the package is installed."""

SUFFIX: Final = ".toml"


def library() -> dict[str, Path]:
    """Return the built-in scenarios: their files by name, in the order of names."""
    return {path.stem: path for path in sorted(FOLDER.glob(f"*{SUFFIX}"))}


def path_of(path_or_name: str | Path) -> Path:
    """Return the file of a scenario.

    Args:
        path_or_name: A file, or the name of a built-in scenario. What ends in `.toml` or has a folder
            in it is a file; a name without either is a built-in one if there is one, else a file.

    Raises:
        ConfigError: if there is neither; it tells the nearest names.
    """
    path = Path(path_or_name)
    is_name = path.suffix != SUFFIX and path.name == str(path)
    known = library()
    if is_name and path.name in known:
        return known[path.name]
    if path.is_file():
        return path
    if path.is_dir():
        message = f"{path} is a folder; a scenario is a file"
    elif path.exists():
        message = f"{path} is a pipe or a device; write the scenario to a file and name that"
    elif is_name:
        message = unknown("scenario file or built-in scenario", path.name, known)
    else:
        names = ", ".join(known)
        message = f"there is no file {path}; built-in scenarios have plain names: {names}"
    raise ConfigError(message)
