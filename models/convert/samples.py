"""Inputs on which an original and its result are compared: from a file, or made up."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from meshnode.errors import ModelError, UsageError
from meshnode.limits import (
    MAX_ANSWERS_BYTES,
    MAX_SAMPLE_ELEMENTS,
    MAX_SAMPLE_FILE_BYTES,
    MAX_SAMPLE_ROWS,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_FREE_SIZE = 4  # of a free dimension that is not the batch, where nothing tells it
_INTEGER_END = 10  # made-up indices are small: most vocabularies have more


@dataclass(frozen=True, slots=True)
class InputForm:
    """One input.

    Attributes:
        name: Its name.
        datatype: NumPy's name of its type, such as `float32`.
        shape: Full shape; -1 where any size is accepted.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]


def read_forms(job: Mapping[str, Any]) -> list[InputForm]:
    """Return the inputs that the caller described with `--input`."""
    return [
        InputForm(name, datatype, tuple(shape)) for name, datatype, shape in job.get("inputs") or ()
    ]


def read_sample(path: str) -> dict[str, Any]:
    """Read an `.npz` or `.npy` file of arrays; none of it is code.

    Raises:
        UsageError: if it cannot be read, is too large, or holds objects.
    """
    file = Path(path)
    try:
        if file.stat().st_size > MAX_SAMPLE_FILE_BYTES:
            raise UsageError(
                f"{path} is larger than {MAX_SAMPLE_FILE_BYTES} bytes; take fewer rows"
            )
        loaded = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UsageError(
            f"{path} cannot be read as a file of NumPy arrays (.npz): {error}"
        ) from None
    if isinstance(loaded, np.ndarray):
        return {"": loaded[:MAX_SAMPLE_ROWS]}
    with loaded:
        try:
            arrays = {name: loaded[name] for name in loaded.files}
        except ValueError as error:
            raise UsageError(f"{path} holds something else than arrays: {error}") from None
    return {
        name: array[:MAX_SAMPLE_ROWS] if array.ndim else array for name, array in arrays.items()
    }


def forms_of_sample(path: str, names: Sequence[str]) -> list[InputForm]:
    """Return inputs that have a sample's types and shapes, with the first dimension free.

    Args:
        path: The sample.
        names: Names of the inputs in order; empty for those of the sample.
    """
    arrays = _by_name(read_sample(path), names, path)
    return [
        InputForm(name, str(array.dtype), (-1, *array.shape[1:]) if array.ndim else ())
        for name, array in arrays.items()
    ]


def sample_for(job: Mapping[str, Any], forms: Sequence[InputForm]) -> dict[str, Any]:
    """Return arrays for a model's inputs: those of the job's sample, else made-up ones.

    Raises:
        UsageError: if the sample lacks an input or does not fit.
    """
    path = job.get("sample")
    if not path:
        return made_up(forms, int(job.get("rows", 64)), int(job.get("seed", 0)))
    arrays = _by_name(read_sample(path), [form.name for form in forms], path)
    return {form.name: _fitted(form, arrays[form.name], path) for form in forms}


def made_up(forms: Sequence[InputForm], rows: int, seed: int) -> dict[str, Any]:
    """Return arrays of numbers from a normal distribution, or of small integers.

    Args:
        forms: The inputs.
        rows: Size of a free first dimension.
        seed: Decides every draw.

    Raises:
        UsageError: if an input is of text, or too large to be made up.
    """
    drawing = np.random.default_rng(seed)
    arrays = {}
    for form in forms:
        shape = tuple(
            size if size >= 0 else (rows if at == 0 else _FREE_SIZE)
            for at, size in enumerate(form.shape)
        )
        if int(np.prod(shape, dtype=np.int64)) > MAX_SAMPLE_ELEMENTS:
            raise UsageError(
                f"input {form.name!r} of shape {list(shape)} is too large to be made up"
            )
        kind = np.dtype(form.datatype)
        if kind.kind == "f":
            arrays[form.name] = drawing.standard_normal(shape).astype(kind)
        elif kind.kind in "iu":
            arrays[form.name] = drawing.integers(0, _INTEGER_END, shape).astype(kind)
        elif kind.kind == "b":
            arrays[form.name] = drawing.integers(0, 2, shape).astype(bool)
        else:
            raise UsageError(f"input {form.name!r} is {form.datatype}; give a sample with --sample")
    return arrays


def _by_name(arrays: dict[str, Any], names: Sequence[str], path: str) -> dict[str, Any]:
    """Order a sample's arrays as the inputs are; unnamed ones (`arr_0`, one alone) go by position."""
    if not names:
        return arrays
    if all(name in arrays for name in names):
        return {name: arrays[name] for name in names}
    unnamed = all(key == "" or key.startswith("arr_") for key in arrays)
    if len(arrays) >= len(names) and (unnamed or (len(names) == 1 and len(arrays) == 1)):
        return dict(zip(names, arrays.values(), strict=False))
    raise UsageError(
        f"{path} has the arrays {', '.join(map(repr, arrays))}, but the model's inputs are "
        f"{', '.join(map(repr, names))}; give the arrays these names"
    )


def _fitted(form: InputForm, array: Any, path: str) -> Any:
    wanted = np.dtype(form.datatype)
    if array.dtype != wanted:
        if not np.can_cast(array.dtype, wanted, "same_kind"):
            raise UsageError(f"{path}: input {form.name!r} is {form.datatype}, not {array.dtype}")
        array = array.astype(wanted)
    fits = len(array.shape) == len(form.shape) and all(
        want in (-1, got) or at == 0
        for at, (want, got) in enumerate(zip(form.shape, array.shape, strict=True))
    )
    if not fits:
        raise UsageError(
            f"{path}: input {form.name!r} has shape {list(form.shape)} (-1: any), not "
            f"{list(array.shape)}"
        )
    return array


def save_arrays(path: str, inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
    """Write inputs and outputs by position, for `load_arrays`.

    Raises:
        ModelError: if an output is no array of numbers or text.
    """
    arrays = {f"in{at}": array for at, array in enumerate(inputs)}
    for at, output in enumerate(outputs):
        array = np.asarray(output)
        if array.dtype.kind == "O":
            array = array.astype(str)
        if array.dtype.kind not in "fiubUS":
            raise ModelError(f"output {at} of the model is {array.dtype}, not numbers or text")
        arrays[f"out{at}"] = array
    np.savez(path, **arrays)


def load_arrays(path: str | Path) -> tuple[list[Any], list[Any]]:
    """Read what `save_arrays` wrote: inputs, outputs.

    Raises:
        ModelError: if they are larger than a sample's answers can be; a model's code may have written them.
    """
    with zipfile.ZipFile(path) as archive:
        if sum(each.file_size for each in archive.infolist()) > MAX_ANSWERS_BYTES:
            raise ModelError(
                f"the model's answers take more than {MAX_ANSWERS_BYTES} bytes; compare on fewer rows"
            )
    with np.load(path, allow_pickle=False) as loaded:
        inputs = [loaded[f"in{at}"] for at in range(sum(n.startswith("in") for n in loaded.files))]
        count = sum(name.startswith("out") for name in loaded.files)
        return inputs, [loaded[f"out{at}"] for at in range(count)]
