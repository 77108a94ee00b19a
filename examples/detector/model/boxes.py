"""From the detector's grid to boxes: a cell says whether a vehicle's middle is in it, where, its size and kind."""

from typing import NamedTuple

import numpy as np

CELLS = 12
"""Cells of the grid, in each direction."""


class Found(NamedTuple):
    """One finding: its box in pixels (left, top, right, bottom), its confidence, and its label's number."""

    box: tuple[float, float, float, float]
    confidence: float
    label: int


def decode(grid, size, threshold, most=100):
    """Return what a grid says, the surest first, without boxes that mean the same thing.

    Args:
        grid: [cells, cells, 5 + labels], as the model gives it.
        size: Width and height of the picture, in pixels.
        threshold: Findings that are less sure are left out.
        most: At most this many.
    """
    chances = 1 / (1 + np.exp(-grid[..., 0]))
    found = []
    for row, column in np.argwhere(chances >= threshold):
        cell = grid[row, column]
        x, y = (1 / (1 + np.exp(-cell[1:3])) + (column, row)) / CELLS
        width, height = np.exp(np.clip(cell[3:5], -4, 3)) / CELLS
        edges = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
        box = tuple(
            float(np.clip(edge, 0, 1) * size[number % 2]) for number, edge in enumerate(edges)
        )
        kinds = np.exp(cell[5:] - cell[5:].max())
        label = int(kinds.argmax())
        confidence = float(chances[row, column] * kinds[label] / kinds.sum())
        if confidence >= threshold:
            found.append(Found(box, confidence, label))
    kept = []
    for each in sorted(found, key=lambda each: -each.confidence):
        if len(kept) < most and all(overlap(each.box, other.box) < 0.4 for other in kept):
            kept.append(each)
    return kept


def overlap(one, other):
    """Return what two boxes share, as a part of what they cover together."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return width * height / (sum(areas) - width * height)
