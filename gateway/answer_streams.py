"""Streamed answers on their way from replicas to the client: their outcome is known, and counted, at their end.

    parts of a replica ──> AnswerStream ──> parts for the dialect
                             └ the replica is lost ─┬ its model is resumable: another replica goes on
                                                    └ else an error, in place of what is missing

After the first part nothing is tried again behind the client's back: what follows is the rest of this very answer, or
an error. A model that declares itself resumable (`Resumable`) gives the same parts for the same request and `seed`, so
another replica can make the rest: it runs the request anew, and what came already is left out (and compared: a model
that says something else the second time ends in an error, not in two halves); or the request says what came, and the
model gives what follows. A request that names no seed is given one, so that there is one to repeat.

Only parts that say something are counted (`ResponsePart.says_something`).
"""

from __future__ import annotations

import hashlib
from contextlib import aclosing
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

import msgspec

from meshnode.errors import (
    Cancelled,
    InferenceFailed,
    LinkLost,
    MeshError,
    ProtocolError,
    Saturated,
)
from meshnode.limits import MAX_DELIVERED_TEXT_LENGTH, MAX_STREAM_CONTINUATIONS
from meshnode.models.execution import Resumable
from meshnode.types import DataType, InferResponse

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

    from meshnode.models.execution import Execution
    from meshnode.routing.attempts import Attempts
    from meshnode.types import InferRequest, NodeId, ResponsePart, Scalar

HUNG_UP: Final = Cancelled("the client went away")
"""What ends an answer whose client does not want the rest of it."""

SEED_PARAMETER: Final = "seed"
"""What makes a resumable model's answer repeatable: a whole number."""

DELIVERED_PARAMETER: Final = "meshnode_delivered"
"""Of a request that continues an answer: a JSON object, the text so far of each output."""

DELIVERED_PARTS_PARAMETER: Final = "meshnode_delivered_parts"
"""Likewise: of how many parts that text is."""

_LENGTH_BYTES: Final = 4  # before each element of BYTES


class Continued(NamedTuple):
    """What goes on with an answer.

    Attributes:
        attempts: The plan by which it was found.
        begun: The answer that another replica has begun.
        is_rest: Whether it is what follows; else it is the whole answer, made anew.
    """

    attempts: Attempts
    begun: InferResponse
    is_rest: bool


class Continue(Protocol):
    """Finds a replica that goes on with an answer."""

    async def __call__(self, delivered: Delivered, tried: tuple[NodeId, ...]) -> Continued:
        """Return what another replica has begun.

        Args:
            delivered: What came already.
            tried: Nodes that were lost.

        Raises:
            MeshError: if there is none.
        """
        ...


class Delivered:
    """How much of an answer the client has, or will have before anything else.

    Attributes:
        parts: How many parts.
    """

    def __init__(self, parts: int = 0) -> None:
        """Begin with nothing, or with parts of which nothing more is known than their number."""
        self.parts = parts
        self._digest = None if parts else hashlib.blake2b()
        self._texts: dict[str, list[str]] | None = None if parts else {}
        self._length = 0

    def __repr__(self) -> str:
        return f"<Delivered {self.parts} parts>"

    def add(self, part: ResponsePart) -> None:
        """Take note of the next part."""
        self.parts += 1
        if self._digest is not None:
            _update(self._digest, part)
        if self._texts is None:
            return
        for tensor in part.outputs:
            text = _text_of(tensor.datatype, bytes(tensor.data))
            self._length += len(text or "")
            if text is None or self._length > MAX_DELIVERED_TEXT_LENGTH:
                self._texts = None
                return
            self._texts.setdefault(tensor.name, []).append(text)

    @property
    def parameters(self) -> Mapping[str, Scalar] | None:
        """What tells a model what came already; None if it cannot be told."""
        if self._texts is None or not self.parts:
            return None
        texts = {name: "".join(pieces) for name, pieces in self._texts.items()}
        return {
            DELIVERED_PARAMETER: msgspec.json.encode(texts).decode(),
            DELIVERED_PARTS_PARAMETER: self.parts,
        }

    def is_repeated_by(self, replay: Delivered) -> bool:
        """Whether so many parts of another run are the same, as far as that is known."""
        if self._digest is None or replay._digest is None:
            return True
        return self._digest.digest() == replay._digest.digest()


