"""Round trips between any two nodes, estimated by whole nodes in a virtual network."""

from __future__ import annotations

from itertools import combinations
from statistics import median

from meshnode.sim.mesh import SimMesh
from meshnode.sim.network import NetworkConfig

NETWORK = NetworkConfig(
    rtt_s={("eu", "us"): 0.09, ("eu", "asia"): 0.22, ("us", "asia"): 0.16},
    near_rtt_s=0.002,
    loss=0.05,
)


def test_any_node_estimates_the_round_trip_between_any_two_others() -> None:
    mesh = SimMesh(11, NETWORK)
    names = [f"n{number}" for number in range(12)]
    for index, name in enumerate(names):
        mesh.add(name, ("eu", "us", "asia")[index % 3])
    mesh.run_for(180.0)
    ids = [mesh.world.id_of(name) for name in names]
    for name in ("n0", "n7"):
        membership = mesh.node(name).membership
        far: list[tuple[float, float]] = []
        near: list[tuple[float, float]] = []
        for a, b in combinations(ids, 2):
            true_s, estimate_s = mesh.world.network.rtt_s(a, b), membership.rtt_s(a, b)
            assert estimate_s is not None
            (far if true_s > 0.01 else near).append((estimate_s, true_s))
        assert median(abs(found - true) / true for found, true in far) <= 0.15
        assert max(found for found, _ in near) < min(found for found, _ in far)
