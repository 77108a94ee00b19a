"""The models that this node serves: loading, the policy of where a request runs, unloading.

A version's life, as `on_change` tells it:

    load ──> LOADING ──> READY ──unload──> UNLOADING ──> gone
                └──────> FAILED (with its reason) ──unload──> gone

**Where a request runs.** A hand-over to a worker thread costs 60-70 µs, a small ONNX call 5, so a
request that is expected to take less than `inline_limit_s` runs on the event loop itself; all others
run in the version's worker threads (runtimes release the GIL while they compute), behind a bounded
queue (`meshnode.models.slots`). What a request will take is a measured time per unit of work,
times its units: rows where only the first dimension of the inputs is free, elements of all free
dimensions otherwise. Three warm-up runs on zeros measure it before the version is ready, and an
EWMA follows every run after that. Where a version has free dimensions besides the first, zeros of
size 1 say little (a convolution may even refuse them): its time is unknown until its first real
request, which runs in a thread. So it is where the warm-up fails, and for the first few requests
of a model whose work the sizes of its inputs do not tell (`meshnode.models.measure.first_runs`).

**How many threads.** A version whose warm-up takes `spread_limit_s` or more is opened again with one
run spread over all cores, and then runs one request at a time; a shorter one keeps one thread per
run, and as many runs at once as there are cores; one that runs inline has a single slot.

Everything but the runs themselves happens on one event loop.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn, Protocol
from weakref import WeakValueDictionary

from meshnode.errors import DeadlineExceeded, InferenceFailed, MeshError, ModelError, NotServing
from meshnode.limits import MAX_WAITING_RUNS
from meshnode.models.manifest import Manifest, check_request
from meshnode.models.measure import RunTime, first_runs, unit_counter
from meshnode.models.slots import Slots
from meshnode.models.warmup import fits, warm_up
from meshnode.types import InferRequest, InferResponse, ReplicaState, ResponsePart, Tensor
from meshnode.wire.messages import LoadReport

if TYPE_CHECKING:
    from pathlib import Path

    from meshnode.models.runtimes.base import LoadedModel, Runtime

OnChange = Callable[[str, int, ReplicaState, str], None]
"""Told of each change: model, version, new state, reason (empty unless FAILED)."""


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """How requests are run.

    Attributes:
        inline_limit_s: Runs expected to be shorter happen on the event loop. Higher saves
            hand-overs (60-70 µs each) and delays everything else on the loop. 0 (never inline)
            to 0.002.
        spread_limit_s: Runs of this length or longer spread over all cores. Lower trades
            throughput for latency; well above `inline_limit_s`.
        max_waiting: Requests that may wait per version: at 10 ms each, 2.5 s of work; more would
            wait past any patience, and another node can take them.
        warm_up_runs: Runs on zeros before a version is ready; the fastest counts, 1 to 10.
        slots: Requests of one version that run at once, each with one thread, however long they take;
            None lets the warm-up decide. More than there are cores only where runs wait for something
            else than a processor.
    """

    inline_limit_s: float = 500e-6
    spread_limit_s: float = 2e-3
    max_waiting: int = MAX_WAITING_RUNS
    warm_up_runs: int = 3
    slots: int | None = None


@dataclass(frozen=True, slots=True)
class ReplicaStatus:
    """One version on this node, as `states` tells it."""

    manifest: Manifest
    state: ReplicaState
    reason: str = ""


@dataclass(slots=True)
class _Opened:
    """What loading a version yields."""

    model: LoadedModel
    run_time: RunTime
    slots: int


class Workers(Protocol):
    """What runs requests beside the event loop: threads, or what stands for them."""

    def submit(self, work: Callable[..., Any], /, *args: Any) -> object:
        """Run `work(*args)` soon, beside the event loop."""
        ...

    def shutdown(self, wait: bool = True) -> None:
        """Take no more work."""
        ...


class _Replica:
    """A version that is ready, or draining."""

    __slots__ = (
        "load_s", "make_workers", "manifest", "model", "outputs", "pool", "run_time", "slots", "units",
    )  # fmt: skip

    def __init__(
        self,
        manifest: Manifest,
        opened: _Opened,
        max_waiting: int,
        load_s: float,
        make_workers: Callable[[int, str], Workers],
    ) -> None:
        self.make_workers = make_workers
        self.manifest = manifest
        self.load_s = load_s
        self.model = opened.model
        self.run_time = opened.run_time
        self.slots = Slots(opened.slots, max_waiting)
        self.units = unit_counter(manifest)
        self.outputs = tuple(spec.name for spec in manifest.outputs)
        self.pool: Workers | None = None  # an inline version never needs one

    def __repr__(self) -> str:
        return f"<_Replica {self.manifest.model}/{self.manifest.version} {self.slots}>"

    def workers(self) -> Workers:
        """Return the version's threads, started as they are needed."""
        if self.pool is None:
            name = f"{self.manifest.model}-{self.manifest.version}"
            self.pool = self.make_workers(self.slots.count, name)
        return self.pool

    def close(self) -> None:
        """Free the model; nothing runs any more."""
        if self.pool is not None:
            self.pool.shutdown(wait=False)
        self.model.close()


