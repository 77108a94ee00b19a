"""Good releases are not rolled back by chance, bad ones are caught within 2,000 answers of the new version.

The targets: at most 1 % false rollbacks over 200 seeds, with all tries of the gates as `advance` makes them. The traffic
is virtual, and drawn from a seed.
"""

from __future__ import annotations

import pytest

from meshnode.state.release import Gate, Release
from tests.unit.routing.releasing.traffic import GATES, Version, World, plan, released

THREE = World(classes=(5.0, 20.0, 80.0), weights=(0.6, 0.3, 0.1))
ROUGH = World((5.0, 20.0, 80.0), (0.6, 0.3, 0.1), sigma=1.0, drift=1.5, bursts=0.1)
SHADOW = plan(0.0, mirror=1.0, gates=(*GATES, Gate("agreement", 0.99)))

BAD_SEEDS = 50


@pytest.mark.parametrize(
    ("release", "world", "new", "seeds"),
    [
        (plan(0.1, 0.5), World(), Version(), 50),
        (plan(0.5), THREE, Version(), 50),
        (plan(0.2), ROUGH, Version(), 50),
        (SHADOW, THREE, Version(differs=0.002), 50),
    ],
    ids=["canary", "unequal devices", "bursts and drift", "shadow"],
)
def test_good_releases_are_not_rolled_back(
    release: Release, world: World, new: Version, seeds: int
) -> None:
    """200 seeds in all, of which two might be; none is."""
    ends = [released(release, world, new, seed=seed)[0] for seed in range(seeds)]
    assert not [each.reason for each in ends if each.phase == "rolled_back"]


@pytest.mark.parametrize(
    ("release", "world", "new"),
    [
        (plan(0.1), THREE, Version(slower=2.0)),
        (plan(0.1), THREE, Version(slower=1.5)),
        (plan(0.5), World(sigma=0.8), Version(slower=1.5)),
        (plan(0.1), THREE, Version(errors=(0.001, 0.001, 0.2))),
        (plan(0.1), THREE, Version(errors=(0.05,))),
        (SHADOW, World(), Version(differs=0.02)),
    ],
    ids=["twice as slow", "slower", "slower, half", "one device class", "errors", "wrong answers"],
)
def test_a_bad_version_is_caught_within_two_thousand_answers(
    release: Release, world: World, new: Version
) -> None:
    ends = [released(release, world, new, seed=seed) for seed in range(BAD_SEEDS)]
    assert {progress.phase for progress, _ in ends} == {"rolled_back"}
    assert max(answers for _, answers in ends) <= 2000


def test_what_is_caught_is_named_with_its_device_class() -> None:
    errs = Version(errors=(0.0, 0.0, 0.3))
    reasons = [released(plan(0.1), THREE, errs, seed=seed)[0].reason for seed in range(5)]
    assert any("errors" in reason and "on d2" in reason for reason in reasons)


def test_a_version_that_passed_its_steps_is_promoted() -> None:
    progress, answers = released(plan(0.05, 0.2, 0.5), World(), Version(), seed=1, answers=500)
    assert (progress.phase, progress.step, answers) == ("keeping", 3, 1500)
