"""The outputs of an inference as rows of text. Pure."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

from meshnode.client.shapes import flatten

if TYPE_CHECKING:
    from collections.abc import Sequence

_MAX_ROWS_SHOWN: Final = 10  # a screen; --json has all
_MAX_SMALL: Final = 20  # elements of a row that fit a line
_MAX_CLASSES_SORTED: Final = 10_000  # ImageNet-21k has 21,841, more than a person reads
_TOP: Final = 3
_PROBABILITY_SLACK: Final = 0.02  # rounding of FP16 over a thousand classes
_BEGINNING: Final = 8  # values of what is too long to be shown


def output_lines(output: dict[str, Any]) -> list[str]:
    """Describe one output of a response for a person.

    Small rows are shown whole, rows that look like probabilities by their three largest, anything
    else by its shape and first values. `--json` shows everything.
    """
    shape, data = list(output.get("shape", ())), list(flatten(output.get("data", [])))
    # A vector is one value per row of the batch; only further dimensions make a row.
    row_size = math.prod(shape[1:]) if len(shape) > 1 else 1
    if not data or row_size < 1 or len(data) != math.prod(shape):
        return [f"shape {shape}"]
    rows = [data[start : start + row_size] for start in range(0, len(data), row_size)]
    if _are_probabilities(output, rows):
        lines = [_top(row) for row in rows[:_MAX_ROWS_SHOWN]]
    elif row_size <= _MAX_SMALL:
        lines = [_values(row) for row in rows[:_MAX_ROWS_SHOWN]]
    else:
        return [f"shape {shape}: {_values(data[:_BEGINNING])} …"]
    if len(rows) > _MAX_ROWS_SHOWN:
        lines.append(f"… and {len(rows) - _MAX_ROWS_SHOWN} more rows")
    return lines


def _are_probabilities(output: dict[str, Any], rows: list[list[Any]]) -> bool:
    if not str(output.get("datatype", "")).startswith(("FP", "BF")):
        return False
    return all(
        1 < len(row) <= _MAX_CLASSES_SORTED
        and all(isinstance(value, int | float) and 0 <= value <= 1 for value in row)
        and abs(math.fsum(row) - 1) <= _PROBABILITY_SLACK
        for row in rows
    )


def _top(row: list[float]) -> str:
    ranked = sorted(range(len(row)), key=lambda index: -row[index])[:_TOP]
    return ", ".join(f"{index}: {row[index]:.1%}" for index in ranked)


def _values(values: Sequence[Any]) -> str:
    return ", ".join(f"{item:.6g}" if isinstance(item, float) else str(item) for item in values)
