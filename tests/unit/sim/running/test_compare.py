"""Comparisons: the same requests for all, and figures next to those of the oracles."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from typing import TYPE_CHECKING

import msgspec
import pytest

from meshnode.errors import UsageError
from meshnode.sim.policies.catalogue import MESH, ORACLES
from meshnode.sim.running.compare import (
    REGRETS,
    compare,
    document,
    run_order,
    standings,
    utilisation,
)
from meshnode.sim.running.playing import play
from meshnode.sim.running.result import Result, Violation
from meshnode.sim.scenario.model import Device, Load, Model, Nodes, Place, Scenario, ServiceTime
from meshnode.sim.stage import OK, Call, Machine, NodeSample, Outcome, Sample

if TYPE_CHECKING:
    from collections.abc import Sequence

FLEET = Scenario(
    name="small-fleet",
    duration_s=4.0,
    regions={"dub": Place(), "fra": Place()},
    devices={"slow": Device(speed=1.0, slots=2), "fast": Device(speed=10.0, slots=2)},
    nodes=(
        Nodes(region="dub", device="slow", count=3, name="slow"),
        Nodes(region="fra", device="fast", count=2, name="fast", gateway=False),
    ),
    models=(
        Model(
            name="m",
            service=ServiceTime(distribution="exponential", mean_ms=200.0),
            fetch_s=0.1,
            load_s=0.1,
        ),
    ),
    load=(Load(model="m", rate_per_s=120.0, deadline_ms=500.0),),
)


def made(policy: str, latencies_s: Sequence[float], failed: int = 0, busy: float = 0.5) -> Result:
    """Return a run with these latencies, one call each 0.1 s, and so many failures after them."""
    result = Result(FLEET, "A", 1, policy, trace_hash=policy)
    result.machines = (Machine("n1", "dub", "slow", Device()),)
    for number, took_s in enumerate((*latencies_s, *[0.01] * failed)):
        call = Call(number, number * 0.1, "n1", "m", 0.01, 30.0, 0.5)
        code = OK if number < len(latencies_s) else "no_replica"
        result.calls.append((call, Outcome(code, took_s, "n1", attempts=1)))
    result.samples = [
        Sample(time_s, {"n1": NodeSample("up", 1, 0, busy, 2, 1)}) for time_s in (0.0, 1.0, 2.0)
    ]
    return result


# What is played.


def test_the_oracles_are_always_played_and_nothing_is_played_twice() -> None:
    assert run_order((MESH, "omniscient", MESH), "A") == (MESH, "omniscient", "size-blind")
    assert run_order((MESH, "p2c"), "B") == (MESH, "p2c")


@pytest.mark.parametrize(
    ("policies", "depth", "said"),
    [
        (("prequal",), "B", "depth B cannot play prequal: it takes mesh, random"),
        ((MESH, "random"), "C", "depth C cannot play random: it takes mesh"),
        ((MESH,), "D", "there is no depth 'D'; there are A, B, C"),
    ],
)
def test_what_a_depth_cannot_play_is_refused(
    policies: tuple[str, ...], depth: str, said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        run_order(policies, depth)


def test_a_run_that_is_broken_off_ends_the_comparison() -> None:
    def play_with(policy: str) -> Result:
        result = made(policy, [0.1])
        result.broken_off = policy == "p2c"
        return result

    comparison = compare(FLEET, ("random", "p2c", MESH), "A", 1, play_with)
    assert [each.policy for each in comparison.standings] == ["random", "p2c"]
    assert not comparison.ok


# What is made of it.


def test_regret_is_the_figure_over_the_oracles() -> None:
    runs = [made(MESH, [0.1, 0.3]), made("size-blind", [0.1, 0.2]), made("omniscient", [0.1, 0.1])]
    mesh, blind, _ = standings(runs)
    assert mesh.regret["size-blind"] == {
        "p99_ms": pytest.approx(1.5),
        "p99_9_ms": pytest.approx(1.5),
        "mean_ms": pytest.approx(4 / 3),
        "goodput_share": 1.0,
    }
    assert mesh.regret["omniscient"] == {
        "p99_ms": pytest.approx(3.0),
        "p99_9_ms": pytest.approx(3.0),
        "mean_ms": pytest.approx(2.0),
        "goodput_share": 1.0,
    }
    assert blind.regret["size-blind"] == dict.fromkeys(REGRETS, 1.0)


def test_who_sheds_most_has_the_best_latencies_and_the_worst_regret_in_time() -> None:
    """Half a second is the deadline."""
    runs = [made(MESH, [0.1], failed=3), made("omniscient", [0.1, 0.4, 0.4], failed=1)]
    mesh, _ = standings(runs)
    regret = mesh.regret["omniscient"]
    assert regret["p99_ms"] < 0.5
    assert regret["goodput_share"] == pytest.approx(3.0)


def test_late_answers_count_as_none_in_the_regret_in_time() -> None:
    mesh, late, _ = standings(
        [made(MESH, [0.1, 0.6]), made("p2c", [0.6, 0.6]), made("omniscient", [0.1, 0.1])]
    )
    assert mesh.regret["omniscient"]["goodput_share"] == pytest.approx(2.0)
    assert math.isnan(late.regret["omniscient"]["goodput_share"])


def test_without_an_oracle_there_is_no_regret() -> None:
    (mesh,) = standings([made(MESH, [0.1])])
    assert mesh.regret == {}


def test_figures_and_utilisation_are_of_what_was_asked_for() -> None:
    run = made(MESH, [9.0, 0.1, 0.1, 0.6], failed=1, busy=0.25)
    run.samples[0] = Sample(0.0, {"n1": NodeSample("up", 1, 0, 1.0, 2, 1)})
    (whole,), (late,) = standings([run]), standings([run], after_s=0.1)
    assert whole.figures["requests"] == 5
    assert late.figures["requests"] == 4
    assert late.figures["errors"] == 1
    assert late.figures["p99_ms"] == pytest.approx(600.0)
    assert late.figures["goodput_share"] == 0.5
    assert whole.utilisation == {"n1": 0.5}
    assert late.utilisation == {"n1": 0.25}


def test_a_node_that_never_served_has_no_utilisation() -> None:
    run = made(MESH, [0.1])
    run.samples = [Sample(1.0, {"n1": NodeSample("down")})]
    assert math.isnan(utilisation(run)["n1"])


def test_the_document_has_no_nan_and_tells_what_broke() -> None:
    def play_with(policy: str) -> Result:
        result = made(policy, [])
        if policy == MESH:
            result.violations = [Violation("one-answer", "answered twice", 0.5)]
        return result

    whole = document(compare(FLEET, (MESH,), "A", 3, play_with, after_s=1.0))
    text = json.dumps(whole, allow_nan=False)
    assert json.loads(text)["after_s"] == 1.0
    assert not whole["ok"]
    mesh = whole["policies"][0]
    assert mesh["violations"] == [
        {"invariant": "one-answer", "message": "answered twice", "time_s": 0.5}
    ]
    assert mesh["figures"]["p99_ms"] is None
    assert mesh["regret"]["omniscient"] == dict.fromkeys(REGRETS)


# With real runs.


@pytest.fixture(scope="module")
def results() -> dict[str, Result]:
    """Runs of a small fleet at 0.52 load with some policies."""
    policies = ("round-robin", "weighted-random", "prequal", MESH, *ORACLES)
    return {policy: play(FLEET, policy=policy) for policy in policies}


def test_all_policies_get_the_same_requests_with_the_same_work(results: dict[str, Result]) -> None:
    calls = [[call for call, _ in result.calls] for result in results.values()]
    assert len(calls[0]) > 400
    assert all(each == calls[0] for each in calls)
    assert len({result.trace_hash for result in results.values()}) == len(results)


def test_no_policy_breaks_an_invariant(results: dict[str, Result]) -> None:
    assert [result.violations for result in results.values()] == [[] for _ in results]


def test_who_knows_more_does_better(results: dict[str, Result]) -> None:
    by_name = {each.policy: each.figures for each in standings([*results.values()])}
    means = [
        by_name[name]["mean_ms"]
        for name in ("omniscient", "size-blind", MESH, "weighted-random", "round-robin")
    ]
    assert means == sorted(means)
    assert by_name["round-robin"]["mean_ms"] > 3 * by_name[MESH]["mean_ms"]
    assert by_name[MESH]["errors"] == 0


@pytest.fixture(scope="module")
def overloaded() -> dict[str, Result]:
    """Three seconds with twice as much as all nodes can do."""
    load = (Load(model="m", rate_per_s=460.0, timeout_s=1.0, deadline_ms=800.0),)
    scenario = msgspec.structs.replace(FLEET, duration_s=3.0, load=load)
    return {policy: play(scenario, policy=policy) for policy in (MESH, *ORACLES)}


def test_under_overload_nobody_answers_more_in_time_than_the_omniscient_oracle(
    overloaded: dict[str, Result],
) -> None:
    """Half of the work can be done; the small requests are more than half of the requests."""
    by_name = {each.policy: each for each in standings([*overloaded.values()])}
    shares = {name: each.figures["goodput_share"] for name, each in by_name.items()}
    assert shares["omniscient"] > 0.7
    assert shares["omniscient"] > 1.15 * max(shares["size-blind"], shares[MESH])
    assert by_name[MESH].regret["omniscient"]["goodput_share"] > 1.15


def test_the_omniscient_oracle_sheds_what_would_be_late(overloaded: dict[str, Result]) -> None:
    outcomes = [(call, outcome) for call, outcome in overloaded["omniscient"].calls if outcome]
    sent = [(call, outcome) for call, outcome in outcomes if outcome.attempts]
    assert len(sent) < len(outcomes)
    late = [call for call, outcome in sent if outcome.took_s > call.deadline_s]
    assert len(late) <= 0.005 * len(sent)


def test_the_same_seed_gives_the_same_run_of_a_policy(results: dict[str, Result]) -> None:
    for policy in ("prequal", "omniscient"):
        assert play(FLEET, policy=policy).trace_hash == results[policy].trace_hash


def test_a_plain_policy_can_be_played_with_whole_daemons() -> None:
    """Depth B: the router of each daemon asks the policy."""
    small = Scenario(
        name="two",
        duration_s=1.0,
        regions={"dub": Place()},
        nodes=(Nodes(region="dub", count=2, name="n"),),
        models=(Model(name="m", service=ServiceTime(distribution="constant", mean_ms=5.0)),),
        load=(Load(model="m", shape="constant", rate_per_s=20.0, via=("n-1",)),),
    )
    result = play(small, depth="B", policy="round-robin")
    assert result.violations == []
    served = [outcome.served_by for _, outcome in result.calls if outcome is not None]
    assert sorted(map(served.count, ("n-1", "n-2"))) == [10, 10]
    assert all(one != other for one, other in pairwise(served))
