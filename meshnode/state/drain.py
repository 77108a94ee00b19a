"""Drains: that a node is to be emptied, as a wish of the mesh, and how far it is, as its own word.

    `drain/NODE` of the desired state    a `Drain`: an operator wants the node empty; deleted to take it back
    `drain` of the node's own state      a `DrainReport`: what is still there, and what keeps it there

The wish is in the desired state, so every node heeds it in the same moment in which it places models and
routes requests, it holds for a node that is away, and it outlives restarts. The report is the node's own:
only it knows what it still does.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Final, TypeVar

import msgspec

from meshnode.errors import ProtocolError
from meshnode.limits import MAX_DRAIN_REASONS, MAX_REASON_BYTES, MAX_RECORD_WALL_S
from meshnode.types import NodeId

if TYPE_CHECKING:
    from meshnode.state.desired import DesiredState

KEY_PREFIX: Final = "drain/"
"""Keys of the desired state that hold drains begin with this."""

REPORT_KEY: Final = "drain"
"""Key of a node's own state that holds its report."""

_Count = Annotated[int, msgspec.Meta(ge=0, le=2**31)]
_Sentence = Annotated[str, msgspec.Meta(max_length=MAX_REASON_BYTES)]


class Drain(msgspec.Struct, array_like=True, frozen=True):
    """That a node is to be emptied.

    Attributes:
        since_s: Since when, in seconds since the Unix epoch.
        force: Whether what nobody else can take over is given up, instead of keeping the node.
        wait_s: For how long what began there may go on (sequences, streams, jobs), in seconds; then it is ended.
    """

    since_s: Annotated[int, msgspec.Meta(ge=0, le=MAX_RECORD_WALL_S)]
    force: bool = False
    wait_s: Annotated[int, msgspec.Meta(ge=0, le=MAX_RECORD_WALL_S)] = 0

    def encode(self) -> bytes:
        """Return the value to put into the desired state."""
        return msgspec.msgpack.encode(self)

    @classmethod
    def decode(cls, value: bytes) -> Drain:
        """Read a value of the desired state.

        Raises:
            ProtocolError: if the bytes are no drain.
        """
        return _read(_drains, value)


class DrainState(StrEnum):
    """How far a node is that is to be emptied."""

    DRAINING = "draining"
    """It hands over what it serves, and finishes what it began."""
    DRAINED = "drained"
    """Nothing is left: it may be stopped, and nobody misses it."""


class DrainReport(msgspec.Struct, array_like=True, frozen=True):
    """How far a node is, as it says itself.

    Attributes:
        state: Whether anything is left.
        since_s: Of the `Drain` that it heeds: a report of an earlier one says nothing of this one.
        requests: That it works on, for its own callers and for other nodes.
        sequences: That have begun there and not ended.
        jobs: That run there, or that no other node has yet.
        replicas: Models that it still serves.
        waits_for: What it waits for, as sentences.
        blocked_by: What nobody else can take over, as sentences; only `force` goes on.
        ended: Sequences that were ended since they took longer than they may.
        force: Of the `Drain` that it heeds.
    """

    state: DrainState
    since_s: Annotated[int, msgspec.Meta(ge=0, le=MAX_RECORD_WALL_S)] = 0
    requests: _Count = 0
    sequences: _Count = 0
    jobs: _Count = 0
    replicas: _Count = 0
    waits_for: Annotated[tuple[_Sentence, ...], msgspec.Meta(max_length=MAX_DRAIN_REASONS)] = ()
    blocked_by: Annotated[tuple[_Sentence, ...], msgspec.Meta(max_length=MAX_DRAIN_REASONS)] = ()
    ended: _Count = 0
    force: bool = False

    def encode(self) -> bytes:
        """Return the value to put into the node's own state."""
        return msgspec.msgpack.encode(self)

    @classmethod
    def decode(cls, value: bytes) -> DrainReport:
        """Read what another node says.

        Raises:
            ProtocolError: if it is malformed or beyond limits.
        """
        return _read(_reports, value)


_drains = msgspec.msgpack.Decoder(Drain)
_reports = msgspec.msgpack.Decoder(DrainReport)


def drain_key(node: NodeId) -> str:
    """Return the key of the desired state that says that a node is to be emptied."""
    return KEY_PREFIX + node


def is_drain(key: str) -> bool:
    """Whether a key of the desired state is about a drain."""
    return key.startswith(KEY_PREFIX)


class Drains:
    """The nodes that are to be emptied, as the desired state says at this moment."""

    def __init__(self, desired: DesiredState) -> None:
        """Read from `desired`; `look` takes what it says."""
        self._desired = desired
        self._known: dict[NodeId, Drain] = {}
        self.look()

    def __repr__(self) -> str:
        return f"<Drains of {len(self._known)} nodes>"

    def __contains__(self, node: object) -> bool:
        """Whether a node is to be emptied."""
        return node in self._known

    def get(self, node: NodeId) -> Drain | None:
        """Return the drain of a node, or None."""
        return self._known.get(node)

    @property
    def nodes(self) -> frozenset[NodeId]:
        """All nodes that are to be emptied."""
        return frozenset(self._known)

    def look(self) -> frozenset[NodeId]:
        """Take what the desired state says now; return the nodes of which it says something else than before."""
        found: dict[NodeId, Drain] = {}
        for key, value in self._desired.items():
            if not is_drain(key):
                continue
            try:
                found[NodeId(key.removeprefix(KEY_PREFIX))] = Drain.decode(value)
            except ProtocolError:
                continue  # of a later version, or nonsense: it empties nobody
        before, self._known = self._known, found
        return frozenset(
            node for node in before.keys() | found.keys() if before.get(node) != found.get(node)
        )


_Value = TypeVar("_Value")


def _read(decoder: msgspec.msgpack.Decoder[_Value], data: bytes) -> _Value:
    try:
        return decoder.decode(data)
    except (msgspec.MsgspecError, ValueError) as error:
        raise ProtocolError(f"a value about a drain is not valid: {error}") from error
