"""A model in a process of its own, asked from the event loop: `WorkerProcess` fulfils `ProcessModel`.

    attached ──process gone──> lost ──pause, launch in a thread──> attached …
        └──────────close──────────┴──> closed

What happens to one process is in its `Life`: sockets, batches that run, shared memory that is lent. When the
process is gone, so is its life; the model gets another one. A batch that ran fails with `InferenceFailed`: it
may be what killed the process, so it is not tried on the mesh's other replicas as well. Requests that come
while there is no process fail with `NotServing`, which others may take.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from meshnode.errors import MeshError, ModelError, NotServing
from meshnode.models.workers.answers import text_of
from meshnode.models.workers.launch import Child, Plan, launch
from meshnode.models.workers.life import Life
from meshnode.models.workers.sequence_tensors import kept_inputs, kept_outputs, with_kept
from meshnode.models.workers.supervision import Restarts

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence

    from meshnode.models.manifest import TensorSpec
    from meshnode.models.workers.protocol import Started
    from meshnode.types import InferRequest, InferResponse, ResponsePart, Tensor

    Infer = Callable[[InferRequest], Awaitable[InferResponse]]

log = logging.getLogger(__name__)


def open_worker(plan: Plan, infer: Infer | None = None) -> WorkerProcess:
    """Start a model's process and wait until it is ready; blocks.

    Args:
        plan: What to start.
        infer: Answers the model's own requests to other models; None: it may ask none.

    Raises:
        ModelError: as `launch`.
    """
    child, started = launch(plan)
    return WorkerProcess(plan, child, started, infer)


class WorkerProcess:
    """A model in a process of its own; see `ProcessModel`."""

    def __init__(
        self, plan: Plan, child: Child, started: Started, infer: Infer | None = None
    ) -> None:
        """Take over a process that is ready.

        Attributes:
            restarts: How often it was started again.
            last_end: Why its process ended last; empty if none has.
        """
        self.restarts = 0
        self.last_end = ""
        self._plan = plan
        self._infer = infer
        self._child: Child | None = child  # until it is attached to an event loop
        self._started = started
        kept = (started.execution, started.max_batch_size)
        self._inputs = with_kept(started.inputs, kept_inputs(*kept))
        self._outputs = with_kept(started.outputs, kept_outputs(*kept))
        self._memory_bytes = child.reading(0.0, search=False).memory_bytes
        self._life: Life | None = None
        self._reason = ""
        self._closed = False
        self._attaching: asyncio.Future[None] | None = None
        self._task: asyncio.Task[None] | None = None
        self._launching: asyncio.Future[tuple[Child, Started]] | None = None
        self._on_lost: Callable[[str], None] = _nobody
        self._pauses = Restarts(
            plan.settings.restart_first_s,
            plan.settings.restart_max_s,
            random.Random(),
        )

    def __repr__(self) -> str:
        opening = self._plan.opening
        state = "closed" if self._closed else self._reason or "running"
        return f"<WorkerProcess {opening.model}/{opening.version} {state}>"

    @property
    def on_lost(self) -> Callable[[str], None]:
        """See `ProcessModel`. Setting it on a running event loop begins the watch over the process."""
        return self._on_lost

    @on_lost.setter
    def on_lost(self, told: Callable[[str], None]) -> None:
        self._on_lost = told
        with suppress(RuntimeError):  # no loop: the first request attaches it
            loop = asyncio.get_running_loop()
            if self._reason:
                loop.call_soon(told, self._reason)  # it was lost before anybody wanted to know
            if self._child is not None and self._task is None:
                self._task = loop.create_task(self._attach())

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Input tensors, those included that the node fills in."""
        return self._inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Output tensors, those included that the node keeps."""
        return self._outputs

    @property
    def device(self) -> str:
        """Where it runs."""
        return self._started.device

    @property
    def joins_rows(self) -> bool:
        """Whether a batch is one request of joined rows."""
        return self._started.joins_rows

    @property
    def concurrency(self) -> int:
        """Batches that it takes at once."""
        return self._started.concurrency

    @property
    def enforced(self) -> tuple[str, ...]:
        """What its process is restricted by."""
        return self._started.enforced

    @property
    def memory_bytes(self) -> int:
        """Resident memory of its process and what that started, at the last look."""
        return (self._life.memory_bytes if self._life is not None else 0) or self._memory_bytes

    @property
    def process_id(self) -> int | None:
        """Of the process, while there is one."""
        return self._life.child.process_id if self._life is not None else None

    async def execute(
        self, requests: Sequence[InferRequest]
    ) -> list[tuple[Tensor, ...] | ResponsePart | MeshError]:
        """Execute a batch; see `ProcessModel`."""
        return await (await self._present()).execute(requests)

    async def stream(self, request: InferRequest) -> AsyncGenerator[ResponsePart, None]:
        """Execute a request that may have any number of answers; see `ProcessModel`."""
        parts = (await self._present()).stream(request)
        try:
            async for part in parts:
                yield part
        finally:
            await parts.aclose()

    async def close(self) -> None:
        """End the process."""
        self._closed = True
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        await self._abandoned()
        grace_s = self._plan.settings.stop_grace_s
        if self._life is not None:
            life, self._life = self._life, None
            await life.close(grace_s)
        elif self._child is not None:
            child, self._child = self._child, None
            await asyncio.to_thread(child.kill)
            await asyncio.to_thread(child.end, grace_s)

    async def _present(self) -> Life:
        if self._life is None and self._child is not None and not self._closed:
            await self._attach()
        if self._life is None:
            opening = self._plan.opening
            what = self._reason or "it is closed"
            raise NotServing(
                f"model {opening.model} version {opening.version} has no process: {what}"
            )
        return self._life

    async def _attach(self) -> None:
        """Give the process that was launched to this event loop."""
        if self._attaching is not None:
            await asyncio.shield(self._attaching)
            return
        assert self._child is not None
        child = self._child
        self._attaching = asyncio.get_running_loop().create_future()
        try:
            life = Life(self._plan, child, self._started, self._infer)
            await life.attach(self._gone)
            self._child = None
            self._life = life
        finally:
            self._attaching.set_result(None)
            self._attaching = None

    def _gone(self, life: Life, reason: str) -> None:
        """Its process ended; called on the event loop, once per life."""
        if self._life is not life or self._closed:
            return
        self._life = None
        self._lost(reason)
        lasted_s = time.monotonic() - life.since_s
        self._task = asyncio.get_running_loop().create_task(self._restart(lasted_s))

    def _lost(self, reason: str) -> None:
        self._reason = self.last_end = reason
        opening = self._plan.opening
        log.warning(
            "model %s version %d: %s",
            opening.model, opening.version, reason,
            extra={"model": opening.model, "version": opening.version},
        )  # fmt: skip
        self._on_lost(reason)

    async def _restart(self, lasted_s: float) -> None:
        while not self._closed:
            await asyncio.sleep(self._pauses.next_pause_s(lasted_s))
            lasted_s = 0.0
            self._launching = asyncio.ensure_future(
                asyncio.to_thread(launch, self._plan, aborted=lambda: self._closed)
            )
            try:
                self._child, self._started = await asyncio.shield(self._launching)
                self._launching = None
                await self._attach()
            except Exception as error:  # noqa: BLE001 - whatever it is, the model comes back
                await self._failed_start(error)
                continue
            self.restarts += 1
            self._reason = ""
            self._on_lost("")
            return

    async def _failed_start(self, error: Exception) -> None:
        """Say why there is no process; end the one that could not be attached, if there is one."""
        self._launching = None
        child, self._child = self._child, None
        if child is not None:
            await asyncio.to_thread(child.kill)
            await asyncio.to_thread(child.end, 0.0)
        if isinstance(error, ModelError):
            self._lost(str(error))
            return
        if not isinstance(error, MeshError | OSError):
            log.error("starting a model's process failed", exc_info=error)
        self._lost(f"its process cannot be started: {text_of(error)}")

    async def _abandoned(self) -> None:
        """Wait for a process that is being started, and end it: its model is closed."""
        if self._launching is None:
            return
        with suppress(Exception):  # it is not wanted, so neither is why it failed
            child, _ = await self._launching
            await asyncio.to_thread(child.kill)
            await asyncio.to_thread(child.end, 0.0)


def _nobody(reason: str) -> None:
    """Nobody wants to know yet."""
    del reason