class AnswerStream:
    """One streamed answer, whoever makes it.

    Attributes:
        response: For the dialect; its executor changes when another node goes on.
    """

    def __init__(
        self,
        begun: InferResponse,
        attempts: Attempts | None,
        now: Callable[[], float],
        ended: Callable[[MeshError | None, Attempts | None], None],
        goes_on: Continue | None = None,
        *,
        has_parts: int = 0,
        anew: bool = False,
    ) -> None:
        """Pass a stream on.

        Args:
            begun: A stream that has begun.
            attempts: The plan by which it was found; closed at its end. None for one that was taken up.
            now: Returns monotonic seconds.
            ended: Told once what became of it (None for a whole answer), and of the plan of who made its end.
            goes_on: Finds another replica for the rest; None if the model is not resumable.
            has_parts: How many parts the client has already.
            anew: Whether `begun` is made from its beginning, and those parts, if any, are to be left out.
        """
        self.response = InferResponse(begun.model, begun.version, self._parts())
        self.response.after = has_parts
        self._begun = begun
        self._attempts = attempts
        self._now = now
        self._ended = ended
        self._goes_on = goes_on
        self._delivered = Delivered(has_parts)
        self._replay: Delivered | None = Delivered() if anew and has_parts else None
        self._tried: tuple[NodeId, ...] = ()
        self._fruitless = 0
        self._is_over = False
        self._take()
        self.response.head = begun.head

    def __repr__(self) -> str:
        return f"<AnswerStream of {self.response.executor}: {self._delivered!r}>"

    async def _parts(self) -> AsyncIterator[ResponsePart]:
        failure: MeshError | None = HUNG_UP
        try:
            while True:
                broken: MeshError | None = None
                try:
                    async with aclosing(aiter(self._begun)) as parts:
                        async for part in parts:
                            if self._is_new(part):
                                yield part
                    self._check_replay_is_over()
                except MeshError as error:
                    broken = error
                if broken is None:
                    break
                await self._continue(broken)
            if self._attempts is not None and self._begun.single is None:
                self._attempts.succeeded(self._now())
            failure = None
        except MeshError as error:
            failure = error
            raise
        finally:
            self._close()
            self._ended(failure, self._attempts)

    def _is_new(self, part: ResponsePart) -> bool:
        """Take note of a part; return whether the client lacks it."""
        if not part.says_something:
            return self._replay is None
        if self._replay is None:
            self._delivered.add(part)
            self._fruitless = 0
            return True
        if not self._replay.parts:
            self.response.head = part.parameters
        self._replay.add(part)
        if self._replay.parts == self._delivered.parts:
            self._check_replay()
        return False

    def _check_replay(self) -> None:
        assert self._replay is not None
        if not self._delivered.is_repeated_by(self._replay):
            raise self._differs("another")
        self._replay = None

    def _check_replay_is_over(self) -> None:
        if self._replay is not None:
            raise self._differs("a shorter")

    def _differs(self, other: str) -> InferenceFailed:
        self._is_over = True
        return InferenceFailed(
            f"model {self.response.model!r} was run again because its node was lost in the middle of the answer, and gave "
            f"{other} answer, although it says that it is resumable; what came is not the whole of an answer: ask again"
        )

    async def _continue(self, error: MeshError) -> None:
        """Let another replica go on; raises what ends the answer if none does."""
        if self._attempts is not None and self._begun.single is None:
            self._attempts.failed(error, self._now())
        self._close()
        self._fruitless += 1
        if (
            self._goes_on is None
            or self._is_over
            or not _can_be_continued(error)
            or self._fruitless > MAX_STREAM_CONTINUATIONS
        ):
            raise self._lost(error) from error
        if self.response.executor is not None:
            self._tried += (self.response.executor,)
        try:
            continued = await self._goes_on(self._delivered, self._tried)
        except MeshError as none:
            raise self._lost(error, f", and nobody could go on with it: {none}") from none
        self._attempts, self._begun = continued.attempts, continued.begun
        whole = not continued.is_rest and self._delivered.parts > 0
        self._replay = Delivered() if whole else None
        self._take()

    def _take(self) -> None:
        begun, attempts = self._begun, self._attempts
        if attempts is not None and attempts.route is not None:
            begun.executor = attempts.route.replica.node
        self.response.executor = begun.executor

    def _lost(self, error: MeshError, why: str = "") -> MeshError:
        if (
            not isinstance(error, LinkLost)
            or self._attempts is None
            or self._attempts.route is None
        ):
            return error
        name = self._attempts.route.replica.node_name
        return LinkLost(
            f"{name} was lost in the middle of its answer ({error}){why}: what came is not the whole of it, and the "
            "request may have run to its end there; if it may run twice, send it again"
        )

    def _close(self) -> None:
        if self._attempts is not None:
            self._attempts.close(self._now())


def with_seed(request: InferRequest, execution: Execution) -> InferRequest:
    """Return a request that can be repeated: with a seed, if its model is resumable and it names none.

    The seed is made of the name under which the answer is kept, so that every gateway that knows it finds the same
    one; or of the request's trace.
    """
    if not execution.resumable or execution.cache or SEED_PARAMETER in request.parameters:
        return request
    if request.keep is not None:
        text = request.keep.stream
    else:
        text = request.trace.trace_id if request.trace is not None else request.request_id
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4]) >> 1
    return msgspec.structs.replace(request, parameters={**request.parameters, SEED_PARAMETER: seed})


def rest_of(
    request: InferRequest, execution: Execution, delivered: Delivered
) -> tuple[InferRequest, bool]:
    """Return the request that continues an answer, and whether it asks only for the rest.

    Args:
        request: What was asked.
        execution: The model's.
        delivered: What came already.
    """
    told = delivered.parameters if execution.resumable is Resumable.DELIVERED else None
    keep = request.keep
    if keep is not None:
        keep = msgspec.structs.replace(keep, after=delivered.parts if told else 0)
    parameters = {**request.parameters, **told} if told else request.parameters
    return msgspec.structs.replace(request, parameters=parameters, keep=keep), told is not None


def _can_be_continued(error: MeshError) -> bool:
    if isinstance(error, Saturated):  # the client reads too slowly
        return False
    return error.retryable or isinstance(error, InferenceFailed | ProtocolError)


def _update(digest: hashlib.blake2b, part: ResponsePart) -> None:
    for tensor in part.outputs:
        head = f"{tensor.name}\0{tensor.datatype}\0{tensor.shape}\0{tensor.size_bytes}\0"
        digest.update(head.encode())
        digest.update(tensor.data)


def _text_of(datatype: DataType, data: bytes) -> str | None:
    """Return the text that a tensor of one element is; None if it is something else."""
    if datatype is not DataType.BYTES:
        return None
    size = int.from_bytes(data[:_LENGTH_BYTES], "little")
    if len(data) != _LENGTH_BYTES + size:
        return None
    try:
        return data[_LENGTH_BYTES:].decode()
    except UnicodeDecodeError:
        return None
