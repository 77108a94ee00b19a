"""What gateways see of a release: answers of both versions, counted apart for each class of devices.

A gateway counts in an `EvidenceBook` from the moment at which it follows a step, and tells all of it (`snapshot`) in its
own state. The steward adds up what all gateways tell of the step that counts (`merged`). Both versions are counted over
the same time therefore, by the same gateways, and what a dead steward knew its successor knows.

Run times are counted in buckets of `meshnode.rollout.BUCKETS_PER_OCTAVE` to a factor of two. Where they would take more
than `MAX_EVIDENCE_BUCKETS`, the two neighbours that hold the least become one, at the place of the fuller: quantiles
move by no more than such a pair holds.
"""

from __future__ import annotations

import math
from hashlib import blake2b
from itertools import pairwise
from typing import TYPE_CHECKING, Final, NamedTuple

from meshnode.limits import (
    MAX_DEVICE_CLASSES,
    MAX_EVIDENCE_BUCKETS,
    MAX_EVIDENCE_CLASSES,
    MAX_EVIDENCE_COUNT,
    MAX_EVIDENCE_DEVICE_BYTES,
    MAX_EVIDENCE_METRICS,
    MAX_GATE_NAME_LENGTH,
    MAX_MEASURED,
)
from meshnode.rollout import BUCKETS_PER_OCTAVE, LAST_BUCKET, LEAST_RUN_MS, CellWord, Evidence

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from meshnode.rollout import Progress
    from meshnode.state.release import Release

BUILT_IN: Final = frozenset({"errors", "latency_p50", "latency_p90", "latency_p99", "agreement"})
"""Metrics that gateways see by themselves; all others come with people's feedback."""

_DIGEST_BYTES: Final = 4


class Moments(NamedTuple):
    """The amounts of a metric.

    Attributes:
        number: How many.
        mean: Of them.
        m2: Sum of their squared differences from it.
    """

    number: int = 0
    mean: float = 0.0
    m2: float = 0.0

    def __add__(self, other: tuple[object, ...]) -> Moments:
        """Return those of both (Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm", 1979)."""
        if not isinstance(other, Moments):
            return NotImplemented
        number = self.number + other.number
        if not number:
            return self
        apart = other.mean - self.mean
        mean = self.mean + apart * other.number / number
        m2 = self.m2 + other.m2 + apart * apart * self.number * other.number / number
        return Moments(number, mean, m2)

    @property
    def variance(self) -> float:
        """Of the amounts, as a sample's; 0 for fewer than two."""
        return max(0.0, self.m2) / (self.number - 1) if self.number > 1 else 0.0


class Cell(NamedTuple):
    """What was seen of one version on one class of devices, or on several together.

    Attributes:
        requests: Answers and failures.
        errors: Failures of these.
        run_times: Number of answers by bucket.
        compared: Answers that were compared.
        agreed: Of these.
        metrics: Of people's feedback, by name.
    """

    requests: int = 0
    errors: int = 0
    run_times: Mapping[int, int] = {}
    compared: int = 0
    agreed: int = 0
    metrics: Mapping[str, Moments] = {}

    def __add__(self, other: tuple[object, ...]) -> Cell:
        """Return what was seen in both."""
        if not isinstance(other, Cell):
            return NotImplemented
        run_times = dict(self.run_times)
        for bucket, count in other.run_times.items():
            run_times[bucket] = run_times.get(bucket, 0) + count
        metrics = dict(self.metrics)
        for name, moments in other.metrics.items():
            metrics[name] = metrics.get(name, Moments()) + moments
        return Cell(
            self.requests + other.requests,
            self.errors + other.errors,
            run_times,
            self.compared + other.compared,
            self.agreed + other.agreed,
            metrics,
        )


Cells = dict[tuple[int, str], Cell]
"""By version and class of devices."""


def bucket_of(run_ms: float) -> int:
    """Return the bucket that a run time in milliseconds, above 0, is counted in."""
    if run_ms >= milliseconds_at(LAST_BUCKET):
        return LAST_BUCKET
    octaves = math.log2(max(run_ms, LEAST_RUN_MS) / LEAST_RUN_MS)
    return int(octaves * BUCKETS_PER_OCTAVE)


