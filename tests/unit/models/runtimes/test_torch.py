"""TorchScript and exported programs: what they take and give, which argument is which, their own process."""

from __future__ import annotations

import asyncio
import importlib.util
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from meshnode.errors import InferenceFailed, InvalidRequest, ModelError, NotServing
from meshnode.models.execution import ControlInput, ControlKind, Execution, SequenceBatching
from meshnode.models.manifest import TensorSpec
from meshnode.models.runtimes.base import Environment, Opening
from meshnode.models.runtimes.torch import TorchRuntime
from meshnode.models.workers.adaptor import WorkerRequest, WorkerSurroundings
from meshnode.models.workers.settings import WorkerSettings
from meshnode.models.workers.torch import TorchAdaptor, bind, open_adaptor
from meshnode.types import DataType, InferRequest, InferResponse, Tensor

from . import torch_files

if TYPE_CHECKING:
    from pathlib import Path

FP32 = DataType.FP32


def adaptor(folder: Path, content: bytes, entry: str = "model.pt", **options: Any) -> TorchAdaptor:
    (folder / entry).write_bytes(content)
    opening = Opening(folder=folder, entry=entry, **options)

    def nobody(call: object) -> Any:
        raise AssertionError(call)

    return open_adaptor(WorkerSurroundings(opening, folder, None, nobody))


def spec(name: str, *shape: int, datatype: DataType = FP32) -> TensorSpec:
    return TensorSpec(name, datatype, shape)


def ask(made: TorchAdaptor, **arrays: Any) -> Any:
    (outcome,) = made.execute([WorkerRequest(arrays)])
    if isinstance(outcome, Exception):
        raise outcome
    return outcome.outputs


# What it takes and gives


@pytest.mark.parametrize(
    ("module", "inputs", "outputs"),
    [
        ("Pictures", [spec("picture", -1, 3, -1, -1)], [spec("OUTPUT__0", -1, 5)]),
        (
            "Tokens",
            [spec("tokens", -1, -1, datatype=DataType.INT64)],
            [spec("OUTPUT__0", -1, 6)],
        ),
        (
            "AddAndSubtract",
            [spec("a", -1, -1), spec("b", -1, -1)],
            [spec("sum", -1, -1), spec("difference", -1, -1)],
        ),
    ],
)
def test_what_a_bare_file_takes_is_found_by_trying(
    tmp_path: Path, module: str, inputs: list[TensorSpec], outputs: list[TensorSpec]
) -> None:
    content = torch_files.scripted(getattr(torch_files, module)())
    described = adaptor(tmp_path, content).describe()
    assert list(described.inputs) == inputs
    assert list(described.outputs) == outputs


def test_where_trying_finds_nothing_the_error_says_what_to_write(tmp_path: Path) -> None:
    made = adaptor(tmp_path, torch_files.scripted(torch_files.Words()))
    with pytest.raises(
        ModelError, match=r"something else than tensors; write a config\.pbtxt with"
    ):
        made.describe()
    made = adaptor(tmp_path, torch_files.scripted(torch_files.Picky()))
    with pytest.raises(ModelError, match=r"could not be found by trying; write a config\.pbtxt"):
        made.describe()


def test_an_exported_program_says_what_it_takes(tmp_path: Path) -> None:
    example = (torch.ones(2, 4), torch.ones(3))
    sizes = ({0: torch.export.Dim("batch")}, None)
    content = torch_files.exported(torch_files.Scores(), example, sizes)
    made = adaptor(tmp_path, content, "model.pt2")
    described = made.describe()
    assert described.inputs == (spec("features", -1, 4), spec("bias", 3))
    assert described.outputs == (spec("OUTPUT__0", -1, 3), spec("OUTPUT__1", -1))
    made.initialise()
    answer = ask(made, features=np.ones((5, 4), np.float32), bias=np.zeros(3, np.float32))
    assert answer["OUTPUT__0"].shape == (5, 3)
    assert answer["OUTPUT__1"] == pytest.approx(answer["OUTPUT__0"].sum(1), abs=1e-5)


