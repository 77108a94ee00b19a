"""Stories of autoscaled models in a whole mesh: sleep and waking, stewards that are lost, partitions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from meshnode.sim.mesh import SimMesh
from meshnode.sim.model_behaviour import ModelBehaviour
from meshnode.sim.serving import sim_manifest
from meshnode.state.drain import Drain
from meshnode.state.scaling import Scaling
from meshnode.state.steward import StewardWord, steward_key
from meshnode.stewardship import LOOK_S, STOOD_STILL_S

if TYPE_CHECKING:
    from meshnode.sim.trace import Record
    from meshnode.stewardship import ScalingView

DIGITS = sim_manifest("digits")
NAMES = [f"box-{number}" for number in range(8)]
LOAD_S = 2.0
WAKE_S = LOAD_S + 0.2
HAND_OVER_S = 10.0

SLEEPY = Scaling(
    0, 4, concurrency=2, stable_window_s=20, panic_window_s=4, down_delay_s=5, idle_s=20
)
BUSY = Scaling(2, 8, qps=10, stable_window_s=20, panic_window_s=4, down_delay_s=5)


def deployed(scaling: Scaling, *, replicas: int = 1, seed: int = 1) -> SimMesh:
    """Return a mesh of eight alike nodes with an autoscaled model, some seconds after its deployment."""
    mesh = SimMesh(seed)
    for name in NAMES:
        mesh.add(name, "eu")
    mesh.run_for(8.0)
    mesh.behave(DIGITS, ModelBehaviour(0.02, fetch_s=0.5, load_s=LOAD_S))
    mesh.deploy(NAMES[0], DIGITS, replicas=replicas, scaling=scaling)
    mesh.run_for(8.0)
    return mesh


def view(mesh: SimMesh, name: str = "") -> ScalingView:
    """Return what a running node shows of the model."""
    node = mesh.node(name or next(iter(mesh.world.running())))
    deployment = node.deployment("digits")
    assert deployment is not None
    return node.scaling(deployment)


def steward(mesh: SimMesh, name: str = "") -> str:
    return mesh.name_of(view(mesh, name).steward)


def agreed(mesh: SimMesh) -> bool:
    """Whether all running nodes hold the same word for the one that counts."""
    seen = {view(mesh, name)[2:] for name in mesh.world.running()}
    return len(seen) == 1


def told(mesh: SimMesh, *kinds: str) -> list[Record]:
    return [record for kind in kinds for record in mesh.world.trace.find(kind)]


def hold_load(mesh: SimMesh, per_s: float, seconds: float) -> None:
    """Send requests evenly to all gateways, and let them be answered."""
    load = mesh.load([*mesh.world.running()], "digits", rate_per_s=per_s, duration_s=seconds)
    mesh.run_for(seconds)
    assert load.requests


# Sleep


def test_a_model_that_nobody_asks_goes_to_sleep_and_every_node_knows_why() -> None:
    mesh = deployed(SLEEPY)
    assert len(mesh.serving("digits")) == 1
    mesh.run_for(30.0)
    assert mesh.serving("digits") == []
    assert {view(mesh, name).wanted for name in NAMES} == {0}
    assert view(mesh).reason == "no request came for 20 s"


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_request_that_wakes_a_model_waits_for_its_load_and_hardly_longer(seed: int) -> None:
    mesh = deployed(SLEEPY, seed=seed)
    mesh.run_for(30.0)
    for number, gateway in enumerate(NAMES):
        request = mesh.request(gateway, "digits")
        mesh.run_for(5.0)
        assert request.ok
        assert request.latency_s <= WAKE_S
        assert len(mesh.serving("digits")) == 1
        if number == 2:
            break
        mesh.run_for(40.0)
        assert mesh.serving("digits") == []
    ups = told(mesh, "scale.up")
    assert [each.detail.partition(":")[0] for each in ups] == ["0 -> 1 replicas"] * 3


def test_a_crowd_that_finds_a_model_asleep_is_answered_and_wakes_it_once() -> None:
    mesh = deployed(SLEEPY)
    mesh.run_for(30.0)
    requests = [mesh.request(NAMES[number % 8], "digits") for number in range(40)]
    mesh.run_for(10.0)
    assert all(each.ok for each in requests)
    assert max(each.latency_s for each in requests) <= WAKE_S + 40 * 0.02
    assert {each.detail[:6] for each in told(mesh, "scale.up")} == {"0 -> 1"}


def test_a_model_wakes_also_when_its_steward_has_just_died() -> None:
    mesh = deployed(SLEEPY)
    mesh.run_for(30.0)
    gone = steward(mesh)
    mesh.crash(gone)
    gateway = next(name for name in NAMES if name != gone)
    request = mesh.request(gateway, "digits", timeout_s=30.0)
    mesh.run_for(HAND_OVER_S + 5.0)
    retried = mesh.request(gateway, "digits", timeout_s=30.0)
    mesh.run_for(10.0)
    assert request.outcome is not None
    assert retried.ok
    assert steward(mesh, gateway) != gone


# Stewards


def test_more_requests_than_the_replicas_are_meant_for_bring_more() -> None:
    mesh = deployed(BUSY, replicas=2)
    hold_load(mesh, 58, 30.0)
    assert view(mesh).wanted == 6
    assert len(mesh.serving("digits")) == 6
    assert agreed(mesh)
    mesh.run_for(60.0)
    assert len(mesh.serving("digits")) == 2
    assert len({each.node for each in told(mesh, "scale.up", "scale.down")}) == 1


@pytest.mark.parametrize("how", ["crash", "power_off", "freeze", "leave"])
def test_another_node_takes_over_from_a_steward_that_is_lost(how: str) -> None:
    mesh = deployed(BUSY, replicas=5)
    gone, begun = steward(mesh), mesh.world.now()
    before = view(mesh)
    if how == "freeze":
        mesh.world.freeze(gone)
    else:
        getattr(mesh, how)(gone)
    mesh.run_for(HAND_OVER_S)
    took = [each for each in told(mesh, "steward.changed") if each.time_s > begun]
    assert len(took) == 1
    others = [name for name in NAMES if name != gone]
    after = view(mesh, took[0].node)
    assert {view(mesh, name)[2:] for name in others} == {after[2:]}
    # It goes on from what was decided: the same number, the next epoch.
    assert (after.wanted, after.epoch, after.reason) == (5, before.epoch + 1, before.reason)
    assert told(mesh, "scale.up", "scale.down") == []


def test_a_steward_that_is_lost_in_the_middle_of_a_rise_is_followed_by_one_that_ends_it() -> None:
    mesh = deployed(BUSY, replicas=2)
    load = mesh.load(
        [name for name in NAMES if name != steward(mesh)], "digits", rate_per_s=78, duration_s=60.0
    )
    mesh.run_until(lambda: view(mesh).wanted > 3, limit_s=20.0)
    gone = steward(mesh)
    mesh.crash(gone)
    mesh.run_for(HAND_OVER_S + 30.0)
    other = next(name for name in NAMES if name != gone)
    assert view(mesh, other).wanted == 7  # all that are left
    steps = [each.detail.partition(" replicas")[0] for each in told(mesh, "scale.up")]
    pairs = [tuple(map(int, each.split(" -> "))) for each in steps]
    # Each step begins where the one before ended, whoever made it.
    assert [begin for begin, _ in pairs] == [2, *(end for _, end in pairs[:-1])]
    assert len({each.node for each in told(mesh, "scale.up")}) == 2
    mesh.run_for(30.0)
    assert len(load.failed) <= 0.02 * len(load.requests)


def test_a_steward_that_comes_back_goes_on_from_what_was_decided_meanwhile() -> None:
    mesh = deployed(BUSY, replicas=5)
    first = steward(mesh)
    mesh.crash(first)
    mesh.run_for(40.0)  # the other one lets replicas go meanwhile
    assert view(mesh, next(name for name in NAMES if name != first)).wanted == 2
    mesh.world.restart(first)
    mesh.run_for(15.0)
    assert steward(mesh) == first
    assert agreed(mesh)
    assert view(mesh).epoch == 3
    assert view(mesh).wanted == 2


def test_a_steward_that_stood_still_decides_nothing_from_what_it_saw_before() -> None:
    mesh = deployed(BUSY, replicas=5)
    first = steward(mesh)
    mesh.world.freeze(first)
    mesh.run_for(60.0)
    mesh.world.thaw(first)
    thawed = mesh.world.now()
    mesh.run_for(STOOD_STILL_S + 10 * LOOK_S)
    assert agreed(mesh)
    assert steward(mesh) == first
    late = [each for each in told(mesh, "scale.up", "scale.down") if each.time_s > thawed]
    assert late == []


def test_a_steward_that_is_restarted_at_once_keeps_the_replicas_that_there_are() -> None:
    mesh = deployed(BUSY, replicas=2)
    hold_load(mesh, 58, 30.0)
    mesh.load(
        [name for name in NAMES if name != steward(mesh)], "digits", rate_per_s=58, duration_s=40.0
    )
    mesh.crash(steward(mesh))
    mesh.run_for(0.5)
    down = next(name for name in NAMES if name not in mesh.world.running())
    mesh.world.restart(down)
    mesh.run_for(15.0)
    assert 5 <= view(mesh).wanted <= 7
    assert told(mesh, "scale.down") == []


def test_two_stewards_of_a_partition_are_one_again_when_it_heals() -> None:
    mesh = deployed(BUSY, replicas=3)
    first = steward(mesh)
    near = [first, *(name for name in NAMES if name != first)][:4]
    far = [name for name in NAMES if name not in near]
    mesh.world.partition(near, far)
    mesh.run_for(40.0)
    assert steward(mesh, first) == first
    assert steward(mesh, far[0]) in far
    mesh.world.heal()
    mesh.run_for(40.0)
    assert agreed(mesh)
    assert steward(mesh) == first
    assert view(mesh).wanted == 2


def test_a_steward_that_is_drained_hands_over_before_it_is_empty() -> None:
    mesh = deployed(BUSY, replicas=3)
    first = steward(mesh)
    mesh.write(first, lambda drafts, wall_s: drafts.drain(mesh.node(first).me, Drain(0), wall_s))
    mesh.run_for(15.0)
    assert agreed(mesh)
    assert steward(mesh) != first
    assert view(mesh).epoch == 2
    assert view(mesh).wanted == 3
    assert first not in mesh.serving("digits")
    assert len(mesh.serving("digits")) == 3
    assert mesh.node(first).kept_replicas() == []


def test_a_model_that_sleeps_keeps_no_node_from_being_drained() -> None:
    mesh = deployed(SLEEPY)
    mesh.run_for(30.0)
    for name in NAMES:
        assert mesh.node(name).kept_replicas() == []


def test_a_deployment_that_is_paused_and_resumed_keeps_its_steward() -> None:
    mesh = deployed(BUSY, replicas=3)
    before = view(mesh)
    mesh.deploy(NAMES[0], DIGITS, replicas=3, scaling=BUSY, enabled=False)
    mesh.run_for(10.0)
    assert mesh.serving("digits") == []
    mesh.deploy(NAMES[0], DIGITS, replicas=3, scaling=BUSY)
    mesh.run_for(10.0)
    assert (view(mesh).steward, view(mesh).epoch) == (before.steward, before.epoch)
    assert len(mesh.serving("digits")) == 3


def test_a_former_steward_withdraws_its_word() -> None:
    mesh = deployed(BUSY, replicas=3)
    first = steward(mesh)
    mesh.world.freeze(first)
    mesh.run_for(30.0)
    second = next(name for name in NAMES if name != first)
    second = steward(mesh, second)
    mesh.world.thaw(first)
    mesh.run_for(20.0)
    key = steward_key("digits")
    owners = mesh.node(NAMES[0]).owners
    assert owners.get(mesh.node(second).me, key) is None
    assert owners.get(mesh.node(first).me, key) is not None


def test_a_deployment_that_scales_no_more_has_no_steward() -> None:
    mesh = deployed(BUSY, replicas=3)
    mesh.deploy(NAMES[0], DIGITS, replicas=4)
    mesh.run_for(10.0)
    assert view(mesh).steward is None
    assert len(mesh.serving("digits")) == 4
    for name in NAMES:
        assert mesh.node(name).owners.get(mesh.node(name).me, steward_key("digits")) is None


def test_other_bounds_count_from_the_next_revision_on_and_the_steward_stays() -> None:
    mesh = deployed(BUSY, replicas=3)
    first = steward(mesh)
    mesh.deploy(NAMES[0], DIGITS, replicas=3, scaling=Scaling(5, 8, qps=10))
    mesh.run_for(10.0)
    assert view(mesh).wanted == 5
    assert len(mesh.serving("digits")) == 5
    assert (steward(mesh), view(mesh).epoch) == (first, 1)


def test_a_member_that_claims_to_be_the_steward_is_outdone_by_the_node_that_ranks_first() -> None:
    mesh = deployed(BUSY, replicas=3)
    first = steward(mesh)
    liar = next(name for name in NAMES if name != first)
    word = StewardWord(2**53, 8, "because I say so", 0)
    owners = mesh.node(liar).owners
    now = mesh.world.now()
    mesh.daemon(liar).carry_out(owners.set(steward_key("digits"), word.encode(), now), now, now)
    mesh.run_for(15.0)
    assert {steward(mesh, name) for name in NAMES if name != liar} == {first}
