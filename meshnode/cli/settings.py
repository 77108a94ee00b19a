"""How commands reach the settings: options declared from the table of fields, sources read once."""

import os
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from meshnode.client.paths import data_dir as choose_data_dir
from meshnode.errors import ConfigError
from meshnode.settings.fields import FIELDS, RUNNING

ConfigFile = Annotated[
    str | None,
    typer.Option(
        "--config",
        metavar="FILE",
        help="TOML file of settings (MESHNODE_CONFIG).",
        show_default="config.toml in the data folder",
        rich_help_panel=RUNNING,
    ),
]

EnvFile = Annotated[
    str | None,
    typer.Option(
        "--env-file",
        metavar="FILE",
        help="File of MESHNODE_ variables (MESHNODE_ENV_FILE).",
        show_default=".env in the working folder",
        rich_help_panel=RUNNING,
    ),
]


def option(key: str) -> Any:
    """Return the command line's declaration of a setting; its help and default are the table's."""
    field = FIELDS[key]
    default = field.default_text or field.kind.plain(field.default) or False
    return typer.Option(
        *field.option,
        metavar=field.metavar,
        help=field.help,
        show_default=default if isinstance(default, str) else False,
        rich_help_panel=field.panel,
    )


def working_folder() -> Path:
    """Return the folder that relative paths start from.

    Raises:
        ConfigError: if it was removed.
    """
    try:
        return Path.cwd()
    except OSError as error:
        raise ConfigError(
            f"the working folder cannot be used ({error.strerror or error}); change to another one"
        ) from None


def environment() -> Mapping[str, str]:
    """Return the variables that count: the environment's, then those of `.env`.

    Raises:
        ConfigError: if the `.env` file cannot be read.
    """
    from meshnode.settings.environment import effective

    return effective(os.environ, working_folder())


def client_environment(given: Collection[str]) -> Mapping[str, str]:
    """Return the variables that tell a client its gateways and its key.

    Args:
        given: The variables in whose place options were given.

    Raises:
        ConfigError: if a key would go where an `.env` file leads that nobody named, or it cannot be read.
    """
    from meshnode.settings.environment import effective_for_client

    return effective_for_client(os.environ, working_folder(), given)


def data_folder(option: str | None) -> Path:
    """Return the data folder that `--data-dir`, MESHNODE_DATA_DIR (also of `.env`) or nothing means.

    Raises:
        ConfigError: if the `.env` file cannot be read.
    """
    return choose_data_dir(option, {} if option else environment())


def load_settings(
    values: Mapping[str, object],
    *,
    membership: list[str] | None = None,
    data_dir: str | None = None,
    config: str | None = None,
    env_file: str | None = None,
) -> Any:
    """Return the settings of this machine's node as `meshnode.settings.load.Loaded`.

    Args:
        values: What options said, by the setting's key; None where one was not given.
        membership: What every `--membership` said.
        data_dir: What `--data-dir` said.
        config: What `--config` said.
        env_file: What `--env-file` said.
    """
    from meshnode.settings.load import Given, load
    from meshnode.settings.machine import on_this_machine

    given = Given(
        {key: value for key, value in values.items() if value is not None},
        membership,
        data_dir,
        config,
        env_file,
    )
    loaded = load(given, os.environ, working_folder(), choose_data_dir)
    return replace(loaded, settings=on_this_machine(loaded.settings))


def settings_in(folder: Path, config: str | None, env_file: str | None) -> Any:
    """Return the settings of a start in no shell, such as a service's, as `meshnode.settings.layers.Settings`.

    Args:
        folder: The data folder.
        config: The TOML file that it names.
        env_file: The `.env` file that it names.
    """
    from meshnode.settings.load import Given, load
    from meshnode.settings.machine import on_this_machine

    given = Given({}, None, str(folder), config, env_file)
    return on_this_machine(load(given, {}, Path(folder.anchor), choose_data_dir).settings)
