"""Requests that belong together: which sequence has a slot, and which of its requests runs next.

A sequence begins with a request that says so, gets a slot of one instance, and keeps it until its last
request is answered, or until it was silent for `max_idle_s`:

    start ──> waiting for a slot ──> has a slot: silent <──> running ──end, idle, restart──> gone

- `direct`: an instance has as many slots as its batch has rows, and a sequence is always the same row;
- `oldest`: an instance has `max_candidates` slots, and a batch is made of the sequences whose requests have
  waited longest.

One request of a sequence runs at a time, in the order in which they came. A request that is cancelled or late
leaves a gap: it never reaches the model, and if it was to start the sequence, the next one does.

A sequence of which all is known here (its states) may be given to another node::

    silent ──hold──> held: its requests wait ──give──> gone: they and later ones are told where it is
                                             ──keep──> as before

The interface is that of `meshnode.models.serving.batching.Batcher`; every method takes `now`, monotonic seconds.
"""

from __future__ import annotations

import math
from collections import deque
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from meshnode.errors import (
    DeadlineExceeded,
    InferenceFailed,
    InvalidRequest,
    MeshError,
    Saturated,
    SequenceMoved,
)
from meshnode.limits import MAX_SEQUENCES
from meshnode.models.serving.batching import Effects, Job, Refuse, Start

if TYPE_CHECKING:
    from meshnode.models.execution import SequenceBatching
    from meshnode.types import Tensor

_US: Final = 1e-6
_DIRECT: Final = "direct"


class SequenceJob(Job):
    """A request that may be part of a sequence.

    Attributes:
        correlation_id: Names the sequence.
        start: Whether the model is told that the sequence starts with it.
        end: Whether the sequence ends with it.
        elsewhere: Whether it may begin its sequence on another node.
        sequence: Its sequence, once it has arrived.
        slot: Its sequence's slot, once it runs.
    """

    __slots__ = ("correlation_id", "elsewhere", "end", "sequence", "slot", "start")

    def __init__(self, **job: Any) -> None:
        """Make a job of no sequence; see `Job`."""
        super().__init__(**job)
        self.correlation_id: int | str = 0
        self.start = False
        self.end = False
        self.elsewhere = False
        self.sequence: Sequence[Any] | None = None
        self.slot = 0


SequenceJobType = TypeVar("SequenceJobType", bound=SequenceJob)


class Sequence(Generic[SequenceJobType]):
    """One sequence.

    Attributes:
        correlation_id: As its requests name it.
        states: What the model said at its last request, by input name; kept for whoever runs it.
        place: Instance and slot; None while it waits for one.
        held: Whether it is being given to another node, so that its requests wait.
    """

    __slots__ = (
        "correlation_id",
        "ended",
        "held",
        "idle_at",
        "jobs",
        "place",
        "running",
        "started",
        "states",
    )

    def __init__(self, correlation_id: int | str) -> None:
        """Begin, with no slot."""
        self.correlation_id = correlation_id
        self.states: dict[str, Tensor] = {}
        self.place: tuple[int, int] | None = None
        self.jobs: deque[SequenceJobType] = deque()
        self.running = False
        self.started = False
        self.ended = False
        self.held = False
        self.idle_at = math.inf

    def __repr__(self) -> str:
        return f"<Sequence {self.correlation_id!r} at {self.place}, {len(self.jobs)} waiting>"


