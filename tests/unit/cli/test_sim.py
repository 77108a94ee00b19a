"""`meshnode sim`: run, list, show, check and shrink."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

from meshnode.errors import UsageError
from meshnode.sim.running.playing import play
from meshnode.sim.scenario.reading import library, read

Run = Callable[..., Result]

FULL = Path("/dev/full")  # what is written there finds no room

OFFICE = """\
name = "office"
title = "Two nodes, and one of them crashes"
duration_s = 6
regions.dub = {}
nodes = [{ region = "dub", name = "n", count = 2 }]
models = [{ name = "m", fetch_s = 0.1, load_s = 0.1 }]
load = [{ model = "m", rate_per_s = 10 }]

[[faults]]
verb = "crash"
nodes = ["n-2"]
at_s = 2
for_s = 2

[[expect]]
metric = "error_rate"
at_most = 0.1
"""


@pytest.fixture
def office(tmp_path: Path) -> str:
    path = tmp_path / "office.toml"
    path.write_text(OFFICE, encoding="utf-8")
    return str(path)


@pytest.fixture
def impossible(tmp_path: Path) -> str:
    path = tmp_path / "impossible.toml"
    path.write_text(OFFICE.replace("error_rate", "p50_ms"), encoding="utf-8")
    return str(path)


def test_a_run_that_holds_exits_with_0_and_shows_its_figures(meshnode: Run, office: str) -> None:
    result = meshnode("sim", "run", office, "--seed", "5")
    assert result.exit_code == 0
    assert result.stdout.startswith("office: Two nodes, and one of them crashes\n2 nodes, ")
    assert "seed 5, trace " in result.stdout
    assert "error_rate: at most 10.0%" in result.stdout
    assert result.stderr == ""  # no progress bar off a terminal


def test_a_run_as_json_has_a_trace_hash_that_is_the_same_again(meshnode: Run, office: str) -> None:
    first, again, other = (
        json.loads(meshnode("sim", "run", office, "--json", "--seed", seed).stdout)
        for seed in ("5", "5", "6")
    )
    assert len(first["trace_hash"]) == 64
    assert first["trace_hash"] == again["trace_hash"] != other["trace_hash"]
    assert first["runs"] == [{"seed": 5, "ok": True, "trace_hash": first["trace_hash"]}]
    assert first["faults"] == [
        {"time_s": 2.0, "verb": "crash", "text": "crash n-2", "undone": False},
        {"time_s": 4.0, "verb": "crash", "text": "crash n-2", "undone": True},
    ]


@pytest.mark.parametrize("hash_seed", ["0", "4711"])
def test_one_seed_is_one_trace_whatever_starts_it(office: str, hash_seed: str) -> None:
    command = [sys.executable, "-m", "meshnode", "sim", "run", office, "--json", "--seed", "5"]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONHASHSEED": hash_seed}, capture_output=True, check=True
    )
    assert json.loads(done.stdout)["trace_hash"] == play(read(office), seed=5).trace_hash


def test_a_run_that_does_not_hold_exits_with_1_and_says_how_to_play_it_again(
    meshnode: Run, impossible: str
) -> None:
    result = meshnode("sim", "run", impossible)
    assert result.exit_code == 1
    assert "seed 1 at depth A: p50_ms: at most 0.1 ms, found " in result.stdout
    assert result.stdout.endswith(f"  meshnode sim run {impossible} --seed 1 --depth A\n")


def test_many_seeds_stop_at_the_first_that_fails(
    meshnode: Run, office: str, impossible: str
) -> None:
    held = meshnode("sim", "run", office, "--seeds", "3")
    assert [line for line in held.stdout.splitlines() if line.endswith(": held")] == [
        "seed 1: held",
        "seed 2: held",
        "seed 3: held",
    ]
    failed = json.loads(meshnode("sim", "run", impossible, "--seeds", "3", "--json").stdout)
    assert [run["ok"] for run in failed["runs"]] == [False]


def test_ctrl_c_exits_with_130_and_tells_what_was_found(
    meshnode: Run, office: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("meshnode.sim.core_stage.CoreStage.settle", interrupt)
    result = meshnode("sim", "run", office, "--json")
    assert result.exit_code == 130
    told = json.loads(result.stdout)
    assert told["broken_off"]
    assert told["figures"]["requests"] > 30


def test_a_report_is_written(meshnode: Run, office: str, tmp_path: Path) -> None:
    page = tmp_path / "out.html"
    assert meshnode("sim", "run", office, "--report", str(page)).exit_code == 0
    assert "office" in page.read_text(encoding="utf-8")


def test_a_report_that_cannot_be_written_exits_with_2(
    meshnode: Run, office: str, tmp_path: Path
) -> None:
    result = meshnode("sim", "run", office, "--report", str(tmp_path))
    assert result.exit_code == 2
    assert "the report cannot be written to" in result.stderr


@pytest.mark.parametrize("command", ["run", "check", "shrink", "show"])
def test_a_name_that_is_nothing_exits_with_2(meshnode: Run, command: str) -> None:
    result = meshnode("sim", command, "region-los")
    assert result.exit_code == 2
    assert "region-loss" in result.stderr


def test_a_bad_file_exits_with_2_and_names_the_line(meshnode: Run, tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(OFFICE.replace("at_s = 2", 'at_s = "soon"'), encoding="utf-8")
    for command in ("run", "check"):
        result = meshnode("sim", command, str(path))
        assert result.exit_code == 2
        assert "bad.toml:12" in result.stderr


def test_an_unknown_depth_or_policy_exits_with_2(meshnode: Run, office: str) -> None:
    depth = meshnode("sim", "run", office, "--depth", "Z")
    assert (depth.exit_code, "there are A, B and C" in depth.stderr) == (2, True)
    policy = meshnode("sim", "run", office, "--policy", "astrology")
    assert (policy.exit_code, "astrology" in policy.stderr) == (2, True)


def test_check_says_what_a_scenario_is(meshnode: Run, office: str) -> None:
    result = meshnode("sim", "check", office)
    assert result.stdout == "office is right: 2 nodes in 1 regions, 1 faults in 6 s, depth A.\n"
    told = json.loads(meshnode("sim", "check", office, "--json").stdout)
    assert told["regions"] == ["dub"]


def test_each_mistake_of_a_scenario_is_told_on_a_line_of_its_own(
    meshnode: Run, tmp_path: Path
) -> None:
    path = tmp_path / "bad.toml"
    path.write_text('seed = -1\nname = "\\u001b[2J"\n', encoding="utf-8")
    result = meshnode("sim", "check", str(path))
    first, *others = result.stderr.splitlines()
    assert result.exit_code == 2
    assert first.startswith(f"error: {path}:")
    assert len(others) >= 2
    assert all(line.startswith(f"{path}:") for line in others)
    assert "\x1b" not in result.stderr


def test_list_names_every_scenario_of_the_library(meshnode: Run) -> None:
    told = json.loads(meshnode("sim", "list", "--json").stdout)
    assert [row["name"] for row in told] == [*library()]
    assert len(told) >= 12
    table = meshnode("sim", "list").stdout
    assert all(row["title"] in table for row in told)


def test_show_prints_a_file_of_the_library_as_it_is(meshnode: Run) -> None:
    text = meshnode("sim", "show", "region-loss").stdout
    assert text == library()["region-loss"].read_text(encoding="utf-8")


def test_shrink_writes_a_smaller_scenario_that_fails_in_the_same_way(
    meshnode: Run, impossible: str, tmp_path: Path
) -> None:
    left = tmp_path / "left.toml"
    result = meshnode("sim", "shrink", impossible, "-o", str(left), "--json", "--tries", "30")
    assert result.exit_code == 0
    told = json.loads(result.stdout)
    assert told["fails_with"] == "p50_ms"
    assert told["faults"] == 0
    assert told["toml"] == left.read_text(encoding="utf-8")
    assert "played; left: " in result.stderr
    again = meshnode("sim", "run", str(left), "--json")
    assert again.exit_code == 1
    assert json.loads(again.stdout)["trace_hash"] == told["trace_hash"]


def test_shrink_prints_the_scenario_where_no_file_is_named(meshnode: Run, impossible: str) -> None:
    result = meshnode("sim", "shrink", impossible, "--tries", "2")
    assert result.stdout.startswith('name = "office"\n')
    assert "It still fails: p50_ms: at most 0.1 ms, found " in result.stderr


def test_shrink_of_what_holds_exits_with_2(meshnode: Run, office: str) -> None:
    result = meshnode("sim", "shrink", office)
    assert result.exit_code == 2
    assert "does not fail with seed 1" in result.stderr


# What was asked cannot be, or what is found cannot be told.


def test_a_seed_that_no_scenario_may_have_exits_with_2(meshnode: Run, office: str) -> None:
    for command in ("run", "shrink", "compare", "up"):
        result = meshnode("sim", command, office, "--seed", str(2**63))
        assert result.exit_code == 2
        assert "9223372036854775807" in result.stderr
    result = meshnode("sim", "run", office, "--seed", str(2**63 - 2), "--seeds", "3")
    assert (result.exit_code, "begin lower" in result.stderr) == (2, True)


@pytest.mark.parametrize("command", ["run", "compare"])
def test_nothing_is_played_for_a_report_that_cannot_be_written(
    meshnode: Run, office: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setattr("meshnode.sim.running.playing.play", lambda *_, **__: pytest.fail("played"))
    result = meshnode("sim", command, office, "--report", str(tmp_path / "nowhere" / "x.html"))
    assert result.exit_code == 2
    assert "No such file or directory; name a file in a folder that is there" in result.stderr


def test_a_report_that_is_there_stays_until_it_is_written_anew(
    meshnode: Run, office: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise UsageError("cannot be played")

    monkeypatch.setattr("meshnode.sim.running.playing.play", broken)
    before, new = tmp_path / "before.html", tmp_path / "new.html"
    before.write_text("yesterday", encoding="utf-8")
    for page in (before, new):
        assert meshnode("sim", "run", office, "--report", str(page)).exit_code == 2
    assert before.read_text(encoding="utf-8") == "yesterday"
    assert not new.exists()


@pytest.mark.parametrize("command", ["run", "shrink"])
def test_oracle_stands_for_two_policies_and_only_a_comparison_takes_both(
    meshnode: Run, office: str, command: str
) -> None:
    result = meshnode("sim", command, office, "--policy", "oracle")
    assert result.exit_code == 2
    assert "'oracle' is size-blind and omniscient, for `sim compare`" in result.stderr
    assert "did you mean" not in result.stderr


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes")
def test_a_scenario_that_is_a_pipe_is_said_to_be_one(meshnode: Run, tmp_path: Path) -> None:
    path = tmp_path / "pipe.toml"
    os.mkfifo(path)
    result = meshnode("sim", "check", str(path))
    assert result.exit_code == 2
    assert "is a pipe or a device; write the scenario to a file" in result.stderr


@pytest.mark.skipif(not FULL.exists(), reason="there is no full device")
@pytest.mark.parametrize("buffered", ["", "1"])
def test_an_output_that_cannot_be_written_is_told_in_a_line(buffered: str) -> None:
    with FULL.open("wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "meshnode", "sim", "list", "--json"],
            stdout=full,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONUNBUFFERED": buffered},
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr.decode() == (
        "error: the output cannot be written: No space left on device; free some space, or send it "
        f"elsewhere{os.linesep}"
    )
