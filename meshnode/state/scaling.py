"""How many replicas a deployment may have, and by what their number follows what is asked of it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import msgspec

from meshnode.limits import (
    MAX_DEPLOYMENT_REPLICAS,
    MAX_IDLE_S,
    MAX_SCALING_DELAY_S,
    MAX_SCALING_TARGET,
    MAX_STABLE_WINDOW_S,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

LEAST_WINDOW_S: Final = 2.0
"""The shortest window that says anything: nodes tell their load once a second."""

SHARES: Final = ("cpu", "accelerator", "memory")
"""Targets that are a share of what a node has, above 0 and at most 1."""

TARGETS: Final = ("concurrency", "qps", "latency_ms", "queue", *SHARES)
"""All targets, in the order in which they are told to people."""


class Scaling(msgspec.Struct, array_like=True, frozen=True):
    """What the number of a deployment's replicas follows.

    A *unit* is the capacity of the deployment's median device: a node that runs the model three times as fast
    holds three. Of the targets those that are above 0 count, and the one that needs most units decides.

    Fields are only ever added at the end (docs/ARCHITECTURE.md, the upgrade contract).

    Attributes:
        min_replicas: The fewest replicas; 0 lets it go to sleep, to be woken by the next request.
        max_replicas: The most.
        concurrency: Requests in flight per unit, counted as they would be in flight on the median device.
        qps: Requests per second per unit.
        latency_ms: Mean time that a request spends at a replica, waiting and running, on the median device.
        queue: Requests that wait per unit.
        cpu: Share of the processors that is used, above 0 to 1.
        accelerator: Share of the busiest accelerator's time.
        memory: Share of the memory that is used.
        stable_window_s: Seconds over which what is needed is averaged.
        panic_window_s: The same for bursts.
        panic_threshold: How many times the present capacity a burst needs to count as one.
        tolerance: By what share need and capacity may differ without anything being done about it.
        up_delay_s: Seconds for which more has to be needed before there are more.
        down_delay_s: Seconds for which less has to be needed before there are fewer.
        idle_s: Seconds without any request after which the last replica goes, if `min_replicas` is 0.
    """

    min_replicas: int = 1
    max_replicas: int = 1
    concurrency: float = 0.0
    qps: float = 0.0
    latency_ms: float = 0.0
    queue: float = 0.0
    cpu: float = 0.0
    accelerator: float = 0.0
    memory: float = 0.0
    stable_window_s: float = 60.0
    panic_window_s: float = 6.0
    panic_threshold: float = 2.0
    tolerance: float = 0.1
    up_delay_s: float = 0.0
    down_delay_s: float = 30.0
    idle_s: float = 300.0

    @property
    def targets(self) -> dict[str, float]:
        """The targets that count, by name."""
        named = ((name, getattr(self, name)) for name in TARGETS)
        return {name: value for name, value in named if value > 0}

    def clamped(self, replicas: int) -> int:
        """Return the number within bounds that is nearest to this one."""
        return max(self.min_replicas, min(self.max_replicas, replicas))


def scaling_flaws(scaling: Scaling) -> Iterator[str]:
    """Yield what is wrong with it, each as a sentence about one field; nothing if all is well."""
    if not 0 <= scaling.min_replicas <= scaling.max_replicas:
        yield (
            f"min is {scaling.min_replicas} and max is {scaling.max_replicas}; it takes 0 <= min <= max"
        )
    if not 1 <= scaling.max_replicas <= MAX_DEPLOYMENT_REPLICAS:
        yield f"max is {scaling.max_replicas}, not 1 to {MAX_DEPLOYMENT_REPLICAS}"
    for name in TARGETS:
        most = 1.0 if name in SHARES else MAX_SCALING_TARGET
        value = getattr(scaling, name)
        if not (math.isfinite(value) and 0 <= value <= most):
            yield f"the target {name} is {value:g}, not above 0 and at most {most:g}"
    if not scaling.targets and scaling.max_replicas > max(1, scaling.min_replicas):
        yield f"it has no target to follow; set one of {', '.join(TARGETS)}, such as concurrency = 2"
    for name, value, least, most in (
        ("stable_window_s", scaling.stable_window_s, LEAST_WINDOW_S, MAX_STABLE_WINDOW_S),
        ("panic_window_s", scaling.panic_window_s, LEAST_WINDOW_S, MAX_STABLE_WINDOW_S),
        ("panic_threshold", scaling.panic_threshold, 1.1, 1000.0),
        ("tolerance", scaling.tolerance, 0.0, 1.0),
        ("up_delay_s", scaling.up_delay_s, 0.0, MAX_SCALING_DELAY_S),
        ("down_delay_s", scaling.down_delay_s, 0.0, MAX_SCALING_DELAY_S),
        ("idle_s", scaling.idle_s, 1.0, MAX_IDLE_S),
    ):
        if not (math.isfinite(value) and least <= value <= most):
            yield f"{name} is {value:g}, not {least:g} to {most:g}"
    if scaling.panic_window_s > scaling.stable_window_s:
        yield (
            f"panic_window_s is {scaling.panic_window_s:g} and stable_window_s {scaling.stable_window_s:g}; "
            "the window for bursts is the shorter one"
        )
