"""What the conformance suite needs of each runtime: the same few models in its own format.

`identity` gives `x` back as `y`; `add_and_subtract` makes INT32 `sum` and `difference` of `a` and `b`;
`quotient` divides INT32 `x` by itself, which fails on zeros; `words` gives strings back; `weighty` adds
float weights to its input. TorchScript runs through its adaptor, in this process: its own process has
tests of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from meshnode.errors import ModelError
from meshnode.models.runtimes.litert import Content, LitertRuntime
from meshnode.models.runtimes.onnx import OnnxRuntime
from meshnode.models.workers.adaptor import WorkerRequest, WorkerSurroundings
from meshnode.models.workers.placing import array_of, tensors_of
from meshnode.models.workers.protocol import WireTensor
from meshnode.types import DataType, Tensor
from tests.unit.models import conftest as onnx_files

from . import tflite

if TYPE_CHECKING:
    from collections.abc import Sequence

    from meshnode.models.manifest import TensorSpec
    from meshnode.models.runtimes.base import LoadedModel, Opening

ONNX_TYPES = {
    DataType.BOOL: TensorProto.BOOL,
    DataType.UINT8: TensorProto.UINT8,
    DataType.UINT16: TensorProto.UINT16,
    DataType.UINT32: TensorProto.UINT32,
    DataType.UINT64: TensorProto.UINT64,
    DataType.INT8: TensorProto.INT8,
    DataType.INT16: TensorProto.INT16,
    DataType.INT32: TensorProto.INT32,
    DataType.INT64: TensorProto.INT64,
    DataType.FP16: TensorProto.FLOAT16,
    DataType.BF16: TensorProto.BFLOAT16,
    DataType.FP32: TensorProto.FLOAT,
    DataType.FP64: TensorProto.DOUBLE,
}
LITERT_TYPES = {
    DataType.BOOL: tflite.TYPES.BOOL,
    DataType.UINT8: tflite.TYPES.UINT8,
    DataType.UINT16: tflite.TYPES.UINT16,
    DataType.UINT32: tflite.TYPES.UINT32,
    DataType.UINT64: tflite.TYPES.UINT64,
    DataType.INT8: tflite.TYPES.INT8,
    DataType.INT16: tflite.TYPES.INT16,
    DataType.INT32: tflite.TYPES.INT32,
    DataType.INT64: tflite.TYPES.INT64,
    DataType.FP16: tflite.TYPES.FLOAT16,
    DataType.FP32: tflite.TYPES.FLOAT32,
    DataType.FP64: tflite.TYPES.FLOAT64,
}


class Kind(Protocol):
    """One runtime, and its models."""

    name: str
    entry: str

    @property
    def types(self) -> Sequence[DataType]: ...

    def identity(self, datatype: DataType = DataType.FP32) -> bytes: ...
    def add_and_subtract(self) -> bytes: ...
    def quotient(self) -> bytes: ...
    def words(self) -> bytes: ...
    def weighty(self, count: int) -> bytes: ...
    def open(self, opening: Opening) -> LoadedModel: ...


class OnnxKind:
    name = "onnx"
    entry = "model.onnx"
    types = tuple(ONNX_TYPES)

    def __init__(self) -> None:
        self._runtime = OnnxRuntime()

    def identity(self, datatype: DataType = DataType.FP32) -> bytes:
        return onnx_files.identity(ONNX_TYPES[datatype])

    def add_and_subtract(self) -> bytes:
        return onnx_files.add_and_subtract()

    def quotient(self) -> bytes:
        return onnx_files.quotient()

    def words(self) -> bytes:
        return onnx_files.identity(TensorProto.STRING, ("n",))

    def weighty(self, count: int) -> bytes:
        weights = numpy_helper.from_array(np.zeros((1, count), np.float32), "w")
        spec = (TensorProto.FLOAT, (1, count))
        node = helper.make_node("Add", ["x", "w"], ["y"])
        return onnx_files.onnx_model([node], {"x": spec}, {"y": spec}, [weights])

    def open(self, opening: Opening) -> LoadedModel:
        return self._runtime.load(opening)


class Untried(LitertRuntime):
    """Without the trial in another process, which has tests of its own."""

    def _try_out(self, content: Content, digest: bytes, opening: Opening) -> None:
        del content, digest, opening


class LitertKind:
    name = "litert"
    entry = "model.tflite"
    types = tuple(LITERT_TYPES)

    def __init__(self) -> None:
        self._runtime = Untried()

    def identity(self, datatype: DataType = DataType.FP32) -> bytes:
        return tflite.identity(LITERT_TYPES[datatype])

    def add_and_subtract(self) -> bytes:
        return tflite.add_and_subtract()

    def quotient(self) -> bytes:
        return tflite.quotient()

    def words(self) -> bytes:
        return tflite.identity(tflite.TYPES.STRING, (-1,))

    def weighty(self, count: int) -> bytes:
        return tflite.weighty(count)

    def open(self, opening: Opening) -> LoadedModel:
        return self._runtime.load(opening)


class TorchKind:
    name = "torch"
    entry = "model.pt"
    types = tuple(ONNX_TYPES)

    def identity(self, datatype: DataType = DataType.FP32) -> bytes:
        del datatype  # it takes what it is given
        return _scripted("Identity")

    def add_and_subtract(self) -> bytes:
        return _scripted("AddAndSubtract")

    def quotient(self) -> bytes:
        return _scripted("Quotient")

    def words(self) -> bytes:
        return _scripted("Words")

    def weighty(self, count: int) -> bytes:
        return _scripted("Weighty", count)

    def open(self, opening: Opening) -> LoadedModel:
        return TorchInside(opening)


class TorchInside:
    """The adaptor behind the interface of models in this process."""

    def __init__(self, opening: Opening) -> None:
        from meshnode.models.workers.torch import open_adaptor

        around = WorkerSurroundings(opening, opening.folder, None, _nobody)
        self._adaptor = open_adaptor(around)
        self._adaptor.initialise()
        self.inputs: tuple[TensorSpec, ...] = opening.inputs
        self.outputs: tuple[TensorSpec, ...] = opening.outputs
        self.device = self._adaptor.device

    def run(self, inputs: Sequence[Tensor], outputs: Sequence[str]) -> tuple[Tensor, ...]:
        arrays, datatypes = {}, {}
        for each in inputs:
            wire = WireTensor(each.name, each.datatype, each.shape, -1, each.size_bytes, b"")
            arrays[each.name] = array_of(wire, bytes(each.data))
            datatypes[each.name] = each.datatype
        (outcome,) = self._adaptor.execute([WorkerRequest(arrays, datatypes, tuple(outputs))])
        if isinstance(outcome, Exception):
            raise outcome
        found = {
            each.name: each
            for each in tensors_of(outcome.outputs, outcome.datatypes, tuple(outputs))
        }
        return tuple(found[name] for name in outputs or found)

    def close(self) -> None:
        self._adaptor.finalise()


def _scripted(name: str, *arguments: int) -> bytes:
    from . import torch_files  # only when it is needed: it imports PyTorch

    module = getattr(torch_files, name)(*arguments)
    return torch_files.scripted(module)


def _nobody(call: Any) -> Any:
    raise ModelError(f"nobody answers {call}")


KINDS: tuple[Kind, ...] = (OnnxKind(), LitertKind(), TorchKind())
