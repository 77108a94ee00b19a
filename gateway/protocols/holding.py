"""What one request takes of its gateway: room for its body, and a place of its caller's key.

The body goes when there is an answer, the place when that has been written. Where work goes on after the client has
hung up (`Idempotency-Key`), both go with that work: the body is still in memory, and a caller who hangs up and asks again
has both running.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable


class Holding:
    """What one request holds; each thing is given back once.

    Attributes:
        body: Gives the room of the body back; None where it takes none.
        place: Gives the place back; None where there is none.
    """

    __slots__ = ("_work", "body", "place")

    def __init__(self, place: Callable[[], None] | None = None) -> None:
        """Begin with a place, or nothing."""
        self.body: Callable[[], None] | None = None
        self.place = place
        self._work: asyncio.Future[Any] | None = None

    def __repr__(self) -> str:
        held = [name for name in ("body", "place") if getattr(self, name) is not None]
        return f"<Holding {' and '.join(held) or 'nothing'}>"

    def outlast(self, work: asyncio.Future[Any]) -> None:
        """Give nothing back before this work has ended."""
        self._work = work

    def answered(self) -> None:
        """The body is needed no more; may be called again."""
        self._after_work(self._end_body)

    def end(self) -> None:
        """Nothing is needed any more; may be called again."""
        self._after_work(self._end_all)

    def _after_work(self, end: Callable[[], None]) -> None:
        work = self._work
        if work is None or work.done():
            end()
        else:
            # What ended may have begun a stream, which goes on.
            work.add_done_callback(lambda _work: self._after_work(end))

    def _end_body(self) -> None:
        body, self.body = self.body, None
        if body is not None:
            body()

    def _end_all(self) -> None:
        self._end_body()
        place, self.place = self.place, None
        if place is not None:
            place()
