"""Nodes by the names that people type."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meshnode.errors import InvalidRequest
from meshnode.types import NodeId

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meshnode.membership.member import Member


def node_named(members: Mapping[NodeId, Member], text: str) -> NodeId:
    """Return the node that a name or an id means; of several with a name the one that lives.

    Raises:
        InvalidRequest: if no node is called so, or several are.
    """
    if text in members:
        return NodeId(text)
    named = [each for each in members.values() if each.record.name == text]
    live = [each for each in named if each.live] or named
    if len(live) == 1:
        return live[0].node_id
    if live:
        ids = ", ".join(each.node_id for each in live)
        raise InvalidRequest(f"several nodes are called {text!r}; name one by its id: {ids}")
    known = ", ".join(sorted(each.record.name for each in members.values() if each.live))
    raise InvalidRequest(f"no node is called {text!r}; there are {known}")


def name_of(members: Mapping[NodeId, Member], node: NodeId) -> str:
    """Return a node's name, or its id where no record of it is known."""
    member = members.get(node)
    return member.record.name if member is not None else node
