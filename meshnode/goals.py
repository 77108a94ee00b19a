"""What routing is told of a deployment: which versions are wanted, and where."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meshnode.deployments import describe
from meshnode.models.variables import without_variables
from meshnode.routing.table import Goal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from meshnode.fleet import Part
    from meshnode.types import NodeId


def goals_of(parts: Iterable[Part], name_of: Callable[[NodeId], str]) -> dict[int, Goal]:
    """Return what routing is told, by version: a model that nobody serves yet is known.

    Args:
        parts: Where the versions belong that are wanted.
        name_of: A node's name.
    """
    goals = {}
    for part in parts:
        placement = part.placement
        placed = describe(placement, name_of)
        standby = frozenset(placement.standby)
        for version, variants in part.versions.items():
            digests = frozenset(each.digest for each in variants)
            first = variants[0]
            plain = without_variables(first.manifest)
            goals[version] = Goal(plain, first.digest, placed, digests, standby, placement.paused)
    return goals
