"""The variables that count: the environment's, and below them those of an `.env` file.

Every command uses this, so it is cheap: where there is no `.env` file, or it has nothing of ours,
nothing is parsed and nothing imported for it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from meshnode.errors import ConfigError
from meshnode.limits import MAX_SETTINGS_FILE_BYTES

if TYPE_CHECKING:
    from collections.abc import Mapping

ENV_FILE_VARIABLE: Final = "MESHNODE_ENV_FILE"
"""Names the `.env` file where no option does."""

_PREFIX = "MESHNODE_"


def effective(
    environ: Mapping[str, str], folder: Path, env_file: str | None = None
) -> Mapping[str, str]:
    """Return the environment, completed with the `MESHNODE_` variables of the `.env` file.

    A variable of the environment wins; an empty one counts as missing.

    Args:
        environ: The environment.
        folder: The working folder, whose `.env` is read where no other file is named.
        env_file: What `--env-file` said.

    Raises:
        ConfigError: if the file cannot be read or is not of the form `NAME=VALUE`.
    """
    found = read_env_file(environ, folder, env_file)
    if found is None:
        return environ
    from meshnode.settings.layers import Kind, Source
    from meshnode.settings.readers import env_file_pairs

    path, text = found
    pairs, faults = env_file_pairs(text, Source(Kind.ENV_FILE, str(path)))
    if faults:
        raise ConfigError(str(faults[0]))
    ours = {name: value for name, value, _ in pairs if name.startswith(_PREFIX)}
    return ours | {
        name: value for name, value in environ.items() if value or not name.startswith(_PREFIX)
    }


def read_env_file(
    environ: Mapping[str, str], folder: Path, env_file: str | None
) -> tuple[Path, str] | None:
    """Return the path and text of the `.env` file that counts, or None if there is none.

    A file that was not named, and that nowhere says `MESHNODE_`, belongs to some other program.

    Raises:
        ConfigError: if a file that was named does not exist, or one cannot be read.
    """
    named = env_file or environ.get(ENV_FILE_VARIABLE)
    if named:
        path = Path(absolute(named, str(folder)))
        return path, read_text(path)
    path = folder / ".env"
    if not path.is_file():
        return None
    text = read_text(path)
    return (path, text) if _PREFIX in text else None


def read_text(path: Path) -> str:
    """Return what a file of settings holds.

    Raises:
        ConfigError: if there is none, or it cannot be read, is too large or not UTF-8.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_SETTINGS_FILE_BYTES + 1)
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist; create it, or name another file") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}") from None
    if len(data) > MAX_SETTINGS_FILE_BYTES:
        raise ConfigError(
            f"{path} is no file of settings: it has more than {MAX_SETTINGS_FILE_BYTES} bytes"
        )
    try:
        return data.decode("utf-8-sig")  # editors on Windows put a mark in front
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise ConfigError(f"{path}, line {line}: this is not UTF-8 text") from None


def absolute(text: str, folder: str) -> str:
    """Return a path as an absolute one; `~` is the home folder, relative ones start from `folder`.

    Raises:
        ConfigError: if it cannot be one.
    """
    try:
        path = Path(text).expanduser()
        return str(path if path.is_absolute() else Path(folder) / path)
    except (RuntimeError, ValueError, KeyError, OSError):
        raise ConfigError(f"{text!r} is not a path; its home folder is not known") from None
