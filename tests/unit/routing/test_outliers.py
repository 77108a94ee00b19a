from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from meshnode.routing.config import RoutingConfig
from meshnode.routing.outliers import LATENCY, MIN_COMPARED, SUCCESS_RATE, Tally, outliers

CONFIG = RoutingConfig()


def tally(*, failed: int = 0, ended: int = 40, slowness: float = 1.0) -> Tally:
    made = Tally(0.0)
    for number in range(ended):
        made.count(ok=number >= failed, slowness=slowness if number >= failed else None)
    return made


def found(*tallies: Tally) -> dict[int, str]:
    return outliers(dict(enumerate(tallies)), CONFIG)


def test_a_replica_that_fails_a_third_of_its_requests_stands_out_among_a_few() -> None:
    assert found(tally(failed=13), tally(), tally(failed=1)) == {0: SUCCESS_RATE}


def test_a_few_failures_more_than_none_at_all_are_no_difference() -> None:
    assert found(tally(failed=4), tally(), tally(), tally()) == {}


def test_where_all_fail_alike_none_stands_out() -> None:
    assert found(*[tally(failed=20) for _ in range(5)]) == {}


def test_of_two_that_differ_nobody_knows_which_is_wrong() -> None:
    assert found(tally(failed=40), tally()) == {}


def test_who_was_hardly_asked_enters_no_comparison() -> None:
    assert found(tally(ended=19, failed=19), tally(), tally()) == {}
    assert found(tally(failed=40), tally(), tally(ended=19)) == {}


def test_a_replica_far_slower_than_it_says_stands_out_and_one_the_score_can_learn_does_not() -> (
    None
):
    assert found(tally(slowness=20.0), tally(), tally(slowness=1.5)) == {0: LATENCY}
    assert found(tally(slowness=6.0), tally(), tally(slowness=1.5)) == {}


def test_one_that_gets_all_requests_because_it_lies_stands_out_beside_those_without_any() -> None:
    assert found(tally(slowness=500.0), tally(ended=0), tally(ended=0)) == {0: LATENCY}


def test_others_with_few_answers_count_as_about_as_fast_as_they_say_and_do_not_stand_out() -> None:
    few = tally(ended=6, slowness=50.0)
    assert found(tally(slowness=50.0), few, few) == {}
    assert found(few, tally(), tally()) == {}


def test_when_expectations_are_wrong_everywhere_none_is_slow() -> None:
    assert found(*[tally(slowness=50.0) for _ in range(4)]) == {}


def test_reprs_tell_the_counts() -> None:
    assert repr(tally(failed=10)) == "<Tally 10 of 40 failed, slowness 1.00>"
    assert repr(Tally(0.0)) == "<Tally 0 of 0 failed, slowness 1.00>"


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.integers(0, 40), st.floats(0.01, 100)), max_size=12))
def test_never_does_everybody_stand_out(each: list[tuple[int, float]]) -> None:
    """Whatever they do: the best of them stays, and below three nobody is compared."""
    tallies = [tally(failed=failed, slowness=slowness) for failed, slowness in each]
    out = found(*tallies)
    if len(tallies) < MIN_COMPARED:
        assert not out
    elif tallies:
        best = max(range(len(tallies)), key=lambda at: tallies[at].answered_share)
        assert out.get(best) != SUCCESS_RATE
        assert len(out) < len(tallies) or LATENCY in out.values()
