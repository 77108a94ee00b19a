"""What a spelling of models offers to the worker process that it lives in.

An adaptor is made once per process, in the process, by the `open_adaptor` of its module (the table is
`ADAPTORS`), and from then on called like this:

    describe() ─> initialise() ─> ready ─> execute() … stream() … ─> finalise()

With `asynchronous = False` all calls come on the process's main thread, one at a time, and no event loop
runs. With `asynchronous = True` all calls come on the event loop of the main thread, `initialise`, `execute`
and `finalise` are coroutine functions, `stream` is an asynchronous generator function, and up to
`concurrency` batches and streams are open at once.

Whatever is raised is the answer to those who asked: a `MeshError` as it is, anything else as
`InferenceFailed` with its text, while its traceback goes to the model's log. What `describe` and
`initialise` raise is why the version cannot be loaded.

What is printed to stdout and stderr, and what is logged with `logging`, becomes the model's log.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Protocol

from meshnode.models.execution import Spelling

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from meshnode.models.runtimes.base import Described, Opening
    from meshnode.types import DataType, Scalar

    Call = Callable[["ModelCall"], "ModelAnswers"]

ADAPTORS: Final[Mapping[tuple[str, Spelling], str]] = {
    ("python", Spelling.TRITON): "meshnode.models.workers.triton",
    ("python", Spelling.PIPELINE): "meshnode.models.workers.pipeline",
    ("python", Spelling.PREDICTOR): "meshnode.models.workers.predictor",
    ("python", Spelling.ARCHIVE): "meshnode.models.workers.archive",
    ("torch", Spelling.NONE): "meshnode.models.workers.torch",
}
"""The module of each (runtime, spelling); it has `open_adaptor(surroundings) -> Adaptor`."""


class Interruption:
    """Whether somebody still waits for an answer; set from another thread."""

    __slots__ = ("reason",)

    def __init__(self) -> None:
        self.reason = ""

    def __repr__(self) -> str:
        return f"<Interruption {self.reason or 'none'}>"


@dataclass(frozen=True, slots=True)
class WorkerRequest:
    """One request as an adaptor sees it.

    Attributes:
        inputs: Arrays by name, in the order given. They lie in shared memory and may be written to. Keeping
            one beyond the answer is allowed: its memory is taken back when it is garbage. BYTES are arrays
            of `bytes` objects; BF16, which NumPy lacks, is uint16 (see `datatypes`).
        datatypes: Of each input.
        outputs: Names of the outputs wanted; empty for all. Others that are answered are dropped.
        request_id: The caller's, for logs; perhaps empty.
        parameters: Free parameters.
        timeout_s: Seconds that remained for an answer when the request arrived here.
        interruption: See `cancelled`.
    """

    inputs: Mapping[str, NDArray[Any]]
    datatypes: Mapping[str, DataType] = field(default_factory=dict)
    outputs: tuple[str, ...] = ()
    request_id: str = ""
    parameters: Mapping[str, Scalar] = field(default_factory=dict)
    timeout_s: float = 30.0
    interruption: Interruption = field(default_factory=Interruption)

    @property
    def cancelled(self) -> bool:
        """Whether nobody waits for the answer any more: a model that looks here may stop early.

        In an asynchronous adaptor the batch's task, or the stream, is cancelled as well.
        """
        return bool(self.interruption.reason)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model answers to one request, or one part of a stream.

    Attributes:
        outputs: Arrays by name; object arrays (of `bytes` or `str`) and arrays of dtype S and U are BYTES.
        parameters: Response parameters.
        datatypes: Of outputs whose NumPy type does not say it: BF16 as uint16.
    """

    outputs: Mapping[str, NDArray[Any]]
    parameters: Mapping[str, Scalar] = field(default_factory=dict)
    datatypes: Mapping[str, DataType] = field(default_factory=dict)


Outcome = Answer | Exception
"""Of one request of a batch; an exception fails that request alone."""


@dataclass(frozen=True, slots=True)
class ModelCall:
    """A request that a model makes to a model of its mesh, its own included.

    Attributes:
        model: Public name.
        inputs: Arrays by name, as in `Answer.outputs`.
        version: None for the newest.
        outputs: Names of the outputs wanted; empty for all.
        parameters: Request parameters.
        timeout_s: Seconds for the answer.
        datatypes: Of inputs whose NumPy type does not say it.
    """

    model: str
    inputs: Mapping[str, NDArray[Any]]
    version: int | None = None
    outputs: tuple[str, ...] = ()
    parameters: Mapping[str, Scalar] = field(default_factory=dict)
    timeout_s: float = 30.0
    datatypes: Mapping[str, DataType] = field(default_factory=dict)


ModelAnswers = list[Answer]
"""All parts of an answer: one, but for models that give any number."""


@dataclass(frozen=True, slots=True)
class WorkerSurroundings:
    """What an adaptor is given when it is made.

    Attributes:
        opening: The version's folder, entry, settings; `device` is decided (`cpu` or `gpu:N`), never `auto`.
        work_folder: Its own temporary folder, emptied at each start: the current folder, `TMPDIR` and `HOME`.
        cache_folder: Where it may keep things across restarts; also in `MESHNODE_CACHE_FOLDER`.
        call: Ask another model and wait; raises `MeshError`. Not on the event loop of an asynchronous
            adaptor (`call_soon` is for that).
    """

    opening: Opening
    work_folder: Path
    cache_folder: Path | None
    call: Call

    async def call_soon(self, call: ModelCall) -> ModelAnswers:
        """Ask another model from the event loop; raises `MeshError`."""
        return await asyncio.to_thread(self.call, call)


class Adaptor(Protocol):
    """One opened model of one spelling. See the module for when what is called."""

    @property
    def asynchronous(self) -> bool:
        """Whether its functions are coroutine functions; known once it is made."""
        ...

    @property
    def joins_rows(self) -> bool:
        """Whether a batch comes as one request of joined rows, instead of as a list of requests."""
        ...

    @property
    def concurrency(self) -> int:
        """Batches and streams at once; more than 1 only if asynchronous."""
        ...

    @property
    def device(self) -> str:
        """Where it runs, for people: `cpu`, `cuda:0`; asked after `initialise`."""
        ...

    def describe(self) -> Described:
        """Say what it takes and gives; the process may be ended after this.

        `opening.inputs`, `outputs`, `max_batch_size` and `execution` are what the configuration says; what is
        returned is what counts. It should not read weights where that can be avoided.

        Raises:
            MeshError: with what is wrong, and both sides where the configuration contradicts the model.
        """
        ...

    def initialise(self) -> Awaitable[None] | None:
        """Load weights, compile; afterwards the version is ready."""
        ...

    def execute(
        self, requests: Sequence[WorkerRequest]
    ) -> Awaitable[Sequence[Outcome]] | Sequence[Outcome]:
        """Answer a batch; one outcome for each request, in their order."""
        ...

    def stream(self, request: WorkerRequest) -> Iterator[Answer] | AsyncIterator[Answer]:
        """Answer one request in any number of parts; closed early if nobody waits for the rest."""
        ...

    def finalise(self) -> Awaitable[None] | None:
        """Let go of everything; the process ends afterwards."""
        ...
