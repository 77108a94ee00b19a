"""How far the answers of one model are from those of another on the same inputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

_TINY = 1e-12  # keeps a ratio finite where the original answers zeros


@dataclass(frozen=True, slots=True)
class OutputAgreement:
    """Of one output.

    Attributes:
        name: Its name in the original.
        max_error: Largest absolute difference; infinite where one has a number and the other none.
        mean_error: Mean absolute difference.
        relative_error: Mean absolute difference over the original's mean absolute value.
        top1: Share of rows whose largest element is at the same place, or of labels that are equal;
            None where the output is neither.
    """

    name: str
    max_error: float
    mean_error: float
    relative_error: float
    top1: float | None


@dataclass(frozen=True, slots=True)
class Agreement:
    """Of all outputs on one sample.

    Attributes:
        outputs: In the original's order.
        rows: Rows of the sample.
        sample: Where it came from: a file's name, or `random`.
    """

    outputs: tuple[OutputAgreement, ...]
    rows: int
    sample: str

    @property
    def score(self) -> float:
        """From 0 (nothing in common) to 1: the lowest top-1 agreement, else 1 - relative error.

        Where a model has classes, they count and not the last digit of a probability.
        """
        classes = [each.top1 for each in self.outputs if each.top1 is not None]
        if classes:
            return min(classes)
        return max(0.0, 1.0 - max((each.relative_error for each in self.outputs), default=1.0))


def compare(original: Mapping[str, Any], result: Mapping[str, Any], sample: str) -> Agreement:
    """Compare outputs by name.

    Args:
        original: Arrays of shape [rows, ...] by output.
        result: Likewise; every output of the original must be there.
        sample: Where the inputs came from.

    Raises:
        ValueError: if an output is missing, or has another shape.
    """
    outputs = []
    for name, expected in original.items():
        if name not in result:
            raise ValueError(f"the result has no output {name!r}, only {sorted(result)}")
        outputs.append(_compare_one(name, np.asarray(expected), np.asarray(result[name])))
    rows = max(
        (np.asarray(each).shape[0] for each in original.values() if np.ndim(each)), default=1
    )
    return Agreement(tuple(outputs), int(rows), sample)


def _compare_one(name: str, expected: Any, found: Any) -> OutputAgreement:
    if np.squeeze(expected).shape == np.squeeze(found).shape:
        found = found.reshape(expected.shape)  # [n] and [n, 1] are the same answer
    if expected.shape != found.shape:
        raise ValueError(
            f"output {name!r} has shape {list(found.shape)}, the original's {list(expected.shape)}"
        )
    if expected.size == 0:
        return OutputAgreement(name, 0.0, 0.0, 0.0, None)
    if not _is_number(expected) or not _is_number(found):
        equal = float(np.mean(expected.astype(str) == found.astype(str)))
        return OutputAgreement(name, 1.0 - float(equal == 1.0), 1.0 - equal, 1.0 - equal, equal)
    error = _differences(expected.astype(np.float64), found.astype(np.float64))
    mean = float(error.mean())
    finite = np.abs(expected.astype(np.float64))
    finite = finite[np.isfinite(finite)]
    size = float(finite.mean()) if finite.size else 0.0
    return OutputAgreement(
        name,
        float(error.max()),
        mean,
        mean / max(size, _TINY) if mean else 0.0,
        _top1(expected, found),
    )


def _is_number(array: Any) -> bool:
    return array.dtype.kind in "fiub"


def _differences(expected: Any, found: Any) -> Any:
    """Absolute differences; equal non-numbers agree, others differ without bound."""
    same = (expected == found) | (np.isnan(expected) & np.isnan(found))
    with np.errstate(invalid="ignore"):
        error = np.abs(expected - found)
    return np.where(same, 0.0, np.where(np.isfinite(error), error, np.inf))


def _top1(expected: Any, found: Any) -> float | None:
    if expected.dtype.kind in "iub":  # labels
        return float(np.mean(expected == found))
    if expected.ndim < 2 or expected.shape[-1] < 2:
        return None
    usable = ~np.isnan(found).any(axis=-1) | np.isnan(expected).any(axis=-1)
    return float(np.mean((expected.argmax(axis=-1) == found.argmax(axis=-1)) & usable))
