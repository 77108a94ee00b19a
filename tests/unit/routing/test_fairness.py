from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from meshnode.routing.fairness import PARTS, FairShares
from meshnode.types import Priority

LOW, NORMAL, HIGH = Priority.LOW, Priority.NORMAL, Priority.HIGH


def fill(shares: FairShares, caller: str, priority: Priority, limit: float, share: int = 1) -> int:
    """Let requests of a caller in until one is refused; return how many came in."""
    count = 0
    while shares.may_enter(caller, share, priority, limit):
        shares.enter(caller, share, priority)
        count += 1
    return count


@pytest.mark.parametrize(("priority", "places"), [(LOW, 60), (NORMAL, 85), (HIGH, 100)])
def test_each_priority_has_its_part_of_the_limit(priority: Priority, places: int) -> None:
    assert fill(FairShares(), "a", priority, 100) == places


def test_the_lower_priority_is_refused_first() -> None:
    shares = FairShares()
    fill(shares, "a", LOW, 100)
    assert fill(shares, "b", NORMAL, 100) > 0
    assert not shares.may_enter("a", 1, LOW, 100)
    assert fill(shares, "c", HIGH, 100) > 0
    assert not shares.may_enter("b", 1, NORMAL, 100)


def test_what_is_more_urgent_takes_all_of_a_callers_own_places_if_it_needs_all() -> None:
    shares = FairShares()
    fill(shares, "a", HIGH, 100)
    assert not shares.may_enter("a", 1, LOW, 100)
    assert not shares.may_enter("a", 1, NORMAL, 100)


def settled(wants: list[tuple[str, Priority, int]], limit: float = 100) -> Counter[str]:
    """Let callers ask for ever; return how many each has in flight once that no longer changes."""
    shares = FairShares()
    running: list[tuple[str, Priority]] = []
    for _ in range(3000):
        for caller, priority, times in wants:
            for _ in range(times):
                if shares.may_enter(caller, 1, priority, limit):
                    shares.enter(caller, 1, priority)
                    running.append((caller, priority))
        for _ in range(3):
            shares.leave(*running.pop(0))
    return Counter(caller for caller, _ in running)


@pytest.mark.parametrize("priority", [NORMAL, HIGH])
def test_who_calls_all_its_requests_urgent_has_no_more_than_its_share(priority: Priority) -> None:
    found = settled([("greedy", priority, 5), ("usual", NORMAL, 5)])
    assert found["greedy"] == pytest.approx(found["usual"], abs=8)


def test_a_caller_below_its_share_is_never_refused_whatever_the_others_call_urgent() -> None:
    shares = FairShares()
    fill(shares, "greedy", HIGH, 100)
    fill(shares, "as greedy", HIGH, 100)
    assert fill(shares, "usual", NORMAL, 100) >= 33
    assert fill(shares, "patient", LOW, 100) >= 15


def test_low_requests_of_a_caller_leave_a_part_of_its_share_to_the_others() -> None:
    found = settled([("patient", LOW, 5), ("usual", NORMAL, 5)])
    assert 0.3 < found["patient"] / found["usual"] < 0.8


def test_a_greedy_caller_does_not_keep_another_out() -> None:
    shares = FairShares()
    fill(shares, "greedy", NORMAL, 100)
    came_in = fill(shares, "modest", NORMAL, 100)
    assert came_in == pytest.approx(42.5, abs=1)
    assert not shares.may_enter("greedy", 1, NORMAL, 100)


def test_places_that_are_free_again_are_shared() -> None:
    """Two callers who both want more than their halves end with halves, whoever was there first."""
    shares = FairShares()
    running = ["greedy"] * fill(shares, "greedy", NORMAL, 100)
    for _ in range(1000):
        for caller in ("greedy", "modest"):
            if shares.may_enter(caller, 1, NORMAL, 100):
                shares.enter(caller, 1, NORMAL)
                running.append(caller)
        shares.leave(running.pop(0), NORMAL)
    assert running.count("modest") == pytest.approx(len(running) / 2, abs=3)


def test_a_caller_alone_has_all_places() -> None:
    shares = FairShares()
    assert fill(shares, "only", NORMAL, 40) == 34


def test_shares_are_in_proportion_to_weights() -> None:
    shares = FairShares()
    fill(shares, "greedy", NORMAL, 100)
    assert fill(shares, "paying", NORMAL, 100, share=3) == pytest.approx(85 * 3 / 4, abs=1)


def test_what_callers_leave_of_their_shares_is_shared_by_the_others() -> None:
    shares = FairShares()
    for number in range(20):
        shares.enter(f"small-{number}", 1, LOW)
    fill(shares, "greedy", HIGH, 50)
    assert fill(shares, "modest", HIGH, 50) == 15


class Entering(RuleBasedStateMachine):
    """Callers of all priorities come and go while the limit changes."""

    def __init__(self) -> None:
        super().__init__()
        self.shares = FairShares()
        self.inside: list[tuple[str, Priority]] = []
        self.limit = 10.0

    @rule(
        caller=st.sampled_from("abcd"), share=st.integers(1, 5), priority=st.sampled_from(Priority)
    )
    def ask(self, caller: str, share: int, priority: Priority) -> None:
        had = sum(1 for name, each in self.inside if name == caller and each >= priority)
        may = self.shares.may_enter(caller, share, priority, self.limit)
        if not had:
            assert may  # who has nothing as urgent is never kept out
        if len(self.inside) < PARTS[priority] * self.limit:
            assert may  # free places are not left idle
        if may:
            self.shares.enter(caller, share, priority)
            self.inside.append((caller, priority))

    @rule(data=st.data())
    def go(self, data: st.DataObject) -> None:
        if self.inside:
            self.shares.leave(*self.inside.pop(data.draw(st.integers(0, len(self.inside) - 1))))

    @rule(limit=st.floats(4, 40))
    def change(self, limit: float) -> None:
        self.limit = limit

    @invariant()
    def counts_are_true(self) -> None:
        assert self.shares.in_flight == len(self.inside)
        callers = len({name for name, _ in self.inside})
        assert repr(self.shares) == f"<FairShares {len(self.inside)} of {callers} callers>"


TestEntering = Entering.TestCase
TestEntering.settings = settings(
    max_examples=60, stateful_step_count=60, deadline=None, derandomize=True
)
