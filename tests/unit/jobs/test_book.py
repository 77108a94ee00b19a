"""Who keeps a job, who runs it, and what happens when nodes go, come and lose each other: in virtual time."""

from __future__ import annotations

import itertools

import pytest

from meshnode.errors import IdempotencyKeyReused, NotFound, ProtocolError, Saturated
from meshnode.jobs.book import JobBook
from meshnode.jobs.effects import Drop, Send, Start, Stop, Tell
from meshnode.jobs.job import NEW, JobStatus, Outcome, id_of_key
from meshnode.jobs.ranking import Ranking
from meshnode.limits import JOB_RESULT_S, MAX_JOB_AGE_S, MAX_JOBS_PER_CALLER
from meshnode.types import NodeId
from tests.unit.jobs.mesh import HOOK, START_MS, JobMesh, job

FIVE = ("ann", "ben", "cat", "dan", "eve")


def ranked(*names: str, count: int = 5, job_id: str = "a" * 26) -> list[NodeId]:
    return Ranking([NodeId(name) for name in names]).first(job_id, count)


def one_whose_first_is(first: str, *names: str) -> str:
    """Return a job's id for which a node ranks first."""
    for n in itertools.count():
        job_id = id_of_key("", str(n))
        if ranked(*names, job_id=job_id)[0] == first:
            return job_id
    raise AssertionError


def test_two_nodes_keep_a_job_and_the_first_of_them_runs_it_once() -> None:
    mesh = JobMesh(*FIVE)
    what = job("a")
    first, second, *others = ranked(*FIVE)
    mesh.accept(others[-1], what)
    mesh.run(500)
    assert mesh.holders(what.id) == {first, second}
    mesh.run(10_000)
    assert mesh.ran == [(what.id, first, 1)]
    assert mesh.status(what.id) is JobStatus.SUCCEEDED
    assert mesh.holders(what.id) == {first, second}


def test_a_node_that_is_emptied_finishes_what_it_runs_and_gives_the_rest_away() -> None:
    mesh = JobMesh(*FIVE, run_ms=5000, max_running=1)
    ids = [one_whose_first_is("ann", *FIVE), *("b" * 26, "c" * 26)]
    for each in ids:
        mesh.accept("ann", job(each))
    mesh.run(1000)
    mesh.leaving = {NodeId("ann")}
    mesh.see()
    mesh.run(3000)
    assert mesh.peers[NodeId("ann")].runs  # it goes on
    mesh.run(20_000)
    assert {mesh.status(each) for each in ids} == {JobStatus.SUCCEEDED}
    assert len(mesh.ran) == 3  # none was run twice
    assert mesh.peers[NodeId("ann")].book.held == {}
    mesh.accept("ann", job("d"))
    mesh.run(20_000)
    assert "ann" not in {node for what, node, _ in mesh.ran if what == "d" * 26}


def test_a_run_that_takes_too_long_on_an_emptied_node_begins_anew_elsewhere() -> None:
    mesh = JobMesh(*FIVE, run_ms=3_600_000)
    what = job(one_whose_first_is("ann", *FIVE))
    mesh.accept("ben", what)
    mesh.run(1000)
    assert mesh.peers[NodeId("ann")].runs
    mesh.hand_back("ann")  # it is not to be emptied: nothing happens
    assert mesh.peers[NodeId("ann")].runs
    mesh.leaving = {NodeId("ann")}
    mesh.see()
    mesh.hand_back("ann")
    mesh.run(5000)
    ann = mesh.peers[NodeId("ann")]
    assert (ann.runs, ann.book.held) == ({}, {})
    assert [node for node, each in mesh.peers.items() if each.runs] == [
        ranked("ben", "cat", "dan", "eve", job_id=what.id)[0]
    ]


def test_a_node_by_itself_keeps_and_runs_its_jobs() -> None:
    mesh = JobMesh("ann")
    mesh.accept("ann", job("a"))
    mesh.run(2000)
    assert mesh.status("a" * 26) is JobStatus.SUCCEEDED


