"""An overloaded gateway, in virtual time: replicas with slots and one queue behind it."""

from __future__ import annotations

from collections import Counter, deque
from heapq import heappop, heappush
from itertools import count
from random import Random
from typing import TYPE_CHECKING, NamedTuple

import pytest

from meshnode.errors import (
    Cancelled,
    DeadlineExceeded,
    InferenceFailed,
    InvalidRequest,
    LinkLost,
    MeshError,
    Saturated,
)
from meshnode.gateway.admission import Admission
from meshnode.types import NO_HINTS, Priority, RoutingHints

if TYPE_CHECKING:
    from meshnode.gateway.admission import Admitted

SERVICE_S = 0.1
SLOTS = 20
CAPACITY = SLOTS / SERVICE_S


class Stream(NamedTuple):
    """A caller that sends so many requests per second."""

    hints: RoutingHints
    per_s: float
    timeout_s: float = 2.0


class Plant:
    """Replicas of one model that answer first come first served, and callers who wait for so long."""

    def __init__(self, streams: list[Stream], seed: int = 1) -> None:
        self.admission = Admission()
        self.streams = streams
        self.sent: Counter[RoutingHints] = Counter()
        self.good: Counter[RoutingHints] = Counter()
        self.refused: Counter[RoutingHints] = Counter()
        self.waits: list[float] = []
        self._rng = Random(seed)
        self._queue: deque[tuple[Stream, float, Admitted]] = deque()
        self._running = 0
        self._events: list[tuple[float, int, tuple[object, ...]]] = []
        self._numbers = count()

    def _at(self, when: float, *what: object) -> None:
        heappush(self._events, (when, next(self._numbers), what))

    def play(self, start: float, end: float) -> None:
        """Let requests come from `start` to `end`, and go on until then."""
        for counted in (self.sent, self.good, self.refused):
            counted.clear()
        self.waits.clear()
        for stream in self.streams:
            self._at(start + self._rng.expovariate(stream.per_s), "come", stream)
        while self._events and self._events[0][0] < end:
            now, _, what = heappop(self._events)
            match what:
                case ("come", Stream() as stream):
                    self._come(stream, now)
                    self._at(now + self._rng.expovariate(stream.per_s), "come", stream)
                case ("done", Stream() as stream, float() as since, admitted):
                    self._done(stream, since, admitted, now)  # type: ignore[arg-type]
        self._events = [each for each in self._events if each[2][0] == "done"]

    def _come(self, stream: Stream, now: float) -> None:
        self.sent[stream.hints] += 1
        try:
            admitted = self.admission.enter("m", stream.hints, stream.timeout_s, now)
        except Saturated:
            self.refused[stream.hints] += 1
            return
        self._queue.append((stream, now, admitted))
        self._start(now)

    def _start(self, now: float) -> None:
        while self._queue and self._running < SLOTS:
            stream, since, admitted = self._queue.popleft()
            if now - since >= stream.timeout_s:
                admitted.end(now, DeadlineExceeded("late"), SERVICE_S)
                continue
            self._running += 1
            self._at(now + self._rng.expovariate(1 / SERVICE_S), "done", stream, since, admitted)

    def _done(self, stream: Stream, since: float, admitted: Admitted, now: float) -> None:
        self._running -= 1
        if now - since < stream.timeout_s:
            self.good[stream.hints] += 1
            self.waits.append(now - since)
            admitted.end(now, None, SERVICE_S)
        else:
            admitted.end(now, DeadlineExceeded("late"), SERVICE_S)
        self._start(now)


def of(caller: str, priority: Priority = Priority.NORMAL, share: int = 1) -> RoutingHints:
    return RoutingHints(caller=caller, priority=priority, share=share)


def test_below_capacity_nobody_is_refused() -> None:
    plant = Plant([Stream(NO_HINTS, 0.9 * CAPACITY)])
    plant.play(0.0, 60.0)
    assert not plant.refused
    assert plant.admission.limit_of("m") == float("inf")


