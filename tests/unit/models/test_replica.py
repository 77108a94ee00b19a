"""A replica: which requests run together, and that each gets its own answer, in time or not at all."""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshnode.errors import (
    DeadlineExceeded,
    InferenceFailed,
    InvalidRequest,
    MeshError,
    NotServing,
    Saturated,
)
from meshnode.limits import MAX_ADAPTIVE_ROW_BYTES, STREAM_PARTS_AHEAD
from meshnode.models.execution import DynamicBatching, Execution, QueuePolicy, RateLimit
from meshnode.models.manifest import TensorSpec
from meshnode.models.serving import instances
from meshnode.models.serving.batch_run import run_loaded
from meshnode.models.serving.crowding import FIRST_LOOK
from meshnode.models.tensors import from_numpy, to_numpy
from meshnode.types import DataType, InferRequest, InferResponse, ResponsePart, Tensor

from .replica_models import ALONE, Bench, Doubler, Process, numbers, request, turn

BATCHING = Execution(batching=DynamicBatching())


async def test_what_waits_while_the_model_is_busy_runs_as_one_batch() -> None:
    bench = Bench(execution=BATCHING)
    first = bench.ask(1)
    await turn()
    others = [bench.ask(2), bench.ask(3, 4), bench.ask(5)]
    await turn()
    assert bench.replica.in_system == 4
    await bench.workers.run_all()
    assert bench.models[0].ran == [1, 4]
    assert [numbers(await each) for each in (first, *others)] == [[2], [4], [6, 8], [10]]
    assert bench.replica.in_system == 0


async def test_rows_of_different_shapes_are_not_joined() -> None:
    bench = Bench(execution=BATCHING)
    tasks = [bench.ask(1), bench.ask(2, columns=2), bench.ask(3, columns=2), bench.ask(4)]
    await bench.workers.run_all()
    assert bench.models[0].ran == [1, 2, 1]
    assert [numbers(await each) for each in tasks] == [[2], [4], [6], [8]]


async def test_nothing_is_joined_where_it_must_not_be() -> None:
    bench = Bench(apart=ALONE)
    tasks = [bench.ask(each) for each in range(4)]
    await bench.workers.run_all()
    assert bench.models[0].ran == [1, 1, 1, 1]
    assert [numbers(await each) for each in tasks] == [[0], [2], [4], [6]]
    assert bench.replica.batching == "off: told so"


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"execution": Execution(adaptive=False)}, "it is not configured"),
        ({"max_batch_size": 1}, "it takes one row"),
        ({"execution": BATCHING, "max_batch_size": 1}, "its configuration allows one row"),
        (
            {"outputs": (TensorSpec("y", DataType.FP32, (3,)),)},
            "not every tensor's first dimension is free",
        ),
        (
            {"models": (Process(),)},
            "a Python model gets one request at a time unless batching is configured",
        ),
        (
            {"models": (Process(),), "execution": Execution(decoupled=True)},
            "each request has its own stream of answers",
        ),
    ],
)
async def test_why_nothing_is_joined_is_told(options: dict[str, Any], reason: str) -> None:
    bench = Bench(*options.pop("models", ()), **options)
    assert bench.replica.batching == f"off: {reason}"


async def test_one_bad_request_of_a_batch_fails_alone() -> None:
    bench = Bench(execution=BATCHING)
    busy, good, bad, other = bench.ask(0), bench.ask(1), bench.ask(-1), bench.ask(2)
    await bench.workers.run_all()
    assert bench.models[0].ran == [1, 3, 1, 1, 1]
    assert [numbers(await each) for each in (busy, good, other)] == [[0], [2], [4]]
    with pytest.raises(InferenceFailed, match="negative"):
        await bad


def test_what_must_not_be_repeated_fails_as_a_whole() -> None:
    """A sequence's state would count what ran twice."""
    for model, second, message in (
        (Doubler(), -1, "negative"),
        (Summing(), 2, "a batch of 2 rows"),
    ):
        inputs = [request(each).inputs for each in (1, second)]
        ran = run_loaded(model, inputs, [1, 1], ("y",), time.perf_counter, repeatable=False)
        assert len(ran.answers) == 2
        assert all(message in str(each) for each in ran.answers)
        assert model.ran == [2]


