"""What every runtime must do alike, whatever is behind it."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
import pytest

from meshnode.errors import InferenceFailed, ModelError
from meshnode.hardware.memory import give_memory_back
from meshnode.models.manifest import TensorSpec
from meshnode.models.runtimes.base import Opening
from meshnode.models.tensors import pack_strings
from meshnode.types import DataType, Tensor

from .kinds import KINDS, Kind

if TYPE_CHECKING:
    from pathlib import Path

    from meshnode.models.runtimes.base import LoadedModel

X = TensorSpec("x", DataType.FP32, (-1, 2))
Y = TensorSpec("y", DataType.FP32, (-1, 2))
PAIR = tuple(TensorSpec(name, DataType.INT32, (-1, 2)) for name in ("a", "b"))
BOTH = tuple(TensorSpec(name, DataType.INT32, (-1, 2)) for name in ("sum", "difference"))
MIB = 2**20


@pytest.fixture(params=KINDS, ids=lambda kind: kind.name)
def kind(request: pytest.FixtureRequest) -> Kind:
    made: Kind = request.param
    return made


def opened(
    kind: Kind,
    folder: Path,
    content: bytes,
    inputs: tuple[TensorSpec, ...] = (X,),
    outputs: tuple[TensorSpec, ...] = (Y,),
    **options: Any,
) -> LoadedModel:
    (folder / kind.entry).write_bytes(content)
    return kind.open(
        Opening(folder=folder, entry=kind.entry, inputs=inputs, outputs=outputs, **options)
    )


def of(name: str, array: Any, datatype: DataType = DataType.FP32) -> Tensor:
    return Tensor(name, datatype, array.shape, array.tobytes())


def values(tensor: Tensor, dtype: Any = np.float32) -> list[Any]:
    return np.frombuffer(tensor.data, dtype).reshape(tensor.shape).tolist()  # type: ignore[no-any-return]


def test_every_element_type_comes_back_bit_by_bit(kind: Kind, tmp_path: Path) -> None:
    for datatype in kind.types:
        size_bytes = datatype.size_bytes
        assert size_bytes is not None
        spec = TensorSpec("x", datatype, (-1, 2)), TensorSpec("y", datatype, (-1, 2))
        model = opened(kind, tmp_path, kind.identity(datatype), spec[:1], spec[1:])
        assert model.inputs == spec[:1], datatype
        assert model.outputs == spec[1:], datatype
        data = bytes(each % 2 for each in range(6 * size_bytes))  # BOOL has no other bytes
        (answer,) = model.run([Tensor("x", datatype, (3, 2), data)], ())
        assert (answer.name, answer.datatype, answer.shape) == ("y", datatype, (3, 2))
        assert bytes(answer.data) == data, datatype
        model.close()


def test_an_open_dimension_takes_any_size_one_after_the_other(kind: Kind, tmp_path: Path) -> None:
    model = opened(kind, tmp_path, kind.identity())
    for rows in (1, 3, 100, 2):
        array = np.arange(2 * rows, dtype=np.float32).reshape(rows, 2)
        (answer,) = model.run([of("x", array)], ())
        assert values(answer) == array.tolist()


def test_outputs_come_in_the_order_that_was_asked_for(kind: Kind, tmp_path: Path) -> None:
    model = opened(kind, tmp_path, kind.add_and_subtract(), PAIR, BOTH)
    a, b = np.array([[5, 6]], np.int32), np.array([[1, 2]], np.int32)
    given = [of("b", b, DataType.INT32), of("a", a, DataType.INT32)]
    every = model.run(given, ())
    assert [each.name for each in every] == ["sum", "difference"]
    turned = model.run(given, ("difference", "sum"))
    assert [values(each, np.int32) for each in turned] == [[[4, 4]], [[6, 8]]]
    (one,) = model.run(given, ("difference",))
    assert one.name == "difference"


def test_strings_come_back_whatever_their_length(kind: Kind, tmp_path: Path) -> None:
    specs = TensorSpec("x", DataType.BYTES, (-1,)), TensorSpec("y", DataType.BYTES, (-1,))
    model = opened(kind, tmp_path, kind.words(), specs[:1], specs[1:])
    data = pack_strings(["", "é", "a" * 5000])
    (answer,) = model.run([Tensor("x", DataType.BYTES, (3,), data)], ())
    assert (answer.datatype, answer.shape) == (DataType.BYTES, (3,))
    assert bytes(answer.data) == data


def test_what_is_not_a_number_passes_through(kind: Kind, tmp_path: Path) -> None:
    model = opened(kind, tmp_path, kind.identity())
    odd = np.array([[np.nan, np.inf], [-np.inf, -0.0]], np.float32)
    (answer,) = model.run([of("x", odd)], ())
    assert bytes(answer.data) == odd.tobytes()


def test_a_failed_run_is_told_and_the_next_one_works(kind: Kind, tmp_path: Path) -> None:
    specs = TensorSpec("x", DataType.INT32, (-1,)), TensorSpec("y", DataType.INT32, (-1,))
    model = opened(kind, tmp_path, kind.quotient(), specs[:1], specs[1:])
    good = of("x", np.array([3, 4], np.int32), DataType.INT32)
    assert values(model.run([good], ())[0], np.int32) == [1, 1]
    with pytest.raises(InferenceFailed, match=r"the model failed: .*(Div|DIV|ZeroDivision)"):
        model.run([of("x", np.zeros(3, np.int32), DataType.INT32)], ())
    assert values(model.run([good], ())[0], np.int32) == [1, 1]


def test_runs_at_once_get_their_own_answers(kind: Kind, tmp_path: Path) -> None:
    if kind.name == "torch":
        pytest.skip("a process of its own takes one batch at a time")
    model = opened(kind, tmp_path, kind.add_and_subtract(), PAIR, BOTH)
    wrong: list[int] = []

    def ask(number: int) -> None:
        array = np.full((1 + number, 2), number, np.int32)
        given = [of("a", array, DataType.INT32), of("b", array, DataType.INT32)]
        answers = [values(model.run(given, ("sum",))[0], np.int32) for _ in range(50)]
        wrong.extend(number for answer in answers if answer != (2 * array).tolist())

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_the_device_is_shown(kind: Kind, tmp_path: Path) -> None:
    model = opened(kind, tmp_path, kind.identity(), device="cpu", threads=2)
    assert model.device == "cpu"
    assert model.run([of("x", np.ones((1, 2), np.float32))], ())


def test_memory_is_given_back_when_a_model_is_closed(kind: Kind, tmp_path: Path) -> None:
    """Fifteen times 8 MiB of weights, one after the other, take no more than a few of them."""
    count = 2 * MIB
    specs = TensorSpec("x", DataType.FP32, (1, count)), TensorSpec("y", DataType.FP32, (1, count))
    content = kind.weighty(count)
    given = of("x", np.zeros((1, count), np.float32))

    def once() -> None:
        model = opened(kind, tmp_path, content, specs[:1], specs[1:])
        model.run([given], ())
        model.close()

    def resident_bytes() -> int:
        give_memory_back()
        return int(psutil.Process().memory_info().rss)

    for _ in range(3):
        once()
    before = resident_bytes()
    for _ in range(15):
        once()
    assert resident_bytes() - before < 60 * MIB


def test_a_missing_file_is_named(kind: Kind, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=rf"'{kind.entry}' is missing in"):
        kind.open(Opening(folder=tmp_path, entry=kind.entry, inputs=(X,), outputs=(Y,)))


@pytest.mark.parametrize("content", [b"", b"x", b"no model at all", bytes(1000)])
def test_what_is_no_model_is_refused(kind: Kind, tmp_path: Path, content: bytes) -> None:
    with pytest.raises(ModelError, match=f"'{kind.entry}'"):
        opened(kind, tmp_path, content)


def test_a_truncated_file_is_refused(kind: Kind, tmp_path: Path) -> None:
    content = kind.weighty(1000)
    for share in (0.1, 0.5, 0.9):
        with pytest.raises(ModelError, match=f"'{kind.entry}'"):
            opened(kind, tmp_path, content[: int(len(content) * share)])
