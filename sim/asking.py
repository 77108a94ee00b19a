"""What tests ask of a world: calls of its clients, requests to its models, bodies and applications."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeVar

from meshnode.errors import UsageError
from meshnode.sim.stage import Call
from meshnode.sim.stand_in import BODY, WANTED, WORK

if TYPE_CHECKING:
    from aiohttp import web

    from meshnode.sim.scenario.model import Scenario
    from meshnode.sim.stage import Machine

T = TypeVar("T")

Body = Coroutine[Any, Any, T] | Callable[[], Awaitable[T]]
"""A test body: a coroutine, or an asynchronous function without arguments."""

APP_PORT: Final = 8080
"""Where an application of one's own listens on its host."""


def call_of(
    scenario: Scenario,
    machines: Sequence[Machine],
    model: str,
    via: str | None,
    others: Sequence[str],
    work_s: float | None,
    timeout_s: float,
) -> Call:
    """Return a call of a client; its number and time are for whoever makes it.

    Args:
        scenario: Which models there are.
        machines: Which gateways there are.
        model: For which model.
        via: Which gateway is asked; None for the first.
        others: Which ones are asked if that is lost.
        work_s: How long it runs on a device of speed 1; None for the model's mean.
        timeout_s: What it may take.

    Raises:
        UsageError: if there is no such model or gateway.
    """
    known = {one.name: one for one in scenario.models}
    if model not in known:
        raise UsageError(f"there is no model {model!r}; there are {', '.join(known) or 'none'}")
    gateways = [machine.name for machine in machines if machine.gateway]
    for name in (*([via] if via else []), *others):
        if name not in gateways:
            raise UsageError(f"{name!r} is no gateway; there are {', '.join(gateways)}")
    described = known[model]
    return Call(
        number=0,
        made_at_s=0.0,
        gateway=via or gateways[0],
        model=model,
        work_s=described.service.mean_ms / 1000 if work_s is None else work_s,
        timeout_s=timeout_s,
        deadline_s=timeout_s,
        others=tuple(others),
        request_bytes=round(described.request_kb * 1024),
        response_bytes=round(described.response_kb * 1024),
    )


def stand_in_inputs(
    work_s: float = 0.0, answer_bytes: int = 64, body: str = ""
) -> list[dict[str, Any]]:
    """Return the `inputs` of an Open Inference Protocol request to a world's model.

    The models of a world stand in for real ones: whatever their name, they take these three tensors
    and answer one of bytes called `body`.

    Args:
        work_s: How long it runs on a device of speed 1; 0 for the model's mean.
        answer_bytes: Length of the answer's tensor.
        body: Whatever one likes, to make the request longer.
    """
    values: tuple[tuple[Any, Any], ...] = ((WORK, work_s), (WANTED, answer_bytes), (BODY, body))
    return [
        {"name": spec.name, "datatype": str(spec.datatype), "shape": [1], "data": [value]}
        for spec, value in values
    ]


def require_seconds(what: str, seconds: float) -> None:
    """Refuse what is no length of time.

    Raises:
        UsageError: if it is negative, infinite or not a number.
    """
    if not 0 <= seconds < math.inf:
        raise UsageError(f"{what} is {seconds!r}; it must be seconds, 0 or more")


def raise_unhandled(
    unhandled: Iterable[tuple[str, BaseException]], told_before: Sequence[BaseException]
) -> None:
    """Raise the first exception that nobody caught, so that a test does not pass over it.

    Args:
        unhandled: Who raised them on the loop, and what; the oldest first.
        told_before: Those that are no news.
    """
    for who, error in unhandled:
        if not any(error is each for each in told_before):
            error.add_note(f"Nobody awaited what raised this in the background of {who}.")
            raise error


async def limited(body: Body[T], limit_s: float) -> T:
    """Run a test body; it may take so many seconds of its loop.

    Raises:
        TimeoutError: if it takes longer.
    """
    async with asyncio.timeout(limit_s):
        if isinstance(body, Coroutine):
            return await body
        return await body()


async def serving(app: web.Application, address: str) -> web.AppRunner:
    """Start an application at an address of the running loop; return what it is stopped with."""
    from aiohttp import web

    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, address, APP_PORT).start()
    return runner
