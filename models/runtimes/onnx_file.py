"""Which other files an ONNX file takes its weights from.

An ONNX file is a protobuf message. Of it only the fields that lead to tensors kept elsewhere are read, so that the
`onnx` package is not needed; weights inside the file are passed over unread. Numbers are those of
`onnx.proto` (https://github.com/onnx/onnx/blob/main/onnx/onnx.proto).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, BinaryIO, Final

from meshnode.errors import ModelError
from meshnode.limits import MAX_ONNX_GRAPH_DEPTH
from meshnode.models.runtimes.protobuf_fields import Unreadable, fields

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_MESSAGES_PER_GRAPH: Final = 3
"""A graph within a graph is an attribute of a node of it."""

_TENSOR: Final = "tensor"
_EXTERNAL_DATA: Final = 13  # of a tensor: pairs of key and value
_LEADS_TO: Final[Mapping[str, Mapping[int, str]]] = {
    "model": {7: "graph", 25: "function"},
    "graph": {1: "node", 5: _TENSOR, 15: "sparse"},
    "function": {7: "node"},
    "node": {5: "attribute"},
    "attribute": {5: _TENSOR, 6: "graph", 10: _TENSOR, 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: _TENSOR, 2: _TENSOR},
    _TENSOR: {_EXTERNAL_DATA: "pair"},
}
"""By message: the fields to look into, and what they hold."""


def external_files(stream: BinaryIO) -> frozenset[str]:
    """Return the places of a model's external data as the file spells them.

    Args:
        stream: The `.onnx` file, which can be sought.

    Raises:
        ModelError: if it is no ONNX file.
    """
    stream.seek(0, 2)
    end = stream.tell()
    stream.seek(0)
    try:
        return frozenset(_locations(stream, "model", end, 0))
    except (ValueError, UnicodeDecodeError):
        raise ModelError("it is no ONNX file, or damaged") from None


def _locations(stream: BinaryIO, message: str, end: int, depth: int) -> Iterator[str]:
    if depth > _MESSAGES_PER_GRAPH * MAX_ONNX_GRAPH_DEPTH:
        raise Unreadable("graphs within graphs within graphs")
    leads_to = _LEADS_TO[message]
    for field, field_end in fields(stream, end):
        inner = leads_to.get(field)
        if inner == "pair":
            key, value = _pair(stream, field_end)
            if key == "location":
                yield value
        elif inner is not None:
            yield from _locations(stream, inner, field_end, depth + 1)


def _pair(stream: BinaryIO, end: int) -> tuple[str, str]:
    texts = {
        field: stream.read(field_end - stream.tell()).decode()
        for field, field_end in fields(stream, end)
    }
    return texts.get(1, ""), texts.get(2, "")
