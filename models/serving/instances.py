"""The opened copies of one version, and the batches that they execute.

A model in this process runs in a worker thread, a model in a process of its own is asked by a task of the
event loop. Either way `on_ran` is called on the loop with what came of a batch, and the place is free again.
An instance whose process has ended gets nothing until it is back.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from msgspec.structs import replace

from meshnode.errors import Cancelled, MeshError
from meshnode.limits import STREAM_PAUSE_S
from meshnode.models.runtimes.base import ProcessModel, StoppableModel, is_inline
from meshnode.models.serving.batch_run import Ran, as_mesh_error, run_loaded, run_process
from meshnode.models.serving.part_stream import PartStream
from meshnode.models.serving.sequence_run import SequenceRows, is_direct
from meshnode.models.serving.sequences import SequenceJob
from meshnode.types import ResponsePart

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from meshnode.models.manifest import Manifest
    from meshnode.models.runtimes.base import LoadedModel, StoppableRun
    from meshnode.models.serving.batch_run import Answer
    from meshnode.models.serving.opened import Opened
    from meshnode.types import InferRequest, Tensor


class Workers(Protocol):
    """What runs requests beside the event loop: threads, or what stands for them."""

    def submit(self, work: Callable[..., Any], /, *args: Any) -> object:
        """Run `work(*args)` soon, beside the event loop."""
        ...

    def shutdown(self, wait: bool = True) -> None:
        """Take no more work."""
        ...


class Asked(SequenceJob):
    """A request on its way through the queue and an execution.

    Attributes:
        request: As it came.
        inputs: In the shapes that the model wants.
        outputs: Names of those that the model is asked for.
        answer: What its caller waits for.
        started: When it came, by the timer.
        batch: The execution that it is part of, once it is.
        timer: Its deadline during the execution.
        ran_s: How long the model ran for it alone; 0 while that is not known, or if others were joined.
    """

    __slots__ = ("answer", "batch", "inputs", "outputs", "ran_s", "request", "started", "timer")

    def __init__(
        self,
        request: InferRequest,
        inputs: tuple[Tensor, ...],
        outputs: tuple[str, ...],
        answer: asyncio.Future[ResponsePart | PartStream],
        started: float,
        **job: Any,
    ) -> None:
        """Make the job of a request; see `SequenceJob` for the rest."""
        super().__init__(**job)
        self.request = request
        self.inputs = inputs
        self.outputs = outputs
        self.answer = answer
        self.started = started
        self.batch: Batch | None = None
        self.timer: asyncio.TimerHandle | None = None
        self.ran_s = 0.0


@dataclass(slots=True, eq=False)
class Batch:
    """An execution: requests that run together.

    Attributes:
        instance: Where.
        jobs: At least one; none after its end.
        started: When, by the timer.
        waited_for: Jobs whose answers somebody still waits for.
        task: What asks a process; None where a thread runs it.
        run: What a thread runs, if it can be ended.
        is_stuck: Whether it goes on though nobody waits, and its place counts as lost.
        look: When it is looked at once more after nobody waits any longer; None before that.
    """

    instance: int
    jobs: tuple[Asked, ...]
    started: float
    waited_for: int
    task: asyncio.Task[None] | None = None
    run: StoppableRun | None = None
    is_stuck: bool = False
    look: asyncio.TimerHandle | None = None

    def stop(self) -> None:
        """End it, as soon as its model allows that."""
        if self.task is not None:
            self.task.cancel()
        elif self.run is not None:
            self.run.stop()

    def let_go(self) -> None:
        """Forget what ran: jobs and tasks lead back here, and their tensors would wait for the garbage collector.

        That runs by the number of objects, and a few requests of many megabytes are few objects.
        """
        self.jobs = ()
        self.task = self.run = self.look = None


class _Lines(NamedTuple):
    """What is run of a batch: the inputs and rows of each line, and each job's line."""

    inputs: Sequence[tuple[Tensor, ...]]
    rows: Sequence[int]
    answers: Sequence[int]


