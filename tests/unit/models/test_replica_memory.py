"""What a replica held of a request is free once that is over, without the garbage collector.

A node's collector runs by the number of objects: some requests of 60 MB each are far too few for it.
"""

from __future__ import annotations

import asyncio
import gc
import weakref
from typing import TYPE_CHECKING

import numpy as np
import pytest

from meshnode.errors import DeadlineExceeded, InferenceFailed
from meshnode.models.execution import DynamicBatching, Execution
from meshnode.models.tensors import from_numpy
from meshnode.types import DataType, InferRequest, ResponsePart, Tensor

from .replica_models import Bench, Process, turn

if TYPE_CHECKING:
    from collections.abc import Iterator

    from meshnode.models.serving.batch_run import Answer


class Data(bytearray):
    """Bytes that weak references can point to."""


class Watched:
    """Requests and answers, and how many of them are still in memory."""

    def __init__(self) -> None:
        self._all: list[weakref.ref[Data]] = []

    def tensor(self, name: str, value: float) -> Tensor:
        data = Data(np.array([[value]], "<f4").tobytes())
        self._all.append(weakref.ref(data))
        return Tensor(name, DataType.FP32, (1, 1), data)

    def request(self, value: float, timeout_s: float = 30.0) -> InferRequest:
        return InferRequest("m", (self.tensor("x", value),), timeout_s=timeout_s)

    @property
    def alive(self) -> int:
        return sum(each() is not None for each in self._all)


@pytest.fixture
def watched() -> Iterator[Watched]:
    gc.collect()
    gc.disable()
    try:
        yield Watched()
    finally:
        gc.enable()


async def answer(process: Process, *answers: Answer) -> None:
    """Answer the oldest batch of a process."""
    await turn()
    _, answered = process.asked.popleft()
    answered.set_result(list(answers))
    await turn()


@pytest.mark.parametrize("joined", [False, True])
async def test_an_answered_request_and_its_answer_are_free(watched: Watched, joined: bool) -> None:
    process = Process()
    execution = Execution(batching=DynamicBatching()) if joined else Execution()
    bench = Bench(process, execution=execution)
    asking = asyncio.ensure_future(bench.replica.infer(watched.request(1)))
    await answer(process, (watched.tensor("y", 2),))
    assert watched.alive == 1  # the answer, which nobody has taken yet
    assert (await asking).single is not None
    del asking
    await turn()
    assert watched.alive == 0


async def test_a_failed_request_is_free(watched: Watched) -> None:
    process = Process()
    bench = Bench(process)
    asking = asyncio.ensure_future(bench.replica.infer(watched.request(1)))
    await answer(process, InferenceFailed("no"))
    with pytest.raises(InferenceFailed, match="no"):
        await asking
    del asking
    await turn()
    assert watched.alive == 0


async def test_a_request_that_failed_in_a_thread_is_free(watched: Watched) -> None:
    bench = Bench(execution=Execution(batching=DynamicBatching()))
    asking = asyncio.ensure_future(bench.replica.infer(watched.request(-1)))
    await bench.workers.run_all()
    with pytest.raises(InferenceFailed, match="negative"):
        await asking
    del asking
    await turn()
    assert watched.alive == 0


async def test_a_request_whose_caller_is_gone_is_free(watched: Watched) -> None:
    process = Process()
    bench = Bench(process)
    asking = asyncio.ensure_future(bench.replica.infer(watched.request(1)))
    await turn()
    process.asked.clear()
    asking.cancel()
    await turn()
    assert asking.cancelled()
    assert process.cancelled == 1
    del asking
    await turn()
    assert watched.alive == 0


async def test_a_request_that_is_late_is_free_once_its_run_has_ended(watched: Watched) -> None:
    process = Process()
    bench = Bench(process)
    asking = asyncio.ensure_future(bench.replica.infer(watched.request(1, timeout_s=0.01)))
    await turn()
    process.asked.clear()
    with pytest.raises(DeadlineExceeded):
        await asking
    del asking
    await turn()
    assert watched.alive == 0


async def test_a_stream_and_one_that_fails_are_free(watched: Watched) -> None:
    process = Process()
    bench = Bench(process, execution=Execution(decoupled=True))

    async def ask() -> int:
        return len([part async for part in await bench.replica.infer(watched.request(1))])

    parts = (
        ResponsePart((watched.tensor("y", 1),)),
        ResponsePart((from_numpy("y", np.ones((1, 1), "f4")),)),
    )
    for each in (*parts, None):
        process.parts.put_nowait(each)
    del parts, each
    assert await ask() == 2
    process.parts.put_nowait(InferenceFailed("at once"))
    with pytest.raises(InferenceFailed, match="at once"):
        await ask()
    process.parts.put_nowait(ResponsePart((watched.tensor("y", 1),)))
    process.parts.put_nowait(InferenceFailed("then"))
    with pytest.raises(InferenceFailed, match="then"):
        await ask()
    await turn()
    assert watched.alive == 0
