"""The batcher alone: which jobs leave together, when, and who is refused."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshnode.errors import DeadlineExceeded, NotServing, Saturated
from meshnode.limits import MAX_QUEUE_SIZE
from meshnode.models.execution import DynamicBatching, QueuePolicy, Timeout
from meshnode.models.serving.batching import Batcher, InOrder, Job, Refuse, Start

if TYPE_CHECKING:
    from meshnode.models.serving.batching import Effects


class Named(Job):
    """A job with a name for assertions."""

    def __init__(
        self,
        name: str,
        rows: int = 1,
        key: str = "k",
        deadline: float = math.inf,
        level: int = 0,
        timeout_s: float | None = None,
    ) -> None:
        super().__init__(rows, key, deadline, level, timeout_s)
        self.name = name


def batcher(
    settings: DynamicBatching | None = None, *, max_rows: int = 8, max_waiting: int = 100
) -> Batcher[Named]:
    return Batcher(settings, max_rows=max_rows, max_waiting=max_waiting)


def told(effects: Effects[Named]) -> list[str]:
    """`0: a b` for a batch on instance 0, `a: DeadlineExceeded` for a refusal."""
    return [
        f"{each.instance}: {' '.join(job.name for job in each.jobs)}"
        if isinstance(each, Start)
        else f"{each.job.name}: {type(each.error).__name__}"
        for each in effects
    ]


def test_a_job_starts_at_once_where_an_instance_is_free() -> None:
    queue = batcher()
    assert queue.free(0, 0.0) == []
    assert queue.has_free
    assert told(queue.arrive(Named("a"), 0.0)) == ["0: a"]
    assert queue.arrive(Named("b"), 0.0) == []
    assert repr(queue) == "<Batcher 1 waiting, 0 free, max_rows=8>"
    assert told(queue.free(0, 1.0)) == ["0: b"]
    assert queue.next_at == math.inf


def test_what_waits_for_an_instance_leaves_together_up_to_the_maximum() -> None:
    queue = batcher(max_rows=4)
    for name, rows in (("a", 1), ("b", 2), ("c", 2), ("d", 1), ("e", 9), ("f", 1)):
        queue.arrive(Named(name, rows), 0.0)
    batches = [told(queue.free(0, 1.0)) for _ in range(4)]
    assert batches == [["0: a b"], ["0: c d"], ["0: e"], ["0: f"]]


def test_only_equal_keys_are_joined_and_the_one_that_came_first_leads() -> None:
    queue = batcher()
    for name, key in (("a", "x"), ("b", "y"), ("c", "x"), ("d", "y")):
        queue.arrive(Named(name, key=key), 0.0)
    assert told(queue.free(0, 0.0)) == ["0: a c"]
    assert told(queue.free(1, 0.0)) == ["1: b d"]


def test_a_delay_gathers_jobs_until_it_is_over() -> None:
    queue = batcher(DynamicBatching(max_queue_delay_us=1000))
    queue.free(0, 0.0)
    assert queue.delays
    assert queue.arrive(Named("a"), 0.0) == []
    assert queue.next_at == pytest.approx(0.001)
    assert queue.arrive(Named("b"), 0.0005) == []
    assert queue.tick(0.0009) == []
    assert told(queue.tick(0.001)) == ["0: a b"]


def test_a_full_batch_does_not_wait_for_the_delay() -> None:
    queue = batcher(DynamicBatching(max_queue_delay_us=1000), max_rows=3)
    queue.free(0, 0.0)
    queue.arrive(Named("a", 2), 0.0)
    assert told(queue.arrive(Named("b", 2), 0.0)) == ["0: a"]
    queue.free(0, 0.0)
    assert told(queue.arrive(Named("c"), 0.0)) == ["0: b c"]


def test_a_preferred_size_leaves_at_once_and_what_exceeds_it_stays() -> None:
    settings = DynamicBatching(preferred_batch_sizes=(2, 4), max_queue_delay_us=1000)
    queue = batcher(settings)
    queue.free(0, 0.0)
    assert queue.arrive(Named("a"), 0.0) == []
    assert told(queue.arrive(Named("b"), 0.0)) == ["0: a b"]
    for name in "cdefghi":
        queue.arrive(Named(name), 0.0)
    assert told(queue.free(0, 0.0)) == ["0: c d e f"]
    assert told(queue.free(0, 0.0)) == ["0: g h"]
    assert told(queue.free(0, 0.0)) == []
    assert told(queue.tick(0.001)) == ["0: i"]


def test_rows_beyond_every_preferred_size_do_not_wait() -> None:
    settings = DynamicBatching(preferred_batch_sizes=(4,), max_queue_delay_us=1000)
    queue = batcher(settings)
    queue.free(0, 0.0)
    queue.arrive(Named("a", 3), 0.0)
    assert told(queue.arrive(Named("b", 3), 0.0)) == ["0: a b"]


def test_nobody_waits_for_others_past_half_of_its_own_time() -> None:
    queue = batcher(DynamicBatching(max_queue_delay_us=1_000_000))
    queue.free(0, 0.0)
    queue.arrive(Named("a"), 0.0)
    queue.arrive(Named("b", deadline=0.5), 0.1)
    assert queue.next_at == pytest.approx(0.3)
    assert told(queue.tick(0.31)) == ["0: a b"]


def test_another_key_may_leave_while_the_first_gathers() -> None:
    queue = batcher(DynamicBatching(max_queue_delay_us=1000), max_rows=2)
    queue.free(0, 0.0)
    queue.arrive(Named("a", key="x"), 0.0)
    queue.arrive(Named("b", key="y"), 0.0)
    assert told(queue.arrive(Named("c", key="y"), 0.0)) == ["0: b c"]
    queue.free(0, 0.0)
    assert told(queue.tick(0.001)) == ["0: a"]


def test_higher_levels_leave_first_and_none_of_its_own_takes_the_default() -> None:
    queue = batcher(DynamicBatching(priority_levels=3, default_priority_level=2), max_rows=1)
    for name, level in (("low", 3), ("usual", 0), ("odd", 9), ("high", 1)):
        queue.arrive(Named(name, level=level), 0.0)
    order = [told(queue.free(0, 0.0))[0] for _ in range(4)]
    assert order == ["0: high", "0: usual", "0: odd", "0: low"]


def test_a_full_queue_refuses_per_level() -> None:
    small = QueuePolicy(max_queue_size=1)
    settings = DynamicBatching(
        priority_levels=2, default_priority_level=1, queue_policies=((2, small),)
    )
    queue = batcher(settings, max_waiting=2)
    queue.arrive(Named("a", level=2), 0.0)
    with pytest.raises(Saturated, match="1 requests wait for this model"):
        queue.arrive(Named("b", level=2), 0.0)
    queue.arrive(Named("c", level=1), 0.0)
    queue.arrive(Named("d", level=1), 0.0)
    with pytest.raises(Saturated, match="1 requests wait for this model at priority 2"):
        queue.arrive(Named("b", level=2), 0.0)
    with pytest.raises(Saturated):
        queue.arrive(Named("e", level=1), 0.0)
    assert queue.waiting == 3


def test_no_queue_is_longer_than_the_limit_whatever_is_configured() -> None:
    queue = batcher(DynamicBatching(default_queue_policy=QueuePolicy(max_queue_size=10**9)))
    assert queue._queues[0].size == MAX_QUEUE_SIZE


def test_without_a_queue_a_free_instance_still_takes_a_job() -> None:
    queue = batcher(max_waiting=0)
    queue.free(0, 0.0)
    assert told(queue.arrive(Named("a"), 0.0)) == ["0: a"]
    with pytest.raises(Saturated):
        queue.arrive(Named("b"), 0.0)


def test_a_deadline_in_the_queue_refuses_and_nothing_ran() -> None:
    queue = batcher()
    queue.arrive(Named("a", deadline=5.0), 0.0)
    queue.arrive(Named("b", deadline=2.0), 0.0)
    assert queue.next_at == 2.0
    assert told(queue.tick(2.0)) == ["b: DeadlineExceeded"]
    assert queue.next_at == 5.0
    assert told(queue.free(0, 6.0)) == ["a: DeadlineExceeded"]
    assert queue.has_free


@pytest.mark.parametrize("timeout", Timeout)
def test_the_queue_s_timeout_rejects_or_delays(timeout: Timeout) -> None:
    policy = QueuePolicy(timeout=timeout, default_timeout_us=1_000_000)
    queue = batcher(DynamicBatching(default_queue_policy=policy), max_rows=1)
    queue.arrive(Named("a", deadline=9.0), 0.0)
    queue.arrive(Named("b", deadline=9.0), 0.5)
    assert queue.next_at == 1.0
    if timeout is Timeout.REJECT:
        [refusal] = queue.tick(1.0)
        assert isinstance(refusal, Refuse)
        assert "waited 1000 ms for this model" in str(refusal.error)
        assert told(queue.free(0, 1.0)) == ["0: b"]
    else:
        assert queue.tick(1.0) == []
        assert [told(queue.free(0, 1.0)) for _ in range(2)] == [["0: b"], ["0: a"]]


def test_a_request_s_own_timeout_counts_where_it_may_and_is_shorter() -> None:
    policy = QueuePolicy(default_timeout_us=1_000_000, allow_timeout_override=True)
    queue = batcher(DynamicBatching(default_queue_policy=policy))
    queue.arrive(Named("a", timeout_s=0.2), 0.0)
    queue.arrive(Named("b", timeout_s=7.0), 0.0)
    assert told(queue.tick(0.2)) == ["a: Saturated"]
    assert told(queue.tick(1.0)) == ["b: Saturated"]
    strict = batcher(DynamicBatching(default_queue_policy=QueuePolicy(default_timeout_us=500_000)))
    strict.arrive(Named("c", timeout_s=0.1), 0.0)
    assert strict.next_at == 0.5


def test_a_delayed_job_still_has_its_deadline() -> None:
    policy = QueuePolicy(timeout=Timeout.DELAY, default_timeout_us=1_000_000)
    queue = batcher(DynamicBatching(default_queue_policy=policy))
    queue.arrive(Named("a", deadline=3.0), 0.0)
    assert queue.tick(1.0) == []
    assert queue.next_at == 3.0
    assert told(queue.tick(3.0)) == ["a: DeadlineExceeded"]


def test_who_is_cancelled_leaves_its_place() -> None:
    queue = batcher(max_waiting=2)
    first, second = Named("a"), Named("b")
    queue.arrive(first, 0.0)
    queue.arrive(second, 0.0)
    assert queue.cancel(second)
    assert not queue.cancel(second)
    queue.arrive(Named("c"), 0.0)
    assert queue.cancel(first)
    assert told(queue.free(0, 0.0)) == ["0: c"]
    assert not queue.cancel(first)


def test_a_withdrawn_instance_gets_nothing_until_it_is_free_again() -> None:
    queue = batcher()
    queue.free(0, 0.0)
    queue.free(0, 0.0)
    queue.free(1, 0.0)
    assert queue.withdraw(0) == []
    assert told(queue.arrive(Named("a"), 0.0)) == ["1: a"]
    queue.arrive(Named("b"), 0.0)
    assert told(queue.refuse_all(NotServing("gone"))) == ["b: NotServing"]
    assert queue.waiting == 0


def test_fewer_rows_than_are_preferred_are_joined_under_pressure() -> None:
    queue = batcher(DynamicBatching(preferred_batch_sizes=(8,), max_queue_delay_us=1000))
    queue.free(0, 0.0)
    for name in "abc":
        queue.arrive(Named(name), 0.0)
    queue.max_rows = 2
    assert told(queue.tick(0.0)) == ["0: a b"]


def test_answers_are_held_back_until_their_turn() -> None:
    order: InOrder[Named, str] = InOrder()
    jobs = {name: Named(name) for name in "abc"}
    for job in jobs.values():
        order.expect(job)
    assert order.answer(jobs["b"], "B") == []
    assert repr(order) == "<InOrder 3 expected, 1 held>"
    assert order.answer(jobs["a"], "A") == [(jobs["a"], "A"), (jobs["b"], "B")]
    assert order.answer(jobs["c"], "C") == [(jobs["c"], "C")]


POLICIES = st.builds(
    QueuePolicy,
    timeout=st.sampled_from(Timeout),
    default_timeout_us=st.sampled_from([0, 300_000, 2_000_000]),
    allow_timeout_override=st.booleans(),
    max_queue_size=st.sampled_from([0, 3]),
)
SETTINGS = st.none() | st.builds(
    DynamicBatching,
    preferred_batch_sizes=st.sampled_from([(), (4,), (2, 8)]),
    max_queue_delay_us=st.sampled_from([0, 400_000]),
    priority_levels=st.just(2),
    default_priority_level=st.just(1),
    default_queue_policy=POLICIES,
)
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["arrive", "arrive", "arrive", "free", "cancel", "tick"]),
        st.integers(1, 5),
        st.sampled_from(["x", "y"]),
        st.integers(0, 3),
    ),
    max_size=60,
)


def check_batch(jobs: tuple[Named, ...], now: float) -> None:
    assert len({job.key for job in jobs}) == 1
    assert len(jobs) == 1 or sum(job.rows for job in jobs) <= 6
    assert min(job.deadline for job in jobs) > now


class Play:
    """A batcher, and what must be true of it whatever happens."""

    def __init__(self, settings: DynamicBatching | None) -> None:
        self.queue = batcher(settings, max_rows=6, max_waiting=8)
        self.waiting: dict[str, Named] = {}
        self.busy: list[int] = []
        self.now = 0.0
        self.carry_out(self.queue.free(0, 0.0) + self.queue.free(1, 0.0))

    def carry_out(self, effects: Effects[Named]) -> None:
        for effect in effects:
            if isinstance(effect, Refuse):
                assert self.waiting.pop(effect.job.name) is effect.job
                if isinstance(effect.error, DeadlineExceeded):
                    assert effect.job.deadline <= self.now
                continue
            self.busy.append(effect.instance)
            check_batch(effect.jobs, self.now)
            for job in effect.jobs:
                assert self.waiting.pop(job.name) is job
        assert self.queue.waiting == len(self.waiting)

    def arrive(self, job: Named) -> None:
        self.waiting[job.name] = job
        try:
            self.carry_out(self.queue.arrive(job, self.now))
        except Saturated:
            del self.waiting[job.name]

    def step(self, number: int, what: str, rows: int, key: str, level: int) -> None:
        self.now += 0.1 * rows
        if what == "arrive":
            deadline = self.now + level + 0.5
            self.arrive(Named(str(number), rows, key, deadline, level, 0.25 * rows))
        elif what == "free" and self.busy:
            self.carry_out(self.queue.free(self.busy.pop(0), self.now))
        elif what == "cancel" and self.waiting:
            assert self.queue.cancel(self.waiting.pop(min(self.waiting)))
        else:
            self.carry_out(self.queue.tick(self.now))

    def end(self) -> None:
        while self.waiting:
            self.now = max(self.now + 0.01, min(self.queue.next_at, self.now + 100))
            self.carry_out(self.queue.tick(self.now))
            if self.busy:
                self.carry_out(self.queue.free(self.busy.pop(0), self.now))
        assert self.queue.next_at == math.inf


@settings(deadline=None, derandomize=True, max_examples=150)
@given(SETTINGS, STEPS)
def test_each_job_leaves_exactly_once_whatever_happens(
    settings: DynamicBatching | None, steps: list[tuple[str, int, str, int]]
) -> None:
    """Batches are of one key and no larger than allowed; deadlines hold; nobody is lost or starts twice."""
    play = Play(settings)
    for number, step in enumerate(steps):
        play.step(number, *step)
    play.end()
