from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from meshnode.routing.budget import RetryBudget


def test_a_quiet_gateway_has_ten_retries_a_second_over_ten_seconds() -> None:
    budget = RetryBudget(ratio=0.2, floor_per_s=10)
    assert [budget.take(5.5) for _ in range(101)] == [True] * 100 + [False]
    assert not budget.take(15.9)
    assert budget.take(16.0)


def test_a_busy_gateway_has_a_fifth_of_its_requests() -> None:
    budget = RetryBudget(ratio=0.2, floor_per_s=10)
    for _ in range(1000):
        budget.request(3.0)
    granted = sum(budget.take(3.1) for _ in range(500))
    assert granted == 200
    assert repr(budget) == "<RetryBudget 200 of 200 retries used>"


def test_a_long_silence_forgets_everything() -> None:
    budget = RetryBudget(ratio=0.2, floor_per_s=1)
    for _ in range(1000):
        budget.request(3.0)
    assert budget.allowed == 200
    assert budget.take(1e6)
    assert budget.allowed == 10


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.lists(
        st.tuples(st.floats(0, 3), st.integers(0, 60), st.integers(0, 60)), min_size=1, max_size=40
    ),
    st.floats(-1e6, 1e6),
)
def test_no_window_of_ten_seconds_ever_exceeds_the_budget(
    steps: list[tuple[float, int, int]], start: float
) -> None:
    """Whatever the order of requests and retries, at each grant the last 10 s are within limits."""
    budget = RetryBudget(ratio=0.2, floor_per_s=2)
    now = start
    requests: list[float] = []
    grants: list[float] = []
    for delay_s, arriving, retrying in steps:
        now += delay_s
        for _ in range(arriving):
            budget.request(now)
            requests.append(now)
        for _ in range(retrying):
            if budget.take(now):
                grants.append(now)
                recent = sum(at > now - 10 for at in grants)
                assert recent <= max(0.2 * sum(at > now - 10 for at in requests), 20)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.floats(0, 0.5), min_size=1, max_size=100))
def test_a_retry_rate_at_the_floor_is_always_granted(delays_s: list[float]) -> None:
    """At most one retry each 0.55 s under a floor of 2 per second: none is refused."""
    budget = RetryBudget(ratio=0.0, floor_per_s=2)
    now = 0.0
    for delay_s in delays_s:
        now += 0.55 + delay_s
        assert budget.take(now)
