"""Answers a POST that has an `Idempotency-Key` once: whoever repeats it gets the answer that there was.

    key, caller ─> digest ─> known? ── other request ──> 422
                               │  ├── answered ──> the same answer, `Idempotent-Replayed: true`
                               │  └── running ──> wait for its end, then look again
                               │ no
                      home of the key (another node) ── answered there ──> the same answer
                               │ not known there either
                          carry it out ─> keep the answer if it is a success

- A key belongs to its caller: two API keys that use the same text do not meet.
- What was carried out and failed (4xx, 5xx, a broken stream) is not kept: a repetition tries again. So a repetition never
  makes a change twice, unless the first attempt failed after it had changed something.
- A request goes on when its client hangs up: it said that it will come back. It still counts for its caller's key, and
  so does the memory of its body. A stream that can be taken up again (`HttpStream.lasting`) goes on as long as it can be;
  a repetition takes it over, from its beginning, as soon as nobody reads it. Others end with their reader.
- Answers are kept for `IDEMPOTENCY_TTL_S`. When there are too many or they are too large, whoever has the most loses
  their oldest: nobody can make a gateway forget what others did. An answer that is too large for that is not
  kept; a repetition is carried out again.
- Answers are made without a Content-Encoding, whatever the first client accepts: the next one may accept less.
- Callers with API keys may repeat a request at any gateway of the mesh. Each key has a home among the live nodes, which is
  asked before anything is done and told the answer, sealed so that only the caller's next request opens it
  (`sealed_answers`, `Home`). Where the home cannot be reached, the gateway answers by
  what it knows itself: a request is rather carried out twice than not at all.

Jobs keep their own count of keys (`Match.answers_once`).
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections import OrderedDict
from typing import TYPE_CHECKING, Final, Protocol

import msgspec
from multidict import CIMultiDict

from meshnode.errors import IdempotencyKeyReused, InvalidRequest, MeshError, Saturated
from meshnode.gateway.access import key_shown
from meshnode.gateway.protocols.http import HttpResponse, HttpStream
from meshnode.gateway.sealed_answers import Kept, Seal
from meshnode.limits import (
    IDEMPOTENCY_TTL_S,
    MAX_IDEMPOTENCY_KEY_LENGTH,
    MAX_IDEMPOTENCY_KEYS,
    MAX_IDEMPOTENT_ANSWER_BYTES,
    MAX_IDEMPOTENT_BYTES,
    MAX_IDEMPOTENT_RUNS,
    MAX_IDEMPOTENT_RUNS_PER_CALLER,
    MIB,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine
    from typing import Any

    from meshnode.gateway.matching import Match
    from meshnode.gateway.metrics import GatewayMetrics
    from meshnode.gateway.protocols.http import HttpRequest, Lasting
    from meshnode.types import Buffer

REPLAYED: Final = "Idempotent-Replayed"
"""Header of an answer that is given again."""

_HEADER: Final = "idempotency-key"
_TELLING: Final = ("content-type", "content-encoding", "inference-header-content-length", "accept")
"""Headers by which the same bytes are another request."""

_HASHED_AT_ONCE_BYTES: Final = MIB
"""Up to it hashing takes half a millisecond; more is hashed in a thread."""


class Claim(Protocol):
    """A request that this node may carry out, as its key's home allowed.

    Attributes:
        answer: What another node answered to it already; None if it is to be carried out here.
    """

    answer: Kept | None

    async def settle(self, answer: Kept | None) -> None:
        """Tell the home what became of it; None: nothing that could be given again."""
        ...


class Home(Protocol):
    """The way to the node that knows of a key for the whole mesh (`meshnode.daemon.once`)."""

    async def claim(self, digest: bytes, fingerprint: bytes) -> Claim | None:
        """Ask for a request, and wait while another node carries it out; None if there is nobody to ask.

        Raises:
            IdempotencyKeyReused: if the key came with another request.
        """
        ...


class _Entry:
    """A key in use.

    Attributes:
        ended: Done when there is an answer, or will be none.
        begun: Done then, too, and when there is a stream that goes on without its reader: `lasting`.
    """

    __slots__ = ("answer", "begun", "ended", "fingerprint", "lasting", "owner", "until")

    def __init__(self, fingerprint: bytes, ended: asyncio.Future[None], owner: str) -> None:
        self.fingerprint = fingerprint
        self.owner = owner
        self.ended = ended
        self.begun: asyncio.Future[None] = ended.get_loop().create_future()
        self.lasting: Lasting | None = None
        self.answer: Kept | None = None
        self.until = 0.0


class _Share:
    """What one caller, or one gateway, has of a node's memory of keys."""

    __slots__ = ("kept", "kept_bytes", "running")

    def __init__(self) -> None:
        self.running = 0
        self.kept: OrderedDict[bytes, int] = OrderedDict()  # size by digest, the oldest first
        self.kept_bytes = 0


