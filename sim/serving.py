"""A virtual device that serves models: fetches, loads, runs and unloads them in virtual time.

It stands where the daemon has its artifacts and its model server, with their rules: files come from
a linked peer that has them and stay on disk; a replica that is about to go answers for a grace and
then finishes what it has; each version has slots and a bounded queue before them, first come first
served, and refuses at once what would wait too long (`meshnode.models.serving.shedding`). How long things take is a `ModelBehaviour`, divided by the device's speed.

A host is told of things through its methods and answers with effects; `Told` is what it tells its
own node.
"""

from __future__ import annotations

import hashlib
import math
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

from msgspec import structs

from meshnode.advertisement import ModelLoad, NodeLoad
from meshnode.effects import Effect, StartTimer
from meshnode.errors import DeadlineExceeded, InferenceFailed, NotServing, Saturated
from meshnode.events import Event
from meshnode.models.manifest import FileEntry, Manifest, TensorSpec
from meshnode.models.serving.run_average import RunAverage
from meshnode.models.serving.shedding import check_in_time, expected_wait_s, is_too_late
from meshnode.node_events import ReplicaChanged, ReplicaGone
from meshnode.sim.serving_faults import ServingFaults
from meshnode.types import DataType, NodeId, Priority, ReplicaState
from meshnode.wire.messages import LoadReport

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

    from meshnode.sim.model_behaviour import Library, ModelBehaviour

MAX_WAITING: Final = 256
"""Requests that may wait for one version, as in the real model server."""

UNLOAD_GRACE_S: Final = 1.0
"""Seconds for which a replica that is about to go still answers, as in the real daemon."""

ENVELOPE_BYTES: Final = 200
"""What a request and an answer take beside their bodies: frames, names, records, TCP and IP, about."""

_FREE_MEMORY_BYTES: Final = 8 * 1024**3


@dataclass(frozen=True, slots=True)
class Told(Effect):
    """Something happened here that this node itself is to be told."""

    event: Event


@dataclass(frozen=True, slots=True)
class Answered(Event):
    """A try is over: `code` is empty for an answer, else that of the error."""

    server: NodeId
    number: int
    attempt: int
    code: str
    report: LoadReport | None
    size_bytes: int = ENVELOPE_BYTES
    retry_after_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Asked(Event):
    """A gateway wants a model run."""

    gateway: NodeId
    number: int
    attempt: int
    model: str
    version: int
    work_s: float | None = None  # on a device of speed 1; None: as the model behaves
    size_bytes: int = ENVELOPE_BYTES
    answer_bytes: int = ENVELOPE_BYTES
    timeout_s: float = math.inf
    priority: Priority = Priority.NORMAL


@dataclass(frozen=True, slots=True)
class Reply(Effect):
    """Bring this to the gateway that asked."""

    to: NodeId
    answered: Answered


@dataclass(frozen=True, slots=True)
class HostTimer:
    """A step of a load or an unload, or the end of a run, is due."""

    step: str
    model: str
    version: int
    asked: Asked | None = None
    source: NodeId | None = None
    run_s: float = 0.0


class _Waiting(NamedTuple):
    """A request in a queue, and when nobody waits for it any more."""

    asked: Asked
    until: float


@dataclass(eq=False, slots=True)
class _Served:
    """A model version on a host."""

    manifest: Manifest
    behaviour: ModelBehaviour
    slots: int
    run_ms: RunAverage
    deployed: bool
    holders: tuple[NodeId, ...] = ()
    is_ready: bool = False
    is_draining: bool = False
    running: int = 0
    failing: int = 0  # runs in a row
    fail_share: float = 0.0  # of its requests, by the model's own fault
    queue: deque[_Waiting] = field(default_factory=deque)

    @property
    def service_ms(self) -> float:
        """Its runs' average time."""
        return self.run_ms.mean

    def report(self) -> LoadReport:
        in_system = self.running + len(self.queue)
        return LoadReport(in_system, self.slots, self.service_ms, failing=self.failing)


