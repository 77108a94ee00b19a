"""Names of version folders: integers, as in Triton, and moments such as `20260131_120000`.

A moment becomes the integer of its digits, so that later ones are higher, and keeps its spelling as a
label.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Final, NamedTuple

_INTEGER: Final = re.compile(r"[1-9][0-9]{0,17}")  # below 2**63, without leading zeros
_MOMENT: Final = re.compile(r"[0-9]{8}_[0-9]{6}")
_MOMENT_FORMAT: Final = "%Y%m%d_%H%M%S"


class VersionName(NamedTuple):
    """A version's number, and the label it was written as; empty for a plain integer."""

    number: int
    label: str = ""


def read_version(name: str) -> VersionName | None:
    """Return what a folder's name or a written version stands for.

    Args:
        name: Such as `3` or `20260131_120000`.

    Returns:
        None if it is neither a positive integer without leading zeros nor a moment that exists.
    """
    if _INTEGER.fullmatch(name):
        return VersionName(int(name))
    moment = read_moment(name)
    return VersionName(int(f"{moment:%Y%m%d%H%M%S}"), name) if moment is not None else None


def read_moment(text: str) -> datetime | None:
    """Return the moment that a label such as `20260131_120000` stands for, taken as UTC; None if it is none."""
    if not (text.isascii() and _MOMENT.fullmatch(text)) or text.startswith("0"):
        return None
    try:
        return datetime.strptime(text, _MOMENT_FORMAT).replace(tzinfo=UTC)
    except ValueError:
        return None
