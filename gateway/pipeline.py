"""One inference request's way over the replicas of its model.

    resolve    which version, and what the model is     ModelNotFound, NoReplica
    check      does the request fit the model           InvalidRequest
    inline     a small model that this node serves: run it here and now, without a task
    tries      otherwise: send it to replicas as the plan of routing says, until one answers

A model that runs inline takes microseconds, less than any other way to decide or to go, so it is
not planned: where this node is one of the ready replicas of the version, it is the best. All else
goes through `Attempts`, which owns retries, breakers and in-flight counts.

Cancelling (the client hung up) cancels the running try, here or on the peer.
"""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING, NamedTuple, Protocol

from meshnode.errors import Cancelled, DeadlineExceeded, MeshError, NoReplica, NotServing, Saturated
from meshnode.gateway.request_log import RequestLog
from meshnode.limits import MAX_REQUESTS_IN_FLIGHT
from meshnode.models.manifest import Manifest, check_request
from meshnode.routing.attempts import Attempts, GiveUp, Try
from meshnode.types import InferRequest, InferResponse, NodeId, ResponsePart

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable

    from meshnode.clock import Clock
    from meshnode.gateway.metrics import GatewayMetrics
    from meshnode.gateway.request_log import Tried
    from meshnode.routing.load import ReplicaLoad
    from meshnode.routing.router import Router
    from meshnode.routing.table import Replica, ReplicaGroup
    from meshnode.tracing import Trace, TraceIds
    from meshnode.wire.messages import LoadReport


_DEFECT = MeshError("the gateway failed")  # until something else is known to have happened
_HUNG_UP = Cancelled("the client went away")

_REPORT_EVERY_S = 1.0  # inline answers refresh what routing believes about this node so often


class LocalExecutor(Protocol):
    """This node's model server. `request.version` is always set."""

    def try_infer_inline(self, request: InferRequest) -> ResponsePart | None:
        """Run a request at once if its model is one that runs inline and is idle; else None."""
        ...

    async def infer(self, request: InferRequest) -> InferResponse:
        """Run a request, in its turn; NotServing if the version is not ready here."""
        ...

    def load_report(self, model: str, version: int) -> LoadReport:
        """Say how busy this node's replica is."""
        ...


class PeerCaller(Protocol):
    """The way to other nodes' model servers. `request.version` is always set.

    Load reports that come with answers reach the router by whoever receives them.
    """

    async def infer(
        self, node: NodeId, request: InferRequest, first_byte_timeout_s: float
    ) -> InferResponse:
        """Run a request there; return when its first part is here.

        LinkLost if nothing came in `first_byte_timeout_s` and time is left, DeadlineExceeded if
        none is. Cancelling it cancels the work over there.
        """
        ...


class Target(NamedTuple):
    """What a request is for.

    Attributes:
        manifest: The model version that will answer, unless its last replica is lost meanwhile
            and the caller did not insist on it.
        asked: The version that the caller insists on, or None.
        group: Its replicas.
    """

    manifest: Manifest
    asked: int | None
    group: ReplicaGroup


class Answered(NamedTuple):
    """An answer, and the `Mesh-Route` header that says where it came from and why."""

    response: InferResponse
    route_header: str


class _Inline:
    """What an inline answer of one model version needs at hand; stale once its group changes."""

    __slots__ = (
        "accepted", "candidates", "header", "load", "replica", "reported_at", "revision",
    )  # fmt: skip

    def __init__(self, revision: int, replica: Replica, candidates: int, load: ReplicaLoad) -> None:
        self.revision = revision
        self.replica = replica
        self.candidates = candidates
        self.load = load
        self.reported_at = -math.inf
        self.header = ""
        # The form of the last request that passed the check. Clients repeat themselves, and
        # comparing costs a third of checking.
        self.accepted: _Form | None = None