class Host:
    """One boot of a device's model server."""

    def __init__(
        self,
        node: NodeId,
        speed: float,
        files: set[str],
        library: Library,
        rng: random.Random,
        *,
        now: Callable[[], float] = lambda: 0.0,
        slots: int | None = None,
        faults: ServingFaults | None = None,
        sheds: bool = True,
        device_class: str = "",
    ) -> None:
        """Serve nothing yet.

        Args:
            node: Its node.
            speed: Of the device; 2 halves all run times.
            files: Digests of the models on its disk; kept across boots by the caller.
            library: Shared by all hosts; this one enters itself.
            rng: Draws run times, and which requests fail.
            now: The seconds of the world.
            slots: Runs of one version at once; None for what the model's behaviour says.
            faults: What is wrong with it; kept across boots by the caller.
            sheds: Whether it refuses requests that it expects to be late, by its average run.
            device_class: Of the device, as the scenario calls it.
        """
        self.node = node
        self.files = files
        self.fetched = 0
        """Models whose files it has fetched since it booted."""
        self.loaded: list[tuple[str, int]] = []
        """Versions that it has begun to load since it booted, in order."""
        self.faults = faults or ServingFaults()
        self.refusing = ""
        """Why it takes no requests at present, or empty: its owner's limits."""
        self._device_class = device_class
        self._full_speed = speed
        self._slots = slots
        self._now = now
        self._sheds = sheds
        self._busy = 0  # runs
        self._busy_since = now()
        self._busy_s = 0.0
        self._library = library
        self._rng = rng
        self._served: dict[tuple[str, int], _Served] = {}
        self._coming: dict[tuple[str, int], _Served] = {}  # other files of what is served
        library.hosts[node] = self

    def __repr__(self) -> str:
        return f"<Host {self.node[:8]} serves {self.serving()}>"

    @property
    def speed(self) -> float:
        """How fast it is at present; 2 halves all run times."""
        return self._full_speed / self.faults.slowness

    @property
    def busy_s(self) -> float:
        """Seconds that its slots have worked since it booted, added up."""
        return self._busy_s + self._busy * (self._now() - self._busy_since)

    @property
    def has_models(self) -> bool:
        """Whether any model is here, ready or not."""
        return bool(self._served)

    @property
    def in_system(self) -> int:
        """Requests that run or wait."""
        return sum(served.running + len(served.queue) for served in self._served.values())

    @property
    def slots(self) -> int:
        """Slots of all versions that are ready."""
        return sum(served.slots for served in self._served.values() if served.is_ready)

    def serving(self) -> list[tuple[str, int]]:
        """Return the versions that are ready here, sorted."""
        return sorted(key for key, served in self._served.items() if served.is_ready)

    def load(
        self, manifest: Manifest, holders: tuple[NodeId, ...] = (), *, deployed: bool = True
    ) -> list[Effect]:
        """Begin to fetch, if need be, and load a version; other files of it serve until it is ready."""
        digest = manifest.digest
        behaviour = self._library.behaviour(digest)
        service_ms = 1000 * behaviour.service_s * behaviour.slowness / self.speed
        key = (manifest.model, manifest.version)
        assert key not in self._coming, f"{key} is on its way already"
        slots = self._slots or behaviour.slots
        place = self._coming if key in self._served else self._served
        served = _Served(manifest, behaviour, slots, RunAverage(service_ms), deployed, holders)
        served.fail_share = behaviour.failing_on(self._device_class)
        place[key] = served
        if not deployed:
            self.files.add(digest)
        return self._load_or_fetch(key)

    def unload(self, model: str, version: int) -> list[Effect]:
        """Begin to take a version out of service, after a grace."""
        return [StartTimer(HostTimer("unload", model, version), UNLOAD_GRACE_S)]

    def due(self, timer: HostTimer) -> list[Effect]:
        """Take the next step of what a timer was started for."""
        key = (timer.model, timer.version)
        served = self._being_loaded(key)
        if timer.step == "run":
            assert timer.asked is not None
            return self._run_ended(key, timer.asked, 1000 * timer.run_s)
        if timer.step == "unload":
            served = self._served.get(key)
            if served is None:  # it failed to load
                return [Told(ReplicaGone(*key))]
            served.is_draining = True
            return self._gone_if_idle(key)
        assert served is not None
        if timer.step == "fetched":
            source = self._library.hosts.get(timer.source) if timer.source is not None else None
            if source is not None and served.manifest.digest in source.files:
                self.files.add(served.manifest.digest)
                self.fetched += 1
            return self._load_or_fetch(key)
        return self._loaded(key)

    def ask(self, asked: Asked) -> list[Effect]:
        """Run a model in its turn, or refuse."""
        if self._library.asked is not None:
            self._library.asked(asked.model, asked.version)
        served = self._served.get((asked.model, asked.version))
        if served is None or not served.is_ready or served.is_draining or self.refusing:
            return [self._answer(asked, NotServing.code, None)]
        failing = 1 - (1 - self.faults.failing) * (1 - served.fail_share)
        if failing and self._rng.random() < failing:
            served.failing += 1
            return [self._answer(asked, InferenceFailed.code, served)]
        if served.running < served.slots:
            return self._run(served, asked)
        in_system = served.running + len(served.queue)
        service_s = served.service_ms / 1000
        if len(served.queue) >= MAX_WAITING:
            wait_s = expected_wait_s(in_system, served.slots, service_s)
            return [self._answer(asked, Saturated.code, served, wait_s)]
        try:
            if self._sheds:
                check_in_time(in_system, served.slots, service_s, asked.timeout_s, asked.priority)
        except Saturated as error:
            return [self._answer(asked, error.code, served, error.retry_after_s)]
        served.queue.append(_Waiting(asked, self._now() + asked.timeout_s))
        return []

    def cancel(self, number: int, attempt: int) -> None:
        """Take a request out of the queue; one that runs is run to its end for nobody."""
        for served in self._served.values():
            for waiting in served.queue:
                if (waiting.asked.number, waiting.asked.attempt) == (number, attempt):
                    served.queue.remove(waiting)
                    return

    def load_now(self) -> NodeLoad:
        """Return how busy this host is."""
        models = [self._load_of(served) for served in self._served.values() if served.is_ready]
        return NodeLoad(0.0, _FREE_MEMORY_BYTES, tuple(models))

    def _load_of(self, served: _Served) -> ModelLoad:
        report, manifest = self._report(served), served.manifest
        return ModelLoad(
            manifest.model,
            manifest.version,
            report.in_system,
            report.slots,
            report.service_ms,
            report.failing,
        )

    def load_report(self, model: str, version: int) -> LoadReport | None:
        """Return how busy a replica is, as it says itself; None if it serves nobody."""
        served = self._served.get((model, version))
        return None if served is None else self._report(served)

    def _report(self, served: _Served) -> LoadReport:
        """Return what it says of a version's load."""
        key = (served.manifest.model, served.manifest.version)
        return self.faults.told(key, served.report(), self._now())

    def _being_loaded(self, key: tuple[str, int]) -> _Served | None:
        return self._coming.get(key) or self._served.get(key)

    def _given_up(self, key: tuple[str, int]) -> None:
        if self._coming.pop(key, None) is None:
            del self._served[key]

    def _load_or_fetch(self, key: tuple[str, int]) -> list[Effect]:
        served = self._being_loaded(key)
        assert served is not None
        digest = served.manifest.digest
        if digest in self.files:
            self.loaded.append(key)
            told = self._told(served, ReplicaState.LOADING)
            return [told, StartTimer(HostTimer("loaded", *key), served.behaviour.load_s)]
        source = self._library.source_of(digest, self.node, served.holders)
        if source is None:
            self._given_up(key)
            return [self._told(served, ReplicaState.FAILED, "no node could send its files")]
        fetched = HostTimer("fetched", *key, source=source)
        return [StartTimer(fetched, served.behaviour.fetch_s)]

    def _loaded(self, key: tuple[str, int]) -> list[Effect]:
        served = self._being_loaded(key)
        assert served is not None
        error = self.faults.load_error or served.behaviour.load_error
        if error:
            self._given_up(key)
            return [self._told(served, ReplicaState.FAILED, error)]
        if self._coming.pop(key, None) is not None:  # it takes over, and what runs or waits there
            before = self._served[key]
            served.running, served.queue = before.running, before.queue
            self._served[key] = served
        served.is_ready = True
        return [self._told(served, ReplicaState.READY)]

    def _told(self, served: _Served, state: ReplicaState, reason: str = "") -> Told:
        return Told(
            ReplicaChanged(
                served.manifest, state, reason, served.slots, served.service_ms, served.deployed
            )
        )

    def _run(self, served: _Served, asked: Asked) -> list[Effect]:
        served.running += 1
        self._work(1)
        behaviour = served.behaviour
        work_s = asked.work_s
        if work_s is None:
            spread = behaviour.spread
            factor = self._rng.lognormvariate(-spread * spread / 2, spread)  # its mean is 1
            work_s = behaviour.service_s * factor
        run_s = work_s * behaviour.slowness / self.speed
        timer = HostTimer("run", asked.model, asked.version, asked, run_s=run_s)
        return [StartTimer(timer, run_s)]

    def _run_ended(self, key: tuple[str, int], asked: Asked, run_ms: float) -> list[Effect]:
        served = self._served[key]
        served.run_ms.observe(run_ms)
        served.running -= 1
        served.failing = 0
        self._work(-1)
        effects: list[Effect] = [self._answer(asked, "", served, run_ms=run_ms)]
        while served.queue:
            asked, until = served.queue.popleft()
            remaining_s = until - self._now()
            if remaining_s <= 0:
                effects.append(self._answer(asked, DeadlineExceeded.code, served))
            elif self._is_too_late(served, remaining_s):
                effects.append(self._answer(asked, Saturated.code, served))
            else:
                return effects + self._run(served, asked)
        return effects + self._gone_if_idle(key)

    def _is_too_late(self, served: _Served, remaining_s: float) -> bool:
        """Whether the time of another that waits is better spent than on one with so little left."""
        return (
            self._sheds
            and bool(served.queue)
            and is_too_late(served.service_ms / 1000, remaining_s)
        )

    def _work(self, runs: int) -> None:
        """Count that so many more runs are going on, or fewer."""
        now = self._now()
        self._busy_s += self._busy * (now - self._busy_since)
        self._busy_since = now
        self._busy += runs

    def _gone_if_idle(self, key: tuple[str, int]) -> list[Effect]:
        served = self._served[key]
        if not served.is_draining or served.running:
            return []
        del self._served[key]
        return [Told(ReplicaGone(*key))]

    def _answer(
        self,
        asked: Asked,
        code: str,
        served: _Served | None,
        retry_after_s: float = 0.0,
        run_ms: float = 0.0,
    ) -> Reply:
        report = self._report(served) if served is not None else None
        if report is not None and run_ms > 0:
            report = structs.replace(report, run_ms=run_ms)
        size_bytes = ENVELOPE_BYTES if code else asked.answer_bytes
        answered = Answered(
            self.node, asked.number, asked.attempt, code, report, size_bytes, retry_after_s
        )
        return Reply(asked.gateway, answered)


def sim_manifest(name: str, version: int = 1, content: str = "weights") -> Manifest:
    """Return a model version of one file; other content is another model, with another digest."""
    sha256 = hashlib.sha256(content.encode()).digest()
    spec = TensorSpec("x", DataType.FP32, (-1, 4))
    files = (FileEntry("model.onnx", len(content), sha256),)
    return Manifest(
        name, version, "onnx", "onnxruntime_onnx", (spec,), (spec,), 8, files, "model.onnx"
    )
