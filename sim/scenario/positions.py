"""On which line of a TOML document each value stands; tomllib, which reads them, does not tell.

The document must be one that tomllib has accepted: this scanner only has to find where things begin and
end, so it takes the shortest way and checks nothing.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from meshnode.sim.scenario.mistakes import KeyPath

_BLANK: Final = re.compile(r"[ \t]*")
_BETWEEN: Final = re.compile(r"(?:[ \t\n,]|#[^\n]*)*")  # between values of an array, and statements
_BARE_KEY: Final = re.compile(r"[A-Za-z0-9_-]+")
_PLAIN: Final = re.compile(r"[^,\]}#\n]*")  # a number, a truth value, a date
_STRINGS: Final = (
    re.compile(r'"""(?:[^"\\]|\\.|"{1,2}(?!"))*"{3,5}', re.DOTALL),
    re.compile(r"'''(?:[^']|'{1,2}(?!'))*'{3,5}", re.DOTALL),
    re.compile(r'"(?:[^"\\\n]|\\.)*"'),
    re.compile(r"'[^'\n]*'"),
)
_ESCAPE: Final = re.compile(r'\\(u[0-9A-Fa-f]{4}|U[0-9A-Fa-f]{8}|[btnfr"\\e]|x[0-9A-Fa-f]{2})')
_ESCAPED: Final = {
    "b": "\b", "t": "\t", "n": "\n", "f": "\f", "r": "\r", '"': '"', "\\": "\\", "e": "\x1b",
}  # fmt: skip


def positions(text: str) -> dict[KeyPath, int]:
    """Return the line, from 1, of each table, key and element of an array.

    Args:
        text: A valid TOML document.

    Returns:
        By path; a table that stands in several places has the line of the first.
    """
    return _Scanner(text.replace("\r\n", "\n")).scan()


def line_of(at: KeyPath, lines: dict[KeyPath, int]) -> int:
    """Return the line of a place, or of what it is in where itself it is not in the document."""
    while at and at not in lines:
        at = at[:-1]
    return lines.get(at, 1)


class _Scanner:
    """Walks through a document once."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._ends = [found.start() for found in re.finditer("\n", text)]
        self._lines: dict[KeyPath, int] = {}
        self._counts: dict[KeyPath, int] = {}  # elements of each array of tables so far

    def scan(self) -> dict[KeyPath, int]:
        table: KeyPath = ()
        self._skip(_BETWEEN)
        while self._at < len(self._text):
            if self._text[self._at] == "[":
                table = self._header()
            else:
                self._key_and_value(table)
            self._skip(_BETWEEN)
        return self._lines

    def _header(self) -> KeyPath:
        line = self._line()
        is_array = self._text.startswith("[[", self._at)
        self._at += 2 if is_array else 1
        *outer, last = self._key()
        self._at += 2 if is_array else 1
        path: KeyPath = ()
        for part in outer:
            path = self._newest((*path, part), line)
        path = (*path, last)
        self._lines.setdefault(path, line)
        if not is_array:
            return path
        self._counts[path] = self._counts.get(path, 0) + 1
        return self._newest(path, line)

    def _newest(self, path: KeyPath, line: int) -> KeyPath:
        """Return the path itself, or of its newest element if it is an array of tables."""
        self._lines.setdefault(path, line)
        if path in self._counts:
            path = (*path, self._counts[path] - 1)
            self._lines.setdefault(path, line)
        return path

    def _key_and_value(self, table: KeyPath) -> None:
        line = self._line()
        path = table
        for part in self._key():
            path = (*path, part)
            self._lines.setdefault(path, line)
        self._at += 1  # the equals sign
        self._skip(_BLANK)
        self._value(path)

    def _value(self, path: KeyPath) -> None:
        first = self._text[self._at]
        if first == "[":
            self._array(path)
        elif first == "{":
            self._inline_table(path)
        elif first in "\"'":
            self._string()
        else:
            self._skip(_PLAIN)

    def _array(self, path: KeyPath) -> None:
        self._at += 1
        self._skip(_BETWEEN)
        number = 0
        while self._text[self._at] != "]":
            element = (*path, number)
            self._lines[element] = self._line()
            self._value(element)
            self._skip(_BETWEEN)
            number += 1
        self._at += 1

    def _inline_table(self, path: KeyPath) -> None:
        self._at += 1
        self._skip(_BETWEEN)
        while self._text[self._at] != "}":
            self._key_and_value(path)
            self._skip(_BETWEEN)
        self._at += 1

    def _key(self) -> list[str]:
        """Read a dotted key, and the blanks around it."""
        parts = []
        while True:
            self._skip(_BLANK)
            bare = _BARE_KEY.match(self._text, self._at)
            parts.append(self._skip(_BARE_KEY) if bare else _unquoted(self._string()))
            self._skip(_BLANK)
            if self._text[self._at] != ".":
                return parts
            self._at += 1

    def _string(self) -> str:
        for pattern in _STRINGS:
            if pattern.match(self._text, self._at):
                return self._skip(pattern)
        message = f"no value begins at {self._text[self._at : self._at + 20]!r}"
        raise AssertionError(message)

    def _skip(self, pattern: re.Pattern[str]) -> str:
        found = pattern.match(self._text, self._at)
        assert found is not None, f"{pattern.pattern} is not at {self._at}"
        self._at = found.end()
        return found.group()

    def _line(self) -> int:
        return bisect_right(self._ends, self._at - 1) + 1


def _unquoted(text: str) -> str:
    if text.startswith("'"):
        return text[1:-1]
    return _ESCAPE.sub(_unescaped, text[1:-1])


def _unescaped(found: re.Match[str]) -> str:
    what = found.group(1)
    return _ESCAPED[what] if what in _ESCAPED else chr(int(what[1:], 16))
