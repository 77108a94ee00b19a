"""Which requests run together, when, and on which instance: a queue and a batcher without I/O.

A `Job` arrives, waits, and leaves in a batch, or is refused:

    arrive ──> waiting ──Start──> running (the caller's business) ──free──> its instance is free
                  │ └─ queue timeout, DELAY ──> delayed: behind all others of its level ──Start──>
                  ├─ deadline, or queue timeout with REJECT ──Refuse──> gone
                  └─ cancel ──> gone

Only jobs of one `key` (the shapes and types of their rows, and the outputs wanted) are joined, and their rows
together never exceed `max_rows`; a job that has more runs alone. When an instance is free, the keys are
asked in the order of their first jobs, and the first whose batch should leave does so:

- its rows are a preferred size, in all or as the sum of the first few jobs (the largest such sum counts);
- or it is full: the next job does not fit, or no preferred size lies ahead;
- or a job has waited for `max_delay_s`, or for half of the time that it has; without a delay, at once.

Within a key, jobs leave in the order of their levels, and in the order in which they came in each.
Every method takes `now`, monotonic seconds, and returns what is to be done, in order.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Generic, TypeVar

from meshnode.errors import DeadlineExceeded, MeshError, Saturated
from meshnode.limits import MAX_QUEUE_SIZE
from meshnode.models.execution import DynamicBatching, QueuePolicy, Timeout
from meshnode.models.serving.shedding import is_too_late

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator

_US: Final = 1e-6

_NO_BATCHING: Final = DynamicBatching()


class Job:
    """A request as the batcher sees it; users derive from it.

    Attributes:
        rows: Rows that it adds to a batch, at least 1.
        key: Jobs with equal keys may be joined.
        level: Priority level asked for; 0 or one that does not exist takes the default.
        deadline: When nobody waits for its answer any more, in monotonic seconds.
        timeout_s: Seconds in the queue that it asked for; None for the policy's own.
        arrived: When it came.
    """

    __slots__ = ("_number", "_rank", "_wait_until", "arrived", "deadline", "key", "level", "rows", "timeout_s")  # fmt: skip

    def __init__(
        self,
        rows: int,
        key: Hashable,
        deadline: float,
        level: int = 0,
        timeout_s: float | None = None,
    ) -> None:
        self.rows = rows
        self.key = key
        self.level = level
        self.deadline = deadline
        self.timeout_s = timeout_s
        self.arrived = 0.0
        self._number = 0
        self._rank = _GONE
        self._wait_until = math.inf

    def gathers_until(self, delay_s: float) -> float:
        """Return until when it may wait for others: for a delay, but not past half of its own time."""
        return min(self.arrived + delay_s, (self.arrived + self.deadline) / 2)

    @property
    def is_waiting(self) -> bool:
        """Whether it is in the queue."""
        return self._rank != _GONE


_GONE: Final = -1

JobType = TypeVar("JobType", bound=Job)
AnswerType = TypeVar("AnswerType")


@dataclass(frozen=True, slots=True)
class Start(Generic[JobType]):
    """Run these jobs together on this instance, and call `free` when it can take the next ones."""

    instance: int
    jobs: tuple[JobType, ...]


@dataclass(frozen=True, slots=True)
class Refuse(Generic[JobType]):
    """Answer this job with this error; nothing ran."""

    job: JobType
    error: MeshError


Effects = list[Start[JobType] | Refuse[JobType]]
"""What is to be done, in order."""


@dataclass(frozen=True, slots=True)
class _Queue:
    """One level's limits."""

    size: int
    timeout_s: float
    timeout: Timeout
    override: bool


class _Group(Generic[JobType]):
    """The waiting jobs of one key, by rank: twice the level, and one more for those that are delayed."""

    __slots__ = ("queues",)

    def __init__(self) -> None:
        self.queues: dict[int, deque[JobType]] = {}

    def add(self, rank: int, job: JobType) -> None:
        job._rank = rank
        queue = self.queues.get(rank)
        if queue is None:
            queue = self.queues[rank] = deque()
            if len(self.queues) > 1:
                self.queues = dict(sorted(self.queues.items()))
        queue.append(job)

    def remove(self, job: JobType) -> None:
        queue = self.queues[job._rank]
        if queue[0] is job:
            queue.popleft()
        else:
            queue.remove(job)
        if not queue:
            del self.queues[job._rank]
        job._rank = _GONE

    def jobs(self) -> Iterator[JobType]:
        """Yield all that wait, in order."""
        for queue in self.queues.values():
            yield from queue