async def test_a_batch_of_one_that_fails_is_not_run_again() -> None:
    bench = Bench(execution=BATCHING)
    bad = bench.ask(-1)
    await bench.workers.run_all()
    assert bench.models[0].ran == [1]
    with pytest.raises(InferenceFailed):
        await bad


async def test_the_load_report_says_how_many_runs_failed_in_a_row() -> None:
    bench = Bench(execution=BATCHING)
    told = []
    for row in (1, -1, -1, 2):
        asking = bench.ask(row)
        await bench.workers.run_all()
        await asyncio.gather(asking, return_exceptions=True)
        told.append(bench.replica.load_report().failing)
    assert told == [0, 1, 2, 0]


class Summing(Doubler):
    """Its output is one row, whatever comes in."""

    def run(self, inputs: Any, outputs: Any) -> tuple[Tensor, ...]:
        [doubled] = super().run(inputs, outputs)
        return (from_numpy("y", to_numpy(doubled).sum(axis=0, keepdims=True)),)


async def test_a_model_that_gives_no_rows_gets_each_request_alone_from_then_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    bench = Bench(Summing(), execution=BATCHING)
    tasks = [bench.ask(each) for each in (1, 2, 3)]
    await bench.workers.run_all()
    assert [numbers(await each) for each in tasks] == [[2], [4], [6]]
    assert "its requests are no longer joined" in caplog.text
    assert "a batch of 2 rows has shape [1, 1]" in bench.replica.batching
    tasks = [bench.ask(each) for each in (1, 2, 3)]
    await bench.workers.run_all()
    assert bench.models[0].ran[-3:] == [1, 1, 1]


async def test_large_rows_are_joined_only_where_that_is_configured() -> None:
    columns = MAX_ADAPTIVE_ROW_BYTES // 4 + 1
    for execution, runs in ((Execution(), [1, 1, 1]), (BATCHING, [1, 2])):
        bench = Bench(execution=execution)
        tasks = [bench.ask(each, columns=columns) for each in (1, 2, 3)]
        await bench.workers.run_all()
        assert bench.models[0].ran == runs
        await asyncio.gather(*tasks)


async def test_inputs_that_disagree_on_rows_run_alone() -> None:
    two = (TensorSpec("x", DataType.FP32, (-1, -1)), TensorSpec("z", DataType.FP32, (-1, -1)))
    bench = Bench(execution=BATCHING, inputs=two)
    odd = request(1, 2)
    odd = type(odd)("m", (*odd.inputs, from_numpy("z", np.ones((1, 1), "f4"))))
    tasks = [asyncio.ensure_future(bench.replica.infer(odd)) for _ in range(3)]
    await bench.workers.run_all()
    assert bench.models[0].ran == [2, 2, 2]
    assert [numbers(await each) for each in tasks] == [[2, 4]] * 3


async def test_a_member_that_gives_up_leaves_the_others_their_answers() -> None:
    bench = Bench(execution=BATCHING)
    busy, kept, gone = bench.ask(0), bench.ask(1), bench.ask(2)
    await turn()
    await bench.workers.run_one()
    gone.cancel()
    await bench.workers.run_all()
    assert [numbers(await each) for each in (busy, kept)] == [[0], [2]]
    assert gone.cancelled()
    assert bench.replica.in_system == 0


async def test_who_is_cancelled_when_the_answer_has_just_come_is_no_failure() -> None:
    bench = Bench(execution=BATCHING)
    task = bench.ask(1)
    await turn()
    work, args = bench.workers.work.popleft()
    work(*args)
    await asyncio.sleep(0)
    task.cancel()
    await turn()
    assert task.cancelled()
    assert bench.replica.in_system == 0
    assert bench.replica.statistics().fail.count == 0


async def test_cancelling_in_the_queue_frees_the_place() -> None:
    bench = Bench(execution=BATCHING, max_waiting=1)
    busy, waiting = bench.ask(0), bench.ask(1)
    await turn()
    with pytest.raises(Saturated):
        await bench.replica.infer(request(2))
    waiting.cancel()
    await turn()
    last = bench.ask(3)
    await bench.workers.run_all()
    assert bench.models[0].ran == [1, 1]
    assert [numbers(await each) for each in (busy, last)] == [[0], [6]]


