"""The words of the mesh as types: nodes, addresses, tensors, requests and responses.

Everything here is plain data without behaviour beyond its own invariants, so that each layer
above can use it and the simulator can make it.
"""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Mapping
from enum import IntEnum, StrEnum
from typing import TYPE_CHECKING, Final, NamedTuple, NewType

import msgspec

from meshnode.tracing import Trace

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Iterable

NodeId = NewType("NodeId", str)
"""32 lower-case base32 characters: the first 160 bits of SHA-256 over the Ed25519 public key."""

Buffer = bytes | bytearray | memoryview
"""Anything that carries tensor bytes without a copy."""

Scalar = str | int | float | bool
"""A request or response parameter's value."""


def node_id_of(public_key: bytes) -> NodeId:
    """Return the NodeId of a 32-byte Ed25519 public key."""
    digest = hashlib.sha256(public_key).digest()[:20]
    return NodeId(base64.b32encode(digest).decode().lower())


class Address(NamedTuple):
    """A host (name, IPv4 or IPv6 literal without brackets) and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        """Return `host:port`, with brackets around an IPv6 literal."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @classmethod
    def parse(cls, text: str, default_port: int | None = None) -> Address:
        """Read `host:port`, `[v6]:port`, or `host` alone where a default port is given.

        Raises:
            ValueError: if the text has no valid port or host; the message says what is expected.
        """
        host, port_text = _split_host_port(text)
        if port_text is None:
            if default_port is None:
                raise ValueError(f"{text!r} has no port; write HOST:PORT")
            return cls(host, default_port)
        if not port_text.isascii() or not port_text.isdigit() or int(port_text) > 65535:
            raise ValueError(
                f"{text!r} has no valid port; write HOST:PORT with a port of 0 to 65535"
            )
        return cls(host, int(port_text))


def _split_host_port(text: str) -> tuple[str, str | None]:
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise ValueError(f"{text!r} is not an address; write [IPV6]:PORT")
        return host, rest[1:] if rest else None
    if text.count(":") > 1:  # a bare IPv6 literal
        return text, None
    host, colon, port = text.partition(":")
    if not host:
        raise ValueError(f"{text!r} has no host; write HOST:PORT")
    return host, port if colon else None


class DataType(StrEnum):
    """Element types of the Open Inference Protocol."""

    BOOL = "BOOL"
    UINT8 = "UINT8"
    UINT16 = "UINT16"
    UINT32 = "UINT32"
    UINT64 = "UINT64"
    INT8 = "INT8"
    INT16 = "INT16"
    INT32 = "INT32"
    INT64 = "INT64"
    FP16 = "FP16"
    BF16 = "BF16"
    FP32 = "FP32"
    FP64 = "FP64"
    BYTES = "BYTES"

    @property
    def size_bytes(self) -> int | None:
        """Bytes per element, or None for BYTES, whose elements carry their own length."""
        return _SIZES[self]


_SIZES: dict[DataType, int | None] = {
    DataType.BOOL: 1, DataType.UINT8: 1, DataType.UINT16: 2, DataType.UINT32: 4, DataType.UINT64: 8,
    DataType.INT8: 1, DataType.INT16: 2, DataType.INT32: 4, DataType.INT64: 8,
    DataType.FP16: 2, DataType.BF16: 2, DataType.FP32: 4, DataType.FP64: 8, DataType.BYTES: None,
}  # fmt: skip


