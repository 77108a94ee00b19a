"""Models that the benchmarks run: made here, with random weights, since only their size matters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import TensorProto, external_data_helper, helper, numpy_helper, save

if TYPE_CHECKING:
    from pathlib import Path

_RNG = np.random.default_rng(7)


class _Graph:
    """An ONNX graph that grows node by node."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.weights: list[Any] = []

    def weight(self, *shape: int) -> str:
        """Add weights of a size that keeps activations bounded, and return their name."""
        fan_in = int(np.prod(shape[1:])) or 1
        values = _RNG.standard_normal(shape, dtype=np.float32) / np.float32(np.sqrt(fan_in))
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(values, name))
        return name

    def add(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Add a node and return its output."""
        name = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], **attributes))
        return name

    def model(self, given: str, shape: list[Any], result: str, out: list[Any]) -> Any:
        """Return the model with one input and one output."""
        graph = helper.make_graph(
            [*self.nodes, helper.make_node("Identity", [result], ["y"])],
            "bench",
            [helper.make_tensor_value_info(given, TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, out)],
            self.weights,
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def resnet18(path: Path) -> None:
    """Write a CNN with the layers of ResNet-18: 3 x 224 x 224 in, 1000 scores out, 11.7 M weights."""
    graph = _Graph()
    x = graph.add("Conv", "x", graph.weight(64, 3, 7, 7), strides=[2, 2], pads=[3] * 4)
    x = graph.add("Relu", x)
    x = graph.add("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    channels = 64
    for width in (64, 128, 256, 512):
        for block in range(2):
            stride = 2 if block == 0 and width > 64 else 1
            kept = x
            x = graph.add(
                "Conv", x, graph.weight(width, channels, 3, 3), strides=[stride] * 2, pads=[1] * 4
            )
            x = graph.add("Relu", x)
            x = graph.add("Conv", x, graph.weight(width, width, 3, 3), pads=[1] * 4)
            if stride == 2:
                kept = graph.add("Conv", kept, graph.weight(width, channels, 1, 1), strides=[2, 2])
            x = graph.add("Relu", graph.add("Add", x, kept))
            channels = width
    x = graph.add("Flatten", graph.add("GlobalAveragePool", x))
    x = graph.add("MatMul", x, graph.weight(512, 1000))
    save(graph.model("x", ["n", 3, 224, 224], x, ["n", 1000]), str(path))


def dense(path: Path, side: int = 1024, layers: int = 4) -> None:
    """Write layers whose weights must be read once for each batch, whatever its rows: batching pays."""
    graph = _Graph()
    x = "x"
    for _ in range(layers):
        x = graph.add("Relu", graph.add("MatMul", x, graph.weight(side, side)))
    save(graph.model("x", ["n", side], x, ["n", side]), str(path))


def heavy(folder: Path, size_bytes: int) -> None:
    """Write a model of so many bytes, most of them in a file beside it."""
    graph = _Graph()
    count = size_bytes // 4
    values = _RNG.integers(0, 2**30, count, dtype=np.int32).view(np.float32)
    graph.weights.append(numpy_helper.from_array(values, "w0"))
    first = graph.add("Slice", "w0", *(_constant(graph, at) for at in (0, 2, 0)))
    model = graph.model("x", ["n", 2], graph.add("Add", "x", first), ["n", 2])
    external_data_helper.convert_model_to_external_data(
        model, location="weights.bin", size_threshold=1024
    )
    save(model, str(folder / "model.onnx"))


def _constant(graph: _Graph, value: int) -> str:
    name = f"c{len(graph.weights)}"
    graph.weights.append(numpy_helper.from_array(np.array([value], np.int64), name))
    return name
