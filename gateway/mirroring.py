"""Requests that run on a new version besides, so that its answers can be compared before anybody gets them.

    the old version's answer ─> client
             └─ copied ─> the new version (lowest priority) ─> compared ─┬─> agree: counted
                                                                        └─> differ: counted, and kept as an example

Nobody waits for a mirrored request: it begins once the client has its answer, and what would be too much is dropped and
counted. Only models whose requests may run twice, and that answer in one part, are mirrored. What the answers are
compared with besides the old version's says `meshnode.gateway.references`.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from meshnode.errors import InferenceFailed, MeshError, UsageError
from meshnode.gateway.disagreements import Asked, Compared, Disagreements
from meshnode.gateway.labels import is_right
from meshnode.gateway.references import (
    DEPLOYMENT,
    NO_DECISION,
    REQUEST,
    copied,
    decision_of,
    is_url,
    of_deployment,
    of_url,
)
from meshnode.gateway.routed_requests import routed
from meshnode.limits import (
    COMPARED_AT_ONCE_BYTES,
    MAX_MIRRORED_BYTES,
    MAX_MIRRORS_BYTES,
    MAX_MIRRORS_IN_FLIGHT,
    MIRROR_TIMEOUT_S,
)
from meshnode.net.outbound import PUBLIC
from meshnode.routing.breaker import Verdict, verdict_of
from meshnode.types import NodeId, Priority, Tensor

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meshnode.gateway.feedback import AnswerMemory, Labelled
    from meshnode.gateway.metrics import GatewayMetrics
    from meshnode.gateway.pipeline import Pipeline
    from meshnode.gateway.sending import Sending
    from meshnode.models.manifest import Manifest
    from meshnode.routing.releasing.split import LiveRelease
    from meshnode.routing.router import Router
    from meshnode.types import InferRequest, ResponsePart

log = logging.getLogger(__name__)


class _Mirrored(NamedTuple):
    """A request that runs on the new version.

    Attributes:
        live: The release.
        request: Its version is the new one; its bytes are its own.
        old: What the old version answered.
        device: The kind of device that answered so.
        decision: What the request says would be right, or `NO_DECISION`.
        size_bytes: Of all of it.
    """

    live: LiveRelease
    request: InferRequest
    old: tuple[Tensor, ...]
    device: str
    decision: Any
    size_bytes: int


class _New(NamedTuple):
    """What the new version answered, and where."""

    outputs: tuple[Tensor, ...]
    node: NodeId
    device: str


class Mirroring:
    """The mirrored requests of one gateway.

    Attributes:
        running: How many there are.
        disagreements: What they found.
        rule: Which addresses may be asked for comparison.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        router: Router,
        sending: Sending,
        metrics: GatewayMetrics,
        answers: AnswerMemory,
    ) -> None:
        """Mirror for a pipeline.

        Args:
            pipeline: Answers what other deployments are asked for comparison.
            router: Plans.
            sending: Sends as planned.
            metrics: Told how each mirrored request came out.
            answers: Remembers what the new version answered where labels are compared.
        """
        self._pipeline = pipeline
        self._router = router
        self._sending = sending
        self._outcomes = metrics.mirrored
        self._answers = answers
        self._tasks: set[asyncio.Task[None]] = set()
        self._held_bytes = 0
        self.running = 0
        self.disagreements = Disagreements()
        self.rule = PUBLIC

    def __repr__(self) -> str:
        return f"<Mirroring: {self.running} run, {self._held_bytes} bytes>"

    def came(
        self,
        live: LiveRelease,
        request: InferRequest,
        headers: Mapping[str, str],
        version: int,
        node: NodeId,
        part: ResponsePart,
    ) -> None:
        """A version answered: mirror the request if it is drawn, and compare the answer if the request says what is right.

        Args:
            live: The release.
            request: What was asked.
            headers: Of the request.
            version: That answered.
            node: Likewise.
            part: The answer.
        """
        release = live.release
        share = live.progress.mirror(release) if version == release.baseline else 0.0
        decision = decision_of(release.against, request, headers)
        if share > 0.0 and self._router.rng.random() < share:
            self._begin(live, request, decision, node, part)
        if decision is not NO_DECISION:
            device = self._device(node)
            self._decided(live, request, version, _New(part.outputs, node, device), decision)
        elif version == release.candidate and release.against.startswith(REQUEST):
            self._no_decision(live)

    def labelled(self, live: LiveRelease, answer: Labelled) -> None:
        """Take note of an answer that was compared with a label, and counted."""
        if answer.version != live.release.candidate:
            return
        new = _New(answer.outputs, answer.node, answer.device)
        difference = "" if answer.agreed else "it is not what the label says"
        self._note(live, answer.asked, new, answer.label, difference)

    async def settle(self) -> None:
        """Wait until nothing runs any more."""
        while self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def close(self) -> None:
        """Give up what runs."""
        for task in self._tasks:
            task.cancel()
        await self.settle()

    def _begin(
        self,
        live: LiveRelease,
        request: InferRequest,
        decision: Any,
        node: NodeId,
        part: ResponsePart,
    ) -> None:
        manifest = self._router.table.manifest(request.model, live.release.candidate)
        size_bytes = sum(each.size_bytes for each in (*request.inputs, *part.outputs))
        refusal = self._refusal(manifest, size_bytes)
        if refusal:
            self._outcomes.add((refusal,))
            return
        assert manifest is not None
        mirrored = _Mirrored(
            live,
            self._copied(request, manifest),
            copied(part.outputs),
            self._device(node),
            decision,
            size_bytes,
        )
        self.running += 1
        self._held_bytes += size_bytes
        task = asyncio.ensure_future(self._run(mirrored))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _refusal(self, manifest: Manifest | None, size_bytes: int) -> str:
        """Return why a request is not mirrored; empty if it is."""
        if manifest is None:
            return "failed"
        execution = manifest.execution
        if execution.decoupled or not execution.repeatable or execution.sequences is not None:
            return "not_repeatable"
        if size_bytes > MAX_MIRRORED_BYTES:
            return "too_large"
        if (
            self.running >= MAX_MIRRORS_IN_FLIGHT
            or self._held_bytes + size_bytes > MAX_MIRRORS_BYTES
        ):
            return "dropped"
        return ""

    def _copied(self, request: InferRequest, manifest: Manifest) -> InferRequest:
        """Return a request for the new version that outlives the one that it is made of."""
        return msgspec.structs.replace(
            request,
            inputs=copied(request.inputs),
            version=manifest.version,
            timeout_s=min(MIRROR_TIMEOUT_S, max(request.timeout_s, MIRROR_TIMEOUT_S / 4)),
            trace=request.trace or self._pipeline.request_log.traces.begin(),
            cache_control="no-store" if manifest.keeps_answers else "",
            hints=msgspec.structs.replace(
                request.hints, priority=Priority.LOW, session="", prefix=b""
            ),
            keep=None,
            elsewhere=False,
        )

    async def _run(self, mirrored: _Mirrored) -> None:
        outcome = "failed"
        try:
            new = await self._new(mirrored)
            outcome = "no_reference"
            outcome = await self._compared(mirrored, new)
        except MeshError as error:
            if outcome == "no_reference":
                self._missed(mirrored.live, str(error))
            log.debug("mirroring %s: %s", mirrored.request.model, error)
        except Exception:
            log.exception("comparing answers of %s failed", mirrored.request.model)
        finally:
            self.running -= 1
            self._held_bytes -= mirrored.size_bytes
            self._outcomes.add((outcome,))

    async def _new(self, mirrored: _Mirrored) -> _New:
        """Run a request on the new version, once: what goes wrong on one kind of device is not made good on another.

        It waits behind all others, so only the model's own run time says something about the version.
        """
        live, request = mirrored.live, mirrored.request
        version = live.release.candidate
        plan = routed(request, version, None)
        attempts = self._router.plan(plan, self._pipeline.now())
        try:
            response = await self._sending.only_try(attempts, request)
            if response.single is None:
                raise InferenceFailed(
                    f"model {request.model!r} answered in several parts, which cannot be compared"
                )
        except MeshError as error:
            # The old version has answered this very request: a caller's mistake is none.
            failed = isinstance(error, UsageError) or verdict_of(error) is Verdict.FAILURE
            if failed and attempts.route is not None:
                device = self._device(attempts.route.replica.node)
                live.book.answered(version, device, 0.0, failed=True)
            raise
        assert attempts.route is not None
        node = attempts.route.replica.node
        live.book.answered(version, self._device(node), response.run_ms, failed=False)
        return _New(response.single.outputs, node, self._device(node))

    async def _compared(self, mirrored: _Mirrored, new: _New) -> str:
        """Compare, count, and return what came of it."""
        live, request = mirrored.live, mirrored.request
        release = live.release
        against = release.against
        if against == "labels":
            self._answers.keep_mirrored(
                request.request_id,
                request.hints.caller,
                version=release.candidate,
                device=new.device,
                node=new.node,
                outputs=new.outputs,
            )
            return "kept_for_labels"
        if mirrored.decision is not NO_DECISION:
            return self._decided(live, request, release.candidate, new, mirrored.decision)
        if against.startswith(DEPLOYMENT):
            right = await of_deployment(self._pipeline, against.removeprefix(DEPLOYMENT), request)
        elif is_url(against):
            right = await of_url(self.rule, against, request)
        elif against:
            return self._no_decision(live)
        else:
            return await self._matched(mirrored, new, mirrored.old)
        old = await _difference(mirrored.old, right, live)
        self._count(live, release.baseline, mirrored.device, agreed=not old)
        return await self._matched(mirrored, new, right)

    async def _matched(self, mirrored: _Mirrored, new: _New, right: tuple[Tensor, ...]) -> str:
        live, request = mirrored.live, mirrored.request
        difference = await _difference(new.outputs, right, live)
        return self._told(live, request, live.release.candidate, new, right, difference)

    def _decided(
        self, live: LiveRelease, request: InferRequest, version: int, new: _New, decision: Any
    ) -> str:
        """Compare an answer with what its request says would be right."""
        release = live.release
        try:
            agreed = is_right(new.outputs, decision, release.compare, release.tolerance)
        except MeshError as error:
            if version == release.candidate:
                self._missed(live, str(error))
            return "no_reference"
        difference = "" if agreed else "it is not what the request says"
        return self._told(live, request, version, new, decision, difference)

    def _told(
        self,
        live: LiveRelease,
        request: InferRequest,
        version: int,
        new: _New,
        right: Any,
        difference: str,
    ) -> str:
        self._count(live, version, new.device, agreed=not difference)
        if version == live.release.candidate:
            self._note(live, Asked.of(request), new, right, difference)
        return "disagreed" if difference else "agreed"

    def _note(
        self, live: LiveRelease, asked: Asked, new: _New, right: Any, difference: str
    ) -> None:
        group = self._router.table.group(live.model, live.release.candidate)
        replica = None if group is None else group.members.get(new.node)
        self.disagreements.add(
            live,
            Compared(
                asked=asked,
                answer=new.outputs,
                right=right,
                device=new.device,
                node=new.node if replica is None else replica.node_name,
                region="" if replica is None else replica.region,
                difference=difference,
                at_s=self._pipeline.wall_s(),
            ),
        )

    def _no_decision(self, live: LiveRelease) -> str:
        name = live.release.against.removeprefix(REQUEST)
        self._missed(
            live, f"the request carries no {name!r}, neither as a parameter nor as a header"
        )
        return "no_reference"

    def _missed(self, live: LiveRelease, reason: str) -> None:
        self.disagreements.missed(live, reason, self._pipeline.wall_s())

    def _count(self, live: LiveRelease, version: int, device: str, *, agreed: bool) -> None:
        live.book.compared(version, device, agreed=agreed)

    def _device(self, node: NodeId) -> str:
        return self._router.table.conditions(node).device


async def _difference(
    answer: tuple[Tensor, ...], right: tuple[Tensor, ...], live: LiveRelease
) -> str:
    """Return how an answer differs from the right one, in words; empty if it does not."""
    size_bytes = sum(each.size_bytes for each in right)
    if size_bytes > COMPARED_AT_ONCE_BYTES:
        return await asyncio.to_thread(_differs, answer, right, live)
    return _differs(answer, right, live)


def _differs(answer: tuple[Tensor, ...], right: tuple[Tensor, ...], live: LiveRelease) -> str:
    from meshnode.routing.releasing.comparison import (
        agree,
    )  # numpy: only where something is compared

    release = live.release
    found = agree(answer, right, release.compare, release.tolerance)
    return "" if found is None else str(found)
