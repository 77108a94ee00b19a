"""Real models of real frameworks, trained here on scikit-learn's irises, through whole conversions."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from meshnode.errors import ModelError, UsageError
from meshnode.examples import digits
from meshnode.examples.training import iris
from meshnode.models.convert.converting import ConvertReport, ConvertWish, convert, plan_conversion
from meshnode.models.convert.formats import Family, Quantization, Target
from meshnode.models.convert.isolation import Limits

DIGITS = Path(digits.__file__).parent / "digits.onnx"
needs_tensorflow = pytest.mark.skipif(
    importlib.util.find_spec("tensorflow") is None, reason="tensorflow is not installed here"
)


KERAS_FILE = """
import sys, joblib, keras
scaler, perceptron = (step for _, step in joblib.load(sys.argv[1] + "/iris.joblib").steps)
model = keras.Sequential([
    keras.layers.Input((4,), name="input"),
    keras.layers.Rescaling(1 / scaler.scale_, -scaler.mean_ / scaler.scale_),
    keras.layers.Dense(16, activation="relu"),
    keras.layers.Dense(3, activation="softmax", name="probabilities"),
])
(a, c), (b, d) = perceptron.coefs_, perceptron.intercepts_
model.set_weights([a, b, c, d])
model.save(sys.argv[1] + "/iris.keras")
"""
"""The trained perceptron as a Keras file: Keras's own training would import a framework for seconds."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models of scikit-learn, PyTorch and Keras with real weights; parameters for JAX."""
    path = tmp_path_factory.mktemp("iris")
    for script in ((iris.__file__, "sklearn,torch"), ("-c", KERAS_FILE)):
        subprocess.run(
            [sys.executable, "-W", "ignore", *script, str(path)],
            check=True,
            capture_output=True,
            env={**os.environ, "KERAS_BACKEND": "numpy"},
        )
    drawing = np.random.default_rng(1)
    sizes: dict[str, Any] = {
        "hidden/weights": (4, 8),
        "hidden/biases": 8,
        "out/weights": (8, 3),
        "out/biases": 3,
    }
    made = {name: drawing.normal(size=size).astype(np.float32) for name, size in sizes.items()}
    np.savez(path / "parameters.npz", **made)
    return path


def run(tmp_path: Path, model: Path | str, target: Target, **more: Any) -> ConvertReport:
    wish = ConvertWish(model=str(model), out=str(tmp_path / "out"), target=target, **more)
    return convert(
        plan_conversion(wish), Limits(time_s=120, protected=tmp_path), lambda _: None, tmp_path
    )


def test_scikit_learn_becomes_onnx_with_labels_and_probabilities(
    tmp_path: Path, folder: Path
) -> None:
    report = run(tmp_path, folder / "iris.joblib", Target.ONNX, sample=str(folder / "iris.npz"))
    assert report.path == tmp_path / "out" / "1" / "model.onnx"
    assert report.size_bytes == report.path.stat().st_size
    assert report.inputs == (("input", "float32", (-1, 4)),)
    assert report.outputs == ("label", "probabilities")
    assert (report.agreement.rows, report.agreement.sample) == (150, "iris.npz")
    assert report.agreement.score == 1
    assert report.agreement.outputs[1].max_error < 1e-5
    assert report.latency_ms > 0
    assert report.plan.code.startswith("a pickle runs")


def test_a_keras_file_becomes_fp16_onnx_without_tensorflow(tmp_path: Path, folder: Path) -> None:
    report = run(
        tmp_path,
        folder / "iris.keras",
        Target.ONNX,
        quantization=Quantization.FP16,
        sample=str(folder / "iris.npz"),
    )
    assert report.inputs == (("input", "float32", (-1, 4)),)
    assert report.outputs == ("probabilities",)
    assert report.agreement.score >= 0.99
    assert 0 < report.agreement.outputs[0].max_error < 0.01


@needs_tensorflow
def test_a_keras_file_becomes_int8_tensorflow_lite_with_its_weights(
    tmp_path: Path, folder: Path
) -> None:
    """A converter that leaves variables out writes a file that opens, and answers nonsense."""
    report = run(
        tmp_path,
        folder / "iris.keras",
        Target.TFLITE,
        quantization=Quantization.INT8,
        sample=str(folder / "iris.npz"),
    )
    assert report.path.name == "model.tflite"
    assert report.agreement.score >= 0.95
    assert 0 < report.agreement.outputs[0].max_error < 0.2
    assert report.notes == ()  # it takes any number of rows


