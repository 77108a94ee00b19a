from __future__ import annotations

import math

import msgspec
import pytest

from meshnode.models.manifest import TensorSpec
from meshnode.models.serving.measure import RunTime, first_runs, has_free_sizes, unit_counter
from meshnode.types import DataType, Tensor

from .conftest import fake_manifest


def tensor(name: str, *shape: int) -> Tensor:
    return Tensor(name, DataType.FP32, shape, b"")


def test_the_time_is_unknown_until_it_was_measured() -> None:
    run_time = RunTime()
    assert run_time.expected_s(1) == math.inf
    assert repr(run_time) == "<RunTime unit=? request=0.0 µs>"
    run_time.observe(100e-6, 10)
    assert run_time.expected_s(3) == pytest.approx(30e-6)
    assert repr(run_time) == "<RunTime unit=10.0 µs request=100.0 µs>"


def test_a_disturbed_run_hardly_counts_and_a_lasting_change_is_followed() -> None:
    run_time = RunTime()
    run_time.observe(5e-6, 1)
    run_time.observe(50e-3, 1)
    assert run_time.expected_s(1) == pytest.approx(6.5e-6)
    for _ in range(60):
        run_time.observe(1e-3, 1)
    assert run_time.expected_s(1) == pytest.approx(1e-3, rel=0.1)


def test_an_estimate_of_zero_can_grow() -> None:
    run_time = RunTime()
    run_time.observe(0, 1)
    run_time.observe(1, 1)
    assert run_time.expected_s(1) > 0


@pytest.mark.parametrize(
    ("shapes", "sizes", "units"),
    [
        ({"x": (-1, 3)}, {"x": (5, 3)}, 5),
        ({"x": (-1, 3)}, {"x": (0, 3)}, 1),
        ({"x": (4, 3)}, {"x": (4, 3)}, 1),
        ({"x": (-1, 3), "k": (7,)}, {"k": (7,), "x": (5, 3)}, 5),
        ({"x": (-1,), "y": (-1,)}, {"x": (5,), "y": (6,)}, 6),
        ({"x": (-1, 3, -1)}, {"x": (5, 3, 7)}, 35),
        ({"x": (1, -1), "k": ()}, {"x": (1, 9), "k": ()}, 9),
        ({}, {}, 1),
    ],
)
def test_units_are_the_sizes_of_dynamic_dimensions(
    shapes: dict[str, tuple[int, ...]], sizes: dict[str, tuple[int, ...]], units: int
) -> None:
    specs = tuple(TensorSpec(name, DataType.FP32, shape) for name, shape in shapes.items())
    manifest = msgspec.structs.replace(fake_manifest(), inputs=specs)
    count = unit_counter(manifest)
    assert count([tensor(name, *shape) for name, shape in sizes.items()]) == units
    assert has_free_sizes(manifest) is any(-1 in shape[1:] for shape in shapes.values())


def test_the_time_is_believed_after_the_runs_that_are_needed() -> None:
    run_time = RunTime(runs_needed=2)
    run_time.observe(1e-6, 1)
    assert run_time.expected_s(1) == math.inf
    run_time.observe(1e-6, 1)
    assert run_time.expected_s(1) == pytest.approx(1e-6)


@pytest.mark.parametrize(
    ("inputs", "outputs", "runs"),
    [
        ([((-1, 64), DataType.FP32)], [(-1,), (-1, 10)], 1),  # digits
        ([((4,), DataType.FP32)], [(4,)], 1),
        ([((1, 3), DataType.FP32)], [(-1,)], 4),  # the detections in one picture
        ([((-1, 3), DataType.FP32)], [(-1, -1)], 4),
        ([((2, 2), DataType.FP32), ((2,), DataType.INT64)], [(2, 2)], 4),
        ([((), DataType.UINT8)], [(1,)], 4),
        ([((-1, 8), DataType.INT64)], [(-1, 2)], 1),  # tokens
    ],
)
def test_models_whose_sizes_do_not_tell_the_work_need_more_runs(
    inputs: list[tuple[tuple[int, ...], DataType]], outputs: list[tuple[int, ...]], runs: int
) -> None:
    manifest = msgspec.structs.replace(
        fake_manifest(),
        inputs=tuple(
            TensorSpec(str(n), datatype, shape) for n, (shape, datatype) in enumerate(inputs)
        ),
        outputs=tuple(TensorSpec(str(n), DataType.FP32, shape) for n, shape in enumerate(outputs)),
    )
    assert first_runs(manifest) == runs
