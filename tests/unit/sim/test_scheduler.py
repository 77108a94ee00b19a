from __future__ import annotations

from meshnode.sim.scheduler import WALL_START_S, Scheduler


def test_calls_run_in_the_order_of_their_times_then_of_their_making() -> None:
    scheduler = Scheduler()
    ran: list[object] = []
    scheduler.after(2.0, ran.append, "later")
    for i in range(50):
        scheduler.after(1.0, ran.append, i)
    scheduler.at(0.5, ran.append, "first")
    scheduler.run_to(3.0)
    assert ran == ["first", *range(50), "later"]


def test_the_clock_stands_at_each_calls_time_and_then_at_the_end() -> None:
    scheduler = Scheduler()
    seen: list[tuple[float, float]] = []
    scheduler.after(1.5, lambda: seen.append((scheduler.now(), scheduler.wall_s())))
    scheduler.run_to(4.0)
    assert seen == [(1.5, WALL_START_S + 1.5)]
    assert scheduler.now() == 4.0
    assert repr(scheduler) == "<Scheduler at 4.000000 s, 0 calls ahead>"


def test_a_call_made_for_the_past_runs_now_and_after_those_made_before() -> None:
    scheduler = Scheduler()
    ran: list[object] = []

    def late() -> None:
        scheduler.at(0.1, ran.append, "made late")

    scheduler.at(1.0, late)
    scheduler.at(1.0, ran.append, "made before")
    scheduler.run_to(1.0)
    assert ran == ["made before", "made late"]
    assert scheduler.now() == 1.0


def test_calls_at_the_end_run_and_later_ones_wait() -> None:
    scheduler = Scheduler()
    ran: list[object] = []
    scheduler.at(1.0, ran.append, "at")
    scheduler.at(1.0001, ran.append, "after")
    scheduler.run_to(1.0)
    assert ran == ["at"]
    scheduler.run_to(0.5)
    assert scheduler.now() == 1.0
