"""What a version has done, in the terms of Triton's statistics extension.

A request is counted once, when it is answered: as success, with its time from arrival to answer, or as
failure. An execution is one run of the model, however many requests were joined for it; its rows are the
inferences, or its requests where the first dimension is no batch. What failed is no inference. The three compute times are those of the execution that a request was part of, so that their
sum over requests exceeds the time that the model was busy where requests are joined: `batches` has that
by batch size.

What several nodes have counted of one version adds up (`summed`), so a mesh's statistics are sums of its nodes'.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from meshnode.limits import MAX_COUNTED_BATCH_SIZES

if TYPE_CHECKING:
    from collections.abc import Iterable

_NS: Final = 1e9


@dataclass(frozen=True, slots=True)
class Duration:
    """How often something happened, and its time in all."""

    count: int = 0
    ns: int = 0


@dataclass(frozen=True, slots=True)
class BatchStatistics:
    """Executions of one batch size: the size in rows, and each execution's times."""

    batch_size: int
    compute_input: Duration
    compute_infer: Duration
    compute_output: Duration


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionStatistics:
    """One version on one node, since it was loaded.

    Attributes:
        last_inference_s: When it last ran, in the seconds of the replica's timer; 0 for never.
        inference_count: Rows that were executed and answered; requests, of a model whose `max_batch_size` is 0.
        execution_count: Runs of the model that answered.
        success: Requests that were answered, from arrival to answer.
        fail: Requests that were not, late and cancelled ones too; those that were refused at once, for
            their form or a full queue, are not counted.
        queue: Waiting for a place in a batch.
        compute_input: Joining requests to a batch.
        compute_infer: Running the model.
        compute_output: Cutting a batch's outputs into answers.
        cache_hit: Answers that came from the response cache.
        cache_miss: Answers that were looked for in the response cache and not found.
        batches: By batch size, ascending.
    """

    last_inference_s: float
    inference_count: int
    execution_count: int
    success: Duration
    fail: Duration
    queue: Duration
    compute_input: Duration
    compute_infer: Duration
    compute_output: Duration
    cache_hit: Duration
    cache_miss: Duration
    batches: tuple[BatchStatistics, ...]


