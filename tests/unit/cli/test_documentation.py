"""docs/cli.md tells all of the command line, and nothing that is not there."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import typer

from meshnode.cli.main import app

PAGE = (Path(__file__).parents[3] / "docs" / "cli.md").read_text(encoding="utf-8")
SECTIONS = dict(
    re.findall(r"^## `meshnode (\w+)[^\n]*\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
)


def options_of(command: Any) -> set[str]:
    """Return the options of a command, or of all commands of a group."""
    found = {
        option
        for param in command.params
        for option in (*param.opts, *param.secondary_opts)
        if option.startswith("--")
    }
    return found.union(*map(options_of, getattr(command, "commands", {}).values()))


COMMANDS = {
    name: options_of(command) for name, command in typer.main.get_group(app).commands.items()
}


def test_every_command_has_a_section() -> None:
    assert set(SECTIONS) == set(COMMANDS)


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_option_is_described_and_every_described_option_exists(command: str) -> None:
    described = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", SECTIONS[command]))
    assert COMMANDS[command] <= described
    everywhere = {option for options in COMMANDS.values() for option in options}
    assert described <= everywhere


def test_every_json_example_is_json() -> None:
    examples = re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)
    assert len(examples) >= 6
    for example in examples:
        json.loads(example)
