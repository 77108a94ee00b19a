"""Which of two versions answers while one takes the other's place, and what is learned from each answer.

    answer ─> choose_arm ─┬─> the old version ──────────────────────────────┬─> client
                          └─> the new one; it fails? ─> the old one ────────┘     │
                                                     counted, remembered for feedback, mirrored (in the background)

Only requests that name no version get here. Whoever decodes a request does so for the version that serves; the new one is
asked only where the request fits it as well. A client never hears of a failure of the new version: it gets the old one's
answer, and the failure is counted. Models with sequences are not split, since a sequence is with one version.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from meshnode.errors import MeshError, NotCached
from meshnode.gateway.feedback import AnswerMemory
from meshnode.gateway.mirroring import Mirroring
from meshnode.gateway.routed_requests import variant
from meshnode.gateway.targets import Answered, Arm, Target
from meshnode.models.manifest import check_request
from meshnode.routing.breaker import Verdict, verdict_of
from meshnode.routing.releasing.arms import choose_arm

if TYPE_CHECKING:
    from collections.abc import Awaitable, Mapping

    from meshnode.gateway.disagreements import Seen
    from meshnode.gateway.feedback import Counted, Feedback
    from meshnode.gateway.metrics import GatewayMetrics
    from meshnode.gateway.pipeline import Pipeline
    from meshnode.gateway.sending import Sending
    from meshnode.routing.releasing.split import LiveRelease
    from meshnode.routing.router import Router
    from meshnode.types import InferRequest, NodeId

NO_HEADERS: Final[Mapping[str, str]] = MappingProxyType({})
"""Of a request that came without any, such as that of a model."""

_SHORTEST_RUN_MS: Final = 0.001  # 0 would say that it is not known


_NO_OTHER: Final = Arm()


class _Choice(NamedTuple):
    """A request on its way to one of the two versions."""

    request: InferRequest
    target: Target
    live: LiveRelease
    headers: Mapping[str, str]

    def of(self, target: Target) -> _Choice:
        """Return it on its way to another version."""
        request, version = self.request, target.manifest.version
        request = variant(request, version, request.timeout_s, request.trace)
        return _Choice(request, target, self.live, self.headers)


class OtherGateways(Protocol):
    """The way to the mesh's other gateways (`meshnode.daemon.release_words`)."""

    async def tell(self, feedback: Feedback, caller: str) -> Counted | None:
        """Have the gateway that gave an answer count what is said of it; None if none remembers it."""
        ...

    async def disagreements(self, model: str) -> Seen:
        """Return what others saw of a model's release."""
        ...


