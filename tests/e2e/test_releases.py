"""Releases on three real daemons, with real models, under load, by the command line: not one request fails.

The new versions are the digits classifier again: the same, one that computes far more for the same answers, and one
that answers otherwise.
"""

from __future__ import annotations

import json
import shutil
import time
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.e2e.conftest import DIGITS, SteadyLoad, wait_until
from tests.e2e.test_deployments import done

if TYPE_CHECKING:
    from pathlib import Path

    from tests.e2e.conftest import Daemon, Mesh, Sample

pytestmark = pytest.mark.e2e

NAMES = ("alpha", "beta", "gamma")
WIDTH, LAYERS = 1024, 12
"""Of what the slow version computes besides: some milliseconds, where the digits take a hundredth of one."""


class Team:
    """Somebody who releases versions of the digits on a mesh of three, while clients ask all of it."""

    def __init__(self, mesh: Mesh, folder: Path) -> None:
        self.nodes = mesh.grow(*NAMES)
        self.folder = folder
        self.reached = 0.0
        folder.mkdir()
        self.model = folder / "digits.onnx"
        shutil.copy(DIGITS, self.model)
        self.apply("")
        for node in self.nodes:
            wait_until(partial(node.has_replicas, 3), 30, "all serve")

    @property
    def first(self) -> Daemon:
        return self.nodes[0]

    def apply(self, release: str) -> str:
        file = self.folder / "digits.toml"
        text = f'name = "digits"\nmodel = "digits.onnx"\nreplicas = 3\n{release}'
        file.write_text(text, encoding="utf-8")
        return done(self.first, "apply", str(file))

    def status(self, node: Daemon | None = None) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(
            done(node or self.first, "rollout", "status", "digits", "--json")
        )
        return found

    def phase(self) -> str:
        return self.first.control.rollout("digits").phase

    def wait_for(self, *phases: str, limit_s: float = 30.0) -> dict[str, Any]:
        wait_until(lambda: self.phase() in phases, limit_s, lambda: f"{phases}: {self.status()}")
        self.reached = time.monotonic()
        return self.status()


class Loads(ExitStack):
    """Clients of all gateways."""

    def __init__(self, nodes: list[Daemon]) -> None:
        super().__init__()
        self._loads = [SteadyLoad(node.http_port, threads=1, pause_s=0.002) for node in nodes]

    def __enter__(self) -> Self:
        for load in self._loads:
            self.enter_context(load)
        return self

    @property
    def samples(self) -> list[Sample]:
        return sorted((each for load in self._loads for each in load.samples), key=lambda s: s.at)

    @property
    def errors(self) -> list[Sample]:
        return [each for load in self._loads for each in load.failures]

    def all_get(self, goal: int, after: float) -> bool:
        """Whether the last twenty answers of each gateway are a version's, all of requests made since."""
        newest = [load.samples[-20:] for load in self._loads]
        since = all(len(samples) == 20 and samples[0].at >= after for samples in newest)
        return since and {version(each) for samples in newest for each in samples} == {goal}

    def versions(self, after: float = 0.0) -> set[int]:
        return {version(each) for each in self.samples if each.at >= after}


def is_gone(node: Daemon, number: int) -> bool:
    """Whether no node serves a version any more, as one sees it."""
    return not node.ready_nodes("digits", number)


def version(sample: Sample) -> int:
    found = sample.route.partition("version=")[2].partition(";")[0]
    return int(found) if found else 0


def trained_again(place: Path) -> None:
    """Write a version that answers as the one before."""
    model = onnx.load(place)
    model.doc_string = f"trained again: {time.time_ns()}"
    onnx.save(model, place)


def made_slow(place: Path) -> None:
    """Write a version that answers the same after computing much more."""
    model = onnx.load(place)
    graph = model.graph
    rng = np.random.default_rng(1)
    widen = (rng.random((96, WIDTH), dtype=np.float32) - 0.5) / 96
    again = (rng.random((WIDTH, WIDTH), dtype=np.float32) - 0.5) / WIDTH
    graph.initializer.append(numpy_helper.from_array(widen, "widen"))
    graph.initializer.append(numpy_helper.from_array(again, "again"))
    graph.initializer.append(numpy_helper.from_array(np.array([1], np.int64), "per_row"))
    graph.initializer.append(numpy_helper.from_array(np.array(1e-20, np.float32), "hardly"))
    more = [helper.make_node("MatMul", ["active", "widen"], ["wide_0"])]
    for at in range(LAYERS):
        more.append(helper.make_node("MatMul", [f"wide_{at}", "again"], [f"thought_{at}"]))
        more.append(helper.make_node("Tanh", [f"thought_{at}"], [f"wide_{at + 1}"]))
    more.append(helper.make_node("ReduceSum", [f"wide_{LAYERS}", "per_row"], ["sum"], keepdims=1))
    more.append(helper.make_node("Mul", ["sum", "hardly"], ["added"]))
    more.append(helper.make_node("Add", ["scores", "added"], ["slow_scores"]))
    at = next(number for number, node in enumerate(graph.node) if "scores" in node.output)
    rest = [*graph.node][at + 1 :]
    for node in rest:
        node.input[:] = ["slow_scores" if name == "scores" else name for name in node.input]
        graph.node.remove(node)
    graph.node.extend([*more, *rest])
    onnx.checker.check_model(model)
    onnx.save(model, place)