def test_a_configuration_must_fit_the_exported_program(tmp_path: Path) -> None:
    content = torch_files.exported(
        torch_files.AddAndSubtract(), (torch.ones(2, 4), torch.ones(2, 4))
    )
    both = spec("a", 2, 4), spec("b", 2, 4)
    outputs = (spec("sum", 2, 4),)
    assert (
        adaptor(tmp_path, content, "model.pt2", inputs=both, outputs=outputs).describe().inputs
        == both
    )
    for wrong in (spec("b", -1, 4), spec("b", 2, 4, 1), spec("b", 2, 4, datatype=DataType.INT8)):
        made = adaptor(tmp_path, content, "model.pt2", inputs=(both[0], wrong), outputs=outputs)
        with pytest.raises(
            ModelError, match=r"input 'b' is .* but 'model\.pt2' takes FP32 \[2, 4\] as 'b'"
        ):
            made.describe()


# Which argument is which


def test_inputs_are_bound_by_name_by_number_or_because_there_is_one() -> None:
    assert bind(("b", "a"), ("a", "b"), "m.pt") == ("a", "b")
    assert bind(("a",), ("a", "b"), "m.pt") == ("a",)  # the other one has a default
    assert bind(("INPUT__1", "OTHER__0"), ("a", "b"), "m.pt") == ("OTHER__0", "INPUT__1")
    assert bind(("anything",), ("x",), "m.pt") == ("anything",)


@pytest.mark.parametrize(
    "names",
    [("x", "y"), ("INPUT__0", "INPUT__2"), ("INPUT__0", "INPUT__1", "INPUT__2"), ("a", "y")],
)
def test_inputs_that_cannot_be_told_apart_are_refused_with_both_sides(
    names: tuple[str, ...],
) -> None:
    with pytest.raises(ModelError, match=r"forward\(\) of 'm\.pt' takes 'a', 'b'; use these names"):
        bind(names, ("a", "b"), "m.pt")


def test_what_the_node_tells_of_a_sequence_is_an_argument_that_clients_do_not_see(
    tmp_path: Path,
) -> None:
    controls = (ControlInput("b", ControlKind.START, FP32, (0.0, 1.0)),)
    made = adaptor(
        tmp_path,
        torch_files.scripted(torch_files.AddAndSubtract()),
        inputs=(spec("a", -1, 1),),
        outputs=(spec("sum", -1, 1), spec("difference", -1, 1)),
        max_batch_size=4,
        execution=Execution(sequences=SequenceBatching(controls=controls)),
    )
    assert made.describe().inputs == (spec("a", -1, 1),)
    made.initialise()
    one = np.ones((1, 1), np.float32)
    assert ask(made, a=3 * one, b=one)["sum"].tolist() == [[4.0]]


def test_a_configuration_names_outputs_by_number_or_in_order(tmp_path: Path) -> None:
    content = torch_files.scripted(torch_files.Scores())
    inputs = spec("INPUT__1", 3), spec("INPUT__0", -1, 4)
    made = adaptor(
        tmp_path, content, inputs=inputs, outputs=(spec("TOTAL__1", -1), spec("SCORES__0", -1, 3))
    )
    made.initialise()
    given = {"INPUT__0": np.ones((2, 4), np.float32), "INPUT__1": np.zeros(3, np.float32)}
    answer = ask(made, **given)
    assert answer["SCORES__0"].shape == (2, 3)
    assert answer["TOTAL__1"].shape == (2,)
    made = adaptor(tmp_path, content, inputs=inputs, outputs=(spec("only", -1, 3),))
    made.initialise()
    assert ask(made, **given)["only"].shape == (2, 3)
    made = adaptor(tmp_path, content, inputs=inputs, outputs=(spec("missing__2", -1, 3),))
    made.initialise()
    with pytest.raises(
        InferenceFailed, match="answered 2 tensors, its configuration names 1 outputs"
    ):
        ask(made, **given)


