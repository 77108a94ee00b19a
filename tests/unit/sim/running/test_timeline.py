"""What a failure tells: the invariant, the last seconds, the command."""

from __future__ import annotations

import json

import pytest

from meshnode.sim.faults import (
    Bandwidth,
    Crash,
    Fault,
    Flap,
    Leave,
    Partition,
    RegionDown,
    Release,
)
from meshnode.sim.running.document import document
from meshnode.sim.running.playing import play
from meshnode.sim.running.result import FaultMark, Result, Step, Verdict, Violation
from meshnode.sim.running.timeline import failure, replay_command, summary, timeline
from meshnode.sim.running.wording import fault_text
from meshnode.sim.scenario.model import Expect
from meshnode.sim.stage import OK, Call, Outcome
from meshnode.sim.trace import Record
from tests.unit.sim.running.stand_in_stage import StandInStage, small


def call(number: int, at_s: float) -> Call:
    return Call(number, at_s, "eu-1", "m", 0.1, timeout_s=5.0, deadline_s=0.2)


BROKEN = Result(
    small(),
    "A",
    seed=42,
    source="my rehearsals/office.toml",
    calls=[
        (call(0, 1.0), Outcome(OK, 0.1, "eu-2")),
        *((call(number, 6.0), Outcome(OK, 0.02, "eu-2")) for number in range(1, 8)),
        (call(8, 7.0), Outcome("saturated", 0.25, failed_on=(("us-1", "saturated"),))),
        (call(9, 7.5), None),
    ],
    marks=[
        FaultMark(5.0, "crash", "crash us-2"),
        FaultMark(8.0, "crash", "crash us-2", undone=True),
    ],
    events=[
        Record(6.5, "eu-2", "member.suspect", "us-2", "no answer to a probe"),
        Record(6.6, "eu-2", "desired.changed", "x", ""),
    ],
    steps=[Step(7.2, "eu-1", "SuspicionExpired(us-2)")],
    violations=[Violation("one-answer", "call 9 ended twice", 8.25)],
)


def test_a_timeline_has_calls_faults_members_and_timers_in_their_order() -> None:
    assert timeline(BROKEN, last_s=4.0) == [
        "     5.000  FAULT   crash us-2",
        "     6.020  eu-1    call 1 of m is answered by eu-2 in 20 ms",
        "     6.020  eu-1    call 2 of m is answered by eu-2 in 20 ms",
        "     6.020  eu-1    call 3 of m is answered by eu-2 in 20 ms",
        "     6.500  eu-2    suspects us-2: no answer to a probe",
        "     7.000          and 4 more: call ok",
        "     7.200  eu-1    SuspicionExpired(us-2)",
        "     7.250  eu-1    call 8 of m ends with saturated, 250 ms after it was made after us-1 saturated",
        "     7.500  eu-1    call 9 of m is made, and never ended",
        "     8.000  FAULT   undone: crash us-2",
        "     8.250  BROKEN  one-answer: call 9 ended twice",
    ]


def test_a_failure_names_invariant_and_seed_and_ends_with_the_command_that_replays_it() -> None:
    lines = failure(BROKEN).splitlines()
    assert lines[0] == ("seed 42 at depth A: one-answer broken at 8.250 s: call 9 ended twice")
    assert lines[-1] == "  meshnode sim run 'my rehearsals/office.toml' --seed 42 --depth A"


def test_only_the_last_lines_of_a_long_timeline_are_shown() -> None:
    steps = [Step(number / 10, "n", f"{number} happens") for number in range(99)]
    lines = timeline(Result(small(), "A", 1, steps=steps), last_s=20.0)
    assert lines[0] == "  ... 39 lines before"
    assert len(lines) == 61


def test_a_missed_expectation_is_told_with_what_was_found() -> None:
    missed = Verdict(Expect(metric="error_rate", at_most=0.01, after_s=5.0), 0.25, holds=False)
    told = summary(Result(small(), "A", 1, verdicts=[missed]))
    assert told == "error_rate from 5 s: at most 1.0%, found 25.0%"


def test_a_file_that_looks_like_an_option_is_named_so_that_it_is_none() -> None:
    result = Result(small(), "A", 1, source="-x.toml")
    assert replay_command(result) == "meshnode sim run ./-x.toml --seed 1 --depth A"


def test_a_policy_is_part_of_the_command() -> None:
    result = Result(small(), "A", 1, policy="p2c")
    assert replay_command(result) == ("meshnode sim run small.toml --seed 1 --depth A --policy p2c")


@pytest.mark.parametrize(
    ("fault", "text"),
    [
        (Crash(nodes=("us-1", "us-2"), torn=True), "crash us-1, us-2 (torn)"),
        (Leave(nodes=("region:eu",)), "leave region:eu"),
        (Flap(nodes=("n",), up_s=3.0), "flap n (up_s 3)"),
        (RegionDown(region="eu"), "region-down eu"),
        (Release(model="m"), "release-model m"),
        (Partition(nodes=("a",), others=("b",), one_way=True), "partition a and b (one_way)"),
        (Bandwidth(nodes=("a",), mbps=2.5), "bandwidth a and all others (mbps 2.5)"),
    ],
)
def test_a_fault_in_words_says_to_whom_and_how(fault: Fault, text: str) -> None:
    assert fault_text(fault) == text


def test_a_run_is_one_json_document() -> None:
    scenario = small(
        Crash(at_s=1.0, nodes=("n-1",)), expect=(Expect(metric="p50_ms", at_most=200.0),)
    )
    result = play(scenario, stage=StandInStage(scenario), source="small.toml")
    told = json.loads(json.dumps(document(result), allow_nan=False))
    assert told["ok"] is True
    assert told["trace_hash"] == result.trace_hash
    assert told["codes"] == {"ok": 20}
    assert told["figures"]["p50_ms"] == 100.0
    assert told["figures"]["requests"] == 20
    assert told["expect"] == [
        {
            "text": "p50_ms: at most 200 ms",
            "metric": "p50_ms",
            "at_most": 200.0,
            "at_least": None,
            "model": None,
            "after_s": None,
            "before_s": None,
            "via": [],
            "nodes": [],
            "found": 100.0,
            "holds": True,
        }
    ]
    assert told["faults"][0]["text"] == "crash n-1"
    assert told["per_node"]["n-1"] == {
        "region": "dub",
        "device": "mini-pc",
        "state": "up",
        "served": sum(made.gateway == "n-1" for made, _ in result.calls),
        "utilisation": 0.5,
    }
    assert told["replay"] == "meshnode sim run small.toml --seed 1 --depth A"


def test_figures_of_nothing_are_null() -> None:
    told = document(Result(small(), "A", 1, violations=[Violation("starts", "it does not", -1.0)]))
    assert told["figures"]["p99_ms"] is None
    assert told["violations"] == [{"invariant": "starts", "message": "it does not", "time_s": -1.0}]
