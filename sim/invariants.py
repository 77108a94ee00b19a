"""What must hold whatever happens: the invariants that every run checks all the time."""

from __future__ import annotations


class InvariantBroken(AssertionError):
    """Something that must always hold did not.

    Attributes:
        invariant: Its name.
        seed: Of the world in which it happened.
        time_s: Stage seconds.
    """

    def __init__(self, invariant: str, message: str, seed: int, time_s: float) -> None:
        """Say what broke."""
        super().__init__(f"{invariant}: {message} (seed {seed}, at {time_s:.3f} s)")
        self.invariant = invariant
        self.seed = seed
        self.time_s = time_s