async def test_deadlines_hold_in_the_queue_and_during_the_run() -> None:
    bench = Bench(execution=BATCHING)
    running, waiting = bench.ask(0, timeout_s=0.02), bench.ask(1, timeout_s=0.01)
    patient = bench.ask(2)
    with pytest.raises(DeadlineExceeded, match="waited for a free slot"):
        await waiting
    with pytest.raises(DeadlineExceeded, match="still running"):
        await running
    assert bench.replica.in_system == 2
    await bench.workers.run_all()
    assert bench.models[0].ran == [1, 1]
    assert numbers(await patient) == [4]


async def test_a_process_is_cancelled_when_nobody_waits_for_its_batch() -> None:
    process = Process()
    bench = Bench(process, execution=BATCHING)
    tasks = [bench.ask(each) for each in range(3)]
    await turn()
    assert [each.rows for each in process.asked[0][0]] == [1]
    tasks[0].cancel()
    await turn()
    assert process.cancelled == 1
    assert [each.rows for each in process.asked[1][0]] == [1, 1]  # the next batch
    tasks[1].cancel()
    await turn()
    assert process.cancelled == 1  # one still waits for it
    process.asked.popleft()
    assert await process.answered() == [1, 1]
    assert numbers(await tasks[2]) == [4]


async def test_who_is_cancelled_as_its_run_is_started_leaves_the_place_free() -> None:
    """As when a link is lost with many requests on it: some come to their turn at that moment."""
    process = Process()
    bench = Bench(process)
    running, waiting = bench.ask(1), bench.ask(2)
    await turn()
    requests, answer = process.asked.popleft()
    answer.set_result([Doubler().run(requests[0].inputs, ())])
    waiting.cancel()
    assert numbers(await running) == [2]
    await turn()
    assert waiting.cancelled()
    assert not process.asked
    assert bench.replica.in_system == 0
    after = bench.ask(3)
    assert await process.answered() == [1]
    assert numbers(await after) == [6]


@pytest.mark.parametrize("joins_rows", [False, True])
async def test_a_process_gets_batches_as_it_takes_them(joins_rows: bool) -> None:
    process = Process(joins_rows=joins_rows)
    bench = Bench(process, execution=BATCHING)
    tasks = [bench.ask(*rows) for rows in ((1,), (2, 3), (4,), (-5,))]
    assert await process.answered() == [1]
    assert await process.answered() == ([4] if joins_rows else [2, 1, 1])
    if joins_rows:  # it failed: once more, each alone
        assert [await process.answered() for _ in range(3)] == [[2], [1], [1]]
    assert [numbers(await each) for each in tasks[:3]] == [[2], [4, 6], [8]]
    with pytest.raises(InferenceFailed, match="negative"):
        await tasks[3]


async def test_a_process_that_answers_the_wrong_count_fails_its_batch() -> None:
    process = Process()
    bench = Bench(process, execution=BATCHING)
    task = bench.ask(1)
    await turn()
    process.asked.popleft()[1].set_result([])
    with pytest.raises(InferenceFailed, match="0 answers to a batch of 1 requests"):
        await task


async def test_when_the_last_process_ends_others_may_take_what_waits() -> None:
    first, second = Process(), Process()
    bench = Bench(first, second)
    told: list[str] = []
    bench.replica.on_lost = told.append
    tasks = [bench.ask(each) for each in range(4)]
    await turn()
    first.on_lost("")
    assert len(first.asked) == 1  # it was not missed, and gets no second batch
    first.on_lost("killed")
    assert told == []
    assert bench.replica.load_report().slots == 1
    second.on_lost("out of memory")
    for task in tasks[2:]:
        with pytest.raises(NotServing, match="out of memory"):
            await task
    assert told == ["out of memory"]
    with pytest.raises(NotServing, match="every process of this model has ended"):
        await bench.replica.infer(request(1))
    for process in (first, second):
        process.asked.popleft()[1].set_exception(NotServing("gone"))
    for task in tasks[:2]:
        with pytest.raises(NotServing):
            await task
    first.on_lost("")
    assert told == ["out of memory", ""]
    again = bench.ask(7)
    assert await first.answered() == [1]
    assert numbers(await again) == [14]
    await bench.replica.close()
    assert first.closed
    assert second.closed


