"""A version that is ready, and what stands before its replica: kept answers, and the name of its variant.

For a version that asks for a response cache, an answer that is kept is given at once, and equal requests at
the same time run once. Answers of a version with variants say which one gave them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from msgspec.structs import replace

from meshnode.cache_control import PLAIN, CacheControl, read_cache_control
from meshnode.errors import NotCached
from meshnode.models.manifest import check_request
from meshnode.models.serving.response_cache import ResponseCache, request_key
from meshnode.models.serving.single_flight import SingleFlight
from meshnode.types import InferResponse, ResponsePart

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from meshnode.models.manifest import Manifest
    from meshnode.models.serving.opened import Opened
    from meshnode.models.serving.replica import Replica
    from meshnode.types import InferRequest

VARIANT_PARAMETER: Final = "variant"
"""Parameter of an answer that says which variant of a version gave it."""


class Answers:
    """The kept answers of all versions of a node, and the runs that may be shared.

    Attributes:
        cache: The response cache.
        flights: Runs under way of versions that are cached.
        keeps: Whether new answers are kept; not while memory is short.
    """

    def __init__(self, cache: ResponseCache, timer: Callable[[], float]) -> None:
        """Keep answers in a cache, by a clock in seconds."""
        self.cache = cache
        self.flights = SingleFlight()
        self.keeps = True
        self._timer = timer
        # The last key that was worked out: the gateway asks first for an answer at once, then for any.
        self._last_key: tuple[InferRequest, str, bytes] | None = None

    def __repr__(self) -> str:
        return f"<Answers {self.cache!r} {self.flights!r}>"

    def at_once(self, served: Served, request: InferRequest) -> ResponsePart | None:
        """Return a kept answer, or that of a short run; None if neither is to be had at once."""
        key = self._key(served, request)
        asks = read_cache_control(request.cache_control)
        part = self._kept(served, key, asks)
        if part is None:
            started = self._timer()
            part = served.replica.try_inline(request)
            if part is not None:
                self._last_key = None  # it holds the request's tensors
                self._keep(served, key, part, asks, self._timer() - started)
        return part

    async def answer(self, served: Served, request: InferRequest) -> InferResponse:
        """Answer from the cache, from an equal request's run, or by a run of one's own."""
        key = self._key(served, request)
        self._last_key = None  # it holds the request's tensors
        asks = read_cache_control(request.cache_control)
        part = self._kept(served, key, asks)
        if part is not None:
            return InferResponse(served.manifest.model, served.manifest.version, part)

        async def run(left_s: float) -> InferResponse:
            started = self._timer()
            response = await served.replica.infer(replace(request, timeout_s=left_s))
            if response.single is not None:
                self._keep(served, key, response.single, asks, self._timer() - started)
            return response

        if asks != PLAIN:  # whoever wants a new answer gets one of its own
            return await run(request.timeout_s)
        return await self.flights.run(key, request.timeout_s, run)

    def _key(self, served: Served, request: InferRequest) -> bytes:
        last = self._last_key
        if last is not None:
            known, digest, key = last
            if (
                digest == served.digest
                and known.inputs is request.inputs
                and known.outputs == request.outputs
                and known.parameters is request.parameters
            ):
                return key
        check_request(served.manifest, request)
        key = request_key(served.digest, request)
        self._last_key = (request, served.digest, key)
        return key

    def _kept(self, served: Served, key: bytes, asks: CacheControl) -> ResponsePart | None:
        """Return a kept answer that will do, or None.

        Raises:
            NotCached: if nothing else will do.
        """
        started = self._timer()
        part = self.cache.find(key, started, asks.max_age_s) if asks.look_up else None
        if part is not None:
            served.replica.cache_hit(self._timer() - started)
        elif asks.only_if_cached:
            raise not_cached(served.manifest.model)
        return part

    def _keep(
        self, served: Served, key: bytes, part: ResponsePart, asks: CacheControl, took_s: float
    ) -> None:
        self.cache.missed()
        served.replica.cache_miss(took_s)
        if self.keeps and asks.keep:
            self.cache.keep(key, part, self._timer())


class Served:
    """A version that is ready or draining.

    Attributes:
        manifest: What it is.
        digest: Of the manifest.
        opened: What was opened and measured.
        replica: What executes its requests.
        load_s: How long opening and warming up took.
        is_plain: Whether nothing stands before the replica: one look on every request's path.
    """

    __slots__ = (
        "_answers", "_kept", "digest", "is_plain", "load_s", "manifest", "opened", "replica",
    )  # fmt: skip

    def __init__(
        self,
        manifest: Manifest,
        opened: Opened,
        replica: Replica,
        load_s: float,
        answers: Answers,
    ) -> None:
        """Put a replica into service, with the node's kept answers before it if it asks for them."""
        self.manifest = manifest
        self.digest = manifest.digest
        self.opened = opened
        self.replica = replica
        self.load_s = load_s
        self._kept = answers
        self.offer(manifest)

    def __repr__(self) -> str:
        return f"<Served {self.manifest.model}/{self.manifest.version} {self.replica}>"

    def offer(self, manifest: Manifest) -> None:
        """Offer the same model otherwise from now on: what is executed does not change.

        Args:
            manifest: Of the same digest; its exposure may be another.
        """
        self.manifest = manifest
        keeps = manifest.keeps_answers
        self._answers = self._kept if keeps and self._kept.cache.keeps_any else None
        self.is_plain = not keeps and not manifest.variant

    def at_once(self, request: InferRequest) -> ResponsePart | None:
        """Return an answer that takes no waiting, or None; raises as `Replica.try_inline`."""
        if self._answers is None:
            self._check_run(request)
            part = self.replica.try_inline(request)
        else:
            part = self._answers.at_once(self, request)
        return None if part is None else _named(part, self.manifest.variant)

    async def infer(self, request: InferRequest) -> InferResponse:
        """Answer a request; raises as `Replica.infer`."""
        if self._answers is None:
            self._check_run(request)
            response = await self.replica.infer(request)
        else:
            response = await self._answers.answer(self, request)
        return _named_response(response, self.manifest.variant)

    def _check_run(self, request: InferRequest) -> None:
        """Refuse a request that a run would not answer, where this node keeps nothing."""
        asks = request.cache_control
        if asks and read_cache_control(asks).only_if_cached:
            raise not_cached(self.manifest.model)


def not_cached(model: str) -> NotCached:
    """Return the refusal of a request that wants a kept answer or none."""
    return NotCached(
        f"this replica keeps no answer of model {model!r} to this request, and the request wants a kept one "
        "only (Cache-Control: only-if-cached); ask without it"
    )


def _named(part: ResponsePart, variant: str) -> ResponsePart:
    """Return an answer that says which variant gave it."""
    if not variant:
        return part
    return ResponsePart(part.outputs, {**part.parameters, VARIANT_PARAMETER: variant})


def _named_response(response: InferResponse, variant: str) -> InferResponse:
    if not variant:
        return response
    if response.single is not None:
        return InferResponse(response.model, response.version, _named(response.single, variant))
    return InferResponse(response.model, response.version, _named_parts(response, variant))


async def _named_parts(response: InferResponse, variant: str) -> AsyncIterator[ResponsePart]:
    async for part in response:
        yield _named(part, variant)
