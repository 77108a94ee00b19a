"""Settings of routing: what may be tuned, within which range, and what it trades.

The constants of the score itself are not here: they belong to the formula (`choice`).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RoutingConfig:
    """Retries, breakers and first guesses of one gateway.

    Attributes:
        max_retries: Tries after the first one. More hide more failures and multiply the load of a
            mesh that is failing; 0 to 3. Each uses another node, and the budget below.
        retry_ratio: Retries allowed per request of the last 10 s (a share). Below 0.1 a single
            lost node of ten shows; above 0.5 retries alone can keep an overload alive.
        retry_floor_per_s: Retries per second that are always allowed (averaged over the same 10
            s), so that a quiet gateway can retry at all; 1 to 100.
        first_byte_floor_s: A replica counts as late with its first byte after this time, in
            seconds, at the least; then another is asked beside it. It is the second net below
            the link's own stall detection, so it lies above that: 1 to 10.
        first_byte_factor: The same as a multiple of the expected time; the largest of all holds,
            also of twice what 99 % of the model's answers take. Below 4 ordinary tails are run
            twice; above 20 it hardly ever acts.
        breaker_failures: Consecutive failures that open a replica's breaker; 2 to 10. Link loss
            and a replica's own "not serving" open it at once.
        breaker_base_s: Seconds that a breaker stays open the first time; 0.2 to 5. Short returns
            traffic sooner, long sends fewer requests into a broken replica.
        breaker_max_s: The longest it stays open, in seconds, as it doubles; 5 to 120. A breaker
            that stayed closed for this long begins at `breaker_base_s` again.
        breaker_jitter: Half-width of the random factor on that time (a share), so that gateways
            do not probe in step; 0 to 0.5.
        ejected_share: Of the replicas of a model version, the share that failures and comparison
            with the others may take out of use at a gateway (at least one, rounded up). If more
            of them fail, it is not they that are to blame; 0.3 to 0.7. Lost links, and a
            replica's own word, need no such leave.
        outlier_requests: Answers of each of at least three replicas before they are compared; 10
            to 100. Few and chance ejects, many and a broken one goes on for long.
        outlier_deviations: An answer rate this many standard deviations below that of the others
            ejects (1.9 in Envoy); 1.5 to 4.
        outlier_least_gap: And at least so much below, as a share: where all others are perfect,
            deviations are zero; 0.05 to 0.5.
        outlier_slowness: So many times as far beyond its expected time as the others' median
            ejects. Below it slowness is the score's business; 4 to 32.
        hedge_ratio: Hedges allowed per request of the last 10 s (a share); 0 for none, 0.02 to 0.1.
        hedge_quantile: A hedge goes out when this share of answers would be here; 0.9 to 0.99.
        hedge_floor_s: But never sooner, in seconds: a second try costs work too; 0.002 to 0.1.
        hedge_utilisation: At this use of the candidates' slots hedges end (a share); 0.5 to 0.8.
            Above it a second try waits behind first ones, and makes them wait.
        busy_pause_s: Pause before a retry, in seconds, after the second replica that was busy, and
            twice as long after each further one; times 0.5 to 1.5 by chance. 0.005 to 0.1.
        near_rtt_ms: Round trip assumed for a node of the same region until it was measured.
        far_rtt_ms: The same for other regions. Too low and unmeasured far nodes draw requests for
            the second until their link's first ping; both 0.1 to 300.
        first_service_ms: Service time assumed for a model of which no replica has reported yet.
            All its replicas get the same, so it decides only between model and network: 1 to 100.
    """

    max_retries: int = 2
    retry_ratio: float = 0.2
    retry_floor_per_s: float = 10.0
    first_byte_floor_s: float = 2.0
    first_byte_factor: float = 8.0
    breaker_failures: int = 3
    breaker_base_s: float = 1.0
    breaker_max_s: float = 30.0
    breaker_jitter: float = 0.2
    ejected_share: float = 0.5
    outlier_requests: int = 20
    outlier_deviations: float = 1.9
    outlier_least_gap: float = 0.15
    outlier_slowness: float = 8.0
    hedge_ratio: float = 0.05
    hedge_quantile: float = 0.95
    hedge_floor_s: float = 0.005
    hedge_utilisation: float = 0.7
    busy_pause_s: float = 0.02
    near_rtt_ms: float = 1.0
    far_rtt_ms: float = 50.0
    first_service_ms: float = 10.0
