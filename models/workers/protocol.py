"""What a node and a worker process say to each other.

Two sockets join them. On the *work* socket go batches and streams and their answers, in both directions,
and first of all `Start` and `Started` or `Refused`. On the *side* socket goes what must get through while
the model computes: signs of life, interruptions, credits, room for answers, calls to other models.

A message is its length (four bytes, little-endian), then MessagePack: `[number, …fields]`. Both ends are the
same installation, so there is no versioning. The node trusts nothing that a process says: the model's code
could be saying it. Offsets are checked against what was lent.

Tensors up to `WORKER_INLINE_BYTES` in all are in the message; larger ones lie in the shared memory.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

import msgspec

from meshnode.errors import ProtocolError
from meshnode.limits import MAX_WORKER_MESSAGE_BYTES
from meshnode.models.execution import Execution
from meshnode.models.manifest import TensorSpec
from meshnode.types import DataType, Scalar

if TYPE_CHECKING:
    from collections.abc import Iterator

LENGTH: Final = struct.Struct("<I")


class Message(msgspec.Struct, array_like=True, frozen=True):
    """The base of all messages."""


class WireTensor(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A tensor: `length` bytes at `offset` of the shared memory, or the bytes themselves (offset -1)."""

    name: str
    datatype: DataType
    shape: tuple[int, ...]
    offset: int
    length: int
    data: bytes = b""


class WireRequest(msgspec.Struct, array_like=True, frozen=True):
    """One request; `region` is where its inputs lie, -1 if they are inline."""

    inputs: tuple[WireTensor, ...]
    outputs: tuple[str, ...]
    request_id: str
    parameters: dict[str, Scalar]
    timeout_s: float
    region: int = -1
    region_bytes: int = 0


class WireAnswer(msgspec.Struct, array_like=True, frozen=True):
    """An answer: its tensors, or an error (`code` not empty)."""

    outputs: tuple[WireTensor, ...] = ()
    parameters: dict[str, Scalar] = {}
    code: str = ""
    error: str = ""


class WireOpening(msgspec.Struct, array_like=True, frozen=True):
    """`meshnode.models.runtimes.base.Opening`, with its paths as texts."""

    folder: str
    entry: str
    model: str
    version: int
    threads: int
    device: str
    max_batch_size: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    execution: Execution
    instance: int
    cache_folder: str


class Start(Message, frozen=True, tag=1):
    """To the process, first: what to open, how, and what to be kept from.

    Attributes:
        adaptor: Module that opens it.
        opening: What to open.
        only_describe: Describe it, and end.
        protected: Folder that it may not read; empty for none.
        work_folder: Where it may write.
        memory_bytes: Limit of what it may reserve; 0 for none.
        shared_name: See `SharedMemory`.
        shared_bytes: Likewise; 0 for none.
        silence_s: Seconds without a ping after which it ends itself.
        file_bytes: Most that one file of its may have; 0 for no limit.
    """

    adaptor: str
    opening: WireOpening
    only_describe: bool
    protected: str
    work_folder: str
    memory_bytes: int
    shared_name: str
    shared_bytes: int
    silence_s: float
    file_bytes: int = 0


class Started(Message, frozen=True, tag=2):
    """From the process: the model is ready (or only described)."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    max_batch_size: int
    execution: Execution
    device: str
    joins_rows: bool
    concurrency: int
    enforced: tuple[str, ...]


class Refused(Message, frozen=True, tag=3):
    """From the process: it cannot be opened."""

    code: str
    error: str


class Execute(Message, frozen=True, tag=4):
    """To the process: a batch. `room` is lent for its answers; -1 for none."""

    batch: int
    requests: tuple[WireRequest, ...]
    room: int
    room_bytes: int


class Outcomes(Message, frozen=True, tag=5):
    """From the process: a batch's answers, and regions of inputs that it needs no more."""

    batch: int
    answers: tuple[WireAnswer, ...]
    room: int
    freed: tuple[int, ...]


class OpenStream(Message, frozen=True, tag=6):
    """To the process: a request whose answer is a stream."""

    batch: int
    request: WireRequest
    credits: int