def milliseconds_at(place: float) -> float:
    """Return the run time at a place on the buckets' scale: at a whole number the lower edge of that bucket."""
    return float(LEAST_RUN_MS * 2.0 ** (place / BUCKETS_PER_OCTAVE))


def class_word(device: str) -> str:
    """Return a class of devices as evidence names it: the same everywhere, and short."""
    encoded = device.encode(errors="replace")
    if len(encoded) <= MAX_EVIDENCE_DEVICE_BYTES:
        return encoded.decode()
    digest = blake2b(encoded, digest_size=_DIGEST_BYTES).hexdigest()
    beginning = encoded[: MAX_EVIDENCE_DEVICE_BYTES - len(digest) - 1].decode(errors="ignore")
    return f"{beginning}~{digest}"


def feedback_metrics(release: Release) -> tuple[str, ...]:
    """Return the metrics of people's feedback that a release has gates on."""
    return tuple(gate.metric for gate in release.gates if gate.metric not in BUILT_IN)


class _Counts:
    """A cell that is being counted."""

    __slots__ = ("agreed", "compared", "errors", "metrics", "requests", "run_times")

    def __init__(self) -> None:
        self.requests = 0
        self.errors = 0
        self.run_times: dict[int, int] = {}
        self.compared = 0
        self.agreed = 0
        self.metrics: dict[str, Moments] = {}

    def ran(self, run_ms: float) -> None:
        bucket = bucket_of(run_ms)
        self.run_times[bucket] = self.run_times.get(bucket, 0) + 1
        if len(self.run_times) > MAX_EVIDENCE_BUCKETS:
            self._join_least()

    def _join_least(self) -> None:
        buckets = sorted(self.run_times)
        counts = self.run_times
        lower, upper = min(pairwise(buckets), key=lambda two: counts[two[0]] + counts[two[1]])
        kept, gone = (lower, upper) if counts[lower] > counts[upper] else (upper, lower)
        counts[kept] += counts.pop(gone)


