"""scikit-learn: a joblib or pickle file to ONNX (skl2onnx), or as dense layers to the others.

Only ONNX has operators for trees, text and the like. Linear models and perceptrons, with scalers before
them, are dense layers, which TorchScript and TensorFlow Lite have too.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from meshnode.errors import ModelError
from meshnode.models.convert.child import library
from meshnode.models.convert.samples import InputForm, forms_of_sample, read_forms, sample_for
from meshnode.models.convert.steps import Converted
from meshnode.models.convert.torch_writing import flat_module, write_torchscript

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from meshnode.models.convert.sklearn_layers import Layer
    from meshnode.models.convert.steps import Progress

_OPSET: Final = 17
_INPUT: Final = "input"


def run(job: Mapping[str, Any], progress: Progress) -> Converted:
    """Convert a scikit-learn estimator."""
    progress("loading the scikit-learn model")
    model, notes = _load(job["model"])
    forms = tuple(read_forms(job)) or _forms(model, job)
    sample = sample_for(job, forms)
    progress(f"converting {type(model).__name__} to {job['target']}")
    if job["target"] == "onnx":
        expected = _to_onnx(model, job, forms, sample)
    else:
        expected = _as_layers(model, job, forms, sample)
    return Converted(forms, sample, expected, tuple(notes))


def _load(path: str) -> tuple[Any, list[str]]:
    library("sklearn")
    joblib = library("joblib")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            model = joblib.load(path)
        except (ModelError, ModuleNotFoundError):
            raise
        # What a pickle that is none, or that is cut off, raises is anything.
        except Exception as error:
            raise ModelError(
                f"{Path(path).name} cannot be loaded as a model that joblib or pickle saved "
                f"({type(error).__name__}: {error}); is it another kind of file, or a part of one?"
            ) from error
    notes = {
        "it was saved by another version of scikit-learn; trust the agreement below, or save it again"
        for each in caught
        if "InconsistentVersion" in each.category.__name__
    }
    if not hasattr(model, "predict") and not hasattr(model, "transform"):
        raise ModelError(
            f"{Path(path).name} holds a {type(model).__name__}, not a fitted scikit-learn model"
        )
    return model, sorted(notes)


def _forms(model: Any, job: Mapping[str, Any]) -> tuple[InputForm, ...]:
    features = getattr(model, "n_features_in_", None)
    if features is not None:
        return (InputForm(_INPUT, "float32", (-1, int(features))),)
    if job.get("sample"):
        return tuple(forms_of_sample(job["sample"], [_INPUT]))
    raise ModelError(
        f"the {type(model).__name__} does not say how many features it takes; describe its input with "
        "--input input:float32:-1,N, or give --sample FILE.npz"
    )


def _to_onnx(
    model: Any, job: Mapping[str, Any], forms: tuple[InputForm, ...], sample: Mapping[str, Any]
) -> dict[str, Any]:
    skl2onnx = library("skl2onnx")
    types = [(form.name, _onnx_type(form.datatype)([None, *form.shape[1:]])) for form in forms]
    options = {id(model): {"zipmap": False}} if hasattr(model, "predict_proba") else None
    exported = skl2onnx.to_onnx(
        model, initial_types=types, options=options, target_opset=job.get("opset") or _OPSET
    )
    Path(job["out"]).write_bytes(exported.SerializeToString())
    names = [output.name for output in exported.graph.output]
    return dict(zip(names, _answers(model, next(iter(sample.values())), len(names)), strict=False))


def _onnx_type(datatype: str) -> Any:
    types = library("skl2onnx.common.data_types")
    names = {
        "float32": "FloatTensorType",
        "float64": "DoubleTensorType",
        "int64": "Int64TensorType",
        "int32": "Int32TensorType",
        "bool": "BooleanTensorType",
    }
    if datatype not in names:
        raise ModelError(f"scikit-learn models take {', '.join(names)}, not {datatype}")
    return getattr(types, names[datatype])


def _answers(model: Any, rows: Any, count: int) -> list[Any]:
    """Return what the model says, in the order of skl2onnx's outputs; what has no equal is left out."""
    if not hasattr(model, "predict"):
        return [model.transform(rows)]
    answers = [model.predict(rows)]
    if count > 1:
        for name in ("predict_proba", "decision_function", "transform", "score_samples"):
            if hasattr(model, name):
                answers.append(getattr(model, name)(rows))
                break
    return answers


def _as_layers(
    model: Any, job: Mapping[str, Any], forms: tuple[InputForm, ...], sample: Mapping[str, Any]
) -> dict[str, Any]:
    from meshnode.models.convert.sklearn_layers import layers_of

    layers = layers_of(model)
    if job["target"] == "tflite":
        _to_tflite(layers, job, forms, sample)
    else:
        write_torchscript(_torch_module(layers), job, forms, sample, names=("output",))
    return {"output": _scores(model, next(iter(sample.values())), layers[-1].activation)}


def _torch_module(layers: Sequence[Layer]) -> Any:
    torch = library("torch")
    activations = {
        "relu": torch.nn.ReLU,
        "tanh": torch.nn.Tanh,
        "sigmoid": torch.nn.Sigmoid,
        "softmax": lambda: torch.nn.Softmax(dim=-1),
    }
    parts = []
    for layer in layers:
        linear = torch.nn.Linear(*layer.weights.shape)
        with torch.no_grad():
            linear.weight.copy_(torch.from_numpy(layer.weights.T.astype(np.float32)))
            linear.bias.copy_(torch.from_numpy(layer.biases.astype(np.float32)))
        parts.append(linear)
        if layer.activation is not None:
            parts.append(activations[layer.activation]())
    return flat_module(torch.nn.Sequential(*parts).eval())


def _to_tflite(
    layers: Sequence[Layer],
    job: Mapping[str, Any],
    forms: tuple[InputForm, ...],
    sample: Mapping[str, Any],
) -> None:
    from meshnode.models.convert.from_tensorflow import write_function_tflite

    tensorflow = library("tensorflow")

    def call(rows: Any) -> dict[str, Any]:
        for layer in layers:
            rows = tensorflow.matmul(rows, layer.weights.astype(np.float32))
            rows = tensorflow.nn.bias_add(rows, layer.biases.astype(np.float32))
            if layer.activation is not None:
                rows = getattr(tensorflow.nn, layer.activation)(rows)
        return {"output": rows}

    write_function_tflite(call, None, job, forms, sample)


def _scores(model: Any, rows: Any, activation: str | None) -> Any:
    """What the last layer says: probabilities, else scores, else values; always [rows, n]."""
    if activation in ("softmax", "sigmoid"):
        scores = model.predict_proba(rows)
        return scores[:, 1:] if activation == "sigmoid" and scores.shape[1] == 2 else scores
    found = model.decision_function(rows) if hasattr(model, "classes_") else model.predict(rows)
    return np.asarray(found).reshape(len(rows), -1)
