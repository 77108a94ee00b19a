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

Whether a node has room for what it would win is decided for all deployments together (`packing`).
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

    from meshnode.types import NodeId

_PERSON = b"mesh-placement"  # keeps these hashes apart from all others
_BITS = 52  # (a 52-bit integer + 0.5) / 2**52 is exact in a float, and never 0 or 1


class Charge(NamedTuple):
    """What one replica takes of a node; 0 where nothing is counted.

    Attributes:
        memory_bytes: Memory of the machine.
        accelerator_bytes: Memory of one accelerator.
        cpus: Processors.
    """

    memory_bytes: int = 0
    accelerator_bytes: int = 0
    cpus: float = 0.0


class Option(NamedTuple):
    """A node that a deployment could be placed on.

    Attributes:
        score: How well the deployment ranks it; the highest wins (`rendezvous_score`).
        node_id: The node.
        region: Its region, for the spread.
        charge: What a replica of the deployment takes there.
    """

    score: float
    node_id: NodeId
    region: str
    charge: Charge = Charge()


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a deployment's replicas belong.

    Attributes:
        nodes: The nodes that should serve it, best first.
        ranking: All that could, best first; who is next when one of `nodes` goes.
        ineligible: The others with the reason, by node.
        missing: Replicas wanted that no node is left for.
        standby: Nodes that keep it ready for the case that `nodes` cannot answer, best first.
        missing_standby: Those wanted that no node is left for.
        paused: Whether it is to be served nowhere, as its deployment is paused.
    """

    nodes: tuple[NodeId, ...]
    ranking: tuple[NodeId, ...]
    ineligible: tuple[tuple[NodeId, str], ...]
    missing: int
    standby: tuple[NodeId, ...] = ()
    missing_standby: int = 0
    paused: bool = False

    @property
    def hosts(self) -> tuple[NodeId, ...]:
        """All nodes that are to have it ready, those on standby last."""
        return self.nodes + self.standby


def draw(deployment: str, node_id: NodeId) -> float:
    """Return a node's own number for a deployment: ``-1 / ln(h)``, positive; its score per weight.

    The lengths of both names are bounded far below what a collision by concatenation would need a
    separator for, but NUL occurs in neither and settles it.
    """
    text = f"{deployment}\0{node_id}".encode()
    digest = hashlib.blake2b(text, digest_size=8, person=_PERSON).digest()
    h = ((int.from_bytes(digest, "big") >> (64 - _BITS)) + 0.5) / 2**_BITS
    return -1.0 / math.log(h)


def rendezvous_score(deployment: str, node_id: NodeId, weight: float) -> float:
    """Return a node's score for a deployment: ``-weight / ln(h)``, positive."""
    return weight * draw(deployment, node_id)


def spread(options: Iterable[Option]) -> list[Option]:
    """Rank by score, and then in rounds over the regions."""
    # By score, highest first; equal ones by id, as on every node.
    ranked = sorted(options, key=lambda each: (-each.score, each.node_id))
    seen: Counter[str] = Counter()
    rounds: list[tuple[int, int]] = []
    for rank, option in enumerate(ranked):
        rounds.append((seen[option.region], rank))
        seen[option.region] += 1
    if len(seen) == 1:
        return ranked
    rounds.sort()
    return [ranked[rank] for _, rank in rounds]
