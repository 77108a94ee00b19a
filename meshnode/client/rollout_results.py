"""What the client's calls about releases return; see `meshnode.client.results`."""

from __future__ import annotations

import msgspec


class ReleaseInfo(msgspec.Struct, frozen=True, kw_only=True):
    """How the release of a deployment stands, in a few words; `MeshClient.rollout` has all of them.

    Attributes:
        strategy: `canary`, `blue_green`, `shadow` or `ab`.
        baseline: The version that serves until the new one has proven itself.
        candidate: The new one.
        phase: `preparing`, `running`, `paused`, `keeping`, `done` or `rolled_back`.
        step: Which step lasts, counted from 1.
        steps: How many there are.
        share: Of the requests that name no version, how many the new one answers now, 0 to 1.
        serving: The version that answers where nothing else is decided.
        waits: Whether it waits for `promote`.
        reason: Why it stands there.
        outcome: `promoted` or `rolled_back`, or None while it goes on.
    """

    strategy: str = ""
    baseline: int = 0
    candidate: int = 0
    phase: str = ""
    step: int = 0
    steps: int = 0
    share: float = 0.0
    serving: int = 0
    waits: bool = False
    reason: str = ""
    outcome: str | None = None

    def __str__(self) -> str:
        """Say it in one line."""
        place = f", step {self.step} of {self.steps}" if 0 < self.step <= self.steps else ""
        why = f": {self.reason}" if self.reason else ""
        return f"release of version {self.candidate}: {self.outcome or self.phase}{place}{why}"


class RolloutStep(msgspec.Struct, frozen=True, kw_only=True):
    """One step of a release.

    Attributes:
        share: Of the requests that name no version, how many the new one answers, 0 to 1.
        mirror: Of those that the old one answers, how many are sent to the new one too, 0 to 1.
        hold_s: Seconds for which it lasts at least.
        wait: Whether the next one takes a `promote`.
    """

    share: float = 0.0
    mirror: float = 0.0
    hold_s: float = 0.0
    wait: bool = False


class RolloutGate(msgspec.Struct, frozen=True, kw_only=True):
    """What a gate says of the new version.

    Attributes:
        metric: What it is about.
        device: Class of devices that it failed on; empty for all together.
        limit: What the new version has to keep to.
        verdict: `pass`, `fail` or `inconclusive`.
        reason: Why, in words.
        baseline: The old version's figure, or None where there is none.
        candidate: The new one's, likewise.
        answers: Of the new version, on which this rests.
    """

    metric: str
    device: str = ""
    limit: float = 0.0
    verdict: str = ""
    reason: str = ""
    baseline: float | None = None
    candidate: float | None = None
    answers: int = 0


class RolloutMetric(msgspec.Struct, frozen=True, kw_only=True):
    """Amounts of people's feedback: how many, their mean and their standard deviation."""

    number: int = 0
    mean: float = 0.0
    deviation: float = 0.0


class RolloutArm(msgspec.Struct, frozen=True, kw_only=True):
    """What was seen of one version on one class of devices since the step began.

    Attributes:
        version: Which.
        device: The class; empty where it is not known.
        requests: Answers and failures.
        errors: Failures of these.
        p50_ms: Run time that half of the answers did not exceed, or None.
        p90_ms: The same of nine in ten.
        p99_ms: The same of 99 in a hundred.
        compared: Answers that were compared.
        agreed: Of these.
        metrics: Of people's feedback, by name.
    """

    version: int
    device: str = ""
    requests: int = 0
    errors: int = 0
    p50_ms: float | None = None
    p90_ms: float | None = None
    p99_ms: float | None = None
    compared: int = 0
    agreed: int = 0
    metrics: dict[str, RolloutMetric] = {}


