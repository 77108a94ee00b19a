from __future__ import annotations

import random

from meshnode.routing.doubts import Doubts
from meshnode.routing.load import Flight, ReplicaLoad
from meshnode.wire.messages import LoadReport


def test_a_report_that_counts_what_is_there_raises_no_doubt() -> None:
    doubts = Doubts()
    doubts.told = 2
    for _ in range(100):
        doubts.check([0.0, 0.1], rtt_s=0.01, now=1.0)
    assert doubts.share == 0.0
    assert not doubts.are_grave


def test_one_contradiction_proves_nothing_and_three_do() -> None:
    doubts, grave = Doubts(), []
    doubts.told = 1
    for _ in range(3):
        doubts.check([0.0, 0.1], rtt_s=0.01, now=1.0)
        grave.append(doubts.are_grave)
    assert grave == [False, False, True]
    assert repr(doubts) == "<Doubts: 6% of reports contradicted themselves>"


def test_a_request_that_may_not_have_arrived_contradicts_nothing() -> None:
    doubts = Doubts()
    for _ in range(100):
        doubts.check([0.9, 0.95], rtt_s=0.1, now=1.0)
    assert doubts.share == 0.0


def test_doubts_are_forgotten_once_reports_come_true() -> None:
    doubts = Doubts()
    for _ in range(20):
        doubts.check([0.0], rtt_s=0.01, now=1.0)
    assert doubts.are_grave
    doubts.told = 1
    for _ in range(150):
        doubts.check([0.0], rtt_s=0.01, now=1.0)
    assert not doubts.are_grave


def served(load: ReplicaLoad, late_s: float, answers: int = 400) -> None:
    """Let a replica with one slot serve a gateway and others in turn, and tell its queue that late.

    A run takes 10 ms; the gateway has up to four requests there, and others up to six.
    """
    rng, now = random.Random(3), 0.0
    told: list[tuple[float, int]] = []
    queue: list[Flight | None] = []  # in their order; None for another gateway's request
    for _ in range(answers):
        own = min(rng.randrange(4), 4 - load.outstanding)
        queue += [load.start(now, 0.0) for _ in range(own)]
        others = rng.choice((0, 6)) if int(now * 5) % 2 else 0
        queue += [None] * max(0, others - queue.count(None))
        while queue:
            now += 0.010
            ended = queue.pop(0)
            told.append((now, len(queue)))
            if ended is not None:
                said = [count for at, count in told if at <= now - late_s] or [0]
                load.finish(ended, now, True, LoadReport(said[-1], 1, 10.0), 10.0)
                break
        now += 0.005
    for flight in filter(None, queue):
        load.finish(flight, now, None)


def test_fresh_reports_are_believed() -> None:
    load = ReplicaLoad(1, 10.0)
    served(load, late_s=0.0)
    assert load.doubts.share == 0.0
    assert load.in_system == load.doubts.told


def test_reports_that_are_late_are_found_out_and_replaced_by_what_own_requests_met() -> None:
    load = ReplicaLoad(1, 10.0)
    served(load, late_s=0.7)
    assert load.doubts.are_grave
    now = 100.0
    ahead = [load.start(now, 0.0) for _ in range(3)]
    last = load.start(now, 0.0)
    for number, flight in enumerate(ahead, 1):
        load.finish(flight, now + number / 100, True, LoadReport(9, 1, 10.0), 10.0)
    load.finish(last, now + 0.04, True, LoadReport(9, 1, 10.0), 10.0)
    assert load.doubts.told == 9
    assert load.in_system == 3, "the last one waited for three runs"
    later = load.start(now + 0.05, 0.0)
    load.finish(later, now + 0.06, True, LoadReport(9, 1, 10.0), 10.0)
    assert load.in_system == 0, "it had not to wait"


def test_what_was_sent_after_the_request_that_met_a_queue_counts_in_addition() -> None:
    load = ReplicaLoad(1, 10.0)
    served(load, late_s=0.7)
    now = 100.0
    first = load.start(now, 0.0)
    rest = [load.start(now + 0.001, 0.0) for _ in range(2)]
    load.finish(first, now + 0.03, True, LoadReport(0, 1, 10.0), 10.0)
    assert (load.in_system, load.queued) == (2, 4)
    for flight in rest:
        load.finish(flight, now + 0.05, None)
    assert load.outstanding == 0


def test_runs_as_short_as_the_way_there_raise_no_doubts() -> None:
    load = ReplicaLoad(1, 0.5)
    flights = [load.start(0.0, 0.0) for _ in range(50)]
    for number, flight in enumerate(flights):
        load.finish(flight, 0.1 + number / 1000, True, LoadReport(0, 1, 0.5), 0.5)
    assert load.doubts.share == 0.0
