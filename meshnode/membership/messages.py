"""What membership says: numbers 20-32 of the mesh's messages.

| number | message | travels by | answered by |
|---|---|---|---|
| 20 | `MemberRecord` | inside others | |
| 21 | `Ping` | datagram, or note as a fallback | `Ack`, the way it came |
| 22 | `Ack` | datagram or note | |
| 23 | `PingRequest` | datagram or note | `Ack`, if the target answered the helper |
| 24 | `Gossip` | datagram or note | |
| 25 | `Sync` | note | `Digest` pieces or a `Summary`, if the views differ |
| 26 | `Digest` | note | `Records`, `RecordRequest` |
| 27 | `RecordRequest` | note | `Records` |
| 28 | `Records` | note | |
| 29 | `MemberList` | disk only | |
| 30 | `Nack` | datagram or note | |
| 31 | `Unwanted` | note | `Unwanted`, or the link's end |
| 32 | `Summary` | note | `Digest` pieces of the ranges that differ |

A record is signed by its subject over its own encoding with an empty signature, so its shape is
fixed: a node that dropped a field that it does not know could not check the signature any more.
New facts therefore go into `capabilities` and `labels`, which are open maps; a new field would be a
new message number. NodeIds travel as their 20 raw bytes: a datagram then carries half as many
rumours again.
"""

from __future__ import annotations

import base64
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Any, Final, NamedTuple
from weakref import WeakValueDictionary

import msgspec

from meshnode.errors import ProtocolError
from meshnode.limits import (
    MAX_CAPABILITY_DEPTH,
    MAX_COORDINATE_LENGTH,
    MAX_HOST_LENGTH,
    MAX_LABELS,
    MAX_MEMBER_ADDRESSES,
    MAX_MEMBER_RECORD_BYTES,
    MAX_MEMBERS,
    MAX_NAME_LENGTH,
    MAX_PERSISTED_MEMBERS,
    MAX_RECORDS_REQUESTED,
)
from meshnode.types import Address, NodeId, NodeState, node_id_of
from meshnode.wire.codec import Codec, Message

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

MESSAGE_TYPES: Final = range(20, 40)
"""The message numbers that belong to membership."""

RawId = Annotated[bytes, msgspec.Meta(min_length=20, max_length=20)]
"""A NodeId's 160 bits."""

Count = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
"""A number that only rises; its limit leaves room to add one."""

Nonce = Annotated[int, msgspec.Meta(ge=0)]
"""64 random bits; MessagePack has no larger number."""


BUCKETS: Final = 64
"""Parts of a view that are compared by hash: a difference in a mesh of 1,000 costs 16 entries."""

SUM_BYTES: Final = 8
"""Bytes of a part's hash. It guards against chance; whoever could forge it is a member."""


class Incarnation(NamedTuple):
    """Which life of a node, and which claim within it, a statement is about.

    The owner persists `epoch` and raises it at every start, so a restarted node is newer than
    everything said about its earlier lives; `counter` rises when it refutes or changes its record.
    """

    epoch: int
    counter: int

    def __str__(self) -> str:
        return f"{self.epoch}.{self.counter}"


class MemberRecord(Message, tag=20, frozen=True, gc=True, weakref=True):
    """What a node says about itself, signed by it.

    Attributes:
        public_key: Ed25519, 32 bytes; its hash is the NodeId.
        name: The node's name for people.
        region: Where it says it is.
        zone: Finer than region, may be empty.
        labels: Free words of its owner.
        addresses: Where it accepts links and datagrams (TCP and UDP), best first.
        http: `host:port` of its gateway, or empty.
        epoch: Rises at every start; kept by the owner.
        counter: Rises with every change of this record within an epoch.
        boot: Random per start: tells two processes with the same key apart.
        capabilities: Slow facts, as JSON would hold them.
        chain: The admission chain, opaque here.
        signature: Over `signed_bytes()`.
    """

    public_key: Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
    name: str
    region: str
    zone: str
    labels: dict[str, str]
    addresses: tuple[Address, ...]
    http: str
    epoch: Count
    counter: Count
    boot: Nonce
    capabilities: dict[str, Any]
    chain: bytes
    signature: bytes = b""

    @property
    def node_id(self) -> NodeId:
        """The NodeId of the record's subject."""
        return node_id_of_key(self.public_key)

    @property
    def incarnation(self) -> Incarnation:
        """Epoch and counter."""
        return Incarnation(self.epoch, self.counter)

    @property
    def version(self) -> tuple[int, int, int]:
        """Order among records of one subject; the boot nonce breaks the tie of two that run at once."""
        return (self.epoch, self.counter, self.boot)

    def signed_bytes(self) -> bytes:
        """Return what the signature covers: a purpose, and the record without its signature."""
        return b"meshnode member record 1\0" + CODEC.encode(
            msgspec.structs.replace(self, signature=b"")
        )