class Batcher(Generic[JobType]):
    """The queue of one model version, before its instances.

    Attributes:
        max_rows: Rows of a batch, at least 1; may be changed at any time, followed by `tick`.
        waiting: Jobs in the queue.
        run_s: Seconds of an ordinary run, by which is judged whose turn comes too late
            (`meshnode.models.serving.shedding`); may be changed at any time, 0 for not known.
    """

    def __init__(
        self, settings: DynamicBatching | None, *, max_rows: int, max_waiting: int
    ) -> None:
        """Start empty, with no instance free.

        Args:
            settings: The configuration; None for a plain queue, joined without delay.
            max_rows: Rows of a batch, at least 1.
            max_waiting: Jobs that wait at most, where a queue's policy sets no limit.
        """
        batching = settings or _NO_BATCHING
        self.max_rows = max_rows
        self.waiting = 0
        self.run_s = 0.0
        self._preferred = frozenset(batching.preferred_batch_sizes)
        self._largest_preferred = max(self._preferred, default=0)
        self._delay_s = batching.max_queue_delay_us * _US
        self._levels = batching.priority_levels
        self._default_level = batching.default_priority_level if self._levels else 0
        policies = dict(batching.queue_policies)
        self._queues = [
            _queue(policies.get(level, batching.default_queue_policy), max_waiting)
            for level in range(self._levels + 1)
        ]
        self._counts = [0] * (self._levels + 1)
        self._groups: dict[Hashable, _Group[JobType]] = {}
        self._free: list[int] = []
        self._soonest = math.inf
        self._numbers = 0

    def __repr__(self) -> str:
        return f"<Batcher {self.waiting} waiting, {len(self._free)} free, max_rows={self.max_rows}>"

    @property
    def has_free(self) -> bool:
        """Whether an instance waits for jobs."""
        return bool(self._free)

    @property
    def delays(self) -> bool:
        """Whether a job may wait though an instance is free."""
        return self._delay_s > 0

    @property
    def next_at(self) -> float:
        """When `tick` is to be called at the latest; inf if that is not needed."""
        if not self.waiting:
            return math.inf
        if not self._free or not self._delay_s:
            return self._soonest
        return min(self._soonest, *[self._oldest(each) for each in self._groups.values()])

    def arrive(self, job: JobType, now: float) -> Effects[JobType]:
        """Take a job.

        Raises:
            Saturated: if its queue is full; nothing changed.
        """
        level = job.level if 0 < job.level <= self._levels else self._default_level
        queue = self._queues[level]
        if self._counts[level] >= queue.size and (self._delay_s or not self._free):
            of_level = f" at priority {level}" if self._levels else ""
            raise Saturated(
                f"{self._counts[level]} requests wait for this model{of_level}, as many as may"
            )
        job.arrived = now
        job.level = level
        job._number = self._numbers = self._numbers + 1
        job._wait_until = now + _timeout_s(queue, job.timeout_s)
        self._soonest = min(self._soonest, job.deadline, job._wait_until)
        group = self._groups.get(job.key)
        if group is None:
            group = self._groups[job.key] = _Group()
        group.add(2 * level, job)
        self._counts[level] += 1
        self.waiting += 1
        return self.tick(now)

    def free(self, instance: int, now: float) -> Effects[JobType]:
        """Take an instance that can run a batch; it may be given several times, for as many batches at once."""
        self._free.append(instance)
        return self.tick(now)

    def withdraw(self, instance: int) -> Effects[JobType]:
        """Give an instance no further batches until it is `free` again; what runs there may still end."""
        self._free = [each for each in self._free if each != instance]
        return []

    def cancel(self, job: JobType) -> bool:
        """Forget a job that waits; return whether it did, so that it will never start."""
        if not job.is_waiting:
            return False
        self._leave(job)
        return True

    def refuse_all(self, error: MeshError) -> Effects[JobType]:
        """Refuse all that wait."""
        jobs = [job for group in self._groups.values() for job in group.jobs()]
        for job in jobs:
            self._leave(job)
        return [Refuse(job, error) for job in sorted(jobs, key=_number)]

    def tick(self, now: float) -> Effects[JobType]:
        """Do what is due."""
        effects: Effects[JobType] = []
        if now >= self._soonest:
            effects.extend(self._expire(now))
        while self._free and self.waiting:
            jobs = self._next_batch(now)
            if not jobs:
                break
            for job in jobs:
                self._leave(job)
            if self.waiting and self.run_s:
                late = [job for job in jobs if is_too_late(self.run_s, job.deadline - now)]
                effects.extend(Refuse(job, _no_time()) for job in late)
                jobs = tuple(job for job in jobs if job not in late)
            if jobs:
                effects.append(Start(self._free.pop(), jobs))
        return effects

    def _leave(self, job: JobType) -> None:
        group = self._groups[job.key]
        group.remove(job)
        if not group.queues:
            del self._groups[job.key]
        self._counts[job.level] -= 1
        self.waiting -= 1

    def _expire(self, now: float) -> list[Refuse[JobType]]:
        """Refuse or delay who waited too long, and find when that is to be looked at again."""
        late: list[JobType] = []
        timed_out: list[JobType] = []
        self._soonest = math.inf
        for group in self._groups.values():
            for job in group.jobs():
                if job.deadline <= now:
                    late.append(job)
                elif job._wait_until <= now:
                    timed_out.append(job)
                else:
                    self._soonest = min(self._soonest, job.deadline, job._wait_until)
        refusals = [Refuse(job, _late()) for job in late]
        for job in timed_out:
            if self._queues[job.level].timeout is Timeout.DELAY:
                self._delay(job)
            else:
                refusals.append(Refuse(job, _timed_out(job, now)))
        for refusal in refusals:
            self._leave(refusal.job)
        return sorted(refusals, key=lambda each: _number(each.job))

    def _delay(self, job: JobType) -> None:
        job._wait_until = math.inf
        self._soonest = min(self._soonest, job.deadline)
        group = self._groups[job.key]
        group.remove(job)
        group.add(2 * job.level + 1, job)

    def _next_batch(self, now: float) -> tuple[JobType, ...]:
        """Return the jobs of the first key whose batch should leave; none if all should wait."""
        if len(self._groups) == 1:
            [group] = self._groups.values()
            return self._batch(group, now)
        for group in sorted(self._groups.values(), key=lambda each: _rank(next(each.jobs()))):
            if jobs := self._batch(group, now):
                return jobs
        return ()

    def _batch(self, group: _Group[JobType], now: float) -> tuple[JobType, ...]:
        """Return the jobs of a key that should leave now; none if they should wait for more."""
        jobs: list[JobType] = []
        rows = preferred = 0
        full = False
        for job in group.jobs():
            if jobs and rows + job.rows > self.max_rows:
                full = True
                break
            jobs.append(job)
            rows += job.rows
            if rows in self._preferred:
                preferred = len(jobs)
            if rows >= self.max_rows:
                full = True
                break
        if preferred:
            return tuple(jobs[:preferred])
        if full or rows >= self._largest_preferred > 0:
            return tuple(jobs)
        if self._delay_s and now < min(job.gathers_until(self._delay_s) for job in jobs):
            return ()
        return tuple(jobs)

    def _oldest(self, group: _Group[JobType]) -> float:
        """Return when a key's jobs wait for others no longer."""
        return min(job.gathers_until(self._delay_s) for job in group.jobs())


