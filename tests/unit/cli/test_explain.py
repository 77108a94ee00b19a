"""`meshnode explain` as people and programs see it, and replays without a mesh."""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from meshnode.routing.decisions import Recorder
from meshnode.routing.load import LinkState
from meshnode.routing.request import RoutedRequest
from meshnode.routing.router import Router
from meshnode.routing.table import Replica
from meshnode.types import NodeId, ReplicaState

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from typer.testing import Result

    from tests.unit.cli.conftest import FakeDaemon

CANDIDATE = {
    "node": "b" * 32,
    "name": "beta",
    "region": "eu",
    "odds": 0.5,
    "expected_ms": 3.4,
    "terms": {"rtt_ms": 1.2, "service_ms": 2.2, "saved_ms": 1.0},
    "report_age_s": 0.4,
}
DROPPED = {"node": "c" * 32, "name": "gamma", "dropped": "link down"}
TOLD = {
    "gateway": "alpha",
    "model": "digits",
    "version": 3,
    "reason": "near-lowest",
    "candidates": [CANDIDATE, DROPPED],
    "excluded": [{"name": "delta", "reason": "fetching"}],
}


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """A log of ten decisions between three nodes."""
    router = Router(NodeId("me"), "eu", random.Random(1))
    for name in ("a", "b", "c"):
        replica = Replica(NodeId(name), name, "eu", "", "digits", 1, ReplicaState.READY)
        router.replica_changed(replica, 0.0)
        router.link_changed(NodeId(name), LinkState.UP, 0.0)
    recorder = Recorder()
    for number in range(10):
        request = RoutedRequest("digits")
        recorder(router.candidates("digits", None), request, float(number), router.rng)
    path = tmp_path / "decisions.log"
    path.write_bytes(b"\n".join(map(msgspec.json.encode, recorder.kept)) + b"\n")
    return path


def test_people_see_each_replica_with_its_odds_and_why_not(
    daemon: FakeDaemon, meshnode: Callable[..., Result]
) -> None:
    daemon.explain = TOLD
    shown = meshnode("explain", "digits")
    assert shown.exit_code == 0, shown.output
    assert "digits version 3, asked at alpha: near-lowest" in shown.stdout
    for word in ("beta", "50.0%", "3.4 ms", "1 ms saved", "link down", "delta", "fetching"):
        assert word in shown.stdout


def test_the_request_is_described_by_options(
    daemon: FakeDaemon, meshnode: Callable[..., Result]
) -> None:
    daemon.explain = TOLD
    shown = meshnode(
        "explain", "digits", "--size", "8", "--bytes", "70", "--tokens", "9", "--version", "3",
        "--region", "eu;prefer", "--label", "gpu=a100", "--session", "s1", "--json",
    )  # fmt: skip
    assert json.loads(shown.stdout)["candidates"][0]["odds"] == 0.5
    assert daemon.query == {"version": "3", "rows": "8", "bytes": "70", "tokens": "9"}
    sent = {name: daemon.headers[name] for name in ("Mesh-Region", "Mesh-Labels", "Mesh-Session")}
    assert [*sent.values()] == ["eu;prefer", "gpu=a100", "s1"]


def test_a_log_is_replayed_without_a_mesh(log: Path, meshnode: Callable[..., Result]) -> None:
    shown = meshnode("explain", "--replay", str(log))
    assert (shown.exit_code, shown.stdout) == (
        0,
        "10 of 10 decisions came out exactly as they did\n",
    )
    found = json.loads(meshnode("explain", "--replay", str(log), "--json").stdout)
    assert [each["number"] for each in found] == [*range(1, 11)]
    assert all(each["same"] for each in found)
    assert meshnode("explain", "other", "--replay", str(log)).stdout.startswith("0 of 0")


@pytest.mark.parametrize("mark", ["\u2028", "\x85"])
def test_a_line_of_a_log_ends_only_where_json_lets_it(
    log: Path, meshnode: Callable[..., Result], mark: str
) -> None:
    text = log.read_text(encoding="utf-8")
    log.write_text(text.replace('"digits"', f'"dig{mark}its"'), encoding="utf-8")
    shown = meshnode("explain", "--replay", str(log))
    assert (shown.exit_code, shown.stdout[:8]) == (0, "10 of 10"), shown.output


