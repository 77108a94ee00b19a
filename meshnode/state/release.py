"""How a new version of a deployment takes the place of the old one, as part of the desired state.

A `Release` is the plan, written once by whoever deploys: two versions, the steps from the one to the other, and the
gates that the new one has to pass. How far it has come is no part of it: that is the steward's word
(`meshnode.state.steward`), and what operators ask of it on the way is an `Order`.

    `deployment/NAME`      `Deployment.release`: the plan
    `release-order/NAME`   an `Order`: the last thing that an operator asked of it
    `release-stop/NAME`    an `Order` to abort or undo it: no other one that is written at the same time takes its place
    `release-step/NAME`    how far it has come (`meshnode.rollout.Progress`), for a mesh of which all nodes are started anew
    `release-end/NAME`     an `Ending`: how it came out, once that is settled
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Final, Literal, TypeVar

import msgspec

from meshnode.errors import ProtocolError
from meshnode.limits import (
    MAX_GATE_NAME_LENGTH,
    MAX_ORIGIN_TEXT_LENGTH,
    MAX_RECORD_WALL_S,
    MAX_RELEASE_FEEDBACK_GATES,
    MAX_RELEASE_GATES,
    MAX_RELEASE_REASON_LENGTH,
    MAX_RELEASE_S,
    MAX_RELEASE_STEPS,
    MAX_RELEASE_URL_LENGTH,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

Strategy = Literal["canary", "blue_green", "shadow", "ab"]
"""How. Where a deployment has no release its new version replaces the old one directly."""

STRATEGIES: Final[tuple[str, ...]] = ("canary", "blue_green", "shadow", "ab")

Comparison = Literal["close", "equal", "top"]
"""When two answers agree: numbers within a tolerance, all equal, or the same place of the greatest number."""

Verb = Literal["promote", "pause", "resume", "abort", "undo"]
"""What operators ask of a release."""

Outcome = Literal["promoted", "rolled_back"]

ORDER_PREFIX: Final = "release-order/"
STOP_PREFIX: Final = "release-stop/"
END_PREFIX: Final = "release-end/"
STEP_PREFIX: Final = "release-step/"

_Millis = Annotated[int, msgspec.Meta(ge=0, le=1000 * MAX_RECORD_WALL_S)]
_Revision = tuple[_Millis, Annotated[int, msgspec.Meta(ge=0, le=2**32)]]


class Step(msgspec.Struct, array_like=True, frozen=True):
    """One step from the old version to the new one.

    Attributes:
        share: Of the requests that name no version, how many the new one answers, 0 to 1.
        mirror: Of those that the old one answers, how many are sent to the new one too, whose answers are
            compared and thrown away, 0 to 1.
        hold_s: Seconds for which it lasts at least.
        wait: Whether the next step takes an operator's `promote`.
    """

    share: float
    mirror: float = 0.0
    hold_s: float = 60.0
    wait: bool = False


class Gate(msgspec.Struct, array_like=True, frozen=True):
    """What the new version has to keep to, compared with the old one on the same kind of device at the same time.

    Attributes:
        metric: `errors` (share of requests that failed), `latency_p50`, `latency_p90`, `latency_p99` (run time),
            `agreement` (share of compared answers that agree), or the name of a metric that people's feedback
            carries.
        limit: `errors`: by how much its share may be greater; `latency_*`: how many times the old one's it may be;
            `agreement`: the least share; else by how much its mean may be worse (an amount, not a share).
        higher_is_better: Of a metric of people's feedback.
    """

    metric: str
    limit: float
    higher_is_better: bool = True


BUILT_IN_METRICS: Final = ("errors", "latency_p50", "latency_p90", "latency_p99", "agreement")


class Release(msgspec.Struct, array_like=True, frozen=True):
    """The plan.

    Fields are only ever added at the end (docs/ARCHITECTURE.md, the upgrade contract).

    Attributes:
        strategy: What its steps were made from.
        baseline: The version that serves until the new one has proven itself.
        candidate: The new one.
        steps: In order; after the last one all requests are the new version's.
        gates: What each step has to pass.
        min_requests: So many answers of each version a gate needs before it says that all is well.
        max_wait_s: So long after `hold_s` a step waits for them, and for replicas, before it pauses.
        keep_s: How long the old version stays resident once the new one has taken its place.
        split_by: What decides who is asked: `""` for chance (or the session, where a request has one), `key` for the
            caller's API key, `session` for the session alone, or `header:NAME`; the same value gets the same
            version everywhere.
        only: Of `header:NAME`: the values that get the new version, all others the old one; empty for a share.
        against: What answers are compared with: `""` for the old version's, `deployment:NAME`, a URL, or
            `request:NAME` for a decision that the request carries in its parameter or header of this name;
            `labels` for what people say later.
        compare: When two answers agree.
        tolerance: Of `close`: |a - b| may be so much, and so much times |b| beside it.
        confidence: Of the test that tells two arms apart, above 0.5 and below 1.
        begun_ms: When it was asked for, in milliseconds since the Unix epoch, kept through all changes of its
            deployment; 0 until it is written. The same plan with another time is another release.
    """

    strategy: Strategy
    baseline: int
    candidate: int
    steps: Annotated[tuple[Step, ...], msgspec.Meta(min_length=1, max_length=MAX_RELEASE_STEPS)]
    gates: Annotated[tuple[Gate, ...], msgspec.Meta(max_length=MAX_RELEASE_GATES)] = ()
    min_requests: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 100
    max_wait_s: float = 600.0
    keep_s: float = 600.0
    split_by: Annotated[str, msgspec.Meta(max_length=MAX_GATE_NAME_LENGTH)] = ""
    only: Annotated[
        tuple[Annotated[str, msgspec.Meta(max_length=MAX_GATE_NAME_LENGTH)], ...],
        msgspec.Meta(max_length=MAX_RELEASE_GATES),
    ] = ()
    against: Annotated[str, msgspec.Meta(max_length=MAX_RELEASE_URL_LENGTH)] = ""
    compare: Comparison = "close"
    tolerance: float = 1e-3
    confidence: float = 0.95
    begun_ms: Annotated[int, msgspec.Meta(ge=0, le=1000 * MAX_RECORD_WALL_S)] = 0


class Order(msgspec.Struct, array_like=True, frozen=True):
    """What an operator asked of a release.

    Attributes:
        number: Greater than those of the orders before it: the steward obeys each once.
        verb: What.
        revision: Of the deployment that it is about: an order for another one is void.
        by: Who.
        reason: Why, where that was said.
    """

    number: Annotated[int, msgspec.Meta(ge=1, le=2**53)]
    verb: Verb
    revision: _Revision
    by: Annotated[str, msgspec.Meta(max_length=MAX_ORIGIN_TEXT_LENGTH)] = ""
    reason: Annotated[str, msgspec.Meta(max_length=MAX_RELEASE_REASON_LENGTH)] = ""

    def encode(self) -> bytes:
        """Return the value for the desired state."""
        return msgspec.msgpack.encode(self)

    @classmethod
    def decode(cls, value: bytes) -> Order:
        """Read a value of the desired state.

        Raises:
            ProtocolError: if the bytes are none.
        """
        return _read(_orders, value)


class Ending(msgspec.Struct, array_like=True, frozen=True):
    """How a release came out: it is not begun again, whoever is started anew.

    Attributes:
        revision: Of the deployment that it is about.
        outcome: Which version stays.
        reason: Why.
        at_ms: When, in milliseconds since the Unix epoch.
    """

    revision: _Revision
    outcome: Outcome
    reason: Annotated[str, msgspec.Meta(max_length=MAX_RELEASE_REASON_LENGTH)]
    at_ms: _Millis

    def encode(self) -> bytes:
        """Return the value for the desired state."""
        return msgspec.msgpack.encode(self)

    @classmethod
    def decode(cls, value: bytes) -> Ending:
        """Read a value of the desired state.

        Raises:
            ProtocolError: if the bytes are none.
        """
        return _read(_endings, value)


def is_pressing(key: str) -> bool:
    """Whether a key of the desired state says something of a release that requests follow at once."""
    return key.startswith((ORDER_PREFIX, STOP_PREFIX, END_PREFIX))


def release_flaws(release: Release) -> Iterator[str]:
    """Yield what is wrong with a plan, each as a sentence; nothing if all is well."""
    if release.baseline == release.candidate or min(release.baseline, release.candidate) < 1:
        yield f"a release leads from version {release.baseline} to version {release.candidate}: they must be two"
    yield from _step_flaws(release.steps)
    yield from _gate_flaws(release.gates)
    for name, value, least, most in (
        ("max_wait_s", release.max_wait_s, 0.0, MAX_RELEASE_S),
        ("keep_s", release.keep_s, 0.0, MAX_RELEASE_S),
        ("tolerance", release.tolerance, 0.0, 1e9),
        ("confidence", release.confidence, 0.5, 0.9999),
    ):
        if not (math.isfinite(value) and least <= value <= most):
            yield f"{name} is {value:g}, not {least:g} to {most:g}"
    if release.only and not release.split_by.startswith("header:"):
        yield 'only names values of a header: it goes with split_by = "header:NAME"'
    if release.split_by not in ("", "key", "session") and not (
        release.split_by.startswith("header:") and release.split_by.removeprefix("header:")
    ):
        yield f"split_by is {release.split_by!r}, not key, session or header:NAME"
    compares = any(step.mirror for step in release.steps) or release.against.startswith(
        ("labels", "request:")
    )
    if any(gate.metric == "agreement" for gate in release.gates) and not compares:
        yield (
            'the gate agreement needs a step with mirror, or against = "labels" or "request:NAME": else nothing is '
            "compared"
        )


def _step_flaws(steps: Sequence[Step]) -> Iterator[str]:
    for step in steps:
        for name, value in (("share", step.share), ("mirror", step.mirror)):
            if not (math.isfinite(value) and 0 <= value <= 1):
                yield f"a step's {name} is {value:g}, not 0 to 1"
        if not (math.isfinite(step.hold_s) and 0 <= step.hold_s <= MAX_RELEASE_S):
            yield f"a step's hold_s is {step.hold_s:g}, not 0 to {MAX_RELEASE_S:g}"
    if any(later.share < step.share for step, later in pairwise(steps)):
        yield "the shares of the steps go down; each is at least the one before"


def _gate_flaws(gates: Sequence[Gate]) -> Iterator[str]:
    names = [gate.metric for gate in gates]
    if len(names) != len(set(names)):
        yield "a metric has two gates"
    if sum(name not in BUILT_IN_METRICS for name in names) > MAX_RELEASE_FEEDBACK_GATES:
        yield f"of people's metrics at most {MAX_RELEASE_FEEDBACK_GATES} have gates"
    for gate in gates:
        if not 1 <= len(gate.metric.encode(errors="replace")) <= MAX_GATE_NAME_LENGTH:
            yield f"a gate's metric has 1 to {MAX_GATE_NAME_LENGTH} bytes"
        elif not gate.metric.isprintable():
            yield f"the name of the metric {gate.metric!r} has characters that cannot be printed"
        yield from _limit_flaws(gate)


def _limit_flaws(gate: Gate) -> Iterator[str]:
    if not (math.isfinite(gate.limit) and 0 <= gate.limit <= 1e9):
        yield f"the limit of {gate.metric} is {gate.limit:g}, not 0 to 1e9"
    if gate.metric.startswith("latency_") and gate.metric in BUILT_IN_METRICS and gate.limit < 1:
        yield f"the limit of {gate.metric} is {gate.limit:g}: it is how many times the old version's, at least 1"
    if gate.metric in ("errors", "agreement") and gate.limit > 1:
        yield f"the limit of {gate.metric} is {gate.limit:g}: it is a share, at most 1"


_orders = msgspec.msgpack.Decoder(Order)
_endings = msgspec.msgpack.Decoder(Ending)

_Value = TypeVar("_Value")


def _read(decoder: msgspec.msgpack.Decoder[_Value], value: bytes) -> _Value:
    try:
        return decoder.decode(value)
    except (msgspec.MsgspecError, ValueError) as error:
        raise ProtocolError(f"what is said of a release is not valid: {error}") from error