@pytest.mark.parametrize("acceptor", FIVE)
def test_a_job_survives_who_accepted_it_and_then_who_runs_it(acceptor: str) -> None:
    """Told in the issue: the accepting node dies, and after that the one that runs the job."""
    mesh = JobMesh(*FIVE, run_ms=20_000)
    what = job("a")
    mesh.accept(acceptor, what)
    mesh.run(100)
    mesh.kill(acceptor)
    mesh.run(10_000)
    (runner,) = {node for _, node, _ in mesh.ran if mesh.peers[node].up}
    assert len(mesh.holders(what.id)) == 2
    mesh.kill(runner)
    mesh.run(40_000)
    assert mesh.status(what.id) is JobStatus.SUCCEEDED
    assert len(mesh.holders(what.id)) == 2


def test_the_second_copy_is_back_as_soon_as_a_link_breaks() -> None:
    mesh = JobMesh(*FIVE, run_ms=60_000)
    what = job("a")
    first, second, third, *_ = ranked(*FIVE)
    mesh.accept(first, what)
    mesh.run(500)
    mesh.peers[second].up = False
    peer = mesh.peers[first]
    mesh._do(peer, peer.book.lost(second, mesh.now_ms))
    mesh.run(100)
    assert mesh.holders(what.id) == {first, third}


def test_a_node_that_joins_and_ranks_first_gets_a_copy_but_no_second_run() -> None:
    names = FIVE[:4]
    job_id = one_whose_first_is("eve", *FIVE)
    mesh = JobMesh(*names, run_ms=5000)
    mesh.accept("ann", job(job_id))
    mesh.run(1000)
    mesh.join("eve")
    mesh.run(1000)
    assert "eve" in mesh.holders(job_id)
    mesh.run(10_000)
    assert len(mesh.ran) == 1
    assert mesh.status(job_id) is JobStatus.SUCCEEDED
    assert mesh.holders(job_id) == set(ranked(*FIVE, job_id=job_id)[:2])


def test_after_a_partition_one_result_is_visible_and_it_is_the_earlier_attempt() -> None:
    mesh = JobMesh(*FIVE, run_ms=10_000)
    what = job("a", webhook=HOOK)
    first, second, third, fourth, fifth = ranked(*FIVE)
    mesh.accept(first, what)
    mesh.run(1000)
    mesh.split((first, third), (second, fourth, fifth))
    mesh.run(60_000)
    assert [(node, attempt) for _, node, attempt in mesh.ran] == [(first, 1), (second, 2)]
    results = {state.outcome.node for state in mesh.states(what.id) if state.outcome}
    assert results == {first, second}  # each side shows its own
    mesh.heal()
    mesh.run(5000)
    (state,) = mesh.states(what.id)
    assert state.outcome is not None
    assert (state.outcome.node, state.outcome.attempt) == (first, 1)
    assert mesh.holders(what.id) == {first, second}


def test_a_run_that_does_not_count_any_more_is_stopped() -> None:
    mesh = JobMesh(*FIVE, run_ms=3_600_000)
    what = job("a")
    first, second, third, fourth, fifth = ranked(*FIVE)
    mesh.accept(first, what)
    mesh.run(1000)
    mesh.split((first, third), (second, fourth, fifth))
    mesh.run(10_000)
    assert mesh.peers[first].runs
    assert mesh.peers[second].runs
    mesh.heal()
    mesh.run(5000)
    assert [name for name, peer in mesh.peers.items() if peer.runs] == [second]
    assert mesh.status(what.id) is JobStatus.RUNNING


def test_a_node_that_starts_anew_runs_again_what_it_ran() -> None:
    mesh = JobMesh(*FIVE, run_ms=5000)
    what = job("a")
    first = ranked(*FIVE)[0]
    mesh.accept(first, what)
    mesh.run(1000)
    peer = mesh.peers[first]
    peer.up = False
    peer.runs.clear()
    mesh.run(500)  # before anybody has seen that it was gone
    mesh.start(first)
    mesh.run(20_000)
    assert mesh.ran == [(what.id, first, 1), (what.id, first, 2)]
    assert mesh.status(what.id) is JobStatus.SUCCEEDED


