"""What a gateway counts of a release, what it tells of it, and what all gateways together have seen."""

from __future__ import annotations

import math
import operator
import random
import statistics

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshnode.errors import ProtocolError
from meshnode.limits import (
    MAX_EVIDENCE_BUCKETS,
    MAX_EVIDENCE_CLASSES,
    MAX_EVIDENCE_COUNT,
    MAX_EVIDENCE_DEVICE_BYTES,
    MAX_EVIDENCE_METRICS,
    MAX_GATE_NAME_LENGTH,
    MAX_MEASURED,
    MAX_OWNER_VALUE_BYTES,
    MAX_RECORD_WALL_S,
    MAX_RELEASE_STEPS,
    MAX_VERSION,
)
from meshnode.rollout import LAST_BUCKET, CellWord, Evidence, Progress, evidence_key
from meshnode.routing.releasing.evidence import (
    BUILT_IN,
    Cell,
    EvidenceBook,
    Moments,
    bucket_of,
    class_word,
    feedback_metrics,
    merged,
    milliseconds_at,
)
from meshnode.state.release import BUILT_IN_METRICS, Gate, Release, Step

REVISION = (7, 1)
RELEASE = Release("canary", 1, 2, (Step(0.1), Step(0.5)), (Gate("errors", 0.01),))
FIRST = Progress(REVISION, "running", 0, 0)


def book(release: Release = RELEASE, progress: Progress = FIRST) -> EvidenceBook:
    made = EvidenceBook()
    made.follow(release, progress)
    return made


def told(of: EvidenceBook) -> Evidence:
    evidence = of.snapshot()
    assert evidence is not None
    return evidence


def seen(of: EvidenceBook) -> dict[tuple[int, str], Cell]:
    evidence = told(of)
    return merged([Evidence.decode(evidence.encode())], evidence.revision, evidence.step)


def test_answers_and_failures_are_counted_by_version_and_class_of_devices() -> None:
    counted = book()
    counted.answered(1, "cpu", 10.0, failed=False)
    counted.answered(2, "cpu", 12.0, failed=False)
    counted.answered(2, "cpu", 0.0, failed=False)  # nobody knows how long it ran
    counted.answered(2, "gpu", 3.0, failed=True)
    counted.compared(2, "gpu", agreed=True)
    counted.compared(2, "gpu", agreed=False)
    assert seen(counted) == {
        (1, "cpu"): Cell(1, 0, {bucket_of(10.0): 1}),
        (2, "cpu"): Cell(2, 0, {bucket_of(12.0): 1}),
        (2, "gpu"): Cell(1, 1, {}, 2, 1),
    }


def test_other_versions_and_times_without_a_step_are_not_counted() -> None:
    counted = book()
    counted.answered(3, "cpu", 1.0, failed=False)
    assert told(counted).cells == ()
    idle = book(progress=Progress(REVISION, "preparing", -1, 0))
    idle.answered(2, "cpu", 1.0, failed=False)
    idle.compared(2, "cpu", agreed=True)
    idle.measured(2, "cpu", "stars", 5)
    assert idle.snapshot() is None
    assert repr(idle) == "<EvidenceBook: step None, 0 answers in 0 cells>"


def test_a_new_step_begins_with_nothing_and_the_same_step_goes_on() -> None:
    counted = book()
    counted.answered(2, "cpu", 1.0, failed=False)
    assert not counted.follow(RELEASE, msgspec.structs.replace(FIRST, phase="paused"))
    assert len(told(counted).cells) == 1
    assert counted.follow(RELEASE, msgspec.structs.replace(FIRST, step=1))
    assert told(counted) == Evidence(REVISION, 1)


def test_once_the_new_version_answers_all_the_old_ones_figures_are_kept() -> None:
    counted = book(progress=msgspec.structs.replace(FIRST, step=1))
    counted.answered(1, "cpu", 1.0, failed=False)
    counted.answered(2, "cpu", 1.0, failed=False)
    counted.follow(RELEASE, Progress(REVISION, "keeping", 2, 0))
    assert [(cell.version, cell.requests) for cell in told(counted).cells] == [(1, 1)]
    counted.follow(RELEASE, Progress((8, 0), "keeping", 2, 0))  # of another release
    assert told(counted).cells == ()


def test_a_book_is_dirty_until_it_is_told() -> None:
    counted = book()
    dirty = [counted.is_dirty]
    told(counted)
    dirty.append(counted.is_dirty)
    counted.answered(3, "cpu", 1.0, failed=False)
    dirty.append(counted.is_dirty)
    counted.answered(2, "cpu", 1.0, failed=False)
    dirty.append(counted.is_dirty)
    told(counted)
    dirty.append(counted.is_dirty)
    assert dirty == [True, False, False, True, False]


