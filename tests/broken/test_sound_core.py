"""The core as it is: whatever happens to it, no invariant accuses it, and watching changes nothing."""

from __future__ import annotations

import pytest

from meshnode.sim.invariants import Invariants
from meshnode.sim.running.playing import play
from meshnode.sim.running.timeline import failure
from tests.broken.rehearsals import EVERYTHING


@pytest.mark.parametrize("seed", range(1, 5))
def test_the_sound_core_is_not_accused(seed: int) -> None:
    result = play(EVERYTHING, seed=seed)
    assert result.ok, failure(result)
    assert len(result.calls) > 300


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(100, 200))
def test_the_sound_core_is_not_accused_over_many_seeds(seed: int) -> None:
    result = play(EVERYTHING, seed=seed)
    assert result.ok, failure(result)


def test_a_run_is_the_same_whether_it_is_watched_or_not(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = play(EVERYTHING, seed=1)
    monkeypatch.setattr(Invariants, "watch_node", lambda *_: None)
    monkeypatch.setattr(Invariants, "quiet", lambda *_: None)
    unwatched = play(EVERYTHING, seed=1)
    assert watched.trace_hash == unwatched.trace_hash
    assert watched.calls == unwatched.calls
