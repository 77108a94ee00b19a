"""What two nodes say on a link's streams.

Opening message -> answer on the same stream:

- `Infer` + tensor bytes -> `Result` + tensor bytes (each part; the last ends the stream), or `Failure`
- `ResumeStream` -> `Resumed`, and `Result`s as above, or `Failure`
- `FetchBlob` -> `BlobChunk` + bytes ..., or `Failure`
- `AskFiles` + SHA-256s -> `FileStates` + a state for each, or `Failure`
- `AskChunks` -> `BlobChunk` + hashes ..., or `Failure`
- `Forward` + a request's body -> `Forwarded` + an answer's body, or `Failure`
- `Once` -> `Forwarded` (its stream stays open while the asking gateway may carry the request out), or `Failure`
- `Checkup` -> `CheckupAnswer`, or `Failure`; both sides send `Knock` datagrams meanwhile
- `AskStatistics` -> `StatisticsAnswer`, or `Failure`
- `AskLoad` -> `LoadTold`, or `Failure`
- `TellFeedback` + JSON -> `FeedbackTold` + JSON, or `Failure`
- `AskDisagreements` -> `DisagreementsTold` + JSON, or `Failure`

Every answer to `Infer` carries a `LoadReport`, so that the asking gateway learns the load of a
replica from each response. One-way notes between cores have their own codecs beside those cores;
type numbers are unique over all of them: 1-19 here, 20-39 membership, 40-59 state, 60-80 trust.
"""

from __future__ import annotations

from typing import Annotated, Final

import msgspec
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
    time; `slots` is how many run at once. `run_ms` is how long the request ran that this report answers: 0
    where it answers none, or nobody knows. `failing` counts the runs that failed in a row there, whoever asked: 0
    after one that did not, and negative where that is not said.
    """

    in_system: int
    slots: int
    service_ms: float
    run_ms: float = 0.0
    failing: int = -1


class Keep(msgspec.Struct, array_like=True, frozen=True):
    """How a streamed answer is kept for another gateway; see `meshnode.types.KeptAs`.

    A node that keeps it works on it for a while also after the link of the asking node was lost.
    """

    stream: Annotated[str, Meta(min_length=16, max_length=64)]
    owner: Annotated[str, Meta(max_length=2048)]
    after: Annotated[int, Meta(ge=0)] = 0


class Infer(Message, frozen=True, tag=3):
    """Run a model; the tensors' bytes follow as the message's data.

    `trace` is the asking node's span as a W3C `traceparent`; malformed or empty, it names none.
    `cache_control` is what the caller says about kept answers (`meshnode.cache_control`); versions that do
    not know it answer as if nothing were said. `alive_ms` is how often the asking node wants a sign of life
    between the parts of a stream: a `Result` without outputs and parameters; 0 for none. `priority` is a `Priority`:
    which requests are refused first where there are too many. `elsewhere` is whether another node may take it: then a new
    sequence for which there is no place is refused rather than kept waiting.
    """

    model: str
    version: int
    inputs: tuple[TensorHeader, ...]
    timeout_ms: float
    request_id: str = ""
    outputs: tuple[str, ...] = ()
    parameters: dict[str, Scalar] = field(default_factory=dict)
    trace: str = ""
    cache_control: str = ""
    priority: int = 1
    alive_ms: float = 0.0
    keep: Keep | None = None
    elsewhere: bool = False


class Result(Message, frozen=True, tag=4):
    """One part of an answer; the tensors' bytes follow as the message's data.

    `alive_ms` is how often signs of life come between the parts of this stream, as asked for; 0 if none do.
    """

    outputs: tuple[TensorHeader, ...]
    load: LoadReport | None = None
    parameters: dict[str, Scalar] = field(default_factory=dict)
    alive_ms: float = 0.0


class ResumeStream(Message, frozen=True, tag=102):
    """Go on with a stream that is kept there: `Resumed`, and then `Result`s as of an `Infer`.

    Attributes:
        stream: Its name, as the node was told that keeps it.
        owner: Who asks for it.
        after: How many of its parts came already.
        alive_ms: As of an `Infer`.
    """

    stream: str
    owner: str
    after: int
    alive_ms: float = 0.0


class Resumed(Message, frozen=True, tag=103):
    """A stream is there, and goes on.

    Attributes:
        model: Whose answer it is.
        version: Likewise.
        parameters: Those of its first part: some answers say there what form all have.
    """

    model: str
    version: int
    parameters: dict[str, Scalar] = field(default_factory=dict)


class Failure(Message, frozen=True, tag=5):
    """The stream's request failed; `code` is that of an error in `meshnode.errors`.

    `retry_after_ms` is when it is worth asking again, of a replica that has too much to do; 0 for no word of that.
    `node` has what was asked for instead: a sequence that was given to it.
    """

    code: str
    message: str
    load: LoadReport | None = None
    retry_after_ms: float = 0.0
    node: Annotated[str, Meta(max_length=64)] = ""


class FetchBlob(Message, frozen=True, tag=6):
    """Send the blob with this SHA-256 from `offset` on, in chunks.

    `length` bytes of it, or all if 0. Versions that know no length send all: whoever wanted less
    ends the stream. Of a blob that is still being received, a length that has arrived is sent.
    """

    sha256: bytes
    offset: int = 0
    length: int = 0


class BlobChunk(Message, frozen=True, tag=7):
    """The next bytes of a blob follow as the message's data."""

    offset: int
    total_bytes: int


