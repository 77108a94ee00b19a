"""Jobs of several nodes between real disks and links in memory: what is asked, kept, run, told and lost."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import time
from typing import TYPE_CHECKING, Any, cast

import msgspec
import pytest
import pytest_asyncio

from meshnode.daemon import job_acceptance, job_execution, job_runs, jobs
from meshnode.daemon.job_answers import check_job, check_state
from meshnode.daemon.jobs import Jobs
from meshnode.errors import (
    Forbidden,
    IdempotencyKeyReused,
    InvalidRequest,
    JobCancelled,
    JobUnfinished,
    LinkLost,
    MeshError,
    NoReplica,
    NotFound,
    NotServing,
    ProtocolError,
)
from meshnode.gateway.jobs_api import Asked, Wish
from meshnode.gateway.matching import Match
from meshnode.gateway.protocols.caller import LOCAL, OWNER, Caller
from meshnode.gateway.protocols.http import HttpRequest, HttpResponse, HttpStream
from meshnode.gateway.protocols.status import PLAIN, HttpRefusal
from meshnode.jobs.job import NEW, Job, JobState, JobStatus, Outcome, ended, id_of_key
from meshnode.jobs.messages import (
    JOBS,
    WANTS_JOB,
    AskJob,
    CancelJob,
    JobKept,
    JobsListed,
    KeepJob,
    ListJobs,
    TellJob,
    read_listed,
)
from meshnode.types import NodeId, Scope
from meshnode.wire.messages import Failure
from tests.unit.jobs.mesh import START_MS, job

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable
    from pathlib import Path

ANN = Caller(Scope.INFER, "k" * 16, "ann")
PAGE = Asked(None, 10, 2**62, "")


class WallClock:
    def now(self) -> float:
        return time.monotonic()

    def wall_s(self) -> float:
        return time.time()


class Link:
    """A link in memory: what is opened on it is answered by the other node's `JobAnswers`."""

    def __init__(self, net: Net, source: NodeId, to: NodeId) -> None:
        self.net, self.source, self.to = net, source, to
        self.tasks: dict[int, asyncio.Task[None]] = {}

    def open(self, meta: bytes, data: Any, handler: Any) -> int:
        stream = len(self.tasks)
        self.tasks[stream] = asyncio.ensure_future(
            self._answer(meta, b"".join(map(bytes, data)), handler)
        )
        return stream

    def cancel(self, stream: int) -> None:
        self.tasks[stream].cancel()

    async def _answer(self, meta: bytes, data: bytes, handler: Any) -> None:
        if not self.net.reach(self.source, self.to):
            handler.lost(LinkLost("cut"))
            return
        answers = self.net.nodes[self.to].answers
        try:
            if self.to in self.net.ignorant:
                raise InvalidRequest("this node does not know what is asked")
            asked = answers.read(meta)
            assert asked is not None
            while (type(asked), self.to) in self.net.stalled:  # noqa: ASYNC110 - tests change a plain set
                await asyncio.sleep(0.002)
            answer, parts = await answers.answer(self.source, asked, memoryview(data))
        except MeshError as error:
            answer, parts = JOBS.encode(Failure(error.code, str(error))), []
        handler.part(answer, memoryview(b"".join(map(bytes, parts))), True)


class Reach:
    def __init__(self, net: Net, me: NodeId) -> None:
        self.net, self.me = net, me

    def linked(self, node: NodeId) -> Any:
        return Link(self.net, self.me, node) if self.net.reach(self.me, node) else None

    async def link(self, node: NodeId) -> Any:
        return None

    def rtt_s(self, node: NodeId) -> float | None:
        return None


UNTOLD = "the model answered with an error; see the result"


class Routes:
    """A dispatcher whose one path answers as a test says."""

    def __init__(self) -> None:
        self.seen: list[HttpRequest] = []
        self.answer: Callable[[HttpRequest], Any] = lambda http: HttpResponse(
            200, {"Content-Type": "text/plain", "Mesh-Route": "node=x", "Date": "now"}, bytes(http.body) + b"!"
        )  # fmt: skip

    def match(self, method: str, path: str) -> Match:
        if path not in ("/run", "/show"):
            raise HttpRefusal(404, f"nothing is served at {path}")

        def handle(http: HttpRequest, _request_id: str) -> Any:
            self.seen.append(http)
            return self.answer(http)

        return Match(handle, Scope.INFER, takes_body=True, infers=path == "/run")

    def error_form(self, path: str) -> Any:
        return PLAIN


