"""What happened in a world: a hash of every step, and the events that cores emitted."""

from __future__ import annotations

import hashlib
import struct
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_RECORDS: Final = 1_000_000
"""Records kept; a busy hour of 100 nodes. Older ones fall out, the hash covers them still."""

_STEP = struct.Struct("<dI")
_HASH_EVERY_BYTES: Final = 65_536  # steps are hashed in blocks, which costs a tenth of one by one


@dataclass(frozen=True, slots=True)
class Record:
    """One `Emit` effect: when, by which node (its name), and what."""

    time_s: float
    node: str
    kind: str
    subject: str
    detail: str


class Trace:
    """The records of a run, and one hash over everything that any core was told or said."""

    def __init__(self) -> None:
        """Begin empty."""
        self._records: deque[Record] = deque(maxlen=MAX_RECORDS)
        self._hash = hashlib.sha256()
        self._block = bytearray()

    def __repr__(self) -> str:
        return f"<Trace of {len(self._records)} records, {self.digest()[:12]}>"

    def step(self, time_s: float, node: int, what: bytes, data: bytes = b"") -> None:
        """Cover that the node with this number was told something at this time.

        Args:
            time_s: When.
            node: Its number.
            what: What it was told.
            data: Whatever came with it, of any size.
        """
        block = self._block
        block += _STEP.pack(time_s, node)
        block += what
        block += data
        if len(block) >= _HASH_EVERY_BYTES:
            self._hash.update(block)
            block.clear()

    def record(self, time_s: float, node: str, kind: str, subject: str, detail: str) -> None:
        """Keep an emitted event."""
        self._records.append(Record(time_s, node, kind, subject, detail))
        self._block += f"\0{time_s!r}\0{node}\0{kind}\0{subject}\0{detail}".encode()

    def digest(self) -> str:
        """Return the hash so far, in hex: the same for the same seed and the same world."""
        whole = self._hash.copy()
        whole.update(self._block)
        return whole.hexdigest()

    def find(
        self, kind: str | None = None, node: str | None = None, subject: str | None = None
    ) -> Iterator[Record]:
        """Yield the records that match whatever is given, oldest first."""
        for record in self._records:
            if (
                (kind is None or record.kind == kind)
                and (node is None or record.node == node)
                and (subject is None or record.subject == subject)
            ):
                yield record
