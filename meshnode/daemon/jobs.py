"""Jobs of one node: the book of them (`meshnode.jobs.book`) with a disk, links, runs and webhooks around it.

Nothing is opened and nothing runs until there is a job here: a node without jobs pays nothing for them. The effects
of the book are carried out in order, by one task; all that are waiting are written in one transaction, and what follows
from them (a message, a run, an answer) only after that.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from typing import TYPE_CHECKING, Any

from meshnode.daemon.background import BackgroundTasks
from meshnode.daemon.job_acceptance import JobAcceptance, Locks
from meshnode.daemon.job_answers import JobAnswers
from meshnode.daemon.job_disk import JobDisk
from meshnode.daemon.job_execution import JobExecution
from meshnode.daemon.job_links import JobLinks
from meshnode.daemon.job_runs import JobRuns
from meshnode.daemon.job_search import JobSearch
from meshnode.daemon.job_sending import JobSending
from meshnode.daemon.job_webhooks import tell
from meshnode.errors import IdempotencyKeyReused, JobCancelled, JobUnfinished, MeshError, NotServing
from meshnode.jobs.book import JobBook
from meshnode.jobs.effects import Drop, JobEffect, Save, Send, Start, Stop, Tell
from meshnode.jobs.job import (
    NEW,
    Job,
    JobState,
    JobStatus,
    Webhook,
    digest_of_secret,
    id_of_key,
    older,
    random_id,
    without_secret,
)
from meshnode.jobs.webhooks import check_secret, make_secret
from meshnode.limits import JOB_REVIEW_S, MAX_WEBHOOKS_RUNNING, MIB
from meshnode.net.outbound import PUBLIC, OutboundRule, look_up
from meshnode.types import NodeId

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Coroutine, Sequence
    from pathlib import Path

    from meshnode.clock import Clock
    from meshnode.daemon.forwarding import Reach
    from meshnode.gateway.dispatch import Dispatcher
    from meshnode.gateway.jobs_api import Asked, Listed, Wish
    from meshnode.gateway.protocols.caller import Caller
    from meshnode.types import Buffer

log = logging.getLogger(__name__)

_HASHED_AT_ONCE_BYTES = MIB  # more is hashed in a thread


class Jobs:
    """Keeps and runs jobs; `JobsControl` for the gateway.

    Attributes:
        book: What this node keeps.
        links: How it asks others.
        disk: Where it keeps them.
        ended: How jobs that ran here ended, by status.
        webhooks: How webhooks ended that were told from here: `delivered` or `failed`.
        answers: Answers what other nodes ask.
    """

    def __init__(
        self,
        *,
        me: NodeId,
        reach: Reach,
        live: Callable[[], Collection[NodeId]],
        clock: Clock,
        path: Path,
        random_bytes: Callable[[int], bytes],
        opens: Callable[[str], bool],
        name_of: Callable[[NodeId], str],
        sees_all: Callable[[NodeId], bool],
        rule: OutboundRule = PUBLIC,
        leaving: Callable[[], Collection[NodeId]] = frozenset,
    ) -> None:
        """Keep none yet; nothing is opened.

        Args:
            me: This node.
            reach: Its links.
            live: Returns the other nodes that live.
            clock: Says when.
            path: The file that jobs are kept in.
            random_bytes: Draws so many bytes that nobody can guess.
            opens: Whether an API key, by its id, still opens anything.
            name_of: A node's name.
            sees_all: Whether a node may ask about every job: its role gives its owner a say in the mesh.
            rule: Where webhooks may lead.
            leaving: Returns the nodes that are to be emptied.
        """
        self.book = JobBook(me)
        self.links = JobLinks(reach)
        self.disk = JobDisk(path)
        self.webhooks: dict[str, int] = dict.fromkeys(("delivered", "failed"), 0)
        self._search = JobSearch(self)
        self.answers = JobAnswers(self, self._search)
        self._acceptance = JobAcceptance(self)
        self._sending = JobSending(self, self._acceptance)
        self._execution = JobExecution(self)
        self.ended = self._execution.ended
        self._submits = Locks()  # by job id
        self._keeps = Locks()
        self._me = me
        self._reach = reach
        self._live = live
        self._leaving = leaving
        self._clock = clock
        self._random_bytes = random_bytes
        self._opens = opens
        self._name_of = name_of
        self.sees_all = sees_all
        self._rule = rule
        self._opening = asyncio.Lock()
        self._pending: list[JobEffect | asyncio.Future[None]] = []
        self._working = False
        self._tasks = BackgroundTasks(log, "something about jobs failed")
        self._keeping: set[asyncio.Task[None]] = set()
        self._disk_failed = False
        self._unable: set[NodeId] = set()  # nodes whose version knows no jobs
        self._linked: set[NodeId] = set()
        self._tender: asyncio.Task[None] | None = None
        self._tells = asyncio.Semaphore(MAX_WEBHOOKS_RUNNING)
        self._closed = False

    def __repr__(self) -> str:
        return f"<Jobs {self.book!r}>"

    @property
    def me(self) -> NodeId:
        """This node."""
        return self._me

    def now_ms(self) -> int:
        """Return the wall time in milliseconds."""
        return int(self._clock.wall_s() * 1000)

    def name_of(self, node: str) -> str:
        """Return a node's name, or its id if it is not known any more."""
        return self._name_of(NodeId(node))

    def start(self, dispatcher: Dispatcher) -> None:
        """Run jobs by these routes from now on, those that the disk has first."""
        self._execution.start(JobRuns(self._me, dispatcher, self._clock, self._opens))
        if self.disk.exists:
            self.spawn(self.open())

    async def close(self) -> None:
        """Stop everything; what is on disk goes on at the next start, or elsewhere."""
        self._closed = True
        await asyncio.gather(*self._keeping, return_exceptions=True)
        tasks = [*self._tasks, *self._execution.tasks]
        tasks += [self._tender] if self._tender is not None else []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.disk.close()

    # What the gateway asks

    async def submit(self, wish: Wish) -> tuple[Job, JobState]:
        """Accept a job; see `JobsControl.submit`."""
        webhook = await self._webhook(wish)
        job = await self._job(wish, webhook)
        await self.open()
        self.follow_members()
        async with self._submits.of(job.id):
            await self._acceptance.free(job.id)
            if wish.key:
                known = await self._search.known(job.id)
                if known is not None:
                    if known[0].fingerprint != job.fingerprint:
                        raise IdempotencyKeyReused(
                            "this Idempotency-Key came with another call before; a key belongs to one call"
                        )
                    return known
            self.book.check(job, self.now_ms())
            await self._acceptance.accept(job, wish.body, has_key=bool(wish.key))
        held = self.book.held.get(job.id)
        if held is None:
            return job, NEW
        # The same call may have come to another gateway a moment before: its secret is not this caller's.
        return (job if held.job == job else without_secret(held.job)), held.state

    async def find(self, job_id: str, caller: Caller) -> tuple[Job, JobState]:
        """Return a job; see `JobsControl.find`."""
        job, state, _ = await self._search.find(job_id, caller)
        return job, state

    async def result(self, job_id: str, caller: Caller) -> tuple[Job, JobState, Buffer]:
        """Return a job that has ended, with the body of its result; see `JobsControl.result`."""
        job, state, nodes = await self._search.find(job_id, caller)
        end = state.outcome
        if end is None:
            raise JobUnfinished(f"the job is {state.status}; its result is there when it has ended")
        if end.status is JobStatus.CANCELLED:
            raise JobCancelled("the job was cancelled, and has no result")
        return job, state, await self._search.result_body(job, end, nodes)

    async def cancel(self, job_id: str, caller: Caller) -> tuple[Job, JobState]:
        """Cancel a job; see `JobsControl.cancel`."""
        job, state, nodes = await self._search.find(job_id, caller)
        if state.ended:
            return job, state
        if job_id in self.book.held:
            return job, await self.cancel_here(job_id)
        for node in nodes:
            try:
                told = await self.links.cancel(node, job_id)
            except MeshError:
                continue
            return told.job, told.state
        raise NotServing("the nodes that keep the job cannot be reached now; try again")

    async def listed(self, asked: Asked, caller: Caller) -> Listed:
        """Return the caller's jobs; see `JobsControl.listed`."""
        return await self._search.listed(asked, caller)

    def own(
        self, *, everybody: bool, key_id: str, accepted_by: str = ""
    ) -> list[tuple[Job, JobState]]:
        """Return what this node keeps of a caller's jobs (or of everybody's)."""
        return [
            (held.job, held.state)
            for held in self.book.held.values()
            if not held.proposed
            and (everybody or held.job.key_id == key_id)
            and accepted_by in ("", held.job.accepted_by)
        ]

    # What the parts of it do

    async def open(self) -> None:
        """Have the disk open, and what it has in the book.

        Raises:
            NotServing: if it cannot be opened.
        """
        if self._closed:
            raise NotServing("this node is leaving; ask another")
        if self._tender is not None:
            return
        async with self._opening:
            if self._tender is None:
                jobs = await self.disk.open()
                self.do(self.book.load(jobs, self.now_ms()))
                self.follow_members()
                self._tender = asyncio.ensure_future(self._tend())

    def do(self, effects: Sequence[JobEffect]) -> None:
        """Carry effects out, in order, after all that were handed over before."""
        self._pending += effects
        for each in effects:
            if isinstance(each, Drop):
                # What is on its way must not arrive after whoever it goes to has heard that it was withdrawn.
                self._sending.cancel(each.job_id)
                self._acceptance.changed(each.job_id)
        if self._pending and not self._working and not self._closed:
            self._working = True
            self.spawn(self._work())

    async def written(self) -> None:
        """Return when all that was handed to `do` is on disk.

        Raises:
            NotServing: if the disk did not take it.
        """
        if not self._pending and not self._working:
            return
        if self._closed and not self._working:
            raise NotServing("this node is leaving; ask another")
        mark: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._pending.append(mark)
        await mark

    async def cancel_here(self, job_id: str) -> JobState:
        """Cancel a job that this node keeps; return how it fares then."""
        self.do(self.book.cancel(job_id, self.now_ms()))
        held = self.book.held.get(job_id)
        state = NEW if held is None else held.state
        await self.written()
        return state

    async def keep_from(
        self, peer: NodeId, job: Job, state: JobState, body: memoryview, result: memoryview
    ) -> None:
        """Keep a job that another node sends; return when it is on disk.

        Args:
            peer: Who sends it.
            job: It; the book has checked it.
            state: How it fares.
            body: Of its call.
            result: The body of its outcome's result, if there is one.
        """
        await self._to_the_end(self._keep(job, state, body, result, peer))
        await self.written()

    async def propose(self, job: Job, body: Buffer) -> None:
        """Keep a job that is not accepted yet; return when it is on disk."""
        await self._to_the_end(self._keep(job, NEW, body, b"", None, proposed=True))

    async def withdrawn(self, peer: NodeId, job_id: str) -> None:
        """Forget a job that its gateway did not accept; see `JobBook.withdrawn`."""
        await self._to_the_end(self._forget(peer, job_id))

    def others(self) -> frozenset[NodeId]:
        """Return the other live nodes that know of jobs."""
        self.follow_members()
        return self.book.live - {self._me}

    def hand_back(self) -> None:
        """Stop what runs here and let others run it, if this node is to be emptied."""
        self.do(self.book.hand_back(self.now_ms()))

    def follow_members(self) -> None:
        """Tell the book who lives, and which links have broken."""
        live = frozenset(self._live())
        self._unable &= live
        now_ms = self.now_ms()
        linked = {node for node in live if self._reach.linked(node) is not None}
        lost = self._linked - linked
        self._unable -= lost  # it may come back as another version
        self.do(self.book.members(live - self._unable, now_ms, self._leaving()))
        for node in lost & self.book.live:
            self.do(self.book.lost(node, now_ms))
        self._linked = linked
        self._acceptance.changed()

    def knows_no_jobs(self, node: NodeId) -> bool:
        """Note that a node's version knows no jobs, as long as the link to it stands; whether that is news."""
        is_news = node not in self._unable
        self._unable.add(node)
        return is_news

    # Inside

    async def _keep(
        self,
        job: Job,
        state: JobState,
        body: Buffer,
        result: Buffer,
        source: NodeId | None,
        *,
        proposed: bool = False,
    ) -> None:
        """Write a job, and take it into the book."""
        async with self._keeps.of(job.id):  # two nodes may send it at once
            await self.written()  # what this node may just have dropped under the same id
            self.book.check(job, self.now_ms())
            held = self.book.held.get(job.id)
            if held is None:
                await self.disk.keep(job, state, body)
            elif older(held.job, job) is not held.job:
                await self.disk.keep(job, held.state, body)
                # What the book did meanwhile was written before this; so write it again.
                self.do([Save(job.id, held.state)])
            if len(result) and state.outcome is not None:
                await self.disk.keep_result(job.id, state.outcome.result_sha256, result)
            self.do(self.book.keep(job, state, self.now_ms(), source, proposed=proposed))

    async def _forget(self, peer: NodeId, job_id: str) -> None:
        async with self._keeps.of(job_id):  # it may be on its way to the disk
            self.do(self.book.withdrawn(job_id, peer))

    async def _webhook(self, wish: Wish) -> Webhook | None:
        if not wish.webhook:
            return None
        secret = check_secret(wish.secret) if wish.secret else make_secret(self._random_bytes(32))
        await look_up(self._rule, wish.webhook)
        is_given_twice = bool(wish.secret and wish.key)  # only a key makes two calls one
        job_id = id_of_key(wish.caller.key_id, wish.key)
        return Webhook(
            wish.webhook, secret, digest_of_secret(job_id, secret) if is_given_twice else b""
        )

    async def _job(self, wish: Wish, webhook: Webhook | None) -> Job:
        caller, size_bytes = wish.caller, memoryview(wish.body).nbytes
        if size_bytes <= _HASHED_AT_ONCE_BYTES:
            digest = hashlib.sha256(wish.body).digest()
        else:
            digest = (await asyncio.to_thread(hashlib.sha256, wish.body)).digest()
        key_id = caller.key_id
        return Job(
            id=id_of_key(key_id, wish.key) if wish.key else random_id(self._random_bytes(16)),
            path=wish.path,
            query=wish.query,
            headers=wish.headers,
            body_sha256=digest,
            body_bytes=size_bytes,
            created_at_ms=self.now_ms(),
            accepted_by=self._me,
            key_id=key_id,
            key_name=caller.name,
            model=wish.model,
            webhook=webhook,
            request_id=wish.request_id,
        )

    async def _work(self) -> None:
        """Write and carry out what is pending until nothing is."""
        try:
            while self._pending:
                batch, self._pending = self._pending, []
                saves = {each.job_id: each.state for each in batch if isinstance(each, Save)}
                drops = [each.job_id for each in batch if isinstance(each, Drop)]
                try:
                    if saves or drops:
                        await self.disk.write(list(saves.items()), drops)
                except MeshError as error:
                    await self._wait_for_disk(batch, error)
                    continue
                self._disk_failed = False
                for each in batch:
                    self._carry_out(each)
        finally:
            self._working = False

    async def _wait_for_disk(
        self, batch: list[JobEffect | asyncio.Future[None]], failed: MeshError
    ) -> None:
        """Carry nothing out of what could not be written; tell who waits for it, and let it be tried again."""
        if not self._disk_failed:
            log.error(
                "jobs could not be written down, and stand still until they can be: %s", failed
            )
        self._disk_failed = True
        left: list[JobEffect | asyncio.Future[None]] = []
        for each in batch:
            if not isinstance(each, asyncio.Future):
                left.append(each)
            elif not each.done():
                each.set_exception(failed)
        self._pending = left + self._pending
        await asyncio.sleep(JOB_REVIEW_S)

    def _carry_out(self, effect: JobEffect | asyncio.Future[None]) -> None:
        match effect:
            case asyncio.Future():
                if not effect.done():
                    effect.set_result(None)
            case Send():
                self._sending.begin(effect)
            case Start(job, attempt):
                self._execution.begin(job, attempt)
            case Stop(job_id):
                self._execution.end(job_id)
            case Tell():
                self.spawn(self._tell(effect))
            case Save(job_id, state):
                if state.ended:
                    self._execution.forget(job_id)
            case Drop(job_id):
                self._execution.forget(job_id)

    async def _tell(self, effect: Tell) -> None:
        job, outcome = effect.job, effect.state.outcome
        assert outcome is not None

        def is_wanted() -> bool:
            held = self.book.held.get(job.id)
            return held is not None and held.state.outcome == outcome

        delivered = await tell(
            job, effect.state, self, self._rule, self._clock, self._tells, is_wanted
        )
        if is_wanted():
            self.webhooks["delivered" if delivered else "failed"] += 1
        self.do(self.book.told(job.id, outcome, delivered=delivered, now_ms=self.now_ms()))

    async def _tend(self) -> None:
        while True:
            await asyncio.sleep(JOB_REVIEW_S)
            self.follow_members()
            self.do(self.book.tick(self.now_ms()))

    async def _to_the_end(self, work: Coroutine[Any, Any, None]) -> None:
        """Do this, also when nobody waits for it any more."""
        task: asyncio.Task[None] = asyncio.ensure_future(work)
        self._keeping.add(task)
        task.add_done_callback(self._keeping.discard)
        await asyncio.shield(task)

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Do this beside everything else, until it ends or this node does."""
        return self._tasks.start(work)
