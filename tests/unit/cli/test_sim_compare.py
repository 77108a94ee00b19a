"""`meshnode sim compare`: its tables, its document, its exit codes."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
from typer.testing import Result

from meshnode.sim.running import playing

if TYPE_CHECKING:
    from pathlib import Path

    from meshnode.sim.running.result import Result as Played
    from meshnode.sim.scenario.model import Scenario

Run = Callable[..., Result]

PAIR = """
name = "pair"
duration_s = 2

[regions]
dub = {}

[devices]
slow = { speed = 1, slots = 2 }
fast = { speed = 8, slots = 2 }

[[nodes]]
region = "dub"
device = "slow"

[[nodes]]
region = "dub"
device = "fast"

[[models]]
name = "m"
service = { mean_ms = 40 }
fetch_s = 0.1
load_s = 0.1

[[load]]
model = "m"
rate_per_s = 60
"""


@pytest.fixture
def pair(tmp_path: Path) -> str:
    """The file of a scenario with a slow node and a fast one."""
    path = tmp_path / "pair.toml"
    path.write_text(PAIR, encoding="utf-8")
    return str(path)


def test_three_tables_tell_figures_regret_and_who_was_busy(pair: str, meshnode: Run) -> None:
    result = meshnode("sim", "compare", pair, "--policies", "random,mesh", "--seed", "3")
    assert result.exit_code == 0
    head, figures, _, regret, busy = result.stdout.split("\n\n")
    assert head.startswith("pair: 1")
    assert head.endswith("requests, the same for each policy; depth A, seed 3")
    policies = ["random", "mesh", "size-blind", "omniscient"]
    assert [line.split()[0] for line in figures.splitlines()] == ["POLICY", *policies]
    assert [line.split()[0] for line in regret.splitlines()] == ["POLICY", *policies]
    assert "P99.9 VS SIZE-BLIND" in regret
    assert "IN TIME VS OMNISCIENT" in regret
    assert regret.splitlines()[-1].split()[-2:] == ["1.00", "1.00"]
    assert busy.splitlines()[0].split() == ["BUSY", "NODE", *map(str.upper, policies)]
    assert [line.split()[0] for line in busy.splitlines()[1:]] == ["dub-slow", "dub-fast"]


def test_the_document_is_the_same_on_every_run(pair: str, meshnode: Run) -> None:
    def played() -> dict[str, object]:
        result = meshnode("sim", "compare", pair, "--policies", "mesh", "--after", "1", "--json")
        assert result.exit_code == 0
        document: dict[str, object] = json.loads(result.stdout)
        for each in document["policies"]:  # type: ignore[attr-defined]  # a list of objects
            del each["cpu_s"]
        return document

    document = played()
    assert document == played()
    assert document["after_s"] == 1.0
    assert document["ok"] is True


def test_a_report_has_all_runs(pair: str, meshnode: Run, tmp_path: Path) -> None:
    page = tmp_path / "out.html"
    asked = ("sim", "compare", pair, "--policies", "p2c", "--report", str(page))
    assert meshnode(*asked).exit_code == 0
    text = page.read_text(encoding="utf-8")
    assert all(policy in text for policy in ("p2c", "size-blind", "omniscient"))
    nowhere = tmp_path / "missing" / "out.html"
    refused = meshnode("sim", "compare", pair, "--policies", "p2c", "--report", str(nowhere))
    assert refused.exit_code == 2
    assert "the report cannot be written" in refused.stderr


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--policies", "mush"), "there is no policy 'mush': did you mean 'mesh'?"),
        (("--policies", "prequal", "--depth", "b"), "depth B cannot play prequal"),
        (("--depth", "E"), "there is no depth 'E'"),
        (("--after", "2"), "--after 2 leaves no request"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_played(
    pair: str, meshnode: Run, options: tuple[str, ...], said: str
) -> None:
    result = meshnode("sim", "compare", pair, *options)
    assert result.exit_code == 2
    assert said in result.stderr
    assert result.stdout == ""


def test_ctrl_c_tells_what_was_played_so_far(
    pair: str, meshnode: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = playing.play

    def broken_off(scenario: Scenario, *, policy: str, **options: object) -> Played:
        result = whole(scenario, policy=policy)
        result.broken_off = policy == "size-blind"
        return result

    monkeypatch.setattr(playing, "play", broken_off)
    result = meshnode("sim", "compare", pair, "--policies", "mesh,oracle", "--json")
    assert result.exit_code == 130
    document = json.loads(result.stdout)
    assert [each["policy"] for each in document["policies"]] == ["mesh", "size-blind"]
    assert document["ok"] is False
