"""Two histories of one job: whatever was heard in whatever order, all copies end up alike."""

from __future__ import annotations

import random

import msgspec
import pytest

from meshnode.jobs.job import (
    NEW,
    JobState,
    JobStatus,
    Outcome,
    Told,
    claimed,
    ended,
    expires_at_ms,
    id_of_key,
    merge,
    overdue,
    random_id,
    released,
)
from meshnode.limits import JOB_RESULT_S, MAX_JOB_AGE_S
from tests.unit.jobs.mesh import START_MS, job

ENDS = (JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLED)


def some_state(rng: random.Random) -> JobState:
    end = None
    if rng.random() < 0.6:
        end = Outcome(
            rng.choice(ENDS), rng.randint(0, 3), rng.choice("abc"), START_MS + rng.randint(0, 2),
            rng.choice((0, 200, 500)), (), bytes([rng.randint(0, 1)]) * 32, rng.randint(0, 2),
        )  # fmt: skip
    return JobState(
        rng.randint(0, 3), rng.choice(("", "a", "b")), START_MS + rng.randint(0, 2), rng.choice((-1.0, 0.5, 1.0)), end,
        rng.choice(list(Told)) if end else Told.WAITING,
    )  # fmt: skip


@pytest.mark.parametrize("seed", range(20))
def test_merging_is_commutative_associative_and_idempotent(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(200):
        one, two, three = (some_state(rng) for _ in range(3))
        assert merge(one, one) == one
        assert merge(one, two) == merge(two, one)
        assert merge(merge(one, two), three) == merge(one, merge(two, three))
        assert merge(merge(one, two), two) == merge(one, two)


def outcome(status: JobStatus, attempt: int = 1, node: str = "a") -> Outcome:
    return Outcome(status, attempt, node, START_MS)


@pytest.mark.parametrize(
    ("winner", "loser"),
    [
        (outcome(JobStatus.SUCCEEDED, 2), outcome(JobStatus.CANCELLED, 1)),
        (outcome(JobStatus.CANCELLED, 2), outcome(JobStatus.FAILED, 1)),
        (outcome(JobStatus.SUCCEEDED, 1, "z"), outcome(JobStatus.SUCCEEDED, 2, "a")),
        (outcome(JobStatus.SUCCEEDED, 1, "a"), outcome(JobStatus.SUCCEEDED, 1, "b")),
    ],
)
def test_of_two_outcomes_a_fixed_one_counts(winner: Outcome, loser: Outcome) -> None:
    one, other = ended(NEW, winner), ended(NEW, loser)
    assert merge(one, other).outcome == merge(other, one).outcome == winner


def test_what_was_told_of_one_outcome_was_not_told_of_another() -> None:
    told = msgspec.structs.replace(ended(NEW, outcome(JobStatus.FAILED)), told=Told.DELIVERED)
    better = ended(NEW, outcome(JobStatus.SUCCEEDED))
    assert merge(told, better).told is Told.WAITING
    assert merge(told, ended(NEW, outcome(JobStatus.FAILED))).told is Told.DELIVERED


def test_a_later_attempt_counts_and_a_claim_before_none() -> None:
    first = claimed(NEW, "a", START_MS)
    assert merge(first, claimed(first, "b", START_MS)).node == "b"
    assert merge(released(first), claimed(first, "b", START_MS)).node == "b"
    assert merge(claimed(NEW, "b", 5), claimed(NEW, "a", 9)).node == "a"


def test_states_have_names() -> None:
    assert NEW.status is JobStatus.QUEUED
    assert claimed(NEW, "a", START_MS).status is JobStatus.RUNNING
    assert ended(NEW, outcome(JobStatus.FAILED)).status is JobStatus.FAILED


def test_a_job_expires_a_day_after_its_end_and_fails_a_day_after_its_beginning() -> None:
    what = job("a")
    assert expires_at_ms(what, NEW) == START_MS + 1000 * (MAX_JOB_AGE_S + JOB_RESULT_S)
    early = ended(NEW, outcome(JobStatus.SUCCEEDED))
    assert expires_at_ms(what, early) == START_MS + 1000 * JOB_RESULT_S
    assert not overdue(what, START_MS + 1000 * MAX_JOB_AGE_S - 1)
    assert overdue(what, START_MS + 1000 * MAX_JOB_AGE_S)


def test_an_idempotency_key_means_one_id_per_caller() -> None:
    assert id_of_key("k", "order-7") == id_of_key("k", "order-7")
    assert (
        len({id_of_key("k", "order-7"), id_of_key("k", "order-8"), id_of_key("", "order-7")}) == 3
    )
    assert len(random_id(bytes(16))) == len(id_of_key("", "")) == 26


def test_of_two_calls_with_one_id_the_same_ones_have_one_fingerprint() -> None:
    assert job("a", created_at_ms=1, accepted_by="x").fingerprint == job("a").fingerprint
    for other in (
        job("a", path="/other"), job("a", query="q"), job("a", key_id="k"), job("a", body_sha256=b"1" * 32),
        job("a", headers=(("content-type", "text/plain"),)),
    ):  # fmt: skip
        assert other.fingerprint != job("a").fingerprint
