"""What a node says of itself for placement, besides its record: which files it has, and what fails on it.

It is a value of the node's own versioned state, under `SUITABILITY_KEY`, so all nodes place alike by it. Who decides
what it says is the node itself (`meshnode.reconcile`): a version that it could not load several times in a row is told
to be failing here until the node is willing to try it again. Nodes of other versions, and liars, write it too, so
reading it never fails: garbage counts as nothing said.
"""

from __future__ import annotations

from typing import Annotated, Final

import msgspec

from meshnode.limits import (
    MAX_FAILING_TOLD,
    MAX_FAILING_WHY_LENGTH,
    MAX_FILES_TOLD,
    MAX_OWNER_VALUE_BYTES,
)

SUITABILITY_KEY: Final = "suitability"

MARK_BYTES: Final = 8
"""Of a digest, which tell versions apart well enough: who is mistaken for another is ranked a little better."""


class Failing(msgspec.Struct, array_like=True, frozen=True):
    """A version that could not be loaded here, again and again.

    Attributes:
        model: Its public name.
        version: Its number.
        mark: The first bytes of its digest: other files are another matter.
        why: A sentence.
    """

    model: str
    version: int
    mark: Annotated[bytes, msgspec.Meta(max_length=MARK_BYTES)]
    why: Annotated[str, msgspec.Meta(max_length=MAX_FAILING_WHY_LENGTH)] = ""


class Suitability(msgspec.Struct, array_like=True, frozen=True):
    """What a node says.

    Attributes:
        failing: What it cannot load at present.
        files: Marks of the versions whose files are on its disk, sorted.
    """

    failing: Annotated[tuple[Failing, ...], msgspec.Meta(max_length=MAX_FAILING_TOLD)] = ()
    files: Annotated[
        frozenset[Annotated[bytes, msgspec.Meta(max_length=MARK_BYTES)]],
        msgspec.Meta(max_length=MAX_FILES_TOLD),
    ] = frozenset()


NOTHING_SAID: Final = Suitability()
"""Of a node that says nothing."""

_DECODER: Final = msgspec.msgpack.Decoder(Suitability)
_ENCODER: Final = msgspec.msgpack.Encoder(order="deterministic")


def mark_of(digest: str) -> bytes:
    """Return the first bytes of a digest, which is given in hexadecimal."""
    return bytes.fromhex(digest[: 2 * MARK_BYTES])


def failing(model: str, version: int, digest: str, why: str) -> Failing:
    """Describe a version of our own that keeps failing."""
    # A library's message may hold what UTF-8 cannot (a file name of undecodable bytes).
    text = why.encode(errors="replace").decode()[:MAX_FAILING_WHY_LENGTH]
    return Failing(model, version, mark_of(digest), text)


def bounded(said: Suitability) -> Suitability:
    """Return what fits of it: the failures first, in the order of models, then the smallest marks."""
    kept = Suitability(
        tuple(sorted(said.failing, key=lambda each: (each.model, each.version))[:MAX_FAILING_TOLD]),
        frozenset(sorted(said.files)[:MAX_FILES_TOLD]),
    )
    while len(encode(kept)) > MAX_OWNER_VALUE_BYTES:
        kept = Suitability(kept.failing[: len(kept.failing) // 2], kept.files)
    return kept


def encode(said: Suitability) -> bytes:
    """Return the value's bytes; equal values have equal ones."""
    return _ENCODER.encode(said)


def decode(data: bytes | None) -> Suitability:
    """Read another node's value; one that is absent or malformed says nothing."""
    if data is None:
        return NOTHING_SAID
    try:
        return _DECODER.decode(data)
    except (msgspec.MsgspecError, ValueError):
        return NOTHING_SAID