def test_a_cancelled_job_stops_wherever_it_runs_and_stays_cancelled() -> None:
    mesh = JobMesh(*FIVE, run_ms=60_000)
    what = job("a")
    first, second, *_ = ranked(*FIVE)
    mesh.accept(first, what)
    mesh.run(1000)
    mesh.cancel(second, what.id)
    mesh.run(1000)
    assert not mesh.peers[first].runs
    mesh.run(120_000)
    assert mesh.status(what.id) is JobStatus.CANCELLED
    mesh.cancel(first, what.id)
    assert mesh.status(what.id) is JobStatus.CANCELLED


def test_a_job_that_has_ended_is_not_cancelled() -> None:
    mesh = JobMesh("ann", run_ms=10)
    mesh.accept("ann", job("a"))
    mesh.run(1000)
    mesh.cancel("ann", "a" * 26)
    assert mesh.status("a" * 26) is JobStatus.SUCCEEDED


def test_a_webhook_is_told_once_and_by_another_if_its_teller_dies() -> None:
    mesh = JobMesh(*FIVE, run_ms=1000)
    what = job("a", webhook=HOOK)
    first, *_ = ranked(*FIVE)
    mesh.accept(first, what)
    mesh.run(900)
    assert not mesh.told
    mesh.run(130)  # it has ended and the other copy knows; then its teller dies
    assert mesh.told == [(what.id, first, JobStatus.SUCCEEDED)]
    mesh.run(10_000)
    assert len(mesh.told) == 1
    mesh.kill(first)
    mesh.run(10_000)
    assert len(mesh.told) == 1


def test_a_job_expires_everywhere() -> None:
    mesh = JobMesh(*FIVE)
    mesh.accept("ann", job("a"))
    mesh.run(2000)
    mesh.run(1000 * JOB_RESULT_S - 3000)
    assert mesh.holders("a" * 26)
    mesh.run(5000)
    assert not mesh.holders("a" * 26)
    assert not any(peer.disk for peer in mesh.peers.values())


def test_a_job_that_never_ends_fails_after_a_day() -> None:
    mesh = JobMesh("ann", "ben", run_ms=10**12)
    mesh.accept("ann", job("a"))
    mesh.run(1000 * MAX_JOB_AGE_S + 2000)
    (state,) = mesh.states("a" * 26)
    assert state.outcome is not None
    assert (state.status, state.outcome.code) == (JobStatus.FAILED, "deadline")
    assert not any(peer.runs for peer in mesh.peers.values())


def test_no_more_run_at_once_than_allowed_and_all_run_in_the_end() -> None:
    mesh = JobMesh("ann", run_ms=1000, max_running=2)
    for letter in "abcde":
        mesh.accept("ann", job(letter))
    mesh.run(500)
    assert len(mesh.peers[NodeId("ann")].runs) == 2
    mesh.run(5000)
    assert {mesh.status(letter * 26) for letter in "abcde"} == {JobStatus.SUCCEEDED}
    assert [what[0] for what, _, _ in mesh.ran] == list("abcde")


def test_what_there_is_no_room_for_is_refused() -> None:
    book = JobBook(NodeId("ann"), max_jobs=2, max_bytes=25)
    for letter in "ab":
        book.check(job(letter), START_MS)
        book.keep(job(letter), NEW, START_MS)
    with pytest.raises(Saturated, match="keeps 2 jobs"):
        book.check(job("c"), START_MS)
    book.check(job("a"), START_MS)  # it is here already
    with pytest.raises(IdempotencyKeyReused, match="another call"):
        book.check(job("a", path="/other"), START_MS)
    with pytest.raises(Saturated, match="bytes"):
        JobBook(NodeId("ann"), max_bytes=5).check(job("a"), START_MS)
    with pytest.raises(ProtocolError, match="future"):
        book.check(job("d", created_at_ms=START_MS + 10**9), START_MS)
    with pytest.raises(NotFound, match="expired"):
        book.check(job("d", created_at_ms=1), START_MS)


def test_one_caller_leaves_room_to_others() -> None:
    book = JobBook(NodeId("ann"), max_bytes=10**9)
    for n in range(MAX_JOBS_PER_CALLER):
        book.keep(job(id_of_key("k", str(n)), key_id="k"), NEW, START_MS)
    with pytest.raises(Saturated, match="this caller"):
        book.check(job("a", key_id="k"), START_MS)
    book.check(job("a", key_id="other"), START_MS)