async def test_answers_come_in_the_order_of_their_requests_where_asked_to() -> None:
    bench = Bench(
        Doubler(),
        execution=Execution(batching=DynamicBatching(preserve_ordering=True)),
        slots=3,
    )
    tasks = [bench.ask(each) for each in range(3)]
    await turn()
    bench.workers.work.rotate(-1)
    await bench.workers.run_one()
    await bench.workers.run_one()
    assert [task.done() for task in tasks] == [False, False, False]
    await bench.workers.run_one()
    assert [numbers(await each) for each in tasks] == [[0], [2], [4]]
    late = bench.ask(1, timeout_s=0.01)
    after = bench.ask(2)
    await turn()
    bench.workers.work.rotate(-1)
    await bench.workers.run_one()
    assert not after.done()
    with pytest.raises(DeadlineExceeded):
        await late
    assert numbers(await after) == [4]
    await bench.workers.run_all()


async def test_who_could_not_be_answered_in_time_is_refused_while_others_wait() -> None:
    bench = Bench(apart=ALONE)
    first = bench.ask(1)
    await turn()
    bench.replica._run_time.request_s = 2.0
    waiting = bench.ask(2)
    await turn()
    with pytest.raises(Saturated, match="2 requests are before it here") as refused:
        await bench.ask(3, timeout_s=3.0)
    assert refused.value.retry_after_s > 1.0
    patient = bench.ask(4, timeout_s=30.0)
    await bench.workers.run_all()
    assert [numbers(await each) for each in (first, waiting, patient)] == [[2], [4], [8]]


async def test_the_rate_is_limited() -> None:
    bench = Bench(execution=Execution(rate_limit=RateLimit(per_second=0.5, burst=2)))
    assert bench.replica.try_inline(request(1)) is None
    tasks = [bench.ask(1), bench.ask(2)]
    await bench.workers.run_all()
    await asyncio.gather(*tasks)
    with pytest.raises(Saturated, match=r"takes 0\.5 requests per second on each node"):
        await bench.replica.infer(request(3))


async def test_priority_and_timeout_are_parameters() -> None:
    policy = QueuePolicy(default_timeout_us=10_000_000, allow_timeout_override=True)
    batching = DynamicBatching(
        priority_levels=2, default_priority_level=2, default_queue_policy=policy
    )
    bench = Bench(execution=Execution(batching=batching), max_batch_size=8)
    busy = bench.ask(0)
    slow = bench.ask(1, columns=2)
    quick = bench.ask(2, columns=3, parameters={"priority": 1})
    hasty = bench.ask(3, columns=4, parameters={"timeout": 5000})
    with pytest.raises(Saturated, match="its queue's limit"):
        await hasty
    await bench.workers.run_one()
    await bench.workers.run_one()
    assert (quick.done(), slow.done()) == (True, False)
    await bench.workers.run_all()
    await asyncio.gather(busy, slow, quick)


async def test_a_delay_makes_even_short_requests_wait_for_others() -> None:
    batching = DynamicBatching(max_queue_delay_us=3_000)
    bench = Bench(execution=Execution(batching=batching), inline_limit_s=1.0)
    assert bench.replica.try_inline(request(1)) is None
    tasks = [bench.ask(1), bench.ask(2)]
    await turn()
    assert not bench.workers.work
    await asyncio.sleep(0.01)
    await bench.workers.run_all()
    assert bench.models[0].ran == [2]
    await asyncio.gather(*tasks)


async def test_short_requests_of_a_crowd_are_joined() -> None:
    """One by one they would keep the loop busy, and nobody would see that they are many."""
    ticks = itertools.count()
    bench = Bench(inline_limit_s=1.0, timer=lambda: 200e-6 * next(ticks))
    bench.replica._run_time.observe(200e-6, 1)
    tasks = []
    for number in range(FIRST_LOOK + 20):
        if bench.replica.try_inline(request(number)) is None:
            tasks.append(bench.ask(number))
            await turn()
    assert len(tasks) == 21
    await bench.workers.run_all()
    assert max(bench.models[0].ran) > 1
    values = [numbers(await each)[0] for each in tasks]
    assert values == [2.0 * number for number in range(FIRST_LOOK - 1, FIRST_LOOK + 20)]