class Pipeline:
    """Answers requests from all replicas of the mesh."""

    def __init__(
        self,
        me: NodeId,
        router: Router,
        local: LocalExecutor,
        peers: PeerCaller,
        clock: Clock,
        metrics: GatewayMetrics,
        traces: TraceIds | None = None,
    ) -> None:
        """Serve as node `me`; everything else is owned by the caller."""
        self._me = me
        self._router = router
        self._local = local
        self._peers = peers
        self._now = clock.now
        self._metrics = metrics
        self.request_log = RequestLog(clock, traces)
        """Told of requests that fail before they come here, too."""
        # One entry per version that this node serves.
        self._inline: dict[tuple[str, int], _Inline] = {}
        self.in_flight = 0
        """Requests that are being answered, streams that have not ended included."""

    def __repr__(self) -> str:
        return f"<Pipeline of {self._me}: {self.in_flight} in flight>"

    def resolve(self, model: str, version: int | None) -> Target:
        """Return the model version that a request is for: the newest that is ready if None.

        Raises:
            ModelNotFound: if no node has announced it.
            NoReplica: if no replica is ready, or none has said yet what the model is.
        """
        group = self._router.table.lookup(model, version)
        manifest = group.manifest
        if manifest is None:
            raise NoReplica(
                f"what model {model!r} version {group.version} takes is not known here yet; "
                "try again"
            )
        return Target(manifest, version, group)

    async def infer(self, request: InferRequest) -> Answered:
        """Answer a request from the best replica, retrying elsewhere until an answer has begun.

        Raises:
            InvalidRequest: if the request does not fit the model.
            MeshError: what `resolve` raises, or the last error if no replica answered;
                DeadlineExceeded if `request.timeout_s` passed first.
        """
        target = self.resolve(request.model, request.version)
        request = _variant(request, target.manifest.version, request.timeout_s, request.trace)
        answer = self.answer(request, target)
        return answer if isinstance(answer, Answered) else await answer

    def answer(self, request: InferRequest, target: Target) -> Answered | Awaitable[Answered]:
        """Answer at once where an inline model of this node can; else return what to await.

        Args:
            request: Its `version` is that of the target's manifest.
            target: What `resolve` returned.

        Raises:
            MeshError: as `infer` does; at once, or when awaited.
        """
        manifest = target.manifest
        model = manifest.model
        started = self._now()
        inline = self._inline_of(target.group, model)
        try:
            form = _form_of(request)
            if inline is None:
                check_request(manifest, request)
                return self._infer(request, target, started)
            if form != inline.accepted:
                check_request(manifest, request)
                inline.accepted = form
            part = self._local.try_infer_inline(request)
        except (NotServing, Saturated):  # this node refuses for now; another may take it
            return self._infer(request, target, started)
        except MeshError as error:
            self._failed(request, error, self._now() - started)
            raise
        if part is None:
            return self._infer(request, target, started)
        if started - inline.reported_at > _REPORT_EVERY_S:
            self._refresh(inline, manifest, started)
        took_s = self._now() - started
        self._metrics.answered(model, took_s)
        if self.request_log.wants(took_s):
            self.request_log.answered(request, manifest.version, inline.replica.node_name, took_s)
        return Answered(InferResponse(model, manifest.version, part), inline.header)

    def _inline_of(self, group: ReplicaGroup, model: str) -> _Inline | None:
        """Return the entry of a version of which this node is a ready replica."""
        version = group.version
        known = self._inline.get((model, version))
        if known is not None and known.revision == group.revision:
            return known
        me = next((replica for replica in group.ready if replica.node == self._me), None)
        if me is None:
            self._inline.pop((model, version), None)
            return None
        load = self._router.book.load(self._me, model, version, me.slots)
        made = _Inline(group.revision, me, len(group.ready), load)
        self._inline[model, version] = made
        return made

    def _refresh(self, inline: _Inline, manifest: Manifest, now: float) -> None:
        """Tell routing how busy this node is, which inline answers do not, and renew the header."""
        report = self._local.load_report(manifest.model, manifest.version)
        self._router.load_reported(self._me, manifest.model, manifest.version, report, now)
        inline.reported_at = now
        inline.header = (
            f"{inline.replica.label}; expected_ms={inline.load.service_ms:.3g}; "
            f"candidates={inline.candidates}; attempts=1; reason=inline"
        )

    async def _infer(self, request: InferRequest, target: Target, started: float) -> Answered:
        model = target.manifest.model
        if request.trace is None:  # from here on others hear of it
            trace = self.request_log.traces.begin()
            request = _variant(request, target.manifest.version, request.timeout_s, trace)
        attempts: Attempts | None = None
        failure: MeshError | None = _DEFECT
        streaming = False
        self.in_flight += 1
        try:
            if self.in_flight > MAX_REQUESTS_IN_FLIGHT:
                raise Saturated("this gateway is working on too many requests; try again later")
            attempts = self._router.plan(model, target.asked, request.timeout_s, started)
            try:
                response = await self._first_answer(attempts, request)
            except MeshError as error:
                error.mesh_route = attempts.header
                raise
            if response.single is None:
                streaming = True
                response = InferResponse(
                    response.model,
                    response.version,
                    self._relay(request, response, attempts, started),
                )
            failure = None
            return Answered(response, attempts.header)
        except MeshError as error:
            failure = error
            raise
        except asyncio.CancelledError:
            failure = _HUNG_UP
            raise
        finally:
            if not streaming:
                self._ended(request, attempts, failure, started)

    def _ended(
        self,
        request: InferRequest,
        attempts: Attempts | None,
        failure: MeshError | None,
        started: float,
    ) -> None:
        self.in_flight -= 1
        took_s = self._now() - started
        if failure is not None:
            self._failed(request, failure, took_s, attempts.tried if attempts is not None else ())
            return
        self._metrics.answered(request.model, took_s)
        if self.request_log.wants(took_s):
            assert attempts is not None
            assert attempts.route is not None  # somebody answered
            replica = attempts.route.replica
            self.request_log.answered(
                request, replica.version, replica.node_name, took_s, attempts.tried
            )

    def _failed(
        self, request: InferRequest, error: MeshError, took_s: float, tried: Tried = ()
    ) -> None:
        self._metrics.failed(request.model, error.code)
        self.request_log.failed(
            request.model, request.request_id, request.trace, error, took_s, tried
        )

    async def _first_answer(self, attempts: Attempts, request: InferRequest) -> InferResponse:
        """Try replicas until one answers; a unary answer is then complete, a stream has begun."""
        begun = False
        try:
            while True:
                began = self._now()
                step = attempts.next(began)
                if isinstance(step, GiveUp):
                    raise step.error
                local = step.route.replica.node == self._me
                target = "local" if local else "peer"
                try:
                    response = await self._send(step, request, local)
                except MeshError as error:
                    now = self._now()
                    self._metrics.attempts.add((target, error.code))
                    attempts.failed(error, now, self._report(step) if local else None)
                    replica = step.route.replica
                    self.request_log.attempt_failed(
                        request, replica.version, replica.node_name, error, now - began
                    )
                    continue
                self._metrics.attempts.add((target, "ok"))
                if response.single is not None:
                    attempts.succeeded(self._now(), self._report(step) if local else None)
                else:
                    attempts.first_byte()
                    begun = True
                return response
        finally:
            if not begun:
                attempts.close(self._now())

    def _report(self, step: Try) -> LoadReport | None:
        """This node's own load; None when it stopped serving the model meanwhile."""
        try:
            return self._local.load_report(step.route.replica.model, step.route.replica.version)
        except MeshError:
            return None

    async def _send(self, step: Try, request: InferRequest, local: bool) -> InferResponse:
        replica = step.route.replica
        request = _variant(request, replica.version, step.remaining_s, request.trace)
        if not local:
            return await self._peers.infer(replica.node, request, step.first_byte_timeout_s)
        try:
            async with asyncio.timeout(step.first_byte_timeout_s):
                return await self._local.infer(request)
        except TimeoutError:
            raise DeadlineExceeded(f"no answer within {step.first_byte_timeout_s:.3f} s") from None

    async def _relay(
        self, request: InferRequest, response: InferResponse, attempts: Attempts, started: float
    ) -> AsyncIterator[ResponsePart]:
        """Pass a stream on; its outcome is known, and counted, at its end."""
        failure: MeshError | None = _HUNG_UP
        try:
            async for part in response:
                yield part
            attempts.succeeded(self._now())
            failure = None
        except MeshError as error:
            attempts.failed(error, self._now())
            failure = error
            raise
        finally:
            attempts.close(self._now())
            self._ended(request, attempts, failure, started)


_Form = tuple[object, ...]


def _form_of(request: InferRequest) -> _Form:
    """Return what the check of a request depends on: everything but the data."""
    if len(request.inputs) == 1:
        (tensor,) = request.inputs
        return (tensor.name, tensor.datatype, tensor.shape, request.outputs)
    inputs = [(tensor.name, tensor.datatype, tensor.shape) for tensor in request.inputs]
    return (*inputs, request.outputs)


def _variant(
    request: InferRequest, version: int, timeout_s: float, trace: Trace | None
) -> InferRequest:
    return InferRequest(
        request.model,
        request.inputs,
        version,
        request.outputs,
        request.request_id,
        request.parameters,
        timeout_s,
        trace,
    )