def test_a_node_that_takes_no_copy_is_passed_over_for_a_while() -> None:
    book = JobBook(NodeId("ann"))
    book.members({NodeId("ben"), NodeId("cat")}, START_MS)
    effects = book.keep(job("a"), NEW, START_MS)
    sent = {effect.to for effect in effects if isinstance(effect, Send)}
    for node in sorted(sent):
        more = book.refused(node, "a" * 26, START_MS)
        sent |= {effect.to for effect in more if isinstance(effect, Send)}
        effects += more
    assert sent == {"ben", "cat"}
    assert any(
        isinstance(effect, Start) for effect in effects
    )  # nobody else can: it runs it itself
    again = book.tick(START_MS + 6000)
    assert {effect.to for effect in again if isinstance(effect, Send)} <= {"ben", "cat"}
    assert again


def test_progress_grows_and_is_heard_of_one_attempt_only() -> None:
    book = JobBook(NodeId("ann"))
    book.keep(job("a"), NEW, START_MS)
    assert book.progressed("a" * 26, 1, 0.5, START_MS)
    assert not book.progressed("a" * 26, 1, 0.25, START_MS)
    assert not book.progressed("a" * 26, 7, 0.75, START_MS)
    assert not book.progressed("b" * 26, 1, 0.75, START_MS)
    assert book.held["a" * 26].state.progress == 0.5


def test_what_is_said_of_unknown_jobs_changes_nothing() -> None:
    book, node = JobBook(NodeId("ann")), NodeId("ben")
    end = Outcome(JobStatus.SUCCEEDED, 1, "ben", START_MS)
    assert not book.acked(node, "a" * 26, NEW, START_MS)
    assert not book.refused(node, "a" * 26, START_MS)
    assert not book.finished("a" * 26, 1, end, START_MS)
    assert not book.cancel("a" * 26, START_MS)
    assert not book.learn("a" * 26, NEW, START_MS)
    assert not book.told("a" * 26, end, delivered=True, now_ms=START_MS)


def test_callers_take_turns_for_the_places_to_run() -> None:
    mesh = JobMesh("ann", run_ms=1000, max_running=2)
    for letter in "abcdefgh":
        mesh.accept("ann", job(letter, key_id="many"))
    mesh.accept("ann", job("i", key_id="few"))
    mesh.accept("ann", job("j", key_id="other"))
    mesh.run(10_000)
    order = "".join(job_id[0] for job_id, _, _ in mesh.ran)
    assert order[:2] == "ab"
    assert set(order[2:5]) == {"c", "i", "j"}
    assert sorted(order) == list("abcdefghij")


def test_a_job_that_waits_gives_its_place_and_goes_on_with_the_same_attempt() -> None:
    book = JobBook(NodeId("ann"), max_running=1)
    for letter in "ab":
        book.keep(job(letter), NEW, START_MS)
    effects = book.paused("a" * 26, 1, START_MS + 500, START_MS)
    assert [each.job.id[0] for each in effects if isinstance(each, Start)] == ["b"]
    assert book.running == 1
    end = Outcome(JobStatus.SUCCEEDED, 1, "ann", START_MS + 100)
    effects = book.finished("b" * 26, 1, end, START_MS + 100)
    assert not [each for each in effects if isinstance(each, Start)]
    starts = [each for each in book.tick(START_MS + 600) if isinstance(each, Start)]
    assert [(each.job.id[0], each.attempt) for each in starts] == [("a", 1)]
    assert not book.paused("a" * 26, 7, START_MS, START_MS + 600)
    assert book.running == 1
    assert any(isinstance(each, Stop) for each in book.cancel("a" * 26, START_MS + 700))
    assert book.running == 0


