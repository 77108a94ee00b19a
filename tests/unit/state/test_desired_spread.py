"""The desired state over a virtual network with everything that goes wrong there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from meshnode.sim.network import NetworkConfig

DAY_S = 86_400.0


@pytest.mark.parametrize("count", [3, 20, 50])
@pytest.mark.parametrize("loss", [0.0, 0.3])
def test_concurrent_writers_end_in_one_map(make_mesh: Any, count: int, loss: float) -> None:
    mesh = make_mesh(count, seed=count, network=NetworkConfig(loss=loss, note_loss=loss))
    mesh.world.run_for(2.0)
    for name in mesh.names:
        mesh.put(name, "deployment/contested", name.encode())
    mesh.put("n0", "deployment/a", b"0")
    mesh.put("n2", "deployment/b", b"2")
    mesh.world.run_until(lambda: len(mesh.node("n1").desired.items()) == 3, 60.0)
    # All wrote at the same instant: the greatest node id wins.
    winner = max(mesh.names, key=mesh.world.id_of).encode()

    def is_everywhere() -> bool:
        found = {mesh.node(name).desired.get("deployment/contested") for name in mesh.names}
        return found == {winner}

    mesh.world.run_until(is_everywhere, 60.0)
    # All that lost are kept, too: fifty revisions of one key, a third of whose notes are lost.
    mesh.world.run_until(mesh.desired_agrees, 120.0)


def test_writers_on_both_sides_of_a_partition_resolve_to_the_later_one(make_mesh: Any) -> None:
    mesh = make_mesh(20, seed=8)
    mesh.world.run_for(5.0)
    mesh.world.partition(mesh.names[:10], mesh.names[10:])
    mesh.world.run_for(20.0)
    mesh.put("n15", "deployment/d", b"first")
    mesh.world.run_for(1.0)
    mesh.put("n3", "deployment/d", b"second")
    mesh.world.run_for(10.0)
    assert mesh.node("n12").desired.get("deployment/d") == b"first"
    mesh.world.heal()
    mesh.world.run_until(mesh.desired_agrees, 40.0)
    for name in mesh.names:
        assert mesh.node(name).desired.get("deployment/d") == b"second"
        assert [e.value for e in mesh.node(name).desired.history("deployment/d")] == [b"first"]


def test_a_crashed_node_knows_again_what_it_had_accepted(make_mesh: Any) -> None:
    mesh = make_mesh(3, seed=9)
    mesh.put("n0", "deployment/d", b"1")
    mesh.world.run_until(lambda: mesh.node("n2").desired.get("deployment/d") == b"1", 20.0)
    for name in mesh.names:
        mesh.world.crash(name)
    mesh.world.restart("n2")
    assert mesh.node("n2").desired.get("deployment/d") == b"1"


def test_a_write_survives_a_crash_right_after_it(make_mesh: Any) -> None:
    mesh = make_mesh(3, seed=10)
    mesh.world.run_for(1.0)
    mesh.put("n0", "deployment/d", b"1")
    mesh.world.crash("n0")
    mesh.world.restart("n0")
    mesh.world.run_until(lambda: mesh.node("n2").desired.get("deployment/d") == b"1", 20.0)


@pytest.mark.parametrize("away_s", [3600.0, 6 * DAY_S, 9 * DAY_S])
@pytest.mark.parametrize("how", ["off", "cut"])
def test_a_deleted_deployment_stays_deleted_when_a_node_returns(
    make_mesh: Any, away_s: float, how: str
) -> None:
    """After nine days nobody remembers the deletion; the node takes over what the others have."""
    mesh = make_mesh(3, seed=11)
    mesh.put("n0", "deployment/gone", b"x")
    mesh.put("n0", "deployment/kept", b"y")
    mesh.world.run_until(lambda: len(mesh.node("n2").desired.items()) == 2, 20.0)
    mesh.world.run_for(30.0)
    if how == "off":
        mesh.world.crash("n2")
    else:
        mesh.world.partition(["n2"], ["n0", "n1"])
    mesh.world.run_for(20.0)
    mesh.remove("n0", "deployment/gone")
    # Most of the time away passes at once, so that the test does not run days of syncs.
    for name in mesh.names:
        mesh.skew_s[name] = away_s
        if name in mesh.world.running():
            mesh.node(name).skew_s = away_s
    mesh.world.run_for(90.0)
    if away_s > 7 * DAY_S:
        assert mesh.node("n0").desired.entry("deployment/gone") is None  # dropped for good
    if how == "off":
        mesh.world.restart("n2")
    else:
        mesh.put("n2", "deployment/own", b"z")  # written while nobody could hear of it
    mesh.world.heal()
    mesh.world.run_for(60.0)
    keys = {"deployment/kept"} | ({"deployment/own"} if how == "cut" else set())
    for name in mesh.names:
        assert {key for key, _ in mesh.node(name).desired.items()} == keys


def test_a_mesh_that_was_off_for_weeks_keeps_its_deployments(make_mesh: Any) -> None:
    mesh = make_mesh(3, seed=12)
    mesh.put("n0", "deployment/d", b"1")
    mesh.world.run_for(30.0)
    for name in mesh.names:
        mesh.world.crash(name)
        mesh.skew_s[name] = 30 * DAY_S
        mesh.world.restart(name)
    mesh.world.run_for(30.0)
    assert all(mesh.node(n).desired.get("deployment/d") == b"1" for n in mesh.names)


def test_a_clock_far_ahead_is_refused_and_named_once(make_mesh: Any) -> None:
    mesh = make_mesh(3, seed=13)
    mesh.node("n0").skew_s = 600.0
    mesh.put("n0", "deployment/d", b"future")
    mesh.world.run_for(60.0)
    assert mesh.node("n1").desired.get("deployment/d") is None
    told = [*mesh.world.trace.find("desired.refused", node="n1", subject="deployment/d")]
    assert len(told) == 1
    assert "600 s ahead" in told[0].detail
    mesh.world.run_for(330.0)  # until the stamp is near enough
    assert mesh.node("n1").desired.get("deployment/d") == b"future"


def test_a_clock_that_is_behind_still_overwrites_what_it_has_seen(make_mesh: Any) -> None:
    mesh = make_mesh(3, seed=14)
    mesh.node("n1").skew_s = -200.0
    mesh.put("n0", "deployment/d", b"old")
    mesh.world.run_until(lambda: mesh.node("n1").desired.get("deployment/d") == b"old", 20.0)
    mesh.put("n1", "deployment/d", b"new")
    mesh.world.run_until(lambda: mesh.node("n0").desired.get("deployment/d") == b"new", 20.0)


def _trace_of_a_busy_world(make_mesh: Any) -> str:
    mesh = make_mesh(10, seed=15, network=NetworkConfig(loss=0.2, note_loss=0.1))
    mesh.world.run_for(1.0)
    for name in mesh.names:
        mesh.say(name, "load", b"1")
        mesh.put(name, "deployment/d", name.encode())
    mesh.world.partition(mesh.names[:5], mesh.names[5:])
    mesh.world.run_for(10.0)
    mesh.world.crash("n1")
    mesh.world.freeze("n2")
    mesh.world.run_for(10.0)
    mesh.world.restart("n1")
    mesh.world.thaw("n2")
    mesh.world.heal()
    mesh.world.run_for(10.0)
    digest: str = mesh.world.trace.digest()
    return digest


def test_one_seed_is_one_trace_in_any_process(make_mesh: Any) -> None:
    here = _trace_of_a_busy_world(make_mesh)
    assert _trace_of_a_busy_world(make_mesh) == here
    folder = Path(__file__).parent
    script = (
        "import runpy, sys\n"
        f"mesh = runpy.run_path({str(folder / 'conftest.py')!r})['Mesh']\n"
        f"print(runpy.run_path({__file__!r})['_trace_of_a_busy_world'](mesh))\n"
    )
    for hash_seed in ("1", "2"):
        run = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, check=True,
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
        )  # fmt: skip
        assert run.stdout.strip() == here
