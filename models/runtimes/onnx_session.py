"""One ONNX Runtime session behind the runtimes' interface: the part that needs NumPy.

BFLOAT16 inputs and outputs are refused when a session is opened: neither NumPy nor ONNX Runtime's
Python interface can pass them.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from meshnode.errors import InferenceFailed, MeshError, ModelError
from meshnode.limits import MAX_RUNTIME_MESSAGE_LENGTH
from meshnode.models.manifest import TensorSpec
from meshnode.models.tensors import numpy_buffer, to_numpy
from meshnode.types import DataType, Tensor

if TYPE_CHECKING:
    from collections.abc import Sequence

_TYPES = {
    "tensor(bool)": DataType.BOOL,
    "tensor(uint8)": DataType.UINT8,
    "tensor(uint16)": DataType.UINT16,
    "tensor(uint32)": DataType.UINT32,
    "tensor(uint64)": DataType.UINT64,
    "tensor(int8)": DataType.INT8,
    "tensor(int16)": DataType.INT16,
    "tensor(int32)": DataType.INT32,
    "tensor(int64)": DataType.INT64,
    "tensor(float16)": DataType.FP16,
    "tensor(float)": DataType.FP32,
    "tensor(double)": DataType.FP64,
    "tensor(string)": DataType.BYTES,
}


class OnnxModel:
    """One ONNX session; see `LoadedModel`.

    Attributes:
        inputs: Input tensors as the file states them.
        outputs: Output tensors as the file states them.
        providers: The execution providers that the session uses.
    """

    __slots__ = ("_all_outputs", "_output_types", "_session", "inputs", "outputs", "providers")

    def __init__(self, session: Any) -> None:
        """Take ownership of a session.

        Raises:
            ModelError: if an input or output is not a tensor of a type that can be sent.
        """
        self._session = session
        self.inputs = tuple(_spec("input", node) for node in session.get_inputs())
        self.outputs = tuple(_spec("output", node) for node in session.get_outputs())
        self.providers: tuple[str, ...] = tuple(session.get_providers())
        self._all_outputs = tuple(spec.name for spec in self.outputs)
        self._output_types = {spec.name: spec.datatype for spec in self.outputs}

    def __repr__(self) -> str:
        state = "closed" if self._session is None else f"on {self.providers[0]}"
        return f"<OnnxModel {list(self._all_outputs)} {state}>"

    def run(self, inputs: Sequence[Tensor], outputs: Sequence[str]) -> tuple[Tensor, ...]:
        """Run one request; the outputs' data are views of ONNX Runtime's own results."""
        names = outputs or self._all_outputs
        types = self._output_types
        try:
            arrays = self._session.run(names, {tensor.name: to_numpy(tensor) for tensor in inputs})
            results = []
            for name, array in zip(names, arrays, strict=True):
                datatype = types[name]
                data = numpy_buffer(array, datatype)
                results.append(Tensor(name, datatype, array.shape, data))
            return tuple(results)
        except MeshError:
            raise
        # The edge where a model's own failures are translated, whatever their class.
        except Exception as error:  # noqa: BLE001
            raise InferenceFailed(f"the model failed: {clean_reason(error)}") from None

    def close(self) -> None:
        """Drop the session; ONNX Runtime frees its memory with it."""
        self._session = None


def clean_reason(error: BaseException) -> str:
    """Return a foreign error's message as one short line, without codes and temporary paths."""
    text = " ".join(str(error).split()) or type(error).__name__
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : [A-Z_]+ : ", "", text)
    text = re.sub(r"^Load model from .* failed: ?", "", text)
    if len(text) <= MAX_RUNTIME_MESSAGE_LENGTH:
        return text
    return text[: MAX_RUNTIME_MESSAGE_LENGTH - 1] + "…"


def _spec(kind: str, node: Any) -> TensorSpec:
    datatype = _TYPES.get(node.type)
    if datatype is None:
        hint = (
            "cast it to FP32 or FP16 at the model's edge"
            if node.type == "tensor(bfloat16)"
            else "export the model with plain tensors (scikit-learn: without ZipMap)"
        )
        raise ModelError(f"{kind} {node.name!r} is {node.type}, which cannot be served; {hint}")
    # Dynamic dimensions are None or a symbol's name.
    shape = tuple(size if isinstance(size, int) and size >= 0 else -1 for size in node.shape)
    return TensorSpec(node.name, datatype, shape)
