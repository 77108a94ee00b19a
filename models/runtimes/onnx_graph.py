"""Reads the operations of an ONNX file, without its weights and without the `onnx` package.

An ONNX file is a protobuf message (`onnx.proto`, the published schema). Only the fields that tell which
operation takes which value are read; everything else, weights above all, is passed over in the file.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO, Final

from meshnode.limits import MAX_ONNX_GRAPH_DEPTH, MAX_ONNX_NODE_BYTES
from meshnode.models.runtimes.protobuf_fields import Unreadable, fields
from meshnode.models.runtimes.value_sizes import ONNX, Graph, Node, value_readers, works_by_values

if TYPE_CHECKING:
    from pathlib import Path

_SEEN_DOMAINS: Final = frozenset({
    b"", b"ai.onnx", b"ai.onnx.ml", b"com.microsoft", b"com.microsoft.nchwc", b"com.ms.internal.nhwc",
})  # fmt: skip
"""Sets of operators that `ONNX` covers; of others nothing is known."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What was found out about an ONNX file.

    Attributes:
        works_by_values: Whether values in a request may decide how much it works.
        value_readers: Operators, such as `Gather`, whose indices are always what the client sent.
    """

    works_by_values: bool
    value_readers: frozenset[str]


_UNKNOWN: Final = Facts(works_by_values=True, value_readers=frozenset())


def read_facts(path: Path) -> Facts:
    """Look through an ONNX file; of one that cannot be read, nothing is promised."""
    try:
        with path.open("rb") as stream:
            size = stream.seek(0, 2)
            stream.seek(0)
            for field, end in fields(stream, size):
                if field == 7:  # ModelProto.graph
                    graph = _graph(stream, end, 0)
                    return Facts(works_by_values(graph, ONNX), value_readers(graph))
    except (Unreadable, OSError, UnicodeDecodeError):
        return _UNKNOWN
    return _UNKNOWN


def _graph(stream: BinaryIO, end: int, depth: int) -> Graph:
    if depth > MAX_ONNX_GRAPH_DEPTH:
        raise Unreadable
    nodes: list[Node] = []
    inputs: list[str] = []
    constants: set[str] = set()
    for field, field_end in fields(stream, end):
        if field == 1:  # GraphProto.node
            nodes.append(_node(stream, field_end, depth))
        elif field == 11:  # GraphProto.input, a ValueInfoProto
            inputs += [_text(stream, at) for name, at in fields(stream, field_end) if name == 1]
        elif field == 5:  # GraphProto.initializer: files before 2019 name them among the inputs too
            constants.update(
                _text(stream, at) for name, at in fields(stream, field_end) if name == 8
            )
    return Graph(tuple(name for name in inputs if name not in constants), tuple(nodes))


def _node(stream: BinaryIO, end: int, depth: int) -> Node:
    inputs: list[str] = []
    outputs: list[str] = []
    graphs: list[Graph] = []
    operator, domain = "", b""
    for field, at in fields(stream, end):
        if field == 1:
            inputs.append(_text(stream, at))
        elif field == 2:
            outputs.append(_text(stream, at))
        elif field == 4:
            operator = _text(stream, at)
        elif field == 5:  # NodeProto.attribute: a graph is field 6, several are field 11
            graphs += [
                _graph(stream, graph_end, depth + 1)
                for name, graph_end in fields(stream, at)
                if name in {6, 11}
            ]
        elif field == 7:
            domain = _read(stream, at)
    if domain not in _SEEN_DOMAINS:
        raise Unreadable
    return Node(operator, tuple(inputs), tuple(outputs), tuple(graphs))


def _text(stream: BinaryIO, end: int) -> str:
    return _read(stream, end).decode()


def _read(stream: BinaryIO, end: int) -> bytes:
    length = end - stream.tell()
    if length > MAX_ONNX_NODE_BYTES:
        raise Unreadable
    return stream.read(length)
