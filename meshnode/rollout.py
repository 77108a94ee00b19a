"""What nodes tell each other of a release on its way: how far it has come, and what gateways have seen of it.

    `Progress`    in the word of a deployment's steward (`meshnode.state.steward`): which step counts
    `Evidence`    in each gateway's own signed state, under `evidence/NAME`: answers of both versions since that step began

The rules by which the one follows from the other are in `meshnode.routing.releasing`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final, Literal

import msgspec

from meshnode.errors import ProtocolError
from meshnode.limits import (
    MAX_EVIDENCE_BUCKETS,
    MAX_EVIDENCE_CLASSES,
    MAX_EVIDENCE_COUNT,
    MAX_EVIDENCE_DEVICE_BYTES,
    MAX_EVIDENCE_METRICS,
    MAX_GATE_NAME_LENGTH,
    MAX_RECORD_WALL_S,
    MAX_RELEASE_LOOKS,
    MAX_RELEASE_REASON_LENGTH,
    MAX_RELEASE_STEPS,
    MAX_VERSION,
)

if TYPE_CHECKING:
    from meshnode.state.release import Release

EVIDENCE_PREFIX: Final = "evidence/"

BUCKETS_PER_OCTAVE: Final = 16
"""Run times are counted in buckets whose edges are 4.4 % apart: finer than any limit that somebody sets."""

LEAST_RUN_MS: Final = 1e-3
"""Lower edge of bucket 0."""

LAST_BUCKET: Final = 511
"""A bit more than the longest run time that a replica may claim."""

Phase = Literal["preparing", "running", "paused", "keeping", "done", "rolled_back"]
"""Where a release stands.

    preparing      replicas of the new version start; nobody is sent to them
    running        a step lasts
    paused         nothing goes on by itself, the step's share is kept
    keeping        all requests are the new version's, the old one stays resident
    done           the new version has proven itself; the old one goes
    rolled_back    all requests are the old version's; the new one goes
