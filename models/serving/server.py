"""The models that this node serves: loading, replacing, unloading, and the way of a request to its replica.

A version's life, as `on_change` tells it:

    load ──> LOADING ──> READY ──unload──> UNLOADING ──> gone
                └──────> FAILED (with its reason) ──unload──> gone

**Replacing.** A version that is ready is replaced by other files under the same number without a gap: the
new ones are opened and warmed up while the old ones serve, and take over then. If they cannot be loaded,
the old ones stay, and the reason says so. Only where memory has no room for both (`room_bytes`) do the old
ones go first, which the log tells. What ran on the old ones ends there, and their memory goes back to the
system after that.

**A request** goes to its version's `Replica`, which decides where it runs. Before that stand the node's
refusal (its owner's limits) and, for versions that ask for it, the response cache: an answer that is kept is
given at once, and equal requests at the same time run once.

A replica all of whose processes have ended (`Replica.on_lost`) is LOADING again, with the reason, until one
is back. Everything happens on one event loop; models are opened in threads.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, NoReturn
from weakref import WeakValueDictionary

from meshnode.errors import MeshError, NotServing
from meshnode.hardware.memory import trim_memory
from meshnode.limits import CLOSE_DRAIN_S, MAX_PROFILE_BATCH, UNLOAD_DRAIN_S
from meshnode.models.routes import check_routes
from meshnode.models.runtimes.base import ProcessModel
from meshnode.models.serving.loading import Loader
from meshnode.models.serving.pressure import rows_allowed
from meshnode.models.serving.replica import Replica
from meshnode.models.serving.response_cache import ResponseCache
from meshnode.models.serving.served import Answers, Served
from meshnode.models.serving.server_config import ServerConfig
from meshnode.models.serving.threads import RunThreads
from meshnode.owner_limits import load_estimate_bytes, size_text
from meshnode.types import InferRequest, InferResponse, ReplicaState, ResponsePart

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from meshnode.models.baking.folder import Prepared
    from meshnode.models.manifest import Manifest
    from meshnode.models.runtimes.base import Runtime
    from meshnode.models.serving.instances import Workers
    from meshnode.models.serving.opened import Opened
    from meshnode.models.serving.profile import Profile
    from meshnode.models.serving.sequence_handover import SequenceHandover
    from meshnode.models.serving.statistics import VersionStatistics
    from meshnode.types import Tensor
    from meshnode.wire.messages import LoadReport

    OnChange = Callable[[str, int, ReplicaState, str], None]
    """Told of each change: model, version, new state, reason."""

log = logging.getLogger(__name__)

_DIGEST_SHOWN = 12  # characters of a digest that tell two files under one version apart


@dataclass(frozen=True, slots=True)
class ReplicaStatus:
    """One version on this node, as `states` tells it.

    Attributes:
        manifest: What serves; while nothing does, what was to serve.
        state: Where it stands.
        reason: Why it failed; of a version that is ready, what became of files that were to replace it.
    """

    manifest: Manifest
    state: ReplicaState
    reason: str = ""


class ReplicaDetails(NamedTuple):
    """What people are shown of a replica.

    Attributes:
        device: Where it runs, such as `cpu`.
        instances: How many copies are open.
        batching: How requests are joined, for people.
        profile: Service time by batch size.
        restarted: How often its processes were started again, and why last; empty if they were not.
    """

    device: str
    instances: int
    batching: str
    profile: Profile
    restarted: str = ""


class ModelServer:
    """Serves model versions on this node.

    Attributes:
        on_change: Called on the event loop at each change of a version's state; None for nobody.
        gpus: Accelerators of the machine.
        room_bytes: Returns the memory that models may still take, or None for no limit.
        cache_root: Folder below which models may keep what they compile, by digest; None for nowhere.
        prepared: Returns what need not be done again for a version that was baked; called in a thread.
    """

    def __init__(
        self,
        runtimes: Mapping[str, Runtime],
        *,
        on_change: OnChange | None = None,
        config: ServerConfig | None = None,
        cores: int | None = None,
        timer: Callable[[], float] = time.perf_counter,
        make_workers: Callable[[int, str], Workers] = RunThreads,
        give_back: Callable[[], None] = trim_memory,
    ) -> None:
        """Start with no models.

        Args:
            runtimes: By the name that manifests use.
            on_change: As the attribute.
            config: How requests are run.
            cores: Processor cores to use; None for all that this process may use.
            timer: Seconds, for measuring runs; called in worker threads too.
            make_workers: Makes what runs a version's requests, of their number and a name.
            give_back: Returns free memory to the system; called in a thread after a model was closed.
        """
        self.on_change = on_change
        self.room_bytes: Callable[[], int | None] = lambda: None
        self.cache_root: Path | None = None
        self.prepared: Callable[[Manifest], Prepared | None] = lambda _manifest: None
        self._config = config or ServerConfig()
        self._loader = Loader(
            runtimes, self._config, cores or available_cores(), timer, self._cache_folder,
            self._prepared,
        )  # fmt: skip
        self._timer = timer
        self._make_workers = make_workers
        self._give_back = give_back
        self.gpus = 0
        config = self._config
        cache = ResponseCache(config.cache_bytes, config.cache_entries, config.cache_time_s)
        self._answers = Answers(cache, timer)
        self._status: dict[tuple[str, int], ReplicaStatus] = {}
        self._ready: dict[tuple[str, int], Served] = {}
        self._newest: dict[str, Served] = {}
        self._draining: dict[tuple[str, int], Served] = {}
        self._retiring: set[asyncio.Task[None]] = set()
        self._refusal: tuple[type[MeshError], str] | None = None
        self._pressure = 0
        self._locks: WeakValueDictionary[tuple[str, int], asyncio.Lock] = WeakValueDictionary()

    def __repr__(self) -> str:
        return f"<ModelServer ready={len(self._ready)} known={len(self._status)}>"

    @property
    def cores(self) -> int:
        """Processor cores that models use here."""
        return self._loader.cores

    # What is known

    def states(self) -> tuple[ReplicaStatus, ...]:
        """Return every version here, failed ones included, by name and version."""
        return tuple(self._status[key] for key in sorted(self._status))

    def newest(self, model: str) -> int | None:
        """Return the highest ready version of a model, or None."""
        served = self._newest.get(model)
        return served.manifest.version if served else None

    def serves(self, model: str, version: int) -> bool:
        """Whether a version is ready here, whichever files it has."""
        return (model, version) in self._ready

    def load_report(self, model: str, version: int | None) -> LoadReport:
        """Return how busy a version is.

        Raises:
            NotServing: if it is not ready here.
        """
        return self._find(model, version).replica.load_report()

    def details(self, model: str, version: int) -> ReplicaDetails:
        """Return what people are shown of a version that is ready.

        Raises:
            NotServing: if it is not.
        """
        served = self._find(model, version)
        instances = served.opened.instances
        devices = dict.fromkeys(each.model.device for each in instances)
        return ReplicaDetails(
            ", ".join(devices),
            len(instances),
            served.replica.batching,
            served.opened.profile,
            _restarted([each.model for each in instances]),
        )

    def load_times(self) -> dict[tuple[str, int], float]:
        """Return how long opening and warming up took, in seconds, of each ready version."""
        return {key: served.load_s for key, served in self._ready.items()}

    def statistics(self) -> dict[tuple[str, int], VersionStatistics]:
        """Return what each ready version has done so far."""
        return {key: served.replica.statistics() for key, served in self._ready.items()}

    @property
    def open_sequences(self) -> int:
        """Sequences that have begun on this node and have not ended."""
        return sum(served.replica.open_sequences for served in self._ready.values())

    def handovers(self) -> list[SequenceHandover]:
        """Return what gives sequences to other nodes, of each ready version that has sequences."""
        found = (served.replica.handover for served in self._ready.values())
        return [each for each in found if each is not None]

    def end_all(self) -> None:
        """Refuse what waits on this node, and end what runs; its callers are told to go elsewhere."""
        for served in self._ready.values():
            served.replica.end_all()

    def take_sequence(
        self,
        manifest_digest: str,
        model: str,
        version: int,
        sequence_id: int | str,
        states: Sequence[Tensor],
    ) -> None:
        """Go on with a sequence of a node that is being emptied.

        Raises:
            NotServing: if the version is not ready here, or not with these files.
            InvalidRequest, Saturated: as `SequenceHandover.take`.
        """
        handover = self._find(model, version).replica.handover
        if handover is None or handover.manifest.digest != manifest_digest:
            raise NotServing(f"model {model!r} version {version} has other files here")
        handover.take(sequence_id, states)

    def timer_s(self) -> float:
        """Return the seconds by which runs are measured."""
        return self._timer()

    def processes(self) -> dict[tuple[str, int], tuple[int, int]]:
        """Return what the processes of each ready version take (bytes), and how often they were restarted."""
        found = {}
        for key, served in self._ready.items():
            models = [each.model for each in served.opened.instances]
            own = [model for model in models if isinstance(model, ProcessModel)]
            if own:
                restarts = sum(getattr(model, "restarts", 0) for model in own)
                found[key] = (sum(model.memory_bytes for model in own), restarts)
        return found

    @property
    def cache(self) -> ResponseCache:
        """The response cache."""
        return self._answers.cache

    @property
    def shared_runs(self) -> int:
        """Requests that were answered by the run of an equal one at the same time."""
        return self._answers.flights.shared

    @property
    def pressure(self) -> int:
        """The level of memory pressure, 0 for none."""
        return self._pressure

    # What the machine allows

    def keep_answers(self, max_bytes: int) -> None:
        """Let the response cache take so much memory, 0 for none; call it before models are loaded."""
        config = self._config
        self._answers.cache = ResponseCache(max_bytes, config.cache_entries, config.cache_time_s)

    def refuse(self, error: type[MeshError], reason: str) -> None:
        """Refuse new requests with this error until `accept`; what runs or waits goes on."""
        self._refusal = (error, reason)

    def accept(self) -> None:
        """Take new requests (again)."""
        self._refusal = None

    def under_pressure(self, level: int) -> None:
        """Take as little memory as a level of pressure asks for (`meshnode.models.serving.pressure`)."""
        if level == self._pressure:
            return
        if level > self._pressure:
            log.warning("memory runs short (level %d): batches shrink", level)
        elif level == 0:
            log.info("memory is enough again: batches may be as large as ever")
        self._pressure = level
        self._answers.keeps = level == 0
        if level > 0:
            self.cache.clear()
        for served in self._ready.values():
            self._limit_rows(served)

    def _limit_rows(self, served: Served) -> None:
        most = served.manifest.max_batch_size or MAX_PROFILE_BATCH
        level = self._pressure
        served.replica.limit_rows(rows_allowed(most, level) if level else None)

    # Requests

    def try_infer_inline(self, request: InferRequest) -> ResponsePart | None:
        """Answer a request at once, or return None: await `infer` instead.

        At once means: from the response cache, or by a short run on the event loop.

        Raises:
            NotServing, Saturated: if the version is not ready here, or the node refuses for now
                (`refuse`); nothing ran.
            InvalidRequest: if the request does not fit the model; nothing ran.
            DeadlineExceeded: if no time is left; nothing ran.
            InferenceFailed: if the model raised.
        """
        if self._refusal is not None:
            self._refuse()
        served = self._find(request.model, request.version)
        return served.replica.try_inline(request) if served.is_plain else served.at_once(request)

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
        served = self._find(request.model, request.version)
        if served.is_plain:
            return await served.replica.infer(request)
        return await served.infer(request)

    def _refuse(self) -> NoReturn:
        assert self._refusal is not None
        kind, reason = self._refusal
        raise kind(reason)

    def _find(self, model: str, version: int | None) -> Served:
        served = self._newest.get(model) if version is None else self._ready.get((model, version))
        if served is None:
            what = (
                f"model {model!r}" if version is None else f"version {version} of model {model!r}"
            )
            raise NotServing(f"this node does not serve {what}")
        return served

    # Loading and unloading

    async def load(self, manifest: Manifest, folder: Path) -> ReplicaStatus:
        """Open a version, warm it up and serve it.

        A version that is ready with the same digest stays as it is; one with another digest serves until
        the new one is ready (see this module's text). What goes wrong is not raised: it is the returned
        status's reason.

        Args:
            manifest: What it is; see `meshnode.models.repository.publish` and `BlobStore.materialise`.
            folder: The folder that holds the manifest's files.

        Returns:
            READY, or FAILED with what the manifest's files suffered; `serves` tells whether older ones
            still serve.
        """
        key = (manifest.model, manifest.version)
        async with self._lock(key):
            serving = self._ready.get(key)
            if serving is not None and serving.digest == manifest.digest:
                return self._as_it_is(key)
            if serving is not None and not self._has_room(manifest, folder):
                await self._drain(key)
                serving = None
            elif serving is None:
                await self._drain(key)  # of one whose unloading was interrupted
            self._begin(manifest, serving)
            started = self._timer()
            try:
                self._check_routes(manifest)
                opened = await self._loader.open(manifest, folder, self.gpus)
            except MeshError as error:
                return self._not_loaded(manifest, serving, str(error))
            except BaseException as error:
                self._not_loaded(manifest, serving, f"loading was interrupted: {error!r}")
                raise
            self._serve(manifest, opened, self._timer() - started)
            if serving is not None:
                self._retire(serving)
            return self._set(manifest, ReplicaState.READY)

    def offer(self, manifest: Manifest) -> None:
        """Offer a version that serves as its manifest says now; nothing happens if other files serve."""
        served = self._ready.get((manifest.model, manifest.version))
        if served is not None and served.digest == manifest.digest:
            served.offer(manifest)

    async def unload(self, model: str, version: int) -> None:
        """Stop serving a version: no new requests; those that run or wait finish first, within `UNLOAD_DRAIN_S`.

        Returns when its memory is free, or a run that nobody can end keeps it. Does nothing for a version that is
        not here.
        """
        await self._unload(model, version, UNLOAD_DRAIN_S)

    async def _unload(self, model: str, version: int, limit_s: float) -> None:
        key = (model, version)
        async with self._lock(key):
            await self._drain(key, limit_s)
            self._status.pop(key, None)

    async def close(self) -> None:
        """Unload everything; what still runs after `CLOSE_DRAIN_S` is ended."""
        every = tuple(self._status)
        await asyncio.gather(*(self._unload(*key, CLOSE_DRAIN_S) for key in every))
        await asyncio.gather(*self._retiring)

    def _as_it_is(self, key: tuple[str, int]) -> ReplicaStatus:
        """Return the status of what serves already, without the reason of what did not replace it."""
        status = self._status[key]
        if status.state is ReplicaState.READY and status.reason:
            return self._set(status.manifest, status.state)
        return status

    def _begin(self, manifest: Manifest, serving: Served | None) -> None:
        if serving is None:
            self._set(manifest, ReplicaState.LOADING)
            return
        new, old = _short(manifest.digest), _short(serving.digest)
        reason = f"it serves the files {old} while the new ones ({new}) are loaded"
        self._set(serving.manifest, ReplicaState.READY, reason)

    def _not_loaded(self, manifest: Manifest, serving: Served | None, reason: str) -> ReplicaStatus:
        key = (manifest.model, manifest.version)
        if serving is None or self._ready.get(key) is not serving:
            return self._set(manifest, ReplicaState.FAILED, reason)
        new, old = _short(manifest.digest), _short(serving.digest)
        told = f"it still serves the files {old}; the new ones ({new}) failed: {reason}"
        log.warning("model %s version %d: %s", manifest.model, manifest.version, told)
        self._set(serving.manifest, ReplicaState.READY, told)
        return ReplicaStatus(manifest, ReplicaState.FAILED, reason)

    def _serve(self, manifest: Manifest, opened: Opened, load_s: float) -> None:
        replica = Replica(manifest, opened, self._config, self._timer, self._make_workers)
        served = Served(manifest, opened, replica, load_s, self._answers)
        replica.on_lost = lambda reason: self._lost(served, reason)
        replica.on_trouble = lambda reason: self._troubled(served, reason)
        self._limit_rows(served)
        self._ready[manifest.model, manifest.version] = served
        self._find_newest(manifest.model)

    def _lost(self, served: Served, reason: str) -> None:
        """Tell that none of a replica's processes is alive, or that one is again."""
        manifest = served.manifest
        if self._ready.get((manifest.model, manifest.version)) is served:
            self._set(manifest, ReplicaState.LOADING if reason else ReplicaState.READY, reason)

    def _troubled(self, served: Served, reason: str) -> None:
        """Tell that a replica that serves has lost places, or has all of them again."""
        manifest = served.manifest
        key = (manifest.model, manifest.version)
        status = self._status.get(key)
        if self._ready.get(key) is not served or status is None:
            return
        if status.state is ReplicaState.READY and status.reason != reason:
            self._set(manifest, ReplicaState.READY, reason)

    def _has_room(self, manifest: Manifest, folder: Path) -> bool:
        """Whether a second copy fits beside the one that serves; says in the log where it does not."""
        room_bytes = self.room_bytes()
        if room_bytes is None:
            return True
        need_bytes = load_estimate_bytes(manifest.size_bytes or _size_bytes(folder, manifest.entry))
        if need_bytes <= room_bytes:
            return True
        log.warning(
            "model %s version %d: the new files would take about %s beside the old ones and %s are left, "
            "so the old ones go first",
            manifest.model, manifest.version, size_text(need_bytes), size_text(room_bytes),
        )  # fmt: skip
        return False

    def _check_routes(self, manifest: Manifest) -> None:
        if manifest.execution.routes:
            others = {
                each.manifest.model: each.manifest.execution.routes
                for each in self._ready.values()
                if each.manifest.model != manifest.model
            }
            check_routes(manifest.model, manifest.execution.routes, others)

    def _cache_folder(self, digest: str) -> Path | None:
        return None if self.cache_root is None else self.cache_root / digest

    def _prepared(self, manifest: Manifest) -> Prepared | None:
        return self.prepared(manifest)

    def _retire(self, served: Served) -> None:
        """Close a replica that was replaced once nothing runs on it, in the background."""
        task = asyncio.ensure_future(self._close(served))
        self._retiring.add(task)
        task.add_done_callback(self._retired)

    def _retired(self, task: asyncio.Task[None]) -> None:
        self._retiring.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a replaced model could not be closed", exc_info=error)

    async def _drain(self, key: tuple[str, int], limit_s: float = UNLOAD_DRAIN_S) -> None:
        served = self._ready.pop(key, None)
        if served is not None:
            self._find_newest(key[0])
            self._draining[key] = served
            self._set(served.manifest, ReplicaState.UNLOADING)
        served = self._draining.get(key)  # also one whose draining was cancelled
        if served is not None:
            is_drained = await served.replica.drained(limit_s)
            self._draining.pop(key, None)
            await self._free(served, is_drained)

    async def _close(self, served: Served) -> None:
        await self._free(served, await served.replica.drained(UNLOAD_DRAIN_S))

    async def _free(self, served: Served, is_drained: bool) -> None:
        if not is_drained:
            log.error(
                "model %s version %d: a run that nobody waits for does not end and keeps its memory; restart the "
                "node to free it",
                served.manifest.model, served.manifest.version,
            )  # fmt: skip
        await served.replica.close()
        await asyncio.to_thread(self._give_back)

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
        if self.on_change is not None:
            self.on_change(manifest.model, manifest.version, state, reason)
        return status


def available_cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _restarted(models: Iterable[object]) -> str:
    """Say how often processes were started again, and why last."""
    ends = [(getattr(each, "restarts", 0), getattr(each, "last_end", "")) for each in models]
    total = sum(restarts for restarts, _ in ends)
    if not total:
        return ""
    _, last = max(ends)
    return f"restarted {'once' if total == 1 else f'{total} times'}, last: {last}"


def _short(digest: str) -> str:
    return digest[:_DIGEST_SHOWN]


def _size_bytes(folder: Path, entry: str) -> int:
    try:
        return (folder / entry).stat().st_size
    except OSError:
        return 0  # the runtime says what is wrong with it