class Tensor(msgspec.Struct, frozen=True, gc=False):
    """A named tensor: C-contiguous, little-endian, never copied on its way through a node.

    A msgspec struct because two or more are made per request: a frozen dataclass costs five times
    as much to make.

    Attributes:
        name: The model's name for it.
        datatype: Element type.
        shape: Dimensions, all known.
        data: The bytes; for BYTES each element is a little-endian u32 length and its content.
    """

    name: str
    datatype: DataType
    shape: tuple[int, ...]
    data: Buffer

    @property
    def size_bytes(self) -> int:
        """Length of the data in bytes."""
        return len(self.data) if not isinstance(self.data, memoryview) else self.data.nbytes

    @property
    def rows(self) -> int:
        """Size of the first dimension, or 1 for a scalar."""
        return self.shape[0] if self.shape else 1

    @property
    def elements(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


class Priority(IntEnum):
    """How urgent a request is: under overload, those of the lowest priority are shed first."""

    LOW = 0
    NORMAL = 1
    HIGH = 2


def is_within(region: str, asked_for: str) -> bool:
    """Return whether a region is the one that is asked for, or one of those below it.

    Args:
        region: Where something is, such as `eu-west-1`.
        asked_for: Such as `eu`, which `eu-west-1` is within and `europe` is not.
    """
    return region == asked_for or region.startswith(f"{asked_for}-")


class RoutingHints(msgspec.Struct, frozen=True):
    """What is said of where a request may run, and how urgent it is: by its caller's headers and its key.

    Attributes:
        region: Where it is to run: the region of this name and those below it (`eu` is `eu`, `eu-west`, `eu-west-1`);
            empty for anywhere.
        region_required: Whether it must run there; else it does if it can.
        labels: Labels that the node must have.
        session: Requests with the same word go to the same replica while that is not much worse.
        prefix: Digest of how the input begins: a replica that has seen it may answer sooner. Empty for none.
        priority: Which requests are shed first.
        caller: The API key's id, among whom an overloaded gateway shares; empty for callers without a key.
        share: How much of that is this caller's, beside 1 of another.
    """

    region: str = ""
    region_required: bool = True
    labels: tuple[tuple[str, str], ...] = ()
    session: str = ""
    prefix: bytes = b""
    priority: Priority = Priority.NORMAL
    caller: str = ""
    share: int = 1


NO_HINTS: Final = RoutingHints()
"""Of a request of which nothing is said."""


class KeptAs(msgspec.Struct, frozen=True):
    """Under which name the node that makes a streamed answer keeps it, for a gateway that takes it up.

    Attributes:
        stream: Of the answer: so many random characters that nobody guesses it.
        owner: Who may take it up.
        after: How many of its parts were made elsewhere.
    """

    stream: str
    owner: str
    after: int = 0


class InferRequest(msgspec.Struct, frozen=True):
    """One inference, whatever dialect it came in.

    Attributes:
        model: Public name of the model.
        version: The version asked for, or None for the newest that is ready.
        inputs: Input tensors, in the order given.
        outputs: Names of the outputs wanted; empty for all.
        request_id: The caller's or a generated id; it appears in logs on every node involved.
        parameters: Free parameters for the model.
        timeout_s: Seconds that remain for an answer (a deadline travels as remaining time).
        trace: This node's part in the trace that the request belongs to; None until a caller names
            one, another node is asked, or a line is logged.
        cache_control: What the caller says about kept answers, as `CacheControl.text` spells it
            (`meshnode.cache_control`); empty for nothing.
        hints: Where it may run, and how urgent it is; read by the gateway, and not sent on but for its priority.
        keep: How a streamed answer is kept where it is made; None if its client will not come back for it.
        elsewhere: Whether another node may take it where this one has no room for a new sequence.
    """

    model: str
    inputs: tuple[Tensor, ...]
    version: int | None = None
    outputs: tuple[str, ...] = ()
    request_id: str = ""
    parameters: Mapping[str, Scalar] = msgspec.field(default_factory=dict)
    timeout_s: float = 30.0
    trace: Trace | None = None
    cache_control: str = ""
    hints: RoutingHints = NO_HINTS
    keep: KeptAs | None = None
    elsewhere: bool = False

    @property
    def rows(self) -> int:
        """Rows of the first input: what service time scales with."""
        return self.inputs[0].rows if self.inputs else 1


class ResponsePart(msgspec.Struct, frozen=True):
    """One part of a response: its tensors and parameters."""

    outputs: tuple[Tensor, ...]
    parameters: Mapping[str, Scalar] = msgspec.field(default_factory=dict)

    @property
    def says_something(self) -> bool:
        """Whether it is more than the sign with which some models end; only such parts of a stream are counted."""
        return bool(self.outputs or self.parameters.keys() - _ENDS)


_ENDS: Final = frozenset({"triton_final_response"})


class InferResponse:
    """A response is always a stream of parts; a unary one is a stream of one.

    Iterate it (`async for part in response`), or read `single` when it is unary, which costs
    no coroutine.

    Attributes:
        model: Public name of the model that answered.
        version: The version that answered.
        single: The only part of a unary response, or None for a stream.
        executor: The node that makes it, where a gateway knows; another one where a stream goes on elsewhere.
        after: How many parts of the answer came before these: 0 but for one that is taken up.
        head: Parameters of its first part, in that case.
        run_ms: How long the model ran for it alone, in milliseconds; 0 where that is not known: for a stream, and for
            one of several that were joined.
    """

    __slots__ = ("_parts", "after", "executor", "head", "model", "run_ms", "single", "version")

    def __init__(
        self, model: str, version: int, parts: ResponsePart | AsyncIterator[ResponsePart]
    ) -> None:
        """Wrap one part, or an iterator of parts that this response then owns."""
        self.model = model
        self.version = version
        self.executor: NodeId | None = None
        self.after = 0
        self.head: Mapping[str, Scalar] | None = None
        self.run_ms = 0.0
        self.single = parts if isinstance(parts, ResponsePart) else None
        self._parts = None if isinstance(parts, ResponsePart) else parts

    def __repr__(self) -> str:
        kind = "unary" if self.single is not None else "stream"
        return f"<InferResponse {self.model}/{self.version} {kind}>"

    async def __aiter__(self) -> AsyncGenerator[ResponsePart, None]:
        """Yield the parts in order; whoever stops early ends the work on those to come."""
        if self.single is not None:
            yield self.single
        if self._parts is not None:
            try:
                async for part in self._parts:
                    yield part
            finally:
                close = getattr(self._parts, "aclose", None)
                if close is not None:
                    await close()


class NodeState(StrEnum):
    """A member as membership sees it."""

    ALIVE = "alive"
    SUSPECT = "suspect"
    DEAD = "dead"
    LEFT = "left"


class ReplicaState(StrEnum):
    """A model version on one node; PAUSED is one that is ready on a node that serves nobody now."""

    FETCHING = "fetching"
    LOADING = "loading"
    READY = "ready"
    PAUSED = "paused"
    FAILED = "failed"
    UNLOADING = "unloading"


class Role(StrEnum):
    """What a node may do in its mesh; each role includes those before it."""

    MEMBER = "member"
    OPERATOR = "operator"
    ADMIN = "admin"

    def allows(self, needed: Role) -> bool:
        """Whether this role includes the needed one."""
        order: Iterable[Role] = (Role.MEMBER, Role.OPERATOR, Role.ADMIN)
        ranks = {role: rank for rank, role in enumerate(order)}
        return ranks[self] >= ranks[needed]


class Scope(StrEnum):
    """What a caller of the HTTP API may do; each scope includes those before it.

    `INFER` also reads what the mesh is and does. `OWNER` is never a key's: it is the control
    channel's, for what only the owner of the machine may ask.
    """

    INFER = "infer"
    DEPLOY = "deploy"
    ADMIN = "admin"
    OWNER = "owner"

    def allows(self, needed: Scope) -> bool:
        """Whether this scope includes the needed one."""
        return _SCOPE_RANKS[self] >= _SCOPE_RANKS[needed]


_SCOPE_RANKS = {scope: rank for rank, scope in enumerate(Scope)}
