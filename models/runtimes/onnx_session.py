"""One ONNX Runtime session behind the runtimes' interface: the part that needs NumPy.

NumPy has no BFLOAT16: models with such inputs or outputs are run through ONNX Runtime's own values,
which takes some microseconds more for each tensor.
"""

from __future__ import annotations

import ctypes
import re
from contextlib import suppress
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final

from onnxruntime import RunOptions

from meshnode.errors import Cancelled, InferenceFailed, InvalidRequest, MeshError, ModelError
from meshnode.limits import SHRINK_FROM_S
from meshnode.models.manifest import TensorSpec
from meshnode.models.runtimes.reasons import clean_reason
from meshnode.models.runtimes.run_memory import RunMemory
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
    "tensor(bfloat16)": DataType.BF16,
    "tensor(float)": DataType.FP32,
    "tensor(double)": DataType.FP64,
    "tensor(string)": DataType.BYTES,
}

_OF_SHAPES: Final = re.compile(
    r"\[ONNXRuntimeError\] : 2 : INVALID_ARGUMENT : (Invalid rank|Got invalid dimensions) for input"
)
"""What ONNX Runtime says of a request before anything runs."""

_OF_VALUES: Final = re.compile(
    r"while running (?P<operator>\w+) node\..* Status Message: "
    r"(indices element out of data bounds|.*index found|.*out of range|.*out-of-bounds"
    r"|.*element out of data bounds|sto(f|d|i|l|ll|ul|ull)\b|Invalid .*string|.*[Pp]ars)"
)
"""What its operators say of an index, or of a text that should be a number."""

_BFLOAT16 = 16  # in ONNX's table of element types


class OnnxModel:
    """One ONNX session; see `LoadedModel` and `StoppableModel`.

    Attributes:
        inputs: Input tensors as the file states them.
        outputs: Output tensors as the file states them.
        device: Where it runs.
        works_by_values: Whether values in its inputs may decide how long it runs.
        is_baked: Whether it was opened from a graph that was optimised ahead of time.
    """

    __slots__ = (
        "_all_outputs",
        "_has_bf16",
        "_memory",
        "_output_types",
        "_session",
        "_value_readers",
        "device",
        "inputs",
        "is_baked",
        "outputs",
        "works_by_values",
    )

    def __init__(
        self,
        session: Any,
        device: str,
        *,
        works_by_values: bool = True,
        value_readers: frozenset[str] = frozenset(),
        has_arena: bool = False,
        is_baked: bool = False,
    ) -> None:
        """Take ownership of a session.

        Args:
            session: Open, and of nobody else.
            device: Where it runs.
            works_by_values: As the attribute.
            value_readers: Operators that read clients' values only, as they were sent.
            has_arena: Whether it keeps the memory of its runs for the next ones.
            is_baked: As the attribute.

        Raises:
            ModelError: if an input or output is not a tensor of a type that can be sent.
        """
        self._session = session
        self.device = device
        self.works_by_values = works_by_values
        self.is_baked = is_baked
        self.inputs = tuple(_spec("input", node) for node in session.get_inputs())
        self.outputs = tuple(_spec("output", node) for node in session.get_outputs())
        self._all_outputs = tuple(spec.name for spec in self.outputs)
        self._output_types = {spec.name: spec.datatype for spec in self.outputs}
        self._has_bf16 = any(
            spec.datatype is DataType.BF16 for spec in (*self.inputs, *self.outputs)
        )
        self._value_readers = value_readers
        self._memory = RunMemory() if has_arena else None

    def __repr__(self) -> str:
        state = "closed" if self._session is None else f"on {self.device}"
        return f"<OnnxModel {list(self._all_outputs)} {state}>"

    def run(self, inputs: Sequence[Tensor], outputs: Sequence[str]) -> tuple[Tensor, ...]:
        """Run one request; the outputs' data are views of ONNX Runtime's own results."""
        return self.stoppable().run(inputs, outputs)

    def stoppable(self) -> OnnxRun:
        """Return runs that can be ended; see `StoppableModel`."""
        return OnnxRun(self)

    def close(self) -> None:
        """Drop the session; ONNX Runtime frees its memory with it."""
        self._session = None


