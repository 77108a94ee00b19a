"""Which requests a replica refuses as soon as they come: those that it cannot answer in time, and only while others wait.

A queue that takes everybody fills up to what callers wait for, and then each answer is worked on until just after
nobody waits for it. So a request comes in only if it is expected to be answered within its time::

    wait = (in_system + 1 - slots) / slots x service     in_system: running and queued here
    in time = wait + service <= part x remaining         part: by priority

A lower priority may use a smaller part of its time, so that room is left for what is more urgent; the others leave
some too, since runs differ. While a slot is free nobody is refused: the estimate may be wrong, and the slot is for
nothing better.

What has waited is looked at once more when its turn comes: with less time left than an ordinary run takes, it would
most likely be cut off at its end, and a run that nobody can use costs another one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from meshnode.errors import Saturated

if TYPE_CHECKING:
    from meshnode.types import Priority

PARTS: Final[tuple[float, ...]] = (0.5, 0.8, 1.0)
"""Of its remaining time that a request may be expected to need, by priority: low, normal, high."""

LAST_CALL: Final = 0.75
"""Of an ordinary run's time that must be left when the turn comes, while others wait."""


def expected_wait_s(in_system: int, slots: int, service_s: float) -> float:
    """Return how long one more request is expected to wait, in seconds.

    Args:
        in_system: Requests that run or wait here.
        slots: That run at once, at least 1.
        service_s: Of one run, in seconds.
    """
    return max(0, in_system + 1 - slots) / slots * service_s


def check_in_time(
    in_system: int, slots: int, service_s: float, remaining_s: float, priority: Priority
) -> None:
    """Refuse a request that is not expected to be answered in its time.

    Args:
        in_system: Requests that run or wait here.
        slots: That run at once, at least 1.
        service_s: Of one run, in seconds.
        remaining_s: Time that the request has left.
        priority: Of the request.

    Raises:
        Saturated: if it has to wait, and too long; it says when what waits now should be worked off.
    """
    wait_s = expected_wait_s(in_system, slots, service_s)
    if wait_s <= 0 or wait_s + service_s <= PARTS[priority] * remaining_s:
        return
    raise Saturated(
        f"{in_system} requests are before it here: it would wait {wait_s:.3g} s, and has {remaining_s:.3g} s left",
        wait_s,
    )


def is_too_late(service_s: float, remaining_s: float) -> bool:
    """Whether a request whose turn has come should make room for those behind it."""
    return remaining_s < LAST_CALL * service_s
