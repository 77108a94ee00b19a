"""Which version a request gets."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest
from msgspec import structs

from meshnode.rollout import Progress
from meshnode.routing.releasing.arms import choose_arm, place_of
from meshnode.state.release import Release, Step

if TYPE_CHECKING:
    from collections.abc import Mapping

PLAN = Release("ab", 1, 2, (Step(0.2), Step(0.6)))
FIRST = Progress((1, 0), "running", 0, 0)


def arm(
    plan: Release = PLAN,
    progress: Progress = FIRST,
    *,
    model: str = "m",
    session: str = "",
    key_id: str = "",
    headers: Mapping[str, str] | None = None,
    draw: float = 0.99,
) -> int:
    return choose_arm(
        plan,
        progress,
        model=model,
        session=session,
        key_id=key_id,
        header=(headers or {}).get,
        draw=draw,
    )


def test_chance_decides_by_the_share_of_the_step() -> None:
    rng = random.Random(1)
    arms = [arm(draw=rng.random()) for _ in range(4000)]
    assert arms.count(2) / len(arms) == pytest.approx(0.2, abs=0.02)


@pytest.mark.parametrize(
    ("progress", "expected"),
    [
        (Progress((1, 0), "preparing", -1, 0), 1),
        (Progress((1, 0), "paused", -1, 0), 1),
        (Progress((1, 0), "rolled_back", 1, 0), 1),
        (Progress((1, 0), "keeping", 2, 0), 2),
        (Progress((1, 0), "paused", 2, 0), 2),
        (Progress((1, 0), "done", 2, 0), 2),
    ],
)
def test_before_and_after_its_steps_all_get_the_same(progress: Progress, expected: int) -> None:
    assert {arm(progress=progress, draw=draw) for draw in (0.0, 0.5, 0.999)} == {expected}
    only = structs.replace(PLAN, split_by="header:group", only=("beta",))
    assert arm(only, progress, headers={"group": "beta"}) == expected
    assert arm(only, progress, headers={"group": "other"}) == expected


@pytest.mark.parametrize("split_by", ["", "session", "key", "header:user"])
def test_the_same_value_gets_the_same_version_and_keeps_the_new_one(split_by: str) -> None:
    plan = structs.replace(PLAN, split_by=split_by)

    def of(number: int, progress: Progress, draw: float) -> int:
        word = f"user {number}"
        return arm(plan, progress, session=word, key_id=word, headers={"user": word}, draw=draw)

    first = [of(number, FIRST, 0.1) for number in range(3000)]
    assert first == [of(number, FIRST, 0.9) for number in range(3000)]
    assert first.count(2) / 3000 == pytest.approx(0.2, abs=0.03)
    later = [of(number, structs.replace(FIRST, step=1), 0.5) for number in range(3000)]
    assert later.count(2) / 3000 == pytest.approx(0.6, abs=0.03)
    assert all(after == 2 for before, after in zip(first, later, strict=True) if before == 2)


@pytest.mark.parametrize("split_by", ["", "session", "key", "header:user"])
def test_chance_decides_where_a_request_lacks_what_decides(split_by: str) -> None:
    plan = structs.replace(PLAN, split_by=split_by)
    assert arm(plan, draw=0.19) == 2
    assert arm(plan, draw=0.21) == 1


def test_only_some_values_of_a_header_get_the_new_version() -> None:
    plan = structs.replace(PLAN, split_by="header:group", only=("beta", "staff"))
    assert arm(plan, headers={"group": "beta"}) == 2
    assert arm(plan, headers={"group": "staff"}) == 2
    assert arm(plan, headers={"group": "others"}, draw=0.0) == 1
    assert arm(plan, draw=0.0) == 1


def test_each_release_and_each_model_asks_other_people_first() -> None:
    words = [f"user {number}" for number in range(500)]
    places = [place_of(PLAN, "m", word) for word in words]
    assert all(0 <= place < 1 for place in places)
    next_one = structs.replace(PLAN, baseline=2, candidate=3)
    for others in (
        [place_of(next_one, "m", word) for word in words],
        [place_of(PLAN, "n", word) for word in words],
    ):
        both = sum(a < 0.2 and b < 0.2 for a, b in zip(places, others, strict=True))
        assert both < 50  # of 100 each, 20 by chance


def test_a_value_that_is_no_text_has_a_place() -> None:
    assert 0 <= place_of(PLAN, "m", "\ud800") < 1
