"""Where a model version comes from: who published it, when, and how good it was found to be.

The node that publishes a version signs this with its key, together with what the version is. So whoever
sees a version anywhere can tell who put it into the mesh, and that nobody has changed what they said.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import msgspec

from meshnode.errors import ModelError
from meshnode.limits import MAX_NOTE_LENGTH, MAX_PROVENANCE_METRICS, MAX_SHOWN_LENGTH
from meshnode.types import node_id_of

if TYPE_CHECKING:
    from collections.abc import Callable

_PURPOSE: Final = "meshnode provenance"
_END_OF_TIME_S: Final = 253_402_300_800.0  # the year 10000: no date has a text from then on


class Provenance(msgspec.Struct, array_like=True, frozen=True):
    """What is known about a version's origin; not part of what the version is (its digest).

    Attributes:
        publisher: Id of the node that published it.
        published_s: Wall time, in seconds since 1970.
        label: The version as its author wrote it, such as `20260131_120000`; empty for plain integers.
        metrics: (name, value), such as accuracy.
        note: Free text.
        public_key: The publisher's Ed25519 key, 32 bytes; empty if unsigned.
        signature: Over the manifest's digest, name, version, variant and all other fields, 64 bytes.
        created_s: When its author made it, as they say, in seconds since 1970; 0 if they say nothing.
    """

    publisher: str = ""
    published_s: float = 0.0
    label: str = ""
    metrics: tuple[tuple[str, float], ...] = ()
    note: str = ""
    public_key: bytes = b""
    signature: bytes = b""
    created_s: float = 0.0


_FIRST_FIELDS: Final = 7
"""What a provenance had before it said when a version was made."""


@dataclass(frozen=True, slots=True)
class Said:
    """What a publisher says of a version besides its files.

    Attributes:
        metrics: How good it was found to be, by name.
        note: Free text.
        version: Its number, instead of the one that it has; None to leave that.
        variant: Which further form of a published version it is; empty for the version itself.
        replace: Whether it takes the place of what was published under its name and number.
    """

    metrics: tuple[tuple[str, float], ...] = ()
    note: str = ""
    version: int | None = None
    variant: str = ""
    replace: bool = False


NOTHING: Final = Said()
"""Of a version of which nothing is said."""


@dataclass(frozen=True, slots=True)
class Subject:
    """What a provenance is about: a version by its manifest's digest, name, number and variant."""

    digest: str
    model: str
    version: int
    variant: str = ""


def check_provenance(provenance: Provenance) -> Provenance:
    """Return a provenance that came from elsewhere if all of it is within limits.

    Raises:
        ModelError: naming the first field that is not.
    """
    if len(provenance.note) > MAX_NOTE_LENGTH:
        raise ModelError(
            f"a note has at most {MAX_NOTE_LENGTH} characters, not {len(provenance.note)}"
        )
    if len(provenance.label) > MAX_SHOWN_LENGTH or len(provenance.publisher) > MAX_SHOWN_LENGTH:
        raise ModelError("a version's label or publisher is too long")
    if len(provenance.metrics) > MAX_PROVENANCE_METRICS:
        raise ModelError(f"a version has at most {MAX_PROVENANCE_METRICS} metrics")
    for name, value in provenance.metrics:
        if not 0 < len(name) <= MAX_SHOWN_LENGTH or not math.isfinite(value):
            raise ModelError(
                f"the metric {name[:MAX_SHOWN_LENGTH]!r} is no name with a finite number"
            )
    if not 0 <= provenance.published_s < _END_OF_TIME_S:
        raise ModelError("a version was published at no time that there is")
    if not 0 <= provenance.created_s < _END_OF_TIME_S:
        raise ModelError("a version was made at no time that there is")
    return provenance


def sign(
    provenance: Provenance,
    subject: Subject,
    public_key: bytes,
    make_signature: Callable[[bytes], bytes],
) -> Provenance:
    """Return a provenance as the holder of a key publishes it.

    Args:
        provenance: What is said; its publisher and key are set here.
        subject: What it is said of.
        public_key: The publisher's Ed25519 key.
        make_signature: Signs with it.
    """
    named = msgspec.structs.replace(
        provenance, publisher=node_id_of(public_key), public_key=public_key, signature=b""
    )
    return msgspec.structs.replace(named, signature=make_signature(_signed_bytes(named, subject)))


def flaw_of(
    provenance: Provenance, subject: Subject, verify: Callable[[bytes, bytes, bytes], bool]
) -> str | None:
    """Say why a provenance is not to be believed, or None if its publisher has signed it.

    Args:
        provenance: What is said.
        subject: What it is said of.
        verify: Whether a signature (third) of data (second) is by a key (first).
    """
    if not provenance.signature:
        return "nobody has signed it"
    if node_id_of(provenance.public_key) != provenance.publisher:
        return "it is signed by another node than it names"
    unsigned = msgspec.structs.replace(provenance, signature=b"")
    if not verify(provenance.public_key, _signed_bytes(unsigned, subject), provenance.signature):
        return "its signature is not of this version, or it was changed"
    return None


def _signed_bytes(unsigned: Provenance, subject: Subject) -> bytes:
    named = (subject.digest, subject.model, subject.version, subject.variant)
    fields = msgspec.structs.astuple(unsigned)
    # What says nothing of when it was made is signed as before, so that older nodes believe it too.
    said = fields if unsigned.created_s else fields[:_FIRST_FIELDS]
    return msgspec.msgpack.encode([_PURPOSE, *named, said])
