"""Small models that several modules of these tests serve, each under a name of its own."""

from __future__ import annotations

import json
import zipfile
from typing import TYPE_CHECKING, Any, Final

from onnx import TensorProto

from tests.unit.models.conftest import add_and_subtract, identity

if TYPE_CHECKING:
    from pathlib import Path

DATATYPES: Final = (
    "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16", "FP32", "FP64", "BYTES",
)  # fmt: skip

ADD_CONFIG: Final[dict[str, Any]] = {
    "backend": "onnxruntime",
    "max_batch_size": 8,
    "input": [
        {"name": name, "data_type": "TYPE_INT32", "dims": [2]} for name in ("a", "b")
    ],
    "output": [
        {"name": name, "data_type": "TYPE_INT32", "dims": [2]} for name in ("sum", "difference")
    ],
}  # fmt: skip
"""A configuration of `add_and_subtract`, as JSON."""

_ECHO: Final = """
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        answers = []
        for request in requests:
            outputs = [
                pb_utils.Tensor("out_" + each.name()[3:], each.as_numpy()) for each in request.inputs()
            ]
            answers.append(pb_utils.InferenceResponse(outputs))
        return answers
"""

_STREAM: Final = """
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            word = pb_utils.get_input_tensor_by_name(request, "text").as_numpy().ravel()[0]
            count = int(pb_utils.get_input_tensor_by_name(request, "count").as_numpy().ravel()[0])
            sender = request.get_response_sender()
            for number in range(count):
                text = np.array([word + b" " + str(number).encode()], dtype=object)
                sender.send(pb_utils.InferenceResponse([pb_utils.Tensor("word", text)]))
            sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
"""


_SUMS: Final = """
import time

import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def initialize(self, args):
        self.sums = {}

    def execute(self, requests):
        answers = []
        time.sleep(PAUSE_S)
        for request in requests:
            key = request.correlation_id()
            value = pb_utils.get_input_tensor_by_name(request, "x").as_numpy()
            if request.flags() & pb_utils.TRITONSERVER_REQUEST_FLAG_SEQUENCE_START:
                self.sums[key] = np.zeros_like(value)
            self.sums[key] = self.sums[key] + value
            answers.append(pb_utils.InferenceResponse([pb_utils.Tensor("sum", self.sums[key])]))
        return answers
"""

_TOLD_SUMS: Final = """
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def initialize(self, args):
        self.sums = {}

    def execute(self, requests):
        answers = []
        for request in requests:
            given = {each.name(): each.as_numpy() for each in request.inputs()}
            assert given["CORRID"].dtype == np.uint64
            key, value = int(given["CORRID"][0, 0]), given["x"]
            before = 0 if given["START"][0, 0] else self.sums[key]
            self.sums[key] = before + value
            answers.append(pb_utils.InferenceResponse([pb_utils.Tensor("sum", self.sums[key])]))
        return answers
"""


def model_file(folder: Path, name: str) -> Path:
    """Write a Python model that answers each of its inputs, one of each datatype, as it is."""

    def tensors(kind: str, prefix: str) -> str:
        return "\n".join(
            f'{kind} {{ name: "{prefix}_{each}" data_type: TYPE_{"STRING" if each == "BYTES" else each} '
            "dims: [ -1 ] }"
            for each in DATATYPES
        )

    config = f'backend: "python"\nmax_batch_size: 8\n{tensors("input", "in")}\n{tensors("output", "out")}\n'
    return _python(folder / name, config, _ECHO)


def stream_folder(folder: Path, name: str) -> Path:
    """Write a decoupled Python model: `count` parts of one `word` each."""
    config = """
backend: "python"
input { name: "text" data_type: TYPE_STRING dims: [ 1 ] }
input { name: "count" data_type: TYPE_INT32 dims: [ 1 ] }
output { name: "word" data_type: TYPE_STRING dims: [ 1 ] }
model_transaction_policy { decoupled: true }
"""
    return _python(folder / name, config, _STREAM)


def told_sum_folder(folder: Path, name: str) -> Path:
    """Write a Python model as `sum_folder`, which reads the sequence from control inputs, as Triton's examples do."""
    config = """
backend: "python"
max_batch_size: 4
input { name: "x" data_type: TYPE_INT32 dims: [ 1 ] }
output { name: "sum" data_type: TYPE_INT32 dims: [ 1 ] }
sequence_batching {
  max_sequence_idle_microseconds: 60000000
  control_input [
    { name: "START" control [ { kind: CONTROL_SEQUENCE_START fp32_false_true: [ 0, 1 ] } ] },
    { name: "CORRID" control [ { kind: CONTROL_SEQUENCE_CORRID data_type: TYPE_UINT64 } ] }
  ]
}
instance_group { kind: KIND_CPU count: 1 }
"""
    return _python(folder / name, config, _TOLD_SUMS)


def sum_folder(folder: Path, name: str, pause_s: float = 0) -> Path:
    """Write a Python model of sequences: the `sum` of all `x` of a sequence so far, each after a pause."""
    config = """
backend: "python"
max_batch_size: 4
input { name: "x" data_type: TYPE_INT32 dims: [ 1 ] }
output { name: "sum" data_type: TYPE_INT32 dims: [ 1 ] }
sequence_batching { max_sequence_idle_microseconds: 60000000 }
instance_group { kind: KIND_CPU count: 1 }
"""
    return _python(folder / name, config, f"PAUSE_S = {pause_s}\n{_SUMS}")


def add_folder(folder: Path, name: str) -> Path:
    """Write the ONNX model that adds and subtracts, without a configuration."""
    place = folder / name / "1"
    place.mkdir(parents=True)
    (place / "model.onnx").write_bytes(add_and_subtract())
    return folder / name


def brain_floats(folder: Path, name: str) -> Path:
    """Write an ONNX model that answers its BF16 input `x` as `y`."""
    place = folder / name / "1"
    place.mkdir(parents=True)
    (place / "model.onnx").write_bytes(identity(TensorProto.BFLOAT16))
    return folder / name


def archive(path: Path, handler: str) -> Path:
    """Write a TorchServe archive whose handler is this source."""
    manifest = {
        "model": {
            "modelName": path.stem, "handler": "handler.py", "modelVersion": "1.0",
        }
    }  # fmt: skip
    with zipfile.ZipFile(path, "w") as made:
        made.writestr("MAR-INF/MANIFEST.json", json.dumps(manifest))
        made.writestr("handler.py", handler)
    return path


def _python(folder: Path, config: str, source: str) -> Path:
    (folder / "1").mkdir(parents=True)
    (folder / "config.pbtxt").write_text(config, encoding="utf-8")
    (folder / "1" / "model.py").write_text(source, encoding="utf-8")
    return folder
