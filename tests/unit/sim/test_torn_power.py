"""A power cut in the middle of a write: at each depth it may tear what was written last."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meshnode.sim import Region, World, faults
from meshnode.sim.running.wording import fault_text

if TYPE_CHECKING:
    import pytest


def test_a_power_cut_at_depth_a_tears_the_disk_where_it_is_told_to() -> None:
    for torn, found in ((False, 0), (True, 1)):
        with World([Region("eu-west", nodes=3)], depth="A") as world:
            world.start()
            world.apply(faults.PowerOff(nodes=("eu-west-3",), torn=torn, for_s=5.0))
            world.run_for(20.0)
            world.check()
            events = world.result().events
        assert sum(event.kind == "disk.torn" for event in events) == found


def test_a_power_cut_at_depth_b_tears_the_disk_where_it_is_told_to(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torn: list[str] = []
    monkeypatch.setattr(
        "meshnode.sim.virtual.folder.VirtualDisk.tear", lambda disk, _rng: torn.append(repr(disk))
    )
    with World([Region("eu-west", nodes=2)]) as world:
        world.start()
        world.apply(faults.PowerOff(nodes=("eu-west-2",), for_s=2.0))
        world.run_for(4.0)
        assert torn == []
        world.apply(faults.PowerOff(nodes=("eu-west-2",), torn=True))
        assert len(torn) == 1


def test_a_power_cut_says_in_words_that_it_tears() -> None:
    assert fault_text(faults.PowerOff(nodes=("n",), torn=True)) == "power-off n (torn)"
