"""How much placement moves when nodes and deployments come and go, and how long it takes: the figures of docs/placement.md.

python -m bench.placement
"""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING

from meshnode.deployments import known_of
from meshnode.fleet import Fleet
from meshnode.membership.member import Member
from meshnode.membership.messages import MemberRecord
from meshnode.models.manifest import FileEntry, Manifest
from meshnode.routing.packing import Budget, Claim, pack
from meshnode.routing.placement import Charge, Option, rendezvous_score
from meshnode.state.constraints import Resources
from meshnode.state.deployment import Deployment
from meshnode.types import NodeId, NodeState, node_id_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from meshnode.routing.placement import Placement

GIB = 1024**3
ROWS = (
    (10, 30, 0.001), (10, 30, 0.3), (10, 30, 0.5), (10, 30, 0.7), (50, 100, 0.5), (50, 100, 0.7), (50, 100, 0.8),
    (200, 400, 0.5), (200, 400, 0.8),
)  # fmt: skip
"""Nodes, deployments, and the share of all memory that is promised."""

Wanted = tuple[str, int, float]
"""A deployment: its name, its replicas, what one takes in GiB."""


def unequal_mesh(
    nodes: int, deployments: int, promised: float, seed: int
) -> tuple[dict[NodeId, int], list[Wanted]]:
    """Return nodes with 8 to 64 GiB, and deployments that take a share of all of it."""
    rng = random.Random(seed)
    sizes = {NodeId(f"node-{n:04}"): rng.choice([8, 16, 16, 32, 64]) for n in range(nodes)}
    wanted = [
        (f"m{n}", rng.choice([1, 2, 3, 5]), rng.choice([0.5, 1, 1, 2, 4, 7]))
        for n in range(deployments)
    ]
    scale = promised * sum(sizes.values()) / sum(count * size for _, count, size in wanted)
    return sizes, [(name, count, size * scale) for name, count, size in wanted]


def placed_in(sizes: Mapping[NodeId, int], wanted: Sequence[Wanted]) -> dict[str, Placement]:
    """Place all deployments; those that come first are the older ones."""
    claims = [
        Claim(
            name,
            count,
            [
                Option(
                    rendezvous_score(name, node, room),
                    node,
                    f"region-{int(node[-4:]) % 4}",
                    Charge(int(size * GIB)),
                )
                for node, room in sizes.items()
                if size <= room
            ],
            since_ms=number,
        )
        for number, (name, count, size) in enumerate(wanted)
    ]
    return pack(claims, {node: Budget(room * GIB) for node, room in sizes.items()})


def new_replicas(before: Mapping[str, Placement], after: Mapping[str, Placement]) -> int:
    """Count the replicas that are where there was none of their deployment before."""
    return sum(len({*after[name].nodes} - {*before[name].nodes}) for name in before)


def beyond_its_share(sizes: Mapping[NodeId, int], wanted: Sequence[Wanted], node: NodeId) -> float:
    """Return what a node's coming or going moves beyond what it holds, whichever is more; a share of all replicas."""
    whole = placed_in(sizes, wanted)
    rest = placed_in({each: room for each, room in sizes.items() if each != node}, wanted)
    held = sum(node in each.nodes for each in whole.values())
    most = max(new_replicas(whole, rest), new_replicas(rest, whole))
    return (most - held) / sum(len(each.nodes) for each in whole.values())


def moved_by_deleting(sizes: Mapping[NodeId, int], wanted: Sequence[Wanted], index: int) -> float:
    """Return the share of all replicas that move when a deployment that is not theirs is deleted."""
    whole = placed_in(sizes, wanted)
    name, *_ = wanted[index]
    left = [(each, 0 if each == name else count, size) for each, count, size in wanted]
    return new_replicas(whole, placed_in(sizes, left)) / sum(
        len(each.nodes) for each in whole.values()
    )


def measure_movement() -> None:
    """Print the table."""
    print("| nodes | deployments | promised | a node joins or leaves | a deployment is deleted |")
    for nodes, deployments, promised in ROWS:
        coming: list[float] = []
        deleting: list[float] = []
        for seed in range(4 if nodes < 100 else 1):
            sizes, wanted = unequal_mesh(nodes, deployments, promised, seed)
            some = [*sizes][:: max(1, nodes // 8)]
            coming += [beyond_its_share(sizes, wanted, node) for node in some]
            few = range(0, deployments, deployments // 6)
            deleting += [moved_by_deleting(sizes, wanted, index) for index in few]
        told = [f"{sum(each) / len(each):.1%} / {max(each):.1%}" for each in (coming, deleting)]
        print(f"| {nodes} | {deployments} | {promised:.0%} | {' | '.join(told)} |", flush=True)


def member(number: int, rng: random.Random) -> Member:
    """Make a member of the mesh that is timed."""
    facts = {
        "cpus": rng.choice([4, 8, 16]),
        "runtimes": ["onnx"],
        "memory_bytes": rng.choice([8, 16, 32]) * GIB,
    }
    key = str(number).encode().ljust(32, b"\0")
    region = f"region-{number % 5}"
    record = MemberRecord(key, f"n{number}", region, "", {}, (), "", 1, 0, 1, facts, b"")
    return Member(node_id_of(key), record, NodeState.ALIVE, 0.0)


def deployment(number: int) -> Deployment:
    """Make one of the deployments that are timed."""
    files = (FileEntry("x", 300_000_000, bytes(32)),)
    manifest = Manifest(f"m{number}", 1, "onnx", "onnx", (), (), 0, files, "x")
    takes = Resources(memory_bytes=(1 + number % 7) * GIB)
    return Deployment(
        manifest.model,
        (manifest,),
        1 + number % 20,
        resources=takes,
        since_ms=number,
        standby=number % 3,
    )


def measure_time(nodes: int = 1000, deployments: int = 100) -> None:
    """Print how long it takes to place all deployments, and to place them anew after a change."""
    rng = random.Random(1)
    members = [member(number, rng) for number in range(nodes)]
    fleet = Fleet()
    fleet.update(members)
    for number in range(deployments):
        fleet.want(f"m{number}", known_of(deployment(number)))
    changes: dict[str, Callable[[], object]] = {
        "first": lambda: None,
        "a node joins": lambda: fleet.update([*members, member(nodes, rng)]),
        "a node leaves": lambda: fleet.update(members),
        "a deployment comes": lambda: fleet.want("m-new", known_of(deployment(deployments))),
        "a deployment goes": lambda: fleet.want("m5", None),
    }
    for what, change in changes.items():
        began = time.perf_counter()
        change()
        fleet.moved()
        took_s = time.perf_counter() - began
        print(f"{nodes} nodes, {deployments} deployments, {what}: {took_s:.2f} s", flush=True)


if __name__ == "__main__":
    measure_movement()
    measure_time()