"""

_Count = Annotated[int, msgspec.Meta(ge=0, le=MAX_EVIDENCE_COUNT)]
_Millis = Annotated[int, msgspec.Meta(ge=0, le=1000 * MAX_RECORD_WALL_S)]
_Revision = tuple[_Millis, Annotated[int, msgspec.Meta(ge=0, le=2**32)]]
_StepNumber = Annotated[int, msgspec.Meta(ge=-1, le=MAX_RELEASE_STEPS)]


class Progress(msgspec.Struct, array_like=True, frozen=True):
    """How far a release has come.

    Attributes:
        revision: Of the deployment that it is about.
        phase: Where it stands.
        step: Which of the plan's steps lasts; -1 before the first one, the number of steps after the last one. A
            paused release keeps it, and goes on from it.
        since_ms: Since when this phase of this step lasts, in milliseconds since the Unix epoch.
        reason: Why it stands there, for people.
        order: Number of the last order that was obeyed; 0 for none.
        looks: How often the gates were tried so far, in all steps together.
        seen: Answers of the new version at the last one of these in this step.
        waits: Whether a paused release has passed all gates of its step and waits for `promote`.
        granted: Whether an operator has promoted this step: its time and its gates count no more.
        troubled_ms: Since when the new version's replicas fail; 0 if they do not.
    """

    revision: _Revision
    phase: Phase
    step: _StepNumber
    since_ms: _Millis
    reason: Annotated[str, msgspec.Meta(max_length=MAX_RELEASE_REASON_LENGTH)] = ""
    order: Annotated[int, msgspec.Meta(ge=0, le=2**53)] = 0
    looks: Annotated[int, msgspec.Meta(ge=0, le=MAX_RELEASE_LOOKS)] = 0
    seen: Annotated[int, msgspec.Meta(ge=0, le=2**53)] = 0
    waits: bool = False
    granted: bool = False
    troubled_ms: _Millis = 0

    def encode(self) -> bytes:
        """Return the value for the desired state, which keeps it for a mesh that is started anew."""
        return msgspec.msgpack.encode(self)

    @classmethod
    def decode(cls, value: bytes) -> Progress:
        """Read a value of the desired state.

        Raises:
            ProtocolError: if the bytes are none.
        """
        try:
            return _progresses.decode(value)
        except (msgspec.MsgspecError, ValueError) as error:
            raise ProtocolError(f"how far a release has come is not valid: {error}") from error

    @property
    def is_over(self) -> bool:
        """Whether nothing changes any more."""
        return self.phase in ("done", "rolled_back")

    @property
    def watched_step(self) -> int | None:
        """The step that evidence is gathered for, or None while there is nothing to see."""
        return None if self.is_over or self.step < 0 else self.step

    def share(self, release: Release) -> float:
        """Return how many of the requests that name no version the new one answers, 0 to 1."""
        if self.phase == "rolled_back" or self.step < 0:
            return 0.0
        return 1.0 if self.is_promoted(release) else release.steps[self.step].share

    def mirror(self, release: Release) -> float:
        """Return how many of those that the old version answers are sent to the new one too, 0 to 1."""
        if self.watched_step is None or self.is_promoted(release):
            return 0.0
        return release.steps[self.step].mirror

    def serving(self, release: Release) -> int:
        """Return the version that requests get of which nothing else is decided."""
        return release.candidate if self.is_promoted(release) else release.baseline

    def resident(self, release: Release) -> tuple[int, ...]:
        """Return the versions that are wanted, the one that serves first."""
        if self.phase == "done":
            return (release.candidate,)
        if self.phase == "rolled_back":
            return (release.baseline,)
        serving = self.serving(release)
        other = release.baseline if serving == release.candidate else release.candidate
        return serving, other

    def is_promoted(self, release: Release) -> bool:
        """Whether the last step is behind it and nothing was undone."""
        return self.phase == "done" or (
            self.phase != "rolled_back" and self.step >= len(release.steps)
        )


class CellWord(msgspec.Struct, array_like=True, frozen=True):
    """What one gateway has seen of one version on one class of devices.

    Attributes:
        version: Which.
        device: The class, shortened (`meshnode.routing.releasing.evidence.class_word`); empty for unknown ones, and for
            those beyond `MAX_EVIDENCE_CLASSES`.
        requests: Answers and failures.
        errors: Failures of these.
        run_times: Bucket and number of answers, ascending.
        compared: Answers that were compared.
        agreed: Of these.
        metrics: Of people's feedback: place in `Evidence.metrics`, number, mean, sum of squared differences from it.
    """

    version: Annotated[int, msgspec.Meta(ge=1, le=MAX_VERSION)]
    device: Annotated[str, msgspec.Meta(max_length=MAX_EVIDENCE_DEVICE_BYTES)]
    requests: _Count = 0
    errors: _Count = 0
    run_times: Annotated[
        tuple[tuple[Annotated[int, msgspec.Meta(ge=0, le=LAST_BUCKET)], _Count], ...],
        msgspec.Meta(max_length=MAX_EVIDENCE_BUCKETS),
    ] = ()
    compared: _Count = 0
    agreed: _Count = 0
    metrics: Annotated[
        tuple[
            tuple[
                Annotated[int, msgspec.Meta(ge=0, lt=MAX_EVIDENCE_METRICS)], _Count, float, float
            ],
            ...,
        ],
        msgspec.Meta(max_length=MAX_EVIDENCE_METRICS),
    ] = ()


class Evidence(msgspec.Struct, array_like=True, frozen=True):
    """What one gateway has seen of a release since a step of it began: never more than one value of a node's state.

    Attributes:
        revision: Of the deployment.
        step: Of the release.
        metrics: Names of people's metrics.
        cells: By version and class of devices, ascending.
    """

    revision: _Revision
    step: _StepNumber
    metrics: Annotated[
        tuple[Annotated[str, msgspec.Meta(max_length=MAX_GATE_NAME_LENGTH)], ...],
        msgspec.Meta(max_length=MAX_EVIDENCE_METRICS),
    ] = ()
    cells: Annotated[
        tuple[CellWord, ...],
        msgspec.Meta(max_length=2 * MAX_EVIDENCE_CLASSES),
    ] = ()

    def encode(self) -> bytes:
        """Return the value for the node's own state."""
        return msgspec.msgpack.encode(self)

    @classmethod
    def decode(cls, value: bytes) -> Evidence:
        """Read another node's.

        Raises:
            ProtocolError: if the bytes are none.
        """
        try:
            return _evidence.decode(value)
        except (msgspec.MsgspecError, ValueError) as error:
            raise ProtocolError(
                f"what a node has seen of a release is not valid: {error}"
            ) from error


def shortened(reason: str) -> str:
    """Return a reason as it may be told, with an ellipsis where it is cut."""
    if len(reason) <= MAX_RELEASE_REASON_LENGTH:
        return reason
    return reason[: MAX_RELEASE_REASON_LENGTH - 1] + "…"


def evidence_key(deployment: str) -> str:
    """Return the key of a node's own state that holds what it has seen of a deployment's release."""
    return EVIDENCE_PREFIX + deployment


_evidence = msgspec.msgpack.Decoder(Evidence)
_progresses = msgspec.msgpack.Decoder(Progress)
