"""Each story is about a mechanism, and what it expects does not hold when that is broken.

The mechanisms are broken in the real code for the time of one test, so gently that no invariant of a core is
offended: nodes fail late, or choose badly, and every request still gets its one answer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from meshnode.membership import suspicion
from meshnode.membership.probing import Prober
from meshnode.routing import breaker, choice
from meshnode.routing.attempts import Attempts
from meshnode.routing.releasing import progress
from meshnode.routing.releasing.evidence import EvidenceBook
from meshnode.routing.releasing.gates import Judgement
from meshnode.sim.running.expectations import condition
from meshnode.sim.running.playing import play
from meshnode.sim.scenario.reading import read

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshnode.routing.request import RoutedRequest

Patch = pytest.MonkeyPatch


def probes_blame_nobody(patch: Patch) -> str:
    """A probe that nobody answered makes nobody suspect."""
    right = Prober.judge
    patch.setattr(Prober, "judge", lambda *about: (None, right(*about)[1]))
    return "mesh"


def suspicions_last_too_long(patch: Patch) -> str:
    """A suspect is given twenty times as long to refute."""
    right = suspicion.bounds_s
    patch.setattr(suspicion, "bounds_s", lambda *about: tuple(20 * each for each in right(*about)))
    return "mesh"


def breakers_never_open(patch: Patch) -> str:
    """Whatever fails, a breaker stays as it is."""
    stays = dict.fromkeys(breaker._ACTIONS, breaker.Breaker._stay)
    patch.setattr(breaker, "_ACTIONS", stays)
    return "mesh"


def all_nodes_seem_equally_near(patch: Patch) -> str:
    """Routing takes every round trip to be a millisecond."""
    right = choice.Candidate.expected_ms

    def equally_near(self: choice.Candidate, request: RoutedRequest, now: float) -> float:
        true_ms, self.path.rtt_ms = self.path.rtt_ms, 1.0
        try:
            return right(self, request, now)
        finally:
            self.path.rtt_ms = true_ms

    patch.setattr(choice.Candidate, "expected_ms", equally_near)
    return "mesh"


def nothing_is_tried_again(patch: Patch) -> str:
    """An attempt that fails is its request's last."""
    patch.setattr(Attempts, "_why_not_again", lambda self, _now: self._error)
    return "mesh"


def gates_find_nothing(patch: Patch) -> str:
    """Whatever was seen of a new version, all is well."""
    patch.setattr(progress, "judge", lambda *_about: Judgement("pass", "all is well"))
    return "mesh"


def all_devices_seem_alike(patch: Patch) -> str:
    """What gateways see of a new version they note without the kind of device."""
    right = EvidenceBook.answered

    def alike(
        self: EvidenceBook, version: int, _device: str, run_ms: float, *, failed: bool
    ) -> None:
        right(self, version, "", run_ms, failed=failed)

    patch.setattr(EvidenceBook, "answered", alike)
    return "mesh"


def replicas_are_chosen_at_random(_patch: Patch) -> str:
    """The policy is `random`."""
    return "random"


BROKEN: list[tuple[str, Callable[[Patch], str], str]] = [
    ("region-loss", probes_blame_nobody, "detection_s"),
    ("region-loss", all_nodes_seem_equally_near, "local_share"),
    ("region-loss", replicas_are_chosen_at_random, "local_share"),
    ("lids-closing", probes_blame_nobody, "detection_s"),
    ("flapping-node", nothing_is_tried_again, "error_rate"),
    ("sinkhole", breakers_never_open, "failed_attempt_share"),
    ("canary-slow", gates_find_nothing, "releases_rolled_back"),
    ("canary-erring-on-one-device", all_devices_seem_alike, "releases_rolled_back"),
]


@pytest.mark.parametrize(("name", "broken", "metric"), BROKEN)
def test_a_story_does_not_hold_when_its_mechanism_is_broken(
    name: str, broken: Any, metric: str, monkeypatch: Patch
) -> None:
    result = play(read(name), policy=broken(monkeypatch))
    assert not result.violations
    missed = [each.expect for each in result.verdicts if not each.holds]
    assert metric in {each.metric for each in missed}, [condition(each) for each in missed]


@pytest.mark.parametrize("name", ["region-loss", "lids-closing"])
def test_a_story_with_suspicions_that_last_too_long_is_ended_by_an_invariant(
    name: str, monkeypatch: Patch
) -> None:
    result = play(read(name), policy=suspicions_last_too_long(monkeypatch))
    assert [each.invariant for each in result.violations] == ["suspicion-time"]
