"""Whether an answer is what a person, or the request itself, says would have been right.

| the release compares | an answer is right if |
|---|---|
| `close` | its numbers are those of the label, within the tolerance; texts are equal |
| `equal` | its values are those of the label |
| `top` | the place of its greatest number is the label, in each row; where there is no choice, as with `close` |

A label is one value, a list, or values by the names of outputs; a model with several outputs takes the last form. It has
as many values as the answer, or as its rows with `top`, and their kind: one that has others is refused, since it says
nothing of the answer. A number may be written as a text, as in a header.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from meshnode.errors import InvalidRequest, MeshError
from meshnode.gateway.protocols.plain_tensors import plain
from meshnode.types import DataType

if TYPE_CHECKING:
    from meshnode.state.release import Comparison
    from meshnode.types import Tensor

_SHOWN_CHARACTERS = 40
_TRUTHS = {"true": True, "false": False, "1": True, "0": False}


def is_right(outputs: Sequence[Tensor], label: Any, compare: Comparison, tolerance: float) -> bool:
    """Return whether an answer is what a label says.

    Args:
        outputs: The answer.
        label: As JSON gave it.
        compare: When it is.
        tolerance: Of `close`: so much, and so much times the label's number beside it.

    Raises:
        InvalidRequest: if the label names an output that the answer has not, names none where there are several, or has
            values of another number or kind than the answer; the message says what is expected.
    """
    named = {tensor.name: tensor for tensor in outputs}
    if isinstance(label, Mapping):
        unknown = label.keys() - named.keys()
        if unknown or not label:
            raise InvalidRequest(
                f"the label names {min(unknown, default='no output')!r}; the answer's outputs are "
                f"{', '.join(map(repr, named))}"
            )
        pairs = [(named[name], value) for name, value in label.items()]
    elif len(outputs) == 1:
        pairs = [(outputs[0], label)]
    else:
        raise InvalidRequest(
            f"the answer has {len(outputs)} outputs; write the label as {{NAME: VALUE}} with names of "
            f"{', '.join(map(repr, named))}"
        )
    found = [_is_right(tensor, value, compare, tolerance) for tensor, value in pairs]
    return all(found)


def _is_right(tensor: Tensor, label: Any, compare: Comparison, tolerance: float) -> bool:
    try:
        values = plain(tensor)
    except MeshError:
        return False
    is_number = tensor.datatype not in (DataType.BYTES, DataType.BOOL)
    by_place = compare == "top" and is_number and bool(tensor.shape) and tensor.shape[-1] > 1
    if by_place:
        values = _places(values, tensor.shape[-1])
    wanted = _flat(label)
    kind = (
        "whole number, the place of the greatest,"
        if by_place
        else _KINDS.get(tensor.datatype, "number")
    )
    if len(wanted) != len(values):
        each = f"one {kind} for each row" if by_place else f"one {kind} for each of the answer's"
        raise InvalidRequest(
            f"the label of output {tensor.name!r} has {_count(len(wanted))}; it takes {len(values)}, {each}"
        )
    read: Callable[[Any], Any] = _READERS.get(tensor.datatype, _number)
    rights = [read(each) for each in wanted]
    for each, right in zip(wanted, rights, strict=True):
        if right is None or (by_place and right % 1 != 0):
            raise InvalidRequest(
                f"the label of output {tensor.name!r} has the value {_shown(each)}; each is a {kind.rstrip(',')}"
            )
    if is_number and not by_place and compare != "equal":
        return all(
            _is_close(value, right, tolerance) for value, right in zip(values, rights, strict=True)
        )
    return all(bool(value == right) for value, right in zip(values, rights, strict=True))


def _flat(label: Any) -> list[Any]:
    found: list[Any] = []
    waiting = [label]
    while waiting:
        each = waiting.pop()
        if isinstance(each, list):
            waiting.extend(reversed(each))
        else:
            found.append(each)
    return found


def _places(values: Sequence[Any], size: int) -> list[int]:
    """Return where the greatest number of each row is, as an argmax over a last dimension of this size."""
    rows = (values[start : start + size] for start in range(0, len(values), size))
    return [max(range(len(row)), key=row.__getitem__) for row in rows]


def _number(value: Any) -> float | None:
    """Return the number that a value of a label is, also where it is written as a text; None if it is none."""
    if isinstance(value, str):
        try:
            value = int(value)
        except ValueError:
            try:
                value = float(value)
            except ValueError:
                return None
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return value if is_number and not _is_huge(value) else None


def _truth(value: Any) -> bool | None:
    """Return true or false as a label says it, also as 1 or 0, or as a text; None if it is neither."""
    is_written = isinstance(value, bool | str) or (isinstance(value, int) and value in (0, 1))
    return _TRUTHS.get(str(value).strip().lower()) if is_written else None


def _text(value: Any) -> str | None:
    """Return the text of a label, which a header's number is as well; None if it is none."""
    is_written = isinstance(value, str | int) and not isinstance(value, bool)
    return str(value) if is_written and not _is_huge(value) else None


_KINDS = {DataType.BYTES: "text", DataType.BOOL: "true or false"}
_READERS: Mapping[DataType, Callable[[Any], Any]] = {DataType.BYTES: _text, DataType.BOOL: _truth}


def _is_huge(value: Any) -> bool:
    """Whether a whole number is beyond those of tensors, and of arithmetic with them."""
    return isinstance(value, int) and abs(value) >= 1 << 64


def _count(number: int) -> str:
    return "1 value" if number == 1 else f"{number} values"


def _shown(value: Any) -> str:
    text = "null" if value is None else "a huge number" if _is_huge(value) else repr(value)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}..."


def _is_close(value: Any, right: float, tolerance: float) -> bool:
    if value != value and right != right:  # both are no number
        return True
    return bool(abs(value - right) <= tolerance + tolerance * abs(right))