class AnswersOnce:
    """Remembers keys and answers within limits; owned by one event loop."""

    def __init__(
        self,
        now: Callable[[], float],
        metrics: GatewayMetrics,
        home: Home | None = None,
        random_bytes: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        """Begin without keys.

        Args:
            now: Returns monotonic seconds.
            metrics: Where requests with keys are counted.
            home: The way to the homes of keys; None for a node by itself.
            random_bytes: Draws so many bytes that nobody can guess, for the seals of answers.
        """
        self._random_bytes = random_bytes
        self.home = home
        self._now = now
        self._metrics = metrics
        self._entries: dict[bytes, _Entry] = {}
        self._kept: OrderedDict[bytes, None] = OrderedDict()  # digests, the oldest first
        self._kept_bytes = 0
        self._running = 0
        self._shares: dict[str, _Share] = {}
        self._endings: set[asyncio.Task[None]] = set()  # of streams that outlast their readers

    def __repr__(self) -> str:
        return f"<AnswersOnce: {self._running} running, {len(self._kept)} kept>"

    async def answer(
        self, match: Match, http: HttpRequest, request_id: str
    ) -> HttpResponse | HttpStream:
        """Answer a request with an `Idempotency-Key`.

        Raises:
            InvalidRequest: if the key is none.
            IdempotencyKeyReused: if it came with another request before.
            Saturated: if too many such requests run.
            MeshError: what the request itself raises.
        """
        key = http.headers[_HEADER]
        if not key.isascii() or not key.isprintable() or len(key) > MAX_IDEMPOTENCY_KEY_LENGTH:
            raise InvalidRequest(
                f"an Idempotency-Key has 1 to {MAX_IDEMPOTENCY_KEY_LENGTH} printable ASCII characters; a UUID "
                "is best"
            )
        if not key:
            raise InvalidRequest("the Idempotency-Key is empty; send one of your own, or none")
        seal = seal_of(http, key)
        fingerprint = seal.fingerprint(await _hash_of(http))
        owner = http.caller.key_id or str(http.caller.scope)
        stream = await self._taken_over(seal.digest, fingerprint)
        if stream is not None:
            self._metrics.replays.add(("replayed",))
            return _streamed_again(stream)
        entry = await self._claimed(seal.digest, fingerprint, owner)
        if entry.answer is not None:
            known = seal.open(entry.answer)
            if known is not None:
                self._metrics.replays.add(("replayed",))
                return _again(known)
            self._drop(seal.digest)  # nobody who may ask here has sealed it
            entry = await self._claimed(seal.digest, fingerprint, owner)
        work = self._carry_out(match, _uncoded(http), request_id, seal, entry)
        task: asyncio.Task[HttpResponse | HttpStream] = asyncio.ensure_future(work)
        if http.holding is not None:
            http.holding.outlast(task)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            task.add_done_callback(_abandoned)
            raise

    async def claim(self, digest: bytes, fingerprint: bytes, node: str = "") -> Kept | None:
        """Let another node carry a request out, unless it is known here; then call `settle`.

        Args:
            digest: Of the key.
            fingerprint: Of the request.
            node: Which node; each has its share of this one's memory.

        Returns:
            The answer that there is; None if the other node is to make one.

        Raises:
            IdempotencyKeyReused: if the key came with another request.
            Saturated: if too many such requests run.
        """
        return (await self._claimed(digest, fingerprint, f"node {node}")).answer

    def settle(self, digest: bytes, answer: Kept | None) -> None:
        """End what `claim` returned None for: keep an answer, or forget the key."""
        entry = self._entries.get(digest)
        if entry is not None and not entry.ended.done():
            self._end(digest, entry, answer)

    async def ended(self, digest: bytes) -> None:
        """Wait until `settle` was called for a key."""
        entry = self._entries.get(digest)
        if entry is not None:
            await asyncio.shield(entry.ended)

    async def _taken_over(self, digest: bytes, fingerprint: bytes) -> HttpStream | None:
        """Wait for a stream that this request began and nobody reads; None if there is none, or not any more."""
        entry = self._entries.get(digest)
        if entry is None or entry.fingerprint != fingerprint or entry.answer is not None:
            return None
        await asyncio.shield(entry.begun)
        return None if entry.lasting is None else await entry.lasting.again()

    async def _claimed(self, digest: bytes, fingerprint: bytes, owner: str) -> _Entry:
        """Return the entry of a key: with its answer, or a new one that the caller must end."""
        while True:
            self._expire()
            entry = self._entries.get(digest)
            if entry is None:
                break
            if entry.fingerprint != fingerprint:
                self._metrics.replays.add(("mismatch",))
                raise IdempotencyKeyReused(
                    "this Idempotency-Key came with another request before; each request needs a key of its "
                    "own, and a repetition must be the same to the last byte"
                )
            if entry.answer is not None:
                return entry
            await asyncio.shield(entry.ended)
        if self._running >= MAX_IDEMPOTENT_RUNS:
            raise Saturated(
                "this gateway is working on too many requests with an Idempotency-Key; try again"
            )
        share = self._shares.get(owner) or _Share()
        if share.running >= MAX_IDEMPOTENT_RUNS_PER_CALLER:
            raise Saturated(
                "this gateway is working on too many requests of yours with an Idempotency-Key, those that you gave "
                "up included; wait for some to end"
            )
        self._shares[owner] = share
        self._running += 1
        share.running += 1
        ended = asyncio.get_running_loop().create_future()
        entry = self._entries[digest] = _Entry(fingerprint, ended, owner)
        return entry

    async def _carry_out(
        self, match: Match, http: HttpRequest, request_id: str, seal: Seal, entry: _Entry
    ) -> HttpResponse | HttpStream:
        claim: Claim | None = None
        kept: Kept | None = None
        streams = False
        try:
            if self.home is not None and seal.is_closed:
                claim = await self.home.claim(seal.digest, entry.fingerprint)
                known = None if claim is None or claim.answer is None else seal.open(claim.answer)
                if claim is not None and known is not None:
                    kept = claim.answer
                    self._metrics.replays.add(("replayed_elsewhere",))
                    return _again(known)
            self._metrics.replays.add(("new",))
            reply = match.answer(http, request_id)
            response = reply if isinstance(reply, HttpResponse) else await reply
            if isinstance(response, HttpResponse):
                kept = self._sealed(_kept(response), seal)
                return response
            streams = True

            async def end(answer: Kept | None) -> None:
                await self._settled(seal.digest, entry, claim, self._sealed(answer, seal))

            if response.lasting is not None:
                self._follow(response, response.lasting, entry, end)
                return response
            parts = _Recorded(response, end)
            return HttpStream(response.status, response.headers, parts, response.size_bytes)
        finally:
            if not streams:
                await self._settled(seal.digest, entry, claim, kept)

    def _follow(
        self,
        response: HttpStream,
        lasting: Lasting,
        entry: _Entry,
        end: Callable[[Kept | None], Coroutine[Any, Any, None]],
    ) -> None:
        """Let a stream that goes on without its reader say itself what has come of it."""

        def ended(body: bytes | None) -> None:
            is_kept = body is not None and _is_success(response.status)
            answer = Kept(response.status, response.headers, body or b"") if is_kept else None
            task = asyncio.get_running_loop().create_task(end(answer))
            self._endings.add(task)
            task.add_done_callback(self._ending_over)

        lasting.remember(ended)
        entry.lasting = lasting
        entry.begun.set_result(None)

    def _ending_over(self, task: asyncio.Task[None]) -> None:
        self._endings.discard(task)
        _closed(task)

    def _sealed(self, answer: Kept | None, seal: Seal) -> Kept | None:
        return None if answer is None else seal.close(answer, self._random_bytes)

    async def _settled(
        self, digest: bytes, entry: _Entry, claim: Claim | None, answer: Kept | None
    ) -> None:
        """Keep an answer, or forget the key, here and at its home."""
        if not entry.ended.done():
            self._end(digest, entry, answer)
        if claim is not None and claim.answer is None:
            await claim.settle(answer)

    def _end(self, digest: bytes, entry: _Entry, answer: Kept | None) -> None:
        share = self._shares[entry.owner]
        self._running -= 1
        share.running -= 1
        entry.ended.set_result(None)
        if not entry.begun.done():
            entry.begun.set_result(None)
        if answer is None:
            del self._entries[digest]
            self._look_unused(entry.owner)
            return
        entry.answer = answer
        entry.until = self._now() + IDEMPOTENCY_TTL_S
        self._kept[digest] = None
        self._kept_bytes += answer.size_bytes
        share.kept[digest] = answer.size_bytes
        share.kept_bytes += answer.size_bytes
        while self._kept_bytes > MAX_IDEMPOTENT_BYTES:
            self._drop_of(max(self._shares.values(), key=lambda each: each.kept_bytes))
        while len(self._kept) > MAX_IDEMPOTENCY_KEYS:
            self._drop_of(max(self._shares.values(), key=lambda each: len(each.kept)))

    def _drop_of(self, share: _Share) -> None:
        self._drop(next(iter(share.kept)))

    def _expire(self) -> None:
        now = self._now()
        while self._kept:
            oldest = next(iter(self._kept))
            if self._entries[oldest].until > now:
                return
            self._drop(oldest)

    def _drop(self, digest: bytes) -> None:
        del self._kept[digest]
        owner = self._entries.pop(digest).owner
        share = self._shares[owner]
        size_bytes = share.kept.pop(digest)
        share.kept_bytes -= size_bytes
        self._kept_bytes -= size_bytes
        self._look_unused(owner)

    def _look_unused(self, owner: str) -> None:
        share = self._shares[owner]
        if not share.running and not share.kept:
            del self._shares[owner]


class _Recorded:
    """Passes a stream on and keeps a copy, as far as that is small; its end is told however it comes."""

    def __init__(self, stream: HttpStream, end: Callable[[Kept | None], Awaitable[None]]) -> None:
        self._stream = stream
        self._parts = stream.parts
        self._end: Callable[[Kept | None], Awaitable[None]] | None = end
        self._copy: bytearray | None = bytearray()

    def __aiter__(self) -> _Recorded:
        return self

    async def __anext__(self) -> Buffer:
        try:
            part = await anext(self._parts)
        except StopAsyncIteration:
            copy = self._copy
            stream = self._stream
            whole = None if copy is None else Kept(stream.status, stream.headers, bytes(copy))
            await self._ended(whole if _is_success(stream.status) else None)
            raise
        except BaseException:
            await self._ended(None)
            raise
        if self._copy is not None:
            self._copy += part
            if len(self._copy) > MAX_IDEMPOTENT_ANSWER_BYTES:
                self._copy = None
        return part

    async def aclose(self) -> None:
        """Stop whoever makes the stream; what has come of it is not kept."""
        close = getattr(self._parts, "aclose", None)
        try:
            if close is not None:
                await close()
        finally:
            await self._ended(None)

    async def _ended(self, answer: Kept | None) -> None:
        end, self._end = self._end, None
        if end is not None:
            await end(answer)


def seal_of(http: HttpRequest, key: str) -> Seal:
    """Return what a request with a key is known by: the same at every node for a caller with an API key."""
    caller = http.caller
    secret = key_shown(http.headers) if caller.key_id else None
    return Seal(secret, caller.key_id or str(caller.scope), key)


def _uncoded(http: HttpRequest) -> HttpRequest:
    """Return a request whose answer everybody can read who may repeat it."""
    if "accept-encoding" not in http.headers:
        return http
    headers = CIMultiDict(http.headers)
    del headers["accept-encoding"]
    return msgspec.structs.replace(http, headers=headers)


async def _hash_of(http: HttpRequest) -> bytes:
    """Return a hash over all that makes a request what it is."""
    telling = [http.headers.get(name, "") for name in _TELLING]
    head = msgspec.msgpack.encode([http.method, http.path, http.query, telling])
    if len(http.body) <= _HASHED_AT_ONCE_BYTES:
        return _hash(head, http.body)
    return await asyncio.to_thread(_hash, head, http.body)


def _hash(head: bytes, body: Buffer) -> bytes:
    found = hashlib.sha256(head)
    found.update(body)
    return found.digest()


def _kept(response: HttpResponse) -> Kept | None:
    if not _is_success(response.status) or response.size_bytes > MAX_IDEMPOTENT_ANSWER_BYTES:
        return None
    body = response.body if isinstance(response.body, bytes) else b"".join(response.body)
    return Kept(response.status, response.headers, body)


def _is_success(status: int) -> bool:
    return 200 <= status < 300


def _streamed_again(stream: HttpStream) -> HttpStream:
    return msgspec.structs.replace(stream, headers={**stream.headers, REPLAYED: "true"})


def _again(answer: Kept) -> HttpResponse:
    return HttpResponse(answer.status, {**answer.headers, REPLAYED: "true"}, answer.body)


def _abandoned(task: asyncio.Task[HttpResponse | HttpStream]) -> None:
    """Let the work of a client that hung up end quietly; its answer is kept, or its error is told next time."""
    if task.cancelled() or task.exception() is not None:
        return
    response = task.result()
    if isinstance(response, HttpStream):
        closing = asyncio.ensure_future(response.parts.aclose())  # type: ignore[attr-defined]
        closing.add_done_callback(_closed)


def _closed(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and isinstance(task.exception(), MeshError):
        return
