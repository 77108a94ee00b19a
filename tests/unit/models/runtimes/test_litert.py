"""TensorFlow Lite: the trial in another process, signatures, quantised tensors, what is missing."""

from __future__ import annotations

import importlib.util
import subprocess
from typing import TYPE_CHECKING

import numpy as np
import pytest

from meshnode.errors import InferenceFailed, ModelError
from meshnode.models.execution import Execution
from meshnode.models.manifest import TensorSpec
from meshnode.models.runtimes import litert, litert_session
from meshnode.models.runtimes.base import Opening
from meshnode.models.runtimes.litert import LitertRuntime
from meshnode.models.tensors import pack_strings
from meshnode.types import DataType, Tensor

from . import tflite
from .kinds import Untried

if TYPE_CHECKING:
    from pathlib import Path


def opening(folder: Path, content: bytes, execution: Execution | None = None) -> Opening:
    (folder / "m.tflite").write_bytes(content)
    return Opening(folder=folder, entry="m.tflite", execution=execution or Execution())


def test_a_file_is_tried_out_in_another_process_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = LitertRuntime()
    described = runtime.describe(opening(tmp_path, tflite.add_and_subtract()))
    assert [spec.name for spec in described.inputs] == ["a", "b"]
    assert [spec.name for spec in described.outputs] == ["sum", "difference"]

    def none(*_: object, **__: object) -> None:
        raise AssertionError

    monkeypatch.setattr(subprocess, "run", none)
    model = runtime.load(Opening(folder=tmp_path, entry="m.tflite"))
    assert model.device == "cpu"


def test_a_file_that_crashes_the_interpreter_costs_a_process_and_no_more(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="took the process that tried it out with it"):
        LitertRuntime().load(opening(tmp_path, tflite.crash()))


