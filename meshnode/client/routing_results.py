"""What the clients' methods about routing return; JSON shapes are those of `/mesh/v1`."""

from __future__ import annotations

import msgspec


class ScoreTerms(msgspec.Struct, frozen=True, kw_only=True):
    """What a candidate's expected time is made of.

    Attributes:
        rtt_ms: Round trip to the node.
        cold_ms: Time until the replica can serve at all.
        rho: Observed over predicted time.
        wait_ms: Time that the request would wait there.
        service_ms: Its own run time there.
        staleness: Factor for the age of the last word about its load.
        ramp: Factor for a replica that has just begun to serve.
        p_error: Share of requests that fail there.
        saved_ms: What it spares the request, as it had others like it.
    """

    rtt_ms: float = 0.0
    cold_ms: float = 0.0
    rho: float = 1.0
    wait_ms: float = 0.0
    service_ms: float = 0.0
    staleness: float = 1.0
    ramp: float = 1.0
    p_error: float = 0.0
    saved_ms: float = 0.0


class ExplainedCandidate(msgspec.Struct, frozen=True, kw_only=True):
    """A replica that is ready, as a request looks at it.

    Attributes:
        node: Its node's id.
        name: Its node's name.
        region: Where that says it is.
        odds: Share of such requests that it would get, 0 to 1.
        expected_ms: Expected time to completion.
        terms: What that is made of.
        slots: Requests that it runs at once.
        queued: Requests believed to be there.
        outstanding: The gateway's own of them.
        report_age_s: Seconds since its last word about its load, or None.
        link: State of the link to its node.
        breaker: State of its breaker.
        dropped: Why it cannot take the request, or empty.
        later: Why others are asked first, or empty.
    """

    node: str
    name: str
    region: str = ""
    odds: float = 0.0
    expected_ms: float = 0.0
    terms: ScoreTerms = ScoreTerms()
    slots: int = 1
    queued: int = 0
    outstanding: int = 0
    report_age_s: float | None = None
    link: str = ""
    breaker: str = ""
    dropped: str = ""
    later: str = ""


class ExcludedReplica(msgspec.Struct, frozen=True, kw_only=True):
    """A replica that is not ready: its node's name, and why."""

    name: str
    reason: str


class Explanation(msgspec.Struct, frozen=True, kw_only=True):
    """Where a request would go, and why.

    Attributes:
        gateway: Name of the node that would decide.
        model: What is asked for.
        version: The version that would be used, or None.
        reason: Why the likeliest would be picked, as in `Mesh-Route`; empty if nobody would.
        estimated: Whether the odds were counted in draws.
        candidates: Replicas that are ready, the likeliest first.
        excluded: Those that are not.
    """

    gateway: str
    model: str
    version: int | None = None
    reason: str = ""
    estimated: bool = False
    candidates: tuple[ExplainedCandidate, ...] = ()
    excluded: tuple[ExcludedReplica, ...] = ()
