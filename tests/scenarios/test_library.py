"""Every scenario that comes with meshnode, played with its own seed: what it promises holds.

And the promises mean something: where a scenario is about choosing well, a worse way of choosing breaks them.
"""

from __future__ import annotations

import json
import subprocess
import sys
from functools import cache
from typing import TYPE_CHECKING

import msgspec
import pytest

from meshnode.sim.faults import VERBS
from meshnode.sim.running.playing import play
from meshnode.sim.scenario.library import library
from meshnode.sim.scenario.reading import parse, read
from meshnode.sim.scenario.writing import to_toml

if TYPE_CHECKING:
    from meshnode.sim.running.result import Result

STORIES = (
    "equal-servers", "fleet-1-10-50", "fleet-busy", "flapping-node", "lids-closing",
    "office-behind-nat", "one-slow-node", "region-loss", "rolling-upgrade", "satellite-link",
    "daily-curve", "square-wave", "steward-lost", "wake-from-zero",
    "sinkhole", "slow-a100", "slow-workstation", "stale-load", "standby-region", "surge", "three-regions",
    "thundering-herd", "two-homes",
    "canary-good", "canary-slow", "canary-erring-on-one-device", "shadow-wrong-answers", "blue-green", "ab-test",
    "rollout-steward-lost", "rollout-partition", "rollout-two-admins", "rollout-no-room", "rollout-crash-loop",
)  # fmt: skip

LONG = {
    "daily-curve", "equal-servers", "fleet-busy", "slow-a100", "slow-workstation", "square-wave", "thundering-herd",
}  # fmt: skip
"""Ten thousand requests and more, so they take more than a few seconds of CPU: `make soak` plays them, and `make
bench-routing` holds them against the oracles; the herd `make test` plays, too, with fewer gateways."""


def test_the_library_has_its_stories() -> None:
    assert {*STORIES} <= {*library()}


@pytest.mark.parametrize("name", [*library()])
def test_a_scenario_is_called_like_its_file_and_tells_its_story(name: str) -> None:
    scenario = read(name)
    assert scenario.name == name
    assert 20 <= len(scenario.title) <= 100
    assert len(scenario.story.split()) > 50
    assert scenario.expect
    assert scenario.load
    assert parse(to_toml(scenario), "written") == scenario


def failed(result: Result) -> list[str]:
    """Return what does not hold, for the message of an assertion."""
    broken = [f"{each.invariant}: {each.message}" for each in result.violations]
    missed = [each for each in result.verdicts if not each.holds]
    return broken + [f"{msgspec.to_builtins(each.expect)}: found {each.found}" for each in missed]


@cache
def played(name: str, policy: str = "mesh") -> Result:
    return play(read(name), policy=policy)


@pytest.mark.parametrize("name", [name for name in library() if name not in LONG])
def test_a_scenario_holds_with_its_own_seed(name: str) -> None:
    result = played(name)
    assert failed(result) == []
    assert len(result.verdicts) == len(read(name).expect)
    assert result.ok


def test_a_region_with_the_only_replica_is_lost_without_a_failed_request_on_real_daemons_too() -> (
    None
):
    """The story of the replica on standby, at depth B."""
    result = play(msgspec.structs.replace(read("standby-region"), depth="B"))
    assert failed(result) == []
    assert result.ok


def test_a_herd_of_forty_gateways_holds_as_one_of_two_hundred() -> None:
    """The smaller herd is as hard: each gateway knows more, and there is the same load."""
    herd = read("thundering-herd")
    nodes = tuple(
        msgspec.structs.replace(each, count=40) if each.name == "terminal" else each
        for each in herd.nodes
    )
    result = play(msgspec.structs.replace(herd, nodes=nodes))
    assert failed(result) == []


@pytest.mark.soak
@pytest.mark.parametrize("name", sorted(LONG))
def test_a_long_scenario_holds_with_its_own_seed(name: str) -> None:
    assert failed(played(name)) == []


@pytest.mark.parametrize(
    ("name", "policy"),
    [("one-slow-node", "p2c"), ("stale-load", "least-loaded"), ("sinkhole", "round-robin")],
)
def test_what_a_scenario_promises_breaks_when_replicas_are_chosen_worse(
    name: str, policy: str
) -> None:
    assert not played(name, policy).ok


def test_a_scenario_about_failure_breaks_when_clients_do_not_ask_elsewhere() -> None:
    scenario = read("region-loss")
    stubborn = tuple(msgspec.structs.replace(load, retry_elsewhere=False) for load in scenario.load)
    assert not play(msgspec.structs.replace(scenario, load=stubborn)).ok


def test_the_library_is_played_at_both_depths() -> None:
    depths = [read(name).depth for name in library()]
    assert depths.count("B") >= 2
    assert depths.count("A") >= 6


def test_the_library_tries_many_verbs() -> None:
    used = {fault.verb for name in library() for fault in read(name).faults}
    assert used <= {*VERBS}
    assert len(used) >= 9


@pytest.mark.parametrize("name", ["lids-closing", "office-behind-nat"])
def test_a_scenario_runs_the_same_from_the_command_line(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "meshnode", "sim", "run", name, "--json"],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout)["trace_hash"] == played(name).trace_hash
