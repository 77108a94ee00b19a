"""Several inferences for one request: texts that a model takes one by one, and several answers to one.

They run a few at a time, each on the replica that routing chooses for it. The first failure ends all.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

from meshnode.errors import DeadlineExceeded, MeshError
from meshnode.gateway.inference import with_cache_control
from meshnode.gateway.targets import Answered
from meshnode.limits import FAN_OUT

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from meshnode.gateway.pipeline import Pipeline
    from meshnode.gateway.protocols.http import HttpRequest
    from meshnode.gateway.targets import Target
    from meshnode.types import InferRequest, InferResponse

_R = TypeVar("_R")


async def fan_out(
    pipeline: Pipeline,
    target: Target,
    http: HttpRequest,
    requests: Sequence[InferRequest],
    read: Callable[[int, InferResponse], Awaitable[_R]],
) -> tuple[list[_R], Answered]:
    """Make inferences; return what `read` made of each answer, in order, and the answer that came last.

    Args:
        pipeline: Answers them.
        target: What they are for.
        http: What asked for them.
        requests: At least one.
        read: Takes the place of a request among them, and its answer.

    Raises:
        MeshError: the first that failed; the others are cancelled. DeadlineExceeded if all of them together
            take longer than one of them may.
    """
    results: dict[int, _R] = {}
    waiting = iter(enumerate(requests))
    last: list[Answered] = []

    async def work() -> None:
        for index, request in waiting:
            answered = pipeline.answer(with_cache_control(request, http), target, http.headers)
            if not isinstance(answered, Answered):
                answered = await answered
            try:
                results[index] = await read(index, answered.response)
            except MeshError as error:
                error.mesh_route = error.mesh_route or answered.route_header
                raise
            last[:] = [answered]

    workers = [asyncio.ensure_future(work()) for _ in range(min(FAN_OUT, len(requests)))]
    limit_s = requests[0].timeout_s
    try:
        async with asyncio.timeout(limit_s):
            await asyncio.gather(*workers)
    except TimeoutError:
        raise DeadlineExceeded(
            f"{len(results)} of {len(requests)} inferences were done after {limit_s:g} s; ask for fewer at once"
        ) from None
    finally:
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
    return [results[index] for index in range(len(requests))], last[0]
