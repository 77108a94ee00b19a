"""How much capacity a deployment needs, in units of its median device, from what its steward sees.

A *unit* is what the median device of the deployment can do. A node that runs the model twice as fast, or twice
as many at once, holds two. That makes what is measured on unequal devices comparable: a request that is in
flight on a device of double speed would be there twice as long on the median one, so it counts twice, and what
comes out does not depend on who happened to serve it (Little's law: arrivals times the median device's time).

From each target follows a need:

| target | need in units |
|---|---|
| concurrency | requests in flight, as on the median device / target |
| qps | requests per second that came to the gateways / target |
| queue, latency | the work that arrives / the utilisation at which so many wait, or it takes so long, on average |
| cpu, accelerator, memory | sum over the replicas of units x share in use / target |

The utilisation for a latency L of a run that takes S is 1 - S/L, and for q that wait it solves q = u²/(1 - u):
both of one queue with one server, which is more careful than a device with several slots needs. Scaling by the
ratio of measured to wanted latency instead would swing: a latency hardly falls below S, and grows without bound.

No target lets less be held than what is being worked at needs at `FULL` utilisation: a concurrency above the
slots, say, would call for fewer replicas than can do the work, and get them until the queues show it.

Where there are too few replicas, requests pile up: that backlog is no reason for even more replicas than the
arrivals call for. So work is what arrives (requests per second times the time of a run), and in flight counts for at
most `BACKLOG` times what the arrivals alone would keep in flight. Where gateways do not tell how many requests come,
what runs and waits has to do.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

    from meshnode.state.scaling import Scaling

FULL: Final = 0.9
"""Utilisation above which queues grow whatever is wanted."""

LEAST_UTILISATION: Final = 0.2
"""A latency close to the run time itself would ask for endless capacity; so much is used at least."""

BACKLOG: Final = 1.25
"""What in flight counts for at most, in what the arrivals alone would keep in flight: two slots that are half busy
have a third more in their queue than run."""


class ReplicaSight(NamedTuple):
    """A ready replica, as the steward sees it.

    Attributes:
        units: Capacity of its node.
        slots: Requests that it runs at once.
        in_system: Requests that run or wait there.
        service_s: Time of one run there lately; 0 if unknown.
        cpu: Share of its node's processors in use, or None if that is not told; likewise the others.
        accelerator: Share of its busiest accelerator's time.
        memory: Share of its memory.
    """

    units: float
    slots: int
    in_system: int
    service_s: float = 0.0
    cpu: float | None = None
    accelerator: float | None = None
    memory: float | None = None


class Sight(NamedTuple):
    """What the steward sees of a deployment at one look.

    Attributes:
        units: Capacity of each node that may serve it, in the order of placement.
        unit_slots: Requests that the median device runs at once.
        replicas: Those that are ready.
        asked: Requests that came to the mesh's gateways since the look before.
        over_s: Seconds since then.
        waiting: Requests that wait at gateways because no replica is there.
        start_s: Seconds from wanting a replica to having it, lately; 0 if unknown.
    """

    units: tuple[float, ...]
    unit_slots: float = 1.0
    replicas: tuple[ReplicaSight, ...] = ()
    asked: float = 0
    over_s: float = 1.0
    waiting: int = 0
    start_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Look:
    """One sight, added up, in units where nothing else is said.

    Attributes:
        at: When (monotonic seconds).
        in_flight: Requests in flight, as they would be on the median device.
        busy: Capacity that is being worked with.
        excess: Work that waits, beyond what runs.
        ready: Capacity of the ready replicas.
        unit_service_s: Time of one run on the median device; 0 if unknown.
        asked: Requests that came.
        over_s: Seconds in which they did.
        cpu: Capacity times share in use; likewise the others.
        accelerator: See `cpu`.
        memory: See `cpu`.
    """

    at: float
    in_flight: float = 0.0
    busy: float = 0.0
    excess: float = 0.0
    ready: float = 0.0
    unit_service_s: float = 0.0
    asked: float = 0.0
    over_s: float = 0.0
    cpu: float = 0.0
    accelerator: float = 0.0
    memory: float = 0.0


class Need(NamedTuple):
    """What is needed.

    Attributes:
        units: How much capacity.
        why: For people: the target that decides, and what was measured.
    """

    units: float
    why: str = "nothing is asked of it"


def look_of(sight: Sight, now: float) -> Look:
    """Add up what is seen at one moment."""
    in_flight = busy = excess = ready = 0.0
    services: list[float] = []
    for each in sight.replicas:
        slots = max(1, each.slots)
        speed = each.units * sight.unit_slots / slots  # of one run, relative to the median device
        ready += each.units
        in_flight += each.in_system * speed
        busy += each.units * min(1.0, each.in_system / slots)
        excess += each.units * max(0.0, each.in_system / slots - 1.0)
        if each.service_s > 0:
            services.append(each.service_s * speed)
    return Look(
        now,
        in_flight,
        busy,
        excess,
        ready,
        _median(services),
        sight.asked,
        sight.over_s,
        _in_use([(each.units, each.cpu) for each in sight.replicas], ready),
        _in_use([(each.units, each.accelerator) for each in sight.replicas], ready),
        _in_use([(each.units, each.memory) for each in sight.replicas], ready),
    )


def need_of(looks: Sequence[Look], scaling: Scaling, unit_slots: float) -> Need:
    """Return the greatest of the needs that follow from the targets, over these looks.

    Args:
        looks: Those of a window.
        scaling: The targets.
        unit_slots: Requests that the median device runs at once.
    """
    if not looks:
        return Need(0.0)
    mean = _mean(looks)
    rate = mean.asked / mean.over_s if mean.over_s > 0 else 0.0
    needs = [
        _need(name, target, mean, rate, max(1.0, unit_slots))
        for name, target in scaling.targets.items()
    ]
    busy = Need(mean.busy / FULL, f"{mean.busy:.2f} units are worked with")
    return max([*needs, busy], key=lambda need: need.units)


def _need(name: str, target: float, mean: Look, rate: float, unit_slots: float) -> Need:
    arriving = rate * mean.unit_service_s / unit_slots  # work, in units; 0 if unknown
    match name:
        case "concurrency":
            most = BACKLOG * arriving * unit_slots if arriving else math.inf
            in_flight = min(mean.in_flight, most)
            said = f"{in_flight:.1f} in flight, {target:g} per unit are wanted"
            return Need(in_flight / target, f"concurrency: {said}")
        case "qps":
            said = f"{rate:.1f} requests per second, {target:g} per unit are wanted"
            return Need(rate / target, f"qps: {said}")
        case "queue":
            share = (math.sqrt(target * target + 4 * target) - target) / 2
            waits = mean.excess * unit_slots
            said = f"{waits:.1f} wait, {target:g} per unit are wanted"
            return _queueing(mean, arriving, share, target / unit_slots, f"queue: {said}")
        case "latency_ms":
            service_ms = 1000 * mean.unit_service_s
            share = 1.0 - service_ms / target
            share_kept = min(FULL, max(LEAST_UTILISATION, share))
            said = f"a run takes {service_ms:.1f} ms, {target:g} ms with its wait are wanted"
            allowed = share_kept * share_kept / (1 - share_kept)
            return _queueing(mean, arriving, share, allowed, f"latency: {said}")
        case _:
            used: float = getattr(mean, name)
            share = used / mean.ready if mean.ready else 0.0
            return Need(used / target, f"{name}: {share:.0%} in use, {target:.0%} are wanted")


def _queueing(mean: Look, arriving: float, share: float, allowed: float, why: str) -> Need:
    """Return the need for a utilisation: of what arrives, or if that is not told, of what runs and waits too long."""
    share = min(FULL, max(LEAST_UTILISATION, share))
    work = arriving or mean.busy + max(0.0, mean.excess - allowed * mean.ready)
    return Need(work / share, why)


def _mean(looks: Sequence[Look]) -> Look:
    """Return the looks' mean; what came in them is added up."""
    count = len(looks)
    services = [each.unit_service_s for each in looks if each.unit_service_s > 0]
    return Look(
        looks[-1].at,
        sum(each.in_flight for each in looks) / count,
        sum(each.busy for each in looks) / count,
        sum(each.excess for each in looks) / count,
        sum(each.ready for each in looks) / count,
        services[-1] if services else 0.0,
        sum(each.asked for each in looks),
        sum(each.over_s for each in looks),
        sum(each.cpu for each in looks) / count,
        sum(each.accelerator for each in looks) / count,
        sum(each.memory for each in looks) / count,
    )


def _in_use(shares: Sequence[tuple[float, float | None]], ready: float) -> float:
    """Return capacity times share in use; who tells stands for those that do not."""
    told = [(units, share) for units, share in shares if share is not None]
    units_told = sum(units for units, _ in told)
    if units_told <= 0:
        return 0.0
    return sum(units * share for units, share in told) * ready / units_told


def _median(values: list[float]) -> float:
    ordered = sorted(values)
    if not ordered:
        return 0.0
    middle = len(ordered) // 2
    if len(ordered) % 2:
        return ordered[middle]
    return (ordered[middle - 1] + ordered[middle]) / 2
