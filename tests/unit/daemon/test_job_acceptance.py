"""Jobs whose acceptance, disk or model is in trouble: what their callers are told is true, and others go on."""

from __future__ import annotations

import asyncio
import hashlib
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
import pytest_asyncio

from meshnode.daemon import job_acceptance, job_runs, jobs
from meshnode.daemon.job_acceptance import Locks
from meshnode.errors import IdempotencyKeyReused, NoReplica, NotFound, NotServing
from meshnode.gateway.protocols.caller import LOCAL, Caller
from meshnode.gateway.protocols.http import HttpRequest, HttpResponse
from meshnode.jobs import keepers
from meshnode.jobs.job import NEW, JobState, JobStatus, id_of_key
from meshnode.jobs.messages import AskJob, CancelJob, KeepJob
from meshnode.limits import MAX_JOBS_RUNNING
from meshnode.types import NodeId, Scope
from tests.unit.daemon.test_jobs import Net, ended_at, until, wish
from tests.unit.jobs.mesh import job

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from meshnode.daemon.jobs import Jobs

NOTHING = memoryview(b"")
EMPTY = hashlib.sha256(b"").digest()


@pytest_asyncio.fixture
async def four(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Net]:
    monkeypatch.setattr(jobs, "JOB_REVIEW_S", 0.01)
    monkeypatch.setattr(job_acceptance, "JOB_ACCEPT_TIMEOUT_S", 0.5)
    monkeypatch.setattr(job_runs, "JOB_RETRY_FIRST_S", 0.005)
    net = Net(tmp_path)
    for name in "abcd":
        net.start(name)
    yield net
    await net.close()


def key_whose_first_is(node: Jobs, first: str) -> str:
    """Return an idempotency key for whose job a node ranks first."""
    node.follow_members()
    return next(str(n) for n in range(1000) if node.book.keepers(id_of_key("", str(n)))[0] == first)


async def test_of_several_calls_with_one_key_at_once_one_is_accepted_and_jobs_go_on(
    four: Net,
) -> None:
    """Each gateway is given another body for the same key; before, they took each other for earlier versions."""
    nodes = list(four.nodes.values())
    for n in range(12):
        answers = await asyncio.gather(
            *(node.submit(wish(b"%d" % k, key=f"race-{n}")) for k, node in enumerate(nodes)),
            return_exceptions=True,
        )
        refused = [each for each in answers if isinstance(each, IdempotencyKeyReused)]
        ((made, _),) = [each for each in answers if isinstance(each, tuple)]
        assert len(refused) == 3, answers
        for node in nodes:
            assert (await ended_at(node, made.id)).status is JobStatus.SUCCEEDED
            found, _, body = await node.result(made.id, LOCAL)
            assert (found.body_sha256, bytes(body)[1:]) == (made.body_sha256, b"!")
    bodies = [bytes(http.body) for http in four.routes.seen]
    assert len(bodies) == 12  # nothing ran that was not accepted
    made, _ = await nodes[3].submit(wish())
    for node in nodes:
        assert node.others() == four.nodes.keys() - {node.me}
        assert (await node.find(made.id, LOCAL))[0].id == made.id
    assert sum(made.id in node.book.held for node in nodes) >= 2


async def test_the_same_call_at_all_gateways_at_once_is_one_job(four: Net) -> None:
    nodes = list(four.nodes.values())
    answers = await asyncio.gather(*(node.submit(wish(key="order-7")) for node in nodes))
    assert {made.id for made, _ in answers} == {id_of_key("", "order-7")}
    await ended_at(nodes[0], answers[0][0].id)
    await asyncio.sleep(0.05)
    assert len(four.routes.seen) == 1


