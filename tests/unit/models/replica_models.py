"""Models and workers whose runs the tests of replicas begin and end themselves."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import TYPE_CHECKING, Any

import numpy as np

from meshnode.errors import InferenceFailed, MeshError
from meshnode.models.execution import DEFAULT_EXECUTION, Execution
from meshnode.models.manifest import Manifest, TensorSpec
from meshnode.models.serving.measure import RunTime
from meshnode.models.serving.opened import Instance, Opened
from meshnode.models.serving.replica import Replica
from meshnode.models.serving.server_config import ServerConfig
from meshnode.models.tensors import from_numpy, to_numpy
from meshnode.types import DataType, InferRequest, InferResponse, ResponsePart, Tensor

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

X = TensorSpec("x", DataType.FP32, (-1, -1))
Y = TensorSpec("y", DataType.FP32, (-1, -1))

ALONE = "told so"


class Doubler:
    """A model in this process: twice its input; it raises where a number is negative."""

    inputs = (X,)
    outputs = (Y,)
    device = "cpu"

    def __init__(self) -> None:
        self.ran: list[int] = []
        self.closed = False

    def run(self, inputs: Sequence[Tensor], outputs: Sequence[str]) -> tuple[Tensor, ...]:
        del outputs
        array = to_numpy(inputs[0])
        self.ran.append(len(array))
        if (array < 0).any():
            raise InferenceFailed("a number is negative")
        return (from_numpy("y", array * 2),)

    def close(self) -> None:
        self.closed = True


class Process:
    """A model in "another process": each batch is answered when the test says so."""

    inputs: tuple[TensorSpec, ...] = (X,)
    outputs: tuple[TensorSpec, ...] = (Y,)
    device = "cpu"
    concurrency = 1
    memory_bytes = 0

    def __init__(self, *, joins_rows: bool = False) -> None:
        self.joins_rows = joins_rows
        self.on_lost: Callable[[str], None] = lambda _reason: None
        self.asked: deque[tuple[list[InferRequest], asyncio.Future[Any]]] = deque()
        self.cancelled = 0
        self.closed = False
        self.parts: asyncio.Queue[ResponsePart | MeshError | None] = asyncio.Queue()

    async def execute(
        self, requests: Sequence[InferRequest]
    ) -> list[tuple[Tensor, ...] | ResponsePart | MeshError]:
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.asked.append((list(requests), answer))
        try:
            result: list[tuple[Tensor, ...] | ResponsePart | MeshError] = await answer
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return result

    async def answered(self) -> list[int]:
        """Answer the batch that is asked first, as `Doubler` would; return the rows of its requests."""
        await turn()
        requests, answer = self.asked.popleft()
        results: list[object] = []
        for each in requests:
            try:
                results.append(Doubler().run(each.inputs, ()))
            except MeshError as error:
                results.append(error)
        answer.set_result(results)
        await turn()
        return [each.rows for each in requests]

    async def stream(self, request: InferRequest) -> AsyncIterator[ResponsePart]:
        del request
        try:
            while (part := await self.parts.get()) is not None:
                if isinstance(part, MeshError):
                    raise part
                yield part
        except asyncio.CancelledError:
            self.cancelled += 1
            raise

    async def close(self) -> None:
        self.closed = True


class Workers:
    """Worker threads that are none: what is submitted runs when the test says so."""

    def __init__(self) -> None:
        self.work: deque[tuple[Callable[..., Any], tuple[Any, ...]]] = deque()

    def submit(self, work: Callable[..., Any], /, *args: Any) -> object:
        self.work.append((work, args))
        return None

    def shutdown(self, wait: bool = True) -> None:
        """Do nothing."""

    async def run_one(self) -> None:
        """Run what was submitted first, and let what follows from it happen."""
        work, args = self.work.popleft()
        work(*args)
        await turn()

    async def run_all(self) -> None:
        await turn()
        while self.work:
            await self.run_one()


async def turn() -> None:
    """Let every task that can run do so."""
    for _ in range(6):
        await asyncio.sleep(0)


class Bench:
    """A replica over such models."""

    def __init__(
        self,
        *models: Any,
        execution: Execution = DEFAULT_EXECUTION,
        max_batch_size: int = 8,
        apart: str = "",
        inputs: tuple[TensorSpec, ...] = (X,),
        outputs: tuple[TensorSpec, ...] = (Y,),
        slots: int = 1,
        exclusive: bool = False,
        profile: tuple[tuple[int, float], ...] = (),
        timer: Callable[[], float] = time.perf_counter,
        **config: Any,
    ) -> None:
        self.models = models or (Doubler(),)
        self.workers = Workers()
        manifest = Manifest(
            "m", 1, "fake", "fake", inputs, outputs, max_batch_size, (), "f", execution
        )
        instances = tuple(Instance(each, slots, exclusive=exclusive) for each in self.models)
        config.setdefault("inline_limit_s", 0.0)
        self.replica = Replica(
            manifest,
            Opened(instances, RunTime(), profile, apart),
            ServerConfig(**config),
            timer,
            lambda _count, _name: self.workers,
        )

    def ask(self, *rows: float, **options: Any) -> asyncio.Task[InferResponse]:
        return asyncio.ensure_future(self.replica.infer(request(*rows, **options)))


def request(*rows: float, columns: int = 1, **options: Any) -> InferRequest:
    """A request of these rows, each the same number in every column."""
    array = np.repeat(np.array(rows, np.float32)[:, None], columns, axis=1)
    return InferRequest("m", (from_numpy("x", array),), **options)


def numbers(response: InferResponse) -> list[float]:
    """The first column of the answer."""
    assert response.single is not None
    values: list[float] = to_numpy(response.single.outputs[0])[:, 0].tolist()
    return values
