"""One version that is ready: its queue, its instances, and where each request runs.

A request takes one of three ways:

- **at once, on the event loop**, if it is expected to be shorter than `inline_limit_s`: a hand-over to a
  thread takes 60-70 µs, a small ONNX call 5. Where many come at once and can be joined, they are
  (`meshnode.models.serving.crowding`);
- **through the queue** (`meshnode.models.serving.batching`) into a batch, which an instance executes: a model in this
  process in a worker thread, a model in a process of its own by asking that;
- **as a stream**, if the model may give any number of answers (`meshnode.models.serving.part_stream`): it holds its place
  in an instance until its last part.

Which requests are joined is configured (`dynamic_batching`), or learned (`meshnode.models.serving.adaptive`) where the
first dimension of all tensors is free and joined rows were seen to give the answers that they give alone.

    arrives ──> waiting ──> running ──> answered
        └─ refused  ├─ late  └─ late, or its caller is gone: its answer is dropped; where all of its requests
                    └─ gone     are gone, the execution is ended: a process is told so, ONNX Runtime stops between
                                two operations. A place whose run does not end is lost until it does.

All but the executions themselves happens on one event loop.
"""

from __future__ import annotations

import asyncio
import logging
import math
from typing import TYPE_CHECKING, Any, Final

from msgspec.structs import replace

from meshnode.errors import (
    DeadlineExceeded,
    InferenceFailed,
    MeshError,
    NotServing,
    Saturated,
)
from meshnode.limits import MAX_ADAPTIVE_ROW_BYTES, MAX_ADAPTIVE_ROWS, RUN_END_GRACE_S
from meshnode.models.manifest import check_request
from meshnode.models.runtimes.base import StoppableModel
from meshnode.models.serving.adaptive import AdaptiveRows
from meshnode.models.serving.admission import hold_to, join_sequence, level_of, number, why_apart
from meshnode.models.serving.batch_run import Ran
from meshnode.models.serving.batching import Batcher, InOrder, Refuse, Start
from meshnode.models.serving.crowding import Crowd
from meshnode.models.serving.inline_watch import watch_of_this_thread
from meshnode.models.serving.instances import Asked, Batch, Instances, Workers
from meshnode.models.serving.joining import Reshaping, row_key, rows_of
from meshnode.models.serving.measure import has_free_sizes, unit_counter
from meshnode.models.serving.part_stream import PartStream
from meshnode.models.serving.rate_limit import TokenBucket
from meshnode.models.serving.sequence_handover import SequenceHandover
from meshnode.models.serving.sequences import Sequencer
from meshnode.models.serving.shedding import check_in_time, expected_wait_s
from meshnode.models.serving.statistics import Statistics
from meshnode.types import InferResponse, ResponsePart
from meshnode.wire.messages import LoadReport

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from meshnode.models.manifest import Manifest
    from meshnode.models.runtimes.base import LoadedModel, StoppableRun
    from meshnode.models.serving.batch_run import Answer
    from meshnode.models.serving.batching import Effects
    from meshnode.models.serving.opened import Opened
    from meshnode.models.serving.server_config import ServerConfig
    from meshnode.models.serving.statistics import VersionStatistics
    from meshnode.types import InferRequest, Tensor

log = logging.getLogger(__name__)

_US: Final = 1e-6

_JOINED_FROM_S: Final = 100e-6
"""Shorter requests run at once even in a crowd: a hand-over to a thread takes nearly as long."""

_GONE: Final = "every process of this model has ended; it is started again"


