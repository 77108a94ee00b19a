"""Which round trip is told: the measured one, the estimated one, or none."""

from __future__ import annotations

from typing import Any

import pytest

from meshnode.daemon.round_trips import RoundTrips
from meshnode.errors import InvalidRequest
from meshnode.sim.mesh import SimMesh
from meshnode.sim.network import NetworkConfig

WIRES = NetworkConfig(rtt_s={("eu", "us"): 0.09, ("eu", "asia"): 0.2, ("us", "asia"): 0.16})


@pytest.fixture(scope="module")
def mesh() -> SimMesh:
    mesh = SimMesh(3, WIRES)
    for name, region in (("a", "eu"), ("b", "us"), ("c", "asia"), ("d", "eu"), ("e", "us")):
        mesh.add(name, region)
    mesh.run_for(120.0)
    return mesh


def view(mesh: SimMesh, one: str, other: str) -> dict[str, Any]:
    return RoundTrips(mesh.node("a")).view(one, other)


def test_a_link_of_this_node_was_measured(mesh: SimMesh) -> None:
    for ends in (("a", "b"), ("b", "a")):
        found = view(mesh, *ends)
        assert (found["from"]["name"], found["to"]["name"]) == ends
        assert found["rtt_ms"] == pytest.approx(90.0)
        assert not found["rtt_estimated"]


def test_two_other_nodes_are_estimated_by_name_or_id(mesh: SimMesh) -> None:
    found = view(mesh, "b", mesh.world.id_of("c"))
    assert found["to"] == {"id": mesh.world.id_of("c"), "name": "c"}
    assert found["rtt_ms"] == pytest.approx(160.0, rel=0.2)
    assert found["rtt_estimated"]


def test_a_node_is_no_way_from_itself(mesh: SimMesh) -> None:
    assert view(mesh, "b", "b")["rtt_ms"] == 0.0
    assert RoundTrips(mesh.node("a")).to(mesh.world.id_of("a")) == (0.0, False)


def test_a_node_without_a_link_is_estimated_though_it_once_was_measured(mesh: SimMesh) -> None:
    c = mesh.world.id_of("c")
    mesh.world.links.close(mesh.world.id_of("a"), c, "for a test")
    mesh.run_until(lambda: not mesh.node("a").membership.members[c].linked, limit_s=2.0)
    rtt_ms, is_estimated = RoundTrips(mesh.node("a")).to(c)
    assert is_estimated
    assert rtt_ms == pytest.approx(200.0, rel=0.2)


def test_a_newcomer_is_not_known_yet(mesh: SimMesh) -> None:
    fresh = SimMesh(4, WIRES)
    for name in ("a", "b", "c"):
        fresh.add(name, "eu")
    fresh.run_for(1.0)
    found = view(fresh, "b", "c")
    assert found["rtt_ms"] is None
    assert not found["rtt_estimated"]
    with pytest.raises(InvalidRequest, match="no node is called 'x'"):
        view(mesh, "a", "x")