async def test_short_requests_do_not_run_beside_others_on_an_exclusive_instance() -> None:
    bench = Bench(apart=ALONE, exclusive=True, inline_limit_s=1.0)
    task = bench.ask(1)  # its time is unknown, so that it runs in a thread
    await bench.workers.run_all()
    await task
    assert bench.replica.try_inline(request(1)) is not None
    bench.replica._inline_limit_s = 0.0
    task = bench.ask(2)
    await turn()
    bench.replica._inline_limit_s = 1.0
    assert bench.replica.try_inline(request(3)) is None
    await bench.workers.run_all()
    assert bench.replica.try_inline(request(3)) is not None
    await task


async def test_tensors_take_the_shapes_that_the_model_wants() -> None:
    """Clients see rows of six; the model takes rows of 2 x 3, and its answer is flattened."""
    bench = Bench(
        execution=Execution(batching=DynamicBatching(), reshape=(("x", (2, 3)), ("y", (6,)))),
        inputs=(TensorSpec("x", DataType.FP32, (-1, 6)),),
        outputs=(TensorSpec("y", DataType.FP32, (-1, 3, 2)),),
    )
    seen: list[tuple[int, ...]] = []
    run = bench.models[0].run

    def watched(inputs: Any, outputs: Any) -> tuple[Tensor, ...]:
        seen.append(inputs[0].shape)
        [output] = run(inputs, outputs)
        return (from_numpy("y", to_numpy(output).reshape(-1, 6)),)

    bench.models[0].run = watched
    tasks = [bench.ask(1, columns=6), bench.ask(2, 3, columns=6)]
    await bench.workers.run_all()
    assert seen == [(1, 2, 3), (2, 2, 3)]
    shapes = [(await each).single.outputs[0].shape for each in tasks]  # type: ignore[union-attr]
    assert shapes == [(1, 3, 2), (2, 3, 2)]


async def test_rows_are_limited_for_want_of_memory_and_no_longer() -> None:
    bench = Bench(execution=BATCHING)
    bench.replica.limit_rows(2)
    tasks = [bench.ask(each) for each in range(6)]
    await bench.workers.run_one() if bench.workers.work else await turn()
    await bench.workers.run_one()
    await bench.workers.run_one()
    bench.replica.limit_rows(None)
    await bench.workers.run_all()
    await asyncio.gather(*tasks)
    assert bench.models[0].ran == [1, 2, 2, 1]


async def test_statistics_are_those_of_triton() -> None:
    bench = Bench(execution=BATCHING)
    tasks = [bench.ask(1), bench.ask(2), bench.ask(3, 4)]
    await bench.workers.run_all()
    await asyncio.gather(*tasks)
    failing = bench.ask(-1)
    await bench.workers.run_all()
    with pytest.raises(MeshError):
        await failing
    bench.replica.cache_hit(1e-6)
    bench.replica.cache_miss(2e-6)
    counted = bench.replica.statistics()
    assert (counted.inference_count, counted.execution_count) == (4, 2)  # what failed is none
    assert (counted.success.count, counted.fail.count) == (4, 1)
    assert (counted.cache_hit.count, counted.cache_miss.ns) == (1, 2000)
    assert counted.queue.count == counted.compute_infer.count == 3
    assert counted.queue.ns > 0
    assert counted.compute_input.ns > 0
    sizes = [(each.batch_size, each.compute_infer.count) for each in counted.batches]
    assert sizes == [(1, 1), (3, 1)]


@pytest.mark.parametrize("inline_limit_s", [0.0, 1.0])
async def test_a_request_is_one_inference_where_the_first_dimension_is_no_batch(
    inline_limit_s: float,
) -> None:
    bench = Bench(apart=ALONE, max_batch_size=0, inline_limit_s=inline_limit_s)
    for _ in range(3):
        task = bench.ask(1, 2, 3, 4)
        await bench.workers.run_all()
        await task
    counted = bench.replica.statistics()
    assert (counted.inference_count, counted.execution_count) == (3, 3)
    assert [each.batch_size for each in counted.batches] == [1]


