"""As much of Dockerfiles as the tests need: instructions, and what .dockerignore lets into the context."""

from __future__ import annotations

import json
import re
from typing import NamedTuple


class Instruction(NamedTuple):
    """One instruction: its word in capitals, and its arguments as one text without continuations."""

    word: str
    text: str

    @property
    def words(self) -> list[str]:
        """Its arguments: the JSON form, or words without the flags."""
        if self.text.startswith("["):
            found: list[str] = json.loads(self.text)
            return found
        return [word for word in self.text.split() if not word.startswith("--")]


def read(text: str) -> list[Instruction]:
    """Return the instructions of a Dockerfile."""
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [Instruction(*line.split(maxsplit=1)) for line in joined.splitlines()]


def stages(instructions: list[Instruction]) -> list[list[Instruction]]:
    """Return the instructions of each stage, FROM first."""
    found: list[list[Instruction]] = []
    for each in instructions:
        if each.word == "FROM":
            found.append([])
        if found:
            found[-1].append(each)
    return found


def is_sent(path: str, ignore: str) -> bool:
    """Whether a file is in the context: the last line of .dockerignore that matches it or a folder above decides."""
    sent = True
    places = ["/".join(path.split("/")[:depth]) for depth in range(1, path.count("/") + 2)]
    for line in ignore.splitlines():
        pattern = line.strip()
        if not pattern or pattern.startswith("#"):
            continue
        is_exception = pattern.startswith("!")
        expression = re.compile(_expression(pattern.removeprefix("!")))
        if any(expression.fullmatch(place) for place in places):
            sent = is_exception
    return sent


def _expression(pattern: str) -> str:
    """Return Go's pattern (filepath.Match, with `**` for any number of folders) as a regular expression."""
    written = re.escape(pattern).replace(r"\*\*/", "(?:.*/)?").replace(r"\*", "[^/]*")
    return written.replace(r"\?", "[^/]")