class InOrder(Generic[JobType, AnswerType]):
    """Holds answers back until all that came before have theirs (`preserve_ordering`)."""

    def __init__(self) -> None:
        """Start with nothing expected."""
        self._expected: deque[JobType] = deque()
        self._answers: dict[JobType, AnswerType] = {}

    def __repr__(self) -> str:
        return f"<InOrder {len(self._expected)} expected, {len(self._answers)} held>"

    def expect(self, job: JobType) -> None:
        """A job has come that will have one answer."""
        self._expected.append(job)

    def answer(self, job: JobType, answer: AnswerType) -> list[tuple[JobType, AnswerType]]:
        """Take a job's one answer; return those that may be given now, in order."""
        self._answers[job] = answer
        ready: list[tuple[JobType, AnswerType]] = []
        while self._expected and self._expected[0] in self._answers:
            first = self._expected.popleft()
            ready.append((first, self._answers.pop(first)))
        return ready


def _queue(policy: QueuePolicy, max_waiting: int) -> _Queue:
    size = min(policy.max_queue_size, MAX_QUEUE_SIZE) if policy.max_queue_size else max_waiting
    timeout_s = policy.default_timeout_us * _US or math.inf
    return _Queue(size, timeout_s, policy.timeout, policy.allow_timeout_override)


def _timeout_s(queue: _Queue, asked_s: float | None) -> float:
    """Return how long a job may wait: its own time counts where that is allowed, and shorter."""
    if asked_s is None or not queue.override:
        return queue.timeout_s
    return min(asked_s, queue.timeout_s)


def _number(job: Job) -> int:
    return job._number


def _rank(job: Job) -> tuple[int, int]:
    return job._rank, job._number


def _late() -> MeshError:
    return DeadlineExceeded("the request waited for a free slot until its deadline")


def _no_time() -> MeshError:
    return Saturated(
        "the request waited so long that an ordinary run would not end in the time that is left, and others wait"
    )


def _timed_out(job: Job, now: float) -> MeshError:
    waited_ms = (now - job.arrived) * 1000
    return Saturated(
        f"the request waited {waited_ms:.0f} ms for this model, which is its queue's limit; try again "
        "later, or elsewhere"
    )
