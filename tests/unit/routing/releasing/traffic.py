"""Virtual traffic of two versions: what gateways would have counted at each moment at which the gates are tried."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from meshnode.rollout import BUCKETS_PER_OCTAVE, LAST_BUCKET, LEAST_RUN_MS
from meshnode.routing.releasing.evidence import Cell
from meshnode.routing.releasing.progress import LEAST_SEEN, LOOK_GROWTH, Ready, advance, begin
from meshnode.state.release import Gate, Release, Step

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from meshnode.rollout import Progress

REVISION = (1, 0)
OLD, NEW = 1, 2

GATES = (Gate("errors", 0.01), Gate("latency_p50", 1.25), Gate("latency_p99", 1.5))


def plan(*shares: float, mirror: float = 0.0, gates: tuple[Gate, ...] = GATES) -> Release:
    """Return a plan whose steps last until 100 answers of the new version were seen."""
    steps = tuple(Step(share, mirror, hold_s=1.0) for share in shares)
    return Release("canary", OLD, NEW, steps, gates, min_requests=100)


@dataclass(frozen=True)
class Version:
    """How one version behaves.

    Attributes:
        slower: Factor of its run times.
        errors: Share of its requests that fail, by class of devices in their order; the last for all others.
        differs: Share of its answers that are not the old version's.
    """

    slower: float = 1.0
    errors: tuple[float, ...] = (0.001,)
    differs: float = 0.0

    def errors_on(self, classes: int) -> tuple[float, ...]:
        """Return the share of errors on each class."""
        return tuple(self.errors[min(each, len(self.errors) - 1)] for each in range(classes))


@dataclass(frozen=True)
class World:
    """What both versions meet with.

    Attributes:
        classes: Median run time by class of devices, in milliseconds.
        weights: Of the requests, by class.
        sigma: Spread of the logarithm of run times.
        drift: Factor by which run times grow until the end.
        bursts: Share of the time in which all run times are three times as long and one request in ten fails.
    """

    classes: tuple[float, ...] = (20.0,)
    weights: tuple[float, ...] = (1.0,)
    sigma: float = 0.5
    drift: float = 1.0
    bursts: float = 0.0


class Traffic:
    """The answers of one step, in their order, counted on as far as one asks."""

    def __init__(
        self, step: Step, world: World, new: Version, answers: int, rng: np.random.Generator
    ) -> None:
        """Draw so many answers of the new version, and those of the old one beside them."""
        self._classes = len(world.classes)
        self._mirrors = step.share == 0
        share = step.share or step.mirror
        total = round(answers / share)
        is_new = rng.random(total) < share
        device = rng.choice(self._classes, total, p=world.weights)
        in_burst = (rng.random(total // 200 + 1) < world.bursts)[np.arange(total) // 200]
        pace = world.drift ** np.linspace(0.0, 1.0, total) * np.where(in_burst, 3.0, 1.0)
        pace *= np.array(world.classes)[device]
        # A mirrored request is answered by both, any other one by one of them.
        old = np.flatnonzero(np.ones(total, bool) if self._mirrors else ~is_new)
        new_places = np.flatnonzero(is_new)
        self._places = np.concatenate([old, new_places])
        arm = np.repeat([0, 1], [len(old), len(new_places)])
        errors = np.array([Version().errors * self._classes, new.errors_on(self._classes)])
        device, in_burst = device[self._places], in_burst[self._places]
        run_ms = pace[self._places] * np.where(arm, new.slower, 1.0)
        run_ms *= np.exp(world.sigma * rng.standard_normal(len(arm)))
        bucket = np.floor(BUCKETS_PER_OCTAVE * np.log2(run_ms / LEAST_RUN_MS)).clip(0, LAST_BUCKET)
        failed = rng.random(len(arm)) < errors[arm, device] + 0.1 * in_burst
        differs = rng.random(len(arm)) < new.differs
        column = np.where(failed, 0, bucket.astype(int) + 1)
        order = np.argsort(self._places, kind="stable")
        self._places, self._differs = self._places[order], (differs & (arm == 1))[order]
        self._where = ((arm * self._classes + device) * _COLUMNS + column)[order]
        self._new_places = new_places
        self._counted = 0
        self._counts = np.zeros(2 * self._classes * _COLUMNS, int)
        self._device_differs = np.zeros(self._classes, int)
        self._device = device[order]
        self.answers = len(new_places)

    def cells_at(self, answers: int) -> dict[tuple[int, str], Cell]:
        """Return what was counted when the new version had answered so often; never fewer than before."""
        end = int(np.searchsorted(self._places, self._new_places[answers - 1], side="right"))
        piece = slice(self._counted, end)
        self._counted = end
        self._counts += np.bincount(self._where[piece], minlength=len(self._counts))
        self._device_differs += np.bincount(
            self._device[piece], self._differs[piece], minlength=self._classes
        ).astype(int)
        table = self._counts.reshape(2, self._classes, _COLUMNS)
        cells = {}
        for device in range(self._classes):
            cells[OLD, f"d{device}"] = _cell(table[0, device])
            new = _cell(table[1, device])
            if self._mirrors:
                differ = int(self._device_differs[device])
                new = new._replace(compared=new.requests, agreed=new.requests - differ)
            cells[NEW, f"d{device}"] = new
        return cells


_COLUMNS = LAST_BUCKET + 2  # failures, then the buckets


def _cell(counts: NDArray[np.int64]) -> Cell:
    places = np.flatnonzero(counts[1:])
    run_times = dict(zip(places.tolist(), counts[1:][places].tolist(), strict=True))
    return Cell(int(counts.sum()), int(counts[0]), run_times)


def tries(answers: int) -> Iterator[int]:
    """Yield how many answers of the new version there are at each try of the gates."""
    seen = LEAST_SEEN
    while seen <= answers:
        yield seen
        seen = int(np.ceil(seen * LOOK_GROWTH))


def released(
    release: Release, world: World, new: Version, *, seed: int, answers: int = 2000
) -> tuple[Progress, int]:
    """Drive a release until it is settled; every step lasts until so many answers of the new version.

    Returns:
        How it came out, and after how many answers of the new version in all.
    """
    progress, _ = step_on(release, begin(REVISION, 0), {}, 0)
    total = 0
    for number, step in enumerate(release.steps):
        traffic = Traffic(step, world, new, answers, np.random.default_rng([seed, number]))
        for seen in tries(traffic.answers):
            # The step's time is over at its end alone.
            progress, _ = step_on(release, progress, traffic.cells_at(seen), progress.since_ms)
            if progress.phase == "rolled_back":
                return progress, total + seen
        cells = traffic.cells_at(traffic.answers)
        progress, _ = step_on(release, progress, cells, progress.since_ms + 1000)
        total += answers
        if progress.phase != ("running" if number + 1 < len(release.steps) else "keeping"):
            return progress, total
    return progress, total


def step_on(
    release: Release, progress: Progress, cells: dict[tuple[int, str], Cell], now_ms: int
) -> tuple[Progress, list[str]]:
    """Look once, with all replicas ready and no order."""
    progress, decided = advance(
        progress,
        release,
        revision=REVISION,
        order=None,
        ready=Ready(1, 1, 1),
        trouble="",
        cells=cells,
        now_ms=now_ms,
    )
    return progress, [each.kind for each in decided]
