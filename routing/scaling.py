"""How many replicas a deployment should have: windows, bursts, tolerance, delays, and sleep.

`Autoscaler` is told at each look, about once a second, what its steward sees, and says how many replicas there
are to be from now on. It has no clock and draws nothing. The rules, those of Knative's autoscaler for requests
with the tolerance and the stabilisation of Kubernetes' one for resources:

- What is needed (`meshnode.routing.demand`) is averaged over the *stable window*. Where the average over the
  short *panic window* exceeds the present capacity `panic_threshold` times, the autoscaler *panics*: until no
  burst was that great for a whole stable window, the greater of both averages counts, and nothing is let go.
- The number is that of the first nodes, in the order of placement, that together hold what is needed. Nothing
  changes while need and capacity differ by no more than the *tolerance*.
- More are wanted once that was needed for all of `up_delay_s`; fewer, once no more was needed for all of
  `down_delay_s`, nor for `KEEP_STARTS` times what a replica takes to start: what is dear to have back is kept longer.
- With a minimum of 0 the last replica goes after `idle_s` without any request; a request that waits brings it back
  at once.
- A new steward has not seen what the one before saw: it adds nothing before its panic window is full, since a second's
  requests say little, and lets nothing go before the stable window is.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final, NamedTuple

from meshnode.routing.demand import Look, Need, look_of, need_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from meshnode.routing.demand import Sight
    from meshnode.state.scaling import Scaling

KEEP_STARTS: Final = 2.0
"""For how many times the time that it takes to start a replica is kept that is not needed."""

_ROUNDING: Final = 1e-9
"""A sum of capacities that is short by so much, relatively, is not short."""


class Decision(NamedTuple):
    """How many replicas there are to be from now on.

    Attributes:
        replicas: Their number.
        reason: For people; empty where the number is the one of before.
        is_panic: Whether a burst is being followed.
    """

    replicas: int
    reason: str
    is_panic: bool


class Autoscaler:
    """Decides for one deployment, as long as one node is its steward.

    Attributes:
        replicas: How many there are to be.
    """

    def __init__(self, replicas: int, now: float) -> None:
        """Go on from a number of replicas.

        Args:
            replicas: As the steward before left it, or the number to begin with.
            now: Monotonic seconds.
        """
        self.replicas = replicas
        self._began = now
        self._seen_from = now  # since when what is seen says something of what is needed
        self._active_at = now
        self._panic_until = float("-inf")
        self._looks: deque[Look] = deque()
        self._asked_for: deque[tuple[float, int]] = deque()  # numbers that the need alone asked for

    def __repr__(self) -> str:
        return f"<Autoscaler: {self.replicas} replicas, {len(self._looks)} looks>"

    def look(self, scaling: Scaling, sight: Sight, now: float) -> Decision:
        """Take what is seen now, and decide.

        Args:
            scaling: The rules; they may be others than at the look before.
            sight: What the steward sees.
            now: Monotonic seconds, never less than at the look before.
        """
        look = look_of(sight, now)
        self._looks.append(look)
        while self._looks[0].at <= now - scaling.stable_window_s:
            self._looks.popleft()
        is_active = look.asked > 0 or look.in_flight > 0 or sight.waiting > 0
        if is_active:
            self._active_at = now
        before = self.replicas
        if before == 0 or not scaling.min_replicas <= before <= scaling.max_replicas:
            reason = self._set(scaling, sight, now, is_active=is_active)
        else:
            reason = self._follow(scaling, sight, now)
        is_panic = now < self._panic_until
        return Decision(self.replicas, "" if self.replicas == before else reason, is_panic)

    def _set(self, scaling: Scaling, sight: Sight, now: float, *, is_active: bool) -> str:
        """Wake up, or come back within bounds that have changed."""
        bounds = f"{scaling.min_replicas} to {scaling.max_replicas} replicas are allowed"
        wanted = scaling.clamped(self.replicas)
        if wanted != self.replicas:
            reason = bounds
        elif is_active:
            wanted = 1
            reason = (
                f"{sight.waiting} request(s) wait for it" if sight.waiting else "it is asked for"
            )
        else:
            return ""
        if self.replicas == 0:  # what was seen while it slept says nothing of what it needs
            self._looks.clear()
            self._seen_from = now
        self.replicas = wanted
        self._asked_for.clear()
        return reason

    def _follow(self, scaling: Scaling, sight: Sight, now: float) -> str:
        """Follow what is needed; return why the number is another one now."""
        need = self._need(scaling, sight, now)
        asked_for = target_count(self.replicas, need.units, sight.units, scaling.tolerance)
        keep_s = KEEP_STARTS * sight.start_s
        idle_s = now - self._active_at
        if scaling.min_replicas == 0 and idle_s >= max(scaling.idle_s, keep_s):
            self.replicas = 0
            return f"no request came for {idle_s:.0f} s"
        asked_for = scaling.clamped(max(1, asked_for))
        hold_s = max(scaling.down_delay_s, keep_s)
        self._asked_for.append((now, asked_for))
        while self._asked_for[0][0] < now - max(hold_s, scaling.up_delay_s):
            self._asked_for.popleft()
        lately = min(n for at, n in self._asked_for if at >= now - scaling.up_delay_s)
        seen_s = now - self._seen_from
        if lately > self.replicas and seen_s >= max(scaling.up_delay_s, scaling.panic_window_s):
            return self._changed_to(lately, need, sight)
        most = max(n for at, n in self._asked_for if at >= now - hold_s)
        has_seen = now - self._began >= max(hold_s, scaling.stable_window_s)
        if most < self.replicas and has_seen and now >= self._panic_until:
            return self._changed_to(most, need, sight)
        return ""

    def _need(self, scaling: Scaling, sight: Sight, now: float) -> Need:
        """Return what counts: the stable window's need, and while a burst is followed no less than the burst's."""
        stable = need_of(self._looks, scaling, sight.unit_slots)
        lately = [each for each in self._looks if each.at > now - scaling.panic_window_s]
        burst = need_of(lately, scaling, sight.unit_slots)
        seen_s = now - self._seen_from
        have = held(sight.units, self.replicas)
        if seen_s >= scaling.panic_window_s and burst.units >= scaling.panic_threshold * have > 0:
            self._panic_until = now + scaling.stable_window_s
        if now < self._panic_until and burst.units > stable.units:
            return Need(burst.units, f"{burst.why} (a burst)")
        return stable

    def _changed_to(self, replicas: int, need: Need, sight: Sight) -> str:
        self.replicas = replicas
        said = f"{need.why}: {need.units:.1f} units are needed"
        if need.units > held(sight.units, len(sight.units)) * (1 + _ROUNDING):
            return f"{said}, all {len(sight.units)} nodes that may serve it hold less"
        return f"{said}, {replicas} replica(s) hold {held(sight.units, replicas):.1f}"


def held(units: Sequence[float], replicas: int) -> float:
    """Return what the first so many nodes hold together."""
    return sum(units[:replicas])


def count_for(need: float, units: Sequence[float]) -> int:
    """Return how many of the nodes, in order, hold what is needed; all of them where even they do not."""
    if need <= 0:
        return 0
    total = 0.0
    for count, each in enumerate(units, start=1):
        total += each
        if total >= need * (1 - _ROUNDING):
            return count
    return len(units)


def target_count(current: int, need: float, units: Sequence[float], tolerance: float) -> int:
    """Return the number of replicas that a need asks for.

    Args:
        current: The present number, which stays while it is right within the tolerance.
        need: In units.
        units: Capacity of each node, in the order of placement.
        tolerance: The share by which need and capacity may differ.
    """
    have = held(units, current)
    if need > have * (1 + tolerance):
        return max(current, count_for(need, units))
    if have > need * (1 + tolerance):
        return min(current, count_for(need, units))
    return current
