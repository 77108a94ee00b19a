"""One inference request's way over the replicas of its model.

    resolve    which version, and what the model is     ModelNotFound, NoReplica
    release    a new version is taking its place: which of the two (`meshnode.gateway.releasing`)
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
from typing import TYPE_CHECKING, NamedTuple

from meshnode.cache_control import read_cache_control
from meshnode.errors import MeshError, NoReplica, NotCached, NotServing, Saturated
from meshnode.gateway.admission import Admission, Admitted
from meshnode.gateway.answer_streams import HUNG_UP, AnswerStream, Continued, rest_of, with_seed
from meshnode.gateway.cold_starts import ColdStarts
from meshnode.gateway.inline import InlineReplicas, form_of
from meshnode.gateway.releasing import NO_HEADERS, Releasing
from meshnode.gateway.request_log import RequestLog
from meshnode.gateway.routed_requests import part_of_sequence, routed, variant
from meshnode.gateway.sending import Sending
from meshnode.gateway.targets import Answered, Arm, Target
from meshnode.limits import MAX_REQUESTS_IN_FLIGHT
from meshnode.models.manifest import Manifest, check_request
from meshnode.models.serving.response_cache import AGE_PARAMETER, CACHE_PARAMETER, HIT
from meshnode.routing.stickiness import with_beginning
from meshnode.types import InferRequest, InferResponse, NodeId, ResponsePart

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from meshnode.clock import Clock
    from meshnode.gateway.answer_streams import Continue, Delivered
    from meshnode.gateway.executors import LocalExecutor, PeerCaller
    from meshnode.gateway.metrics import GatewayMetrics
    from meshnode.gateway.request_log import Tried
    from meshnode.gateway.taking_up import KeptElsewhere
    from meshnode.routing.attempts import Attempts
    from meshnode.routing.router import Router
    from meshnode.routing.table import ReplicaTable
    from meshnode.tracing import TraceIds


_DEFECT = MeshError("the gateway failed")  # until something else is known to have happened

_REFUSED_WITHIN_S = 5.0  # who waited in vain is told why no replica is ready

_REPORT_EVERY_S = 1.0  # inline answers refresh what routing believes about this node so often


class Running(NamedTuple):
    """A stream that is under way.

    Attributes:
        ended: To be told once what became of it, and of the plan of who made its end.
        goes_on: Finds another replica for its rest; None if its model is not resumable.
    """

    ended: Callable[[MeshError | None, Attempts | None], None]
    goes_on: Continue | None


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
        self._releases = router.releases.live
        self._local = local
        self.now = clock.now
        """Returns monotonic seconds."""
        self.wall_s = clock.wall_s
        """Returns seconds since the Unix epoch, for answers that say when they were made."""
        self._metrics = metrics
        self.request_log = RequestLog(clock, traces)
        """Told of requests that fail before they come here, too."""
        self._sending = Sending(me, local, peers, clock.now, metrics, self.request_log)
        self.admission = Admission()
        """How much may be in flight, and what was refused."""
        self._inline = InlineReplicas(me, router, local)
        self.releasing = Releasing(me, self, router, self._sending, metrics)
        """Which of two versions answers while one takes the other's place, and how they compare."""
        self.cold_starts = ColdStarts(router, clock.now)
        """Requests that wait for a replica."""
        self.kept: KeptElsewhere | None = None
        """Finds streams that other gateways began; None as long as nothing does."""
        self.in_flight = 0
        """Requests that are being answered, streams that have not ended included."""

    def __repr__(self) -> str:
        return f"<Pipeline of {self._me}: {self.in_flight} in flight>"

    @property
    def table(self) -> ReplicaTable:
        """Who serves what, to be read only."""
        return self._router.table

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

    def target(self, model: str, version: int | None) -> Target:
        """Return the model version that a request is for, of which a replica may only be on its way.

        Raises:
            ModelNotFound, NoReplica: as `resolve`, where none is.
        """
        try:
            return self.resolve(model, version)
        except NoReplica:
            group = self._router.table.coming(model, version)
            if group is None or group.manifest is None:
                raise
            return Target(group.manifest, version, group)

    def announced(self, model: str, version: int | None) -> Manifest | None:
        """Return what a model version is, ready or not; the newest if None, and None if that is not known."""
        table = self._router.table
        return table.usual(model) if version is None else table.manifest(model, version)

    async def infer(self, request: InferRequest) -> Answered:
        """Answer a request from the best replica, retrying elsewhere until an answer has begun.

        Raises:
            InvalidRequest: if the request does not fit the model.
            MeshError: what `resolve` raises, or the last error if no replica answered;
                DeadlineExceeded if `request.timeout_s` passed first.
        """
        target = self.target(request.model, request.version)
        request = variant(request, target.manifest.version, request.timeout_s, request.trace)
        answer = self.answer(request, target)
        return answer if isinstance(answer, Answered) else await answer

    def answer(
        self,
        request: InferRequest,
        target: Target,
        headers: Mapping[str, str] = NO_HEADERS,
        arm: Arm | None = None,
    ) -> Answered | Awaitable[Answered]:
        """Answer at once where an inline model of this node can; else return what to await.

        Args:
            request: Its `version` is that of the target's manifest.
            target: What `resolve` returned.
            headers: Of the request, for releases that look at one; lookups ignore case, or all keys are lower case.
            arm: What a release decided; None to let it decide, where the model is in one.

        Raises:
            MeshError: as `infer` does; at once, or when awaited.
        """
        manifest = target.manifest
        model = manifest.model
        if model in self._releases and arm is None and target.asked is None:
            return self.releasing.answer(request, target, self._releases[model], headers)
        started = self.now()
        self._router.arrivals.came(model)
        if request.cache_control and not manifest.keeps_answers:
            self._refuse_run(request, started)
        inline = self._inline.of(target.group, model)
        if inline is not None and not self._inline.is_first_choice(inline.replica, request.hints):
            inline = None
        try:
            form = form_of(request)
            if inline is None:
                check_request(manifest, request)
                return self._infer(request, target, started, arm)
            if form != inline.accepted:
                check_request(manifest, request)
                inline.accepted = form
            part = self._local.try_infer_inline(request)
        except (NotServing, Saturated):  # this node refuses for now; another may take it
            return self._infer(request, target, started, arm)
        except MeshError as error:
            if arm is None or arm.fallback is None:
                self._failed(request, error, self.now() - started)
            raise
        if part is None:
            return self._infer(request, target, started, arm)
        if started - inline.reported_at > _REPORT_EVERY_S:
            self._inline.refresh(inline, manifest, started)
        took_s = self.now() - started
        self._metrics.answered(model, took_s)
        if self.request_log.wants(took_s):
            self.request_log.answered(request, manifest.version, inline.replica.node_name, took_s)
        response = InferResponse(model, manifest.version, part)
        return self._answered(inline.header, response, request, manifest)

    def _refuse_run(self, request: InferRequest, started: float) -> None:
        """Refuse what only a kept answer would do for, of a model that keeps none."""
        if read_cache_control(request.cache_control).only_if_cached:
            error = NotCached(
                f"model {request.model!r} keeps no answers, and the request wants a kept one only "
                "(Cache-Control: only-if-cached)"
            )
            self._failed(request, error, self.now() - started)
            raise error

    async def _infer(
        self, request: InferRequest, target: Target, started: float, arm: Arm | None
    ) -> Answered:
        if request.trace is None:  # from here on others hear of it
            trace = self.request_log.traces.begin()
            request = variant(request, target.manifest.version, request.timeout_s, trace)
        request = with_seed(request, target.manifest.execution)
        request = with_beginning(request, target.manifest.execution)
        attempts: Attempts | None = None
        admitted: Admitted | None = None
        failure: MeshError | None = _DEFECT
        streaming = False
        self.in_flight += 1
        try:
            if self.in_flight > MAX_REQUESTS_IN_FLIGHT:
                raise Saturated("this gateway is working on too many requests; try again later")
            if not self._router.is_reachable(request.model, target.asked):
                request = await self._once_reachable(request, target)
                started = self.now()
            admitted = self.admission.enter(
                request.model, request.hints, request.timeout_s, started
            )
            part = part_of_sequence(target.manifest, request)
            attempts = self._router.plan(routed(request, target.asked, part, arm), started)
            try:
                response = await self._sending.first_answer(attempts, request)
            except MeshError as error:
                error.mesh_route = attempts.header
                raise
            if response.single is None:
                streaming = True
                admitted.began(self.now(), attempts.alone_s)
                response = self._streamed(request, response, attempts, started, admitted)
            failure = None
            answered = self._answered(attempts.header, response, request, target.manifest)
            if arm is None or attempts.route is None:
                return answered
            return answered._replace(node=attempts.route.replica.node)
        except MeshError as error:
            failure = error
            raise
        except asyncio.CancelledError:
            failure = HUNG_UP
            raise
        finally:
            if not streaming:
                self._ended(request, attempts, failure, started, admitted)

    async def _once_reachable(self, request: InferRequest, target: Target) -> InferRequest:
        """Wait for a replica, and return the request with the time that it has left."""
        model, timeout_s = request.model, request.timeout_s
        waited_s = await self.cold_starts.until_ready(model, target.asked, timeout_s)
        left_s = timeout_s - waited_s
        if not self._router.is_reachable(model, target.asked):
            left_s = max(left_s, _REFUSED_WITHIN_S)
        return variant(request, target.manifest.version, left_s, request.trace)

    def _streamed(
        self,
        request: InferRequest,
        begun: InferResponse,
        attempts: Attempts,
        started: float,
        admitted: Admitted,
    ) -> InferResponse:
        """Return a stream that goes on elsewhere where it can, and is counted at its end."""
        manifest = self._router.table.manifest(begun.model, begun.version)
        running = self._running(request, manifest, started, admitted)
        return AnswerStream(begun, attempts, self.now, running.ended, running.goes_on).response

    def enter(self, request: InferRequest, manifest: Manifest) -> Running:
        """Count a stream that another gateway began; call `Running.ended` once.

        Raises:
            Saturated: if this gateway does too much; nothing is counted then.
        """
        started = self.now()
        if self.in_flight >= MAX_REQUESTS_IN_FLIGHT:
            raise Saturated("this gateway is working on too many requests; try again later")
        if request.trace is None:
            trace = self.request_log.traces.begin()
            request = variant(request, manifest.version, request.timeout_s, trace)
        request = with_seed(request, manifest.execution)
        admitted = self.admission.enter(request.model, request.hints, request.timeout_s, started)
        self.in_flight += 1
        return self._running(request, manifest, started, admitted)

    def _running(
        self,
        request: InferRequest,
        manifest: Manifest | None,
        started: float,
        admitted: Admitted,
    ) -> Running:
        def ended(failure: MeshError | None, attempts: Attempts | None) -> None:
            self._ended(request, attempts, failure, started, admitted)

        return Running(ended, self._goes_on(request, manifest))

    def _goes_on(self, request: InferRequest, manifest: Manifest | None) -> Continue | None:
        """Return what finds a replica for the rest of an answer; None if its model is not resumable."""
        if manifest is None or not manifest.execution.resumable:
            return None
        execution, version = manifest.execution, manifest.version

        async def goes_on(delivered: Delivered, tried: tuple[NodeId, ...]) -> Continued:
            # The answer had begun in its time; whoever goes on with it has as much again to begin.
            rest, is_rest = rest_of(request, execution, delivered)
            attempts = self._router.plan_rest(routed(rest, version, None), self.now(), tried)
            return Continued(attempts, await self._sending.first_answer(attempts, rest), is_rest)

        return goes_on

    def _ended(
        self,
        request: InferRequest,
        attempts: Attempts | None,
        failure: MeshError | None,
        started: float,
        admitted: Admitted | None,
    ) -> None:
        self.in_flight -= 1
        now = self.now()
        took_s = now - started
        if admitted is not None:
            admitted.end(now, failure, attempts.alone_s if attempts is not None else 0.0)
        if failure is not None:
            self._failed(request, failure, took_s, attempts.tried if attempts is not None else ())
            return
        self._metrics.answered(request.model, took_s)
        # One that was taken up where it was kept has no route.
        if attempts is not None and attempts.route is not None and self.request_log.wants(took_s):
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

    def _answered(
        self, header: str, response: InferResponse, request: InferRequest, manifest: Manifest
    ) -> Answered:
        """Return an answer with what became of the look for a kept one."""
        part = response.single
        if part is None:
            return Answered(response, header)
        if part.parameters.get(CACHE_PARAMETER) == HIT:
            response, age_s = _without_age(response, part)
            self._metrics.cache_answers.add((HIT,))
            return Answered(response, f"{header}; cache=hit", HIT, age_s)
        if not manifest.keeps_answers:
            return Answered(response, header)
        asks = request.cache_control
        cache = "bypass" if asks and not read_cache_control(asks).look_up else "miss"
        self._metrics.cache_answers.add((cache,))
        return Answered(response, header, cache)


def _without_age(response: InferResponse, part: ResponsePart) -> tuple[InferResponse, float]:
    """Return a kept answer as its model gave it, and its age in seconds: clients read that in a header."""
    parameters = dict(part.parameters)
    age_s = parameters.pop(AGE_PARAMETER, 0.0)
    whole = InferResponse(response.model, response.version, ResponsePart(part.outputs, parameters))
    return whole, age_s if isinstance(age_s, int | float) else 0.0
