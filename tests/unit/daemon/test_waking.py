"""A node that slept, by its clock."""

from __future__ import annotations

from meshnode.daemon.waking import Waking
from meshnode.events import Event, Woke
from meshnode.limits import SLEPT_S, WAKE_LOOK_S, WAKE_PROOF_S


class Hands:
    """A clock that is set by hand, and what was done."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.done: list[object] = []
        self.waking = Waking(self, self.tell, self.done.append, lambda: self.done.append("where"))

    def now(self) -> float:
        return self.now_s

    def wall_s(self) -> float:
        return self.now_s

    def tell(self, event: Event) -> None:
        self.done.append(event)


def test_a_look_that_comes_seconds_late_follows_a_sleep() -> None:
    hands = Hands()
    hands.now_s += WAKE_LOOK_S + 3600.0
    assert hands.waking.look() == 3600.0
    assert hands.done == ["where", Woke(3600.0), WAKE_PROOF_S]
    hands.now_s += WAKE_LOOK_S
    assert hands.waking.look() == 0.0
    assert len(hands.done) == 3


def test_a_busy_machine_did_not_sleep() -> None:
    hands = Hands()
    hands.now_s += WAKE_LOOK_S + SLEPT_S - 0.1
    assert hands.waking.look() == 0.0
    assert hands.done == []
    assert "102" in repr(hands.waking) or "103" in repr(hands.waking)