def test_what_comes_out_otherwise_is_told(log: Path, meshnode: Callable[..., Result]) -> None:
    lines: list[dict[str, Any]] = [json.loads(line) for line in log.read_text().splitlines()]
    lines[4]["node"] = "nobody-of-that-name"
    log.write_text("\n".join(map(json.dumps, lines)))
    shown = meshnode("explain", "--replay", str(log))
    assert shown.exit_code == 1
    assert "decision 5 for digits: it was nobody-of-that-name" in shown.stdout
    assert "9 of 10" in shown.stdout


def test_a_line_that_tells_of_lost_ones_is_passed_over_and_another_one_is_refused(
    log: Path, meshnode: Callable[..., Result]
) -> None:
    with log.open("a") as file:
        file.write('{"time":"2026-01-01T00:00:00Z","lost":3,"message":"lines are missing here"}\n')
    assert meshnode("explain", "--replay", str(log)).stdout.startswith("10 of 10")
    with log.open("a") as file:
        file.write("no json\n")
    refused = meshnode("explain", "--replay", str(log))
    assert refused.exit_code == 2
    assert "line 12" in refused.stderr


def test_the_last_decisions_are_printed_as_lines_that_can_be_replayed(
    daemon: FakeDaemon, log: Path, meshnode: Callable[..., Result], tmp_path: Path
) -> None:
    daemon.decisions = [json.loads(line) for line in log.read_text().splitlines()]
    printed = meshnode("explain", "--decisions")
    again = tmp_path / "again.log"
    again.write_text(printed.stdout)
    assert meshnode("explain", "--replay", str(again)).stdout.startswith("10 of 10")
    assert meshnode("explain", "other", "--decisions").stdout == ""


@pytest.mark.parametrize("kept", [1, 100, -1, -2, -3, -4, -5, -6])
def test_a_last_line_that_was_cut_off_is_left_out_and_told(
    log: Path, meshnode: Callable[..., Result], kept: int
) -> None:
    *whole, last = log.read_bytes().splitlines()
    log.write_bytes(b"\n".join([*whole, last[:kept]]))
    shown = meshnode("explain", "--replay", str(log))
    assert shown.exit_code == 0, shown.output
    assert shown.stdout == "9 of 9 decisions came out exactly as they did\n"
    assert "line 10 is incomplete" in shown.stderr
    shown = meshnode("explain", "--replay", str(log), "--json")
    assert len(json.loads(shown.stdout)) == 9
    assert "incomplete" in shown.stderr


def test_a_line_that_was_cut_off_before_the_daemon_started_again_is_left_out_and_told(
    log: Path, meshnode: Callable[..., Result]
) -> None:
    lines = log.read_bytes().splitlines()
    cut = [lines[4][:length] for length in (1, 9, len(lines[4]) // 2, len(lines[4]) - 1)]
    log.write_bytes(b"\n".join([*lines[:4], *cut, *lines[5:], b""]))
    shown = meshnode("explain", "--replay", str(log))
    assert (shown.exit_code, shown.stdout[:6]) == (0, "9 of 9"), shown.output
    assert [line[:7] for line in shown.stderr.splitlines()] == [f"line {n} " for n in (5, 6, 7, 8)]


def test_the_last_line_may_lack_its_line_end(log: Path, meshnode: Callable[..., Result]) -> None:
    log.write_bytes(log.read_bytes().rstrip())
    shown = meshnode("explain", "--replay", str(log))
    assert (shown.stdout[:8], shown.stderr) == ("10 of 10", "")


@pytest.mark.parametrize(
    "wrong",
    [
        [],
        ["m", "--label", "gpu"],
        ["m", "--label", "gpu=a", "--label", "gpu=b"],
        ["m", "--region", ""],
        ["m", "--region", " "],
        ["--replay", "no/such/file"],
        ["m", "--size", "0"],
    ],
)
def test_what_makes_no_sense_is_refused(
    daemon: FakeDaemon, meshnode: Callable[..., Result], wrong: list[str]
) -> None:
    daemon.explain = TOLD
    assert meshnode("explain", *wrong).exit_code == 2