async def test_requests_that_ran_on_the_loop_are_in_the_statistics() -> None:
    bench = Bench(apart=ALONE, inline_limit_s=1.0)
    task = bench.ask(1)
    await bench.workers.run_all()
    await task
    assert bench.replica.try_inline(request(1, 2)) is not None
    with pytest.raises(InferenceFailed):
        bench.replica.try_inline(request(-1))
    counted = bench.replica.statistics()
    assert (counted.inference_count, counted.execution_count) == (3, 2)
    assert (counted.success.count, counted.fail.count) == (2, 1)
    assert [each.batch_size for each in counted.batches] == [1, 2]


async def test_the_load_report_follows_the_batches_that_form() -> None:
    bench = Bench(execution=BATCHING, max_batch_size=4)
    assert bench.replica.load_report().slots == 1
    for _ in range(30):
        tasks = [bench.ask(each) for each in range(8)]
        await bench.workers.run_all()
        await asyncio.gather(*tasks)
    report = bench.replica.load_report()
    assert report.slots == 3  # batches of 1, 4 and 3
    assert report.in_system == 0
    assert report.service_ms > 0
    assert repr(bench.replica) == ("<Replica m/1 running=0 waiting=0 configured, up to 4 rows>")


async def test_draining_waits_for_what_runs_and_waits() -> None:
    bench = Bench(apart=ALONE)
    await bench.replica.drained()
    tasks = [bench.ask(1), bench.ask(2)]
    await turn()
    drained = asyncio.ensure_future(bench.replica.drained())
    await bench.workers.run_one()
    assert not drained.done()
    await bench.workers.run_all()
    await drained
    await asyncio.gather(*tasks)
    await bench.replica.close()
    assert bench.models[0].closed