def test_a_proposed_job_is_sent_and_runs_when_it_is_confirmed() -> None:
    book = JobBook(NodeId("ann"))
    book.members({NodeId("ben")}, START_MS)
    book.refused(NodeId("ben"), "x" * 26, START_MS)  # so that ann is to run it
    effects = book.keep(job("a"), NEW, START_MS, proposed=True)
    assert {type(each) for each in effects} == {Send}  # it may have come back, and a caller waits
    assert not book.may_accept("a" * 26, has_key=False)
    effects = book.refused(NodeId("ben"), "a" * 26, START_MS)
    assert not effects
    assert {type(each) for each in book.tick(START_MS + 6000)} == {Send}
    book.acked(NodeId("ben"), "a" * 26, NEW, START_MS + 6100)
    assert book.may_accept("a" * 26, has_key=True)
    effects = book.confirm("a" * 26, START_MS + 6100)
    runs_here = book.keepers("a" * 26)[0] == "ann"
    assert any(isinstance(each, Start) for each in effects) == runs_here
    assert not book.withdraw("a" * 26)


def test_what_is_withdrawn_leaves_nothing() -> None:
    book = JobBook(NodeId("ann"))
    book.keep(job("a"), NEW, START_MS, proposed=True)
    assert [type(each) for each in book.withdraw("a" * 26)] == [Drop]
    assert (book.held, book.size_bytes) == ({}, 0)


def test_with_a_key_the_node_that_ranks_first_must_have_the_call() -> None:
    book = JobBook(NodeId("ann"))
    book.members({NodeId("ben"), NodeId("cat")}, START_MS)
    job_id = one_whose_first_is("ben", "ann", "ben", "cat")
    book.keep(job(job_id), NEW, START_MS, proposed=True)
    book.acked(NodeId("cat"), job_id, NEW, START_MS)
    assert book.may_accept(job_id, has_key=False)
    assert not book.may_accept(job_id, has_key=True)
    assert not book.conflicted(NodeId("cat"), job_id)  # ben says which call counts
    assert [type(each) for each in book.conflicted(NodeId("ben"), job_id)] == [Drop]


def test_a_node_that_cannot_run_a_job_leaves_it_to_the_next() -> None:
    mesh = JobMesh("ann", "ben", "cat", run_ms=10**9)
    what = job("a")
    first, second, _ = ranked("ann", "ben", "cat")
    mesh.accept(first, what)
    mesh.run(1000)
    for node, attempt in ((first, 1), (second, 3)):
        peer = mesh.peers[node]
        peer.runs.clear()
        mesh._do(peer, peer.book.finished(what.id, attempt, None, mesh.now_ms))
        mesh.run(2000)
    assert [node for _, node, _ in mesh.ran] == list(ranked("ann", "ben", "cat"))
    (state,) = mesh.states(what.id)
    assert state.passed == (first, second)


def test_a_job_that_no_node_can_run_fails_and_its_webhook_is_told() -> None:
    book = JobBook(NodeId("ann"))
    book.keep(job("a", webhook=HOOK), NEW, START_MS)
    effects = book.finished("a" * 26, 1, None, START_MS)
    assert any(isinstance(each, Tell) for each in effects)
    end = book.held["a" * 26].state.outcome
    assert end is not None
    assert (end.status, end.code, book.running) == (JobStatus.FAILED, "not_serving", 0)


def test_a_full_mesh_of_failures_ends_with_every_job_done_and_all_copies_alike() -> None:
    """Nodes die and come back, sides part and meet; whatever the order, each job ends, the same everywhere."""
    mesh = JobMesh(*FIVE, run_ms=4000)
    jobs = [id_of_key("", str(n)) for n in range(40)]
    for n, job_id in enumerate(jobs):
        mesh.accept(FIVE[n % 5], job(job_id, webhook=HOOK))
        mesh.run(150)
    mesh.kill("ann")
    mesh.run(8000)
    mesh.start("ann")
    mesh.split(("ann", "ben"), ("cat", "dan", "eve"))
    mesh.run(15_000)
    mesh.heal()
    mesh.kill("eve")
    mesh.run(10_000)
    mesh.start("eve")
    mesh.run(60_000)
    for job_id in jobs:
        (state,) = mesh.states(job_id)
        assert state.status is JobStatus.SUCCEEDED
        assert mesh.holders(job_id) == set(ranked(*FIVE, job_id=job_id)[:2])
