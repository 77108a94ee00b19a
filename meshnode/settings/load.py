"""Reads the files and variables of this machine, and resolves them into settings."""

from __future__ import annotations

import socket
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from meshnode.datafolder import kept_options
from meshnode.errors import ConfigError
from meshnode.models.repository.local_archive import is_local_archive
from meshnode.models.repository.source_urls import is_url
from meshnode.options import Chosen
from meshnode.settings.environment import absolute, read_env_file, read_text
from meshnode.settings.layers import (
    COMMAND_LINE,
    DEFAULT,
    ENVIRONMENT,
    Fault,
    Kind,
    Layer,
    Machine,
    Settings,
    Source,
    resolve,
)
from meshnode.settings.readers import (
    CONFIG,
    DATA_DIR,
    from_command_line,
    from_env_file,
    from_environment,
    from_kept,
    from_toml,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

CONFIG_NAME: Final = "config.toml"
"""The TOML file in the data folder."""


@dataclass(frozen=True, slots=True)
class Given:
    """What a command line said.

    Attributes:
        values: What each option said, by the setting's key.
        membership: What every `--membership` said, or None.
        data_dir: What `--data-dir` said.
        config: What `--config` said.
        env_file: What `--env-file` said.
    """

    values: Mapping[str, object]
    membership: list[str] | None = None
    data_dir: str | None = None
    config: str | None = None
    env_file: str | None = None


@dataclass(frozen=True, slots=True)
class Loaded:
    """The settings of this machine's node.

    Attributes:
        settings: All of them, and what is wrong.
        data_dir: Absolute path of the data folder.
        data_dir_source: Who named it.
        files: The files that were read, highest first.
        config_file: The TOML file that was named, or empty where none was.
        env_file: The `.env` file that counts, named or not, or empty where there is none.
    """

    settings: Settings
    data_dir: Path
    data_dir_source: Source
    files: tuple[str, ...]
    config_file: str = ""
    env_file: str = ""


def load(
    given: Given,
    environ: Mapping[str, str],
    folder: Path,
    choose_data_dir: Callable[[str | None, Mapping[str, str]], Path],
) -> Loaded:
    """Read every source.

    Args:
        given: What the command line said.
        environ: The environment.
        folder: Absolute path of the working folder.
        choose_data_dir: Returns the data folder, given what was said of it and no variables.

    Returns:
        The settings; whatever is wrong with them or their files is in `settings.faults`.
    """
    variables = {name: (value, ENVIRONMENT) for name, value in environ.items() if value}
    env_file = _env_file(given, environ, folder)
    for name, value in env_file.values.items():
        if name in (CONFIG, DATA_DIR):
            variables.setdefault(name, (str(value), env_file.source))
    named, source = variables.get(DATA_DIR, ("", DEFAULT))
    if given.data_dir:
        named, source = given.data_dir, COMMAND_LINE
    data_dir = choose_data_dir(named or None, {})
    chosen, kept = _kept(data_dir)
    named_config = given.config or variables.get(CONFIG, ("",))[0]
    layers = (
        from_command_line(given.values, given.membership, str(folder)),
        from_environment(environ, str(folder)),
        env_file,
        _config_file(named_config, folder, data_dir),
        kept,
    )
    files = tuple(each.source.path for each in layers if each.source.path)
    return Loaded(
        _checked(resolve(layers, this_machine(), chosen)),
        data_dir,
        source,
        files,
        config_file=layers[3].source.path if named_config else "",
        env_file=env_file.source.path,
    )


def check_file(path: Path) -> Settings:
    """Read one TOML file, without any other source; what is wrong is in `faults`."""
    path = path.absolute()
    return _checked(resolve([_toml(path)], this_machine()))


def this_machine() -> Machine:
    """Return what settings need to know of this machine."""
    return Machine(socket.gethostname(), absolute, _memory_bytes)


def _checked(settings: Settings) -> Settings:
    """Add what only the disk tells: a folder or archive of models that was named now must exist."""
    models = settings.by_key["models"]
    if models.value is None or models.source.kind is Kind.KEPT or is_url(models.value):
        return settings
    place = Path(models.value)
    if place.is_dir() or is_local_archive(place):
        return settings
    message = (
        f"{models.source.spelled(models.field)} {models.value!r} is not a folder; it must hold one "
        "folder per model, such as DIR/digits/1/model.onnx, or be an archive of such a folder, or a URL"
    )
    return replace(
        settings, faults=(*settings.faults, Fault(message, models.source, models.field.key))
    )


def _memory_bytes() -> int:
    from meshnode.hardware.machine import this_machine  # a container's limit counts

    return this_machine().memory_bytes


def _env_file(given: Given, environ: Mapping[str, str], folder: Path) -> Layer:
    try:
        found = read_env_file(environ, folder, given.env_file)
    except ConfigError as error:
        return _unreadable(Kind.ENV_FILE, error)
    if found is None:
        return Layer(Source(Kind.ENV_FILE))
    path, text = found
    return from_env_file(text, str(path), str(folder))


def _config_file(named: str, folder: Path, data_dir: Path) -> Layer:
    if not named:
        path = data_dir / CONFIG_NAME
        return _toml(path) if _exists(path) else Layer(Source(Kind.TOML))
    try:
        return _toml(Path(absolute(named, str(folder))))
    except ConfigError as error:
        return _unreadable(Kind.TOML, error)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a folder of another user; whoever needs it says so
        return False


def _toml(path: Path) -> Layer:
    try:
        text = read_text(path)
    except ConfigError as error:
        return _unreadable(Kind.TOML, error)
    return from_toml(text, str(path), str(path.parent))


def _kept(data_dir: Path) -> tuple[Chosen, Layer]:
    try:
        chosen = kept_options(data_dir)
    except ConfigError as error:
        return Chosen(), _unreadable(Kind.KEPT, error)
    path = data_dir / "options"
    return chosen, from_kept(chosen, str(path)) if path.exists() else Layer(Source(Kind.KEPT))


def _unreadable(kind: Kind, error: ConfigError) -> Layer:
    """Return the layer of a file whose error is a whole sentence already."""
    return Layer(Source(kind), faults=(Fault(str(error), Source(kind)),))