async def test_a_defect_while_joining_is_told_to_the_batch_and_frees_the_instance(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(*_args: object, **_options: object) -> None:
        raise MemoryError

    bench = Bench(execution=BATCHING)
    monkeypatch.setattr("meshnode.models.serving.instances.run_loaded", broken)
    task = bench.ask(1)
    await bench.workers.run_all()
    with pytest.raises(InferenceFailed, match="MemoryError"):
        await task
    assert bench.replica.in_system == 0


async def test_what_the_warm_up_measured_is_known_from_the_start() -> None:
    profile = ((1, 1.0), (2, 1.1), (4, 1.2), (8, 2.4))
    bench = Bench(profile=profile)
    assert bench.replica.batching == "adaptive, 4 of up to 8 rows"


async def test_a_short_request_in_another_shape_runs_on_the_loop_too() -> None:
    bench = Bench(
        execution=Execution(reshape=(("x", ()),)),
        inputs=(TensorSpec("x", DataType.FP32, (-1, 1)),),
        outputs=(TensorSpec("y", DataType.FP32, (-1,)),),
        inline_limit_s=1.0,
    )
    first = bench.ask(1)
    await bench.workers.run_all()
    for response in (await first, await bench.replica.infer(request(1))):
        assert response.single is not None
        assert response.single.outputs[0].shape == (1,)
    assert not bench.workers.work
    wrong = bench.models[0]
    wrong.run = lambda _inputs, _outputs: (Tensor("x", DataType.FP32, (1, 7), bytes(28)),)
    bench.replica._inline_limit_s = 0.0
    bench.replica._reshaping._outputs["x"] = ((2,), (2,))
    failing = bench.ask(1)
    await bench.workers.run_all()
    with pytest.raises(InferenceFailed, match="cannot take the shape"):
        await failing


async def test_joined_answers_of_a_process_keep_to_the_same_rules() -> None:
    """Not as many rows as were asked: each alone; a process that is gone: all at once."""
    process = Process(joins_rows=True)
    bench = Bench(process, execution=BATCHING)
    tasks = [bench.ask(each) for each in (1, 2, 3)]
    assert await process.answered() == [1]
    await turn()
    [(asked, answer)] = process.asked
    process.asked.clear()
    assert asked[0].rows == 2
    answer.set_result([part(1)])
    for _ in range(2):
        assert await process.answered() == [1]
    assert [numbers(await each) for each in tasks] == [[2], [4], [6]]
    assert "its outputs are not rows" in bench.replica.batching
    again = Bench(process, execution=BATCHING)
    tasks = [again.ask(each) for each in (1, 2, 3)]
    assert await process.answered() == [1]
    await turn()
    process.asked.popleft()[1].set_result([NotServing("gone")])
    assert numbers(await tasks[0]) == [2]
    for task in tasks[1:]:
        with pytest.raises(NotServing):
            await task
    assert not process.asked
    assert repr(again.replica._instances) == "<Instances 1 with 1 slots, 0 batches run, 0 dead>"


STREAMING = Execution(decoupled=True)


def part(value: float) -> ResponsePart:
    return ResponsePart((from_numpy("y", np.full((1, 1), value, "f4")),))


async def test_a_stream_gives_its_parts_and_then_its_place() -> None:
    process = Process()
    bench = Bench(process, execution=STREAMING)
    task = bench.ask(1)
    other = bench.ask(2)
    for value in (5, 6):
        process.parts.put_nowait(part(value))
    process.parts.put_nowait(None)
    response = await task
    assert response.single is None
    values = [to_numpy(each.outputs[0])[0, 0] async for each in response]
    assert values == [5, 6]
    process.parts.put_nowait(None)
    assert [each async for each in await other] == []
    await turn()
    assert bench.replica.in_system == 0
    assert bench.replica.statistics().success.count == 2


async def test_an_error_before_the_first_part_is_raised_and_one_after_it_ends_the_stream() -> None:
    process = Process()
    bench = Bench(process, execution=STREAMING)
    process.parts.put_nowait(InferenceFailed("no"))
    with pytest.raises(InferenceFailed, match="no"):
        await bench.ask(1)
    process.parts.put_nowait(part(1))
    process.parts.put_nowait(InferenceFailed("then no"))
    parts = aiter(await bench.ask(1))
    await anext(parts)
    with pytest.raises(InferenceFailed, match="then no"):
        await anext(parts)
    assert bench.replica.in_system == 0


async def test_a_reader_that_goes_stops_the_stream_and_frees_its_place() -> None:
    process = Process()
    bench = Bench(process, execution=STREAMING)
    process.parts.put_nowait(part(1))
    response = await bench.ask(1)
    parts = aiter(response)
    await anext(parts)
    await parts.aclose()
    await turn()
    assert process.cancelled == 1
    assert bench.replica.in_system == 0
    waiting = bench.ask(1)
    await turn()
    waiting.cancel()
    await turn()
    assert process.cancelled == 2
    assert bench.replica.in_system == 0
    with pytest.raises(DeadlineExceeded):
        await bench.ask(1, timeout_s=0.01)
    await turn()
    assert bench.replica.statistics().fail.count == 3


async def test_a_reader_that_goes_as_the_stream_begins_stops_it() -> None:
    process = Process()
    bench = Bench(process, execution=STREAMING)
    task = bench.ask(1)
    await turn()
    process.parts.put_nowait(part(1))
    for _ in range(6):
        await asyncio.sleep(0)
        if task._fut_waiter.done():  # type: ignore[attr-defined]
            break
    task.cancel()
    await turn()
    assert task.cancelled()
    assert process.cancelled == 1
    assert bench.replica.in_system == 0


async def test_a_stream_that_was_read_to_its_end_stays_at_its_end() -> None:
    process = Process()
    bench = Bench(process, execution=STREAMING)
    process.parts.put_nowait(part(1))
    process.parts.put_nowait(None)
    response = await bench.ask(1)
    assert len([each async for each in response]) == 1
    assert [each async for each in response] == []
    assert repr(response._parts) == "<PartStream 1 ahead, error=None>"


async def test_an_answer_that_is_complete_frees_its_place_before_it_is_read() -> None:
    process = Process()
    bench = Bench(process, execution=STREAMING)
    for value in range(STREAM_PARTS_AHEAD - 1):
        process.parts.put_nowait(part(value))
    process.parts.put_nowait(None)
    response = await bench.ask(1)
    await turn()
    assert bench.replica.in_system == 0
    assert len([each async for each in response]) == STREAM_PARTS_AHEAD - 1


async def test_a_stream_goes_on_beyond_the_deadline_of_its_first_part(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(instances, "STREAM_PAUSE_S", 0.2)
    process = Process()
    bench = Bench(process, execution=STREAMING)
    process.parts.put_nowait(part(0))
    response = await bench.ask(1, timeout_s=0.03)
    read: list[ResponsePart] = []
    reading = asyncio.ensure_future(read_into(read, response))
    for value in range(1, 9):
        await asyncio.sleep(0.04)
        process.parts.put_nowait(part(value))
    await turn()
    assert len(read) == 9
    with pytest.raises(DeadlineExceeded, match=r"no further part of its answer for 0\.2 s"):
        await reading  # the model hangs
    assert bench.replica.in_system == 0


async def test_a_slow_reader_slows_the_model_and_a_pause_ends_the_stream(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(instances, "STREAM_PAUSE_S", 0.03)
    process = Process()
    bench = Bench(process, execution=STREAMING)
    for value in range(40):
        process.parts.put_nowait(part(value))
    response = await bench.ask(1, timeout_s=0.03)
    await turn()
    assert process.parts.qsize() > 20
    await asyncio.sleep(0.04)
    assert bench.replica.in_system == 0
    read: list[ResponsePart] = []
    with pytest.raises(DeadlineExceeded, match="not read"):
        await read_into(read, response)
    assert 0 < len(read) < 20


async def read_into(parts: list[ResponsePart], response: InferResponse) -> None:
    async for each in response:
        parts.append(each)  # noqa: PERF401 - what came before an error counts


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["ask", "ask", "ask", "bad", "run", "cancel"]),
        st.integers(1, 3),
        st.integers(1, 2),
    ),
    max_size=30,
)