def made_wrong(place: Path) -> None:
    """Write a version that takes each digit for the next one."""
    model = onnx.load(place)
    for weights in model.graph.initializer:
        if weights.name.startswith("output_"):
            turned = np.roll(numpy_helper.to_array(weights), 1, axis=-1)
            weights.CopyFrom(numpy_helper.from_array(turned, weights.name))
            assert weights.data_type == TensorProto.FLOAT
    onnx.save(model, place)


CANARY = """
[release]
strategy = "canary"
steps = [30, 60]
hold_s = 2
min_requests = 50
keep_s = 2
[release.gates]
errors = 0.01
latency_p50 = 3
"""


@pytest.fixture
def team(mesh: Mesh, tmp_path: Path) -> Team:
    return Team(mesh, tmp_path / "files")


def test_a_sound_canary_takes_the_old_versions_place_step_by_step(team: Team) -> None:
    trained_again(team.model)
    with Loads(team.nodes) as loads:
        assert "version 2" in team.apply(CANARY)
        team.wait_for("running")
        wait_until(lambda: loads.versions() == {1, 2}, 10, "both versions answer")
        found = team.wait_for("done")
        settled = time.monotonic()
        wait_until(lambda: loads.samples[-1].at > settled + 0.5, 10, "clients go on")
    assert loads.errors == []
    assert loads.versions(settled) == {2}
    assert found["outcome"] == "promoted"
    for node in team.nodes:
        wait_until(partial(is_gone, node, 1), 15, "version 1 goes")


def test_a_canary_that_computes_longer_is_taken_back_within_two_seconds(team: Team) -> None:
    made_slow(team.model)
    with Loads(team.nodes) as loads:
        team.apply(CANARY.replace("hold_s = 2", "hold_s = 60"))
        found = team.wait_for("rolled_back")
        decided = team.reached
        wait_until(lambda: loads.samples[-1].at > decided + 3.0, 15, "clients go on")
    assert loads.errors == []
    assert "latency_p50" in found["reason"]
    assert found["outcome"] == "rolled_back"
    given = sum(version(each) == 2 for each in loads.samples)
    assert 0 < given <= 2000
    assert loads.versions(decided + 2.0) == {1}
    for node in team.nodes:
        wait_until(partial(is_gone, node, 2), 15, "version 2 goes")
        assert node.ready_nodes("digits", 1) == {*NAMES}


def test_blue_and_green_are_switched_and_switched_back_everywhere_within_a_second(
    team: Team,
) -> None:
    trained_again(team.model)
    other = team.nodes[2]
    with Loads(team.nodes) as loads:
        team.apply('\n[release]\nstrategy = "blue_green"\nkeep_s = 60\n')
        found = team.wait_for("paused")
        assert "promote" in found["reason"]
        assert found["waits"] is True
        assert loads.versions() == {1}, "nobody gets it yet"
        switches = []
        for verb, goal in (("promote", 2), ("undo", 1)):
            begun = time.monotonic()
            done(other, "rollout", verb, "digits")
            wait_until(partial(loads.all_get, goal, begun), 15, f"{verb} is done everywhere")
            switches.append((begun, time.monotonic(), goal))
            time.sleep(0.5)
        found = team.wait_for("rolled_back")
    assert loads.errors == []
    assert "undo" in found["reason"]
    for begun, ended, goal in switches:
        during = [each for each in loads.samples if begun <= each.at <= ended]
        first = next(each.at for each in during if version(each) == goal)
        last = max(each.at for each in during if version(each) != goal)
        assert last - first <= 1.0, "the first gateway switched so long before the last"


@pytest.mark.soak
def test_a_shadow_that_answers_otherwise_is_found_out_before_anybody_hears_it(team: Team) -> None:
    made_wrong(team.model)
    with Loads(team.nodes) as loads:
        team.apply(
            '\n[release]\nstrategy = "shadow"\nduration_s = 60\n[release.gates]\nagreement = 0.99\n'
        )
        found = team.wait_for("rolled_back")
    assert loads.errors == []
    assert loads.versions() == {1}
    assert "agreement" in found["reason"]
    shown = json.loads(done(team.first, "rollout", "disagreements", "digits", "--json"))
    assert shown
