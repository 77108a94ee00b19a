from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from meshnode.errors import ModelError, UsageError
from meshnode.models.convert.samples import (
    InputForm,
    forms_of_sample,
    load_arrays,
    made_up,
    read_sample,
    sample_for,
    save_arrays,
)

if TYPE_CHECKING:
    from pathlib import Path

IMAGE = InputForm("image", "float32", (-1, 2, -1))


def written(path: Path, *unnamed: Any, **arrays: Any) -> str:
    np.savez(path / "s.npz", *unnamed, **arrays)
    return str(path / "s.npz")


def test_made_up_inputs_are_the_same_for_the_same_seed() -> None:
    forms = [IMAGE, InputForm("n", "int64", (-1,)), InputForm("mask", "bool", (3,))]
    first, again = made_up(forms, 5, 1), made_up(forms, 5, 1)
    assert {name: (each.shape, str(each.dtype)) for name, each in first.items()} == {
        "image": ((5, 2, 4), "float32"),
        "n": ((5,), "int64"),
        "mask": ((3,), "bool"),
    }
    assert all(np.array_equal(first[name], again[name]) for name in first)


def test_text_and_giants_are_not_made_up() -> None:
    with pytest.raises(UsageError, match="give a sample with --sample"):
        made_up([InputForm("words", "str", (-1,))], 5, 0)
    with pytest.raises(UsageError, match="too large to be made up"):
        made_up([InputForm("x", "float32", (-1, 1 << 40))], 5, 0)


def test_a_sample_is_taken_by_name_and_converted(tmp_path: Path) -> None:
    path = written(tmp_path, image=np.ones((3, 2, 7)), other=np.zeros(1))
    found = sample_for({"sample": path}, [IMAGE])
    assert (found["image"].shape, str(found["image"].dtype)) == ((3, 2, 7), "float32")


def test_one_array_alone_needs_no_name(tmp_path: Path) -> None:
    path = written(tmp_path, np.ones((3, 2, 7), np.float32))
    assert sample_for({"sample": path}, [IMAGE])["image"].shape == (3, 2, 7)
    assert forms_of_sample(path, ["x"]) == [InputForm("x", "float32", (-1, 2, 7))]


def test_a_sample_with_other_names_types_or_shapes_is_refused(tmp_path: Path) -> None:
    two = [IMAGE, InputForm("n", "int64", (-1,))]
    with pytest.raises(
        UsageError, match="has the arrays 'a', 'b', but the model's inputs are 'image'"
    ):
        sample_for({"sample": written(tmp_path, a=np.ones(1), b=np.ones(1))}, two)
    with pytest.raises(UsageError, match="is int64, not float64"):
        sample_for({"sample": written(tmp_path, image=np.ones((1, 2, 1)), n=np.ones(1))}, two)
    with pytest.raises(UsageError, match=r"shape \[-1, 2, -1\] \(-1: any\), not \[1, 3, 1\]"):
        sample_for({"sample": written(tmp_path, image=np.ones((1, 3, 1)))}, [IMAGE])


def test_a_sample_that_is_a_pickle_is_not_loaded(tmp_path: Path) -> None:
    path = written(tmp_path, x=np.array([{}], object))
    with pytest.raises(UsageError, match="something else than arrays"):
        read_sample(path)
    (tmp_path / "no.npz").write_bytes(b"no archive")
    with pytest.raises(UsageError, match="cannot be read as a file of NumPy arrays"):
        read_sample(str(tmp_path / "no.npz"))


def test_answers_travel_between_processes_as_arrays(tmp_path: Path) -> None:
    path = str(tmp_path / "a.npz")
    save_arrays(path, [np.arange(3)], [[1.5, 2.5], np.array(["a", "bc"], object)])
    inputs, outputs = load_arrays(path)
    assert [each.tolist() for each in inputs] == [[0, 1, 2]]
    assert [each.tolist() for each in outputs] == [[1.5, 2.5], ["a", "bc"]]


def test_an_output_that_is_no_array_is_told(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="output 0 of the model is complex128"):
        save_arrays(str(tmp_path / "a.npz"), [], [np.array([1j])])
