"""Virtual time: what runs when, and what a loop without an operating system does."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

import pytest

from meshnode.errors import UsageError
from meshnode.sim.virtual.host import TURN_S, running_host
from meshnode.sim.virtual.loop import Stuck, VirtualLoop

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from meshnode.sim.virtual.host import VirtualHost


def test_an_hour_of_sleep_takes_no_time_and_ends_on_the_second(loop: VirtualLoop) -> None:
    loop.run_until_complete(asyncio.sleep(3600))
    assert loop.time() == 3600


def test_time_stands_where_it_was_asked_to(loop: VirtualLoop) -> None:
    called: list[float] = []
    loop.at(2.0, lambda: called.append(loop.now()))
    loop.at(2.5, lambda: called.append(loop.now()))
    loop.run_to(2.0)
    assert (called, loop.now()) == ([2.0], 2.0)
    loop.run_for(1.0)
    assert (called, loop.now()) == ([2.0, 2.5], 3.0)


def test_calls_run_in_the_order_of_their_times_then_of_their_making(loop: VirtualLoop) -> None:
    called: list[str] = []
    for name, delay in (("late", 2), ("first", 1), ("second", 1)):
        loop.call_later(delay, called.append, name)
    loop.call_soon(called.append, "now")
    loop.run_for(5)
    assert called == ["now", "first", "second", "late"]


def test_a_cancelled_call_is_not_made_and_many_of_them_are_dropped(loop: VirtualLoop) -> None:
    called: list[int] = []
    timers = [loop.call_later(1 + number, called.append, number) for number in range(500)]
    for timer in timers[:-1]:
        timer.cancel()
    assert len([*loop.timers()]) == 1
    assert len(loop._timers) < 300
    timers[0].cancel()
    loop.run_for(1000)
    assert called == [499]
    timers[-1].cancel()
    assert timers[-1].cancelled()


def test_calls_due_at_once_on_several_hosts_are_ordered_by_the_seed() -> None:
    def order(seed: int) -> str:
        loop = VirtualLoop(seed)
        called: list[str] = []
        for name in "abcdef":
            host = loop.add_host(name, "here")
            for number in "12":
                host.call(loop.call_at, 1.0, called.append, name + number)
        loop.run_for(2)
        loop.close()
        assert all(called.index(name + "1") < called.index(name + "2") for name in "abcdef")
        return "".join(called)

    assert order(1) == order(1)
    assert len({order(seed) for seed in range(5)}) > 1


def test_waiting_for_what_never_comes_is_noticed() -> None:
    loop = VirtualLoop(seed=1)
    with pytest.raises(Stuck, match="nothing is left to happen"):
        loop.run_until_complete(loop.create_future())
    loop.close()


def test_a_broken_invariant_ends_the_run_where_it_is(loop: VirtualLoop) -> None:
    loop.at(1.0, loop.fail, AssertionError("broken"))
    with pytest.raises(AssertionError, match="broken"):
        loop.run_to(10.0)
    assert loop.now() == 1.0
    loop.run_to(10.0)
    assert loop.now() == 10.0


def test_what_nobody_catches_is_kept_with_its_host(loop: VirtualLoop, near: VirtualHost) -> None:
    loop.set_exception_handler(lambda _loop, _context: None)
    near.call(loop.call_soon, lambda: 1 / 0)
    loop.run_for(1)
    assert [(where, type(error)) for where, error in loop.unhandled] == [
        ("near/1", ZeroDivisionError)
    ]


def test_tasks_and_futures_hash_by_a_number_that_the_loop_counts() -> None:
    def order() -> list[str]:
        loop = VirtualLoop(seed=1)

        async def wait() -> list[str]:
            tasks = {asyncio.create_task(asyncio.sleep(1), name=str(n)) for n in range(40)}
            futures = {loop.create_future() for _ in range(3)}
            done, _ = await asyncio.wait(tasks)
            assert [hash(future) for future in futures] == sorted(map(hash, futures))
            return [task.get_name() for task in done]

        found = loop.run_until_complete(wait())
        loop.close()
        return found

    assert order() == order()


def test_no_second_loop_runs_inside_one(loop: VirtualLoop) -> None:
    async def nested() -> None:
        loop.run_for(1)

    with pytest.raises(RuntimeError, match="running already"):
        loop.run_until_complete(nested())


def test_generators_that_nobody_iterates_any_more_are_closed(loop: VirtualLoop) -> None:
    closed: list[str] = []

    async def numbers() -> AsyncIterator[int]:
        try:
            yield 1
            yield 2
        finally:
            await asyncio.sleep(0)
            closed.append("closed")

    async def use() -> None:
        async for _ in numbers():
            break
        await asyncio.sleep(1)

    loop.run_until_complete(use())
    assert closed == ["closed"]


@pytest.mark.parametrize("what", ["subprocess_exec", "add_reader", "start_tls", "sock_recv"])
def test_what_the_loop_lacks_says_so(loop: VirtualLoop, what: str) -> None:
    with pytest.raises(NotImplementedError, match="has no"):
        getattr(loop, what)(None)


# Executors.


def test_an_executors_function_runs_inline_and_its_result_comes_after_what_it_spends(
    loop: VirtualLoop, near: VirtualHost
) -> None:
    told: list[tuple[str, float]] = []

    def compute() -> float:
        near.spend(0.2)
        loop.call_soon_threadsafe(lambda: told.append(("half", loop.time())))
        near.spend(0.3)
        return near.clock.now()

    async def work() -> list[float]:
        ticker = asyncio.create_task(asyncio.sleep(0.1))
        ticker.add_done_callback(lambda _: told.append(("tick", loop.time())))
        return await asyncio.gather(*(asyncio.to_thread(compute) for _ in range(3)))

    assert loop.run_until_complete(near.run(work())) == [0.5, 0.5, 0.5]
    assert loop.time() == 0.5  # three at once, as threads are
    assert told == [("tick", 0.1), ("half", 0.2), ("half", 0.2), ("half", 0.2)]


def test_an_executors_failure_is_its_callers(loop: VirtualLoop, near: VirtualHost) -> None:
    def fail() -> None:
        near.spend(1.0)
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        loop.run_until_complete(near.run(asyncio.to_thread(fail)))
    assert loop.time() == 1.0


def test_code_in_an_executor_runs_on_the_host_that_asked(
    loop: VirtualLoop, near: VirtualHost, far: VirtualHost
) -> None:
    async def where() -> VirtualHost | None:
        return await asyncio.to_thread(running_host)

    assert loop.run_until_complete(near.run(where())) is near
    assert loop.run_until_complete(far.run(where())) is far
    assert loop.run_until_complete(where()) is None


# Time that computing takes.


def test_a_coroutine_that_computes_stalls_its_own_host_only(
    loop: VirtualLoop, near: VirtualHost, far: VirtualHost
) -> None:
    ticks: dict[str, list[float]] = {"near": [], "far": []}

    async def tick(host: VirtualHost) -> None:
        for _ in range(4):
            await asyncio.sleep(0.1)
            ticks[host.name].append(round(loop.time(), 6))

    async def compute() -> None:
        await asyncio.sleep(0.15)
        near.spend(0.2)
        assert loop.time() == pytest.approx(0.35)

    work = [near.run(tick(near)), far.run(tick(far)), near.run(compute())]
    loop.run_until_complete(asyncio.wait(work))
    assert ticks == {"near": [0.1, 0.35, 0.45, 0.55], "far": [0.1, 0.2, 0.3, 0.4]}


def test_a_slowed_host_takes_longer_for_all_it_does(loop: VirtualLoop, near: VirtualHost) -> None:
    near.slow(11)

    async def compute() -> None:
        near.spend(0.1)
        await asyncio.sleep(0)

    loop.run_until_complete(near.run(compute()))
    assert loop.time() == pytest.approx(11 * 0.1 + 10 * TURN_S, rel=1e-3)
    near.slow(1)
    before = loop.time()
    loop.run_until_complete(near.run(compute()))
    assert loop.time() - before == pytest.approx(0.1, rel=1e-2)


def test_only_a_hosts_own_code_spends_its_time(
    loop: VirtualLoop, near: VirtualHost, far: VirtualHost
) -> None:
    async def spend() -> None:
        near.spend(1)

    with pytest.raises(UsageError, match="only what runs on near"):
        loop.run_until_complete(far.run(spend()))
    with pytest.raises(UsageError, match="only what the loop runs"):
        near.call(near.spend, 1.0)


# Clocks.


def test_a_clock_that_runs_fast_makes_timers_early(
    loop: VirtualLoop, near: VirtualHost, far: VirtualHost
) -> None:
    near.clock.set_rate(1.25)

    async def sleep() -> float:
        began = asyncio.get_running_loop().time()
        await asyncio.sleep(10)
        return asyncio.get_running_loop().time() - began

    assert loop.run_until_complete(near.run(sleep())) == 10
    assert loop.now() == 8
    assert loop.run_until_complete(far.run(sleep())) == 10
    assert loop.now() == 18
    assert near.clock.now() == pytest.approx(18 * 1.25)
    near.clock.set_rate(1.0)
    loop.run_for(10)
    assert near.clock.now() == pytest.approx(18 * 1.25 + 10)


@pytest.mark.parametrize("rate", [0.7, 1.1, 1.0 / 3.0])
def test_a_timer_never_finds_its_own_clock_a_hair_too_early(
    loop: VirtualLoop, near: VirtualHost, rate: float
) -> None:
    """Who then sets it again for the same time would do so for ever."""
    loop.run_for(0.1)
    near.clock.set_rate(rate)
    loop.run_for(0.1)
    for number in range(2_000):
        shown_s = near.clock.now() + 0.001 * number
        assert near.clock.read(near.clock.when(shown_s)) >= shown_s


def test_a_wall_clock_jumps_and_the_monotonic_one_does_not(
    loop: VirtualLoop, near: VirtualHost, far: VirtualHost
) -> None:
    near.clock.jump(-3600)
    loop.run_for(5)
    assert near.clock.now() == far.clock.now() == 5
    assert far.clock.wall_s() - near.clock.wall_s() == 3600


def test_a_closed_loop_is_closed(near: VirtualHost, loop: VirtualLoop) -> None:
    ended: list[str] = []

    async def work() -> None:
        with contextlib.suppress(asyncio.CancelledError):
            try:
                await asyncio.sleep(1000)
            finally:
                ended.append("finally")
                await asyncio.sleep(1)

    near.run(work())
    loop.run_for(1)
    loop.close()
    loop.close()
    assert loop.is_closed()
    assert ended == ["finally"]
    with pytest.raises(RuntimeError, match="closed"):
        loop.run_for(1)


def test_a_task_that_failed_unheard_is_told_of_its_own_process(
    loop: VirtualLoop, near: VirtualHost, far: VirtualHost
) -> None:
    told: list[tuple[str, type]] = []
    loop.on_unhandled = lambda process, _what, error: told.append((repr(process), type(error)))
    loop.set_exception_handler(lambda _loop, _context: None)

    async def fail() -> None:
        raise KeyError("unheard")

    kept = far.run(fail())
    near.run(fail())
    loop.run_for(1)
    near.process.drop_done()
    assert told == [("near/1", KeyError)]
    assert far.process.failed_tasks() == [kept]
    assert kept.exception() is not None
    assert far.process.failed_tasks() == []