def test_a_jax_function_with_parameters_becomes_onnx(tmp_path: Path, folder: Path) -> None:
    report = run(
        tmp_path,
        f"{iris.__file__}:predict",
        Target.ONNX,
        family=Family.JAX,
        weights=str(folder / "parameters.npz"),
        sample=str(folder / "iris.npz"),
    )
    assert report.inputs == (("rows", "float32", (-1, 4)),)
    assert report.agreement.score == 1
    assert report.agreement.outputs[0].max_error < 1e-4


def test_a_pytorch_class_with_weights_becomes_onnx_with_a_free_batch(
    tmp_path: Path, folder: Path
) -> None:
    report = run(
        tmp_path,
        f"{iris.__file__}:net",
        Target.ONNX,
        family=Family.TORCH,
        weights=str(folder / "iris.pth"),
        inputs=("lengths:float32:-1,4",),
    )
    assert report.inputs == (("lengths", "float32", (-1, 4)),)
    assert (report.agreement.rows, report.agreement.sample) == (64, "random")
    assert report.agreement.score == 1


def test_inputs_that_a_module_was_not_written_for_are_said_as_they_were_described(
    tmp_path: Path, folder: Path
) -> None:
    with pytest.raises(
        ModelError, match=r"\(x float32 \[64, 5\]\).*describe what it takes with --input"
    ):
        run(
            tmp_path,
            f"{iris.__file__}:net",
            Target.ONNX,
            family=Family.TORCH,
            weights=str(folder / "iris.pth"),
            inputs=("x:float32:-1,5",),
        )


def test_weights_alone_are_told_to_be_weights(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(ModelError, match=r"If these are weights .* FILE.py:Class --from torch"):
        run(tmp_path, folder / "iris.pth", Target.ONNX, inputs=("x:float32:-1,4",))


def test_a_damaged_file_is_an_error_of_the_model(tmp_path: Path) -> None:
    (tmp_path / "m.joblib").write_bytes(b"\x80\x04no pickle")
    with pytest.raises(ModelError, match=r"m\.joblib cannot be loaded as a model that joblib or"):
        run(tmp_path, tmp_path / "m.joblib", Target.ONNX)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("wish", "reason"),
    [
        ({"quantization": Quantization.INT8}, "needs --sample FILE.npz"),
        ({"weights": "x"}, "a saved model has its own"),
        ({"sample": "nowhere.npz"}, "'nowhere.npz' does not exist"),
        ({"inputs": ("x:float99:1",)}, "is not NAME:TYPE:SHAPE"),
        ({"inputs": ("x:float32:0",)}, "sizes are positive"),
        ({"out": "x.tflite"}, "ends in '.tflite', but a onnx file"),
        ({"model": "nowhere"}, "'nowhere' does not exist"),
        ({"model": str(DIGITS)}, "'digits.onnx' is what the mesh serves"),
        ({"model": "nowhere.py:f"}, "'nowhere.py' does not exist"),
    ],
)
def test_a_wish_that_cannot_be_is_refused_before_anything_is_loaded(
    tmp_path: Path, wish: dict[str, Any], reason: str
) -> None:
    (tmp_path / "m.joblib").write_bytes(b"never read")
    asked = {"model": str(tmp_path / "m.joblib"), "out": str(tmp_path / "out"), **wish}
    with pytest.raises(UsageError, match=reason):
        plan_conversion(ConvertWish(**asked))


def test_an_existing_file_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "m.joblib").write_bytes(b"never read")
    (tmp_path / "m.onnx").write_bytes(b"mine")
    wish = ConvertWish(model=str(tmp_path / "m.joblib"), out=str(tmp_path / "m.onnx"))
    with pytest.raises(UsageError, match="exists already"):
        plan_conversion(wish)


def test_scikit_learns_layers_say_what_it_says() -> None:
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import MaxAbsScaler, MinMaxScaler, RobustScaler, StandardScaler

    from meshnode.models.convert.sklearn_layers import layers_of

    rows, species = iris.irises()
    model = make_pipeline(
        StandardScaler(), MinMaxScaler(), MaxAbsScaler(), RobustScaler(), LogisticRegression()
    ).fit(rows, species)
    (layer,) = layers_of(model)
    scores = np.exp(rows @ layer.weights + layer.biases)
    expected = scores / scores.sum(1, keepdims=True)
    assert np.allclose(expected, model.predict_proba(rows), atol=1e-4)
    (layer,) = layers_of(Ridge().fit(rows, species))
    assert np.allclose(
        rows @ layer.weights + layer.biases,
        Ridge().fit(rows, species).predict(rows)[:, None],
        atol=1e-4,
    )


def test_a_forest_becomes_onnx_only() -> None:
    from sklearn.ensemble import RandomForestClassifier

    from meshnode.models.convert.sklearn_layers import layers_of

    with pytest.raises(ModelError, match="RandomForestClassifier can become ONNX, but neither"):
        layers_of(RandomForestClassifier(2))
