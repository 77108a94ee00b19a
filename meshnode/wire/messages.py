"""What two nodes say on a link's streams.

Opening message -> answer on the same stream:

- `Infer` + tensor bytes -> `Result` + tensor bytes (each part; the last ends the stream), or `Failure`
- `FetchBlob` -> `BlobChunk` + bytes ..., or `Failure`
- `Forward` + a request's body -> `Forwarded` + an answer's body, or `Failure`
- `Checkup` -> `CheckupAnswer`, or `Failure`; both sides send `Knock` datagrams meanwhile

Every answer to `Infer` carries a `LoadReport`, so that the asking gateway learns the load of a
replica from each response. One-way notes between cores have their own codecs beside those cores;
type numbers are unique over all of them: 1-19 here, 20-39 membership, 40-59 state, 60-80 trust.
"""

from __future__ import annotations

from typing import Annotated, Final

from msgspec import Meta, field

from meshnode.types import Scalar
from meshnode.wire.codec import Codec, Message

TOKEN_BYTES: Final = 16
"""Random bytes that tie datagrams to their checkup: nobody guesses them."""


class TensorHeader(Message, frozen=True, tag=1):
    """A tensor without its bytes, which follow in the stream in the order of the headers."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    size_bytes: int


class LoadReport(Message, frozen=True, tag=2):
    """How busy a replica is, as it says itself: a hint, checked against what is observed.

    `in_system` counts requests running and queued; `service_ms` is its EWMA of one request's run
    time; `slots` is how many run at once.
    """

    in_system: int
    slots: int
    service_ms: float


class Infer(Message, frozen=True, tag=3):
    """Run a model; the tensors' bytes follow as the message's data.

    `trace` is the asking node's span as a W3C `traceparent`; malformed or empty, it names none.
    """

    model: str
    version: int
    inputs: tuple[TensorHeader, ...]
    timeout_ms: float
    request_id: str = ""
    outputs: tuple[str, ...] = ()
    parameters: dict[str, Scalar] = field(default_factory=dict)
    trace: str = ""


class Result(Message, frozen=True, tag=4):
    """One part of an answer; the tensors' bytes follow as the message's data."""

    outputs: tuple[TensorHeader, ...]
    load: LoadReport | None = None
    parameters: dict[str, Scalar] = field(default_factory=dict)


class Failure(Message, frozen=True, tag=5):
    """The stream's request failed; `code` is that of an error in `meshnode.errors`."""

    code: str
    message: str
    load: LoadReport | None = None


class FetchBlob(Message, frozen=True, tag=6):
    """Send the blob with this SHA-256 from `offset` on, in chunks."""

    sha256: bytes
    offset: int = 0


class BlobChunk(Message, frozen=True, tag=7):
    """The next bytes of a blob follow as the message's data."""

    offset: int
    total_bytes: int


class Checkup(Message, frozen=True, tag=10):
    """Tell me what you see of me: for `meshnode doctor`.

    The node that is asked sends `Knock` datagrams with this token, waits for those of the node that
    asks, and tries the addresses of that node's signed record meanwhile.
    """

    token: Annotated[bytes, Meta(min_length=TOKEN_BYTES, max_length=TOKEN_BYTES)]


class Reached(Message, frozen=True, tag=12):
    """How a node fared at one address of the node that asked; the words are `Outcome`'s and `Reason`'s."""

    address: str
    outcome: str
    reason: str = ""


class CheckupAnswer(Message, frozen=True, tag=11):
    """What the node that was asked saw.

    Attributes:
        wall_s: Its wall time when the question arrived.
        version: Its version of meshnode.
        wire_versions: Lowest and highest protocol version that it speaks.
        seen_at: Where the link ends for it, as `host:port`.
        knocks: Datagrams of this checkup that arrived.
        reached: What it tried to dial.
    """

    wall_s: float
    version: str
    wire_versions: tuple[int, int]
    seen_at: str
    knocks: int
    reached: tuple[Reached, ...] = ()


class Knock(Message, frozen=True, tag=13):
    """A datagram of a checkup: it arrives or it does not. It is never answered."""

    token: Annotated[bytes, Meta(min_length=TOKEN_BYTES, max_length=TOKEN_BYTES)]


class Forward(Message, frozen=True, tag=8):
    """Answer this request of a gateway's caller there, where the role of the asking node does not suffice.

    `key` is the caller's API key, which is checked there as at a gateway: the asking node says who
    asked, and decides nothing. The body follows as the message's data.
    """

    method: str
    path: str
    query: str
    key: str
    request_id: str = ""

    def __repr__(self) -> str:
        return f"<Forward {self.method} {self.path} of request {self.request_id}>"


class Forwarded(Message, frozen=True, tag=9):
    """The answer to a `Forward`, as HTTP has it; the body follows as the message's data."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)


STREAMS = Codec(
    Infer, Result, Failure, FetchBlob, BlobChunk, Forward, Forwarded, Checkup, CheckupAnswer
)
"""The codec of all stream messages."""

KNOCKS = Codec(Knock)
"""The codec of what a checkup sends in datagrams."""
