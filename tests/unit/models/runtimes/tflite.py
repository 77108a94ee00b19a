"""TensorFlow Lite files made from their published schema, one operator each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

if TYPE_CHECKING:
    from collections.abc import Sequence

TYPES = schema.TensorType


def tensor(
    name: str,
    shape: Sequence[int],
    element: int = TYPES.FLOAT32,
    *,
    buffer: int = 0,
    scale: float = 0.0,
) -> Any:
    """A tensor; -1 is an open dimension, `scale` makes it a quantised one."""
    made = schema.TensorT()
    made.name, made.type, made.buffer = name, element, buffer
    made.shape = [max(1, size) for size in shape]
    made.shapeSignature = list(shape)
    if scale:
        made.quantization = schema.QuantizationParametersT()
        made.quantization.scale, made.quantization.zeroPoint = [scale], [0]
    return made


def operator(
    code: int,
    inputs: Sequence[int],
    outputs: Sequence[int],
    kind: int,
    options: Any,
    version: int = 1,
) -> tuple[Any, Any]:
    """An operator and its code."""
    known = schema.OperatorCodeT()
    known.builtinCode, known.deprecatedBuiltinCode, known.version = code, min(code, 127), version
    made = schema.OperatorT()
    made.inputs, made.outputs = list(inputs), list(outputs)
    made.builtinOptionsType, made.builtinOptions = kind, options
    return known, made


def model(
    tensors: Sequence[Any],
    operators: Sequence[tuple[Any, Any]],
    inputs: Sequence[int],
    outputs: Sequence[int],
    *,
    weights: Sequence[bytes] = (),
    signature: dict[str, Sequence[tuple[str, int]]] | None = None,
) -> bytes:
    """A file of one graph; `weights` are the buffers from 1 on."""
    graph = schema.SubGraphT()
    graph.name, graph.tensors = "main", list(tensors)
    graph.inputs, graph.outputs = list(inputs), list(outputs)
    graph.operators = []
    made = schema.ModelT()
    made.version, made.subgraphs, made.operatorCodes = 3, [graph], []
    for at, (code, each) in enumerate(operators):
        each.opcodeIndex = at
        made.operatorCodes.append(code)
        graph.operators.append(each)
    made.buffers = [schema.BufferT()]
    for content in weights:
        buffer = schema.BufferT()
        buffer.data = np.frombuffer(content, np.uint8)
        made.buffers.append(buffer)
    if signature:
        named = schema.SignatureDefT()
        named.signatureKey, named.subgraphIndex = "serving_default", 0
        named.inputs = [_entry(*each) for each in signature["inputs"]]
        named.outputs = [_entry(*each) for each in signature["outputs"]]
        made.signatureDefs = [named]
    builder = flatbuffers.Builder(1024)
    builder.Finish(made.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def identity(
    element: int = TYPES.FLOAT32, shape: Sequence[int] = (-1, 2), scale: float = 0.0
) -> bytes:
    """A graph without operators: `x` is its input and its output, under the name `y` too."""
    return model(
        [tensor("x", shape, element, scale=scale)], [], [0], [0],
        signature={"inputs": [("x", 0)], "outputs": [("y", 0)]},
    )  # fmt: skip


def add_and_subtract(shape: Sequence[int] = (-1, 2)) -> bytes:
    """`sum` and `difference` of `a` and `b`."""
    tensors = [tensor(name, shape, TYPES.INT32) for name in ("a", "b", "sum", "difference")]
    options = schema.BuiltinOptions
    return model(
        tensors,
        [
            operator(
                schema.BuiltinOperator.ADD, [0, 1], [2], options.AddOptions, schema.AddOptionsT()
            ),
            operator(
                schema.BuiltinOperator.SUB, [0, 1], [3], options.SubOptions, schema.SubOptionsT()
            ),
        ],
        [0, 1],
        [2, 3],
    )


def quotient() -> bytes:
    """An integer division, which fails on zeros."""
    tensors = [tensor(name, (-1,), TYPES.INT32) for name in ("x", "y")]
    division = operator(
        schema.BuiltinOperator.DIV,
        [0, 0],
        [1],
        schema.BuiltinOptions.DivOptions,
        schema.DivOptionsT(),
    )
    return model(tensors, [division], [0], [1])


def words() -> bytes:
    """Picks strings by their place."""
    tensors = [
        tensor("words", (-1,), TYPES.STRING),
        tensor("which", (-1,), TYPES.INT32),
        tensor("picked", (-1,), TYPES.STRING),
    ]
    gather = operator(
        schema.BuiltinOperator.GATHER, [0, 1], [2], schema.BuiltinOptions.GatherOptions,
        schema.GatherOptionsT(), 3,
    )  # fmt: skip
    return model(tensors, [gather], [0, 1], [2])


def filled(*, is_sent: bool) -> bytes:
    """Repeats `x` as often as `size` says, or, if that is not sent, twice."""
    tensors = [
        tensor("size", (1,), TYPES.INT32, buffer=0 if is_sent else 1),
        tensor("x", ()),
        tensor("y", (-1,)),
    ]
    fill = operator(
        schema.BuiltinOperator.FILL,
        [0, 1],
        [2],
        schema.BuiltinOptions.FillOptions,
        schema.FillOptionsT(),
    )
    weights = [] if is_sent else [np.array([2], np.int32).tobytes()]
    return model(tensors, [fill], [0, 1] if is_sent else [1], [2], weights=weights)


def weighty(count: int) -> bytes:
    """Adds so many float weights to its input."""
    tensors = [
        tensor("x", (1, count)),
        tensor("w", (1, count), buffer=1),
        tensor("y", (1, count)),
    ]
    add = operator(
        schema.BuiltinOperator.ADD,
        [0, 1],
        [2],
        schema.BuiltinOptions.AddOptions,
        schema.AddOptionsT(),
    )
    return model(tensors, [add], [0], [2], weights=[bytes(4 * count)])


def _entry(name: str, at: int) -> Any:
    entry = schema.TensorMapT()
    entry.name, entry.tensorIndex = name, at
    return entry


def crash() -> bytes:
    """Well-formed, but its branches are itself: preparing it calls itself until the stack ends."""
    tensors = [tensor(name, (1,), TYPES.BOOL) for name in ("x", "y")]
    branches = schema.IfOptionsT()
    branches.thenSubgraphIndex = branches.elseSubgraphIndex = 0
    either = operator(
        schema.BuiltinOperator.IF, [0, 0], [1], schema.BuiltinOptions.IfOptions, branches
    )
    return model(tensors, [either], [0], [1])
