"""Which replicas spare a request time because they had others like it: of its session, or with the same beginning.

    session     the word of `Mesh-Session`: the replica that answered the session's last request is its home
    beginning   a digest of the first bytes of a long text (`prefix_of`): replicas that answered one lately

A model that keeps what it has worked out of a text (a key-value cache) answers faster where it has seen the
text's beginning; how much faster is not known here, so half of the run time is taken as saved. That enters the
score as saved milliseconds, and decides between equals (`meshnode.routing.picking`); waiting time and distance count
in full, so that a replica which fills up loses its followers.

What a gateway remembers is bounded, and only a hint: forgotten, a request costs what it costs anywhere.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import TYPE_CHECKING, Final

from msgspec import structs

from meshnode.limits import (
    MAX_PREFIX_HOLDERS,
    MAX_REMEMBERED_PREFIXES,
    MAX_REMEMBERED_SESSIONS,
)
from meshnode.types import DataType

if TYPE_CHECKING:
    from collections.abc import Sequence

    from meshnode.models.execution import Execution
    from meshnode.routing.request import RoutedRequest
    from meshnode.types import InferRequest, NodeId, Tensor

SAVED_SHARE: Final = 0.5
"""Share of its run time that a request is taken to be spared where its session is, or its beginning was seen."""

PREFIX_BYTES: Final = 512
"""How much of a text is its beginning: some 130 tokens. A shorter text is worked out anew in no time."""

_PREFIX_DIGEST_BYTES: Final = 16
_LENGTH_BYTES: Final = 4  # before each element of a tensor of BYTES
_KEPT_S: Final = 600.0  # a cache that nobody used for so long is taken to be filled with others


def prefix_of(inputs: Sequence[Tensor]) -> bytes:
    """Return the digest of how a request's first text begins; empty for short texts and other data."""
    if not inputs or inputs[0].datatype is not DataType.BYTES:
        return b""
    data = memoryview(inputs[0].data).cast("B")[_LENGTH_BYTES : _LENGTH_BYTES + PREFIX_BYTES]
    if data.nbytes < PREFIX_BYTES:
        return b""
    return blake2b(data, digest_size=_PREFIX_DIGEST_BYTES).digest()


def with_beginning(request: InferRequest, execution: Execution) -> InferRequest:
    """Return a request with how its text begins, if its model writes text: a replica that has seen it is faster."""
    prefix = prefix_of(request.inputs) if execution.decoupled else b""
    if not prefix:
        return request
    return structs.replace(request, hints=structs.replace(request.hints, prefix=prefix))


def session_key(model: str, session: str) -> bytes:
    """Return 16 bytes that name a session of a model, equal at every gateway."""
    text = f"{model}\0{session}".encode(errors="surrogatepass")
    return blake2b(text, digest_size=_PREFIX_DIGEST_BYTES).digest()


class Stickiness:
    """What one gateway remembers of sessions and beginnings."""

    def __init__(
        self,
        max_sessions: int = MAX_REMEMBERED_SESSIONS,
        max_prefixes: int = MAX_REMEMBERED_PREFIXES,
    ) -> None:
        """Remember at most so many; of more, those that were not heard of longest are forgotten."""
        self._max_sessions = max_sessions
        self._max_prefixes = max_prefixes
        # The one not heard of longest is first in each.
        self._homes: dict[tuple[str, str], tuple[NodeId, float]] = {}
        self._holders: dict[tuple[str, bytes], dict[NodeId, float]] = {}

    def __repr__(self) -> str:
        return f"<Stickiness: {len(self._homes)} sessions, {len(self._holders)} beginnings>"

    def placed(self, request: RoutedRequest, now: float) -> RoutedRequest:
        """Return a request with what is known of its session and its beginning.

        Args:
            request: What is asked for.
            now: Monotonic seconds.
        """
        hints = request.hints
        saves: dict[NodeId, float] = {}
        home: NodeId | None = None
        if hints.prefix:
            holders = self._holders.get((request.model, hints.prefix), {})
            saves = {
                node: SAVED_SHARE for node, seen_at in holders.items() if now - seen_at <= _KEPT_S
            }
        if hints.session:
            found = self._homes.get((request.model, hints.session))
            if found is not None and now - found[1] <= _KEPT_S:
                home = found[0]
                saves[home] = SAVED_SHARE
        if not saves:
            return request
        return request._replace(saves=saves, home=home)

    def answered(self, request: RoutedRequest, node: NodeId, now: float) -> None:
        """A node answered a request: it has its session now, and has seen its beginning."""
        hints = request.hints
        if hints.session:
            key = (request.model, hints.session)
            self._homes.pop(key, None)
            self._homes[key] = (node, now)
            if len(self._homes) > self._max_sessions:
                del self._homes[next(iter(self._homes))]
        if hints.prefix:
            prefix = (request.model, hints.prefix)
            holders = self._holders.pop(prefix, {})
            holders.pop(node, None)
            holders[node] = now
            if len(holders) > MAX_PREFIX_HOLDERS:
                del holders[next(iter(holders))]
            self._holders[prefix] = holders
            if len(self._holders) > self._max_prefixes:
                del self._holders[next(iter(self._holders))]

    def forget(self, node: NodeId) -> None:
        """A node is gone from the mesh, or began anew: it has nothing any more."""
        self._homes = {key: home for key, home in self._homes.items() if home[0] != node}
        for holders in self._holders.values():
            holders.pop(node, None)
        self._holders = {key: holders for key, holders in self._holders.items() if holders}
