"""The task `sample` of a child process: an ONNX file's inputs, and arrays for them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from meshnode.errors import ModelError
from meshnode.models.convert.child import library
from meshnode.models.convert.samples import InputForm, sample_for, save_arrays

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meshnode.models.convert.steps import Progress

_TYPES: Final = {
    "tensor(float)": "float32", "tensor(double)": "float64", "tensor(float16)": "float16",
    "tensor(int8)": "int8", "tensor(int16)": "int16", "tensor(int32)": "int32",
    "tensor(int64)": "int64", "tensor(uint8)": "uint8", "tensor(uint16)": "uint16",
    "tensor(uint32)": "uint32", "tensor(uint64)": "uint64", "tensor(bool)": "bool",
    "tensor(string)": "str",
}  # fmt: skip


def run(job: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
    """Write arrays for the inputs of `job["model"]` to `job["expected"]`, and tell their forms."""
    progress("reading the model")
    onnxruntime = library("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    try:
        session = onnxruntime.InferenceSession(
            job["model"], options, providers=["CPUExecutionProvider"]
        )
    # ONNX Runtime raises a dozen classes that derive from Exception alone.
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise ModelError(f"ONNX Runtime cannot open it: {reason}") from error
    forms = []
    for each in session.get_inputs():
        if each.type not in _TYPES:
            raise ModelError(
                f"input {each.name!r} is a {each.type}, which no sample can be made of"
            )
        shape = tuple(size if isinstance(size, int) else -1 for size in each.shape)
        forms.append(InputForm(each.name, _TYPES[each.type], shape))
    sample = sample_for(job, forms)
    save_arrays(job["expected"], [sample[form.name] for form in forms], ())
    return {
        "inputs": [[form.name, form.datatype, list(form.shape)] for form in forms],
        "outputs": [each.name for each in session.get_outputs()],
        "notes": [],
    }