class Net:
    """Some nodes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.nodes: dict[NodeId, Jobs] = {}
        self.routes = Routes()
        self.gone: set[NodeId] = set()
        self.deaf: set[NodeId] = set()
        self.ignorant: set[NodeId] = set()
        self.plain: set[NodeId] = set()
        self.stalled: set[tuple[type, NodeId]] = (
            set()
        )  # messages of this kind to this node take long
        self.valid = True

    def reach(self, one: NodeId, other: NodeId) -> bool:
        return not {one, other} & (self.gone | self.deaf) and other in self.nodes

    def start(self, name: str) -> Jobs:
        me = NodeId(name)
        self.gone.discard(me)
        self.nodes[me] = node = Jobs(
            me=me, reach=Reach(self, me), live=lambda: self.nodes.keys() - self.gone - {me}, clock=WallClock(),
            path=self.folder / f"{name}.db", random_bytes=os.urandom, opens=lambda _key: self.valid,
            name_of=lambda node: f"<{node}>", sees_all=lambda node: node not in self.plain,
        )  # fmt: skip
        node.start(cast("Any", self.routes))
        return node

    async def kill(self, name: str) -> None:
        self.gone.add(NodeId(name))
        await self.nodes[NodeId(name)].close()

    async def close(self) -> None:
        for name, node in self.nodes.items():
            if name not in self.gone:
                await node.close()


@pytest_asyncio.fixture
async def net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Net]:
    monkeypatch.setattr(jobs, "JOB_REVIEW_S", 0.01)
    monkeypatch.setattr(job_execution, "JOB_PROGRESS_S", 0.0)
    monkeypatch.setattr(job_acceptance, "JOB_ACCEPT_TIMEOUT_S", 0.3)
    monkeypatch.setattr(job_runs, "JOB_RETRY_FIRST_S", 0.005)
    net = Net(tmp_path)
    yield net
    await net.close()


def wish(body: bytes = b"body", caller: Caller = LOCAL, **fields: Any) -> Wish:
    known = {
        "path": "/run", "query": "a=1", "headers": (("accept", "text/plain"),), "body": body, "caller": caller, "model": "m",
        "webhook": "", "secret": "", "key": "", "request_id": "id-1",
    }  # fmt: skip
    return Wish(**{**known, **fields})


async def until(condition: Callable[[], Any]) -> Any:
    async with asyncio.timeout(5):
        while not (found := condition()):  # noqa: ASYNC110 - any condition
            await asyncio.sleep(0.002)
        return found


async def ended_at(node: Jobs, job_id: str, caller: Caller = LOCAL) -> JobState:
    async with asyncio.timeout(5):
        while True:
            with contextlib.suppress(MeshError):
                _, state = await node.find(job_id, caller)
                if state.ended:
                    return state
            await asyncio.sleep(0.002)


async def test_a_node_without_jobs_opens_nothing(net: Net) -> None:
    node = net.start("a")
    assert (await node.listed(PAGE, LOCAL)).jobs == []
    with pytest.raises(NotFound):
        await node.find("a" * 26, LOCAL)
    assert list(net.folder.iterdir()) == []


async def test_a_call_is_carried_out_as_it_was_asked_and_any_node_has_its_answer(net: Net) -> None:
    nodes = [net.start(name) for name in "abcd"]
    made, state = await nodes[0].submit(wish(caller=ANN))
    for node in nodes:
        state = await ended_at(node, made.id, ANN)
        assert state.status is JobStatus.SUCCEEDED
        _, _, body = await node.result(made.id, ANN)
        assert bytes(body) == b"body!"
    assert state.outcome is not None
    assert state.outcome.headers == (("content-type", "text/plain"), ("mesh-route", "node=x"))
    (http,) = net.routes.seen
    assert (http.method, http.path, http.query, http.body) == ("POST", "/run", "a=1", b"body")
    assert http.headers == {"accept": "text/plain"}
    assert (http.caller.key_id, http.caller.scope, http.caller.job) == (
        ANN.key_id,
        Scope.INFER,
        made.id,
    )
    await until(lambda: sum(made.id in node.book.held for node in nodes) == 2)
    for node in nodes:
        assert [each.id for each, _ in (await node.listed(PAGE, ANN)).jobs] == [made.id]
        assert [each.id for each, _ in (await node.listed(PAGE, OWNER)).jobs] == [made.id]
        assert (await node.listed(PAGE, Caller(Scope.INFER, "other"))).jobs == []
        with pytest.raises(NotFound):
            await node.find(made.id, LOCAL)


async def test_what_was_accepted_survives_a_crash_of_everything(net: Net) -> None:
    """All nodes end at once before the job has run; they start again, and it runs."""
    release = asyncio.Event()

    async def blocked(http: HttpRequest) -> HttpResponse:
        await release.wait()
        return HttpResponse(200, {}, b"late")

    net.routes.answer = blocked
    for name in "abc":
        net.start(name)
    made, _ = await net.nodes[NodeId("a")].submit(wish())
    for name in "abc":
        await net.kill(name)
    release.set()
    for name in "abc":
        net.start(name)
    assert (await ended_at(net.nodes[NodeId("b")], made.id)).status is JobStatus.SUCCEEDED


async def test_a_job_that_no_second_node_takes_is_not_accepted(net: Net) -> None:
    node = net.start("a")
    net.start("b")
    net.deaf.add(NodeId("b"))
    with pytest.raises(NotServing, match="no second node"):
        await node.submit(wish())
    assert not [each for each in node.book.held.values() if each.state.status is JobStatus.QUEUED]


async def test_nodes_whose_version_knows_no_jobs_do_not_count(net: Net) -> None:
    node = net.start("a")
    net.start("b")
    net.ignorant.add(NodeId("b"))
    made, _ = await node.submit(wish())
    assert (await ended_at(node, made.id)).status is JobStatus.SUCCEEDED


async def test_one_idempotency_key_means_one_job_at_every_node(net: Net) -> None:
    nodes = [net.start(name) for name in "abc"]
    made = [(await node.submit(wish(key="order-7", caller=ANN)))[0].id for node in nodes]
    assert set(made) == {id_of_key(ANN.key_id, "order-7")}
    await ended_at(nodes[2], made[0], ANN)
    assert len(net.routes.seen) == 1
    with pytest.raises(IdempotencyKeyReused):
        await nodes[1].submit(wish(b"other", key="order-7", caller=ANN))
    other, _ = await nodes[1].submit(wish(b"other", key="order-7"))
    assert other.id != made[0]


@pytest.fixture
def resolved(monkeypatch: pytest.MonkeyPatch) -> None:
    """Webhooks lead where they may, and nobody is called."""

    async def looked_up(*_: Any) -> None:
        pass

    async def told(*_: Any) -> bool:
        return True

    monkeypatch.setattr(jobs, "look_up", looked_up)
    monkeypatch.setattr(jobs, "tell", told)


HOOKED: dict[str, Any] = {"key": "order-7", "webhook": "https://example.org/hook"}


@pytest.mark.usefixtures("resolved")
async def test_a_webhooks_secret_is_known_to_its_caller_and_to_the_nodes_that_keep_the_job(
    net: Net,
) -> None:
    nodes = [net.start(name) for name in "abcd"]
    made, _ = await nodes[0].submit(wish(**HOOKED, secret="a private secret of ann"))
    assert made.webhook is not None
    assert made.webhook.secret == "a private secret of ann"
    await ended_at(nodes[0], made.id)
    for node in nodes:
        again, _ = await node.submit(wish(**HOOKED, secret="a private secret of ann"))
        found, _ = await node.find(made.id, LOCAL)
        ((listed, _),) = (await node.listed(PAGE, OWNER)).jobs
        _, _, body = await node.result(made.id, LOCAL)
        assert bytes(body) == b"body!"
        for shown in (again, found, listed):
            assert shown.webhook is not None
            assert (shown.id, shown.webhook.secret) == (made.id, "")
        for keeper in nodes:
            if made.id in keeper.book.held:
                answer, _ = await keeper.answers.answer(node.me, AskJob(made.id), memoryview(b""))
                assert b"private" not in answer
    assert any(
        (held := node.book.held.get(made.id)) is not None
        and held.job.webhook is not None
        and held.job.webhook.secret == "a private secret of ann"
        for node in nodes
    )


@pytest.mark.usefixtures("resolved")
@pytest.mark.parametrize("changes", [{"secret": "another secret, as private"}, {"secret": ""}])
async def test_a_repetition_with_another_secret_is_another_call(
    net: Net, changes: dict[str, str]
) -> None:
    nodes = [net.start(name) for name in "abc"]
    await nodes[0].submit(wish(**HOOKED, secret="a private secret of ann"))
    with pytest.raises(IdempotencyKeyReused):
        await nodes[1].submit(wish(**{**HOOKED, **changes}))


@pytest.mark.usefixtures("resolved")
async def test_a_secret_that_was_made_is_told_once(net: Net) -> None:
    nodes = [net.start(name) for name in "abc"]
    told = [(await node.submit(wish(**HOOKED)))[0].webhook for node in nodes]
    assert [hook is not None and hook.secret[:6] for hook in told] == ["whsec_", "", ""]


@pytest.mark.parametrize(
    ("headers", "same"),
    [
        ((("accept", "image/png"),), False),
        ((("accept", "text/plain"), ("content-encoding", "gzip")), False),
        ((("accept", "text/plain"), ("inference-header-content-length", "7")), False),
        ((("accept", "text/plain"), ("mesh-trial", "yes")), False),
        ((("traceparent", "00-1"), ("accept", "text/plain")), True),
    ],
)
async def test_headers_that_say_how_to_read_a_call_are_part_of_it(
    net: Net, headers: tuple[tuple[str, str], ...], same: bool
) -> None:
    node = net.start("a")
    made, _ = await node.submit(wish(key="order-7"))
    if same:
        assert (await node.submit(wish(key="order-7", headers=headers)))[0].id == made.id
    else:
        with pytest.raises(IdempotencyKeyReused):
            await node.submit(wish(key="order-7", headers=headers))


async def kept_by_two(net: Net, names: str, *, besides: str) -> tuple[Job, list[Jobs]]:
    """Return a job that has ended, accepted by the node `besides`, and the two others that keep it."""
    nodes = [net.nodes[NodeId(name)] for name in names]
    while True:
        made, _ = await net.nodes[NodeId(besides[0])].submit(wish())
        for node in nodes:
            await ended_at(node, made.id)

        def settled(job_id: str = made.id) -> list[Jobs]:
            keepers = [node for node in nodes if job_id in node.book.held]
            ended = all(node.book.held[job_id].state.ended for node in keepers)
            return keepers if ended and len(keepers) == 2 else []

        keepers = await until(settled)
        if not any(node.me in besides for node in keepers):
            return made, keepers


async def test_a_plain_member_is_told_of_no_job_that_it_has_nothing_to_do_with(net: Net) -> None:
    for name in "bcdef":
        net.start(name)
    made, keepers = await kept_by_two(net, "bcdef", besides="b")
    lent = next(node for node in net.nodes.values() if node not in keepers and node.me != "b")
    net.plain.add(lent.me)
    with pytest.raises(NotFound, match="plain member"):
        await lent.find(made.id, OWNER)
    with pytest.raises(NotFound, match="plain member"):
        await lent.cancel(made.id, LOCAL)
    assert (await lent.listed(PAGE, OWNER)).jobs == []
    asks = (AskJob(made.id), AskJob(made.id, with_result=True), CancelJob(made.id))
    for keeper in keepers:
        for ask in asks:
            with pytest.raises(NotFound):
                await keeper.answers.answer(lent.me, ask, memoryview(b""))
        everybody = ListJobs("", True, "", 10, 2**62)
        listed, data = await keeper.answers.answer(lent.me, everybody, memoryview(b""))
        assert JOBS.decode(listed) == JobsListed(0)
        assert read_listed(memoryview(b"".join(map(bytes, data)))) == []
    # What it has accepted itself it answers for, also to its owner; what it keeps for others it does not show them.
    own, _ = await lent.submit(wish())
    await ended_at(lent, own.id)
    assert [each.id for each, _ in (await lent.listed(PAGE, OWNER)).jobs] == [own.id]
    _, _, body = await lent.result(own.id, OWNER)
    assert bytes(body) == b"body!"
    net.plain.add(keepers[0].me)
    with pytest.raises(NotFound, match="plain member"):
        await keepers[0].find(made.id, OWNER)


async def test_nobody_says_in_anothers_name_how_a_job_ended(net: Net) -> None:
    """A member that has nothing to do with a job tells the nodes that keep it a result of its own making."""
    for name in "1bcdef":
        net.start(name)
    made, keepers = await kept_by_two(net, "1bcdef", besides="b1")
    true = keepers[0].book.held[made.id].state.outcome
    assert true is not None
    keeper_names = {keeper.me for keeper in keepers}
    evil = next(name for name in net.nodes if name not in (*keeper_names, "1", "b"))
    # One that is no member, and one that is; both would count before the one that ran it.
    for name in ("0", "1"):
        forged = msgspec.structs.replace(true, node=name, headers=(("content-type", "text/html"),))
        state = JobState(1, name, true.finished_at_ms, -1.0, forged)
        for keeper in keepers:
            held = keeper.book.held[made.id]
            for ask, data in (
                (TellJob(made.id, state, held.job.fingerprint), b""),
                (TellJob(made.id, state, held.job.fingerprint), b"body!"),
                (KeepJob(held.job, state), b"bodybody!"),
            ):
                with pytest.raises(ProtocolError, match="does not say so"):
                    await keeper.answers.answer(evil, ask, memoryview(data))
            assert keeper.book.held[made.id].state.outcome == true


async def test_who_only_knows_the_id_of_a_job_cannot_say_how_it_fares(net: Net) -> None:
    """A member names itself as the node that runs it, or has ended it; ids of keys can be guessed."""
    for name in "bcdef":
        net.start(name)
    made, keepers = await kept_by_two(net, "bcdef", besides="b")
    known = {keeper.me: keeper.book.held[made.id].state for keeper in keepers}
    evil = next(name for name in net.nodes if name not in known and name != "b")
    digest = hashlib.sha256(b"evil").digest()
    now = keepers[0].now_ms()
    forged = Outcome(JobStatus.SUCCEEDED, 1, evil, now, 200, (), digest, 4)
    guess = msgspec.structs.replace(made, body_sha256=digest, body_bytes=4)
    for keeper in keepers:
        for state in (JobState(1, evil, 1, -1.0, forged), JobState(2**31 - 1, evil, 1)):
            for fingerprint in (b"", guess.fingerprint):
                tell = TellJob(made.id, state, fingerprint)
                answer, _ = await keeper.answers.answer(evil, tell, memoryview(b"evil"))
                assert JOBS.decode(answer) == JobKept(WANTS_JOB)
            with pytest.raises(IdempotencyKeyReused):
                await keeper.answers.answer(evil, KeepJob(guess, state), memoryview(b"evilevil"))
        assert keeper.book.held[made.id].state == known[keeper.me]


async def test_a_node_tells_what_it_ran_and_a_keeper_what_another_did(net: Net) -> None:
    for name in "bcdef":
        net.start(name)
    made, keepers = await kept_by_two(net, "bcdef", besides="b")
    held = keepers[0].book.held[made.id]
    assert held.state.outcome is not None
    cancelled = Outcome(JobStatus.CANCELLED, 1, "gone", held.state.outcome.finished_at_ms)
    lost = msgspec.structs.replace(held.state, outcome=cancelled)
    result = memoryview(b"body!")
    tell = TellJob(made.id, held.state, held.job.fingerprint)
    for source in (
        held.state.outcome.node,
        "b",
        next(n.me for n in keepers if n.me != held.state.outcome.node),
    ):
        keepers[0].book.held[made.id].state = lost
        answer, _ = await keepers[0].answers.answer(NodeId(source), tell, result)
        assert JOBS.decode(answer) == JobKept()
        assert keepers[0].book.held[made.id].state.outcome == held.state.outcome


async def test_of_anyone_elses_word_the_node_that_ended_a_job_is_asked(net: Net) -> None:
    for name in "bcdef":
        net.start(name)
    made, keepers = await kept_by_two(net, "bcdef", besides="b")
    ran = next(
        node
        for node in keepers
        if (end := node.book.held[made.id].state.outcome) and end.node == node.me
    )
    other = next(node for node in keepers if node is not ran)
    state, job = ran.book.held[made.id].state, ran.book.held[made.id].job
    fresh, teller = (name for name in net.nodes if name not in (ran.me, other.me, "b"))
    answer, _ = await net.nodes[fresh].answers.answer(
        teller, KeepJob(job, state), memoryview(b"bodybody!")
    )
    assert JOBS.decode(answer) == JobKept()


async def test_a_damaged_body_ends_its_job_and_frees_its_place(net: Net) -> None:
    node = net.start("a")
    release = asyncio.Event()

    async def blocked(_http: HttpRequest) -> HttpResponse:
        await release.wait()
        return HttpResponse(200, {}, b"")

    net.routes.answer = blocked
    made = [(await node.submit(wish(b"z" * 50_000 + bytes([n]))))[0] for n in range(10)]
    await until(lambda: len(net.routes.seen) == node.book.running)
    waiting = [each for each in made if node.book.held[each.id].state.status is JobStatus.QUEUED]
    store = node.disk._opened
    read = store._connection.execute("UPDATE body SET data = x'00' WHERE id = ?", [waiting[0].id])
    assert read.rowcount == 1
    store._connection.commit()
    release.set()
    for each in made:
        wanted = JobStatus.FAILED if each.id == waiting[0].id else JobStatus.SUCCEEDED
        assert (await ended_at(node, each.id)).status is wanted
    await until(lambda: not node.book.running)


async def test_a_job_is_cancelled_from_any_node(net: Net) -> None:
    nodes = [net.start(name) for name in "abcd"]
    stopped = asyncio.Event()

    async def blocked(_http: HttpRequest) -> HttpResponse:
        try:
            await asyncio.sleep(60)
        finally:
            stopped.set()
        raise AssertionError

    net.routes.answer = blocked
    made, _ = await nodes[0].submit(wish())
    await until(lambda: net.routes.seen)
    with pytest.raises(JobUnfinished):
        await nodes[3].result(made.id, LOCAL)
    keepers = {node.me for node in nodes if made.id in node.book.held}
    other = next(node for node in nodes if node.me not in set(nodes[0].book.keepers(made.id)))
    assert keepers
    _, state = await other.cancel(made.id, LOCAL)
    assert state.status is JobStatus.CANCELLED
    await asyncio.wait_for(stopped.wait(), 5)
    for node in nodes:
        assert (await ended_at(node, made.id)).status is JobStatus.CANCELLED
        with pytest.raises(JobCancelled):
            await node.result(made.id, LOCAL)
    assert (await other.cancel(made.id, LOCAL))[1].status is JobStatus.CANCELLED


async def test_what_is_busy_is_asked_again_and_what_is_wrong_fails_in_its_words(net: Net) -> None:
    node = net.start("a")
    failures = [NoReplica("none yet"), NoReplica("none yet")]

    def busy(_http: HttpRequest) -> HttpResponse:
        if failures:
            raise failures.pop()
        return HttpResponse(200, {}, b"")

    net.routes.answer = busy
    made, _ = await node.submit(wish())
    assert (await ended_at(node, made.id)).status is JobStatus.SUCCEEDED
    assert bytes((await node.result(made.id, LOCAL))[2]) == b""

    def wrong(_http: HttpRequest) -> HttpResponse:
        raise InvalidRequest("x is missing")

    net.routes.answer = wrong
    made, _ = await node.submit(wish())
    end = (await ended_at(node, made.id)).outcome
    assert end is not None
    assert (end.status, end.http_status, end.error, end.code) == (
        JobStatus.FAILED, 400, "x is missing", "invalid_request",
    )  # fmt: skip
    assert bytes((await node.result(made.id, LOCAL))[2]) == b'{"error":"x is missing"}'
    assert node.ended == {"succeeded": 1, "failed": 1}


@pytest.mark.parametrize(
    ("answer", "status", "error", "code"),
    [
        (HttpResponse(500, {}, b'{"error":{"message":"deep"}}'), 500, "deep", "inference_failed"),
        (HttpResponse(400, {}, b'{"detail":"no text"}'), 400, "no text", "inference_failed"),
        (HttpResponse(400, {}, b'{"error":"no","code":"bad_text"}'), 400, "no", "bad_text"),
        (HttpResponse(400, {"Mesh-Error": "x"}, b'{"error":"no","code":7}'), 400, "no", "x"),
        (HttpResponse(400, {}, b'{"error":"no","code":7}'), 400, "no", "inference_failed"),
        (HttpResponse(500, {}, b"<html>"), 500, UNTOLD, "inference_failed"),
        (HttpResponse(500, {}, b"[1]"), 500, UNTOLD, "inference_failed"),
    ],
)
async def test_the_sentence_and_the_code_of_an_error_are_found_in_its_answer(
    net: Net, answer: HttpResponse, status: int, error: str, code: str
) -> None:
    node = net.start("a")
    net.routes.answer = lambda _http: answer
    made, _ = await node.submit(wish())
    end = (await ended_at(node, made.id)).outcome
    assert end is not None
    assert (end.http_status, end.error, end.code) == (status, error, code)


async def test_a_defect_fails_the_job_and_not_the_node(
    net: Net, caplog: pytest.LogCaptureFixture
) -> None:
    node = net.start("a")
    net.routes.answer = lambda _http: 1 / 0
    made, _ = await node.submit(wish())
    end = (await ended_at(node, made.id)).outcome
    assert end is not None
    assert (end.http_status, end.code) == (500, "internal")
    assert "ZeroDivisionError" in caplog.text


@pytest.mark.parametrize("path", ["/nothing", "/show"])
async def test_a_path_where_no_model_runs_fails_after_a_while(
    net: Net, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    monkeypatch.setattr(job_runs, "JOB_UNKNOWN_S", 0.02)
    node = net.start("a")
    made, _ = await node.submit(wish(path=path))
    end = (await ended_at(node, made.id)).outcome
    assert end is not None
    assert (end.http_status, end.code) == (404, "http")


async def test_a_key_that_was_revoked_runs_nothing_any_more(net: Net) -> None:
    node = net.start("a")
    net.valid = False
    made, _ = await node.submit(wish(caller=ANN))
    end = (await ended_at(node, made.id, ANN)).outcome
    assert end is not None
    assert (end.status, end.code) == (JobStatus.FAILED, "unauthenticated")
    assert not net.routes.seen


async def test_a_stream_is_kept_whole_and_its_progress_is_seen_at_the_other_copy(net: Net) -> None:
    nodes = [net.start(name) for name in "ab"]
    go_on = asyncio.Event()

    async def parts() -> AsyncGenerator[bytes, None]:
        yield b'data: {"progress": 0.5}\n\n'
        await go_on.wait()
        yield b"data: done\n\n"

    net.routes.answer = lambda _http: _at_once(
        HttpStream(200, {"Content-Type": "text/event-stream"}, parts())
    )
    made, _ = await nodes[0].submit(wish())

    def is_half_done_everywhere() -> bool:
        held = [node.book.held.get(made.id) for node in nodes]
        return all(each is not None and each.state.progress == 0.5 for each in held)

    await until(is_half_done_everywhere)
    go_on.set()
    await ended_at(nodes[1], made.id)
    assert bytes((await nodes[1].result(made.id, LOCAL))[2]).endswith(b"data: done\n\n")


async def _at_once(stream: HttpStream) -> HttpStream:
    return stream


@pytest.mark.parametrize(
    ("piece", "progress"),
    [
        (b'data: {"progress": 0.25}\n\ndata: {"progress": 0.5}\n\n', 0.5),
        (b'{"parameters": {"progress": 1}}\n', 1.0),
        (b'data: {"progress": 7}\n\n', None), (b'data: {"progress": true}\n\n', None), (b'{"progress"', None),
        (b'["progress"]', None), (b"data: x\n\n", None), (b'{"parameters": ["progress"], "a": "progress"}', None),
    ],
)  # fmt: skip
def test_progress_is_a_number_of_an_event(piece: bytes, progress: float | None) -> None:
    assert job_runs.progress_in(piece) == progress


async def test_a_webhook_to_this_machine_is_refused_and_the_job_with_it(net: Net) -> None:
    node = net.start("a")
    for url in ("http://127.0.0.1:1/x", "http://169.254.169.254/"):
        with pytest.raises(Forbidden):
            await node.submit(wish(webhook=url))
    with pytest.raises(InvalidRequest):
        await node.submit(wish(webhook="http://8.8.8.8/", secret="short"))
    assert not node.book.held


async def test_a_webhook_that_nobody_hears_is_given_up_and_shown_so(
    net: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def answered(*_: Any, **__: Any) -> Any:
        raise LinkLost("down")

    monkeypatch.setattr("meshnode.daemon.job_webhooks.ask", answered)
    monkeypatch.setattr("meshnode.jobs.webhooks.PAUSES_S", (0.0, 0.0))
    node = net.start("a")
    made, _ = await node.submit(wish(webhook="http://8.8.8.8/hook"))
    assert made.webhook is not None
    assert made.webhook.secret.startswith("whsec_")
    await until(lambda: node.book.held[made.id].state.told == 1)
    assert node.webhooks == {"delivered": 0, "failed": 1}


async def test_a_list_is_of_the_whole_mesh_and_names_who_was_silent(net: Net) -> None:
    nodes = [net.start(name) for name in "abcd"]
    made = [(await nodes[n % 4].submit(wish(caller=ANN, key=str(n))))[0] for n in range(8)]
    for each in made:
        await ended_at(nodes[0], each.id, ANN)
    first = await nodes[0].listed(Asked(None, 5, 2**62, ""), ANN)
    assert (len(first.jobs), first.more, first.silent) == (5, True, [])
    last = first.jobs[-1][0]
    second = await nodes[3].listed(Asked(JobStatus.SUCCEEDED, 5, last.created_at_ms, last.id), ANN)
    assert {each.id for each, _ in (*first.jobs, *second.jobs)} == {each.id for each in made}
    assert (len(second.jobs), second.more) == (3, False)
    assert (await nodes[0].listed(Asked(JobStatus.QUEUED, 5, 2**62, ""), ANN)).jobs == []
    net.deaf.add(NodeId("d"))
    assert (await nodes[0].listed(PAGE, ANN)).silent == ["<d>"]


async def test_programs_without_a_key_list_what_was_accepted_where_they_ask(net: Net) -> None:
    nodes = [net.start(name) for name in "ab"]
    made, _ = await nodes[0].submit(wish())
    assert [each.id for each, _ in (await nodes[0].listed(PAGE, LOCAL)).jobs] == [made.id]
    assert (await nodes[1].listed(PAGE, LOCAL)).jobs == []
    assert (await nodes[1].find(made.id, LOCAL))[0] == made


async def test_who_may_keep_a_job_and_cannot_be_reached_is_not_taken_for_one_who_has_none(
    net: Net,
) -> None:
    node = net.start("a")
    net.start("b")
    net.deaf.add(NodeId("b"))
    with pytest.raises(NotServing, match="cannot be reached"):
        await node.find("a" * 26, LOCAL)


async def test_what_no_node_tells_of_a_job_is_shown_to_nobody(net: Net) -> None:
    for name in "bcdef":
        net.start(name)
    made, keepers = await kept_by_two(net, "bcdef", besides="b")
    other = next(node for node in net.nodes.values() if node not in keepers and node.me != "b")
    true, _, _ = await other.result(made.id, LOCAL)
    held = keepers[0].book.held[made.id]
    assert held.state.outcome is not None
    lie = msgspec.structs.replace(held.state.outcome, node="", headers=(("mesh-x", "a\r\nb"),))
    held.state = msgspec.structs.replace(held.state, outcome=lie)
    _, state = await other.find(made.id, LOCAL)
    assert state.outcome == keepers[1].book.held[made.id].state.outcome
    assert true.id == made.id
    assert (await other.listed(PAGE, OWNER)).silent == [f"<{keepers[0].me}>"]


GOOD_END = Outcome(JobStatus.SUCCEEDED, 1, "x", START_MS, 200, (), b"1" * 32, 5)


@pytest.mark.parametrize(
    "changes",
    [
        {"id": "short"}, {"path": "no"}, {"path": "/" + "x" * 9000}, {"headers": (("a", "b\r\nc"),)}, {"body_bytes": -1},
        {"headers": (("a", "x" * 9000),)}, {"body_sha256": b"x"}, {"created_at_ms": 0}, {"key_name": "x" * 600},
    ],
)  # fmt: skip
def test_a_job_of_a_peer_that_no_gateway_makes_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError):
        check_job(msgspec.structs.replace(job("a"), **changes))
    check_job(job("a"))


@pytest.mark.parametrize(
    "changes",
    [
        {"attempt": -1}, {"node": "x" * 600}, {"progress": 7.0}, {"progress": float("nan")}, {"started_at_ms": 2**60},
        {"passed": ("x",) * 17}, {"passed": ("x" * 600,)},
        {"outcome": msgspec.structs.replace(GOOD_END, finished_at_ms=2**60)},
        {"outcome": msgspec.structs.replace(GOOD_END, status=JobStatus.QUEUED)},
        {"outcome": msgspec.structs.replace(GOOD_END, http_status=7)},
        {"outcome": msgspec.structs.replace(GOOD_END, result_sha256=b"")},
        {"outcome": msgspec.structs.replace(GOOD_END, headers=(("a", "\n"),))},
        {"outcome": msgspec.structs.replace(GOOD_END, error="x" * 3000)},
    ],
)  # fmt: skip
def test_a_state_of_a_peer_that_no_node_writes_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError):
        check_state(msgspec.structs.replace(NEW, **changes), START_MS)
    check_state(ended(NEW, GOOD_END), START_MS)


async def test_a_peers_body_and_result_must_be_what_they_are_said_to_be(net: Net) -> None:
    node = net.start("a")
    answers, peer = node.answers, NodeId("b")
    what = job("a", created_at_ms=node.now_ms())
    with pytest.raises(ProtocolError, match="body"):
        await answers.answer(peer, KeepJob(what, NEW), memoryview(b"0123456789"))
    state = ended(NEW, msgspec.structs.replace(GOOD_END, finished_at_ms=node.now_ms()))
    assert JOBS.decode(
        (await answers.answer(peer, TellJob(what.id, state), memoryview(b"")))[0]
    ) == JobKept(1)
    with pytest.raises(NotFound):
        await answers.answer(peer, AskJob(what.id), memoryview(b""))
    assert answers.outcomes == {"ok": 1, "protocol": 1, "unknown": 1}
    assert answers.read(JOBS.encode(JobKept())) is None
