"""What gates say of what was seen: verdicts, in words, and on which devices."""

from __future__ import annotations

import math
import random

import pytest
from msgspec import structs

from meshnode.rollout import Progress
from meshnode.routing.releasing.evidence import Cell, Moments, bucket_of
from meshnode.routing.releasing.gates import Judgement, judge, share_of_try
from meshnode.state.release import Gate, Release, Step

Cells = dict[tuple[int, str], Cell]

PLAN = Release("canary", 1, 2, (Step(0.1), Step(0.5)), (), min_requests=100)
FIRST_TRY = Progress((1, 0), "running", 0, 0, looks=1)


def says(
    cells: Cells, *gates: Gate, plan: Release = PLAN, progress: Progress = FIRST_TRY
) -> Judgement:
    return judge(structs.replace(plan, gates=gates), progress, cells)


def timed(count: int, run_ms: float, sigma: float = 0.3, seed: int = 1, errors: int = 0) -> Cell:
    rng = random.Random(seed)
    run_times: dict[int, int] = {}
    for _ in range(count):
        bucket = bucket_of(run_ms * math.exp(rng.gauss(0, sigma)))
        run_times[bucket] = run_times.get(bucket, 0) + 1
    return Cell(count + errors, errors, run_times)


def compared(count: int, different: int) -> Cell:
    return Cell(count, 0, {}, count, count - different)


def said(*amounts: float) -> Cell:
    moments = Moments()
    for amount in amounts:
        moments += Moments(1, amount)
    return Cell(len(amounts), metrics={"stars": moments})


ERRORS = Gate("errors", 0.01)


@pytest.mark.parametrize(
    ("old", "new", "verdict", "reason"),
    [
        ((0, 0), (0, 0), "inconclusive", "errors: nothing to compare was seen of version 2 yet"),
        ((500, 0), (23, 0), "inconclusive", "errors: 23 of 100 answers of version 2"),
        ((50, 0), (100, 0), "inconclusive", "errors: 50 of 100 answers of version 1"),
        (
            (1000, 1),
            (100, 0),
            "pass",
            "errors 0 % of version 2, 0.1 % of version 1, limit 1 % more (100 figures)",
        ),
        ((1000, 100), (200, 20), "pass", "errors 10 % of version 2"),
        ((1000, 0), (100, 2), "inconclusive", "which may be chance"),
        ((1000, 0), (100, 15), "fail", "errors 15 % of version 2"),
        ((1000, 0), (10, 10), "fail", "errors 100 % of version 2"),
        ((10, 0), (10, 3), "inconclusive", "10 of 100"),
        ((0, 0), (100, 10), "inconclusive", "0 of 100 answers of version 1"),
        ((0, 0), (100, 90), "fail", "25 % of version 1"),
    ],
)
def test_errors(old: tuple[int, int], new: tuple[int, int], verdict: str, reason: str) -> None:
    found = says({(1, "cpu"): Cell(*old), (2, "cpu"): Cell(*new)}, ERRORS)
    assert found.verdict == verdict
    assert reason in found.reason


def test_errors_on_one_class_of_devices_fail_there() -> None:
    cells = {
        (version, device): Cell(1900 if version == 1 else 100)
        for version in (1, 2)
        for device in ("cpu", "gpu", "tpu")
    }
    cells[2, "gpu"] = Cell(100, 3)
    assert says(cells, ERRORS).verdict == "pass"  # 1 % of all
    cells[2, "gpu"] = Cell(100, 20)
    found = says(cells, ERRORS)
    assert found.verdict == "fail"
    # Together they are one in fifteen, which is beyond chance as well.
    assert found.results[0].device == ""
    for device in ("cpu", "tpu"):
        cells[2, device] = Cell(2000)
        cells[1, device] = Cell(38_000)
    found = says(cells, ERRORS)
    assert (found.verdict, found.results[0].device) == ("fail", "gpu")
    assert found.reason.endswith("on gpu")


def test_a_new_version_on_slower_devices_is_not_taken_to_be_slow() -> None:
    """Its answers come mostly from the slow class, the old one's from the quick one: each is as quick as the other."""
    cells = {
        (1, "gpu"): timed(5000, 5.0, seed=1),
        (1, "cpu"): timed(500, 50.0, seed=2),
        (2, "gpu"): timed(50, 5.0, seed=3),
        (2, "cpu"): timed(450, 50.0, seed=4),
    }
    gates = [Gate("latency_p50", 1.25), Gate("latency_p99", 1.5)]
    assert says(cells, *gates).verdict == "pass"
    cells[2, "cpu"] = timed(450, 100.0, seed=4)
    assert says(cells, *gates).verdict == "fail"


