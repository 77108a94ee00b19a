"""How a node's model server runs requests: its settings."""

from __future__ import annotations

from dataclasses import dataclass

from meshnode.limits import (
    MAX_RESPONSE_CACHE_ENTRIES,
    MAX_WAITING_RUNS,
    RESPONSE_CACHE_BYTES,
    RESPONSE_CACHE_TIME_S,
)


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """How requests are run.

    Attributes:
        inline_limit_s: Runs expected to be shorter happen on the event loop. Higher saves
            hand-overs (60-70 µs each) and delays everything else on the loop. 0 (never inline)
            to 0.002.
        spread_limit_s: Runs of this length or longer spread over all cores. Lower trades
            throughput for latency; well above `inline_limit_s`.
        max_waiting: Requests that may wait per version: at 10 ms each, 2.5 s of work; more would
            wait past any patience, and another node can take them.
        warm_up_runs: Runs on zeros before a version is ready; the fastest counts, 1 to 10.
        slots: Requests of one version that run at once, each with one thread, however long they take;
            None lets the warm-up decide. More than there are cores only where runs wait for something
            else than a processor.
        profile_s: Seconds that measuring a version's service time per batch size may take before it
            is ready; 0 measures batch size 1 only. Longer delays each load.
        cache_bytes: Memory for answers of versions that ask for a response cache, over all of them;
            0 keeps none.
        cache_entries: Answers kept at most, whatever their size.
        cache_time_s: Seconds after which an answer is not given again.
    """

    inline_limit_s: float = 500e-6
    spread_limit_s: float = 2e-3
    max_waiting: int = MAX_WAITING_RUNS
    warm_up_runs: int = 3
    slots: int | None = None
    profile_s: float = 0.5
    cache_bytes: int = RESPONSE_CACHE_BYTES
    cache_entries: int = MAX_RESPONSE_CACHE_ENTRIES
    cache_time_s: float = RESPONSE_CACHE_TIME_S
