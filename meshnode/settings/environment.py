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
    from collections.abc import Collection, Mapping

ENV_FILE_VARIABLE: Final = "MESHNODE_ENV_FILE"
"""Names the `.env` file where no option does."""

_PREFIX = "MESHNODE_"

GATEWAY_VARIABLE: Final = "MESHNODE_GATEWAY"
URL_VARIABLE: Final = "MESHNODE_URL"
"""The same under another name."""

CA_FILE_VARIABLE: Final = "MESHNODE_CA_FILE"
_KEY, _KEY_FILE = "MESHNODE_API_KEY", "MESHNODE_API_KEY_FILE"


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
    environ = _under_one_name(environ)
    found = read_env_file(environ, folder, env_file)
    return environ if found is None else _completed(environ, _variables_of(*found))


def effective_for_client(
    environ: Mapping[str, str], folder: Path, given: Collection[str] = ()
) -> Mapping[str, str]:
    """Return the variables that tell a client its gateways and its key.

    As `effective`, with one exception. An `.env` file that nobody named may be anybody's: it lies in
    whatever folder a person works in, such as one that they unpacked or cloned. It may name a gateway
    together with that gateway's key, and both count then; it never decides where a key from elsewhere
    goes, nor by whose certificates that place is known.

    Args:
        environ: The environment.
        folder: The working folder.
        given: The variables in whose place options were given.

    Raises:
        ConfigError: if a key from elsewhere would go where that file leads, or the file cannot be read.
    """
    environ = _under_one_name(environ)
    found = read_env_file(environ, folder, None)
    if found is None or environ.get(ENV_FILE_VARIABLE):
        return effective(environ, folder)
    path, _ = found
    ours = _variables_of(*found)
    completed = dict(_completed(environ, ours))
    leading = [
        name
        for name in (GATEWAY_VARIABLE, CA_FILE_VARIABLE)
        if name not in given and ours.get(name) and not environ.get(name)
    ]
    if not leading:
        return completed
    has_pair = GATEWAY_VARIABLE in leading and ours.get(_KEY)
    is_all_of_the_file = ours.get(_KEY) and not (environ.get(_KEY) or environ.get(_KEY_FILE))
    if _KEY_FILE not in given and (has_pair or is_all_of_the_file):
        return completed | {_KEY: ours[_KEY]}  # a gateway and its own key
    if _KEY_FILE in given or completed.get(_KEY) or completed.get(_KEY_FILE):
        raise ConfigError(_refusal(path, leading))
    return completed


def _refusal(path: Path, leading: list[str]) -> str:
    what = "a gateway" if GATEWAY_VARIABLE in leading else "whom to trust as a gateway"
    option = "--gateway" if GATEWAY_VARIABLE in leading else "--ca-file"
    return (
        f"{path} says {what} ({leading[0]}), and an API key that does not stand in that file itself does not "
        f"go where it leads, since anybody may have put it there. If it is yours, say so: {option}, or export "
        f"{leading[0]}, or {ENV_FILE_VARIABLE}={path}"
    )


def _variables_of(path: Path, text: str) -> Mapping[str, str]:
    """Return our variables of an `.env` file."""
    from meshnode.settings.layers import Kind, Source
    from meshnode.settings.readers import env_file_pairs

    pairs, faults = env_file_pairs(text, Source(Kind.ENV_FILE, str(path)))
    if faults:
        raise ConfigError(str(faults[0]))
    return _under_one_name({name: value for name, value, _ in pairs if name.startswith(_PREFIX)})


def _under_one_name(variables: Mapping[str, str]) -> Mapping[str, str]:
    """Return variables in which the gateways are named as `MESHNODE_GATEWAY`."""
    url = variables.get(URL_VARIABLE)
    if not url or variables.get(GATEWAY_VARIABLE):
        return variables
    return {**variables, GATEWAY_VARIABLE: url}


def _completed(environ: Mapping[str, str], ours: Mapping[str, str]) -> Mapping[str, str]:
    return {
        **ours,
        **{n: value for n, value in environ.items() if value or not n.startswith(_PREFIX)},
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
