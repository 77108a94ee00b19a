"""An order of nodes that is each key's own, and the same at every gateway (highest random weight).

Thaler and Ravishankar, "Using name-based mappings to increase hit rates" (IEEE/ACM Transactions on Networking 6(1),
1998): one node more or less moves only the keys that begin or end at that one.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from meshnode.types import NodeId

_WEIGHT_BYTES: Final = 8


def weight(key: bytes, node: NodeId) -> tuple[bytes, NodeId]:
    """Return a node's place in a key's order of nodes: the greatest is the first.

    Args:
        key: At most 64 bytes.
        node: The node.
    """
    return blake2b(node.encode(), digest_size=_WEIGHT_BYTES, key=key).digest(), node