def test_devices_beyond_the_limit_share_one_class_in_which_both_versions_are() -> None:
    counted = book()
    for number in range(20):
        for version in (1, 2):
            counted.answered(version, f"cpu {number}", 1.0, failed=False)
    cells = told(counted).cells
    assert len(cells) == 2 * MAX_EVIDENCE_CLASSES
    assert [cell.requests for cell in cells if cell.device == ""] == [14, 14]


def test_long_words_of_devices_are_short_and_different() -> None:
    words = {class_word("gpu " + "é" * 100 + str(number)) for number in range(50)}
    assert len(words) == 50
    assert all(len(word.encode()) <= MAX_EVIDENCE_DEVICE_BYTES for word in words)
    assert class_word("Cortex-A76") == "Cortex-A76"
    assert class_word("\ud800") == "?"


def test_the_distribution_of_run_times_is_kept_however_far_they_lie_apart() -> None:
    counted = book()
    rng = random.Random(1)
    times = [rng.lognormvariate(3, 2) for _ in range(20_000)]
    for each in times:
        counted.answered(2, "cpu", each, failed=False)
    (cell,) = told(counted).cells
    assert len(cell.run_times) <= MAX_EVIDENCE_BUCKETS
    assert sum(count for _, count in cell.run_times) == len(times)
    for share in (0.5, 0.9, 0.99):
        wanted = statistics.quantiles(times, n=100)[round(100 * share) - 1]
        below = 0
        found = 0.0
        for bucket, count in cell.run_times:
            below += count
            found = milliseconds_at(bucket + 0.5)
            if below >= share * len(times):
                break
        assert found == pytest.approx(wanted, rel=0.15)


@given(st.floats(min_value=0, exclude_min=True, allow_infinity=False))
def test_every_run_time_has_a_bucket_that_holds_it(run_ms: float) -> None:
    bucket = bucket_of(run_ms)
    assert 0 <= bucket <= LAST_BUCKET
    if bucket > 0:
        assert milliseconds_at(bucket) <= run_ms * (1 + 1e-9)
    if bucket < LAST_BUCKET:
        assert run_ms <= milliseconds_at(bucket + 1) * (1 + 1e-9)


@pytest.mark.parametrize("run_ms", [0.0, -1.0, math.nan, math.inf])
def test_what_is_no_run_time_is_not_counted_as_one(run_ms: float) -> None:
    counted = book()
    counted.answered(2, "cpu", run_ms, failed=False)
    (cell,) = told(counted).cells
    assert (cell.requests, cell.run_times) == (1, ())


def test_amounts_of_feedback_have_a_mean_and_a_spread_however_they_are_divided() -> None:
    rng = random.Random(2)
    amounts = [rng.gauss(3, 2) for _ in range(500)]
    books = [book() for _ in range(4)]
    for place, amount in enumerate(amounts):
        books[place % 3].measured(2, "cpu", "stars", amount)
    cells = merged([told(each) for each in books], REVISION, 0)
    found = cells[2, "cpu"].metrics["stars"]
    assert found.number == 500
    assert found.mean == pytest.approx(statistics.fmean(amounts))
    assert found.variance == pytest.approx(statistics.variance(amounts))
    assert Moments(1, 5.0).variance == 0.0


def test_figures_are_added_to_figures_alone() -> None:
    with pytest.raises(TypeError):
        operator.add(Moments(), (1, 2.0, 3.0))
    with pytest.raises(TypeError):
        operator.add(Cell(), (1,))


def test_absurd_amounts_and_names_are_bounded_or_left_out() -> None:
    counted = book()
    for value in (math.nan, math.inf, -math.inf):
        counted.measured(2, "cpu", "stars", value)
    for name in ("", "errors", "a\nb", "\ud800", "x" * (MAX_GATE_NAME_LENGTH + 1)):
        counted.measured(2, "cpu", name, 1.0)
    assert all(cell.metrics == {} for cell in seen(counted).values())
    counted.measured(2, "cpu", "stars", 1e300)
    assert seen(counted)[2, "cpu"].metrics == {"stars": Moments(1, MAX_MEASURED, 0.0)}


