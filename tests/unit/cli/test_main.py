from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

import meshnode as package
from meshnode.cli.output import plain, print_table, terminal

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from typer.testing import Result

    Run = Callable[..., Result]


def test_the_version_is_printed(meshnode: Run) -> None:
    result = meshnode("--version")
    assert (result.exit_code, result.stdout) == (0, f"meshnode {package.__version__}\n")


def test_help_names_every_command(meshnode: Run) -> None:
    shown = meshnode("--help").stdout
    for command in [
        "join",
        "invite",
        "nodes",
        "models",
        "status",
        "deploy",
        "undeploy",
        "infer",
        "demo",
    ]:
        assert f" {command} " in shown


@pytest.mark.parametrize("command", ["join", "invite", "nodes", "models", "status", "deploy"])
def test_every_command_has_help(meshnode: Run, command: str) -> None:
    result = meshnode(command, "--help")
    assert result.exit_code == 0
    assert "--data-dir" in result.stdout


def test_an_unknown_command_suggests_the_nearest(meshnode: Run) -> None:
    result = meshnode("statuz")
    assert result.exit_code == 2
    assert "Did you mean 'status'" in result.stderr


def test_an_unknown_option_is_a_usage_error(meshnode: Run) -> None:
    result = meshnode("nodes", "--jsn")
    assert result.exit_code == 2
    assert "--jsn" in result.stderr


def test_ctrl_c_exits_with_130(meshnode: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("meshnode.client.mesh.MeshClient.get", interrupted)
    assert meshnode("nodes").exit_code == 130


def test_the_command_line_imports_nothing_heavy() -> None:
    """`meshnode nodes` answers in a moment; NumPy alone would take longer than all of it."""
    script = "import sys, meshnode.cli.main; print(*sorted(sys.modules))"
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    loaded = set(ran.stdout.split())
    heavy = {"aiohttp", "asyncio", "numpy", "onnxruntime", "zeroconf", "nacl", "PIL"}
    assert loaded & (heavy | {"cryptography", "meshnode.daemon"}) == set()


def test_it_runs_as_a_module_and_an_error_goes_to_stderr(data_dir: Path) -> None:
    environ = {**os.environ, "MESHNODE_DATA_DIR": str(data_dir)}
    ran = subprocess.run(
        [sys.executable, "-m", "meshnode", "nodes"],
        capture_output=True,
        text=True,
        env=environ,
        check=False,
    )
    assert ran.returncode == 2
    assert ran.stdout == ""
    assert ran.stderr.startswith(f"error: no meshnode daemon is running on {data_dir}")


def test_no_color_is_respected(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("FORCE_COLOR", "1")
    print_table(["STATE"], [["ready"]], empty="")
    assert "\x1b[32m" in capsys.readouterr().out
    monkeypatch.setenv("NO_COLOR", "1")
    print_table(["STATE"], [["ready"]], empty="")
    assert "\x1b[32m" not in capsys.readouterr().out


def test_a_narrow_terminal_folds_and_cuts_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "40")
    print_table(["NAME", "ID"], [["n" * 30, "abcdefgh" * 4]], empty="")
    shown = capsys.readouterr().out
    assert "…" not in shown
    assert shown.count("n") == 30
    assert all(shown.count(letter) == 4 for letter in "abcdefgh")


def test_a_pipe_has_no_width() -> None:
    assert not terminal().is_terminal
    assert terminal().width > 10_000


def test_plain_keeps_text_and_replaces_controls() -> None:
    assert plain("ä 猫 … ok") == "ä 猫 … ok"
    assert plain("a\x1b[31mb\x00\u202ec\n") == "a?[31mb??c?"