def test_a_damaged_file_is_refused_with_the_interpreters_reason(tmp_path: Path) -> None:
    content = tflite.weighty(1000)
    with pytest.raises(ModelError, match="not a valid Flatbuffer"):
        LitertRuntime().load(opening(tmp_path, content[: len(content) // 2]))


def test_a_file_that_hangs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(litert, "LITERT_TRIAL_TIMEOUT_S", 0.01)
    with pytest.raises(ModelError, match=r"did not finish a first run within 0\.01 s"):
        LitertRuntime().load(opening(tmp_path, tflite.identity()))


def test_names_are_those_of_the_signature(tmp_path: Path) -> None:
    model = Untried().load(opening(tmp_path, tflite.identity()))
    assert [spec.name for spec in (*model.inputs, *model.outputs)] == ["x", "y"]
    other = Execution(parameters=(("signature", "other"),))
    with pytest.raises(ModelError, match="no signature 'other'; it has 'serving_default'"):
        Untried().load(opening(tmp_path, tflite.identity(), other))


def test_quantised_tensors_are_the_integers_that_they_are(tmp_path: Path) -> None:
    content = tflite.identity(tflite.TYPES.INT8, scale=0.5)
    model = Untried().load(opening(tmp_path, content))
    assert model.inputs == (TensorSpec("x", DataType.INT8, (-1, 2)),)
    (answer,) = model.run([Tensor("x", DataType.INT8, (1, 2), b"\x80\x7f")], ())
    assert bytes(answer.data) == b"\x80\x7f"


def test_strings_may_hold_any_bytes(tmp_path: Path) -> None:
    model = Untried().load(opening(tmp_path, tflite.words()))
    words = Tensor("words", DataType.BYTES, (2,), pack_strings([b"\xff\x00", b"b"]))
    which = Tensor("which", DataType.INT32, (3,), np.array([1, 0, 0], np.int32).tobytes())
    (answer,) = model.run([words, which], ())
    assert bytes(answer.data) == pack_strings([b"b", b"\xff\x00", b"\xff\x00"])


def test_after_a_shape_that_does_not_fit_the_next_run_works(tmp_path: Path) -> None:
    model = Untried().load(opening(tmp_path, tflite.add_and_subtract((-1, -1))))

    def tensor(name: str, *shape: int) -> Tensor:
        return Tensor(name, DataType.INT32, shape, np.ones(shape, np.int32).tobytes())

    with pytest.raises(InferenceFailed):
        model.run([tensor("a", 2, 3), tensor("b", 3, 5)], ())
    assert model.run([tensor("a", 2, 3), tensor("b", 2, 3)], ())[0].shape == (2, 3)


def test_types_that_cannot_be_sent_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="input 'x' is complex64, which cannot be served"):
        Untried().load(opening(tmp_path, tflite.identity(tflite.TYPES.COMPLEX64)))


def test_an_edge_tpu_that_is_not_there_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    asked = Execution(accelerators=(("edgetpu", ()),))
    model = Untried().load(opening(tmp_path, tflite.identity(), asked))
    assert model.device == "cpu"
    assert "asks for an Edge TPU, which cannot be used" in caplog.text


def test_without_litert_the_error_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = opening(tmp_path, tflite.identity())
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(ModelError, match=r"pip install 'meshnode\[litert\]'"):
        LitertRuntime().load(given)
    assert "meshnode[litert]" in LitertRuntime().capability().missing


def test_a_trial_that_cannot_begin_is_not_taken_for_a_crash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(litert, "_BOOT", "import nothing_of_this_name")
    with pytest.raises(ModelError, match="tries it out failed: ModuleNotFoundError"):
        LitertRuntime().load(opening(tmp_path, tflite.identity()))


def test_a_file_that_is_overwritten_or_cut_short_serves_on_as_it_was(tmp_path: Path) -> None:
    """`cp` writes into the file that serves: mapped, it would end the process or give other answers."""
    given = opening(tmp_path, tflite.weighty(300_000))
    model = Untried().load(given)
    inputs = [
        Tensor(spec.name, spec.datatype, shape, np.ones(shape, np.float32).tobytes())
        for spec in model.inputs
        for shape in [tuple(max(1, size) for size in spec.shape)]
    ]
    before = [bytes(each.data) for each in model.run(inputs, ())]
    place = tmp_path / "m.tflite"
    with place.open("r+b") as stream:
        stream.write(b"\xff" * place.stat().st_size)
    assert [bytes(each.data) for each in model.run(inputs, ())] == before
    with place.open("r+b") as stream:
        stream.truncate(10)
    assert [bytes(each.data) for each in model.run(inputs, ())] == before


def test_instances_of_a_file_share_its_bytes_and_free_them(tmp_path: Path) -> None:
    given = opening(tmp_path, tflite.identity())
    runtime = Untried()
    models = [runtime.load(given), runtime.load(given)]
    assert len({id(model._content) for model in models}) == 1
    for model in models:
        model.close()
    assert not runtime._contents


def test_a_file_that_is_too_large_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(litert, "MAX_LITERT_FILE_BYTES", 100)
    with pytest.raises(ModelError, match="more than 100 bytes"):
        Untried().load(opening(tmp_path, tflite.identity()))


def test_an_error_tells_itself_and_none_of_the_earlier_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The interpreter keeps the text of all its errors, and tells all of them each time."""
    monkeypatch.setattr(litert_session, "MAX_LITERT_ERRORS_LENGTH", 300)
    model = Untried().load(opening(tmp_path, tflite.quotient()))
    texts = []
    for _ in range(6):
        with pytest.raises(InferenceFailed) as failed:
            model.run([Tensor("x", DataType.INT32, (1,), bytes(4))], ())
        texts.append(str(failed.value))
    assert len(set(texts)) == 1
    assert texts[0].count("failed to invoke") == 1
    assert model._errors.told <= 300
    (answer,) = model.run([Tensor("x", DataType.INT32, (1,), b"\x02\0\0\0")], ())
    assert bytes(answer.data) == b"\x01\0\0\0"


@pytest.mark.parametrize(("is_sent", "by_values"), [(True, True), (False, False)])
def test_a_size_that_a_client_sends_is_never_run_on_the_loop(
    tmp_path: Path, is_sent: bool, by_values: bool
) -> None:
    model = Untried().load(opening(tmp_path, tflite.filled(is_sent=is_sent)))
    assert model.works_by_values is by_values
