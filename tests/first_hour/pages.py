"""The commands of a Markdown page, each with the device that it belongs to.

A fenced block's info string names its language and its device; a page shows neither, so the prose
says the device too.

| info string | what the block is |
|---|---|
| `sh laptop` | commands for the laptop's terminal, all of which work |
| `sh laptop fails` | commands of which the last one fails |
| `sh laptop waits` | commands that go on while the reader does something on another device |
| `python office` | a program |
| `toml minipc ~/x/config.toml` | what that file holds from now on |
| `text` | what the block before it prints: these lines in this order, others between them; `…` stands for anything, spaces for any number of spaces, and a log line's time and level are left out |
| any other language, alone | nothing to run |
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_FENCE = re.compile(r"^( *)```(.*)$")
_LOG_PREFIX = re.compile(r"^\S+T\S+Z (?:debug|info|warning|error) +")
_RUNNABLE = ("sh", "python", "toml")


@dataclass
class Step:
    """One block that a reader acts on."""

    page: str
    line: int
    language: str
    device: str
    text: str
    file: str = ""
    fails: bool = False
    waits: bool = False
    expected: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return f"{self.page}:{self.line} on {self.device}:\n{self.text}"


def steps(page: Path) -> list[Step]:
    """Return a page's blocks in their order."""
    found: list[Step] = []
    lines = iter(enumerate(page.read_text(encoding="utf-8").splitlines(), start=1))
    after_step = False
    for number, line in lines:
        fence = _FENCE.match(line)
        if fence is None:
            after_step = after_step and not line.startswith("#")
            continue
        indent, (language, *words) = fence[1], (fence[2].split() or [""])
        content = []
        for _, inner in lines:
            if inner.strip() == "```":
                break
            content.append(inner.removeprefix(indent))
        if language == "text":
            if after_step:
                found[-1].expected += [text for text in content if text.strip()]
        elif language in _RUNNABLE:
            found.append(_step(f"{page.name}", number, language, words, "\n".join(content)))
            after_step = True
    return found


def _step(page: str, line: int, language: str, words: list[str], text: str) -> Step:
    if language == "toml" and not words:
        return Step(page, line, language, "", text)  # an example to look at
    assert words, f"{page}:{line}: this block names no device, as in ```sh laptop"
    step = Step(page, line, language, words[0], text)
    rest = words[1:]
    if language == "toml":
        (step.file,) = rest
    else:
        assert rest in ([], ["fails"], ["waits"]), f"{page}:{line}: {rest} is not understood"
        step.fails, step.waits = rest == ["fails"], rest == ["waits"]
    return step


def missing(expected: list[str], output: str) -> str | None:
    """Return the first expected line that the output lacks, or None when all are there in order."""
    said = [_squeezed(line) for line in output.splitlines()]
    position = 0
    for line in expected:
        pattern = re.compile(".*".join(re.escape(part) for part in _squeezed(line).split("…")))
        while position < len(said) and not pattern.fullmatch(said[position]):
            position += 1
        if position == len(said):
            return line
        position += 1
    return None


def _squeezed(line: str) -> str:
    return " ".join(_LOG_PREFIX.sub("", line).split())


def messages(page: Path) -> list[str]:
    """Return what the page says that programs say: the code in the first cells of its tables."""
    found: list[str] = []
    in_table = False
    for line in page.read_text(encoding="utf-8").splitlines():
        if line == "| it says | do this |":
            in_table = True
        elif not line.startswith("|"):
            in_table = False
        elif in_table:
            first = line.split(" | ")[0]
            found += re.findall(r"`([^`]+)`", first)
    return found


def says(message: str, output: str) -> bool:
    """Return whether an output holds a message; `…` in it stands for anything."""
    parts = [re.escape(part) for part in message.strip("…").split("…")]
    return re.search(".*".join(parts), " ".join(output.split())) is not None
