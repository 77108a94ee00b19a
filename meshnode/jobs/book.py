"""One node's jobs: which it keeps, runs, sends and tells. A core: events in, effects out.

The first `JOB_COPIES` nodes of a job's ranking keep it; the first of them runs it, and tells its webhook. Whoever else has
a copy (the gateway that accepted it, a node that was first until another joined) hands it over: it sends it
to those, and drops its own when all of them have said that theirs is on disk.

    proposed ─> kept ──first in the ranking, nobody who lives runs it──> claimed (attempt + 1) ─> ended
                  ↑                                                        │
                  └───────────── its node is gone, or cannot run it ───────┘

What a gateway proposes does not run there before a second node has it; without one it is withdrawn, and as if it had never
been. Of two calls with one id (their idempotency keys were the same) the one counts that the node has which ranks first.
Callers take turns for the places to run; a job that waits for its model gives its place to others meanwhile.

So a job runs at least once. Where two nodes claimed one (they could not hear each other), `job.merge` says whose run and
whose outcome count; the other's run is stopped when it hears of it.

Every change is written (`Save`) before anything that follows from it; whoever carries effects out keeps their order.
The bodies of calls and results are not here: what this core is told is durable with its body already.
"""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING, Final

import msgspec

from meshnode.errors import IdempotencyKeyReused, NotFound, ProtocolError
from meshnode.jobs.copies import Copies
from meshnode.jobs.effects import Drop, Held, JobEffect, Save, Start, Stop, Tell
from meshnode.jobs.job import (
    NEW,
    Job,
    JobState,
    JobStatus,
    Outcome,
    Told,
    claimed,
    ended,
    expires_at_ms,
    merge,
    older,
    overdue,
    released,
)
from meshnode.jobs.keepers import Keepers
from meshnode.jobs.messages import WANTS_JOB, WANTS_NOTHING, WANTS_RESULT
from meshnode.jobs.room import JobRoom
from meshnode.jobs.turns import Turns
from meshnode.limits import (
    JOB_COPIES,
    MAX_CLOCK_SKEW_S,
    MAX_JOB_AGE_S,
    MAX_JOB_PASSED,
    MAX_JOBS,
    MAX_JOBS_BYTES,
    MAX_JOBS_RUNNING,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from meshnode.types import NodeId

_REVIEWED: Final = 500
"""Jobs looked at in one tick: a change of the members concerns all, and must not hold up the loop."""


class JobBook:
    """The jobs of one node.

    Attributes:
        held: By id.
    """

    def __init__(
        self,
        me: NodeId,
        *,
        max_running: int = MAX_JOBS_RUNNING,
        max_jobs: int = MAX_JOBS,
        max_bytes: int = MAX_JOBS_BYTES,
    ) -> None:
        """Begin without jobs, alone."""
        self._me = me
        self._max_running = max_running
        self._room = JobRoom(max_jobs, max_bytes)
        self._keepers = Keepers(me)
        self._copies = Copies(me, self._keepers)
        self._due: dict[str, None] = {}  # to be looked at, in order
        self._expiry: list[tuple[int, str]] = []
        self._turns = Turns()
        self._running = 0
        self.held: dict[str, Held] = {}

    def __repr__(self) -> str:
        return f"<JobBook of {self._me[:8]}: {len(self.held)} jobs, {self._running} run>"

    @property
    def live(self) -> frozenset[NodeId]:
        """The nodes that live, this one included."""
        return self._keepers.live

    @property
    def size_bytes(self) -> int:
        """What the bodies of all jobs here take."""
        return self._room.size_bytes

    @property
    def running(self) -> int:
        """How many run here."""
        return self._running

    def keepers(self, job_id: str, count: int = JOB_COPIES) -> list[NodeId]:
        """Return the nodes that should keep a job, the one that runs it first, whether they can or not."""
        return self._keepers.first(job_id, count)

    def keepers_now(self, job_id: str) -> list[NodeId]:
        """Return the nodes that should keep a job while some cannot."""
        return self._keepers.now(job_id)

    def copies(self, job_id: str) -> int:
        """Return on how many live nodes a job is known to be on disk, this one included."""
        return self._copies.count(self.held[job_id])

    def may_accept(self, job_id: str, *, has_key: bool) -> bool:
        """Whether so many nodes have a job that its caller may be told so.

        Args:
            job_id: A job that is held here.
            has_key: Whether another call may come with the same id: then the node that ranks first must have this one.
        """
        return self._copies.may_accept(self.held[job_id], has_key=has_key)

    # What happens

    def load(self, jobs: Iterable[tuple[Job, JobState]], now_ms: int) -> list[JobEffect]:
        """Take what the disk has, at the start."""
        for job, state in jobs:
            self._add(job, state)
        return self.tick(now_ms)

    def members(
        self, live: Collection[NodeId], now_ms: int, leaving: Collection[NodeId] = ()
    ) -> list[JobEffect]:
        """These nodes live now, this one included. Who was away is told everything again.

        Args:
            live: All of them.
            now_ms: Wall time.
            leaving: Those that are to be emptied: they finish what they run, and keep no job any more, as long as
                there are others.
        """
        gone = self._keepers.follow(live, leaving)
        if gone is None:
            return []
        for held in self.held.values():
            for node in gone & held.acked.keys():
                del held.acked[node]
        self._due.update(dict.fromkeys(self.held))
        return self.tick(now_ms)

    def hand_back(self, now_ms: int) -> list[JobEffect]:
        """Let others run what runs here, if this node is to be emptied; they begin anew."""
        if self._me in self._keepers.staying:
            return []
        effects: list[JobEffect] = []
        for held in [each for each in self.held.values() if each.running]:
            if not held.state.ended:
                effects += self._change(held, released(held.state), now_ms)
        return effects

    def lost(self, node: NodeId, now_ms: int) -> list[JobEffect]:
        """The link to a node broke: another is to have what has not ended, until it shows that it is there.

        What has ended waits for the members' word: links also break for no reason, and copies cost.
        """
        self._keepers.pass_over(node, now_ms)
        for job_id, held in self.held.items():
            if not held.state.ended and held.acked.pop(node, None) is not None:
                self._due[job_id] = None
        return self.tick(now_ms)

    def check(self, job: Job, now_ms: int) -> None:
        """Refuse a job for which there is no room here, or that is another than the one of its id.

        None of these is `InvalidRequest`, by which a version tells that it knows no jobs.

        Raises:
            IdempotencyKeyReused: if one id means two calls.
            NotFound: if it has expired.
            ProtocolError: if it was made in the future.
            Saturated: if there is no room.
        """
        if job.created_at_ms > now_ms + 1000 * MAX_CLOCK_SKEW_S:
            raise ProtocolError(
                f"job {job.id} was made in the future; compare the clocks of both nodes"
            )
        if expires_at_ms(job, NEW) <= now_ms:
            raise NotFound(f"job {job.id} has expired")
        known = self.held.get(job.id)
        if known is not None:
            if known.job.fingerprint != job.fingerprint:
                raise IdempotencyKeyReused(
                    "another call came with the same Idempotency-Key before; a key belongs to one call"
                )
            return
        self._room.check(job)

    def keep(
        self,
        job: Job,
        state: JobState,
        now_ms: int,
        source: NodeId | None = None,
        *,
        proposed: bool = False,
    ) -> list[JobEffect]:
        """Take a job whose body is on disk.

        Args:
            job: It; `check` has passed.
            state: How it fares as far as `source` knows. An outcome with a result is told separately.
            now_ms: The time.
            source: Who sent it, and so has it; None if it was accepted here.
            proposed: Whether it is not to run from here before `confirm`, unless it was here already.
        """
        held = self.held.get(job.id)
        if held is None:
            held = self._add(job, state)
            held.proposed = proposed
        else:
            held.job = older(held.job, job)
        return self._learn(held, state, now_ms, source)

    def confirm(self, job_id: str, now_ms: int) -> list[JobEffect]:
        """A proposed job is accepted: it runs now."""
        held = self.held.get(job_id)
        if held is None:
            return []
        held.proposed = False
        return self._review(held, now_ms)

    def withdraw(self, job_id: str) -> list[JobEffect]:
        """Forget a job that was not accepted after all."""
        held = self.held.get(job_id)
        return [] if held is None or not held.proposed else self._drop(held)

    def withdrawn(self, job_id: str, source: NodeId) -> list[JobEffect]:
        """Forget a job that its gateway did not accept, unless it has spread or ended meanwhile: then it stays."""
        held = self.held.get(job_id)
        if held is None or held.job.accepted_by != source or held.state.ended:
            return []
        return [] if held.acked.keys() - {source} else self._drop(held)

    def wants(self, job_id: str, state: JobState, fingerprint: bytes) -> int:
        """Return what is lacking here before `learn` may be called: `WANTS_NOTHING`, `_JOB` or `_RESULT`.

        Args:
            job_id: The job.
            state: How it fares elsewhere.
            fingerprint: What it asks for there. Whoever has the job knows it; who only knows the id is not heard.
        """
        held = self.held.get(job_id)
        if held is None or fingerprint != held.job.fingerprint:
            return WANTS_JOB  # or `check` says that it is another call
        end, known = merge(held.state, state).outcome, held.state.outcome
        if end is None or not end.result_bytes:
            return WANTS_NOTHING
        is_here = known is not None and known.result_sha256 == end.result_sha256
        return WANTS_NOTHING if is_here else WANTS_RESULT

    def learn(
        self, job_id: str, state: JobState, now_ms: int, source: NodeId | None = None
    ) -> list[JobEffect]:
        """Hear how a job fares elsewhere; the body of its result, if it counts, is on disk."""
        held = self.held.get(job_id)
        return [] if held is None else self._learn(held, state, now_ms, source)

    def acked(self, node: NodeId, job_id: str, state: JobState, now_ms: int) -> list[JobEffect]:
        """A node has a job on its disk, as it was sent."""
        held = self.held.get(job_id)
        if held is None:
            return []
        held.sending.discard(node)
        if node in self.live:
            held.acked[node] = state
            self._keepers.heard(node)
        return self._review(held, now_ms)

    def refused(self, node: NodeId, job_id: str, now_ms: int) -> list[JobEffect]:
        """A node could not be reached, or takes no jobs: it is passed over for a while."""
        self._keepers.pass_over(node, now_ms)
        held = self.held.get(job_id)
        if held is None:
            return []
        held.sending.discard(node)
        held.acked.pop(node, None)
        return self._review(held, now_ms)

    def conflicted(self, node: NodeId, job_id: str) -> list[JobEffect]:
        """A node has another call under a job's id: that counts which the first in the ranking has."""
        held = self.held.get(job_id)
        if held is None:
            return []
        held.sending.discard(node)
        held.acked.pop(node, None)
        self._keepers.heard(node)
        if self._keepers.of(held)[:1] == [node]:
            return self._drop(held)
        self._due[job_id] = None  # the first tells that node the same, or takes this one from it
        return []

    def paused(self, job_id: str, attempt: int, until_ms: int, now_ms: int) -> list[JobEffect]:
        """An attempt that ran here waits for its model: others may have its place meanwhile."""
        held = self.held.get(job_id)
        if held is not None and held.running == attempt:
            self._leave_place(held)
            held.resumes_at_ms = until_ms
            self._due[job_id] = None
        return self.tick(now_ms)

    def progressed(
        self, job_id: str, attempt: int, progress: float, now_ms: int
    ) -> list[JobEffect]:
        """An attempt that runs here came so far (0 to 1)."""
        held = self.held.get(job_id)
        if held is None or held.running != attempt or held.state.ended:
            return []
        progress = min(1.0, max(0.0, progress))
        if held.state.progress >= progress:
            return []
        return self._change(held, msgspec.structs.replace(held.state, progress=progress), now_ms)

    def finished(
        self, job_id: str, attempt: int, outcome: Outcome | None, now_ms: int
    ) -> list[JobEffect]:
        """An attempt that ran here has ended, and its result is on disk; None: this node cannot run it."""
        held = self.held.get(job_id)
        if held is None:
            return []
        was_mine = self._is_mine(held) and held.running == attempt
        if held.running == attempt:
            self._leave_place(held)
        if outcome is not None:
            effects = self._end(held, outcome, now_ms)
        elif was_mine:
            effects = self._change(held, released(held.state, self._me), now_ms)
        else:
            effects = self._review(held, now_ms)
        return effects + self.tick(now_ms)  # there is room for another

    def cancel(self, job_id: str, now_ms: int) -> list[JobEffect]:
        """Nobody wants a job any more; one that has ended stays as it is."""
        held = self.held.get(job_id)
        if held is None or held.state.ended:
            return []
        return self._end(
            held, Outcome(JobStatus.CANCELLED, held.state.attempt, self._me, now_ms), now_ms
        )

    def told(
        self, job_id: str, outcome: Outcome, *, delivered: bool, now_ms: int
    ) -> list[JobEffect]:
        """The webhook was told of an outcome, or nobody will try any more."""
        held = self.held.get(job_id)
        if held is None:
            return []
        held.telling = False
        if held.state.outcome != outcome:
            return self._review(held, now_ms)
        told = Told.DELIVERED if delivered else Told.GIVEN_UP
        return self._change(held, msgspec.structs.replace(held.state, told=told), now_ms)

    def tick(self, now_ms: int) -> list[JobEffect]:
        """Look at what is due; call it about once a second."""
        effects: list[JobEffect] = []
        self._keepers.tick(now_ms)
        while self._expiry and self._expiry[0][0] <= now_ms:
            _, job_id = heapq.heappop(self._expiry)
            held = self.held.get(job_id)
            if held is None:
                continue
            left_ms = expires_at_ms(held.job, held.state)
            if left_ms <= now_ms:
                effects += self._drop(held)
            else:
                heapq.heappush(self._expiry, (left_ms, job_id))
        for job_id in list(self._due)[:_REVIEWED]:
            del self._due[job_id]
            held = self.held.get(job_id)
            if held is not None:
                effects += self._review(held, now_ms)
        while self._turns and self._running < self._max_running:
            held = self.held.get(self._turns.next())
            if held is not None:
                effects += self._review(held, now_ms, has_turn=True)
        return effects

    # What follows

    def _add(self, job: Job, state: JobState) -> Held:
        held = self.held[job.id] = Held(job, state)
        self._room.add(held)
        self._due[job.id] = None
        heapq.heappush(self._expiry, (expires_at_ms(job, state), job.id))
        return held

    def _learn(
        self, held: Held, state: JobState, now_ms: int, source: NodeId | None
    ) -> list[JobEffect]:
        if source is not None and source in self.live:
            held.acked[source] = state
            self._keepers.heard(source)
        return self._change(held, merge(held.state, state), now_ms)

    def _end(self, held: Held, outcome: Outcome, now_ms: int) -> list[JobEffect]:
        return self._change(held, ended(held.state, outcome), now_ms)

    def _change(self, held: Held, state: JobState, now_ms: int) -> list[JobEffect]:
        if state == held.state:
            return self._review(held, now_ms)
        return [*self._set(held, state), *self._review(held, now_ms)]

    def _set(self, held: Held, state: JobState) -> list[JobEffect]:
        former_bytes = held.size_bytes
        held.state = state
        self._room.resized(former_bytes, held)
        if state.ended:
            heapq.heappush(self._expiry, (expires_at_ms(held.job, state), held.job.id))
        return [Save(held.job.id, state)]

    def _leave_place(self, held: Held) -> None:
        held.running = 0
        held.resumes_at_ms = 0
        self._running -= 1

    def _review(self, held: Held, now_ms: int, *, has_turn: bool = False) -> list[JobEffect]:
        """Do what a job needs now; see the top of this module."""
        job_id = held.job.id
        keepers = self._keepers.of(held)
        if held.proposed:
            self._due[job_id] = None
            return self._copies.spread(held, [*keepers, *self._keepers.worth_a_try(held, keepers)])
        is_first = not keepers or keepers[0] == self._me
        effects: list[JobEffect] = []
        if not held.state.ended:
            effects += self._run_on(held, now_ms, is_first=is_first, has_turn=has_turn)
            keepers = self._keepers.of(held)
        if held.running and not self._is_mine(held):
            self._leave_place(held)
            effects.append(Stop(job_id))
        effects += self._tell(held, is_first=is_first)
        effects += self._copies.spread(held, keepers)
        if self._copies.is_handed_over(held, keepers):
            return [*effects, *self._drop(held)]
        if not self._copies.is_settled(held, keepers):
            self._due[job_id] = None
        return effects

    def _run_on(
        self, held: Held, now_ms: int, *, is_first: bool, has_turn: bool
    ) -> list[JobEffect]:
        """Claim a job that nobody runs, give back one that this node should not run, fail one that is too old."""
        state = held.state
        if overdue(held.job, now_ms):
            sentence = f"the job had not ended {MAX_JOB_AGE_S // 3600} hours after it was accepted"
            return self._fail(held, sentence, "deadline", now_ms) if is_first else []
        if self._keepers.staying <= set(state.passed) or len(state.passed) >= MAX_JOB_PASSED:
            sentence = "none of the nodes that live could run the job; their logs say why"
            return self._fail(held, sentence, "not_serving", now_ms)
        if held.running == state.attempt and state.node == self._me:
            return []
        if state.node and state.node != self._me and state.node in self.live:
            return []
        if is_first and self._me not in state.passed:
            if held.running or now_ms < held.resumes_at_ms:
                return []
            if not has_turn and (self._turns or self._running >= self._max_running):
                self._turns.add(held.job.key_id, held.job.id)
                return []
            return self._take_place(held, now_ms)
        if state.node == self._me:  # it ran here before; who is first may run it now
            return self._set(held, released(state))
        return []

    def _take_place(self, held: Held, now_ms: int) -> list[JobEffect]:
        """Run a job: claim it, or go on with the attempt that paused."""
        self._running += 1
        if held.resumes_at_ms and held.state.node == self._me:
            held.running = held.state.attempt
            return [Start(held.job, held.running)]
        fresh = claimed(held.state, self._me, now_ms)
        held.running = fresh.attempt
        return [*self._set(held, fresh), Start(held.job, fresh.attempt)]

    def _fail(self, held: Held, sentence: str, code: str, now_ms: int) -> list[JobEffect]:
        outcome = Outcome(
            JobStatus.FAILED, held.state.attempt, self._me, now_ms, error=sentence, code=code
        )
        return self._set(held, ended(held.state, outcome))

    def _is_mine(self, held: Held) -> bool:
        state = held.state
        return not state.ended and state.node == self._me and state.attempt == held.running

    def _tell(self, held: Held, *, is_first: bool) -> list[JobEffect]:
        state = held.state
        if (
            state.outcome is None
            or held.job.webhook is None
            or state.told is not Told.WAITING
            or held.telling
            or not is_first
        ):
            return []
        held.telling = True
        return [Tell(held.job, state)]

    def _drop(self, held: Held) -> list[JobEffect]:
        job_id = held.job.id
        del self.held[job_id]
        self._due.pop(job_id, None)
        self._turns.remove(held.job.key_id, job_id)
        self._room.remove(held)
        effects: list[JobEffect] = []
        if held.running:
            self._running -= 1
            effects.append(Stop(job_id))
        return [*effects, Drop(job_id)]
