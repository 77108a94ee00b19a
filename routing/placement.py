"""Which nodes should serve a deployment: weighted rendezvous hashing, spread over regions.

Every node computes this from the same replicated state and gets the same answer, so nobody has to
be asked. For each deployment every node draws a number h in (0, 1) from a hash of both names; a
node of weight w scores ``-w / ln(h)``, and the highest scores win.

- Highest random weight: Thaler and Ravishankar, "Using name-based mappings to increase hit rates"
  (IEEE/ACM Transactions on Networking 6(1), 1998). A node that goes moves only what it held; one
  that comes takes only its share.
- The weights: Schindelhauer and Schomaker, "Weighted distributed hash tables" (SPAA 2005), the
  logarithmic method. ``-ln(h) / w`` is exponential with rate w, and the least of such draws is
  node i's with probability w_i / sum(w): exactly its share.

Spread: nodes are taken in rounds, each round the best-ranked node of every region that is not yet
taken. Written as a sort by (place within the region's own ranking, score), a node that leaves only
moves the others of its region forward, so still exactly its own replica moves.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from meshnode.types import NodeId

_PERSON = b"mesh-placement"  # keeps these hashes apart from all others
_BITS = 52  # (a 52-bit integer + 0.5) / 2**52 is exact in a float, and never 0 or 1


@dataclass(frozen=True, slots=True)
class PlacementNode:
    """A node as placement sees it.

    Attributes:
        node_id: The node.
        region: Its region, for the spread.
        weight: Its capacity relative to others; doubling it doubles the node's share.
        eligible: Whether it satisfies the deployment's constraints and is alive.
        reason: Why it is not, for people.
    """

    node_id: NodeId
    region: str
    weight: float = 1.0
    eligible: bool = True
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a deployment's replicas belong.

    Attributes:
        nodes: The nodes that should serve it, best first.
        ranking: All eligible nodes, best first; who is next when one of `nodes` goes.
        ineligible: The others with the reason, by node.
        missing: Replicas wanted that no eligible node is left for.
    """

    nodes: tuple[NodeId, ...]
    ranking: tuple[NodeId, ...]
    ineligible: tuple[tuple[NodeId, str], ...]
    missing: int


def placement(
    deployment: str,
    replicas: int | None,
    on: Collection[NodeId],
    nodes: Iterable[PlacementNode],
) -> Placement:
    """Place a deployment.

    Args:
        deployment: Its name; different deployments are spread independently.
        replicas: How many nodes should serve it. None: all nodes in `on`, or one if that is empty.
        on: Nodes it is pinned to; empty for no restriction.
        nodes: The mesh's nodes, in any order.

    Returns:
        The same for the same arguments, on every node.
    """
    wanted = (len(set(on)) or 1) if replicas is None else max(0, replicas)
    eligible: list[PlacementNode] = []
    ineligible: list[tuple[NodeId, str]] = []
    known = {node.node_id: node for node in nodes}
    for node_id in sorted(known.keys() | set(on)):
        reason = _why_not(known.get(node_id), node_id, on)
        if reason:
            ineligible.append((node_id, reason))
        else:
            eligible.append(known[node_id])
    ranking = _spread(deployment, eligible)
    return Placement(ranking[:wanted], ranking, tuple(ineligible), max(0, wanted - len(ranking)))


def rendezvous_score(deployment: str, node_id: NodeId, weight: float) -> float:
    """Return a node's score for a deployment: ``-weight / ln(h)``, positive.

    The lengths of both names are bounded far below what a collision by concatenation would need a
    separator for, but NUL occurs in neither and settles it.
    """
    text = f"{deployment}\0{node_id}".encode()
    digest = hashlib.blake2b(text, digest_size=8, person=_PERSON).digest()
    h = ((int.from_bytes(digest, "big") >> (64 - _BITS)) + 0.5) / 2**_BITS
    return -weight / math.log(h)


def _why_not(node: PlacementNode | None, node_id: NodeId, on: Collection[NodeId]) -> str:
    if node is None:
        return "not a node of this mesh"
    if on and node_id not in on:
        return "not one of the nodes that the deployment is pinned to"
    if not node.eligible:
        return node.reason or "does not satisfy the constraints"
    if not (math.isfinite(node.weight) and node.weight > 0):
        return "has no capacity"
    return ""


def _spread(deployment: str, eligible: list[PlacementNode]) -> tuple[NodeId, ...]:
    """Rank by score, and then in rounds over the regions."""
    scored = [
        (-rendezvous_score(deployment, node.node_id, node.weight), node.node_id, node.region)
        for node in eligible
    ]
    scored.sort()  # by score, highest first; equal ones by id, as on every node
    seen: Counter[str] = Counter()
    rounds: list[tuple[int, int, NodeId]] = []
    for rank, (_, node_id, region) in enumerate(scored):
        rounds.append((seen[region], rank, node_id))
        seen[region] += 1
    rounds.sort()
    return tuple(node_id for _, _, node_id in rounds)
