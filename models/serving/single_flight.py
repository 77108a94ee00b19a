"""Equal requests at the same time run once.

The first caller of a key starts a run; those that come while it runs wait for the same one. The run is
nobody's own: it goes on while anybody waits for it, so a first caller that gives up leaves it to the
others, and it is cancelled when the last one has gone. Each waits until its own deadline. If the run
ends for a reason of its first caller alone (its deadline, its place in the queue), the others begin anew.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from meshnode.errors import DeadlineExceeded, Saturated

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from meshnode.types import InferResponse


class _Flight:
    __slots__ = ("task", "waiting")

    def __init__(self, task: asyncio.Task[InferResponse]) -> None:
        self.task = task
        self.waiting = 0


class SingleFlight:
    """The runs under way, by key; owned by one event loop. Bounded by the requests in flight.

    Attributes:
        shared: Requests that were answered by another one's run.
    """

    def __init__(self) -> None:
        """Begin without runs."""
        self._flights: dict[bytes, _Flight] = {}
        self.shared = 0

    def __repr__(self) -> str:
        return f"<SingleFlight {len(self._flights)} runs, {self.shared} shared>"

    async def run(
        self,
        key: bytes,
        timeout_s: float,
        start: Callable[[float], Coroutine[None, None, InferResponse]],
    ) -> InferResponse:
        """Return the answer of a run, one's own or one that is under way.

        Args:
            key: Equal for requests that may share an answer.
            timeout_s: Seconds that this caller waits.
            start: Makes the run, given the seconds that are left to it.

        Raises:
            DeadlineExceeded: if this caller's time passed first.
            MeshError: what the run raises.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        while True:
            flight = self._flights.get(key)
            leads = flight is None
            if flight is None:
                left_s = deadline - loop.time()
                flight = self._begin(key, asyncio.ensure_future(start(left_s)))
            try:
                answer = await self._wait(flight, deadline)
            except (DeadlineExceeded, Saturated):
                if leads or loop.time() >= deadline:
                    raise
                continue
            self.shared += not leads
            return answer

    def _begin(self, key: bytes, task: asyncio.Task[InferResponse]) -> _Flight:
        flight = self._flights[key] = _Flight(task)

        def ended(done: asyncio.Task[InferResponse]) -> None:
            if self._flights.get(key) is flight:
                del self._flights[key]
            if not done.cancelled():
                done.exception()  # taken note of, also where nobody waits any more

        task.add_done_callback(ended)
        return flight

    async def _wait(self, flight: _Flight, deadline: float) -> InferResponse:
        flight.waiting += 1
        try:
            async with asyncio.timeout_at(deadline):
                return await asyncio.shield(flight.task)
        except TimeoutError:
            raise DeadlineExceeded("the model was still running at the deadline") from None
        finally:
            flight.waiting -= 1
            if not flight.waiting and not flight.task.done():
                flight.task.cancel()
                self._abandon(flight)

    def _abandon(self, flight: _Flight) -> None:
        """Forget a run that is being cancelled: who comes now begins another."""
        for key, each in self._flights.items():
            if each is flight:
                del self._flights[key]
                return
