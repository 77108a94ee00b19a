"""Ends an answer at the first of some texts, also where it is cut by the borders of parts."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


class StopTexts:
    """Passes text on until a stop text comes; what may be the beginning of one is held back.

    Attributes:
        found: Whether one came. It is no part of what was passed on, and neither is what follows it.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        """Look for these; none of them is empty."""
        self._stops = tuple(stops)
        self._longest = max(map(len, stops), default=0)
        self._held = ""
        self.found = False

    def __repr__(self) -> str:
        return f"<StopTexts {self._stops} holds {len(self._held)} characters>"

    def take(self, text: str) -> str:
        """Return what can be passed on of the text so far, given more of it."""
        if not self._stops:
            return text
        if self.found:
            return ""
        text = self._held + text
        found = [
            (place + len(stop), place) for stop in self._stops if (place := text.find(stop)) >= 0
        ]
        if found:  # the one that is complete first, as if the text had come letter by letter
            self.found, self._held = True, ""
            return text[: min(found)[1]]
        keep = self._beginning(text)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def end(self) -> str:
        """Return what was held back, since no more text comes."""
        held, self._held = self._held, ""
        return held

    def _beginning(self, text: str) -> int:
        """Return how many characters at the end of a text may begin a stop text."""
        for length in range(min(self._longest - 1, len(text)), 0, -1):
            ending = text[-length:]
            if any(stop.startswith(ending) for stop in self._stops):
                return length
        return 0