@pytest.mark.parametrize("metric", ["latency_p50", "latency_p90", "latency_p99"])
def test_run_times(metric: str) -> None:
    gate = Gate(metric, 1.5)
    old = timed(5000, 20.0)

    def of(new: Cell) -> str:
        return says({(1, "cpu"): old, (2, "cpu"): new}, gate).verdict

    assert of(timed(1000, 20.0, seed=2)) == "pass"
    assert of(timed(1000, 24.0, seed=2)) == "pass"
    assert of(timed(1000, 45.0, seed=2)) == "fail"
    assert of(timed(50, 20.0, seed=2)) == "inconclusive"
    assert of(timed(12, 45.0, seed=2)) == "inconclusive"
    assert of(Cell(1000)) == "inconclusive"  # nobody says how long they ran


def test_a_few_slow_answers_move_the_slowest_hundredth_only() -> None:
    new = timed(950, 20.0, seed=2) + timed(50, 100.0, seed=3)
    cells = {(1, "cpu"): timed(19_000, 20.0), (2, "cpu"): new}
    found = says(cells, Gate("latency_p50", 1.25), Gate("latency_p99", 1.5))
    assert [each.verdict for each in found.results] == ["pass", "fail"]
    assert found.results[1].baseline == pytest.approx(40, rel=0.1)
    assert found.results[1].candidate == pytest.approx(100, rel=0.3)


def test_equal_run_times_that_never_differ_pass_the_strictest_limit() -> None:
    same = Cell(1000, 0, {bucket_of(20.0): 1000})
    cells = {(1, "cpu"): same, (2, "cpu"): same}
    assert says(cells, Gate("latency_p50", 1.0), Gate("latency_p99", 1.0)).verdict == "pass"


def test_devices_on_which_the_old_version_hardly_answers_are_not_compared() -> None:
    cells = {(1, "cpu"): timed(9, 5.0), (2, "cpu"): timed(1000, 500.0)}
    assert says(cells, Gate("latency_p50", 1.25)).verdict == "inconclusive"


@pytest.mark.parametrize(
    ("count", "different", "verdict"),
    [(50, 0, "inconclusive"), (1000, 5, "pass"), (200, 3, "inconclusive"), (1500, 36, "fail")],
)
def test_agreement(count: int, different: int, verdict: str) -> None:
    plan = structs.replace(PLAN, steps=(Step(0.0, mirror=1.0),))
    cells = {(1, "cpu"): Cell(count), (2, "cpu"): compared(count, different)}
    assert says(cells, Gate("agreement", 0.99), plan=plan).verdict == verdict


def test_where_all_have_to_agree_one_that_differs_is_enough() -> None:
    cells = {(1, "cpu"): Cell(20), (2, "cpu"): compared(20, 1)}
    assert says(cells, Gate("agreement", 1.0)).verdict == "fail"


@pytest.mark.parametrize(
    ("old", "new", "verdict"),
    [
        ((400, 50), (400, 50), "pass"),  # right in seven of eight, as before
        ((400, 50), (400, 20), "pass"),
        ((400, 50), (400, 150), "fail"),
        ((400, 0), (400, 40), "fail"),
        ((30, 3), (400, 50), "inconclusive"),
        ((0, 0), (400, 50), "inconclusive"),
        ((0, 0), (400, 400), "inconclusive"),
    ],
)
def test_agreement_with_something_else_is_held_against_that_of_the_old_version(
    old: tuple[int, int], new: tuple[int, int], verdict: str
) -> None:
    plan = structs.replace(PLAN, against="labels")
    cells = {(1, "cpu"): compared(*old), (2, "cpu"): compared(*new)}
    judgement = says(cells, Gate("agreement", 0.99), plan=plan)
    assert judgement.verdict == verdict
    if verdict == "fail":
        assert "limit 1 % less" in judgement.reason


def test_agreement_counts_only_where_something_is_compared() -> None:
    gate = Gate("agreement", 0.99)
    cells = {(1, "cpu"): Cell(1000), (2, "cpu"): Cell(1000)}
    found = says(cells, gate, ERRORS)
    assert [each.metric for each in found.results] == ["errors"]
    labels = structs.replace(PLAN, against="labels")
    assert says(cells, gate, ERRORS, plan=labels).verdict == "inconclusive"


def test_what_people_say() -> None:
    gate = Gate("stars", 0.5)
    rng = random.Random(4)
    old = said(*(rng.gauss(4, 1) for _ in range(300)))

    def of(mean: float, count: int, gate: Gate = gate) -> str:
        new = said(*(rng.gauss(mean, 1) for _ in range(count)))
        return says({(1, "cpu"): old, (2, "cpu"): new}, gate).verdict

    assert of(4, 300) == "pass"
    assert of(3.8, 300) == "pass"
    assert of(2.5, 300) == "fail"
    assert of(2.5, 20) == "inconclusive"
    assert of(6, 300) == "pass"
    assert of(6, 300, Gate("stars", 0.5, higher_is_better=False)) == "fail"


def test_people_who_have_said_nothing_yet_are_waited_for() -> None:
    gate = Gate("stars", 0.1)
    quiet = says({(1, "cpu"): Cell(500), (2, "cpu"): Cell(500)}, gate)
    assert quiet.reason == "stars: nothing to compare was seen of version 2 yet"
    one_sided = says({(1, "cpu"): Cell(500), (2, "cpu"): said(*[5.0] * 500)}, gate)
    assert one_sided.reason == "stars: 0 of 100 answers of version 1"