TIMES: Final = (
    "success", "fail", "queue", "compute_input", "compute_infer", "compute_output", "cache_hit", "cache_miss",
)  # fmt: skip
"""The durations of `VersionStatistics` and `ModelStatistics`, in the order in which they travel."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelStatistics:
    """One version, on one node or on several together; the fields are those of `VersionStatistics`.

    Attributes:
        last_inference_ms: When it last ran, in milliseconds since the Unix epoch; 0 for never.
    """

    model: str
    version: int
    last_inference_ms: int
    inference_count: int
    execution_count: int
    success: Duration
    fail: Duration
    queue: Duration
    compute_input: Duration
    compute_infer: Duration
    compute_output: Duration
    cache_hit: Duration
    cache_miss: Duration
    batches: tuple[BatchStatistics, ...]


def summed(counted: Iterable[ModelStatistics]) -> list[ModelStatistics]:
    """Return the sums of what several nodes counted, by model and version in ascending order."""
    sums: dict[tuple[str, int], ModelStatistics] = {}
    for each in counted:
        key = (each.model, each.version)
        known = sums.get(key)
        sums[key] = each if known is None else _together(known, each)
    return [sums[key] for key in sorted(sums)]


def _together(one: ModelStatistics, other: ModelStatistics) -> ModelStatistics:
    sizes = {each.batch_size: each for each in one.batches}
    for each in other.batches:
        known = sizes.get(each.batch_size)
        sizes[each.batch_size] = each if known is None else BatchStatistics(
            each.batch_size,
            _plus(known.compute_input, each.compute_input),
            _plus(known.compute_infer, each.compute_infer),
            _plus(known.compute_output, each.compute_output),
        )  # fmt: skip
    times = {name: _plus(getattr(one, name), getattr(other, name)) for name in TIMES}
    return ModelStatistics(
        model=one.model,
        version=one.version,
        last_inference_ms=max(one.last_inference_ms, other.last_inference_ms),
        inference_count=one.inference_count + other.inference_count,
        execution_count=one.execution_count + other.execution_count,
        batches=tuple(sizes[size] for size in sorted(sizes)),
        **times,
    )


def _plus(one: Duration, other: Duration) -> Duration:
    return Duration(one.count + other.count, one.ns + other.ns)


class _Sum:
    """A count and its seconds."""

    __slots__ = ("count", "seconds")

    def __init__(self) -> None:
        self.count = 0
        self.seconds = 0.0

    def add(self, seconds: float, count: int = 1) -> None:
        self.count += count
        self.seconds += seconds * count

    def duration(self) -> Duration:
        return Duration(self.count, round(self.seconds * _NS))


class _Size:
    """Executions of one batch size."""

    __slots__ = ("alone", "alone_s", "executions", "infer_s", "input_s", "output_s", "rows")

    def __init__(self) -> None:
        self.alone = 0  # runs on the event loop: the fast path, so that it adds two numbers only
        self.alone_s = 0.0
        self.executions = 0
        self.rows = 0
        self.input_s = 0.0
        self.infer_s = 0.0
        self.output_s = 0.0


class Statistics:
    """Counts what a version does; one per replica."""

    __slots__ = (
        "_cache_hit",
        "_cache_miss",
        "_compute",
        "_fail",
        "_queue",
        "_sizes",
        "_success",
        "last_s",
    )

    def __init__(self) -> None:
        """Start at nothing."""
        self.last_s = 0.0
        self._sizes: dict[int, _Size] = {}
        self._success = _Sum()
        self._fail = _Sum()
        self._queue = _Sum()
        self._compute = (_Sum(), _Sum(), _Sum())
        self._cache_hit = _Sum()
        self._cache_miss = _Sum()

    def __repr__(self) -> str:
        return f"<Statistics {self.snapshot().success.count} answered>"

    def ran_alone(self, rows: int, elapsed_s: float, ended: float) -> None:
        """Count a request that ran by itself as soon as it came, and was answered."""
        size = self._sizes.get(rows)
        if size is None:
            size = self._size(rows)
        size.alone += 1
        size.alone_s += elapsed_s
        self.last_s = ended

    def ran(
        self, rows: int, *, input_s: float, infer_s: float, output_s: float, ended: float
    ) -> None:
        """Count an execution of so many rows."""
        size = self._size(rows)
        size.executions += 1
        size.rows += rows
        size.input_s += input_s
        size.infer_s += infer_s
        size.output_s += output_s
        self.last_s = ended

    def answered(
        self, elapsed_s: float, queued_s: float, compute_s: tuple[float, float, float]
    ) -> None:
        """Count an answer: its time, how long it waited, and its execution's three compute times."""
        self._success.add(elapsed_s)
        self._queue.add(queued_s)
        for total, seconds in zip(self._compute, compute_s, strict=True):
            total.add(seconds)

    def failed(self, elapsed_s: float) -> None:
        """Count a request that was not answered."""
        self._fail.add(elapsed_s)

    def cache_hit(self, elapsed_s: float) -> None:
        """Count an answer of the response cache, which is a success too."""
        self._cache_hit.add(elapsed_s)
        self._success.add(elapsed_s)

    def cache_miss(self, elapsed_s: float) -> None:
        """Count a look into the response cache that found nothing."""
        self._cache_miss.add(elapsed_s)

    def snapshot(self) -> VersionStatistics:
        """Return all that was counted."""
        alone = sum(size.alone for size in self._sizes.values())
        alone_s = sum(size.alone_s for size in self._sizes.values())
        alone_rows = sum(size.alone * rows for rows, size in self._sizes.items())
        compute_input, compute_infer, compute_output = self._compute
        return VersionStatistics(
            last_inference_s=self.last_s,
            inference_count=alone_rows + sum(size.rows for size in self._sizes.values()),
            execution_count=alone + sum(size.executions for size in self._sizes.values()),
            success=_with(self._success, alone, alone_s),
            fail=self._fail.duration(),
            queue=_with(self._queue, alone, 0.0),
            compute_input=_with(compute_input, alone, 0.0),
            compute_infer=_with(compute_infer, alone, alone_s),
            compute_output=_with(compute_output, alone, 0.0),
            cache_hit=self._cache_hit.duration(),
            cache_miss=self._cache_miss.duration(),
            batches=tuple(_batch(rows, self._sizes[rows]) for rows in sorted(self._sizes)),
        )

    def _size(self, rows: int) -> _Size:
        """Return the counts of a batch size, of the next power of two if there are too many sizes."""
        if rows not in self._sizes and len(self._sizes) >= MAX_COUNTED_BATCH_SIZES:
            rows = 1 << max(0, rows - 1).bit_length()
        size = self._sizes.get(rows)
        if size is None:
            size = self._sizes[rows] = _Size()
        return size


def _with(counted: _Sum, alone: int, alone_s: float) -> Duration:
    return Duration(counted.count + alone, round((counted.seconds + alone_s) * _NS))


def _batch(rows: int, size: _Size) -> BatchStatistics:
    count = size.executions + size.alone
    return BatchStatistics(
        rows,
        Duration(count, round(size.input_s * _NS)),
        Duration(count, round((size.infer_s + size.alone_s) * _NS)),
        Duration(count, round(size.output_s * _NS)),
    )