class Replica:
    """A version that is ready, or draining; owned by one event loop.

    Attributes:
        manifest: What it is.
        on_lost: Called with a reason when the last process of the model is gone, and with an empty one each time
            one is ready again.
        on_trouble: Called with a reason when some of its places are lost, and with an empty one when all are
            back.
    """

    def __init__(
        self,
        manifest: Manifest,
        opened: Opened,
        config: ServerConfig,
        timer: Callable[[], float],
        make_workers: Callable[[int, str], Workers],
    ) -> None:
        """Take over what was opened.

        Args:
            manifest: What it is.
            opened: Its instances, which this closes, and what is known of their times.
            config: How requests are run.
            timer: Seconds, for measuring runs; called in worker threads too.
            make_workers: Makes what runs batches, of their number and a name.
        """
        self.manifest = manifest
        self.on_lost: Callable[[str], None] = lambda _reason: None
        self.on_trouble: Callable[[str], None] = lambda _reason: None
        self._run_time = opened.run_time
        self._inline_limit_s = config.inline_limit_s
        self._timer = timer
        self._loop = asyncio.get_running_loop()
        self._units = unit_counter(manifest)
        self._units_are_rows = not has_free_sizes(manifest)
        self._has_rows = (
            manifest.max_batch_size > 0
        )  # else a request is one inference, of any shape
        self._outputs = tuple(spec.name for spec in manifest.outputs)
        self._statistics = Statistics()
        self._failing = 0  # runs in a row at which the model raised
        self._reshaping = Reshaping(manifest)
        self._alarm: asyncio.TimerHandle | None = None
        self._alarm_at = math.inf
        self._idle: asyncio.Future[None] | None = None
        self._instances = Instances(manifest, opened, timer, make_workers, self._finish, self._lost)
        rate = manifest.execution.rate_limit
        self._bucket = TokenBucket(rate) if rate is not None and rate.per_second > 0 else None
        self._pressed_rows: int | None = None
        self._set_up_batching(opened, config)
        self._set_up_ways()

    def _set_up_batching(self, opened: Opened, config: ServerConfig) -> None:
        manifest = self.manifest
        batching = manifest.execution.batching
        self._apart = why_apart(manifest, self._instances, opened.apart)
        self._adaptive: AdaptiveRows | None = None
        if not self._apart and batching is None and manifest.execution.sequences is None:
            self._adaptive = AdaptiveRows(manifest.max_batch_size or MAX_ADAPTIVE_ROWS)
            for rows, ms in opened.profile:
                self._adaptive.observe(rows, ms / 1000)
        self._sequences = manifest.execution.sequences
        self.handover: SequenceHandover | None = None
        """Gives its sequences to other nodes, and takes theirs; None if it has none."""
        self._queue: Batcher[Asked] | Sequencer[Asked]
        limits = {"max_rows": self._batch_rows(), "max_waiting": config.max_waiting}
        if self._sequences is None:
            self._queue = Batcher(batching, **limits)
        else:
            self._queue = Sequencer(self._sequences, **limits)
            self.handover = SequenceHandover(manifest, self._queue, self._do, self._now)
        self._order: InOrder[Asked, Answer | None] | None = None
        if batching is not None and batching.preserve_ordering:
            self._order = InOrder()

    def _set_up_ways(self) -> None:
        """Find out which ways requests may take, and tell the queue of the instances."""
        model: Any = self._instances.inline
        if self._queue.delays or self._order is not None:
            model = None
        # Runs that take far too long after all can be ended only by another thread.
        self._stoppable: StoppableRun | None = None
        if isinstance(model, StoppableModel):
            self._stoppable = model = model.stoppable()
        self._inline_model: LoadedModel | StoppableRun | None = model
        self._watch = watch_of_this_thread()
        self._exclusive = self._instances.exclusive
        self._crowd = Crowd()
        # What every request is asked: one look for all that is out of the ordinary.
        self._plain = self._bucket is None and not self._reshaping
        for instance in self._instances.places():
            self._queue.free(instance, self._now())

    def __repr__(self) -> str:
        return (
            f"<Replica {self.manifest.model}/{self.manifest.version} running={self._instances.running} "
            f"waiting={self._queue.waiting} {self.batching}>"
        )

    # What it tells

    @property
    def in_system(self) -> int:
        """Requests that run or wait."""
        return self._instances.running + self._queue.waiting

    @property
    def open_sequences(self) -> int:
        """Sequences that have begun here and have not ended."""
        return self._queue.open_sequences if isinstance(self._queue, Sequencer) else 0

    @property
    def batching(self) -> str:
        """How requests are joined, for people."""
        rows = self._queue.max_rows
        if self._sequences is not None:
            return f"sequences, {self._sequences.strategy}, up to {rows} rows"
        if self._apart:
            return f"off: {self._apart}"
        if self._adaptive is not None:
            return f"adaptive, {rows} of up to {self._adaptive.most} rows"
        return f"configured, up to {rows} rows"

    def load_report(self) -> LoadReport:
        """Return how busy it is, so that routing's formula gives a request's true wait.

        `slots` is how many requests run at once: the places in its instances, times the requests that were
        joined lately; `service_ms` is the time of such an execution. Their ratio is the requests per second that
        it can take. While nothing is joined both are those of single requests, and under load the report
        follows the batches that really form, within some twenty executions.
        """
        slots = max(1, self._instances.living_slots)
        joined = max(1, round(self._run_time.joined))
        return LoadReport(
            self.in_system,
            slots * joined,
            self._run_time.request_s * 1000,
            failing=self._failing,
        )

    def statistics(self) -> VersionStatistics:
        """Return what it has done since it was loaded."""
        return self._statistics.snapshot()

    def cache_hit(self, elapsed_s: float) -> None:
        """Count an answer that the response cache gave."""
        self._statistics.cache_hit(elapsed_s)

    def cache_miss(self, elapsed_s: float) -> None:
        """Count a look into the response cache that found nothing."""
        self._statistics.cache_miss(elapsed_s)

    # Requests

    def try_inline(self, request: InferRequest) -> ResponsePart | None:
        """Run a short request at once, or return None: await `infer` instead.

        Raises:
            InvalidRequest: if the request does not fit the model; nothing ran.
            DeadlineExceeded: if no time is left; nothing ran.
            InferenceFailed: if the model raised.
        """
        check_request(self.manifest, request)
        if request.timeout_s <= 0:
            raise DeadlineExceeded("the request's deadline has passed")
        return self._run_short(request, request.inputs) if self._plain else None

    async def infer(self, request: InferRequest) -> InferResponse:
        """Run a request, wherever its expected time puts it.

        A caller that gives up (its task is cancelled) leaves the queue at once; of an execution that has
        begun only its answer is dropped, unless nobody else waits for that execution and it can be stopped.

        Raises:
            Saturated: if the queue is full, the request waited there for as long as that allows, or the
                version has had as many requests as its rate allows; nothing ran.
            DeadlineExceeded: if the deadline passed in the queue (nothing ran) or during the run.
            NotServing: if the model's process is gone.
            InvalidRequest, InferenceFailed: as `try_inline`.
        """
        check_request(self.manifest, request)
        if request.timeout_s <= 0:
            raise DeadlineExceeded("the request's deadline has passed")
        if self._bucket is not None:
            hold_to(self._bucket, self._now(), self.manifest)
        inputs = request.inputs
        if self._reshaping:
            inputs = self._reshaping.to_model(inputs)
        part = self._run_short(request, inputs)
        if part is not None and self._reshaping:
            part = ResponsePart(self._reshaping.to_client(part.outputs))
        if part is not None:
            return InferResponse(self.manifest.model, self.manifest.version, part)
        return await self._run_queued(request, inputs)

    def _run_short(self, request: InferRequest, inputs: tuple[Tensor, ...]) -> ResponsePart | None:
        """Run a request on the loop, if that is expected to take little; None if not."""
        model = self._inline_model
        if model is None:
            return None
        units = self._units(inputs)
        expected_s = self._run_time.expected_s(units)
        if expected_s >= self._inline_limit_s or (self._exclusive and not self._queue.has_free):
            return None
        if expected_s >= _JOINED_FROM_S and self._is_crowded():
            return None
        timer = self._timer
        watch = self._watch
        watch.began = started = timer()
        watch.run = self._stoppable
        if not watch.awake and self._stoppable is not None:
            watch.wake()
        try:
            outputs = model.run(inputs, request.outputs or self._outputs)
        except Exception:
            watch.run = None
            if self._was_stopped(timer() - started):
                return None
            self._statistics.failed(timer() - started)
            self._failing += 1
            raise
        watch.run = None
        self._failing = 0
        ended = timer()
        elapsed_s = ended - started
        self._run_time.observe(elapsed_s, units)
        rows = (units if self._units_are_rows else request.rows) if self._has_rows else 1
        self._statistics.ran_alone(rows, elapsed_s, ended)
        return ResponsePart(outputs)

    def _was_stopped(self, elapsed_s: float) -> bool:
        """Whether the run on the loop was ended because it took too long; what comes now takes the queue."""
        run = self._stoppable
        if run is None or not run.stopped:
            return False
        run.rearm()
        log.warning(
            "model %s version %d: a run on the event loop was ended after %.0f ms; it is made again in a thread",
            self.manifest.model, self.manifest.version, elapsed_s * 1000,
        )  # fmt: skip
        self._run_time.distrust()
        return True

    def _is_crowded(self) -> bool:
        """Whether a short request should be joined with others instead."""
        return self._queue.max_rows > 1 and self._crowd.queues(self.in_system)

    async def _run_queued(self, request: InferRequest, inputs: tuple[Tensor, ...]) -> InferResponse:
        if not self._instances.living_slots:
            raise NotServing(self._stuck_reason() if self._instances.stuck else _GONE)
        job = self._arrived(request, inputs)
        try:
            answer = await job.answer
            response = InferResponse(self.manifest.model, self.manifest.version, answer)
            response.run_ms = job.ran_s * 1000
            return response
        except asyncio.CancelledError:
            self._leave(job)
            raise
        finally:
            del job  # an error leads back to this frame; through the job it would lead to itself

    def _arrived(self, request: InferRequest, inputs: tuple[Tensor, ...]) -> Asked:
        """Put a request into the queue."""
        now = self._now()
        job = self._job(request, inputs, now)
        effects = self._queued(job, now)
        if self._order is not None:
            self._order.expect(job)
        self._do(effects)
        return job

    def _queued(self, job: Asked, now: float) -> Effects[Asked]:
        """Let a job into the queue.

        Raises:
            Saturated: if that is full, or the job would wait there for longer than it can; it says how long.
        """
        if self._queue.has_free:
            return self._queue.arrive(job, now)
        load, request = self.load_report(), job.request
        service_s = load.service_ms / 1000
        if self._sequences is None:  # one that has begun waits for its turn whatever it costs
            check_in_time(
                load.in_system, load.slots, service_s, request.timeout_s, request.hints.priority
            )
        try:
            return self._queue.arrive(job, now)
        except Saturated as full:
            full.retry_after_s = expected_wait_s(load.in_system, load.slots, service_s)
            raise

    def _job(self, request: InferRequest, inputs: tuple[Tensor, ...], now: float) -> Asked:
        rows, key = 1, None
        outputs = request.outputs or self._outputs
        if not self._apart:
            rows = rows_of(inputs)
            # Rows that the inputs do not agree on, none at all, or large ones: a batch of its own.
            key = (
                row_key(inputs, outputs) if rows and not self._is_large(inputs, rows) else object()
            )
        parameters = request.parameters
        timeout_us = number(parameters.get("timeout")) if parameters else None
        job = Asked(
            request,
            inputs,
            outputs,
            self._loop.create_future(),
            self._timer(),
            rows=rows or self._queue.max_rows,
            key=key,
            deadline=now + request.timeout_s,
            level=level_of(request, self.manifest.execution.batching),
            timeout_s=None if timeout_us is None else timeout_us * _US,
        )
        if self._sequences is not None:
            join_sequence(job, self.manifest)
        return job

    def _is_large(self, inputs: tuple[Tensor, ...], rows: int) -> bool:
        """Whether a request's rows take so much memory that only a configuration may join them."""
        return (
            self._adaptive is not None
            and sum([tensor.size_bytes for tensor in inputs]) > rows * MAX_ADAPTIVE_ROW_BYTES
        )

    # The queue

    def limit_rows(self, rows: int | None) -> None:
        """Join no more than so many rows, whatever is configured, for want of memory; None for no limit."""
        self._pressed_rows = rows
        self._queue.max_rows = self._batch_rows()
        self._do(self._queue.tick(self._now()))

    def _batch_rows(self) -> int:
        if self._apart:
            return 1
        rows = self.manifest.max_batch_size if self._adaptive is None else self._adaptive.rows
        if self._pressed_rows is not None:
            rows = min(rows, self._pressed_rows)
        return max(1, rows)

    def _do(self, effects: Sequence[Start[Asked] | Refuse[Asked]]) -> None:
        for effect in effects:
            if isinstance(effect, Start):
                self._start(effect)
            else:
                self._fail(effect.job, effect.error)
                self._settled(effect.job, effect.error)
        at = self._queue.next_at
        if at < self._alarm_at:
            if self._alarm is not None:
                self._alarm.cancel()
            self._alarm_at = at
            self._alarm = self._loop.call_at(at, self._ring)
        self._look_idle()

    def _ring(self) -> None:
        self._alarm = None
        self._alarm_at = math.inf
        self._do(self._queue.tick(self._now()))

    def _leave(self, job: Asked) -> None:
        """A caller that waited for an answer was cancelled."""
        if job.answer.done() and not job.answer.cancelled():  # it came in the same turn of the loop
            if job.answer.exception() is None and isinstance(
                stream := job.answer.result(), PartStream
            ):
                stream.cancel()
            return
        job.answer.cancel()
        self._statistics.failed(self._timer() - job.started)
        self._queue.cancel(job)
        self._drop(job)
        self._do(self._queue.tick(self._now()))

    def _late(self, job: Asked) -> None:
        """The deadline passed during the run."""
        job.timer = None
        if not job.answer.done():
            self._fail(job, DeadlineExceeded("the model was still running at the deadline"))
            self._drop(job)

    def _drop(self, job: Asked) -> None:
        """Nobody waits for a job's answer any more."""
        if job.timer is not None:
            job.timer.cancel()
        batch = job.batch
        if batch is not None:
            batch.waited_for -= 1
            if batch.waited_for == 0:
                batch.stop()
                batch.look = self._loop.call_later(RUN_END_GRACE_S, self._look_stuck, batch)
        self._settled(job, None)

    def _look_stuck(self, batch: Batch) -> None:
        """A run that nobody waits for had time to end."""
        if not self._instances.look_stuck(batch):
            return
        reason = self._stuck_reason()
        log.warning("model %s version %d: %s", self.manifest.model, self.manifest.version, reason)
        if self._instances.living_slots:
            self.on_trouble(reason)
        else:
            self._do(self._queue.refuse_all(NotServing(reason)))
            self.on_lost(reason)

    def _stuck_reason(self) -> str:
        return (
            f"{self._instances.stuck} of {self._instances.slots} places are held by runs that nobody waits for "
            "and that do not end; the node must be restarted to be rid of them"
        )

    # Executions

    def _start(self, start: Start[Asked]) -> None:
        batch = Batch(start.instance, start.jobs, self._timer(), len(start.jobs))
        for job in batch.jobs:
            job.batch = batch
            job.timer = self._loop.call_at(job.deadline, self._late, job)
        self._instances.start(batch)

    def _finish(self, batch: Batch, ran: Ran) -> None:
        """Give the instance its next batch, learn, and hand out the answers."""
        self._learn(batch, ran)
        if batch.look is not None:
            batch.look.cancel()
        if batch.is_stuck:
            if self._instances.living_slots == 1:
                self.on_lost("")
            self.on_trouble(self._stuck_reason() if self._instances.stuck else "")
        if self._instances.free_places(batch.instance):
            self._do(self._queue.free(batch.instance, self._now()))
        for job, answer in zip(batch.jobs, ran.answers, strict=True):
            if job.timer is not None:
                job.timer.cancel()
            self._answer(job, answer, batch, ran)
            job.batch = None
        batch.let_go()
        self._look_idle()

    def _learn(self, batch: Batch, ran: Ran) -> None:
        jobs = batch.jobs
        ended = self._timer()
        if ran.executions == 1:
            self._count(jobs, ran, ended)
        else:
            for job, answer in zip(jobs, ran.answers, strict=True):
                self._count((job,), Ran((answer,), infer_s=ran.infer_s / len(jobs)), ended)
        if ran.apart and not self._apart:
            self._apart = f"its outputs are not rows ({ran.apart})"
            log.warning(
                "model %s version %d: its requests are no longer joined to batches: %s",
                self.manifest.model,
                self.manifest.version,
                ran.apart,
            )
        if ran.executions == 1 and not any(isinstance(each, MeshError) for each in ran.answers):
            if len(jobs) == 1:
                self._run_time.observe(ran.infer_s, self._units(jobs[0].inputs))
            self._run_time.observe_run(ran.infer_s, len(jobs))
            if self._adaptive is not None:
                self._adaptive.observe(sum(job.rows for job in jobs), sum(ran.compute_s))
        self._queue.max_rows = self._batch_rows()
        if isinstance(self._queue, Batcher):
            self._queue.run_s = self._run_time.request_s

    def _count(self, jobs: Sequence[Asked], ran: Ran, ended: float) -> None:
        """Count an execution and what it answered; one that answered nothing counts by its failed requests only."""
        answered = [
            job
            for job, answer in zip(jobs, ran.answers, strict=True)
            if not isinstance(answer, MeshError)
        ]
        if not answered:
            return
        self._statistics.ran(
            sum(job.request.rows for job in answered) if self._has_rows else len(answered),
            input_s=ran.input_s,
            infer_s=ran.infer_s,
            output_s=ran.output_s,
            ended=ended,
        )

    # Answers

    def _answer(self, job: Asked, answer: Answer, batch: Batch, ran: Ran) -> None:
        given = job.answer
        if given.done() and (given.cancelled() or given.exception() is not None):
            return  # late, or its caller is gone; a stream, though, was given when it began
        if isinstance(answer, MeshError):
            self._statistics.failed(self._timer() - job.started)
            self._failing += isinstance(answer, InferenceFailed)
        else:
            self._failing = 0
            if len(batch.jobs) == 1 and not isinstance(answer, PartStream):
                job.ran_s = ran.infer_s
            elapsed_s = self._timer() - job.started
            self._statistics.answered(elapsed_s, batch.started - job.started, ran.compute_s)
        self._settled(job, answer)

    def _fail(self, job: Asked, error: MeshError) -> None:
        """Give a job its error at once: an order is one of answers."""
        self._statistics.failed(self._timer() - job.started)
        if not job.answer.done():
            job.answer.set_exception(error)

    def _settled(self, job: Asked, answer: Answer | None) -> None:
        """Give out what may be given, now that this job has its answer, or needs none."""
        if self._order is None:
            self._give(job, answer)
            return
        for each, its_answer in self._order.answer(job, answer):
            self._give(each, its_answer)

    def _give(self, job: Asked, answer: Answer | None) -> None:
        if job.answer.done() or answer is None:
            return
        if isinstance(answer, tuple):
            answer = ResponsePart(answer)
        if isinstance(answer, ResponsePart) and self._reshaping:
            try:
                answer = replace(answer, outputs=self._reshaping.to_client(answer.outputs))
            except MeshError as error:
                answer = InferenceFailed(str(error))
        if isinstance(answer, ResponsePart):
            job.answer.set_result(answer)
        else:
            job.answer.set_exception(answer)

    # Processes that end, and the end

    def _lost(self, instance: int, reason: str) -> None:
        """An instance's process has ended, or is ready again (no reason)."""
        if reason:
            self._do(self._queue.withdraw(instance))
            if not self._instances.living_slots:
                self._do(self._queue.refuse_all(NotServing(f"the model's process ended: {reason}")))
                self.on_lost(reason)
            return
        self.on_lost("")
        for _ in range(self._instances.free_places(instance)):
            self._do(self._queue.free(instance, self._now()))

    def _look_idle(self) -> None:
        if self._idle is not None and not self.in_system:
            if not self._idle.done():
                self._idle.set_result(None)
            self._idle = None

    async def drained(self, limit_s: float = math.inf) -> bool:
        """Wait until nothing runs or waits.

        Args:
            limit_s: Seconds after which what still runs is ended, if it can be.

        Returns:
            Whether it came to that; not if a run that nobody waits for does not end.
        """
        ends_at = self._now() + limit_s
        forsaken = False
        while self.in_system:
            if self._idle is None:
                self._idle = self._loop.create_future()
            wait_s = min(RUN_END_GRACE_S, ends_at - self._now())
            await asyncio.wait([self._idle], timeout=max(0.0, wait_s))
            if self._now() >= ends_at and limit_s < math.inf:
                limit_s, ends_at = math.inf, math.inf
                self.end_all()
                continue
            is_forsaken = not self._queue.waiting and self._instances.is_forsaken
            if self.in_system and forsaken and is_forsaken:
                return False
            forsaken = is_forsaken
        return True

    def end_all(self) -> None:
        """Refuse what waits, and end what runs; its callers are told to go elsewhere."""
        gone = NotServing("this node stopped serving the model before the request was done")
        self._do(self._queue.refuse_all(gone))
        for batch in self._instances.batches():
            for job in batch.jobs:
                if not job.answer.done():
                    self._fail(job, gone)
                    self._drop(job)

    async def close(self) -> None:
        """Free the model, but for instances of which a run has not ended."""
        if self._alarm is not None:
            self._alarm.cancel()
        await self._instances.close()

    def _now(self) -> float:
        return self._loop.time()