class AskFiles(Message, frozen=True, tag=14):
    """Say which of these files you have; `count` SHA-256s follow as the message's data.

    Attributes:
        count: How many.
        known: The sum of a former answer: the answer to this may wait until there is more.
        wait_ms: How long it may; a node that has none of the files, or all, answers at once.
    """

    count: int
    known: int = -1
    wait_ms: float = 0.0


class FileStates(Message, frozen=True, tag=15):
    """What a node has of the files that were asked for; a state of each follows as the message's data.

    A state is one byte, and after `STATE_PARTIAL` the file's chunks as bits, after their length in
    four bytes, the lowest first.

    Attributes:
        sum: Files that are complete, and chunks of those that are not: it grows with every change.
    """

    sum: int


STATE_ABSENT: Final = 0
STATE_COMPLETE: Final = 1
STATE_PARTIAL: Final = 2
"""The states of a file in `FileStates`: not here, here, being received."""


class AskChunks(Message, frozen=True, tag=16):
    """Send the list of the hashes of this blob's chunks."""

    sha256: bytes


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


class AskStatistics(Message, frozen=True, tag=17):
    """Say what your replicas of a model have done; of all models if its name is empty, of all versions if 0."""

    model: str = ""
    version: int = 0


class StatisticsAnswer(Message, frozen=True, tag=18):
    """The answer to `AskStatistics`; what each version that serves has done follows as the message's data.

    The data is an array of `VersionCounts`, `count` of them.
    """

    count: int = 0


class AskLoad(Message, frozen=True, tag=100):
    """Say how busy your replica of a model version is; `Failure` if it serves nobody."""

    model: str
    version: int


class LoadTold(Message, frozen=True, tag=101):
    """The answer to `AskLoad`: as of now, where a `Result` tells it as of its request's end."""

    load: LoadReport


class TakeSequence(Message, frozen=True, tag=110):
    """Go on with a sequence of requests in my place, as I am being emptied: `SequenceTaken`, or `Failure`.

    The data are the bytes of `states` in order.

    Attributes:
        model: Whose sequence it is.
        version: Of the model.
        digest: Of its files: states of others mean something else.
        sequence_id: What its requests call it.
        states: What the model said of it last, by the names of its inputs.
    """

    model: str
    version: int
    digest: Annotated[str, Meta(max_length=64)]
    sequence_id: int | str
    states: tuple[TensorHeader, ...] = ()


class SequenceTaken(Message, frozen=True, tag=111):
    """The answer to `TakeSequence`: whoever asks for it here from now on is answered."""


class TellFeedback(Message, frozen=True, tag=112):
    """Somebody judges an answer that your gateway may have given: `FeedbackTold`, or `Failure`.

    The data is what is said, as JSON (`meshnode.gateway.feedback.Feedback`).

    Attributes:
        caller: The id of the API key with which it came; empty without one.
    """

    caller: Annotated[str, Meta(max_length=64)] = ""


class FeedbackTold(Message, frozen=True, tag=113):
    """The answer to `TellFeedback`; what became of it follows as the message's data, as JSON, if the answer is remembered."""

    found: bool = False


class AskDisagreements(Message, frozen=True, tag=114):
    """Say where the new version of a model answered otherwise than it should, as far as your gateway saw."""

    model: str


class DisagreementsTold(Message, frozen=True, tag=115):
    """The answer to `AskDisagreements`; what was seen follows as the message's data, as JSON, if anything was."""

    found: bool = False


class VersionCounts(msgspec.Struct, array_like=True, frozen=True):
    """What one version has done on the node that answers, since it was loaded there.

    Attributes:
        idle_ms: Since it last ran; -1 if it never did.
        times: (count, nanoseconds) of each of `meshnode.models.serving.statistics.TIMES`.
        batches: Rows, then (count, nanoseconds) of the three compute times, for each batch size.
    """

    model: str
    version: int
    idle_ms: float
    inference_count: int
    execution_count: int
    times: tuple[tuple[int, int], ...] = ()
    batches: tuple[tuple[int, tuple[int, int], tuple[int, int], tuple[int, int]], ...] = ()


class Once(Message, frozen=True, tag=19):
    """A gateway got a POST with an `Idempotency-Key` of which the asked node is the home.

    Attributes:
        digest: HMAC of the `Idempotency-Key` under the text of the caller's API key.
        fingerprint: HMAC of the request, likewise.
        status: 0: may I carry it out? Else what came of it: 200, and its answer follows as the message's data, sealed
            (`meshnode.gateway.sealed_answers`); or 1 for nothing that could be given again.
        headers: Of an answer that is not sealed; empty.
    """

    digest: Annotated[bytes, Meta(min_length=32, max_length=32)]
    fingerprint: Annotated[bytes, Meta(min_length=32, max_length=32)]
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)


STREAMS = Codec(
    Infer, Result, Failure, FetchBlob, BlobChunk, AskFiles, FileStates, AskChunks, Forward, Forwarded,
    Checkup, CheckupAnswer, AskStatistics, StatisticsAnswer, Once, ResumeStream, Resumed, AskLoad,
    LoadTold, TakeSequence, SequenceTaken, TellFeedback, FeedbackTold, AskDisagreements, DisagreementsTold,
)  # fmt: skip
"""The codec of all stream messages."""

KNOCKS = Codec(Knock)
"""The codec of what a checkup sends in datagrams."""