def test_metrics_with_a_gate_have_room_whatever_else_is_measured() -> None:
    release = msgspec.structs.replace(
        RELEASE, gates=(Gate("errors", 0.01), Gate("clicks", 0.1), Gate("stars", 0.1))
    )
    assert feedback_metrics(release) == ("clicks", "stars")
    counted = book(release)
    for number in range(50):
        counted.measured(2, "cpu", f"other {number}", 1.0)
    counted.measured(2, "cpu", "stars", 1.0)
    metrics = seen(counted)[2, "cpu"].metrics
    assert "stars" in metrics
    assert len(told(counted).metrics) == MAX_EVIDENCE_METRICS
    assert set(BUILT_IN) == set(BUILT_IN_METRICS)


def test_counts_stop_at_their_limit() -> None:
    counted = book()
    counted.answered(2, "cpu", 1.0, failed=False)
    counted.compared(2, "cpu", agreed=True)
    counted.measured(2, "cpu", "stars", 1.0)
    counts = counted._cells[2, "cpu"]
    counts.requests = counts.compared = MAX_EVIDENCE_COUNT
    counts.metrics["stars"] = Moments(MAX_EVIDENCE_COUNT, 1.0)
    counted.answered(2, "cpu", 1.0, failed=False)
    counted.compared(2, "cpu", agreed=False)
    counted.measured(2, "cpu", "stars", 1.0)
    (cell,) = told(counted).cells
    assert (cell.requests, cell.compared) == (MAX_EVIDENCE_COUNT, MAX_EVIDENCE_COUNT)
    Evidence.decode(told(counted).encode())


def test_the_largest_evidence_fits_the_value_of_a_nodes_state() -> None:
    cell = CellWord(
        MAX_VERSION,
        "é" * (MAX_EVIDENCE_DEVICE_BYTES // 2),
        MAX_EVIDENCE_COUNT,
        MAX_EVIDENCE_COUNT,
        tuple((LAST_BUCKET, MAX_EVIDENCE_COUNT) for _ in range(MAX_EVIDENCE_BUCKETS)),
        MAX_EVIDENCE_COUNT,
        MAX_EVIDENCE_COUNT,
        tuple(
            (place, MAX_EVIDENCE_COUNT, -MAX_MEASURED, 1e300)
            for place in range(MAX_EVIDENCE_METRICS)
        ),
    )
    evidence = Evidence(
        (1000 * MAX_RECORD_WALL_S, 2**32),
        MAX_RELEASE_STEPS,
        tuple("é" * (MAX_GATE_NAME_LENGTH // 2) for _ in range(MAX_EVIDENCE_METRICS)),
        (cell,) * (2 * MAX_EVIDENCE_CLASSES),
    )
    assert Evidence.decode(evidence.encode()) == evidence
    assert len(evidence.encode()) < MAX_OWNER_VALUE_BYTES


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"\xc1",
        msgspec.msgpack.encode([[1, 1], -2]),
        msgspec.msgpack.encode([[1, 1], 0, [], [[2, "cpu", -1]]]),
        msgspec.msgpack.encode([[1, 1], 0, [], [[2, "cpu", 1, 0, [[LAST_BUCKET + 1, 1]]]]]),
        msgspec.msgpack.encode([[1, 1], 0, [], [[2, "x"]] * (2 * MAX_EVIDENCE_CLASSES + 1)]),
    ],
)
def test_what_is_no_evidence_is_refused(value: bytes) -> None:
    with pytest.raises(ProtocolError, match="what a node has seen of a release is not valid"):
        Evidence.decode(value)


def test_only_what_is_told_of_this_step_of_this_release_counts() -> None:
    here = Evidence(REVISION, 0, (), (CellWord(2, "cpu", 5, 1),))
    others = [Evidence(REVISION, 1, (), here.cells), Evidence((8, 0), 0, (), here.cells)]
    assert merged([here, here, *others], REVISION, 0) == {(2, "cpu"): Cell(10, 2)}
    assert merged([here], REVISION, None) == {}


def test_contradictions_of_a_gateway_are_set_right() -> None:
    word = CellWord(
        2, "cpu", 5, 9, (), 3, 7, ((0, 5, math.nan, 1.0), (1, 5, 1.0, -1.0), (7, 1, 1.0, 1.0))
    )
    assert merged([Evidence(REVISION, 0, ("a", "b"), (word,))], REVISION, 0) == {
        (2, "cpu"): Cell(5, 5, {}, 3, 3, {})
    }


def test_classes_of_a_great_mesh_are_bounded() -> None:
    evidences = [
        Evidence(REVISION, 0, (), tuple(CellWord(2, f"cpu {node} {each}", 1) for each in range(7)))
        for node in range(100)
    ]
    cells = merged(evidences, REVISION, 0)
    assert len(cells) <= 129
    assert sum(cell.requests for cell in cells.values()) == 700


def test_the_key_names_the_deployment() -> None:
    assert evidence_key("digits") == "evidence/digits"
