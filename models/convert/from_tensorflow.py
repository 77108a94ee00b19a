"""TensorFlow: a SavedModel, or a Keras file on the TensorFlow backend, to TensorFlow Lite or ONNX."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from meshnode.errors import ModelError
from meshnode.models.convert.child import library
from meshnode.models.convert.from_keras import keras_forms, load_model, output_names
from meshnode.models.convert.samples import InputForm, sample_for
from meshnode.models.convert.steps import Converted

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from meshnode.models.convert.steps import Progress

_OPSET: Final = 17
_SIGNATURE: Final = "serving_default"


def run(job: Mapping[str, Any], progress: Progress) -> Converted:
    """Convert a SavedModel or a Keras model."""
    progress("loading TensorFlow")
    if Path(job["model"]).is_dir():
        return _from_saved_model(job, progress)
    model = load_model(job["model"])
    forms = keras_forms(model, job)
    sample = sample_for(job, forms)
    progress(f"converting {model.name} to {job['target']}")
    expected = write_keras_tflite(model, job, forms, output_names(model), sample)
    return Converted(forms, sample, expected)


def _from_saved_model(job: Mapping[str, Any], progress: Progress) -> Converted:
    tensorflow = library("tensorflow")
    loaded = tensorflow.saved_model.load(job["model"])
    if _SIGNATURE not in loaded.signatures:
        raise ModelError(f"the SavedModel has no signature {_SIGNATURE!r}, which is what is served")
    function = loaded.signatures[_SIGNATURE]
    forms = tuple(
        InputForm(name, spec.dtype.as_numpy_dtype.__name__, _sizes(spec.shape))
        for name, spec in function.structured_input_signature[1].items()
    )
    sample = sample_for(job, forms)
    found = function(**{name: tensorflow.constant(array) for name, array in sample.items()})
    expected = {name: tensor.numpy() for name, tensor in found.items()}
    progress(f"converting the SavedModel to {job['target']}")
    if job["target"] == "tflite":
        write_tflite(job["model"], job, forms, sample)
    else:
        run_tf2onnx(
            job, "--saved-model", job["model"], "--tag", "serve", "--signature_def", _SIGNATURE
        )
    return Converted(forms, sample, expected)


def _sizes(shape: Any) -> tuple[int, ...]:
    if shape.rank is None:
        raise ModelError("an input of the SavedModel has no fixed number of dimensions")
    return tuple(-1 if size is None else int(size) for size in shape)


def write_keras_tflite(
    model: Any,
    job: Mapping[str, Any],
    forms: Sequence[InputForm],
    names: Sequence[str],
    sample: Mapping[str, Any],
) -> dict[str, Any]:
    """Write a Keras model of the TensorFlow backend as TensorFlow Lite; return its answers."""
    tensorflow = library("tensorflow")

    def call(*tensors: Any) -> dict[str, Any]:
        found = model(list(tensors) if len(forms) > 1 else tensors[0], training=False)
        parts = list(found.values()) if isinstance(found, dict) else found
        parts = list(parts) if isinstance(parts, (list, tuple)) else [parts]
        wanted = names if len(names) == len(parts) else [f"output_{at}" for at in range(len(parts))]
        return dict(zip(wanted, parts, strict=True))

    found = call(*(tensorflow.constant(sample[form.name]) for form in forms))
    write_function_tflite(call, model, job, forms, sample)
    return {name: tensor.numpy() for name, tensor in found.items()}


def write_function_tflite(
    call: Any,
    owner: Any,
    job: Mapping[str, Any],
    forms: Sequence[InputForm],
    sample: Mapping[str, Any],
) -> None:
    """Write a function of tensors as TensorFlow Lite.

    Args:
        call: Takes tensors by position; returns tensors by output name.
        owner: The Keras model that holds its variables; None if there are none.
        job: `out` and `quantize` count.
        forms: Its inputs.
        sample: Arrays by input, from which the ranges of an int8 model are taken.
    """
    tensorflow = library("tensorflow")
    signature = [
        tensorflow.TensorSpec(
            [None if size < 0 else size for size in form.shape], form.datatype, name=form.name
        )
        for form in forms
    ]
    folder = f"{job['out']}.saved"
    if owner is None:
        module = tensorflow.Module()
        module.call = tensorflow.function(call, input_signature=signature, autograph=False)
        tensorflow.saved_model.save(
            module, folder, signatures={_SIGNATURE: module.call.get_concrete_function()}
        )
    else:  # tracked by Keras itself: variables that TensorFlow tracks alone are not frozen later
        archive = library("keras").export.ExportArchive()
        archive.track(owner)
        archive.add_endpoint(name=_SIGNATURE, fn=call, input_signature=signature)
        archive.write_out(folder, verbose=False)
    write_tflite(folder, job, forms, sample)


def write_tflite(
    folder: str, job: Mapping[str, Any], forms: Sequence[InputForm], sample: Mapping[str, Any]
) -> None:
    """Write a SavedModel as TensorFlow Lite, quantised as the job says."""
    tensorflow = library("tensorflow")
    converter = tensorflow.lite.TFLiteConverter.from_saved_model(
        folder, signature_keys=[_SIGNATURE]
    )
    if job["quantize"] != "none":
        converter.optimizations = [tensorflow.lite.Optimize.DEFAULT]
    if job["quantize"] == "fp16":
        converter.target_spec.supported_types = [tensorflow.float16]
    if job["quantize"] == "int8":

        def examples() -> Any:
            rows = min(len(array) for array in sample.values())
            for row in range(rows):
                yield {form.name: np.asarray(sample[form.name][row : row + 1]) for form in forms}

        converter.representative_dataset = examples
    Path(job["out"]).write_bytes(converter.convert())


def run_tf2onnx(job: Mapping[str, Any], *arguments: str) -> None:
    """Call tf2onnx's command line in this process."""
    tf2onnx = library("tf2onnx.convert")
    opset = str(job.get("opset") or _OPSET)
    sys.argv = ["tf2onnx", *arguments, "--output", job["out"], "--opset", opset]
    tf2onnx.main()