async def test_copies_of_two_calls_with_one_key_end_up_as_one(
    four: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two sides that could not hear each other have each accepted one; the node that ranks first has the one that counts."""
    monkeypatch.setattr(keepers, "JOB_UNABLE_S", 0.02)
    a, b = four.nodes[NodeId("a")], four.nodes[NodeId("b")]
    for name in "cd":
        await four.kill(name)
    key = key_whose_first_is(a, "a")
    job_id = id_of_key("", key)
    for node in (a, b):
        other = (b if node is a else a).me
        four.gone.add(other)
        await node.submit(wish(bytes(node.me, "ascii"), key=key))
        await ended_at(node, job_id)
        four.gone.discard(other)
    a.follow_members()
    b.follow_members()
    await until(lambda: a.book.held[job_id].job == getattr(b.book.held.get(job_id), "job", None))
    for node in (a, b):
        assert bytes((await node.result(job_id, LOCAL))[2]) == b"a!"


async def test_a_key_whose_job_was_not_accepted_is_free_for_the_next_try(four: Net) -> None:
    a = four.nodes[NodeId("a")]
    four.deaf.update(four.nodes.keys() - {a.me})
    with pytest.raises(NotServing, match="not accepted"):
        await a.submit(wish(key="stop-4"))
    four.deaf.clear()
    made, state = await a.submit(wish(key="stop-4"))
    assert state.status is not JobStatus.CANCELLED
    assert (await ended_at(four.nodes[NodeId("c")], made.id)).status is JobStatus.SUCCEEDED


async def test_what_was_not_accepted_does_not_run(four: Net) -> None:
    a = four.nodes[NodeId("a")]
    await a.open()
    four.deaf.update(four.nodes.keys() - {a.me})
    answers = await asyncio.gather(*(a.submit(wish()) for _ in range(8)), return_exceptions=True)
    assert {type(each) for each in answers} == {NotServing}
    assert not a.book.held
    four.deaf.clear()
    await asyncio.sleep(0.05)
    assert not four.routes.seen
    assert not any(node.book.held for node in four.nodes.values())
    await a.written()
    assert await a.disk.open() == []


async def test_what_was_withdrawn_does_not_run_when_its_slow_copy_would_arrive(four: Net) -> None:
    """A withdrawal is small and overtakes the job's body, which is still on its way; also that of another keeper."""
    a = four.nodes[NodeId("a")]
    key = key_whose_first_is(a, "b")
    bodies_to_b = (KeepJob, NodeId("b"))
    four.stalled.add(bodies_to_b)
    for text in ("", key):
        second = a.book.keepers(id_of_key("", key))[1]
        four.stalled |= {(KeepJob, node) for node in four.nodes if not text or node == "b"}
        with pytest.raises(NotServing, match="not accepted"):
            await a.submit(wish(key=text))
        assert second != "b"
        four.stalled.clear()
        await asyncio.sleep(0.1)
        assert not four.routes.seen
        assert not any(node.book.held for node in four.nodes.values())
        assert not any(node._sending for node in four.nodes.values())


@pytest.mark.parametrize("again_at", ["a", "d"])
async def test_who_comes_again_does_not_meet_a_copy_that_is_about_to_go(
    four: Net, again_at: str
) -> None:
    """A keeper has the job, the first has it not; the keeper hears late that it was withdrawn."""
    a = four.nodes[NodeId("a")]
    a.follow_members()
    key = next(
        str(n) for n in range(1000) if a.book.keepers(id_of_key("", str(n)))[:2] == ["b", "c"]
    )
    job_id = id_of_key("", key)
    late = (CancelJob, NodeId("c"))
    four.stalled |= {(KeepJob, NodeId("b")), late}
    asked = asyncio.ensure_future(a.submit(wish(key=key)))
    await until(lambda: job_id in four.nodes[NodeId("c")].book.held)
    if again_at == "a":  # by a caller who has not waited for the answer
        asked.cancel()
    else:  # by one who goes to another gateway after the answer
        await until(lambda: not a.book.held)
    four.stalled.discard((KeepJob, NodeId("b")))
    asyncio.get_running_loop().call_later(0.1, four.stalled.discard, late)
    (told,) = await asyncio.gather(asked, return_exceptions=True)
    assert isinstance(told, NotServing | asyncio.CancelledError)
    await four.nodes[NodeId(again_at)].submit(wish(key=key))
    await asyncio.sleep(0.15)
    assert (await ended_at(four.nodes[NodeId("b")], job_id)).status is JobStatus.SUCCEEDED
    assert len(four.routes.seen) == 1


async def test_a_caller_who_leaves_before_acceptance_leaves_nothing(four: Net) -> None:
    a = four.nodes[NodeId("a")]
    four.deaf.update(four.nodes.keys() - {a.me})
    asked = asyncio.ensure_future(a.submit(wish()))
    await until(lambda: a.book.held)
    (job_id,) = a.book.held
    with pytest.raises(NotFound):  # nobody else is told of it as if it were a job
        await a.answers.answer(NodeId("b"), AskJob(job_id), NOTHING)
    assert a.own(everybody=True, key_id="") == []
    asked.cancel()
    await asyncio.gather(asked, return_exceptions=True)
    assert not a.book.held


async def test_a_gateway_takes_back_what_it_did_not_accept_and_nobody_else_does(four: Net) -> None:
    b = four.nodes[NodeId("b")]
    four.deaf.update(four.nodes.keys() - {b.me})  # it spreads nowhere
    four.routes.answer = lambda _http: asyncio.sleep(60)
    what = job("a", created_at_ms=b.now_ms(), accepted_by="a", body_bytes=0, path="/run")
    what = msgspec.structs.replace(what, body_sha256=EMPTY)
    await b.answers.answer(NodeId("a"), KeepJob(what, NEW), NOTHING)
    await b.answers.answer(NodeId("c"), CancelJob(what.id, withdrawn=True), NOTHING)
    assert what.id in b.book.held
    await b.answers.answer(NodeId("a"), CancelJob(what.id, withdrawn=True), NOTHING)
    assert what.id not in b.book.held


async def test_a_node_that_cannot_keep_a_result_gives_the_job_to_another(
    four: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    a = four.nodes[NodeId("a")]
    key = key_whose_first_is(a, "a")

    async def full(*_: Any) -> None:
        raise NotServing("database or disk is full")

    monkeypatch.setattr(a.disk, "keep_result", full)
    made, _ = await four.nodes[NodeId("b")].submit(wish(key=key))
    end = (await ended_at(four.nodes[NodeId("c")], made.id)).outcome
    assert end is not None
    assert (end.status, end.node != "a", len(four.routes.seen)) == (JobStatus.SUCCEEDED, True, 2)
    assert a.ended == {"succeeded": 0, "failed": 0}


async def test_a_job_that_no_node_can_run_fails_and_leaves_its_place(
    four: Net, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in "bcd":
        await four.kill(name)
    a = four.nodes[NodeId("a")]

    async def broken(*_: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(a.disk, "keep_result", broken)
    made, _ = await a.submit(wish())
    end = (await ended_at(a, made.id)).outcome
    assert end is not None
    assert (end.status, end.code, a.book.running) == (JobStatus.FAILED, "not_serving", 0)
    assert "ZeroDivisionError" in caplog.text


async def test_nothing_follows_from_what_could_not_be_written_until_it_is(
    four: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "bcd":
        await four.kill(name)
    a = four.nodes[NodeId("a")]
    await a.open()
    write, full = a.disk.write, True

    async def sometimes(*args: Any) -> None:
        if full:
            raise NotServing("database or disk is full")
        await write(*args)

    monkeypatch.setattr(a.disk, "write", sometimes)
    made, _ = await a.submit(wish())
    await asyncio.sleep(0.05)
    assert not four.routes.seen
    with pytest.raises(NotServing, match="full"):
        await a.submit(wish())
    full = False
    state = await ended_at(a, made.id)
    await a.written()
    assert state.status is JobStatus.SUCCEEDED
    assert [(each.id, known.status) for each, known in await a.disk.open()] == [
        (made.id, JobStatus.SUCCEEDED)
    ]


async def test_jobs_that_wait_for_their_model_hold_up_nobody(
    four: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_runs, "JOB_RETRY_FIRST_S", 0.5)
    for name in "bcd":
        await four.kill(name)
    a = four.nodes[NodeId("a")]

    def answer(http: HttpRequest) -> HttpResponse:
        if http.body == b"waits":
            raise NoReplica("none yet")
        return HttpResponse(200, {}, b"")

    four.routes.answer = answer
    waiting = [(await a.submit(wish(b"waits")))[0] for _ in range(5 * MAX_JOBS_RUNNING)]
    made, _ = await a.submit(wish(caller=Caller(Scope.INFER, "k" * 16, "ann")))
    async with asyncio.timeout(0.4):
        state = await ended_at(a, made.id, Caller(Scope.INFER, "k" * 16))
    assert state.status is JobStatus.SUCCEEDED
    four.routes.answer = lambda _http: HttpResponse(200, {}, b"")
    for each in waiting:
        state = await ended_at(a, each.id)
        assert (state.status, state.attempt) == (JobStatus.SUCCEEDED, 1)


async def test_what_two_nodes_send_at_once_is_on_disk_as_it_is_in_memory(four: Net) -> None:
    a = four.nodes[NodeId("a")]
    await a.open()
    a.follow_members()
    now_ms = a.now_ms()
    what = job("a", created_at_ms=now_ms, body_bytes=0, body_sha256=EMPTY)
    running = JobState(3, "d", now_ms)
    four.routes.answer = lambda _http: asyncio.sleep(60)
    older_one = msgspec.structs.replace(what, created_at_ms=now_ms - 5)
    await asyncio.gather(
        a.keep_from(NodeId("b"), what, running, NOTHING, NOTHING),
        a.keep_from(NodeId("c"), older_one, NEW, NOTHING, NOTHING),
    )
    held = a.book.held[what.id]
    await a.written()
    assert await a.disk.open() == [(older_one, held.state)]
    assert held.state.attempt == 3


async def test_locks_are_forgotten_when_nobody_wants_them() -> None:
    locks = Locks()
    order: list[int] = []

    async def alone(n: int) -> None:
        async with locks.of("x"):
            order.append(n)
            await asyncio.sleep(0)
            order.append(n)

    await asyncio.gather(alone(1), alone(2), alone(3))
    assert order == [1, 1, 2, 2, 3, 3]
    assert repr(locks) == "<Locks: 0>"