def sign_record(record: MemberRecord, sign: Callable[[bytes], bytes]) -> MemberRecord:
    """Return the record with its subject's signature; `sign` is Ed25519 with the subject's key."""
    return msgspec.structs.replace(record, signature=sign(record.signed_bytes()))


def leave_bytes(public_key: bytes, incarnation: Incarnation) -> bytes:
    """Return what a leaving node signs: nobody else can make it leave, nor replay an older leave."""
    return b"meshnode leave 1\0" + public_key + msgspec.msgpack.encode(incarnation)


def record_flaw(record: MemberRecord) -> str | None:
    """Return why a record may not be spread, or None: limits only, signatures are trust's subject."""
    size_bytes = len(CODEC.encode(record)) if _is_plain(record.capabilities, 0) else None
    if size_bytes is None:
        return f"capabilities must be JSON values, nested at most {MAX_CAPABILITY_DEPTH} deep"
    if size_bytes > MAX_MEMBER_RECORD_BYTES:
        return f"the record has {size_bytes} bytes; the limit is {MAX_MEMBER_RECORD_BYTES}"
    if (
        not record.name
        or max(map(len, (record.name, record.region, record.zone))) > MAX_NAME_LENGTH
    ):
        return (
            f"name, region and zone have at most {MAX_NAME_LENGTH} characters, a name at least one"
        )
    if len(record.labels) > MAX_LABELS:
        return f"a node has at most {MAX_LABELS} labels"
    if len(record.addresses) > MAX_MEMBER_ADDRESSES:
        return f"a node has at most {MAX_MEMBER_ADDRESSES} addresses"
    for host, port in record.addresses:
        if not 0 < len(host) <= MAX_HOST_LENGTH or not 0 < port <= 65_535:
            return "an address is a host of 1 to 253 characters and a port of 1 to 65535"
    return None


def _is_plain(value: Any, depth: int) -> bool:
    """Whether JSON could hold a value: MessagePack also has bytes, times and odd keys."""
    if value is None or isinstance(value, bool | float | str):
        return True
    if isinstance(value, int):
        return -(2**63) <= value < 2**64
    if depth >= MAX_CAPABILITY_DEPTH:
        return False
    if isinstance(value, list | tuple):
        return all(_is_plain(item, depth + 1) for item in value)
    if isinstance(value, dict):
        return all(
            isinstance(key, str) and _is_plain(item, depth + 1) for key, item in value.items()
        )
    return False


STATE_CODES: Final[tuple[NodeState, ...]] = (
    NodeState.ALIVE,
    NodeState.SUSPECT,
    NodeState.DEAD,
    NodeState.LEFT,
)
"""A state's number on the wire is its place here."""

CODE_OF: Final = {state: code for code, state in enumerate(STATE_CODES)}
"""The other way round."""

StateCode = Annotated[int, msgspec.Meta(ge=0, le=255)]
"""Also numbers that a later version may add: one such statement must not cost a whole message."""


def state_of(code: int) -> NodeState | None:
    """Return the state with this number, or None for one of a later version: it changes nothing."""
    return STATE_CODES[code] if code < len(STATE_CODES) else None


