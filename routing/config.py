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
        first_byte_floor_s: The least time, in seconds, that a replica has for its first byte
            while another candidate exists. It is the second net below the link's own stall
            detection, so it lies above that: 1 to 10.
        first_byte_factor: The same as a multiple of the expected time; the larger of both holds.
            Below 4 ordinary tails are cut off and run twice; above 20 it hardly ever acts.
        breaker_failures: Consecutive failures that open a replica's breaker; 2 to 10. Link loss
            and a replica's own "not serving" open it at once.
        breaker_base_s: Seconds that a breaker stays open the first time; 0.2 to 5. Short returns
            traffic sooner, long sends fewer requests into a broken replica.
        breaker_max_s: The longest it stays open, in seconds, as it doubles; 5 to 120. A breaker
            that stayed closed for this long begins at `breaker_base_s` again.
        breaker_jitter: Half-width of the random factor on that time (a share), so that gateways
            do not probe in step; 0 to 0.5.
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
    near_rtt_ms: float = 1.0
    far_rtt_ms: float = 50.0
    first_service_ms: float = 10.0