class Sequencer(Generic[SequenceJobType]):
    """The queue of one model version with sequences, before its instances.

    Attributes:
        max_rows: Rows of a batch, at least 1; of `oldest` it may be changed, followed by `tick`.
        waiting: Jobs that wait.
    """

    delays = True  # a request of a sequence never runs beside the queue

    def __init__(
        self,
        settings: SequenceBatching,
        *,
        max_rows: int,
        max_waiting: int,
        max_sequences: int = MAX_SEQUENCES,
    ) -> None:
        """Start with no sequence, and no instance.

        Args:
            settings: The configuration.
            max_rows: Rows of a batch, at least 1.
            max_waiting: Jobs that wait at most.
            max_sequences: Sequences that have or want a slot at most.
        """
        self.max_rows = max_rows
        self.waiting = 0
        self._direct = settings.strategy == _DIRECT
        self._slots = max_rows if self._direct else settings.max_candidates or max_rows
        self._max_waiting = max_waiting
        self._max_sequences = max_sequences
        self._max_idle_s = settings.max_idle_us * _US
        self._delay_s = settings.max_queue_delay_us * _US
        self._enough = settings.minimum_slot_utilization * self._slots
        self._preferred = frozenset(settings.preferred_batch_sizes)
        self._known: dict[int | str, Sequence[SequenceJobType]] = {}
        self._all: set[Sequence[SequenceJobType]] = set()
        self._backlog: deque[Sequence[SequenceJobType]] = deque()
        self._places: dict[int, list[Sequence[SequenceJobType] | None]] = {}
        self._free: list[int] = []
        self._running: dict[int, list[Sequence[SequenceJobType]]] = {}
        self._soonest = math.inf
        self._numbers = 0
        self._held: dict[int | str, Sequence[SequenceJobType]] = {}
        self._moved: dict[int | str, str] = {}  # to which node; the longest gone first

    def __repr__(self) -> str:
        return (
            f"<Sequencer {len(self._all)} sequences, {len(self._backlog)} without a slot, "
            f"{self.waiting} waiting, {len(self._free)} free>"
        )

    @property
    def open_sequences(self) -> int:
        """Sequences that have begun and have not ended."""
        return len(self._all)

    @property
    def has_free(self) -> bool:
        """Whether an instance waits for jobs."""
        return bool(self._free)

    @property
    def next_at(self) -> float:
        """When `tick` is to be called at the latest; inf if that is not needed."""
        at = self._soonest
        if self._delay_s and self.waiting:
            for instance in self._free:
                ready = self._ready(instance)
                if ready:
                    at = min(at, ready[0].jobs[0].gathers_until(self._delay_s))
        return at

    def arrive(self, job: SequenceJobType, now: float) -> Effects[SequenceJobType]:
        """Take a job.

        Raises:
            InvalidRequest: if its sequence is not known, and it starts none.
            SequenceMoved: if another node has it now.
            Saturated: if too many jobs wait, or there are too many sequences, or no slot for a new one that may
                begin elsewhere; nothing changed.
        """
        if self.waiting >= self._max_waiting:
            raise Saturated(f"{self.waiting} requests wait for this model, as many as may")
        sequence = self._known.get(job.correlation_id)
        if job.start:
            sequence = self._begin(job, sequence)
        elif sequence is None and job.correlation_id in self._moved:
            raise _moved(job.correlation_id, self._moved[job.correlation_id])
        elif sequence is None:
            raise InvalidRequest(
                f"sequence {job.correlation_id!r} is not known here: its first request needs "
                f"sequence_start, and after {self._max_idle_s:g} s of silence it is over"
            )
        job.arrived = now
        job.sequence = sequence
        job._number = self._numbers = self._numbers + 1
        sequence.jobs.append(job)
        sequence.idle_at = math.inf
        if job.end:
            self._close(sequence)
        self.waiting += 1
        self._soonest = min(self._soonest, job.deadline)
        return self.tick(now)

    def free(self, instance: int, now: float) -> Effects[SequenceJobType]:
        """Take an instance that can run a batch; it runs one at a time."""
        self._places.setdefault(instance, [None] * self._slots)
        for sequence in self._running.pop(instance, ()):
            sequence.running = False
            self._rest(sequence, now)
        self._free.append(instance)
        return self.tick(now)

    def withdraw(self, instance: int) -> Effects[SequenceJobType]:
        """Forget an instance until it is `free` again, and its sequences with what the model knew of them."""
        self._free = [each for each in self._free if each != instance]
        self._running.pop(instance, None)
        effects: Effects[SequenceJobType] = []
        for sequence in self._places.pop(instance, ()):
            if sequence is not None:
                effects.extend(self._refuse(sequence, _lost(sequence)))
                self._forget(sequence)
        return effects

    def cancel(self, job: SequenceJobType) -> bool:
        """Forget a job that waits; return whether it did, so that it will never start."""
        sequence = job.sequence
        if sequence is None or job not in sequence.jobs:
            return False
        sequence.jobs.remove(job)
        self.waiting -= 1
        self._rest(sequence, job.arrived)
        return True

    def refuse_all(self, error: MeshError) -> Effects[SequenceJobType]:
        """Refuse all that wait, and end all sequences."""
        effects: Effects[SequenceJobType] = []
        for sequence in sorted(self._all, key=lambda each: str(each.correlation_id)):
            effects.extend(self._refuse(sequence, error))
            self._forget(sequence)
        return effects

    # Giving sequences to another node

    def at_rest(self) -> list[int | str]:
        """Return the sequences that have begun, go on, and of which nothing runs or waits now."""
        return [each.correlation_id for each in self._known.values() if _is_at_rest(each)]

    def hold(self, correlation_id: int | str) -> dict[str, Tensor] | None:
        """Let a sequence's requests wait from now on, until `give` or `keep`, and return its states by input name.

        None if it is not at rest, as `at_rest` says.
        """
        sequence = self._known.get(correlation_id)
        if sequence is None or not _is_at_rest(sequence) or correlation_id in self._held:
            return None
        sequence.held = True
        sequence.idle_at = math.inf
        self._held[correlation_id] = sequence
        return dict(sequence.states)

    def give(self, correlation_id: int | str, node: str) -> Effects[SequenceJobType]:
        """Another node has taken a sequence that was held: forget it here, and say so to who asks for it."""
        sequence = self._held.pop(correlation_id, None)
        if sequence is None or sequence not in self._all:
            return []  # its instance ended meanwhile
        effects = self._refuse(sequence, _moved(correlation_id, node))
        self._forget(sequence)
        if correlation_id not in self._known:  # else it was begun anew here
            self._moved[correlation_id] = node
        if len(self._moved) > self._max_sequences:
            del self._moved[next(iter(self._moved))]
        return effects

    def keep(self, correlation_id: int | str, now: float) -> Effects[SequenceJobType]:
        """Nobody has taken a sequence that was held: it goes on here."""
        sequence = self._held.pop(correlation_id, None)
        if sequence is None or sequence not in self._all:
            return []
        sequence.held = False
        self._rest(sequence, now)
        return self.tick(now)

    def turn_away(self, error: MeshError) -> Effects[SequenceJobType]:
        """Refuse all that wait to begin a sequence: there will be no slot for them."""
        effects: Effects[SequenceJobType] = []
        for sequence in [each for each in self._backlog if not each.started]:
            effects.extend(self._refuse(sequence, error))
            self._forget(sequence)
        return effects

    def take(
        self, correlation_id: int | str, states: dict[str, Tensor], now: float
    ) -> Effects[SequenceJobType]:
        """Go on with a sequence that began on another node.

        Raises:
            InvalidRequest: if one of this name goes on here already.
            Saturated: if there are too many sequences; nothing changed.
        """
        if correlation_id in self._known:
            raise InvalidRequest(f"a sequence {correlation_id!r} goes on here already")
        if len(self._all) >= self._max_sequences:
            raise Saturated(f"this model has {len(self._all)} sequences, as many as it may")
        sequence = self._add(Sequence(correlation_id))
        sequence.states, sequence.started = states, True
        self._rest(sequence, now)
        return self.tick(now)

    def tick(self, now: float) -> Effects[SequenceJobType]:
        """Do what is due."""
        effects: Effects[SequenceJobType] = []
        if now >= self._soonest:
            effects.extend(self._expire(now))
        self._give_slots()
        for instance in tuple(self._free):
            batch = self._batch(instance, now)
            if batch:
                self._free.remove(instance)
                self._running[instance] = batch
                jobs = tuple([self._take(sequence) for sequence in batch])
                effects.append(Start(instance, jobs))
        return effects

    def _begin(
        self, job: SequenceJobType, before: Sequence[SequenceJobType] | None
    ) -> Sequence[SequenceJobType]:
        """Return a new sequence; one of the same name ends, with what it still has to do."""
        if len(self._all) >= self._max_sequences:
            raise Saturated(f"this model has {len(self._all)} sequences, as many as it may")
        if job.elsewhere and before is None and not self._has_slot:
            raise Saturated("all places for sequences are taken here")
        if before is not None:
            self._close(before)
            self._rest(before, job.arrived)
        return self._add(Sequence(job.correlation_id))

    @property
    def _has_slot(self) -> bool:
        free = sum(slots.count(None) for slots in self._places.values())
        return free > len(self._backlog)

    def _add(self, sequence: Sequence[SequenceJobType]) -> Sequence[SequenceJobType]:
        self._moved.pop(sequence.correlation_id, None)
        self._known[sequence.correlation_id] = sequence
        self._all.add(sequence)
        self._backlog.append(sequence)
        return sequence

    def _close(self, sequence: Sequence[SequenceJobType]) -> None:
        sequence.ended = True
        if self._known.get(sequence.correlation_id) is sequence:
            del self._known[sequence.correlation_id]

    def _rest(self, sequence: Sequence[SequenceJobType], now: float) -> None:
        """Free the slot of a sequence that is over, or wait for its next request."""
        if sequence.jobs or sequence.running or sequence.held:
            return
        if sequence.ended:
            self._forget(sequence)
            return
        sequence.idle_at = now + self._max_idle_s
        self._soonest = min(self._soonest, sequence.idle_at)

    def _forget(self, sequence: Sequence[SequenceJobType]) -> None:
        self._close(sequence)
        self._all.discard(sequence)
        if sequence.place is None:
            if sequence in self._backlog:
                self._backlog.remove(sequence)
            return
        instance, slot = sequence.place
        if instance in self._places:
            self._places[instance][slot] = None

    def _refuse(
        self, sequence: Sequence[SequenceJobType], error: MeshError
    ) -> Effects[SequenceJobType]:
        refusals: Effects[SequenceJobType] = [Refuse(job, error) for job in sequence.jobs]
        self.waiting -= len(sequence.jobs)
        sequence.jobs.clear()
        return refusals

    def _expire(self, now: float) -> Effects[SequenceJobType]:
        """Refuse who is late, end who was silent, and find when that is to be looked at again."""
        late = [job for sequence in self._all for job in sequence.jobs if job.deadline <= now]
        late.sort(key=lambda job: job._number)
        effects: Effects[SequenceJobType] = []
        for job in late:
            self.cancel(job)
            error = DeadlineExceeded("the request waited for its turn until its deadline")
            effects.append(Refuse(job, error))
        for sequence in [each for each in self._all if each.idle_at <= now]:
            self._forget(sequence)
        deadlines = [job.deadline for sequence in self._all for job in sequence.jobs]
        idle = [sequence.idle_at for sequence in self._all]
        self._soonest = min(*deadlines, *idle, math.inf, math.inf)
        return effects

    def _give_slots(self) -> None:
        """Give the sequences that wait for a slot those that are free, on the emptiest instance first."""
        while self._backlog:
            free = [(slots.count(None), -instance) for instance, slots in self._places.items()]
            count, minus_instance = max(free, default=(0, 0))
            if not count:
                return
            sequence = self._backlog.popleft()
            slots = self._places[-minus_instance]
            slot = slots.index(None)
            slots[slot] = sequence
            sequence.place = (-minus_instance, slot)

    def _ready(self, instance: int) -> list[Sequence[SequenceJobType]]:
        """Return an instance's sequences with waiting jobs, those that came first in front."""
        ready = [
            each
            for each in self._places[instance]
            if each is not None and each.jobs and not each.held
        ]
        ready.sort(key=lambda each: each.jobs[0]._number)
        return ready

    def _batch(self, instance: int, now: float) -> list[Sequence[SequenceJobType]]:
        """Return the sequences whose next jobs should run together now; none if all should wait."""
        ready = self._ready(instance)
        if not ready:
            return []
        first = ready[0].jobs[0]
        alike = [each for each in ready if each.jobs[0].key == first.key]
        waited_out = not self._delay_s or now >= first.gathers_until(self._delay_s)
        if self._direct:
            if not waited_out and len(alike) < self._enough:
                return []
            return sorted(alike, key=_slot)
        alike = alike[: self.max_rows]
        preferred = max((size for size in self._preferred if size <= len(alike)), default=0)
        if preferred:
            return alike[:preferred]
        return alike if waited_out or len(alike) == self.max_rows else []

    def _take(self, sequence: Sequence[SequenceJobType]) -> SequenceJobType:
        job = sequence.jobs.popleft()
        job.start = not sequence.started
        job.slot = _slot(sequence)
        sequence.started = True
        sequence.running = True
        self.waiting -= 1
        return job


def _slot(sequence: Sequence[Any]) -> int:
    assert sequence.place is not None  # only those that have one run
    return sequence.place[1]


def _is_at_rest(sequence: Sequence[Any]) -> bool:
    return sequence.started and not (sequence.jobs or sequence.running or sequence.held)


def _moved(correlation_id: int | str, node: str) -> MeshError:
    return SequenceMoved(f"sequence {correlation_id!r} was given to another node", node)


def _lost(sequence: Sequence[Any]) -> MeshError:
    return InferenceFailed(
        f"the process that held sequence {sequence.correlation_id!r} has ended; start the sequence again"
    )
