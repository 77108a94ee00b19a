"""What a node counts of its jobs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meshnode import metric_catalogue as catalogue
from meshnode.jobs.job import JobStatus
from meshnode.metrics import Counter, Gauge, Metric, single

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from meshnode.daemon.jobs import Jobs
    from meshnode.metric_catalogue import MetricSpec


def job_metrics(jobs: Jobs) -> Iterator[Metric]:
    """Return them with their present values."""
    kept = Gauge.of(catalogue.JOBS)
    states = dict.fromkeys(JobStatus, 0)
    for held in jobs.book.held.values():
        states[held.state.status] += 1
    for status, count in states.items():
        kept.set((str(status),), count)
    yield kept
    yield single(catalogue.JOBS_BYTES, jobs.book.size_bytes)
    yield _counted(catalogue.JOB_RUNS, jobs.ended)
    yield _counted(catalogue.JOB_WEBHOOKS, jobs.webhooks)
    yield _counted(catalogue.JOB_QUESTIONS, jobs.answers.outcomes)


def _counted(spec: MetricSpec, values: Mapping[str, int]) -> Counter:
    counter = Counter.of(spec)
    for label, value in values.items():
        counter.add((label,), value)
    return counter
