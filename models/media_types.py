"""Media types: which ones a client accepts, best first, and which one a file's content or name tells.

`Accept` is read as RFC 9110 (12.5.1) says: names without case, `q` weighs, `q=0` refuses, other parameters do not count.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

    from meshnode.types import Buffer

JSON: Final = "application/json"
LINES: Final = "application/x-ndjson"
EVENTS: Final = "text/event-stream"

_ANY_JSON: Final = frozenset({"*/*", "application/*", JSON})
_ALIASES: Final = {"image/jpg": "image/jpeg", "audio/x-wav": "audio/wav"}
_MAGIC: Final = (
    (b"\x89PNG\r\n\x1a\n", "image/png"), (b"\xff\xd8\xff", "image/jpeg"), (b"GIF8", "image/gif"),
    (b"II*\0", "image/tiff"), (b"MM\0*", "image/tiff"), (b"%PDF-", "application/pdf"),
    (b"OggS", "audio/ogg"), (b"fLaC", "audio/flac"), (b"ID3", "audio/mpeg"),
)  # fmt: skip
_ENDINGS: Final = {
    "png": "image/png", "jpg": "image/jpeg", "jpeg": "image/jpeg", "gif": "image/gif", "webp": "image/webp",
    "bmp": "image/bmp", "tif": "image/tiff", "tiff": "image/tiff", "ppm": "image/x-portable-pixmap",
    "pdf": "application/pdf", "wav": "audio/wav", "mp3": "audio/mpeg", "ogg": "audio/ogg", "flac": "audio/flac",
    "mp4": "video/mp4", "webm": "video/webm", "csv": "text/csv", "npy": "application/x-npy", "zip": "application/zip",
}  # fmt: skip
"""Media types by the endings of file names: a table of one's own, since systems' tables differ."""


def accepted(header: str) -> tuple[str, ...]:
    """Return the media types of an Accept header, in lower case, the best first; those of `q=0` are left out."""
    found: list[tuple[float, str]] = []
    for each in header.split(","):
        kind, *parameters = (part.strip().lower() for part in each.split(";"))
        weight = next((part[2:] for part in parameters if part.startswith("q=")), "1")
        try:
            quality = float(weight)
        except ValueError:
            quality = 1.0
        if kind and quality > 0:
            found.append((quality, plain_name(kind)))
    return tuple(kind for _, kind in sorted(found, key=lambda each: -each[0]))


def wants_json(header: str) -> bool:
    """Whether an Accept header asks for JSON or anything: then the answer is JSON."""
    kinds = accepted(header)
    return not kinds or not _ANY_JSON.isdisjoint(kinds)


def framing(header: str) -> str:
    """Return how an Accept header wants the parts of a stream: `EVENTS`, `LINES`, or empty where it does not say."""
    return next((kind for kind in accepted(header) if kind in (EVENTS, LINES)), "")


def asks_for_stream(header: str) -> bool:
    """Whether an Accept header alone asks for a stream: it names events or lines, and no JSON before them."""
    kinds = accepted(header)
    first = next((kind for kind in kinds if kind in _ANY_JSON or kind in (EVENTS, LINES)), "")
    return first in (EVENTS, LINES)


def plain_name(kind: str) -> str:
    """Return the usual name of a media type that has several."""
    return _ALIASES.get(kind, kind)


def answered_as(kinds: Sequence[str], own: str) -> str:
    """Return as what a file is labelled: as what it is, where that can be told, else as the best type that is asked for.

    Args:
        kinds: What is accepted, the best first.
        own: What the file's content or name tells; empty if nothing.
    """
    asked = next((kind for kind in kinds if "*" not in kind), "")
    return own or asked or "application/octet-stream"


def by_ending(name: str) -> str:
    """Return the media type that a file's name tells, or nothing."""
    _, dot, ending = name.rpartition(".")
    return _ENDINGS.get(ending.lower(), "") if dot else ""


def sniffed(data: Buffer) -> str:
    """Return the media type that a file's first bytes tell, or nothing."""
    begin = bytes(memoryview(data).cast("B")[:12])
    if begin[:4] == b"RIFF":
        return {b"WEBP": "image/webp", b"WAVE": "audio/wav"}.get(begin[8:], "")
    if begin[:2] == b"BM" and begin[6:10] == bytes(4):  # two letters alone begin many a text
        return "image/bmp"
    return next((kind for magic, kind in _MAGIC if begin.startswith(magic)), "")
