"""An author's admission in the desired state, under `admission/NODE`: its chain, opaque here.

Whoever writes to the desired state puts its own chain there first. The key sorts before
`deployment/`, so that an exchange of entries brings the author before what it wrote.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from meshnode.types import NodeId

_PREFIX: Final = "admission/"


def admission_key(node: NodeId) -> str:
    """Return the key of a node's admission."""
    return _PREFIX + node


def is_admission(key: str) -> bool:
    """Whether a key of the desired state holds an admission."""
    return key.startswith(_PREFIX)
