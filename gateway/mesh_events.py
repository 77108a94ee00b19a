"""What happens in the mesh, as this node learns it: `GET /mesh/v1/events`, a stream of server-sent events.

The newest `MAX_KEPT_EVENTS` are kept in a ring, and every reader has only a place in it, so that a slow one costs
nothing: it is told how many it missed (`gap`) and goes on. Ids are `RUN.NUMBER`; a reader that names the last one it
saw gets what followed, and a `gap` where that is not known any more, such as after a restart or from another node. The
first line and every sign of life have an id, too, so that a reader that lost its connection before anything happened
can name its place, and so has a `gap`: the id of the newest event that is missed.

| event | data, besides `id`, `kind` and `time` (RFC 3339) |
|---|---|
| `member` | `node`, `node_id`, `state`: `alive`, `suspect`, `refuted`, `dead`, `left`, `evicted`, `updated` |
| `deployment` | `name`, `change`: `written`, `removed`, `overwritten` by somebody who had not seen it, `scaled` or `release`, with the `reason` |
| `model` | `model`, `version`, `node`, `node_id`, `state` (as of a replica, or `gone`), `reason` |
| `node` | `state`: `paused` or `resumed`, and `reason`; of the node that is asked |
| `gap` | `missed`: how many events are not told any more; null if that is unknown |
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from meshnode.errors import InvalidRequest, Saturated
from meshnode.gateway.protocols.http import HttpStream
from meshnode.gateway.protocols.native import EVENT_STREAM
from meshnode.limits import MAX_EVENT_READERS, MAX_KEPT_EVENTS, STREAM_HEARTBEAT_S

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Collection

    from meshnode.types import Buffer

KINDS: Final = ("member", "deployment", "model", "node")
_HEADERS: Final = {
    "Content-Type": EVENT_STREAM,
    "Cache-Control": "no-store",
    "X-Accel-Buffering": "no",
}
_LOST: Final = b": what comes first is what is not known\n\n"


class _Event(NamedTuple):
    kind: str
    text: bytes


class MeshEvents:
    """The events of one node's run, for any number of readers."""

    def __init__(self, run: str, time: Callable[[], str]) -> None:
        """Begin with none.

        Args:
            run: Tells this run from others, in ids.
            time: Returns the time as an RFC 3339 text.
        """
        self._run = run
        self._time = time
        self._events: deque[_Event] = deque(maxlen=MAX_KEPT_EVENTS)
        self._count = 0  # of all events so far
        self._readers: set[asyncio.Event] = set()
        self._is_closed = False

    def __repr__(self) -> str:
        return f"<MeshEvents: {self._count} so far, {len(self._readers)} readers>"

    def add(self, kind: str, **fields: Any) -> None:
        """Tell all readers of an event.

        Args:
            kind: One of `KINDS`.
            fields: What JSON can carry.
        """
        self._count += 1
        event_id = f"{self._run}.{self._count}"
        data = {"id": event_id, "kind": kind, "time": self._time(), **fields}
        text = b"id: %s\nevent: %s\ndata: %s\n\n" % (
            event_id.encode(), kind.encode(), msgspec.json.encode(data),
        )  # fmt: skip
        self._events.append(_Event(kind, text))
        for reader in self._readers:
            reader.set()

    def close(self) -> None:
        """Let go of all readers: the node stops."""
        self._is_closed = True
        for reader in self._readers:
            reader.set()

    def stream(
        self, after: str | None, kinds: Collection[str] = (), *, follow: bool = True
    ) -> HttpStream:
        """Return the events after an id.

        Args:
            after: The last id that the reader saw; None for what happens from now on.
            kinds: Which to tell; empty for all.
            follow: Go on with what happens. Otherwise what is kept is told, all of it if `after` is None.

        Raises:
            InvalidRequest: for an unknown kind.
            Saturated: if there are too many readers.
        """
        unknown = sorted(set(kinds) - set(KINDS))
        if unknown:
            raise InvalidRequest(
                f"{unknown[0][:40]!r} is no kind of event; known ones are {', '.join(KINDS)}"
            )
        if len(self._readers) >= MAX_EVENT_READERS:
            raise Saturated("too many programs follow this node's events; try again later")
        wanted = frozenset(kinds or KINDS)
        return HttpStream(200, _HEADERS, self._told(after, wanted, follow))

    async def _told(
        self, after: str | None, kinds: frozenset[str], follow: bool
    ) -> AsyncGenerator[Buffer, None]:
        news = asyncio.Event()
        self._readers.add(news)
        try:
            place = self._count if follow else self._count - len(self._events)
            known = None if after is None else self._place(after)
            place = place if known is None else known
            # The answer begins, whenever the first event comes. A gap must have come before its place is known.
            opening = ": from here on"
            yield self._quiet(opening, place) if after is None or known is not None else _LOST
            if after is not None and known is None:
                yield self._gap(None, place)
            while True:
                while place < self._count:
                    missed = self._count - len(self._events) - place
                    if missed > 0:
                        place += missed
                        yield self._gap(missed, place)
                        continue
                    found = self._events[place - self._count]
                    place += 1
                    if found.kind in kinds:
                        yield found.text
                if not follow or self._is_closed:
                    return
                news.clear()
                try:
                    async with asyncio.timeout(STREAM_HEARTBEAT_S):
                        await news.wait()
                except TimeoutError:
                    yield self._quiet(": nothing new", place)
        finally:
            self._readers.discard(news)

    def _place(self, event_id: str) -> int | None:
        run, _, text = event_id.partition(".")
        if run != self._run or not text.isascii() or not text.isdigit() or len(text) > 17:
            return None
        return int(text) if int(text) <= self._count else None

    def _gap(self, missed: int | None, place: int) -> bytes:
        event_id = f"{self._run}.{place}"
        data = {"id": event_id, "kind": "gap", "time": self._time(), "missed": missed}
        return b"id: %s\nevent: gap\ndata: %s\n\n" % (event_id.encode(), msgspec.json.encode(data))

    def _quiet(self, comment: str, place: int) -> bytes:
        """Return a comment with the id of a reader's place, which is no event."""
        return f"{comment}\nid: {self._run}.{place}\n\n".encode()
