"""Mistakes in a scenario: where, what was found, and what would be right."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

KeyPath = tuple[str | int, ...]
"""Where a value stands in a scenario: keys, and numbers of elements from 0."""

_SHOWN: Final = 32  # known names in a message: all verbs, all keys
_SHOWN_LENGTH: Final = 60  # characters of a value that was found


@dataclass(frozen=True, slots=True)
class Mistake:
    """Something that is not as it must be.

    Attributes:
        at: Where. A key that is missing is not part of it.
        message: What was found and what is allowed: a clause without a full stop.
    """

    at: KeyPath
    message: str

    def __str__(self) -> str:
        return f"{spelled(self.at)}: {self.message}" if self.at else self.message


def spelled(at: KeyPath) -> str:
    """Return a place as people write it, such as `nodes[0].device`."""
    text = ""
    for part in at:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            key = part if part.isprintable() else repr(part)
            text += f".{key}" if text else key
    return text


def shown(value: object) -> str:
    """Return a value as a message shows it: as TOML spells it, shortened."""
    text = str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= _SHOWN_LENGTH else text[: _SHOWN_LENGTH - 3] + "..."


def unknown(what: str, name: object, known: Iterable[str], also: Iterable[str] = ()) -> str:
    """Return that there is nothing of this name, and which names there are, the nearest first.

    Args:
        what: What the name should be of, such as `verb`.
        name: What was found.
        known: The names that are allowed.
        also: Other names that are allowed, told only where they are near.
    """
    names = [*dict.fromkeys(known)]
    if not names:
        return f"there is no {what} {shown(name)}, as there is none at all"
    by_folded = {each.casefold(): each for each in [*names, *also]}
    text = str(name)[:_SHOWN_LENGTH].casefold()
    near = [by_folded[each] for each in difflib.get_close_matches(text, [*by_folded], n=3)]
    rest = [each for each in names if each not in near]
    first = ", ".join([*near, *rest][:_SHOWN])
    more = len(names) - _SHOWN
    known_text = f"known: {first}" + (f" and {more} more" if more > 0 else "")
    guess = f"did you mean {near[0]!r}? " if near else ""
    return f"there is no {what} {shown(name)}; {guess}{known_text}"