class Instances:
    """All instances of a version; owned by one event loop.

    Attributes:
        slots: Batches that can run at once while all processes live.
        running: Requests that run.
    """

    def __init__(
        self,
        manifest: Manifest,
        opened: Opened,
        timer: Callable[[], float],
        make_workers: Callable[[int, str], Workers],
        on_ran: Callable[[Batch, Ran], None],
        on_lost: Callable[[int, str], None],
    ) -> None:
        """Take over what was opened.

        Args:
            manifest: What it is.
            opened: The instances; `close` closes them.
            timer: Seconds; called in worker threads too.
            make_workers: Makes what runs batches, of their number and a name.
            on_ran: Told of each batch that has ended; its place is free when this returns.
            on_lost: Told of an instance whose process ended, with a reason, and when it is ready again.
        """
        self._manifest = manifest
        self._opened = opened
        self._timer = timer
        self._make_workers = make_workers
        self._on_ran = on_ran
        self._on_lost = on_lost
        self._loop = asyncio.get_running_loop()
        self._active = [each for each in opened.instances if not each.passive]
        self._busy = [0] * len(self._active)
        sequences = manifest.execution.sequences
        self._rows: SequenceRows | None = None
        if sequences is not None:
            specs = self._active[0].model.inputs
            self._rows = SequenceRows(manifest, sequences, specs, opened.initial_states)
        self._by_slot = is_direct(manifest) and not self.takes_lists
        # An instance with sequences runs one batch at a time, whatever it could.
        self._places = [1 if sequences is not None else each.slots for each in self._active]
        self._dead: set[int] = set()
        self._batches: set[Batch] = set()
        self._stuck = [0] * len(self._active)
        self._can_stop = [isinstance(each.model, StoppableModel) for each in self._active]
        self._workers: Workers | None = None  # a version that runs inline never needs any
        self.slots = sum(self._places)
        self.running = 0
        for index, instance in enumerate(self._active):
            if isinstance(instance.model, ProcessModel):
                instance.model.on_lost = partial(self._lost, index)

    def __repr__(self) -> str:
        return (
            f"<Instances {len(self._active)} with {self.slots} slots, {len(self._batches)} batches run, "
            f"{len(self._dead)} dead>"
        )

    @property
    def in_process(self) -> LoadedModel | None:
        """The first model, if it lies in this process."""
        model = self._active[0].model
        return None if isinstance(model, ProcessModel) else model

    @property
    def inline(self) -> LoadedModel | None:
        """The first model, if short requests may run on the event loop."""
        return self.in_process if is_inline(self._active[0].model) else None

    @property
    def exclusive(self) -> bool:
        """Whether the first model stands one run at a time only."""
        return self._active[0].exclusive

    @property
    def takes_lists(self) -> bool:
        """Whether a batch is a list of requests somewhere, not one joined request."""
        return any(
            isinstance(each.model, ProcessModel) and not each.model.joins_rows
            for each in self._active
        )

    @property
    def streams(self) -> bool:
        """Whether requests are answered by any number of parts."""
        return self._manifest.execution.decoupled and self.in_process is None

    @property
    def living_slots(self) -> int:
        """Batches that can run at once now."""
        dead = sum(self._places[each] for each in self._dead)
        return self.slots - dead - self.stuck

    @property
    def stuck(self) -> int:
        """Places that are held by runs which nobody waits for and which do not end."""
        return sum(self._stuck)

    @property
    def is_forsaken(self) -> bool:
        """Whether nobody waits for anything that runs."""
        return all(batch.waited_for == 0 for batch in self._batches)

    def places(self) -> Iterator[int]:
        """Yield every instance as often as it has slots."""
        for index, places in enumerate(self._places):
            yield from [index] * places

    def free_places(self, instance: int) -> int:
        """Return how many batches an instance can take now."""
        return 0 if instance in self._dead else self._places[instance] - self._busy[instance]

    def start(self, batch: Batch) -> None:
        """Execute a batch; its instance has a free place."""
        self._batches.add(batch)
        self._busy[batch.instance] += 1
        self.running += len(batch.jobs)
        model: Any = self._active[batch.instance].model
        try:
            lines = self._lines(batch)
        except MeshError as error:
            self._loop.call_soon(self._ended, batch, Ran([error] * len(batch.jobs)))
            return
        if isinstance(model, ProcessModel):
            run = self._run_stream if self.streams else self._run_in_process
            batch.task = self._loop.create_task(run(batch, lines, model))
            batch.task.add_done_callback(partial(self._left_off, batch))
            return
        if self._workers is None:
            name = f"{self._manifest.model}-{self._manifest.version}"
            self._workers = self._make_workers(self.slots, name)
        if self._can_stop[batch.instance]:
            model = batch.run = model.stoppable()
        self._workers.submit(self._run_in_thread, batch, lines, model)

    def batches(self) -> tuple[Batch, ...]:
        """Return all that runs."""
        return tuple(self._batches)

    def look_stuck(self, batch: Batch) -> bool:
        """Count the place of a batch as lost if it still runs in a thread; return whether it does."""
        if batch not in self._batches or batch.task is not None:
            return False
        batch.is_stuck = True
        self._stuck[batch.instance] += 1
        return True

    def _lines(self, batch: Batch) -> _Lines:
        """Return what is run of a batch: its jobs' inputs, or one row per slot of its sequences."""
        jobs = batch.jobs
        if self._rows is None:
            return _Lines(
                [job.inputs for job in jobs], [job.rows for job in jobs], range(len(jobs))
            )
        rows = [self._rows.completed(job.inputs, job) for job in jobs]
        by_slot = {job.slot: row for job, row in zip(jobs, rows, strict=True)}
        if not self._by_slot:
            return _Lines(rows, [1] * len(rows), range(len(rows)))
        idle = self._rows.idle(rows[0])
        every = [by_slot.get(slot, idle) for slot in range(max(by_slot) + 1)]
        return _Lines(every, [1] * len(every), [job.slot for job in jobs])

    def _run_in_thread(
        self, batch: Batch, lines: _Lines, model: LoadedModel | StoppableRun
    ) -> None:
        """Run a batch in a worker thread, and tell the loop, which alone touches everything else."""
        outputs = self._asked_for(batch.jobs[0])
        try:
            ran = run_loaded(
                model, lines.inputs, lines.rows, outputs, self._timer, repeatable=self._rows is None
            )
        except Exception as error:  # noqa: BLE001 - delivered to the callers, who await their answers
            ran = Ran([as_mesh_error(error)] * len(lines.inputs))
        ran.answers = [ran.answers[each] for each in lines.answers]
        with suppress(RuntimeError):  # the loop has ended: nobody waits for the answer
            self._loop.call_soon_threadsafe(self._ended, batch, ran)

    async def _run_in_process(self, batch: Batch, lines: _Lines, model: ProcessModel) -> None:
        first = batch.jobs[0]
        if len(lines.inputs) == len(batch.jobs):
            jobs: list[Asked] = list(batch.jobs)
        else:  # slots that have nothing to do have no request of their own
            jobs = [first] * len(lines.inputs)
            for job, slot in zip(batch.jobs, lines.answers, strict=True):
                jobs[slot] = job
        requests = [
            self._passed_on(job, inputs) for job, inputs in zip(jobs, lines.inputs, strict=True)
        ]
        repeatable = self._rows is None
        try:
            ran = await run_process(model, requests, lines.rows, self._timer, repeatable=repeatable)
        except asyncio.CancelledError:
            self._ended(batch, Ran([_nobody_waits()] * len(batch.jobs)))
            raise
        ran.answers = [ran.answers[each] for each in lines.answers]
        self._ended(batch, ran)

    async def _run_stream(self, batch: Batch, lines: _Lines, model: ProcessModel) -> None:
        """Run a request whose caller gets a stream with its first part; before that, its error."""
        [job] = batch.jobs
        started = self._timer()
        stream = PartStream(partial(_begin, job))
        failed: MeshError | None = _nobody_waits()
        try:
            request = self._passed_on(job, lines.inputs[0])
            pause_s = max(STREAM_PAUSE_S, job.request.timeout_s)
            failed = await stream.pump(model.stream(request), job.deadline, pause_s)
        finally:
            answer: Answer = () if failed is None else failed
            self._ended(batch, Ran([answer], infer_s=self._timer() - started))

    def _passed_on(self, job: Asked, inputs: tuple[Tensor, ...]) -> InferRequest:
        """Return a request as a process gets it: with the time that is left, in the model's shapes."""
        left_s = max(0.0, job.deadline - self._loop.time())
        outputs = self._asked_for(job) if self._rows is not None else job.request.outputs
        return replace(job.request, inputs=inputs, outputs=outputs, timeout_s=left_s)

    def _asked_for(self, job: Asked) -> tuple[str, ...]:
        return job.outputs if self._rows is None else self._rows.outputs(job.outputs)

    def _ended(self, batch: Batch, ran: Ran) -> None:
        self._batches.discard(batch)
        self._busy[batch.instance] -= 1
        if batch.is_stuck:
            self._stuck[batch.instance] -= 1
        self.running -= len(batch.jobs)
        if self._rows is not None:
            ran.answers = [
                self._without_states(job, answer)
                for job, answer in zip(batch.jobs, ran.answers, strict=True)
            ]
        self._on_ran(batch, ran)

    def _left_off(self, batch: Batch, _task: asyncio.Task[None]) -> None:
        """Free the place of a batch whose task was cancelled before its first step: nothing of it has run.

        That happens to requests whose callers leave in the turn of the loop in which their run is started, as when
        a link is lost with many of them on it.
        """
        if batch in self._batches:
            self._ended(batch, Ran([_nobody_waits()] * len(batch.jobs)))

    def _without_states(self, job: Asked, answer: Answer) -> Answer:
        assert self._rows is not None
        if isinstance(answer, MeshError) or self.streams:
            return answer
        outputs = answer.outputs if isinstance(answer, ResponsePart) else answer
        try:
            wanted = self._rows.taken(job, outputs, job.outputs)
        except MeshError as error:
            return error
        return replace(answer, outputs=wanted) if isinstance(answer, ResponsePart) else wanted

    def _lost(self, instance: int, reason: str) -> None:
        if reason:
            self._dead.add(instance)
        elif instance in self._dead:
            self._dead.remove(instance)
        else:
            return  # it was never missed
        self._on_lost(instance, reason)

    async def close(self) -> None:
        """Free the models, but for those of which a run has not ended."""
        if self._workers is not None:
            self._workers.shutdown(wait=False)
        kept = {id(self._active[batch.instance].model) for batch in self._batches}
        for instance in self._opened.instances:
            if id(instance.model) in kept:
                continue
            if isinstance(instance.model, ProcessModel):
                await instance.model.close()
            else:
                instance.model.close()


def _begin(job: Asked, stream: PartStream) -> None:
    """A stream has its first part, or has ended without one and without an error."""
    if job.answer.done():  # late, or its caller is gone
        stream.cancel()
    else:
        job.answer.set_result(stream)


def _nobody_waits() -> MeshError:
    return Cancelled("every caller of this execution is gone")