def test_an_output_of_another_type_or_name_than_promised_fails(tmp_path: Path) -> None:
    content = torch_files.scripted(torch_files.AddAndSubtract())
    given = {"a": np.ones((1, 2), np.float32), "b": np.ones((1, 2), np.float32)}
    inputs = spec("a", -1, 2), spec("b", -1, 2)
    wrong = spec("sum", -1, 2, datatype=DataType.INT8)
    made = adaptor(tmp_path, content, inputs=inputs, outputs=(wrong,))
    made.initialise()
    with pytest.raises(
        InferenceFailed, match="'sum' is FP32, but the model's configuration says INT8"
    ):
        ask(made, **given)
    made = adaptor(tmp_path, content, inputs=inputs, outputs=(spec("product", -1, 2),))
    made.initialise()
    with pytest.raises(InferenceFailed, match="answered 'sum', 'difference', without 'product'"):
        ask(made, **given)


# Files


def test_a_pickled_module_is_told_from_torchscript(tmp_path: Path) -> None:
    torch.save(torch_files.Scores().state_dict(), tmp_path / "state.pt")
    made = adaptor(tmp_path, (tmp_path / "state.pt").read_bytes())
    with pytest.raises(
        ModelError, match=r"pickled module or its state .* `meshnode convert` makes one"
    ):
        made.describe()


def test_threads_are_limited_to_what_the_opening_allows(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    try:
        adaptor(tmp_path, torch_files.scripted(torch_files.Pictures()), threads=3).describe()
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


# In its own process


async def _infer(request: InferRequest) -> InferResponse:
    raise NotServing(f"nobody answers {request.model}")


def runtime(*, allow_code: bool = True) -> TorchRuntime:
    settings = WorkerSettings(allow_code=allow_code)
    return TorchRuntime(Environment(infer=_infer, manifest_of=lambda *_: None, workers=settings))


async def test_a_model_answers_joined_rows_from_its_own_process(tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(torch_files.scripted(torch_files.Pictures()))
    opening = Opening(
        folder=tmp_path, entry="model.pt", device="cpu",
        inputs=(spec("picture", -1, 3, -1, -1),), outputs=(spec("OUTPUT__0", -1, 5),),
        execution=Execution(parameters=(("INFERENCE_MODE", "false"),)),
    )  # fmt: skip
    model = await asyncio.to_thread(runtime().load, opening)
    try:
        assert model.joins_rows
        assert model.device == "cpu"
        picture = np.ones((7, 3, 8, 8), np.float32)
        request = InferRequest("m", (Tensor("picture", FP32, picture.shape, picture.tobytes()),))
        (outcome,) = await model.execute([request])
        assert isinstance(outcome, tuple)
        assert outcome[0].shape == (7, 5)
        bad = InferRequest("m", (Tensor("picture", FP32, (1, 2, 8, 8), bytes(512)),))
        (failure,) = await model.execute([bad])
        assert isinstance(failure, InferenceFailed | InvalidRequest)
        assert "the model failed" in str(failure)
    finally:
        await model.close()


def test_where_code_is_not_allowed_no_file_is_opened(tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(b"whatever")
    with pytest.raises(ModelError, match=r"this model is code .* --allow-code"):
        runtime(allow_code=False).describe(Opening(folder=tmp_path, entry="model.pt"))


def test_without_pytorch_the_error_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(ModelError, match=r"pip install 'meshnode\[torch\]'"):
        runtime().load(Opening(folder=tmp_path, entry="model.pt"))
    assert "meshnode[torch]" in runtime().capability().missing


def test_the_capability_names_version_and_devices() -> None:
    capability = runtime().capability()
    assert capability.version == torch.__version__
    assert capability.devices[-1] == "cpu"
