"""Magnitude pruning: the smallest weights become zero, at once or step by step while training.

In a training loop of PyTorch::

    from meshnode.models.optimize.pruning import MagnitudePruner, PolynomialSchedule

    pruner = MagnitudePruner(module, PolynomialSchedule(final=0.8, begin=1000, end=5000))
    for step, (rows, labels) in enumerate(batches):
        loss(module(rows), labels).backward()
        optimizer.step()
        pruner.step(step)

The schedule is that of Zhu and Gupta, "To prune, or not to prune" (2017), section 3: much goes early, while
the network can still recover, and little late.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True, slots=True)
class PolynomialSchedule:
    """Which share of the weights is zero at which training step.

    Attributes:
        final: Share at the end, 0 to 1.
        begin: Step at which pruning begins.
        end: Step at which the final share is reached; later than `begin`.
        initial: Share at the beginning.
        power: 3 in the paper; 1 is linear; higher prunes more in the first steps.
        frequency: Steps from one change to the next: weights need some to recover.
    """

    final: float
    begin: int = 0
    end: int = 1000
    initial: float = 0.0
    power: float = 3.0
    frequency: int = 1

    def __post_init__(self) -> None:
        """Check that the numbers make a schedule."""
        if not 0 <= self.initial <= self.final < 1:
            raise ValueError(
                f"shares must be 0 <= initial <= final < 1, not {self.initial}, {self.final}"
            )
        if not 0 <= self.begin < self.end or self.frequency < 1 or self.power <= 0:
            raise ValueError("steps must be 0 <= begin < end, frequency >= 1 and power > 0")

    def share(self, step: int) -> float:
        """Return the share of weights that is zero after a training step."""
        if step < self.begin:
            return 0.0
        left = 1 - min(1.0, (step - self.begin) / (self.end - self.begin))
        return self.final + (self.initial - self.final) * float(left**self.power)

    def is_due(self, step: int) -> bool:
        """Whether the weights are chosen anew at this step."""
        if not self.begin <= step <= self.end:
            return False
        return step == self.end or (step - self.begin) % self.frequency == 0


def prune_array(weights: Any, share: float) -> Any:
    """Return weights of which a share, the smallest by magnitude, is zero.

    Args:
        weights: An array of any shape.
        share: 0 to 1; so many elements, rounded down, become zero, whatever else is equal to them.
    """
    flat = np.abs(np.asarray(weights)).ravel()
    count = int(flat.size * share)
    if count == 0:
        return np.array(weights, copy=True)
    pruned = np.array(weights, copy=True).ravel()
    pruned[np.argpartition(flat, count - 1)[:count]] = 0
    return pruned.reshape(np.shape(weights))


class MagnitudePruner:
    """Keeps the smallest weights of a PyTorch module at zero while it is trained."""

    def __init__(self, module: Any, schedule: PolynomialSchedule) -> None:
        """Take a module.

        Args:
            module: A `torch.nn.Module`; its parameters with two dimensions or more are pruned, each by
                itself, so that no layer loses all.
            schedule: How many weights are zero when.
        """
        self._parameters = [each for each in module.parameters() if each.ndim >= 2]
        self._schedule = schedule
        self._masks: list[Any] = []

    def __repr__(self) -> str:
        return f"<MagnitudePruner {len(self._parameters)} parameters, {self.sparsity():.1%} zero>"

    def step(self, step: int) -> None:
        """Prune; call it after every step of the optimizer, which moves the weights away from zero."""
        if self._schedule.is_due(step):
            share = self._schedule.share(step)
            self._masks = [_mask(each, share) for each in self._parameters]
        for parameter, mask in zip(self._parameters, self._masks, strict=False):
            parameter.data.mul_(mask)

    def sparsity(self) -> float:
        """Return the share of prunable weights that is zero."""
        total = sum(each.numel() for each in self._parameters)
        return sum(int((each == 0).sum()) for each in self._parameters) / total if total else 0.0


def _mask(parameter: Any, share: float) -> Any:
    """Return a tensor of ones, and of zeros where the smallest weights are."""
    flat = parameter.detach().abs().flatten()
    mask = flat.new_ones(flat.shape)
    count = int(flat.numel() * share)
    if count:
        mask[flat.argsort()[:count]] = 0
    return mask.reshape(parameter.shape)
