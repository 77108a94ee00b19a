"""What two nodes say on a link's streams.

Opening message -> answer on the same stream:

- `Infer` + tensor bytes -> `Result` + tensor bytes (each part; the last ends the stream), or `Failure`
- `FetchBlob` -> `BlobChunk` + bytes ..., or `Failure`

Every answer to `Infer` carries a `LoadReport`, so that the asking gateway learns the load of a
replica from each response. One-way notes between cores have their own codecs beside those cores;
type numbers are unique over all of them: 1-19 here, 20-39 membership, 40-59 state, 60-79 trust.
"""

from __future__ import annotations

from msgspec import field

from meshnode.types import Scalar
from meshnode.wire.codec import Codec, Message


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


STREAMS = Codec(Infer, Result, Failure, FetchBlob, BlobChunk)
"""The codec of all stream messages."""
