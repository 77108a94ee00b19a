"""`meshnode sim up` without processes: what it prints, and how it ends. `tests/e2e` has the real thing."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner

from meshnode.cli import sim_up
from meshnode.cli.main import app
from meshnode.sim.core_world import NotReachedError
from meshnode.sim.processes.stage import ProcessStage
from meshnode.sim.running import playing
from meshnode.sim.running.result import Result, Violation

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from meshnode.sim.scenario.model import Scenario

TEXT = """
name = "two"

[regions]
dublin = {}
virginia = {}

[[nodes]]
region = "dublin"
name = "d"

[[nodes]]
region = "virginia"
name = "v"
gateway = false

[[models]]
name = "classifier"
"""


class Fake:
    """Takes the place of the stage's processes; what was done with it is in `done`."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.done: list[str] = []
        self.patch = patch
        self.starts_with: BaseException | None = None
        fake = self

        class FakeStage(ProcessStage):
            def start(self, progress: Callable[[str], None]) -> None:
                fake.start(self, progress)

            def run_to(self, time_s: float) -> None:
                fake.stay()

            def leave(self) -> None:
                fake.leave(self)

        self.stage_type = FakeStage
        patch.setattr("meshnode.sim.processes.stage.ProcessStage", FakeStage)

    def start(self, stage: ProcessStage, progress: Callable[[str], None]) -> None:
        progress("d founds the mesh")
        if self.starts_with is not None:
            raise self.starts_with
        for member in stage.rehearsal.members.values():
            member.state = "up"
        stage.is_started = True
        stage.on_started()

    def stay(self) -> None:
        self.done.append("stay")
        raise KeyboardInterrupt

    def leave(self, stage: ProcessStage) -> None:
        self.done.append("leave")
        stage.close(for_good=True)

    def plays(self, result: Callable[[Scenario], Result]) -> None:
        def play(scenario: Scenario, *, stage: ProcessStage, **_: object) -> Result:
            stage.start(lambda _: None)
            stage.close()  # as the player does
            assert stage.rehearsal.folder.exists()
            return result(scenario)

        self.patch.setattr(playing, "play", play)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Fake:
    return Fake(monkeypatch)


@pytest.fixture
def scenario(tmp_path: Path) -> str:
    place = tmp_path / "two.toml"
    place.write_text(TEXT)
    return str(place)


def up(*args: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["sim", "up", *args])
    return result.exit_code, result.stdout, result.stderr


def test_it_shows_nodes_distances_and_what_to_type(fake: Fake, scenario: str) -> None:
    code, out, err = up(scenario)
    assert code == 0
    assert "d founds the mesh" in err
    rows = [line.split() for line in out.splitlines()]
    assert rows[0] == ["NODE", "REGION", "DEVICE", "GATEWAY", "PID"]
    assert rows[1][:3] == ["d", "dublin", "mini-pc"]
    assert rows[2][3] == "-"
    assert "dublin - virginia: 76.9 ms round trip" in out
    assert '/v2/models/classifier/infer -d \'{"inputs":[{"name":"work_s"' in out
    assert fake.done == ["stay", "leave"]


def test_its_json_is_one_line(fake: Fake, scenario: str) -> None:
    code, out, _ = up(scenario, "--json")
    assert code == 0
    (line,) = out.splitlines()
    document = json.loads(line)
    assert [node["name"] for node in document["nodes"]] == ["d", "v"]
    assert document["nodes"][1]["gateway"] is None
    assert document["rtt_ms"] == [{"between": ["dublin", "virginia"], "rtt_ms": 76.9}]
    assert [each["name"] for each in json.loads(document["example"]["body"])["inputs"]] == [
        "work_s",
        "response_bytes",
        "body",
    ]


def test_a_start_that_fails_says_why_and_leaves_nothing(fake: Fake, scenario: str) -> None:
    fake.starts_with = NotReachedError("v ended by SIGKILL (seed 1)")
    code, _, err = up(scenario)
    assert code == 1
    assert "error: v ended by SIGKILL (seed 1)" in err
    assert fake.done == ["leave"]


def test_ctrl_c_during_the_start_is_an_interruption(fake: Fake, scenario: str) -> None:
    fake.starts_with = KeyboardInterrupt()
    assert up(scenario)[0] == 130
    assert fake.done == ["leave"]


def test_a_second_ctrl_c_kills(fake: Fake, scenario: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def leave(_: ProcessStage) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(fake.stage_type, "leave", leave)
    closed: list[bool] = []
    real_close = ProcessStage.close

    def close(stage: ProcessStage, *, for_good: bool = False) -> None:
        closed.append(for_good)
        real_close(stage, for_good=for_good)

    monkeypatch.setattr(fake.stage_type, "close", close)
    assert up(scenario)[0] == 0
    assert closed == [True]


def test_a_play_that_holds_stays_up_until_ctrl_c(fake: Fake, scenario: str) -> None:
    fake.plays(lambda scenario: Result(scenario, "C", 1))
    code, out, err = up(scenario, "--play")
    assert code == 0
    assert "NODE" in out
    assert "0 calls were made, 0 answered." in err
    assert fake.done == ["stay", "leave"]


def test_a_play_that_does_not_hold_is_told_and_counts_in_the_end(fake: Fake, scenario: str) -> None:
    violations = [Violation("views-agree", "v sees d dead", 4.2)]
    fake.plays(lambda scenario: Result(scenario, "C", 1, violations=violations))
    code, _, err = up(scenario, "--play")
    assert code == 1
    assert "views-agree did not hold at 4.2 s: v sees d dead" in err


def test_a_play_that_is_broken_off_ends_everything(fake: Fake, scenario: str) -> None:
    fake.plays(lambda scenario: Result(scenario, "C", 1, broken_off=True))
    assert up(scenario, "--play")[0] == 130
    assert fake.done == ["leave"]


def test_an_unknown_scenario_starts_nothing(fake: Fake) -> None:
    code, _, err = up("no-such-scenario")
    assert code == 2
    assert "no-such-scenario" in err
    assert sim_up.up.__doc__ is not None
    assert fake.done == []
