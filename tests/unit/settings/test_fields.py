"""The table of settings: every part of every entry is there, and the command line agrees with it."""

from __future__ import annotations

import re
import tomllib
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import typer

from meshnode.cli.main import app
from meshnode.membership.config import LAN, WAN, MembershipConfig
from meshnode.options import Chosen, JoinOptions
from meshnode.settings.document import example, membership_rows, options_of
from meshnode.settings.fields import FIELDS, Field, attribute_of
from meshnode.settings.layers import all_fields
from meshnode.settings.load import check_file
from meshnode.settings.tuning import OPTION, explanations, membership_fields

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE = (Path(__file__).parents[3] / "docs" / "configuration.md").read_text(encoding="utf-8")
PARTS = ("help", "meaning", "unit", "trade_off", "sane", "relation", "example")

RUN_ONLY = {
    "invite",
    "new",
    "rejoin",
    "no_gateway",
    "no_grpc",
    "data_dir",
    "config",
    "env_file",
    "membership",
}
"""What `join` takes and is no entry of the table: it holds for one start, says where files are, or
stands for something that is (`--no-gateway`, `--membership`)."""
RUN_ONLY |= {"ask", "detach", "invite_file"}


def parameters() -> Iterator[tuple[str, typer.core.TyperOption]]:
    command = typer.main.get_group(app).commands["join"]
    for param in command.params:
        assert param.name is not None
        if param.name not in RUN_ONLY:
            yield param.name, param  # type: ignore[misc]


@pytest.mark.parametrize("field", all_fields().values(), ids=lambda field: field.key)
@pytest.mark.parametrize("part", PARTS)
def test_every_setting_is_documented_in_every_part(field: Field, part: str) -> None:
    assert getattr(field, part).strip()


@pytest.mark.parametrize("field", FIELDS.values(), ids=lambda field: field.key)
def test_explanations_are_sentences_and_help_is_short(field: Field) -> None:
    for part in ("meaning", "trade_off", "sane", "relation"):
        text = getattr(field, part)
        assert text.endswith("."), part
        assert text[0].isupper() or text[0] in "`0123456789", part
    assert len(field.help) <= 80


def test_every_option_of_join_is_a_setting_or_holds_for_one_start() -> None:
    options = {opts.partition("/")[0] for field in FIELDS.values() for opts in field.option}
    assert {opt for _, param in parameters() for opt in param.opts} == options


def test_options_have_the_tables_help_panel_and_metavar() -> None:
    by_option = {field.option[0].partition("/")[0]: field for field in FIELDS.values()}
    for _, param in parameters():
        field = by_option[param.opts[0]]
        assert param.help == field.help
        assert param.rich_help_panel == field.panel
        assert param.metavar == field.metavar
        assert param.envvar is None  # variables are read with the other sources, not by the parser


def test_the_three_spellings_are_one_name() -> None:
    for key, field in all_fields().items():
        assert re.fullmatch(r"[a-z_]+(\.[a-z_]+)?", key)
        assert field.variable == "MESHNODE_" + key.upper().replace(".", "_")
        if field.option != (OPTION,):
            option = field.option[0].partition("/")[0].removeprefix("--").replace("-", "_")
            assert key.removesuffix("s") == option.removesuffix("s")


def test_every_setting_is_an_option_of_the_daemon_and_can_be_kept() -> None:
    in_options = {it.name for it in fields(JoinOptions)}
    elsewhere = {
        *("invite", "new", "rejoin", "ask", "on_terminal", "region_chosen"),
        *("data_dir", "chosen", "membership", "config_files"),
    }
    assert {attribute_of(field) for field in FIELDS.values()} == in_options - elsewhere
    assert {*FIELDS, "membership"} == set(Chosen.__struct_fields__)


def test_the_defaults_are_those_of_the_daemons_options() -> None:
    for field in fields(JoinOptions):
        for each in FIELDS.values():
            if attribute_of(each) == field.name and field.name in ("profile", "log_level", "nice"):
                assert each.default == field.default


def test_every_value_of_membership_is_a_setting_with_its_own_explanation() -> None:
    names = [it.name for it in fields(MembershipConfig)]
    assert list(explanations()) == names
    assert list(membership_fields()) == [f"membership.{name}" for name in names]
    assert len(set(explanations().values())) == len(names)


def test_both_presets_pass_the_rules_of_their_settings() -> None:
    for preset in (LAN, WAN):
        for key, field in membership_fields().items():
            value = getattr(preset, key.partition(".")[2])
            assert field.kind.parse(key, value, None) == value  # type: ignore[arg-type]


def test_the_page_shows_lan_and_wan_side_by_side() -> None:
    rows = {name: (lan, wan) for name, lan, wan, _ in membership_rows()}
    assert rows["probe_interval_s"] == ("1", "5")
    assert rows["retention_s"] == ("86400", "86400")
    assert "| probe_interval_s | 1 | 5 | Period in which" in PAGE.replace("`", "")


@pytest.mark.parametrize("field", FIELDS.values(), ids=lambda field: field.key)
def test_the_page_has_every_setting_with_all_its_spellings(field: Field) -> None:
    section = PAGE.split(f"### `{field.key}`\n")[1].split("### ")[0]
    for part in PARTS[1:]:
        assert getattr(field, part) in section, part
    assert field.variable in section
    assert options_of(field).replace("|", "\\|") in section


def test_the_example_has_every_setting_and_is_accepted(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text(example(), encoding="utf-8")
    assert check_file(path).faults == ()
    assert tomllib.loads(example()) == {"membership": {}}
    (tmp_path / "models").mkdir()
    path.write_text(re.sub(r"^#(?=[a-z])", "", example(), flags=re.MULTILINE), encoding="utf-8")
    found = check_file(path)
    assert found.faults == ()
    chosen = {key for key, each in found.by_key.items() if each.source.path == str(path)}
    assert chosen == set(all_fields())
    assert example() in PAGE


def test_the_page_names_the_order_of_precedence_as_it_is() -> None:
    order = ["command line", "environment", "`.env` file", "TOML file", "earlier", "default"]
    found = [PAGE.index(f"\n{number}. ") for number in range(1, 7)]
    assert found == sorted(found)
    for at, words in zip(found, order, strict=True):
        assert words in PAGE[at : at + 60]
