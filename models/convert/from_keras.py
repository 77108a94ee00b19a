"""Keras, on its PyTorch backend: a `.keras` or `.h5` file to ONNX or TorchScript.

On that backend a Keras model *is* a PyTorch module, so no TensorFlow is needed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from meshnode.errors import ModelError
from meshnode.models.convert.child import library
from meshnode.models.convert.samples import InputForm, forms_of_sample, read_forms, sample_for
from meshnode.models.convert.steps import Converted
from meshnode.models.convert.torch_writing import flat_module, write_onnx, write_torchscript

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from meshnode.models.convert.steps import Progress


def run(job: Mapping[str, Any], progress: Progress) -> Converted:
    """Convert a Keras model."""
    progress("loading the Keras model")
    model = load_model(job["model"])
    forms = keras_forms(model, job)
    names = output_names(model)
    sample = sample_for(job, forms)
    progress(f"converting {model.name} to {job['target']}")
    expected = write_torch(model, job, forms, names, sample)
    return Converted(forms, sample, expected)


def load_model(path: str) -> Any:
    """Load a Keras file; the caller has been asked whether it may run code.

    Raises:
        ModelError: if Keras cannot.
    """
    keras = library("keras")
    try:
        return keras.saving.load_model(path, compile=False, safe_mode=False)
    # Keras raises ValueError, TypeError, OSError and others for a damaged or foreign file.
    except Exception as error:
        raise ModelError(
            f"Keras {keras.__version__} cannot load it: {' '.join(str(error).split())[:300]}"
        ) from error


def keras_forms(model: Any, job: Mapping[str, Any]) -> tuple[InputForm, ...]:
    """Return a Keras model's inputs.

    Raises:
        ModelError: if neither it nor the caller says what they are.
    """
    given = tuple(read_forms(job))
    if given:
        return given
    try:
        inputs = list(model.inputs)
    except (AttributeError, ValueError, TypeError):
        inputs = []
    if inputs:
        return tuple(
            InputForm(
                each.name.partition(":")[0],
                str(each.dtype),
                tuple(-1 if size is None else int(size) for size in each.shape),
            )
            for each in inputs
        )
    if job.get("sample"):
        return tuple(forms_of_sample(job["sample"], []))
    raise ModelError(
        "the Keras model does not say what its inputs are; describe them with --input NAME:float32:-1,N"
    )


def output_names(model: Any) -> tuple[str, ...]:
    """Return names for a Keras model's outputs: those of the layers that make them."""
    names = tuple(getattr(model, "output_names", None) or ())
    if not names and type(model).__name__ == "Sequential":
        names = (model.layers[-1].name,)
    return names if len(set(names)) == len(names) and names else ("output",)


def write_torch(
    model: Any,
    job: Mapping[str, Any],
    forms: Sequence[InputForm],
    names: Sequence[str],
    sample: Mapping[str, Any],
) -> dict[str, Any]:
    """Write a Keras model of the PyTorch backend as ONNX or TorchScript; return its answers."""
    keras = library("keras")
    if keras.backend.backend() != "torch":
        raise ModelError("Keras does not run on its torch backend here")
    module = flat_module(model, as_list=len(forms) > 1)
    if job["target"] == "onnx":
        return write_onnx(module, job, forms, sample, names=names, traced=True)
    return write_torchscript(module, job, forms, sample, names=names)
