"""How many requests came to this node's gateway, for the models of which somebody wants to know."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


class Arrivals:
    """Counts requests by model, those that are refused included: what is asked for, not what is served."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}

    def __repr__(self) -> str:
        return f"<Arrivals at {len(self._counts)} models>"

    def follow(self, models: Iterable[str]) -> None:
        """Count for these models from now on, and for no others; counts that go on are kept."""
        self._counts = {model: self._counts.get(model, 0) for model in models}

    def came(self, model: str) -> None:
        """Count a request of a client."""
        if model in self._counts:
            self._counts[model] += 1

    def counts(self) -> tuple[tuple[str, int], ...]:
        """Return model and number of each that was asked for at all, by name."""
        return tuple(sorted((model, count) for model, count in self._counts.items() if count))
