"""The digits classifier that comes with meshnode, through whole optimisations."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
import torch

from meshnode.errors import MeshError, ModelError, UsageError
from meshnode.examples import digits
from meshnode.models.convert.isolation import Limits
from meshnode.models.optimize.optimizing import (
    OptimizeReport,
    OptimizeWish,
    following_version,
    optimize,
    plan_optimization,
    result_file,
    working_folder,
    write_version,
)
from meshnode.models.optimize.planning import Quantize, Treatment
from meshnode.models.repository.scanning import scan

if TYPE_CHECKING:
    from collections.abc import Iterator

DIGITS = Path(digits.__file__).parent / "digits.onnx"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> str:
    from sklearn.datasets import load_digits

    path = tmp_path_factory.mktemp("pictures") / "digits.npz"
    np.savez(path, image=(load_digits().images[:400] / 16).astype(np.float32))
    return str(path)


@pytest.fixture
def work() -> Iterator[Path]:
    with working_folder() as folder:
        yield Path(folder)


def run(work: Path, model: Path, sample: str | None, **treatment: Any) -> OptimizeReport:
    wish = OptimizeWish(
        model=str(model), treatment=Treatment(**treatment), calibration=sample, threshold=0.97
    )
    return optimize(plan_optimization(wish), work, Limits(time_s=60), lambda _: None)


def test_static_int8_of_real_pictures_is_a_third_as_large_and_agrees(
    work: Path, pictures: str
) -> None:
    report = run(work, DIGITS, pictures, quantize=Quantize.STATIC)
    assert report.original.size_bytes == DIGITS.stat().st_size
    assert report.result.size_bytes < 0.5 * report.original.size_bytes
    assert report.agreement.rows == 400
    assert report.agreement.score >= 0.97
    assert report.refused == ""
    types = {each.data_type for each in onnx.load(result_file(report.plan, work)).graph.initializer}
    assert onnx.TensorProto.INT8 in types


def test_dynamic_int8_keeps_inputs_and_outputs(work: Path, pictures: str) -> None:
    report = run(work, DIGITS, pictures, quantize=Quantize.DYNAMIC)
    graph = onnx.load(result_file(report.plan, work)).graph
    assert [each.name for each in graph.output] == ["label", "probabilities"]
    assert any("Integer" in node.op_type for node in graph.node)
    assert report.result.latency_ms > 0
    assert report.result.peak_memory_bytes > 0


def test_fp16_halves_the_file_and_is_still_given_float32(work: Path, pictures: str) -> None:
    report = run(work, DIGITS, pictures, quantize=Quantize.FP16)
    assert report.result.size_bytes < 0.6 * report.original.size_bytes
    assert report.agreement.score >= 0.99
    graph = onnx.load(result_file(report.plan, work)).graph
    assert graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT


def test_an_older_version_can_be_the_original_though_only_the_newest_is_served(
    tmp_path: Path,
) -> None:
    for number in ("1", "2"):
        (tmp_path / "iris" / number).mkdir(parents=True)
        shutil.copy(DIGITS, tmp_path / "iris" / number / "model.onnx")

    def planned(version: int) -> Path:
        wish = OptimizeWish(
            model=str(tmp_path / "iris"), treatment=Treatment(graph=True), version=version
        )
        return plan_optimization(wish).file

    assert planned(1) == (tmp_path / "iris" / "1" / "model.onnx").resolve()
    with pytest.raises(UsageError, match="has no version 3; it has 1, 2"):
        planned(3)


def test_what_is_quantised_is_not_halved(work: Path, pictures: str, tmp_path: Path) -> None:
    report = run(work, DIGITS, pictures, quantize=Quantize.DYNAMIC)
    small = shutil.copy(result_file(report.plan, work), tmp_path / "small.onnx")
    with working_folder() as other, pytest.raises(ModelError, match="give the version"):
        run(Path(other), Path(small), pictures, quantize=Quantize.FP16)


def test_pruning_that_goes_too_far_is_refused(work: Path, pictures: str) -> None:
    report = run(work, DIGITS, pictures, prune=0.9, graph=True)
    assert report.sparsity == pytest.approx(0.9, abs=0.01)
    assert report.agreement.score < 0.97
    assert "below the threshold of 97.00%" in report.refused


def test_a_folders_next_version_takes_configuration_and_labels_along(
    tmp_path: Path, work: Path, pictures: str
) -> None:
    version = tmp_path / "digits" / "4"
    version.mkdir(parents=True)
    shutil.copy(DIGITS, version / "net.onnx")
    (version / "labels.txt").write_text("zero\none\n")
    config = 'name: "digits"\ndefault_model_filename: "net.onnx"\nbackend: "onnxruntime"\n'
    (tmp_path / "digits" / "config.pbtxt").write_text(config)
    report = run(work, tmp_path / "digits", pictures, quantize=Quantize.FP16)
    assert following_version(report.plan) == 5
    assert write_version(report.plan, work, tmp_path / "small") == tmp_path / "small" / "1"
    assert write_version(report.plan, work, tmp_path / "digits").name == "5"
    (found,) = scan(tmp_path / "small")
    assert found.error == ""
    assert [file.path for file in found.versions[0].files] == ["labels.txt", "net.onnx"]


def test_a_model_without_weights_is_told_so(tmp_path: Path, work: Path) -> None:
    spec = ("n", 2)
    tensor = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", ["x"], ["y"])],
        "g",
        [tensor("x", onnx.TensorProto.FLOAT, spec)],
        [tensor("y", onnx.TensorProto.FLOAT, spec)],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)])
    model.ir_version = 8
    onnx.save(model, tmp_path / "same.onnx")
    with pytest.raises(ModelError, match="no operators that dynamic quantisation is for"):
        run(work, tmp_path / "same.onnx", None, quantize=Quantize.DYNAMIC)


def test_a_damaged_file_is_an_error_of_the_model(tmp_path: Path, work: Path) -> None:
    (tmp_path / "cut.onnx").write_bytes(DIGITS.read_bytes()[:500])
    with pytest.raises(ModelError, match="ONNX Runtime cannot open it"):
        run(work, tmp_path / "cut.onnx", None, quantize=Quantize.DYNAMIC)


def test_a_pytorch_module_is_pruned_step_by_step_while_it_is_trained(
    tmp_path: Path, work: Path
) -> None:
    torch.manual_seed(1)
    torch.save(torch.nn.Linear(4, 50), tmp_path / "module.pth")
    (tmp_path / "training.py").write_text(
        "from pathlib import Path\n"
        "def train(module, step):\n"
        f"    Path({str(tmp_path / 'steps')!r}).open('a').write(f'{{step}} ')\n"
        "    module.weight.data.add_(0.001)\n"
    )
    wish = OptimizeWish(
        model=str(tmp_path / "module.pth"),
        treatment=Treatment(
            quantize=Quantize.DYNAMIC,
            prune=0.5,
            schedule=3,
            fine_tune=f"{tmp_path / 'training.py'}:train",
        ),
        inputs=("x:float32:-1,4",),
        threshold=0,
    )
    plan = plan_optimization(wish)
    assert plan.code.startswith("a pickle runs")
    report = optimize(plan, work, Limits(time_s=60), lambda _: None)
    assert report.sparsity == 0.5
    assert (tmp_path / "steps").read_text() == "1 2 3 "
    written = write_version(plan, work, tmp_path / "out")
    assert [each.name for each in written.iterdir()] == ["model.pt"]
    assert (
        "data_type: TYPE_FP32 dims: [ -1, 50 ]" in (tmp_path / "out" / "config.pbtxt").read_text()
    )


@pytest.mark.parametrize(
    ("name", "reason"),
    [("m.tflite", "cannot be quantised afterwards"), ("m.joblib", "is converted first"), ("none", "does not exist")],
)  # fmt: skip
def test_what_is_not_optimised_is_told(tmp_path: Path, name: str, reason: str) -> None:
    if name != "none":
        (tmp_path / name).write_bytes(b"x")
    wish = OptimizeWish(model=str(tmp_path / name), treatment=Treatment(quantize=Quantize.DYNAMIC))
    with pytest.raises(MeshError, match=reason) as caught:
        plan_optimization(wish)
    assert isinstance(caught.value, UsageError)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A perceptron behind a scaler of `ai.onnx.ml`, which hides all types from ONNX's own inference."""
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(1)
    first, last = (rng.normal(size=size).astype(np.float32) for size in ((4, 32), (32, 3)))
    nodes = [
        helper.make_node(
            "Scaler", ["rows"], ["scaled"], domain="ai.onnx.ml", offset=[0.0] * 4, scale=[1.0] * 4
        ),
        helper.make_node("MatMul", ["scaled", "first"], ["hidden"]),
        helper.make_node("Relu", ["hidden"], ["active"]),
        helper.make_node("MatMul", ["active", "last"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["shares"]),
        helper.make_node("Identity", ["shares"], ["probabilities"]),
    ]
    graph = helper.make_graph(
        nodes,
        "classifier",
        [helper.make_tensor_value_info("rows", TensorProto.FLOAT, [None, 4])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, [None, 3])],
        [numpy_helper.from_array(first, "first"), numpy_helper.from_array(last, "last")],
    )
    domains = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 1)]
    folder = tmp_path_factory.mktemp("classifier")
    onnx.save(helper.make_model(graph, opset_imports=domains, ir_version=8), folder / "rows.onnx")
    np.savez(folder / "rows.npz", rows=rng.normal(size=(64, 4)).astype(np.float32))
    return folder / "rows.onnx", str(folder / "rows.npz")


@pytest.mark.parametrize("how", [Quantize.DYNAMIC, Quantize.STATIC])
def test_a_classifier_whose_types_onnx_cannot_infer_is_quantised_too(
    work: Path, classifier: tuple[Path, str], how: Quantize
) -> None:
    model, sample = classifier
    report = run(work, model, sample, quantize=how)
    assert report.agreement.rows == 64
    types = {each.data_type for each in onnx.load(result_file(report.plan, work)).graph.initializer}
    assert onnx.TensorProto.INT8 in types