def test_thirty_equal_marks_are_no_proof() -> None:
    """One in ten clicks on the old version; that none of thirty clicks on the new one has a chance of 4 %."""
    gate = Gate("stars", 0.05)
    old = said(*([1.0] + [0.0] * 9) * 60)
    assert says({(1, "cpu"): old, (2, "cpu"): said(*[0.0] * 30)}, gate).verdict == "inconclusive"
    assert says({(1, "cpu"): old, (2, "cpu"): said(*[0.0] * 600)}, gate).verdict == "fail"


def test_marks_that_never_differ_are_compared_but_for_rounding() -> None:
    gate = Gate("stars", 0.0)
    old = said(*[0.1] * 200)
    assert says({(1, "cpu"): old, (2, "cpu"): said(*[0.1] * 333)}, gate).verdict == "pass"
    assert says({(1, "cpu"): old, (2, "cpu"): said(*[0.0] * 200)}, gate).verdict == "fail"


def test_a_step_that_sends_nothing_passes_and_still_fails() -> None:
    plan = structs.replace(PLAN, steps=(Step(0.0),))
    found = says({}, ERRORS, plan=plan)
    assert (found.verdict, found.reason) == ("pass", "nothing is measured in this step")
    cells = {(1, "cpu"): Cell(100), (2, "cpu"): Cell(100, 90)}
    assert says(cells, ERRORS, plan=plan).verdict == "fail"
    assert says({}).verdict == "pass"


def test_once_all_is_the_new_versions_the_times_before_allow_more() -> None:
    """By night the machine is warmer: a third slower than in the step before is no reason, three times as slow is."""
    keeping = structs.replace(FIRST_TRY, phase="keeping", step=2)
    gates = (ERRORS, Gate("latency_p50", 1.25))
    old = timed(1000, 20.0)

    def of(new: Cell, progress: Progress) -> str:
        return says({(1, "cpu"): old, (2, "cpu"): new}, *gates, progress=progress).verdict

    slower = timed(1000, 27.0, seed=2)
    assert of(slower, FIRST_TRY) == "fail"
    assert of(slower, keeping) == "inconclusive"
    assert of(timed(1000, 60.0, seed=2), keeping) == "fail"
    assert of(timed(900, 20.0, seed=2, errors=100), keeping) == "fail"


def test_before_any_try_nothing_fails() -> None:
    cells = {(1, "cpu"): Cell(100), (2, "cpu"): Cell(100, 90)}
    assert says(cells, ERRORS, progress=structs.replace(FIRST_TRY, looks=0)).verdict != "fail"


def test_every_gate_that_fails_is_named() -> None:
    cells = {(1, "cpu"): timed(1000, 20.0), (2, "cpu"): timed(500, 60.0, errors=500)}
    found = says(cells, ERRORS, Gate("latency_p50", 1.25), Gate("latency_p99", 1.5))
    assert [each.verdict for each in found.results] == ["fail"] * 3
    assert found.reason.count(";") == 2


def test_all_tries_together_have_no_more_than_there_is() -> None:
    shares = [share_of_try(number) for number in range(10_000)]
    assert shares[0] == 0
    assert min(shares[1:]) > 0
    assert 0.999 < sum(shares) <= 1


def test_a_last_step_that_sends_everything_is_held_against_the_one_before() -> None:
    plan = structs.replace(PLAN, steps=(Step(0.1), Step(1.0)))
    last = structs.replace(FIRST_TRY, step=1)
    cells = {(1, "cpu"): timed(1000, 20.0), (2, "cpu"): timed(1000, 27.0, seed=2)}
    gate = Gate("latency_p50", 1.25)
    assert says(cells, gate, plan=plan).verdict == "fail"
    assert says(cells, gate, plan=plan, progress=last).verdict == "inconclusive"
    cells[2, "cpu"] = timed(1000, 22.0, seed=2)
    assert says(cells, gate, plan=plan, progress=last).verdict == "pass"


@pytest.mark.parametrize(
    ("old", "new", "verdict"),
    [
        ((400, 600), (400, 3), "inconclusive"),
        ((400, 600), (400, 10), "pass"),
        ((1000, 20), (400, 0), "pass"),  # eight would be expected: too few to miss them
        ((400, 0), (400, 0), "pass"),
    ],
)
def test_a_class_of_devices_that_the_new_version_is_hardly_asked_on_passes_no_gate(
    old: tuple[int, int], new: tuple[int, int], verdict: str
) -> None:
    devices = ("box", "odd")
    cells = {(1, device): Cell(count) for device, count in zip(devices, old, strict=True)}
    cells |= {(2, device): Cell(count) for device, count in zip(devices, new, strict=True)}
    judgement = says(cells, ERRORS)
    assert judgement.verdict == verdict
    if verdict == "inconclusive":
        assert "3 answers of version 2 on odd, where version 1 gave 600" in judgement.reason
