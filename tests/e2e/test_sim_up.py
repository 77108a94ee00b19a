"""`meshnode sim up`: real processes with distances between them, and nothing left of them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from typing import TYPE_CHECKING, Any, Self

import psutil
import pytest

from meshnode.sim.faults import Crash, Latency
from meshnode.sim.processes.node import ORPHAN_LIMIT_S
from meshnode.sim.processes.ports import choose_ports
from meshnode.sim.running.playing import play
from meshnode.sim.scenario.reading import parse
from tests.e2e.conftest import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = pytest.mark.e2e

RTT_MS = 100.0
SCENARIO = """
name = "two-regions"
duration_s = 3
paths = [{ between = ["here", "there"], rtt_ms = 100 }]

[regions]
here = { place = "dublin" }
there = { place = "virginia" }

[[nodes]]
region = "here"
name = "near"

[[nodes]]
region = "there"
name = "far"
count = 2

[[models]]
name = "classifier"
on = ["far-*"]
service = { distribution = "constant", mean_ms = 5 }

[[load]]
model = "classifier"
rate_per_s = 20
via = ["near"]

[[expect]]
metric = "error_rate"
at_most = 0
"""


class Up:
    """A running `meshnode sim up --json`."""

    def __init__(self, scenario: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "meshnode", "sim", "up", str(scenario), "--json"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        assert self.process.stdout is not None
        self.document: dict[str, Any] = json.loads(self.process.stdout.readline())
        self.nodes = {node["name"]: node for node in self.document["nodes"]}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()

    def pids(self) -> list[int]:
        return [node["pid"] for node in self.nodes.values()]

    def ask(self, path: str, body: str | None = None) -> tuple[Any, dict[str, str], float]:
        """Ask the near gateway as curl does; return the document, the headers and the seconds."""
        url = self.nodes["near"]["gateway"] + path
        data = None if body is None else body.encode()
        begin = time.monotonic()
        with urllib.request.urlopen(url, data=data, timeout=10) as answer:
            return json.load(answer), dict(answer.headers), time.monotonic() - begin

    def nothing_is_left(self) -> bool:
        return not any(map(runs, self.pids())) and not os.path.exists(self.document["folder"])  # noqa: PTH110


def runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Callable[[str], Up]]:
    """Start a scenario; what is left at the end is killed."""
    with contextlib.ExitStack() as stack:

        def start(text: str) -> Up:
            place = tmp_path / "two-regions.toml"
            place.write_text(text)
            return stack.enter_context(Up(place))

        yield start


def test_regions_are_as_far_apart_as_the_scenario_says_and_ctrl_c_leaves_nothing(
    up: Callable[[str], Up],
) -> None:
    it = up(SCENARIO)

    def to_far() -> float:
        nodes, _, _ = it.ask("/mesh/v1/nodes")
        return float(next(each["rtt_ms"] or 0.0 for each in nodes if each["name"] == "far-1"))

    def took_ms() -> float:
        _, headers, took_s = it.ask(example["path"], example["body"])
        assert headers["Mesh-Route"].startswith("node=far-")
        return took_s * 1000

    # Links: what a request takes from one region to the other and back, and what links measure.
    example = it.document["example"]
    assert min(took_ms() for _ in range(5)) == pytest.approx(RTT_MS + 5, rel=0.2)
    wait_until(lambda: to_far() == pytest.approx(RTT_MS, rel=0.2), 10, "links know the distance")

    # A killed node is no error for clients, and the person is told.
    os.kill(it.nodes["far-1"]["pid"], signal.SIGKILL)
    served = [it.ask(example["path"], example["body"])[1]["Mesh-Route"] for _ in range(5)]
    assert served[-1].startswith("node=far-2")

    it.process.send_signal(signal.SIGINT)
    _, errors = it.process.communicate(timeout=15)
    assert it.process.returncode == 0
    assert b"far-1 is gone: it ended by SIGKILL" in errors
    assert it.nothing_is_left()
    first = int(it.nodes["near"]["gateway"].rpartition(":")[2])
    choose_ports(3, first)[1].close()


def test_if_the_rehearsal_is_killed_its_nodes_end_even_one_that_stands_still(
    up: Callable[[str], Up],
) -> None:
    it = up(SCENARIO.partition("[[models]]")[0].replace("count = 2", "count = 1"))
    os.kill(it.nodes["far"]["pid"], signal.SIGSTOP)
    it.process.kill()
    # At once, usually; a node that cannot close in time is cut short after `ORPHAN_LIMIT_S`.
    wait_until(it.nothing_is_left, ORPHAN_LIMIT_S + 20, "processes and folder are gone")


def test_a_scenario_plays_in_real_time_with_its_faults() -> None:
    text = SCENARIO.replace("duration_s = 3", "duration_s = 4")
    text += '\n[[faults]]\nverb = "crash"\nat_s = 1\nfor_s = 1\nnodes = ["far-1"]\n'
    text += '\n[[faults]]\nverb = "latency"\nat_s = 2.5\nadd_ms = 100\nnodes = ["near"]\n'
    result = play(parse(text, "two-regions"), depth="C")
    assert result.ok, (result.violations, result.verdicts)
    assert result.trace_hash == ""
    took_s = {call.number: outcome.took_s for call, outcome in result.calls if outcome}
    assert len(took_s) == len(result.calls) > 50
    early = [took_s[call.number] for call, _ in result.calls if call.made_at_s < 1]
    late = [took_s[call.number] for call, _ in result.calls if 3 < call.made_at_s < 3.6]
    assert min(early) == pytest.approx(0.105, rel=0.2)
    assert min(late) == pytest.approx(0.305, rel=0.2)
    assert [mark.verb for mark in result.marks] == [Crash(nodes=()).verb] * 2 + [
        Latency(nodes=()).verb
    ] * 2
    states = [sample.nodes["far-1"].state for sample in result.samples]
    assert "down" in states
    assert states[-1] == "up"
