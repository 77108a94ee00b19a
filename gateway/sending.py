"""The tries of one request, carried out: routing says what is tried next, and here it is sent and its end told.

A try goes to this node's model server or over a link. Where the plan has others sent beside a slow one, they race.
"""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING

from meshnode.errors import DeadlineExceeded, MeshError, NoReplica
from meshnode.gateway.racing import Race
from meshnode.gateway.routed_requests import variant
from meshnode.models.serving.response_cache import CACHE_PARAMETER, HIT
from meshnode.routing.tries import GiveUp, Try, Wait

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from meshnode.gateway.executors import LocalExecutor, PeerCaller
    from meshnode.gateway.metrics import GatewayMetrics
    from meshnode.gateway.request_log import RequestLog
    from meshnode.routing.attempts import Attempts
    from meshnode.types import InferRequest, InferResponse, NodeId
    from meshnode.wire.messages import LoadReport


class Sending:
    """Sends requests to replicas as their plans say."""

    def __init__(
        self,
        me: NodeId,
        local: LocalExecutor,
        peers: PeerCaller,
        now: Callable[[], float],
        metrics: GatewayMetrics,
        request_log: RequestLog,
    ) -> None:
        """Send from node `me`.

        Args:
            me: This node.
            local: Its model server.
            peers: The way to others.
            now: Returns monotonic seconds.
            metrics: Told how each try ended.
            request_log: Told of those that failed.
        """
        self._me = me
        self._local = local
        self._peers = peers
        self._now = now
        self._metrics = metrics
        self._request_log = request_log

    def __repr__(self) -> str:
        return f"<Sending from {self._me}>"

    async def first_answer(self, attempts: Attempts, request: InferRequest) -> InferResponse:
        """Try replicas until one answers; a unary answer is then complete, a stream has begun."""
        begun = False
        try:
            while True:
                step = attempts.next(self._now())
                if isinstance(step, GiveUp):
                    raise step.error
                if isinstance(step, Wait):
                    await asyncio.sleep(step.pause_s)
                    continue
                assert isinstance(step, Try)  # no other is out
                response = await self._answer_of(step, attempts, request)
                if response is not None:
                    begun = response.single is None
                    return response
        finally:
            if not begun:
                attempts.close(self._now())

    async def only_try(self, attempts: Attempts, request: InferRequest) -> InferResponse:
        """Try one replica and no other; a stream is not read, and none of it is answered.

        Raises:
            MeshError: why there is no answer.
        """
        try:
            step = attempts.next(self._now())
            if isinstance(step, GiveUp):
                raise step.error
            if not isinstance(step, Try):
                raise NoReplica(f"no replica of model {request.model!r} can take a request now")
            try:
                response = await self._send(step, request)
            except MeshError as error:
                attempts.failed(error, self._now(), None, step)
                raise
            if response.single is not None:
                attempts.succeeded(self._now(), None, step, response.run_ms)
            else:
                await aiter(response).aclose()
            return response
        finally:
            attempts.close(self._now())

    async def _answer_of(
        self, step: Try, attempts: Attempts, request: InferRequest
    ) -> InferResponse | None:
        """Send a try, and others beside it when it is slow; return an answer, or None if all failed."""
        sent_at = {step.number: self._now()}

        def send(step: Try) -> Awaitable[InferResponse]:
            sent_at[step.number] = self._now()
            return self._send(step, request)

        def answered(step: Try, response: InferResponse) -> None:
            local = self._is_local(step)
            self._metrics.attempts.add(("local" if local else "peer", "ok"))
            if response.single is None:
                attempts.first_byte(self._now(), step)
            else:
                report = self._report(step) if local else None
                kept = response.single.parameters.get(CACHE_PARAMETER) == HIT
                attempts.succeeded(self._now(), report, step, response.run_ms, kept=kept)

        def failed(step: Try, error: MeshError) -> None:
            local, now = self._is_local(step), self._now()
            self._metrics.attempts.add(("local" if local else "peer", error.code))
            attempts.failed(error, now, self._report(step) if local else None, step)
            replica, took_s = step.route.replica, now - sent_at[step.number]
            self._request_log.attempt_failed(
                request, replica.version, replica.node_name, error, took_s, local=local
            )

        if attempts.beside_at < math.inf:
            return await Race(attempts, self._now, send, answered, failed).run(step)
        try:
            response = await self._send(step, request)
        except MeshError as error:
            failed(step, error)
            return None
        answered(step, response)
        return response

    async def _send(self, step: Try, request: InferRequest) -> InferResponse:
        replica = step.route.replica
        request = variant(
            request,
            replica.version,
            step.remaining_s,
            request.trace,
            elsewhere=step.has_others,
        )
        if not self._is_local(step):
            return await self._peers.infer(replica.node, request)
        try:
            async with asyncio.timeout(step.remaining_s):
                return await self._local.infer(request)
        except TimeoutError:
            raise DeadlineExceeded(
                f"no answer within {step.remaining_s:.3f} s; the request may have run"
            ) from None

    def _is_local(self, step: Try) -> bool:
        return step.route.replica.node == self._me

    def _report(self, step: Try) -> LoadReport | None:
        """This node's own load; None when it stopped serving the model meanwhile."""
        try:
            return self._local.load_report(step.route.replica.model, step.route.replica.version)
        except MeshError:
            return None