class Rumour(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """That a member is in a state, as `origin` says.

    Attributes:
        subject: Whom it is about.
        epoch: Of the incarnation it is about.
        counter: Of the incarnation it is about.
        state: Number of the state.
        origin: Who first said so; empty for what the subject says of itself.
        proof: For a leave: the subject's signature over `leave_bytes`.
    """

    subject: RawId
    epoch: Count
    counter: Count
    state: StateCode
    origin: Annotated[bytes, msgspec.Meta(max_length=20)] = b""
    proof: Annotated[bytes, msgspec.Meta(max_length=64)] = b""

    @property
    def incarnation(self) -> Incarnation:
        """Epoch and counter."""
        return Incarnation(self.epoch, self.counter)


class DigestEntry(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A member in a digest: which record a node holds, and the state it believes."""

    subject: RawId
    epoch: Count
    counter: Count
    boot: Nonce
    state: StateCode


Coordinate = Annotated[tuple[float, ...], msgspec.Meta(max_length=MAX_COORDINATE_LENGTH)]
"""A node's network coordinate as numbers, or empty; `coordinates.py` says what they are."""


class Ping(Message, tag=21, frozen=True):
    """Are you there? Answer with an `Ack` of the same sequence number."""

    sequence: Nonce
    rumours: tuple[Rumour, ...] = ()
    coordinate: Coordinate = ()


class Ack(Message, tag=22, frozen=True):
    """I am; or, from a helper: the member that you asked me to ping is.

    `coordinate` is the sender's, and empty in a helper's: it is not the one that was probed.
    """

    sequence: Nonce
    rumours: tuple[Rumour, ...] = ()
    coordinate: Coordinate = ()


class PingRequest(Message, tag=23, frozen=True):
    """Ping `target` for me, and tell me with an `Ack` of this number if it answers."""

    sequence: Nonce
    target: RawId
    rumours: tuple[Rumour, ...] = ()


class Nack(Message, tag=30, frozen=True):
    """From a helper: I am there and have your request, but the member that I pinged does not answer yet.

    It tells the asker that its own messages pass, so that the silence is the target's (Lifeguard).
    """

    sequence: Nonce
    rumours: tuple[Rumour, ...] = ()


class Unwanted(Message, tag=31, frozen=True):
    """I do not need this link: close it, unless you do."""


class Gossip(Message, tag=24, frozen=True):
    """Rumours that are young enough to be told again."""

    rumours: tuple[Rumour, ...]


class Sync(Message, tag=25, frozen=True):
    """The hash of my view of live members; send your digest if yours differs."""

    root: bytes


class Digest(Message, tag=26, frozen=True):
    """All members that I know with `after < id <= upto`; what is missing there, I do not know."""

    after: Annotated[bytes, msgspec.Meta(max_length=20)]
    upto: RawId
    entries: tuple[DigestEntry, ...]


class RecordRequest(Message, tag=27, frozen=True):
    """Send me these members' records."""

    subjects: Annotated[tuple[RawId, ...], msgspec.Meta(max_length=MAX_RECORDS_REQUESTED)]


class Records(Message, tag=28, frozen=True):
    """Records, and what is to be believed about their (or other) subjects after reading them.

    Each record is read by `read_record` only when its turn comes: several peers send the same one,
    and one that cannot be read must not take the others along.
    """

    records: tuple[msgspec.Raw, ...]
    rumours: tuple[Rumour, ...] = ()


class Summary(Message, tag=32, frozen=True):
    """My view in `BUCKETS` parts: a hash of each range of ids. Send your digests of those that differ."""

    sums: Annotated[
        tuple[Annotated[bytes, msgspec.Meta(max_length=SUM_BYTES)], ...],
        msgspec.Meta(min_length=BUCKETS, max_length=BUCKETS),
    ]


class MemberList(Message, tag=29, frozen=True):
    """The members that a node knew when it last wrote to disk."""

    records: tuple[MemberRecord, ...]


CODEC: Final = Codec(
    MemberRecord,
    Ping,
    Ack,
    PingRequest,
    Gossip,
    Sync,
    Digest,
    RecordRequest,
    Records,
    MemberList,
    Nack,
    Unwanted,
    Summary,
)
"""The codec of all of membership's messages."""


_IDS_REMEMBERED: Final = 2 * MAX_MEMBERS
"""Conversions of ids that are remembered: those of members, and as many strangers'."""


@lru_cache(_IDS_REMEMBERED)
def pack_id(node_id: NodeId) -> bytes:
    """Return a NodeId's 20 raw bytes."""
    return base64.b32decode(node_id.upper())


@lru_cache(_IDS_REMEMBERED)
def unpack_id(raw: bytes) -> NodeId:
    """Return the NodeId with these 20 raw bytes."""
    return NodeId(base64.b32encode(raw).decode().lower())


@lru_cache(_IDS_REMEMBERED)
def node_id_of_key(public_key: bytes) -> NodeId:
    """Return the NodeId of a public key."""
    return node_id_of(public_key)


_RECORD: Final = Codec(MemberRecord)
_HELD: Final[WeakValueDictionary[bytes, MemberRecord]] = WeakValueDictionary()


def read_record(raw: msgspec.Raw | bytes) -> tuple[MemberRecord, str | None]:
    """Decode a record, and say why it may not be spread, or None; one that is held is not decoded again.

    Several peers push the same record, so most that come are held already. Only who holds a record
    keeps it in memory here: what is refused is gone.

    Raises:
        ProtocolError: if it is no record.
    """
    data = bytes(raw)
    record = _HELD.get(data)
    if record is not None:
        return record, None
    record = _RECORD.decode(data)
    if record is None:
        raise ProtocolError("a record of a member has another type number")
    flaw = record_flaw(record)
    if flaw is None:
        _HELD[data] = record
    return record, flaw


def write_members(records: Iterable[MemberRecord]) -> bytes:
    """Return the value of `Persist("members", ...)`."""
    return CODEC.encode(MemberList(tuple(records)[:MAX_PERSISTED_MEMBERS]))


def read_members(data: bytes) -> tuple[MemberRecord, ...]:
    """Read what `Persist("members", ...)` wrote.

    Raises:
        ProtocolError: if the bytes are not a list of members; they can be ignored and written anew.
    """
    message = CODEC.decode(data)
    if not isinstance(message, MemberList):
        raise ProtocolError("these bytes are not a list of members")
    return message.records
