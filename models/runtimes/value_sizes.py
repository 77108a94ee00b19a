"""Whether the work of a model may depend on the values in its inputs, not only on their shapes.

What a request will take is expected from the shapes of its inputs. A number in an input that says how
often a loop runs, or how large a tensor becomes, makes that worthless: such models never run on the event
loop. The rule follows values through the graph: what clients send is free, what is computed from it is
free, constants and shapes are not. Where a free value says a size or a number of rounds, the work depends
on values. What is not known counts as if it did.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

ALWAYS: Final = None
"""In a table of operators: whatever its inputs are, the values decide how long it takes."""

SizeInputs = Mapping[str, frozenset[int] | None]
"""By operator: the inputs that say a size or a number of rounds, or `ALWAYS`."""

ONNX: Final[SizeInputs] = {
    "AffineGrid": frozenset({1}),
    "BeamSearch": ALWAYS,
    "BlackmanWindow": frozenset({0}),
    "CenterCropPad": frozenset({1}),
    "ConstantOfShape": frozenset({0}),
    "CropAndResize": frozenset({3}),
    "DFT": frozenset({1}),
    "Expand": frozenset({1}),
    "GreedySearch": ALWAYS,
    "HammingWindow": frozenset({0}),
    "HannWindow": frozenset({0}),
    "If": frozenset({0}),
    "ImageDecoder": ALWAYS,
    "Loop": ALWAYS,
    "MaxUnpool": frozenset({2}),
    "MelWeightMatrix": frozenset({0, 1}),
    "OneHot": frozenset({1}),
    "Pad": frozenset({1}),
    "Range": frozenset({0, 1, 2}),
    "Resize": frozenset({1, 2, 3}),
    "STFT": frozenset({1, 3}),
    "Sampling": ALWAYS,
    "Tile": frozenset({1, 2}),
    "Upsample": frozenset({1}),
    "WhisperBeamSearch": ALWAYS,
}
LITERT: Final[SizeInputs] = {
    "BROADCAST_TO": frozenset({1}),
    "CALL": ALWAYS,
    "CUSTOM": ALWAYS,
    "FILL": frozenset({0}),
    "IF": ALWAYS,
    "MIRROR_PAD": frozenset({1}),
    "ONE_HOT": frozenset({1}),
    "PAD": frozenset({1}),
    "PADV2": frozenset({1}),
    "RANGE": frozenset({0, 1, 2}),
    "RESIZE_BILINEAR": frozenset({1}),
    "RESIZE_NEAREST_NEIGHBOR": frozenset({1}),
    "STABLEHLO_WHILE": ALWAYS,
    "TILE": frozenset({1}),
    "TRANSPOSE_CONV": frozenset({0}),
    "WHILE": ALWAYS,
}
_SHAPES: Final = frozenset({"Shape", "Size", "SHAPE", "RANK"})
"""Operators whose results tell their input's shape and nothing of its values."""

_PASSING: Final = frozenset({
    "Cast", "Flatten", "Gather", "Identity", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze",
})  # fmt: skip
"""Operators that give values of their first input and no others; a Cast from text is a reader first."""
_READERS: Final = {
    "Cast": 0,
    "Gather": 1,
    "GatherElements": 1,
    "GatherND": 1,
    "ScatterElements": 1,
    "ScatterND": 1,
}
"""By operator, the input whose values it may find impossible: an index, or a text that is no number."""


@dataclass(frozen=True, slots=True)
class Node:
    """One operation of a graph.

    Attributes:
        operator: Its name.
        inputs: Names of its inputs; empty for one that is left out.
        outputs: Names of its outputs.
        graphs: Graphs that it holds (the branches of an `If`).
    """

    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    graphs: tuple[Graph, ...] = ()


@dataclass(frozen=True, slots=True)
class Graph:
    """Operations in the order in which they run.

    Attributes:
        inputs: Names of what is given to it.
        nodes: What it does.
    """

    inputs: tuple[str, ...]
    nodes: tuple[Node, ...]


def works_by_values(graph: Graph, table: SizeInputs, outer: Iterable[str] = ()) -> bool:
    """Whether values that are given to a graph may decide how much it works.

    Args:
        graph: The graph.
        table: What its operators take as sizes.
        outer: Free values around it, which it may use too.
    """
    free = {*outer, *graph.inputs}
    for node in graph.nodes:
        sizes = table.get(node.operator, frozenset())
        if sizes is ALWAYS:
            return True
        if any(name in free for at, name in enumerate(node.inputs) if at in sizes):
            return True
        if any(works_by_values(each, table, free) for each in node.graphs):
            return True
        # A held graph may use anything around it, so its results count as free.
        if node.graphs or (
            node.operator not in _SHAPES and any(name in free for name in node.inputs)
        ):
            free.update(node.outputs)
    return False


def value_readers(graph: Graph) -> frozenset[str]:
    """Return the operators whose indices or texts are, wherever a graph has them, what the client sent.

    What such an operator says of an index that is out of range is the client's fault, not the model's.
    """
    sent = set(graph.inputs)
    own: set[str] = set()
    others: set[str] = set()
    for node in graph.nodes:
        for held in node.graphs:
            others |= _operators(held)
        at = _READERS.get(node.operator)
        if at is not None:
            is_sent = len(node.inputs) > at and node.inputs[at] in sent
            (own if is_sent else others).add(node.operator)
        if node.operator in _PASSING and node.inputs and node.inputs[0] in sent:
            sent.update(node.outputs)
    return frozenset(own - others)


def _operators(graph: Graph) -> set[str]:
    """Return all operators of a graph and of those that it holds."""
    found = {node.operator for node in graph.nodes}
    for node in graph.nodes:
        for held in node.graphs:
            found |= _operators(held)
    return found
