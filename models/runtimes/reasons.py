"""What foreign libraries say when they fail, in one short line."""

from __future__ import annotations

import re

from meshnode.limits import MAX_RUNTIME_MESSAGE_LENGTH


class NewText:
    """What is new in messages of a library that tells all its earlier ones again with each."""

    def __init__(self) -> None:
        """Have heard nothing yet."""
        self._before = ""

    def __repr__(self) -> str:
        return f"<NewText after {self.told} characters>"

    @property
    def told(self) -> int:
        """Characters of the last message as the library gave it."""
        return len(self._before)

    def of(self, error: BaseException) -> str:
        """Return the new part of an error's message as one short line."""
        text = str(error)
        new = text.removeprefix(self._before) or text
        self._before = text
        # Its sentences are put together without a space.
        return _short(re.sub(r"\.(?=[A-Z])", ". ", new)) or type(error).__name__


def clean_reason(error: BaseException) -> str:
    """Return a foreign error's message as one short line, without codes and temporary paths."""
    text = " ".join(str(error).split())
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : [A-Z_]+ : ", "", text)
    text = re.sub(r"^Load model from .* failed: ?", "", text)
    return _short(text) or type(error).__name__


def _short(text: str) -> str:
    text = " ".join(text.split())
    if len(text) <= MAX_RUNTIME_MESSAGE_LENGTH:
        return text
    return text[: MAX_RUNTIME_MESSAGE_LENGTH - 1] + "…"
