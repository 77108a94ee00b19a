"""Whole daemons in virtual time: they found, join, serve, fall and come back as real ones do."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from meshnode.errors import ConfigError, UsageError
from meshnode.sim import faults
from meshnode.sim.core_world import NotReachedError
from meshnode.sim.network import NetworkConfig
from meshnode.sim.scenario.model import Device
from meshnode.sim.stage import GATEWAY_LOST, OK, TIMED_OUT, Call, Machine, Outcome
from meshnode.sim.stand_in import StandInModel
from meshnode.sim.virtual.mesh import VirtualMesh
from meshnode.types import NodeState

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from meshnode.sim.virtual.daemon import VirtualNode

REGIONS = {"a": "eu", "b": "us", "c": "asia"}


def machine(name: str, region: str = "", **facts: Any) -> Machine:
    return Machine(name, region or REGIONS[name], "mini-pc", Device(), **facts)


def call(gateway: str = "a", *others: str, work_s: float = 0.02, timeout_s: float = 10.0) -> Call:
    return Call(0, 0.0, gateway, "digits", work_s, timeout_s, timeout_s, others)


@pytest.fixture
def started() -> Iterator[Callable[..., VirtualMesh]]:
    """Start meshes; all are closed at the end."""
    made: list[VirtualMesh] = []

    def start(*machines: Machine, seed: int = 1, serve: bool = True) -> VirtualMesh:
        mesh = VirtualMesh(machines or [machine(each) for each in REGIONS], seed, NetworkConfig())
        made.append(mesh)
        mesh.start()
        if serve:
            count = len(mesh.nodes)
            mesh.deploy("digits", StandInModel(mean_s=0.02), count)
            mesh.wait_for(lambda: ready(mesh) == count, "all serve")
        return mesh

    yield start
    for mesh in made:
        mesh.close()


def ready(mesh: VirtualMesh) -> int:
    return len(mesh.serving("digits")) if mesh.known_ready("digits") else 0


def ask(mesh: VirtualMesh, asked: Call) -> Outcome:
    return mesh.loop.run_until_complete(mesh.ask(asked))


def state_of(mesh: VirtualMesh, seen_by: str, name: str) -> NodeState:
    members = mesh.nodes[seen_by].parts.node.membership.members
    return next(each.state for each in members.values() if each.record.name == name)


def is_dead(mesh: VirtualMesh, name: str, *seen_by: str) -> bool:
    return all(state_of(mesh, each, name) is NodeState.DEAD for each in seen_by)


# Being there.


def test_daemons_found_a_mesh_join_it_and_serve_over_http(
    started: Callable[..., VirtualMesh],
) -> None:
    mesh = started()
    assert mesh.agrees()
    assert mesh.serving("digits") == {"a": 1, "b": 1, "c": 1}
    outcome = ask(mesh, call("b"))
    assert (outcome.code, outcome.attempts, outcome.version) == (OK, 1, 1)
    assert 0.02 < outcome.took_s < 0.15
    assert not mesh.loop.unhandled


def test_a_run_takes_as_long_as_the_call_says_on_a_device_of_that_speed(
    started: Callable[..., VirtualMesh],
) -> None:
    mesh = started(Machine("fast", "eu", "gpu", Device(speed=4.0)))
    outcome = ask(mesh, call("fast", work_s=2.0))
    assert outcome.took_s == pytest.approx(0.5, abs=0.01)
    node = mesh.nodes["fast"]
    assert node.busy_between(0.0, mesh.loop.now()) == pytest.approx(0.5 + 3 * 0.02 / 4, abs=0.01)


def test_more_requests_than_slots_wait_their_turn(started: Callable[..., VirtualMesh]) -> None:
    mesh = started(Machine("one", "eu", "tiny", Device(slots=1)))
    asked = [mesh.ask(call("one", work_s=1.0)) for _ in range(3)]
    mesh.loop.run_for(4.0)
    assert [round(each.result().took_s) for each in asked] == [1, 2, 3]


def test_a_node_without_a_gateway_serves_through_those_of_others(
    started: Callable[..., VirtualMesh],
) -> None:
    mesh = started(machine("a"), machine("b", gateway=False))
    assert ask(mesh, call("b", timeout_s=1.0)).code == GATEWAY_LOST
    assert ask(mesh, call("a")).code == OK


def test_a_node_behind_a_router_serves_and_only_its_own_office_reaches_its_gateway(
    started: Callable[..., VirtualMesh],
) -> None:
    mesh = started(machine("a"), machine("b", nat=True))
    assert ask(mesh, call("b")).code == OK
    far_client = mesh.client("eu")
    asked = far_client.host.run(
        far_client.call(call("b", timeout_s=1.0), [mesh.nodes["b"].http_address])
    )
    assert mesh.loop.run_until_complete(asked).code in (GATEWAY_LOST, TIMED_OUT)


# One seed, one run.


def story(seed: int) -> str:
    """Three daemons, two that serve, three calls, one crash; return the hash of it all, and the outcomes."""
    with VirtualMesh([machine(each) for each in REGIONS], seed) as mesh:
        mesh.start()
        mesh.deploy("digits", StandInModel(mean_s=0.02), 2)
        mesh.wait_for(lambda: ready(mesh) == 2, "two serve")
        asked = [mesh.ask(call(each, work_s=0.01)) for each in REGIONS]
        mesh.nodes["b"].crash()
        mesh.loop.run_for(5.0)
        codes = [each.result().code if each.done() else "open" for each in asked]
        return f"{mesh.loop.trace.digest()} {codes}"


def test_one_seed_gives_one_run_in_another_process_with_other_hashes_of_strings() -> None:
    program = "from tests.unit.sim.virtual.test_daemons import story; print(story(7))"
    other = "1" if os.environ.get("PYTHONHASHSEED") == "2" else "2"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONHASHSEED": other},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == story(7)


def test_another_seed_gives_another_run(started: Callable[..., VirtualMesh]) -> None:
    one, same, other = (started(serve=False, seed=seed) for seed in (1, 1, 2))
    assert one.loop.trace.digest() == same.loop.trace.digest()
    assert one.loop.trace.digest() != other.loop.trace.digest()


# Falling and coming back.


def test_a_crashed_daemon_is_found_dead_and_comes_back_as_the_same_node(
    started: Callable[..., VirtualMesh],
) -> None:
    mesh = started()
    node = mesh.nodes["b"]
    before = node.parts.node.membership.record
    node.crash()
    assert (node.state, node.mesh, node.exit_code) == ("down", None, None)
    mesh.wait_for(lambda: is_dead(mesh, "b", "a", "c"), "b is dead to the others")
    mesh.start_again(node)
    mesh.wait_for(lambda: mesh.agrees() and ready(mesh) == 3, "b is back and serves")
    after = node.parts.node.membership.record
    assert after.node_id == before.node_id
    assert after.epoch > before.epoch


def test_a_daemon_comes_back_with_a_torn_disk(started: Callable[..., VirtualMesh]) -> None:
    mesh = started()
    node = mesh.nodes["b"]
    node.crash()
    assert "is as before its last write" in node.disk.tear(mesh.loop._rng)
    mesh.start_again(node)
    mesh.wait_for(lambda: mesh.agrees() and ready(mesh) == 3, "b is back and serves")


def test_a_machine_without_power_is_silent_and_boots_again(
    started: Callable[..., VirtualMesh],
) -> None:
    mesh = started()
    node = mesh.nodes["b"]
    node.power_off()
    assert node.state == "off"
    outcome = ask(mesh, call("b", "a", timeout_s=6.0))
    assert (outcome.code, outcome.gateways) == (OK, 2)
    assert outcome.took_s > 1.0  # nobody refuses the connection
    mesh.start_again(node)
    mesh.wait_for(mesh.agrees, "b is back")


def test_a_daemon_that_is_told_to_stop_says_goodbye(started: Callable[..., VirtualMesh]) -> None:
    mesh = started()
    node = mesh.nodes["b"]
    node.leave()
    mesh.wait_for(lambda: node.state == "left", "b has left")
    assert node.exit_code == 0
    assert state_of(mesh, "a", "b") is NodeState.LEFT
    assert mesh.agrees()
    mesh.start_again(node)
    mesh.wait_for(mesh.agrees, "b is back")
    assert node.boots == 2


def test_a_second_signal_ends_the_process_at_once(started: Callable[..., VirtualMesh]) -> None:
    mesh = started(serve=False)
    node = mesh.nodes["b"]
    node.leave()
    node.host.signal(signal.SIGTERM)
    mesh.loop.run_for(0.01)
    assert (node.state, node.exit_code) == ("left", 128 + signal.SIGTERM)


def test_a_client_leaves_a_frozen_gateway_and_a_thawed_one_goes_on(
    started: Callable[..., VirtualMesh],
) -> None:
    mesh = started()
    node = mesh.nodes["b"]
    node.host.freeze()
    assert node.state == "frozen"
    outcome = ask(mesh, call("b", "a"))
    assert (outcome.code, outcome.gateways) == (OK, 2)
    mesh.wait_for(lambda: is_dead(mesh, "b", "a", "c"), "b is dead to the others")
    node.host.thaw()
    mesh.wait_for(mesh.agrees, "b is a member again")
    assert node.boots == 1


def test_a_client_without_another_gateway_waits_its_time_and_gives_up(
    started: Callable[..., VirtualMesh],
) -> None:
    mesh = started()
    mesh.nodes["b"].host.freeze()
    outcome = ask(mesh, call("b", timeout_s=3.0))
    assert outcome.code == TIMED_OUT
    assert outcome.took_s == pytest.approx(3.25)


def test_a_client_whose_time_is_over_before_it_reaches_anybody_has_given_up(
    started: Callable[..., VirtualMesh],
) -> None:
    mesh = started()
    mesh.nodes["a"].power_off()
    mesh.nodes["b"].power_off()
    outcome = ask(mesh, call("b", "a", timeout_s=1.0))
    assert (outcome.code, outcome.gateways) == (TIMED_OUT, 2)
    assert outcome.took_s == pytest.approx(1.0, abs=0.01)
    mesh.nodes["c"].crash()
    refused = ask(mesh, call("c", timeout_s=1.0))
    assert refused.code == GATEWAY_LOST
    assert refused.took_s < 0.9


# What goes wrong on a node that runs on.


def test_nothing_can_be_deployed_on_a_node_whose_disk_is_full(
    started: Callable[..., VirtualMesh],
) -> None:
    mesh = started(serve=False)
    make_room = mesh.nodes["a"].fill_disk()
    make_room_again = mesh.nodes["a"].fill_disk()
    with pytest.raises(ConfigError, match="no space left"):
        mesh.nodes["a"].host.call(
            mesh.nodes["a"].parts.control.create_key, "k", ["infer"], None, "x"
        )
    make_room()
    assert mesh.nodes["a"].disk.is_full
    make_room_again()
    mesh.nodes["a"].host.call(mesh.nodes["a"].parts.control.create_key, "k", ["infer"], None, "x")


def test_a_node_on_battery_serves_nothing_until_it_is_on_the_mains_again(
    started: Callable[..., VirtualMesh],
) -> None:
    mesh = started()
    charge = mesh.nodes["b"].drain(5.0)
    mesh.loop.run_for(10.0)
    assert ask(mesh, call("b")).served_by in ("a", "c")
    charge()
    mesh.loop.run_for(60.0)
    assert {ask(mesh, call("b", work_s=0.001)).served_by for _ in range(8)} == {"b"}


def test_failing_models_fail_and_lies_about_load_are_told(
    started: Callable[..., VirtualMesh],
) -> None:
    mesh = started(machine("a"))
    node = mesh.nodes["a"]
    node.misbehave(fail_share=1.0)
    assert ask(mesh, call()).code == "inference_failed"
    node.misbehave(fail_share=0.0, load_share=0.0)
    running = mesh.ask(call(work_s=1.0))
    mesh.loop.run_for(0.5)
    assert node.models is not None
    assert node.models.load_report("digits", 1).in_system == 0
    node.misbehave(load_share=1.0)
    assert node.models.load_report("digits", 1).in_system == 1
    mesh.loop.run_until_complete(running)


def test_a_new_release_takes_the_place_of_the_old_one(started: Callable[..., VirtualMesh]) -> None:
    mesh = started(machine("a"), machine("b"))
    mesh.release(faults.Release(model="digits"))
    mesh.wait_for(lambda: [*mesh.serving("digits").values()] == [2, 2], "version 2 is everywhere")
    mesh.wait_for(lambda: mesh.known_ready("digits"), "all know")
    assert ask(mesh, call()).version == 2
    with pytest.raises(UsageError, match="no model unknown"):
        mesh.release(faults.Release(model="unknown"))


def test_slowness_multiplies_and_is_undone(started: Callable[..., VirtualMesh]) -> None:
    mesh = started(machine("a"))
    mesh.nodes["a"].slow(3.0)
    mesh.nodes["a"].slow(2.0)
    assert ask(mesh, call(work_s=1.0)).took_s == pytest.approx(6.0, abs=0.1)
    mesh.nodes["a"].slow(1 / 6)
    assert ask(mesh, call(work_s=1.0)).took_s == pytest.approx(1.0, abs=0.1)


def test_the_log_says_nothing_while_there_are_virtual_daemons_and_is_as_before_then(
    caplog: pytest.LogCaptureFixture,
) -> None:
    log = logging.getLogger("meshnode")
    before = (log.level, log.handlers, log.propagate)
    first, second = (VirtualMesh([machine("a")], seed) for seed in (1, 2))
    first.start()
    first.close()
    first.close()  # a second time changes nothing
    log.error("a daemon's own words")
    assert not log.isEnabledFor(logging.WARNING)
    second.close()
    assert (log.level, log.handlers, log.propagate) == before
    assert caplog.text == ""


# What cannot be.


def test_a_mesh_needs_a_node_that_can_be_dialled_and_not_too_many() -> None:
    with pytest.raises(UsageError, match="1 to 100 nodes, not 101"):
        VirtualMesh([machine(f"n{each}", "eu") for each in range(101)], 1)
    with VirtualMesh([machine("a", nat=True)], 1) as mesh, pytest.raises(UsageError, match="nat"):
        mesh.start()


def test_what_does_not_come_about_names_the_seed(started: Callable[..., VirtualMesh]) -> None:
    mesh = started(serve=False, seed=23)
    with pytest.raises(NotReachedError, match=r"not within 2 s: never \(seed 23"):
        mesh.wait_for(lambda: False, "never", 2.0)


def test_a_daemon_that_cannot_start_says_why(started: Callable[..., VirtualMesh]) -> None:
    mesh = started(serve=False)
    node: VirtualNode = mesh.nodes["b"]
    node.crash()
    (node.path / "identity.key").write_bytes(b"half")
    mesh.start_again(node)
    with pytest.raises(NotReachedError, match=r"b: .*identity.key is damaged"):
        mesh.wait_for(lambda: False, "never")
    assert node.exit_code == 1
