"""Whether two answers agree, and where they differ most if they do not."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from meshnode.types import DataType

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from meshnode.state.release import Comparison
    from meshnode.types import Tensor

_DTYPES: Final[Mapping[DataType, str]] = {
    DataType.BOOL: "?",
    DataType.UINT8: "<u1",
    DataType.UINT16: "<u2",
    DataType.UINT32: "<u4",
    DataType.UINT64: "<u8",
    DataType.INT8: "<i1",
    DataType.INT16: "<i2",
    DataType.INT32: "<i4",
    DataType.INT64: "<i8",
    DataType.FP16: "<f2",
    DataType.BF16: "<u2",
    DataType.FP32: "<f4",
    DataType.FP64: "<f8",
}
_FLOATS: Final = frozenset({DataType.FP16, DataType.BF16, DataType.FP32, DataType.FP64})

_PIECE: Final = 1 << 18
"""Elements that are compared at once: 2 MiB as float64, whatever the answer's size."""

_SHOWN: Final = 60
"""Characters of a text that are shown."""

_LENGTH: Final = struct.Struct("<I")


class Disagreement(NamedTuple):
    """How an answer differs from what it is compared with; as a text, a sentence for people.

    Attributes:
        output: Name of the output; of several, the first that differs.
        elements: How many of its elements (with `top`: rows) differ; 0 where it is of another kind altogether.
        of: Of how many.
        what: The greatest difference, in words.
    """

    output: str
    elements: int
    of: int
    what: str

    def __str__(self) -> str:
        """Return it as a sentence."""
        counts = f" ({self.elements} of {self.of} differ)" if self.elements else ""
        return f"{self.output}: {self.what}{counts}"


def agree(
    answer: Sequence[Tensor], reference: Sequence[Tensor], compare: Comparison, tolerance: float
) -> Disagreement | None:
    """Return how an answer differs from another one, or None if they agree.

    Outputs are compared by name, whatever their order. Numbers that are none (NaN) equal each other.

    Args:
        answer: The new version's outputs.
        reference: What they are compared with.
        compare: `close`: each number differs by no more than the tolerance, plus the tolerance times the reference;
            texts, whole numbers and truth values are equal. `equal`: so is everything. `top`: the greatest number of
            the last dimension is at the same place; outputs without such a choice are close.
        tolerance: Of `close`.
    """
    found = {tensor.name: tensor for tensor in answer}
    expected = {tensor.name: tensor for tensor in reference}
    for name in sorted(expected.keys() - found.keys()):
        return Disagreement(name, 0, 0, "is missing")
    for name in sorted(found.keys() - expected.keys()):
        return Disagreement(name, 0, 0, "is not an output of the other version")
    for name, tensor in expected.items():
        different = _differs(found[name], tensor, compare, tolerance)
        if different is not None:
            return different
    return None


def _differs(
    answer: Tensor, reference: Tensor, compare: Comparison, tolerance: float
) -> Disagreement | None:
    name = reference.name
    if answer.datatype is not reference.datatype:
        return Disagreement(name, 0, 0, f"is {answer.datatype}, not {reference.datatype}")
    if answer.shape != reference.shape:
        return Disagreement(
            name, 0, 0, f"has shape {list(answer.shape)}, not {list(reference.shape)}"
        )
    if answer.data == reference.data:
        return None
    if reference.datatype is DataType.BYTES:
        return _texts(name, answer, reference)
    try:
        found, expected = _numbers(answer), _numbers(reference)
    except ValueError:
        return Disagreement(name, 0, 0, f"has bytes that do not fill shape {list(answer.shape)}")
    if compare == "top" and reference.shape and reference.shape[-1] > 1:
        return _tops(name, found, expected, reference.shape[-1])
    allowed = tolerance if compare != "equal" and reference.datatype in _FLOATS else 0.0
    return _values(name, found, expected, reference.datatype, allowed)


def _values(
    name: str,
    found: NDArray[Any],
    expected: NDArray[Any],
    datatype: DataType,
    tolerance: float,
) -> Disagreement | None:
    different, worst, what = 0, -1.0, ""
    for start in range(0, len(expected), _PIECE):
        a, b = found[start : start + _PIECE], expected[start : start + _PIECE]
        if datatype in _FLOATS:
            a, b = a.astype(np.float64), b.astype(np.float64)
            same = (a == b) | (np.isnan(a) & np.isnan(b))
            with np.errstate(invalid="ignore", over="ignore"):
                apart = np.where(same, 0.0, np.abs(a - b))
                is_near = np.isfinite(apart) & (apart <= tolerance + tolerance * np.abs(b))
                wrong = ~same & ~is_near
            apart = np.where(np.isnan(apart), np.inf, apart)
        else:
            wrong = a != b
            apart = np.abs(a.astype(np.float64) - b.astype(np.float64))
        different += int(np.count_nonzero(wrong))
        place = int(np.argmax(np.where(wrong, apart, -1.0)))
        if wrong[place] and apart[place] > worst:
            worst = float(apart[place])
            what = f"{_number(a[place])}, not {_number(b[place])}, at {start + place}"
    return Disagreement(name, different, len(expected), what) if different else None


def _tops(
    name: str, found: NDArray[Any], expected: NDArray[Any], width: int
) -> Disagreement | None:
    rows = len(expected) // width
    places = found.reshape(rows, width).argmax(axis=1)
    wanted = expected.reshape(rows, width).argmax(axis=1)
    different = np.flatnonzero(places != wanted)
    if not len(different):
        return None
    row = int(different[0])
    what = f"greatest at {int(places[row])}, not at {int(wanted[row])}, in row {row}"
    return Disagreement(name, len(different), rows, what)


def _texts(name: str, answer: Tensor, reference: Tensor) -> Disagreement | None:
    found, expected = list(_elements(answer)), list(_elements(reference))
    if len(found) != len(expected):
        return Disagreement(name, 0, 0, f"has {len(found)} elements, not {len(expected)}")
    different = [place for place, each in enumerate(expected) if each != found[place]]
    if not different:
        return None
    first = different[0]
    what = f"{_shown(found[first])}, not {_shown(expected[first])}, at {first}"
    return Disagreement(name, len(different), len(expected), what)


def _elements(tensor: Tensor) -> Iterator[bytes]:
    data = memoryview(tensor.data).cast("B")
    position = 0
    while position + _LENGTH.size <= len(data):
        start = position + _LENGTH.size
        position = start + _LENGTH.unpack_from(data, position)[0]
        yield bytes(data[start:position])


def _shown(content: bytes) -> str:
    text = content[: 4 * _SHOWN].decode(errors="replace")
    return repr(text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…")


def _numbers(tensor: Tensor) -> NDArray[Any]:
    array = np.frombuffer(tensor.data, _DTYPES[tensor.datatype])
    if len(array) != tensor.elements:
        raise ValueError(tensor.name)
    return _as_float32(array) if tensor.datatype is DataType.BF16 else array


def _as_float32(array: NDArray[Any]) -> NDArray[np.float32]:
    """Return numbers of BF16, which are the upper halves of those of FP32."""
    return (array.astype(np.uint32) << 16).view(np.float32)


def _number(value: Any) -> str:
    item = value.item()
    return f"{item:.6g}" if isinstance(item, float) else str(item)
