"""What a version has done, counted as Triton counts it."""

from __future__ import annotations

from meshnode.limits import MAX_COUNTED_BATCH_SIZES
from meshnode.models.serving.statistics import Duration, Statistics


def test_nothing_was_done_at_first() -> None:
    counted = Statistics().snapshot()
    assert counted.success == counted.queue == Duration(0, 0)
    assert counted.batches == ()
    assert counted.last_inference_s == 0


def test_joined_requests_share_an_execution_and_have_its_times_each() -> None:
    statistics = Statistics()
    statistics.ran(3, input_s=1e-6, infer_s=2e-6, output_s=3e-6, ended=7.0)
    for _ in range(2):
        statistics.answered(10e-6, 4e-6, (1e-6, 2e-6, 3e-6))
    statistics.ran_alone(1, 5e-6, 8.0)
    counted = statistics.snapshot()
    assert counted.success == Duration(3, 25_000)
    assert counted.queue == Duration(3, 8_000)
    assert counted.compute_infer == Duration(3, 9_000)
    assert (counted.inference_count, counted.execution_count) == (4, 2)
    assert counted.last_inference_s == 8.0
    assert [each.compute_infer for each in counted.batches] == [
        Duration(1, 5_000),
        Duration(1, 2_000),
    ]
    assert repr(statistics) == "<Statistics 3 answered>"


def test_no_caller_s_choice_of_sizes_fills_the_memory() -> None:
    statistics = Statistics()
    for rows in range(1, 5 * MAX_COUNTED_BATCH_SIZES):
        statistics.ran_alone(rows, 1e-6, 0.0)
        statistics.ran(rows, input_s=0, infer_s=1e-6, output_s=0, ended=0.0)
    counted = statistics.snapshot()
    assert len(counted.batches) <= MAX_COUNTED_BATCH_SIZES + 12
    assert counted.execution_count == 2 * (5 * MAX_COUNTED_BATCH_SIZES - 1)