class Releasing:
    """The releases of this gateway's models, on the way of a request.

    Attributes:
        answers: What is remembered for people's feedback.
        mirroring: Runs requests on the new version besides, and compares.
        others: The way to other gateways, for what people say there; None as long as there is none.
    """

    def __init__(
        self,
        me: NodeId,
        pipeline: Pipeline,
        router: Router,
        sending: Sending,
        metrics: GatewayMetrics,
    ) -> None:
        """Decide for a pipeline; nothing is in a release yet.

        Args:
            me: This node.
            pipeline: Answers.
            router: Knows the releases.
            sending: Sends what is mirrored.
            metrics: Told of what was mirrored.
        """
        self._me = me
        self._pipeline = pipeline
        self._router = router
        self.answers = AnswerMemory(pipeline.now)
        self.mirroring = Mirroring(pipeline, router, sending, metrics, self.answers)
        self.others: OtherGateways | None = None

    def __repr__(self) -> str:
        return f"<Releasing: {self.answers!r}, {self.mirroring!r}>"

    def answer(
        self, request: InferRequest, target: Target, live: LiveRelease, headers: Mapping[str, str]
    ) -> Answered | Awaitable[Answered]:
        """Answer a request that names no version, by one of the two.

        Args:
            request: Its `version` is that of the target's manifest.
            target: The version that serves.
            live: The release.
            headers: Of the request.

        Raises:
            MeshError: as `Pipeline.infer`; at once, or when awaited.
        """
        if target.manifest.execution.sequences is not None:
            return self._pipeline.answer(request, target, headers, _NO_OTHER)
        release, serving = live.release, target.manifest.version
        version = choose_arm(
            release,
            live.progress,
            model=request.model,
            session=request.hints.session,
            key_id=request.hints.caller,
            header=lambda name: headers.get(name.lower()),
            draw=self._router.rng.random(),
        )
        choice = _Choice(request, target, live, headers)
        if version == serving == release.baseline:
            return self._run(choice, _NO_OTHER)
        old = self._ready(request, release.baseline)
        new = None if version == release.baseline else self._ready(request, release.candidate)
        if new is None:
            return self._run(choice if old is None else choice.of(old), _NO_OTHER)
        if old is None:
            return self._run(choice.of(new), _NO_OTHER)
        return self._with_fallback(choice.of(new), choice.of(old))

    def tell(self, feedback: Feedback, caller: str) -> Counted | None:
        """Count what somebody says of an answer of this gateway; None if it remembers none such.

        Args:
            feedback: What is said.
            caller: The id of the API key with which it comes, or empty.

        Raises:
            InvalidRequest: if its label does not fit the answer.
        """
        return self.answers.tell(
            feedback, caller, self._router.releases.of, self.mirroring.labelled
        )

    def live(self, model: str) -> LiveRelease | None:
        """Return the release of a model that is under way, or None."""
        return self._router.releases.of(model)

    def _ready(self, request: InferRequest, version: int) -> Target | None:
        """Return a version, if it can be asked now and the request fits it."""
        router = self._router
        group = router.table.group(request.model, version)
        if (
            group is None
            or group.manifest is None
            or not router.is_reachable(request.model, version)
        ):
            return None
        try:
            check_request(group.manifest, request)
        except MeshError:
            return None
        return Target(group.manifest, version, group)

    def _with_fallback(self, new: _Choice, old: _Choice) -> Answered | Awaitable[Answered]:
        """Answer by the new version; a failure of one that runs inline is caught here, of others where they are sent."""
        try:
            return self._run(new, Arm(old.target.manifest.version))
        except MeshError as error:
            failure = error
        try:
            found = self._run(old, _NO_OTHER)
        except MeshError as error:
            self._count_failure(new, failure, error)
            raise
        if not isinstance(found, Answered):
            return self._instead(found, new, failure)
        self._count_failure(new, failure, None)
        return found

    async def _instead(
        self, found: Awaitable[Answered], new: _Choice, failure: MeshError
    ) -> Answered:
        try:
            answered = await found
        except MeshError as error:
            self._count_failure(new, failure, error)
            raise
        self._count_failure(new, failure, None)
        return answered

    def _count_failure(self, new: _Choice, failure: MeshError, other: MeshError | None) -> None:
        """Count a failure of the new version, unless the old one fails at the request alike: then it is the request's."""
        if isinstance(failure, NotCached) or (other is not None and other.code == failure.code):
            return
        self._count(new.live, new.target.manifest.version, self._me, 0.0, failed=True)

    def _run(self, choice: _Choice, arm: Arm) -> Answered | Awaitable[Answered]:
        started = self._pipeline.now()
        live = choice.live
        try:
            found = self._pipeline.answer(choice.request, choice.target, choice.headers, arm)
        except MeshError as error:
            if arm.fallback is None and verdict_of(error) is Verdict.FAILURE:
                self._count(live, choice.target.manifest.version, self._me, 0.0, failed=True)
            raise
        if not isinstance(found, Answered):
            return self._later(found, choice)
        if not found.is_kept:
            took_ms = max(_SHORTEST_RUN_MS, 1e3 * (self._pipeline.now() - started))
            self._count(live, found.response.version, self._me, took_ms, failed=False)
        self._came(found, choice, self._me)
        return found

    async def _later(self, found: Awaitable[Answered], choice: _Choice) -> Answered:
        answered = await found
        self._came(answered, choice, answered.node or self._me)
        return answered

    def _count(
        self, live: LiveRelease, version: int, node: NodeId, run_ms: float, *, failed: bool
    ) -> None:
        """Count an answer that ran inline; those that are planned are counted by their plans."""
        live.book.answered(version, self._device(node), run_ms, failed=failed)

    def _device(self, node: NodeId) -> str:
        return self._router.table.conditions(node).device

    def _came(self, answered: Answered, choice: _Choice, node: NodeId) -> None:
        """Remember an answer, and compare it with others."""
        live, request, response = choice.live, choice.request, answered.response
        part = response.single
        outputs = part.outputs if part is not None and live.release.against == "labels" else None
        self.answers.keep(
            request.request_id,
            request.hints.caller,
            model=request.model,
            revision=live.revision,
            version=response.version,
            device=self._device(node),
            node=node,
            outputs=outputs,
            asked=request,
        )
        if part is not None:
            self.mirroring.came(live, request, choice.headers, response.version, node, part)
