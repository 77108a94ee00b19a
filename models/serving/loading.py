"""Opening a version: its instances are opened, warmed up and measured before it serves.

The first instance decides how many there are: what one run takes says whether runs are spread over the
cores or done side by side (`thread_plan`). Where the plan gives each run more threads than the first
instance was opened with, that one is closed and opened again: two at once would need twice the memory.

A version that was baked (`meshnode.models.baking`) is opened from what was compiled then, and what was measured then is
not measured again: it runs once, for what it allocates on first use.

Models in processes of their own run their author's code, so nobody asks them anything but what their
author configured, and a TorchScript model (whose batches are joined rows) zeros as others.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from msgspec.structs import replace as changed

from meshnode.errors import MeshError, ModelError
from meshnode.limits import WARM_UP_TIMEOUT_S
from meshnode.models.execution import Interface
from meshnode.models.runtimes.base import ProcessModel, opening_of
from meshnode.models.serving.measure import RunTime, first_runs
from meshnode.models.serving.opened import Instance, Opened
from meshnode.models.serving.thread_plan import Asked, Kind, Pace, ThreadPlan, plan
from meshnode.models.serving.warmup import (
    fits,
    has_rows,
    measure_profile,
    profile_sizes,
    warm_up,
    zeros_for,
)
from meshnode.models.serving.warmup_requests import model_file, warm_up_requests
from meshnode.types import InferRequest, Tensor

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping
    from pathlib import Path

    from meshnode.models.baking.folder import Prepared
    from meshnode.models.baking.index import Measured
    from meshnode.models.manifest import Manifest
    from meshnode.models.runtimes.base import LoadedModel, Opening, Runtime
    from meshnode.models.serving.profile import Profile
    from meshnode.models.serving.server_config import ServerConfig
    from meshnode.models.serving.thread_plan import InstancePlan
    from meshnode.models.serving.warmup_requests import WarmUpRequest

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Loader:
    """Opens versions.

    Attributes:
        runtimes: By the name that manifests use.
        config: How requests will be run.
        cores: Processor cores to use.
        timer: Seconds; called in worker threads too.
        cache_folder: Where a version of this digest may keep what it compiles; None for nowhere.
        prepared: Returns what need not be done again for a version; None if all has to be. Blocks.
    """

    runtimes: Mapping[str, Runtime]
    config: ServerConfig
    cores: int
    timer: Callable[[], float]
    cache_folder: Callable[[str], Path | None] = lambda _digest: None
    prepared: Callable[[Manifest], Prepared | None] = lambda _manifest: None

    async def open(self, manifest: Manifest, folder: Path, gpus: int = 0) -> Opened:
        """Open, warm up and measure a version.

        Args:
            manifest: What it is.
            folder: Its files.
            gpus: Accelerators of the machine.

        Raises:
            ModelError: if it cannot be loaded, is not what its manifest says, or a configured warm-up
                failed; nothing stays open.
        """
        runtime = self.runtimes.get(manifest.runtime)
        if runtime is None:
            raise ModelError(f"this node has no runtime {manifest.runtime!r}")
        attempt = _Attempt(self, manifest, runtime, folder, gpus)
        try:
            return await attempt.run()
        except BaseException:
            await attempt.close()
            raise


class _Attempt:
    """One version being opened; holds what is open so far."""

    def __init__(
        self, loader: Loader, manifest: Manifest, runtime: Runtime, folder: Path, gpus: int
    ) -> None:
        self._loader = loader
        self._gpus = gpus
        self._manifest = manifest
        self._runtime = runtime
        self._folder = folder
        self._asked = Asked.of(manifest.execution, loader.config.slots)
        self._kind = Kind.APART
        if runtime.is_code:
            self._kind = Kind.PROCESS
        elif runtime.shares_instance:
            self._kind = Kind.SHARED
        self._open: list[LoadedModel | ProcessModel] = []
        self._run_time = RunTime(first_runs(manifest))
        self._first_s = 0.0
        self._settled = Pace.SHORT
        self._prepared: Prepared | None = None

    async def run(self) -> Opened:
        requests = await asyncio.to_thread(warm_up_requests, self._manifest, self._folder)
        await asyncio.to_thread(self._prepare)
        plan = await self._open_first()
        rest = plan.instances[1:]
        for number, each in enumerate(rest, 1):
            await self._open_further(each, number)
        instances = tuple(
            Instance(
                model, self._slots(model, each), each.passive, exclusive=self._kind is Kind.APART
            )
            for model, each in zip(self._open, plan.instances, strict=True)
        )
        if plan.warning:
            log.warning(
                "model %s version %d: %s",
                self._manifest.model,
                self._manifest.version,
                plan.warning,
            )
        for instance in instances:
            await self._run_configured(instance.model, requests)
        profile = await self._profile()
        self._learn_again(profile)
        return Opened(
            instances,
            self._run_time,
            profile,
            await self._why_apart(),
            self._first_s,
            self._settled,
            await asyncio.to_thread(self._initial_states),
        )

    def _slots(self, model: LoadedModel | ProcessModel, planned: InstancePlan) -> int:
        return model.concurrency if isinstance(model, ProcessModel) else planned.slots

    # What is there already

    def _prepare(self) -> None:
        """Find out what need not be done, and let the model's code find what it kept."""
        manifest = self._manifest
        self._prepared = self._loader.prepared(manifest)
        kept = None if self._prepared is None else self._prepared.cache
        folder = self._loader.cache_folder(manifest.digest)
        if kept is None or folder is None or folder.exists():
            return
        try:
            shutil.copytree(kept, folder)
        except (OSError, shutil.Error) as error:
            shutil.rmtree(folder, ignore_errors=True)
            log.warning(
                "model %s version %d compiles anew: what was baked cannot be copied: %s",
                manifest.model, manifest.version, error,
            )  # fmt: skip

    @property
    def _known(self) -> Measured | None:
        return None if self._prepared is None else self._prepared.measured

    # Opening

    async def _open_first(self) -> ThreadPlan:
        """Open the first instance with the threads that fit it; return the plan for all."""
        known = self._known
        plan = self._plan(Pace.SHORT if known is None else known.pace)
        model = await asyncio.to_thread(self._open_and_warm, plan.instances[0])
        if isinstance(model, ProcessModel):
            self._kind = Kind.PROCESS
            await self._warm_process(model)
            return self._plan(Pace.SHORT)
        self._settled = self._pace() if known is None else known.pace
        if known is not None:
            return plan
        settled = self._plan(self._settled)
        if settled.instances[0].threads == plan.instances[0].threads:
            return settled
        model.close()  # before the second is opened: two would need twice the memory
        self._open.clear()
        self._run_time = RunTime(first_runs(self._manifest))
        await asyncio.to_thread(self._open_and_warm, settled.instances[0])
        return settled

    async def _open_further(self, planned: InstancePlan, number: int) -> None:
        """Open one more instance, and let it allocate what its first run needs."""
        model = await asyncio.to_thread(self._open_one, planned, number)
        if not isinstance(model, ProcessModel):
            unused = RunTime(first_runs(self._manifest))
            timer = self._loader.timer
            await asyncio.to_thread(warm_up, self._manifest, model, unused, 1, timer)
        elif self._takes_zeros(model):
            inputs = zeros_for(self._manifest, model)
            if inputs is not None:
                await self._timed(model, inputs)

    def _plan(self, pace: Pace) -> ThreadPlan:
        loader = self._loader
        return plan(loader.cores, self._gpus, self._kind, pace, self._asked)

    def _pace(self) -> Pace:
        config = self._loader.config
        if self._first_s >= config.spread_limit_s:
            return Pace.LONG
        inline = self._run_time.expected_s(1) < config.inline_limit_s
        return Pace.INLINE if inline else Pace.SHORT

    def _open_one(self, planned: InstancePlan, number: int) -> LoadedModel | ProcessModel:
        loader, manifest = self._loader, self._manifest
        opening: Opening = replace(
            opening_of(manifest, self._folder, threads=planned.threads),
            device=planned.device,
            instance=number,
            cache_folder=loader.cache_folder(manifest.digest),
            graphs=None if self._prepared is None else self._prepared.graphs,
            writes_graphs=self._prepared is not None and self._prepared.writes,
        )
        model = self._runtime.load(opening)
        self._open.append(model)
        fits(manifest, model)
        return model

    def _open_and_warm(self, planned: InstancePlan) -> LoadedModel | ProcessModel:
        model = self._open_one(planned, 0)
        if not isinstance(model, ProcessModel):
            runs, known = self._loader.config.warm_up_runs, self._known
            run_time = self._run_time if known is None else RunTime()
            self._first_s = warm_up(
                self._manifest, model, run_time, runs if known is None else 1, self._loader.timer
            )
            self._recall()
        return model

    def _recall(self) -> None:
        """Take the time that was measured when the version was baked: one run alone is no measurement."""
        if self._known is not None and self._first_s > 0:
            self._first_s = self._known.first_s
            if self._first_s > 0:
                self._run_time.observe(self._first_s, 1)

    async def close(self) -> None:
        for model in self._open:
            with suppress(MeshError):  # what led here is the reason to tell
                if isinstance(model, ProcessModel):
                    await model.close()
                else:
                    model.close()

    # Warming up

    async def _warm_process(self, model: ProcessModel) -> None:
        """Run zeros through a process that joins rows; of others only their author knows inputs."""
        if not self._takes_zeros(model):
            return
        inputs = zeros_for(self._manifest, model)
        if inputs is None:
            return
        times = []
        for _ in range(self._loader.config.warm_up_runs if self._known is None else 1):
            took_s = await self._timed(model, inputs)
            if took_s is None:
                return
            times.append(took_s)
        if profile_sizes(self._manifest):
            self._first_s = min(times)
            if self._known is None:
                self._run_time.observe(self._first_s, 1)
            self._recall()

    def _takes_zeros(self, model: ProcessModel) -> bool:
        """Whether zeros may be tried on a model in a process: not on what only its author knows."""
        return model.joins_rows and self._manifest.execution.interface is Interface.TENSORS

    async def _timed(self, model: ProcessModel, inputs: tuple[Tensor, ...]) -> float | None:
        """Return the seconds of one batch of zeros in a process, or None if it failed."""
        manifest, timer = self._manifest, self._loader.timer
        request = InferRequest(manifest.model, inputs, manifest.version, request_id="warm-up")
        started = timer()
        outcome: object
        try:
            async with _patience():
                (outcome,) = await model.execute([request])
        except MeshError as error:
            outcome = error
        if isinstance(outcome, MeshError):
            log.warning(
                "model %s version %d: its warm-up on zeros failed, so its run time is unknown until "
                "it has answered: %s",
                manifest.model, manifest.version, outcome,
            )  # fmt: skip
            return None
        return timer() - started

    async def _run_configured(
        self, model: LoadedModel | ProcessModel, samples: list[WarmUpRequest]
    ) -> None:
        """Make the requests that the author configured.

        Raises:
            ModelError: if one fails.
        """
        for sample in samples:
            try:
                request = self._completed(model, sample.request)
                if isinstance(model, ProcessModel):
                    for _ in range(sample.count):
                        await self._run_in_process(model, request)
                else:
                    await asyncio.to_thread(_repeat, model, request, sample.count)
            except MeshError as error:
                raise ModelError(f"its warm-up {sample.name!r} failed: {error}") from None

    async def _run_in_process(self, model: ProcessModel, request: InferRequest) -> None:
        async with _patience():
            if self._manifest.execution.decoupled:
                async for _ in model.stream(request):
                    pass
                return
            (outcome,) = await model.execute([request])
        if isinstance(outcome, MeshError):
            raise outcome

    def _completed(self, model: LoadedModel | ProcessModel, request: InferRequest) -> InferRequest:
        """Return a sample as the model's file takes it: reshaped, and with all its inputs."""
        manifest = self._manifest
        reshape = dict(manifest.execution.reshape)
        rows = request.rows if manifest.max_batch_size > 0 else 1
        lead = (rows,) if manifest.max_batch_size > 0 else ()
        given = {
            tensor.name: changed(tensor, shape=(*lead, *reshape[tensor.name]))
            if tensor.name in reshape
            else tensor
            for tensor in request.inputs
        }
        optional = manifest.execution.optional_inputs
        zeros = zeros_for(manifest, model, rows) or ()
        missing = [each for each in zeros if each.name not in given and each.name not in optional]
        return changed(request, inputs=(*given.values(), *missing))

    # Measuring

    async def _profile(self) -> Profile:
        if self._known is not None:
            return self._known.profile
        model, budget_s = self._open[0], self._loader.config.profile_s
        if not isinstance(model, ProcessModel):
            return await asyncio.to_thread(
                measure_profile,
                self._manifest, model, self._first_s, budget_s, self._loader.timer,
            )  # fmt: skip
        # A process is asked with a hop, so a size more or less matters little: one row is enough.
        return ((1, self._first_s * 1000),) if self._first_s > 0 else ()

    def _learn_again(self, profile: Profile) -> None:
        """Believe the profile where it says that the first runs were disturbed."""
        if profile and profile[0][1] < self._first_s * 1000 and profile[0][0] == 1:
            self._run_time = RunTime(first_runs(self._manifest))
            self._run_time.observe(profile[0][1] / 1000, 1)

    async def _why_apart(self) -> str:
        """Return why requests must not be joined without a configuration; empty if they may."""
        if self._known is not None:
            return self._known.apart
        execution, model = self._manifest.execution, self._open[0]
        if (
            execution.batching is not None
            or execution.sequences is not None
            or not execution.adaptive
            or not has_rows(self._manifest)
        ):
            return ""  # nobody joins them, or the author said that they may be
        # On demand: it brings NumPy, which an idle node does without.
        from meshnode.models.serving.row_check import why_not_joined, why_not_joined_process

        if isinstance(model, ProcessModel):
            if not model.joins_rows:
                return ""
            return await why_not_joined_process(self._manifest, model, self._loader.timer)
        return await asyncio.to_thread(why_not_joined, self._manifest, model, self._loader.timer)

    def _initial_states(self) -> dict[str, bytes]:
        sequences = self._manifest.execution.sequences
        if sequences is None:
            return {}
        return {
            state.input_name: model_file(self._folder, _under("initial_state", state.initial_file))
            for state in sequences.states
            if state.initial_file
        }


def _under(folder: str, name: str) -> str:
    return name if "/" in name else f"{folder}/{name}"


def _repeat(model: LoadedModel, request: InferRequest, count: int) -> None:
    for _ in range(count):
        model.run(request.inputs, ())


@asynccontextmanager
async def _patience() -> AsyncIterator[None]:
    """Wait for a warm-up request for a limited time.

    Raises:
        ModelError: if it takes longer.
    """
    try:
        async with asyncio.timeout(WARM_UP_TIMEOUT_S):
            yield
    except TimeoutError:
        raise ModelError(f"it did not answer within {WARM_UP_TIMEOUT_S:g} s") from None