class OnnxRun:
    """Runs of an ONNX session that can be ended between two operations; see `StoppableRun`."""

    __slots__ = ("_model", "_options")

    def __init__(self, model: OnnxModel) -> None:
        self._model = model
        self._options = RunOptions()

    def __repr__(self) -> str:
        return f"<OnnxRun of {self._model}{', stopped' if self.stopped else ''}>"

    @property
    def stopped(self) -> bool:
        """Whether `stop` was called."""
        stopped: bool = self._options.terminate
        return stopped

    def stop(self) -> None:
        """End what runs, between two operations."""
        self._options.terminate = True

    def rearm(self) -> None:
        """Let it run again."""
        self._options.terminate = False

    def run(self, inputs: Sequence[Tensor], outputs: Sequence[str]) -> tuple[Tensor, ...]:
        """Run one request; the outputs' data are views of ONNX Runtime's own results."""
        model = self._model
        names = outputs or model._all_outputs
        types = model._output_types
        started = perf_counter()
        try:
            if model._has_bf16:
                return self._run_values(inputs, names)
            feeds = {tensor.name: to_numpy(tensor) for tensor in inputs}
            arrays = model._session.run(names, feeds, self._options)
            results = []
            for name, array in zip(names, arrays, strict=True):
                datatype = types[name]
                data = numpy_buffer(array, datatype)
                results.append(Tensor(name, datatype, array.shape, data))
        except MeshError:
            raise
        # The edge where a model's own failures are translated, whatever their class.
        except Exception as error:  # noqa: BLE001
            raise self._failure(error) from None
        took_s = perf_counter() - started
        if (
            took_s >= SHRINK_FROM_S
            and model._memory is not None
            and model._memory.is_to_shrink(took_s, started)
        ):
            self._shrink(names, feeds)
        return tuple(results)

    def _shrink(self, names: Sequence[str], feeds: dict[str, Any]) -> None:
        """Give memory back that this session keeps for runs as large as the last ones.

        ONNX Runtime does so at the end of a run that asks for it; this one ends before its first operation.
        """
        options = RunOptions()
        options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        options.terminate = True
        with suppress(Exception):  # that it was terminated
            self._model._session.run(names, feeds, options)

    def _failure(self, error: Exception) -> MeshError:
        """Return what callers are told of a run that failed."""
        if self.stopped:
            return Cancelled("the run was ended before it was complete")
        reason = clean_reason(error)
        if _is_of_values(error, self._model._value_readers):
            return InvalidRequest(f"the model refuses a value of its inputs: {reason}")
        return InferenceFailed(f"the model failed: {reason}")

    def _run_values(self, inputs: Sequence[Tensor], names: Sequence[str]) -> tuple[Tensor, ...]:
        """Run with ONNX Runtime's values, because some are BFLOAT16."""
        values = {tensor.name: _value(tensor) for tensor in inputs}
        results = self._model._session.run_with_ort_values(names, values, self._options)
        return tuple(
            _tensor(name, self._model._output_types[name], value)
            for name, value in zip(names, results, strict=True)
        )


def _is_of_values(error: Exception, readers: frozenset[str]) -> bool:
    """Whether a run certainly failed for what the client sent: its shape, or a value such as an index."""
    text = str(error)
    if _OF_SHAPES.match(text):
        return True
    failed = _OF_VALUES.search(text)
    return failed is not None and failed["operator"] in readers


def _value(tensor: Tensor) -> Any:
    from onnxruntime import OrtValue

    if tensor.datatype is not DataType.BF16:
        return OrtValue.ortvalue_from_numpy(to_numpy(tensor))
    bits = to_numpy(Tensor(tensor.name, DataType.UINT16, tensor.shape, tensor.data))
    return OrtValue.ortvalue_from_numpy_with_onnx_type(bits, _BFLOAT16)


def _tensor(name: str, datatype: DataType, value: Any) -> Tensor:
    if datatype is not DataType.BF16:
        array = value.numpy()
        return Tensor(name, datatype, array.shape, numpy_buffer(array, datatype))
    shape = tuple(value.shape())
    # Results lie in the processor's memory, whatever the provider, unless they are bound elsewhere.
    data = ctypes.string_at(value.data_ptr(), value.tensor_size_in_bytes())
    return Tensor(name, datatype, shape, data)


def _spec(kind: str, node: Any) -> TensorSpec:
    datatype = _TYPES.get(node.type)
    if datatype is None:
        raise ModelError(
            f"{kind} {node.name!r} is {node.type}, which cannot be served; export the model with plain "
            "tensors (scikit-learn: without ZipMap)"
        )
    # Dynamic dimensions are None or a symbol's name.
    shape = tuple(size if isinstance(size, int) and size >= 0 else -1 for size in node.shape)
    return TensorSpec(node.name, datatype, shape)
