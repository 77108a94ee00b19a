"""`meshnode config`, and `.env` files for every command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from meshnode import limits
from meshnode.settings.layers import all_fields

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from typer.testing import Result

    Run = Callable[..., Result]


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def rows(result: Result) -> dict[str, list[str]]:
    lines = [line.split(None, 1) for line in result.stdout.splitlines()[1:]]
    return {line[0]: line[1].rsplit("  ", 1) for line in lines}


def test_show_tells_each_value_and_where_it_is_from(
    meshnode: Run, work: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MESHNODE_REGION", "eu")
    (work / ".env").write_text("MESHNODE_ZONE=z\n")
    (data_dir / "config.toml").write_text(
        'nice = 3\nmax_memory = "1G"\n[membership]\ngossip_fanout = 4\n'
    )
    (data_dir / "options").write_text('{"name": "kitchen"}')
    result = meshnode("config", "show")
    assert result.exit_code == 0
    shown = {key: [each.strip() for each in row] for key, row in rows(result).items()}
    assert shown["data_dir"] == [str(data_dir), "environment MESHNODE_DATA_DIR"]
    assert shown["region"] == ["eu", "environment MESHNODE_REGION"]
    assert shown["zone"] == ["z", f".env ({work / '.env'})"]
    assert shown["nice"] == ["3", f"config.toml ({data_dir / 'config.toml'})"]
    assert shown["membership.gossip_fanout"][0] == "4"
    assert shown["name"] == ["kitchen", "kept from an earlier join"]
    assert shown["max_memory"][0] == "1 GiB", "as it is shown everywhere"
    assert shown["max_temperature"] == ["no limit", "default"]
    assert "membership.dial_limit" not in shown


def test_show_as_json_has_all_settings_and_what_they_override(
    meshnode: Run, work: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MESHNODE_LABELS", "a=1,b=2")
    toml = data_dir / "config.toml"
    toml.write_text('labels = { c = "3" }\nprofile = "wan"\n')
    document = json.loads(meshnode("config", "show", "--json").stdout)
    by_key: dict[str, Any] = {each["key"]: each for each in document["settings"]}
    assert set(by_key) == set(all_fields())
    assert by_key["labels"] == {
        "key": "labels",
        "value": {"a": "1", "b": "2"},
        "from": "environment MESHNODE_LABELS",
        "source": "environment",
        "path": None,
        "overrides": [
            {
                "value": {"c": "3"},
                "from": f"config.toml ({toml})",
                "source": "toml",
                "path": str(toml),
            }
        ],
    }
    assert by_key["membership.probe_interval_s"]["value"] == 5.0
    assert by_key["membership.probe_interval_s"]["from"] == "profile"
    assert document["files"] == [str(toml)]
    assert document["faults"] == []


def test_show_lists_the_limits_with_their_reasons(meshnode: Run) -> None:
    found = json.loads(meshnode("config", "show", "--limits", "--json").stdout)
    by_name = {each["name"]: each for each in found}
    assert by_name["MAX_LABELS"]["value"] == limits.MAX_LABELS
    assert all(each["reason"] for each in found)
    assert "MAX_LABELS" in meshnode("config", "show", "--limits").stdout


def test_show_and_check_name_every_fault_and_exit_with_2(
    meshnode: Run, work: Path, data_dir: Path
) -> None:
    toml = data_dir / "config.toml"
    toml.write_text('regoin = "x"\nnice = 77\n')
    for command in ("show", "check"):
        result = meshnode("config", command)
        assert result.exit_code == 2
        assert result.stderr.splitlines() == [
            f"error: {toml}: unknown key 'regoin'; did you mean 'region'?",
            f"error: {toml}: nice 77 (a number) is not a whole number of 0 to 19",
        ]
    found = json.loads(meshnode("config", "check", "--json").stdout)["faults"]
    assert [each["key"] for each in found] == ["regoin", "nice"]
    assert {each["path"] for each in found} == {str(toml)}


def test_check_of_sound_settings_says_what_was_read(
    meshnode: Run, work: Path, data_dir: Path
) -> None:
    assert meshnode("config", "check").stdout.startswith("No faults (no files")
    toml = data_dir / "config.toml"
    toml.write_text("nice = 7\n")
    result = meshnode("config", "check")
    assert (result.exit_code, result.stdout) == (0, f"No faults ({toml}).\n")


def test_check_of_one_file_looks_at_nothing_else(meshnode: Run, work: Path, data_dir: Path) -> None:
    (data_dir / "config.toml").write_text("wrong = 1\n")
    (work / "new.toml").write_text("nice = 7\n")
    assert meshnode("config", "check", "new.toml").exit_code == 0
    result = meshnode("config", "check", "missing.toml")
    assert result.exit_code == 2
    assert "missing.toml does not exist" in result.stderr


def test_the_example_is_a_file_that_check_accepts(meshnode: Run, work: Path) -> None:
    (work / "config.toml").write_text(meshnode("config", "example").stdout, encoding="utf-8")
    assert meshnode("config", "check", "config.toml").exit_code == 0


def test_the_env_file_names_the_data_folder_of_every_command(tmp_path: Path) -> None:
    """In a process of its own, as a newcomer types it."""
    (tmp_path / ".env").write_text("MESHNODE_DATA_DIR=there\nOTHER=1\n")
    environ = {key: each for key, each in os.environ.items() if not key.startswith("MESHNODE_")}

    def run(*args: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "meshnode", *args]
        return subprocess.run(
            command, cwd=tmp_path, env=environ, capture_output=True, text=True, check=False
        )

    asked = run("nodes")
    assert asked.returncode == 2
    assert f"no meshnode daemon is running on {tmp_path / 'there'}" in asked.stderr
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "config.toml").write_text('region = "eu"\n')
    shown = run("config", "show")
    assert shown.returncode == 0
    assert f".env ({tmp_path / '.env'})" in shown.stdout
    assert f"config.toml ({tmp_path / 'there' / 'config.toml'})" in shown.stdout


def test_without_an_env_file_nothing_is_imported_to_read_one(tmp_path: Path) -> None:
    script = (
        "import os, pathlib, sys\n"
        "from meshnode.cli.settings import environment\n"
        "environment()\n"
        "print(*sorted(sys.modules))"
    )
    command = [sys.executable, "-c", script]
    (tmp_path / ".env").write_text("NOT_OURS=1\n")
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    loaded = set(ran.stdout.split())
    assert (
        loaded & {"dotenv", "tomllib", "meshnode.membership", "meshnode.settings.layers"} == set()
    )