class ModelServer:
    """Serves model versions on this node."""

    def __init__(
        self,
        runtimes: Mapping[str, Runtime],
        *,
        on_change: OnChange | None = None,
        config: ServerConfig | None = None,
        cores: int | None = None,
        timer: Callable[[], float] = time.perf_counter,
        make_workers: Callable[[int, str], Workers] = ThreadPoolExecutor,
    ) -> None:
        """Start with no models.

        Args:
            runtimes: By the name that manifests use.
            on_change: Called on the event loop at each change of a version's state.
            config: How requests are run.
            cores: Processor cores to use; None for all that this process may use.
            timer: Seconds, for measuring runs; called in worker threads too.
            make_workers: Makes what runs a version's requests, of their number and a name.
        """
        self._make_workers = make_workers
        self._runtimes = runtimes
        self._on_change = on_change
        self._config = config or ServerConfig()
        self._cores = cores or available_cores()
        self._timer = timer
        self._status: dict[tuple[str, int], ReplicaStatus] = {}
        self._ready: dict[tuple[str, int], _Replica] = {}
        self._newest: dict[str, _Replica] = {}
        self._draining: dict[tuple[str, int], _Replica] = {}
        self._refusal: tuple[type[MeshError], str] | None = None
        self._locks: WeakValueDictionary[tuple[str, int], asyncio.Lock] = WeakValueDictionary()

    def __repr__(self) -> str:
        return f"<ModelServer ready={len(self._ready)} known={len(self._status)}>"

    def states(self) -> tuple[ReplicaStatus, ...]:
        """Return every version here, failed ones included, by name and version."""
        return tuple(self._status[key] for key in sorted(self._status))

    def newest(self, model: str) -> int | None:
        """Return the highest ready version of a model, or None."""
        replica = self._newest.get(model)
        return replica.manifest.version if replica else None

    def load_report(self, model: str, version: int | None) -> LoadReport:
        """Return how busy a version is.

        Raises:
            NotServing: if it is not ready here.
        """
        replica = self._find(model, version)
        slots = replica.slots
        return LoadReport(
            slots.running + slots.waiting, slots.count, replica.run_time.request_s * 1000
        )

    def load_times(self) -> dict[tuple[str, int], float]:
        """Return how long opening and warming up took, in seconds, of each ready version."""
        return {key: replica.load_s for key, replica in self._ready.items()}

    def refuse(self, error: type[MeshError], reason: str) -> None:
        """Refuse new requests with this error until `accept`; what runs or waits goes on."""
        self._refusal = (error, reason)

    def accept(self) -> None:
        """Take new requests (again)."""
        self._refusal = None

    # Requests

    def try_infer_inline(self, request: InferRequest) -> ResponsePart | None:
        """Run a short request at once, on the event loop, or return None: await `infer` instead.

        Raises:
            NotServing, Saturated: if the version is not ready here, or the node refuses for now
                (`refuse`); nothing ran.
            InvalidRequest: if the request does not fit the model; nothing ran.
            DeadlineExceeded: if no time is left; nothing ran.
            InferenceFailed: if the model raised.
        """
        if self._refusal is not None:
            self._refuse()
        return self._run_inline(self._find(request.model, request.version), request)

    async def infer(self, request: InferRequest) -> InferResponse:
        """Run a request, wherever its expected time puts it.

        A caller that gives up (its task is cancelled) leaves the queue at once; a run that has
        begun ends in its thread, and its answer is dropped.

        Raises:
            Saturated: if the version's queue is full; nothing ran.
            DeadlineExceeded: if the deadline passed in the queue (nothing ran) or during the run.
            NotServing, InvalidRequest, InferenceFailed: as `try_infer_inline`.
        """
        if self._refusal is not None:
            self._refuse()
        replica = self._find(request.model, request.version)
        part = self._run_inline(replica, request)
        if part is None:
            part = await self._run_in_thread(replica, request)
        return InferResponse(request.model, replica.manifest.version, part)

    def _refuse(self) -> NoReturn:
        assert self._refusal is not None
        kind, reason = self._refusal
        raise kind(reason)

    def _find(self, model: str, version: int | None) -> _Replica:
        replica = self._newest.get(model) if version is None else self._ready.get((model, version))
        if replica is None:
            what = (
                f"model {model!r}" if version is None else f"version {version} of model {model!r}"
            )
            raise NotServing(f"this node does not serve {what}")
        return replica

    def _run_inline(self, replica: _Replica, request: InferRequest) -> ResponsePart | None:
        check_request(replica.manifest, request)
        if request.timeout_s <= 0:
            raise DeadlineExceeded("the request's deadline has passed")
        units = replica.units(request.inputs)
        if replica.run_time.expected_s(units) >= self._config.inline_limit_s:
            return None
        started = self._timer()
        outputs = replica.model.run(request.inputs, request.outputs or replica.outputs)
        replica.run_time.observe(self._timer() - started, units)
        return ResponsePart(outputs)

    async def _run_in_thread(self, replica: _Replica, request: InferRequest) -> ResponsePart:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + request.timeout_s
        await replica.slots.enter(request.timeout_s)
        answer: asyncio.Future[ResponsePart] = loop.create_future()
        replica.workers().submit(self._work, loop, replica, request, answer)
        timer = loop.call_at(deadline, _expire, answer)
        try:
            return await answer
        finally:
            timer.cancel()

    def _work(
        self,
        loop: asyncio.AbstractEventLoop,
        replica: _Replica,
        request: InferRequest,
        answer: asyncio.Future[ResponsePart],
    ) -> None:
        """Run in a worker thread, and tell the loop; it alone touches the slots."""
        started = self._timer()
        outcome: tuple[Tensor, ...] | Exception
        try:
            outcome = replica.model.run(request.inputs, request.outputs or replica.outputs)
        except Exception as error:  # noqa: BLE001 - delivered to the caller, who awaits the answer
            outcome = error
        elapsed_s = self._timer() - started
        with suppress(RuntimeError):  # the loop has ended: nobody waits for the answer
            loop.call_soon_threadsafe(
                _finish, replica, replica.units(request.inputs), elapsed_s, outcome, answer
            )

    # Loading and unloading

    async def load(self, manifest: Manifest, folder: Path) -> ReplicaStatus:
        """Open a version, warm it up and serve it.

        A version that is ready with the same digest stays as it is; with another digest it is
        unloaded first. What goes wrong is not raised: it is the returned status's reason.

        Args:
            manifest: What it is; see `meshnode.models.publish` and `BlobStore.materialise`.
            folder: The folder that holds the manifest's files.

        Returns:
            READY or FAILED.
        """
        key = (manifest.model, manifest.version)
        async with self._lock(key):
            current = self._status.get(key)
            if current is not None:
                ready = current.state is ReplicaState.READY
                if ready and current.manifest.digest == manifest.digest:
                    return current
                await self._drain(key)
            self._set(manifest, ReplicaState.LOADING)
            started = self._timer()
            try:
                opened = await asyncio.to_thread(self._open, manifest, folder)
            except MeshError as error:
                return self._set(manifest, ReplicaState.FAILED, str(error))
            except BaseException as error:
                self._set(manifest, ReplicaState.FAILED, f"loading was interrupted: {error!r}")
                raise
            load_s = self._timer() - started
            self._ready[key] = _Replica(
                manifest, opened, self._config.max_waiting, load_s, self._make_workers
            )
            self._find_newest(manifest.model)
            return self._set(manifest, ReplicaState.READY)

    async def unload(self, model: str, version: int) -> None:
        """Stop serving a version: no new requests; those that run or wait finish first.

        Returns when its memory is free. Does nothing for a version that is not here.
        """
        key = (model, version)
        async with self._lock(key):
            await self._drain(key)
            self._status.pop(key, None)

    async def close(self) -> None:
        """Unload everything."""
        await asyncio.gather(*(self.unload(model, version) for model, version in self._status))

    async def _drain(self, key: tuple[str, int]) -> None:
        replica = self._ready.pop(key, None)
        if replica is not None:
            self._find_newest(key[0])
            self._draining[key] = replica
            self._set(replica.manifest, ReplicaState.UNLOADING)
        replica = self._draining.get(key)  # also one whose draining was cancelled
        if replica is not None:
            await replica.slots.drained()
            del self._draining[key]
            replica.close()

    def _open(self, manifest: Manifest, folder: Path) -> _Opened:
        """Open and measure a version, in a thread.

        Raises:
            ModelError: if it cannot be loaded, or is not what its manifest says.
        """
        runtime = self._runtimes.get(manifest.runtime)
        if runtime is None:
            raise ModelError(f"this node has no runtime {manifest.runtime!r}")
        run_time = RunTime(first_runs(manifest))
        model = runtime.load(folder, manifest.entry, threads=1)
        try:
            fits(manifest, model)
            shortest_s = warm_up(manifest, model, run_time, self._config.warm_up_runs, self._timer)
            if self._config.slots is not None:
                return _Opened(model, run_time, self._config.slots)
            if shortest_s < self._config.spread_limit_s or self._cores == 1:
                inline = run_time.expected_s(1) < self._config.inline_limit_s
                return _Opened(model, run_time, 1 if inline else self._cores)
            model.close()  # before the second is opened: two would need twice the memory
            model = runtime.load(folder, manifest.entry, threads=self._cores)
            run_time = RunTime(first_runs(manifest))
            warm_up(manifest, model, run_time, self._config.warm_up_runs, self._timer)
        except BaseException:
            model.close()
            raise
        return _Opened(model, run_time, 1)

    def _lock(self, key: tuple[str, int]) -> asyncio.Lock:
        """Return the lock that keeps loading and unloading of one version apart."""
        lock = self._locks.get(key)
        if lock is None:
            lock = self._locks[key] = asyncio.Lock()
        return lock

    def _find_newest(self, model: str) -> None:
        versions = [key for key in self._ready if key[0] == model]
        if versions:
            self._newest[model] = self._ready[max(versions)]
        else:
            self._newest.pop(model, None)

    def _set(self, manifest: Manifest, state: ReplicaState, reason: str = "") -> ReplicaStatus:
        status = ReplicaStatus(manifest, state, reason)
        self._status[manifest.model, manifest.version] = status
        if self._on_change is not None:
            self._on_change(manifest.model, manifest.version, state, reason)
        return status


def available_cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _finish(
    replica: _Replica,
    units: int,
    elapsed_s: float,
    outcome: tuple[Tensor, ...] | Exception,
    answer: asyncio.Future[ResponsePart],
) -> None:
    """On the loop, after a run in a thread: free the slot, learn its time, hand over the answer."""
    replica.slots.leave()
    if not isinstance(outcome, Exception):
        replica.run_time.observe(elapsed_s, units)
    if answer.done():  # the caller gave up
        return
    if isinstance(outcome, Exception):
        error = outcome if isinstance(outcome, MeshError) else InferenceFailed(repr(outcome))
        answer.set_exception(error)
    else:
        answer.set_result(ResponsePart(outcome))


def _expire(answer: asyncio.Future[ResponsePart]) -> None:
    if not answer.done():
        answer.set_exception(DeadlineExceeded("the model was still running at the deadline"))