class RolloutDifference(msgspec.Struct, frozen=True, kw_only=True):
    """How the two versions differ in one metric.

    Attributes:
        metric: `errors` and `agreement` (shares), `latency` (milliseconds), or one of people's feedback.
        baseline: The old version's mean; None where nothing is known.
        candidate: The new one's, likewise.
        baseline_count: Figures of the old version.
        candidate_count: Of the new one.
        difference: The new one's less the old one's; of `latency` the new one's as a multiple; None where there are too few.
        low: Lower end of the interval that holds the true difference.
        high: Upper end of it.
        chance: How probable such a difference is between equal versions.
        is_significant: Whether that is less than the release's `confidence` leaves to chance.
    """

    metric: str
    baseline: float | None = None
    candidate: float | None = None
    baseline_count: int = 0
    candidate_count: int = 0
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    chance: float = 1.0
    is_significant: bool = False


class RolloutReady(msgspec.Struct, frozen=True, kw_only=True):
    """Replicas that can answer, of both versions, and how many of the new one are enough."""

    baseline: int = 0
    candidate: int = 0
    wanted: int = 0


class RolloutDecision(msgspec.Struct, frozen=True, kw_only=True):
    """What was decided about a release: when (RFC 3339), what, and why."""

    at: str = ""
    kind: str = ""
    reason: str = ""


class RolloutInfo(msgspec.Struct, frozen=True, kw_only=True):
    """How the release of a deployment stands.

    Attributes:
        name: The deployment's.
        strategy: `canary`, `blue_green`, `shadow` or `ab`.
        baseline: The version that serves until the new one has proven itself.
        candidate: The new one.
        phase: `preparing`, `running`, `paused`, `keeping`, `done` or `rolled_back`.
        step: Which step lasts, counted from 1; 0 before the first, one more than there are once the new version answers
            everything.
        steps: All of them.
        share: Of the requests that name no version, how many the new one answers now, 0 to 1.
        mirror: Of those that the old one answers, how many are sent to the new one too now.
        split_by: What decides who gets which version: empty for chance, `key`, `session` or `header:NAME`.
        only: Of a header: the values that get the new one; empty for a share.
        waits: Whether it has passed all gates of its step and waits for `promote`.
        reason: Why it stands there.
        serving: The version that answers where nothing else is decided.
        resident: The versions that are kept loaded.
        since: Since when it stands so, in RFC 3339.
        begun_at: When it was asked for, likewise.
        outcome: `promoted` or `rolled_back`, or None while it goes on.
        ended_at: When that was settled, or None.
        steward: Name of the node that drives it, or None while none does.
        steward_id: Its id.
        epoch: Counts the stewards.
        ready: Replicas that can answer.
        room: Why replicas of the new version have no room, or fail; empty if they do not.
        unlike: How the inputs or outputs of the versions differ; empty if they do not.
        verdict: What all gates say: `pass`, `fail`, `inconclusive`, or None.
        verdict_reason: Why.
        gates: What each says.
        arms: What was seen of both versions, on each class of devices.
        significance: How the versions differ in each metric, and whether that is more than chance.
        verbs: What can be asked of it now.
        decisions: The last ones that the gateway has heard of, the oldest first.
    """

    name: str
    strategy: str = ""
    baseline: int = 0
    candidate: int = 0
    phase: str = ""
    step: int = 0
    steps: tuple[RolloutStep, ...] = ()
    share: float = 0.0
    mirror: float = 0.0
    split_by: str = ""
    only: tuple[str, ...] = ()
    waits: bool = False
    reason: str = ""
    serving: int = 0
    resident: tuple[int, ...] = ()
    since: str = ""
    begun_at: str = ""
    outcome: str | None = None
    ended_at: str | None = None
    steward: str | None = None
    steward_id: str | None = None
    epoch: int = 0
    ready: RolloutReady = RolloutReady()
    room: str = ""
    unlike: str = ""
    verdict: str | None = None
    verdict_reason: str = ""
    gates: tuple[RolloutGate, ...] = ()
    arms: tuple[RolloutArm, ...] = ()
    significance: tuple[RolloutDifference, ...] = ()
    verbs: tuple[str, ...] = ()
    decisions: tuple[RolloutDecision, ...] = ()

    @property
    def is_over(self) -> bool:
        """Whether nothing changes any more."""
        return self.outcome is not None