class Part(Message, frozen=True, tag=7):
    """From the process: a part of a stream, in `room` if it is not inline."""

    batch: int
    answer: WireAnswer
    room: int


class Ended(Message, frozen=True, tag=8):
    """From the process: a stream is over; with an error if `code` is not empty."""

    batch: int
    code: str
    error: str
    freed: tuple[int, ...]


class Stop(Message, frozen=True, tag=9):
    """To the process: finalise and end."""


class Ping(Message, frozen=True, tag=20):
    """To the process: give a sign of life."""

    number: int


class Pong(Message, frozen=True, tag=21):
    """From the process: the sign, and regions of inputs that it needs no more."""

    number: int
    freed: tuple[int, ...]


class Interrupt(Message, frozen=True, tag=22):
    """To the process: nobody waits for this batch or stream any more."""

    batch: int
    reason: str


class Credit(Message, frozen=True, tag=23):
    """To the process: so many more parts of a stream may come."""

    batch: int
    parts: int


class NeedRoom(Message, frozen=True, tag=24):
    """From the process: shared memory for an answer."""

    ask: int
    batch: int
    length: int


class Room(Message, frozen=True, tag=25):
    """To the process: a region for the answer; -1 if there is none."""

    ask: int
    offset: int
    length: int


class CallModel(Message, frozen=True, tag=26):
    """From the process: a request to another model."""

    ask: int
    model: str
    version: int | None
    request: WireRequest


class Called(Message, frozen=True, tag=27):
    """To the process: its answer, whose parts lie in regions that the process frees."""

    ask: int
    answers: tuple[WireAnswer, ...]
    region: int
    region_bytes: int


class Freed(Message, frozen=True, tag=28):
    """From the process: regions that it needs no more."""

    regions: tuple[int, ...]


ToProcess = Start | Execute | OpenStream | Stop | Ping | Interrupt | Credit | Room | Called
FromProcess = Started | Refused | Outcomes | Part | Ended | Pong | NeedRoom | CallModel | Freed

_encoder = msgspec.msgpack.Encoder()
_to_process: msgspec.msgpack.Decoder[ToProcess] = msgspec.msgpack.Decoder(ToProcess)
_from_process: msgspec.msgpack.Decoder[FromProcess] = msgspec.msgpack.Decoder(FromProcess)


def encode(message: Message) -> bytes:
    """Return a message with its length before it.

    Raises:
        ProtocolError: if it is too long.
    """
    body = _encoder.encode(message)
    if len(body) > MAX_WORKER_MESSAGE_BYTES:
        raise ProtocolError(
            f"a message of {len(body)} bytes for a model's process exceeds {MAX_WORKER_MESSAGE_BYTES}; "
            "it has too many tensors or parameters"
        )
    return LENGTH.pack(len(body)) + body


class Reader:
    """Cuts received bytes into messages."""

    def __init__(self, *, from_process: bool) -> None:
        """Read what processes say, or what the node says."""
        self._decode = (_from_process if from_process else _to_process).decode
        self._data = bytearray()

    def __repr__(self) -> str:
        return f"<Reader with {len(self._data)} bytes>"

    def feed(self, data: bytes | bytearray | memoryview) -> Iterator[ToProcess | FromProcess]:
        """Yield the messages that are whole now.

        Raises:
            ProtocolError: if these are no messages.
        """
        self._data += data
        start = 0
        try:
            while len(self._data) - start >= LENGTH.size:
                (length,) = LENGTH.unpack_from(self._data, start)
                if length > MAX_WORKER_MESSAGE_BYTES:
                    raise ProtocolError(f"a model's process sent a message of {length} bytes")
                end = start + LENGTH.size + length
                if len(self._data) < end:
                    break
                body = bytes(self._data[start + LENGTH.size : end])
                start = end
                try:
                    message = self._decode(body)
                except (msgspec.MsgspecError, UnicodeDecodeError) as error:
                    raise ProtocolError(
                        f"a model's process sent what is no message: {error}"
                    ) from None
                yield message
        finally:
            del self._data[:start]
