"""How much memory an entrance's requests and answers may take together.

One `Bodies` is shared by all entrances of a node. Its limit is `MAX_BODIES_BYTES`, or the share
`BODIES_MEMORY_SHARE` of what the owner allows the node, whichever is less. What happens at the limit:

| what comes | what is done |
|---|---|
| a body that alone exceeds the limit | it is refused by its announced length (413) |
| a body, while too much is being worked on | it is refused (503) |
| a piece that exceeds the limit, or the memory that the owner allows | the largest body that has not arrived completely is dropped (503), be it this one or another |
| an answer, while too many large ones wait for their readers | a refusal goes out instead (503) |

So whoever sends the most of a body and stops makes room first, and small requests, which arrive in
one piece, never come here. An announcement takes no room: only bytes do.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from meshnode.errors import Saturated, TooLarge
from meshnode.limits import BODIES_MEMORY_SHARE, MAX_BODIES_BYTES, MIB
from meshnode.owner_limits import size_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def bodies_limit_bytes(max_memory_bytes: int | None) -> int:
    """Return how much all bodies may take of a node that may take so much, or any amount."""
    if max_memory_bytes is None:
        return MAX_BODIES_BYTES
    return min(MAX_BODIES_BYTES, int(BODIES_MEMORY_SHARE * max_memory_bytes))


class Bodies:
    """The bodies that are in memory."""

    def __init__(
        self, max_memory_bytes: int | None = None, rss: Callable[[], int] = lambda: 0
    ) -> None:
        """Begin with none.

        Args:
            max_memory_bytes: What the owner allows the whole process; None for no limit.
            rss: Returns the memory of this process in bytes; asked once a mebibyte.
        """
        self.limit_bytes = bodies_limit_bytes(max_memory_bytes)
        self._max_memory_bytes = max_memory_bytes
        self._rss = rss
        self._arriving: set[Body] = set()
        self._arriving_bytes = 0
        self._complete_bytes = 0
        self._answers_bytes = 0

    def __repr__(self) -> str:
        return f"<Bodies: {self.held_bytes} of {self.limit_bytes} bytes, {len(self._arriving)} arriving>"

    @property
    def held_bytes(self) -> int:
        """What requests take that are arriving or being worked on."""
        return self._arriving_bytes + self._complete_bytes

    def begin(self, announced_bytes: int, on_drop: Callable[[], None]) -> Body:
        """Admit a body that is about to arrive.

        Args:
            announced_bytes: Its length as far as it is known, else 0.
            on_drop: Called at most once, when it has to make room for others.

        Raises:
            TooLarge: if it can never be held.
            Saturated: if it cannot be held now.
        """
        if announced_bytes > self.limit_bytes:
            raise TooLarge(
                f"the body has {size_text(announced_bytes)}; this node may hold "
                f"{size_text(self.limit_bytes)} of bodies (a share of --max-memory): ask the "
                "gateway of another node"
            )
        if self._complete_bytes + announced_bytes > self.limit_bytes:
            raise _too_many()
        if self._is_over(announced_bytes):
            raise _no_memory()
        body = Body(self, on_drop)
        self._arriving.add(body)
        return body

    @contextmanager
    def answering(self, size_bytes: int) -> Iterator[None]:
        """Count a large answer while it is written.

        Raises:
            Saturated: if too many wait for their readers already; one always may.
        """
        if self._answers_bytes and self._answers_bytes + size_bytes > self.limit_bytes:
            raise Saturated(
                "this gateway holds too many large answers that are not read; try again later"
            )
        self._answers_bytes += size_bytes
        try:
            yield
        finally:
            self._answers_bytes -= size_bytes

    def _is_over(self, more_bytes: int) -> bool:
        limit_bytes = self._max_memory_bytes
        return limit_bytes is not None and self._rss() + more_bytes > limit_bytes

    def _grow(self, body: Body, size_bytes: int) -> None:
        asks = body.size_bytes // MIB != (body.size_bytes + size_bytes) // MIB
        body.size_bytes += size_bytes
        self._arriving_bytes += size_bytes
        while self.held_bytes > self.limit_bytes and not body.dropped:
            self._drop_largest(_too_many())
        if asks and not body.dropped and self._is_over(0):
            self._drop_largest(_no_memory())
        if body.dropped is not None:
            raise body.dropped

    def _drop_largest(self, reason: Saturated) -> None:
        largest = max(self._arriving, key=lambda body: body.size_bytes)
        self._leave(largest)
        largest.dropped = reason
        largest.size_bytes = 0
        largest.on_drop()

    def _leave(self, body: Body) -> None:
        if body in self._arriving:
            self._arriving.remove(body)
            self._arriving_bytes -= body.size_bytes

    def _complete(self, body: Body) -> None:
        self._leave(body)
        self._complete_bytes += body.size_bytes
        body.is_complete = True

    def _end(self, body: Body) -> None:
        if body.is_complete:
            self._complete_bytes -= body.size_bytes
        self._leave(body)
        body.size_bytes = 0


class Body:
    """One body: it grows, is complete, and ends. Made by `Bodies.begin`.

    Attributes:
        size_bytes: What of it is here.
        dropped: Why it had to make room, or None.
        is_complete: Whether all of it has arrived: it is not dropped any more.
        on_drop: See `Bodies.begin`.
    """

    __slots__ = ("_bodies", "dropped", "is_complete", "on_drop", "size_bytes")

    def __init__(self, bodies: Bodies, on_drop: Callable[[], None]) -> None:
        """Begin empty."""
        self._bodies = bodies
        self.on_drop = on_drop
        self.size_bytes = 0
        self.dropped: Saturated | None = None
        self.is_complete = False

    def __repr__(self) -> str:
        state = "complete" if self.is_complete else "dropped" if self.dropped else "arriving"
        return f"<Body {state}, {self.size_bytes} bytes>"

    def grow(self, size_bytes: int) -> None:
        """Count a piece that has arrived.

        Raises:
            Saturated: if this body has to go, for others or for the owner's limit.
        """
        self._bodies._grow(self, size_bytes)

    def complete(self) -> None:
        """Keep it until its request is answered."""
        self._bodies._complete(self)

    def end(self) -> None:
        """Let it go; may be called again."""
        self._bodies._end(self)


def _too_many() -> Saturated:
    return Saturated("this gateway holds too many large requests; try again later")


def _no_memory() -> Saturated:
    return Saturated(
        "this node has not the memory for another large request (--max-memory); try again later"
    )
