"""Fleets: meshes of bare membership cores, which can be hurt and watched.

A `Fleet` is what the conformance suite (`tests/membership`), the soak and the benchmark ask of a mesh.
`SimFleet` (`virtual_fleet.py`) runs it in virtual time; another one may run it over real sockets, so
that a case is written once. Nodes go by their names.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

import msgspec

from meshnode.membership.messages import CODEC, MemberRecord, Records, sign_record
from meshnode.options import DEFAULT_MESH_PORT
from meshnode.types import Address, NodeId, NodeState

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from meshnode.membership import Incarnation, MembershipConfig
    from meshnode.wire.codec import Message

CHAIN_BYTES: Final = 602
"""An admission chain of the founder's grant and one admission, as `sim.trust` makes it."""


@dataclass(frozen=True, slots=True)
class FleetEvent:
    """What a node's core told people: when (seconds of the fleet's clock), which node, and what.

    `subject` is a name where the event is about a node of the fleet.
    """

    time_s: float
    node: str
    kind: str
    subject: str
    detail: str


@dataclass(slots=True)
class Traffic:
    """What a node's membership has said and heard; bytes are of the whole packets on the wire."""

    datagrams_out: int = 0
    datagram_bytes_out: int = 0
    notes_out: int = 0
    note_bytes_out: int = 0
    datagrams_in: int = 0
    datagram_bytes_in: int = 0
    notes_in: int = 0
    note_bytes_in: int = 0

    @property
    def bytes_out(self) -> int:
        """Everything said."""
        return self.datagram_bytes_out + self.note_bytes_out

    @property
    def bytes_in(self) -> int:
        """Everything heard."""
        return self.datagram_bytes_in + self.note_bytes_in


@dataclass(frozen=True, slots=True)
class Sight:
    """How one node sees another."""

    state: NodeState
    incarnation: Incarnation
    boot: int


class Fleet(Protocol):
    """A mesh of membership cores.

    Attributes:
        config: Of all nodes.
    """

    config: MembershipConfig

    def now(self) -> float:
        """Return the fleet's seconds."""
        ...

    def add(self, name: str, *, seeds: Iterable[str] = (), **record: Any) -> NodeId:
        """Start a node that looks for the mesh at these nodes; `record` sets fields of its record."""
        ...

    def names(self) -> list[str]:
        """Return the nodes that run."""
        ...

    def run_for(self, seconds: float) -> None:
        """Let time pass."""
        ...

    def run_until(self, condition: Callable[[], bool], limit_s: float) -> float:
        """Let time pass until a condition holds; return how long it took.

        Raises:
            AssertionError: if it does not hold within `limit_s`; it names the seed.
        """
        ...

    def crash(self, name: str) -> None:
        """Kill a node's process; the kernel closes its links."""
        ...

    def power_off(self, name: str) -> None:
        """Cut a node's power: not even its links say so."""
        ...

    def restart(self, name: str, *, seeds: Iterable[str] = ()) -> None:
        """Boot a node that crashed, lost power or left, from its disk: a later epoch."""
        ...

    def freeze(self, name: str) -> None:
        """Stop a node's process as SIGSTOP does."""
        ...

    def thaw(self, name: str) -> None:
        """Let a frozen node run on."""
        ...

    def leave(self, name: str) -> None:
        """Let a node say goodbye and end."""
        ...

    def update(self, name: str, **changes: Any) -> None:
        """Change fields of a node's own record."""
        ...

    def partition(self, *groups: Iterable[str]) -> None:
        """Cut everything between nodes of different groups."""
        ...

    def one_way(self, sources: Iterable[str], targets: Iterable[str]) -> None:
        """Lose everything that the sources send to the targets."""
        ...

    def block_udp(self, sources: Iterable[str], targets: Iterable[str]) -> None:
        """Lose datagrams from the sources to the targets; links stay."""
        ...

    def heal(self) -> None:
        """Undo partitions and blocks."""
        ...

    def set_loss(self, loss: float) -> None:
        """Lose this share of all datagrams, 0 to 1."""
        ...

    def say(self, sender: str, to: str, message: Message, *, by_datagram: bool = True) -> None:
        """Let a node hear a message that a member has really sent: sealed by it, whatever it says."""
        ...

    def watch(self, tap: Callable[[float, str, str, bytes], None] | None) -> None:
        """Show every datagram's payload from now on: seconds, sender, receiver, payload."""
        ...

    def view(self, name: str) -> Mapping[str, Sight]:
        """Return how a node sees all nodes, itself included, by name."""
        ...

    def record(self, name: str) -> MemberRecord:
        """Return a node's own record as it spreads it."""
        ...

    def agree(self, names: Iterable[str] | None = None) -> bool:
        """Whether these nodes (all that run) see each other alive, as they are, and nobody else live."""
        ...

    def acquainted(self, names: Iterable[str] | None = None) -> bool:
        """Whether these nodes (all that run) hold each other for live, suspect or not, and nobody else."""
        ...

    def events(
        self, *kinds: str, node: str | None = None, subject: str | None = None
    ) -> list[FleetEvent]:
        """Return what cores told people, oldest first; of all kinds if none is named."""
        ...

    def forget_events(self) -> None:
        """Drop the events until now."""
        ...

    def traffic(self, name: str) -> Traffic:
        """Return what a node has said and heard since its start, or since `reset_traffic`."""
        ...

    def reset_traffic(self) -> None:
        """Count anew from here."""
        ...

    def close(self) -> None:
        """End all nodes."""
        ...


# Identities whose signatures cost a hash.


def public_key(name: str) -> bytes:
    """Return the key of the node with this name."""
    return hashlib.sha256(b"key of " + name.encode()).digest()


def signature(key: bytes, data: bytes) -> bytes:
    """Stand in for Ed25519, as long as one: whoever calls this has the key."""
    return hashlib.blake2b(data, key=key).digest()


def verify(key: bytes, data: bytes, signed: bytes) -> bool:
    """Whether `signature` of this key made these bytes."""
    return signed == signature(key, data)


def verify_record(record: MemberRecord) -> str | None:
    """Return why a record is refused, or None."""
    if verify(record.public_key, record.signed_bytes(), record.signature):
        return None
    return "its signature is wrong"


def make_record(name: str, **fields: Any) -> MemberRecord:
    """Return the signed record of the node with this name, as large as a daemon's usually is."""
    key = public_key(name)
    blank = MemberRecord(
        public_key=key,
        name=name,
        region="eu",
        zone="",
        labels={},
        addresses=(Address("10.0.0.1", DEFAULT_MESH_PORT),),
        http="",
        epoch=1,
        counter=0,
        boot=1,
        capabilities={"cpus": 4, "memory_bytes": 16_000_000_000},
        chain=bytes(CHAIN_BYTES),
    )
    record = msgspec.structs.replace(blank, **fields)
    return sign_record(record, lambda data: signature(key, data))


def records_of(*records: MemberRecord) -> Records:
    """Return the message that carries these records."""
    return Records(tuple(msgspec.Raw(CODEC.encode(record)) for record in records))