@pytest.mark.parametrize("overload", [1.2, 2.0, 5.0])
def test_above_it_as_much_is_answered_in_time_as_can_be_and_long_before_the_end_of_patience(
    overload: float,
) -> None:
    plant = Plant([Stream(NO_HINTS, overload * CAPACITY)])
    plant.play(0.0, 5.0)
    plant.play(5.0, 25.0)
    assert plant.good[NO_HINTS] / 20 >= 0.95 * CAPACITY
    assert sorted(plant.waits)[len(plant.waits) // 2] < 1.3
    assert repr(plant.admission) == "<Admission of 1 models, 1 limited>"


def test_without_admission_the_same_plant_answers_hardly_anybody_in_time() -> None:
    """What this is for: else the tests above would show nothing."""
    plant = Plant([Stream(NO_HINTS, 2 * CAPACITY)])
    plant.admission.enter = lambda *_: plant_admitted(plant)  # type: ignore[method-assign]
    plant.play(0.0, 5.0)
    plant.play(5.0, 25.0)
    assert plant.good[NO_HINTS] / 20 < 0.6 * CAPACITY


def plant_admitted(plant: Plant) -> Admitted:
    """Let everybody in."""
    return Admission().enter("m", NO_HINTS, 2.0, 0.0)


def test_who_is_refused_is_told_when_the_backlog_is_worked_off() -> None:
    plant = Plant([Stream(NO_HINTS, 2 * CAPACITY)])
    plant.play(0.0, 20.0)
    while plant.admission.in_flight("m") <= plant.admission.limit_of("m"):
        plant.play(20.0, 20.01)
        plant.admission.enter("m", of("another"), 2.0, 20.01)
    with pytest.raises(Saturated, match="more requests than its replicas answer in time") as error:
        plant.admission.enter("m", NO_HINTS, 2.0, 20.02)
    assert 0.3 < error.value.retry_after_s < 3.0


def test_seconds_after_the_overload_all_are_let_in_again() -> None:
    plant = Plant([Stream(NO_HINTS, 3 * CAPACITY)])
    plant.play(0.0, 10.0)
    plant.streams = [Stream(NO_HINTS, 0.5 * CAPACITY)]
    plant.play(10.0, 12.0)
    plant.play(12.0, 30.0)
    assert plant.refused[NO_HINTS] <= 0.001 * plant.sent[NO_HINTS]
    assert plant.admission.limit_of("m") == float("inf")


def test_a_greedy_key_does_not_starve_another() -> None:
    greedy, modest = of("greedy"), of("modest")
    plant = Plant([Stream(greedy, 5 * CAPACITY), Stream(modest, 0.3 * CAPACITY)])
    plant.play(0.0, 5.0)
    plant.play(5.0, 25.0)
    assert plant.good[modest] >= 0.97 * plant.sent[modest]
    assert plant.good[greedy] / 20 >= 0.6 * CAPACITY  # and has all that the other leaves


def test_two_greedy_keys_share_by_their_shares() -> None:
    one, three = of("one"), of("three", share=3)
    plant = Plant([Stream(one, 3 * CAPACITY), Stream(three, 3 * CAPACITY)])
    plant.play(0.0, 5.0)
    plant.play(5.0, 35.0)
    assert plant.good[three] / plant.good[one] == pytest.approx(3, rel=0.25)
    assert plant.good.total() / 30 >= 0.95 * CAPACITY


def test_the_lowest_priority_is_shed_first_and_the_highest_last() -> None:
    low, normal, high = (of("all", each) for each in Priority)
    plant = Plant([Stream(each, 0.6 * CAPACITY) for each in (low, normal, high)])
    plant.play(0.0, 8.0)
    plant.play(8.0, 38.0)
    assert plant.good[high] >= 0.98 * plant.sent[high]
    assert plant.good[normal] > 2 * plant.good[low]
    assert plant.good.total() / 30 >= 0.95 * CAPACITY


def test_callers_in_a_hurry_do_not_bring_a_limit_on_the_others() -> None:
    hurried = Stream(of("hurried"), 0.4 * CAPACITY, timeout_s=0.02)
    plant = Plant([hurried, Stream(NO_HINTS, 0.4 * CAPACITY)])
    plant.play(0.0, 30.0)
    assert not plant.refused


# What is counted.


@pytest.mark.parametrize(
    "error",
    [None, Saturated("full"), DeadlineExceeded("late"), Cancelled("gone"), LinkLost("lost"),
     InferenceFailed("raised"), InvalidRequest("no")],
)  # fmt: skip
def test_whatever_becomes_of_a_request_it_is_counted_until_then(error: MeshError | None) -> None:
    admission = Admission()
    admitted = admission.enter("m", of("a"), 2.0, 0.0)
    assert admission.in_flight("m") == 1
    admitted.end(0.1, error, 0.05)
    assert admission.in_flight("m") == 0


def test_a_stream_is_judged_by_its_first_part_and_counted_until_its_end() -> None:
    admission = Admission()
    for number in range(20):
        admitted = admission.enter("m", NO_HINTS, 30.0, number / 10)
        admitted.began(number / 10 + 0.1, 0.05)
        admitted.end(number / 10 + 25.0, None, 0.05)
    assert admission.limit_of("m") == float("inf")


def test_only_what_tells_of_load_brings_a_limit() -> None:
    admission = Admission()
    for error in (LinkLost("lost"), InferenceFailed("raised"), InvalidRequest("no")):
        for number in range(50):
            admission.enter("m", NO_HINTS, 2.0, number / 10).end(number / 10, error, 0.05)
    assert admission.limit_of("m") == float("inf")
    for number in range(50):
        now = 5 + number / 10
        admission.enter("m", NO_HINTS, 2.0, now).end(now, Saturated("full"), 0.05)
    assert admission.limit_of("m") < 10


@pytest.mark.parametrize("error", [Saturated("full"), DeadlineExceeded("late")])
@pytest.mark.parametrize(("timeout_s", "alone_s"), [(1e-6, 0.0), (30.0, 0.0), (0.1, 0.05)])
def test_what_was_never_tried_or_was_in_a_hurry_brings_no_limit_however_it_ended(
    error: MeshError, timeout_s: float, alone_s: float
) -> None:
    admission = Admission()
    for number in range(50):
        admission.enter("m", NO_HINTS, timeout_s, number / 10).end(number / 10, error, alone_s)
    assert admission.limit_of("m") == float("inf")


def test_models_at_rest_are_forgotten_when_there_are_too_many(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("meshnode.gateway.admission.MAX_ADMITTED_MODELS", 3)
    admission = Admission()
    busy = admission.enter("busy", NO_HINTS, 2.0, 0.0)
    for name in "abcdef":
        admission.enter(name, NO_HINTS, 2.0, 0.0).end(0.1)
    assert repr(admission) == "<Admission of 3 models, 0 limited>"
    assert admission.in_flight("busy") == 1
    busy.end(0.2)
