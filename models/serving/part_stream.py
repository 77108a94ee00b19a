"""The answer of a model that may give any number of parts: made ahead of its reader, but not far.

A task takes the parts from the model and keeps up to `STREAM_PARTS_AHEAD` of them; a reader that is slower
slows the model. The task ends with the last part, with an error, or when the reader is gone. The first part is due at
the request's deadline; from then on a stream may take for ever, but not from one part to the next.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from meshnode.errors import Cancelled, DeadlineExceeded, MeshError
from meshnode.limits import STREAM_PARTS_AHEAD, STREAM_PAUSE_S
from meshnode.models.serving.batch_run import as_mesh_error

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from meshnode.types import ResponsePart

_END: Final = None


class PartStream:
    """Parts in order; iterate it once.

    Attributes:
        error: Why it ended early; None while it runs, after its regular end, and once its reader was told.
    """

    def __init__(self, on_begun: Callable[[PartStream], None]) -> None:
        """Start with no part.

        Args:
            on_begun: Called with the first part, or at a regular end without any.
        """
        self.error: MeshError | None = None
        self._on_begun: Callable[[PartStream], None] | None = on_begun
        self._queue: asyncio.Queue[ResponsePart | None] = asyncio.Queue()
        self._room = asyncio.Event()
        self._pump: asyncio.Task[object] | None = None

    def __repr__(self) -> str:
        return f"<PartStream {self._queue.qsize()} ahead, error={self.error!r}>"

    def __aiter__(self) -> AsyncIterator[ResponsePart]:
        """Return itself."""
        return self

    async def __anext__(self) -> ResponsePart:
        """Return the next part.

        Raises:
            MeshError: if the stream ended early.
        """
        part = await self._queue.get()
        self._room.set()
        if part is _END:
            self._queue.put_nowait(_END)  # whoever asks again ends again
            raise self._end()
        return part

    async def aclose(self) -> None:
        """Cancel what has not been made yet."""
        self.cancel()

    def cancel(self) -> None:
        """Likewise, for who cannot wait."""
        if self._pump is not None:
            self._pump.cancel()

    async def pump(
        self,
        parts: AsyncIterator[ResponsePart],
        deadline: float,
        pause_s: float = STREAM_PAUSE_S,
    ) -> MeshError | None:
        """Take all parts from a model; called once, in a task of its own.

        Args:
            parts: Of the model; closed at the end, also if it is early.
            deadline: When the first part must be here, in the loop's seconds.
            pause_s: How long the model may then take for each further one, and the reader to make room for it.

        Returns:
            Why it ended early, or None.
        """
        failed: MeshError | None = None
        self._pump = asyncio.current_task()
        now = asyncio.get_running_loop().time
        try:
            async with asyncio.timeout_at(deadline) as limit:
                async for part in parts:
                    self._queue.put_nowait(part)
                    self._begin()
                    limit.reschedule(now() + pause_s)
                    if await self._wait_for_room():
                        limit.reschedule(now() + pause_s)
        except TimeoutError:
            failed = DeadlineExceeded(self._why_late(pause_s))
        except Exception as error:  # noqa: BLE001 - delivered to the reader
            failed = as_mesh_error(error)
        except asyncio.CancelledError:
            failed = Cancelled("the reader of the answer is gone")
            raise
        finally:
            self._pump = None
            self.error = failed
            self._queue.put_nowait(_END)
            if failed is None:
                self._begin()
            self._on_begun = None
            close = getattr(parts, "aclose", None)
            if close is not None:
                await close()
        return failed

    def _why_late(self, pause_s: float) -> str:
        if self._on_begun is not None:
            return "the model had not begun to answer at the deadline"
        if self._queue.qsize() >= STREAM_PARTS_AHEAD:
            return f"the answer was not read for {pause_s:g} s"
        return f"the model gave no further part of its answer for {pause_s:g} s"

    async def _wait_for_room(self) -> bool:
        """Wait until the reader has taken enough; return whether it took any time."""
        waited = False
        while self._queue.qsize() >= STREAM_PARTS_AHEAD:
            waited = True
            self._room.clear()
            await self._room.wait()
        return waited

    def _begin(self) -> None:
        if self._on_begun is not None:
            begun, self._on_begun = self._on_begun, None
            begun(self)

    def _end(self) -> Exception:
        # Told once: a raised error leads to the frames of its readers, and those to this stream.
        error, self.error = self.error, None
        return StopAsyncIteration() if error is None else error