@settings(deadline=None, derandomize=True, max_examples=60)
@given(STEPS, st.booleans(), st.integers(1, 2))
def test_each_request_is_answered_once_with_its_own_rows(
    steps: list[tuple[str, int, int]], ordered: bool, slots: int
) -> None:
    """Arrivals, failures and cancellations in any order: nobody is lost, and nobody gets another's rows."""

    async def scenario() -> None:
        batching = DynamicBatching(preserve_ordering=ordered)
        bench = Bench(execution=Execution(batching=batching), slots=slots)
        asked: dict[int, tuple[asyncio.Task[Any], list[float], bool]] = {}
        for number, (what, rows, columns) in enumerate(steps):
            if what in ("ask", "bad"):
                values = [float(10 * number + row) for row in range(rows)]
                if what == "bad":
                    values[-1] = -1.0
                task = bench.ask(*values, columns=columns)
                asked[number] = (task, [2 * value for value in values], what == "bad")
                await asyncio.sleep(0)
            elif what == "run" and bench.workers.work:
                await bench.workers.run_one()
            elif what == "cancel" and asked:
                asked[max(asked)][0].cancel()
                await turn()
        await bench.workers.run_all()
        await bench.replica.drained()
        for task, wanted, bad in asked.values():
            [outcome] = await asyncio.gather(task, return_exceptions=True)
            if isinstance(outcome, asyncio.CancelledError):
                continue
            if bad:
                assert isinstance(outcome, InferenceFailed)
            else:
                assert not isinstance(outcome, BaseException)
                assert numbers(outcome) == wanted
        assert bench.replica.in_system == 0

    logging.getLogger("asyncio").setLevel(logging.ERROR)
    asyncio.run(scenario())


@pytest.mark.parametrize("shape", [(-1, 1), (-1, -1)])
async def test_a_request_without_its_optional_input_runs_alone(shape: tuple[int, ...]) -> None:
    bench = Bench(
        execution=Execution(batching=DynamicBatching(), optional_inputs=("x",)),
        inputs=(TensorSpec("x", DataType.FP32, shape),),
    )
    bench.models[0].run = lambda inputs, _outputs: (
        from_numpy("y", np.full((1, 1), len(inputs), "f4")),
    )
    empty = InferRequest("m", ())
    tasks = [asyncio.ensure_future(bench.replica.infer(empty)) for _ in range(3)]
    await bench.workers.run_all()
    assert [numbers(await each) for each in tasks] == [[0], [0], [0]]


async def test_a_request_that_does_not_fit_is_refused_before_anything() -> None:
    bench = Bench(max_batch_size=2)
    with pytest.raises(InvalidRequest, match="max_batch_size 2"):
        await bench.replica.infer(request(1, 2, 3))
    with pytest.raises(DeadlineExceeded):
        await bench.replica.infer(request(1, timeout_s=0))