class EvidenceBook:
    """What one gateway has seen of one release since the step that it follows began."""

    def __init__(self) -> None:
        """Count nothing until a step is followed."""
        self._revision = (0, 0)
        self._step: int | None = None
        self._versions: frozenset[int] = frozenset()
        self._classes: dict[str, str] = {}
        self._metrics: list[str] = []
        self._cells: dict[tuple[int, str], _Counts] = {}
        self.is_dirty = False

    def __repr__(self) -> str:
        requests = sum(counts.requests for counts in self._cells.values())
        return f"<EvidenceBook: step {self._step}, {requests} answers in {len(self._cells)} cells>"

    def follow(self, release: Release, progress: Progress) -> bool:
        """Count for the step that counts now; return whether it is another one than before.

        While the new version answers all requests, what the old one did in the step before is kept, to compare with.
        """
        step = progress.watched_step
        if (progress.revision, step) == (self._revision, self._step):
            return False
        kept = None
        if progress.share(release) >= 1 and progress.revision == self._revision:
            kept = release.baseline
        self.begin(
            progress.revision,
            step,
            versions=(release.baseline, release.candidate),
            metrics=feedback_metrics(release),
            kept=kept,
        )
        return True

    def begin(
        self,
        revision: tuple[int, int],
        step: int | None,
        *,
        versions: tuple[int, int],
        metrics: tuple[str, ...] = (),
        kept: int | None = None,
    ) -> None:
        """Forget what was counted, and count for another step.

        Args:
            revision: Of the deployment.
            step: Of its release; None to count nothing.
            versions: The two that are counted.
            metrics: Of people's feedback, which have room whatever else is measured.
            kept: A version whose counts are not forgotten.
        """
        self._revision = revision
        self._step = step
        self._versions = frozenset(versions)
        if kept is None:
            self._classes = {}
            self._metrics = list(metrics[:MAX_EVIDENCE_METRICS])
        self._cells = {
            key: counts
            for key, counts in self._cells.items()
            if kept is not None and key[0] == kept
        }
        self.is_dirty = True

    def answered(self, version: int, device: str, run_ms: float, *, failed: bool) -> None:
        """Count an answer, or a failure that is the version's own and not its caller's.

        Args:
            version: Which answered.
            device: Its node's class of devices.
            run_ms: How long the model ran, in milliseconds; 0 if that is not known.
            failed: Whether there is no answer.
        """
        counts = self._counts(version, device)
        if counts is None or counts.requests >= MAX_EVIDENCE_COUNT:
            return
        counts.requests += 1
        if failed:
            counts.errors += 1
        elif run_ms > 0 and math.isfinite(run_ms):
            counts.ran(run_ms)

    def compared(self, version: int, device: str, *, agreed: bool) -> None:
        """Count an answer of a version that was compared with what it should be."""
        counts = self._counts(version, device)
        if counts is None or counts.compared >= MAX_EVIDENCE_COUNT:
            return
        counts.compared += 1
        counts.agreed += agreed

    def measured(self, version: int, device: str, metric: str, value: float) -> None:
        """Count an amount that people's feedback has given an answer; what is no number is not counted."""
        counts = self._counts(version, device)
        if counts is None or not math.isfinite(value) or not self._has_room_for(metric):
            return
        so_far = counts.metrics.get(metric, Moments())
        if so_far.number < MAX_EVIDENCE_COUNT:
            amount = min(MAX_MEASURED, max(-MAX_MEASURED, float(value)))
            counts.metrics[metric] = so_far + Moments(1, amount)

    def snapshot(self) -> Evidence | None:
        """Return what is to be told now; None while no step is followed."""
        self.is_dirty = False
        if self._step is None:
            return None
        places = {name: place for place, name in enumerate(self._metrics)}
        cells = tuple(
            CellWord(
                version,
                device,
                counts.requests,
                counts.errors,
                tuple(sorted(counts.run_times.items())),
                counts.compared,
                counts.agreed,
                tuple(sorted((places[name], *each) for name, each in counts.metrics.items())),
            )
            for (version, device), counts in sorted(self._cells.items())
        )
        return Evidence(self._revision, self._step, tuple(self._metrics), cells)

    def _counts(self, version: int, device: str) -> _Counts | None:
        if self._step is None or version not in self._versions:
            return None
        self.is_dirty = True
        key = (version, self._class_of(device))
        counts = self._cells.get(key)
        if counts is None:
            counts = self._cells[key] = _Counts()
        return counts

    def _class_of(self, device: str) -> str:
        word = self._classes.get(device)
        if word is None:
            if not device or len(self._classes) >= MAX_EVIDENCE_CLASSES - 1:
                return ""
            word = self._classes[device] = class_word(device)
        return word

    def _has_room_for(self, metric: str) -> bool:
        if metric in self._metrics:
            return True
        is_name = metric.isprintable() and 0 < len(metric.encode()) <= MAX_GATE_NAME_LENGTH
        if not is_name or metric in BUILT_IN or len(self._metrics) >= MAX_EVIDENCE_METRICS:
            return False
        self._metrics.append(metric)
        return True


def merged(evidences: Iterable[Evidence], revision: tuple[int, int], step: int | None) -> Cells:
    """Return what all gateways have seen of one step of a release; what they tell of others is left out.

    Args:
        evidences: What each of them tells.
        revision: Of the deployment.
        step: Of its release; None for none.
    """
    cells: Cells = {}
    for evidence in evidences:
        if (evidence.revision, evidence.step) != (revision, step):
            continue
        for told in evidence.cells:
            key = (told.version, told.device)
            if key not in cells and len(cells) >= 2 * MAX_DEVICE_CLASSES:
                key = (told.version, "")
            cells[key] = cells.get(key, Cell()) + _cell(told, evidence.metrics)
    return cells


def _cell(told: CellWord, names: tuple[str, ...]) -> Cell:
    metrics = {
        names[place]: Moments(count, mean, m2)
        for place, count, mean, m2 in told.metrics
        if place < len(names) and abs(mean) <= MAX_MEASURED and 0 <= m2 < math.inf
    }
    return Cell(
        told.requests,
        min(told.errors, told.requests),
        dict(told.run_times),
        told.compared,
        min(told.agreed, told.compared),
        metrics,
    )
