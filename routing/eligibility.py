"""Which replicas may take a request at all, and which of those only if there is no better one.

Two kinds of reasons, and they are kept apart:

- a *rule* that must never be broken: the region that a caller insists on, the labels that it asks for, memory that
  the request's data would not fit into. Who misses one is no candidate, whatever happens to the others;
- a *preference*: candidates are ranked in groups, and a later group is asked only when no replica of an earlier one
  can take the request in its time.

| group | who is in it |
|---|---|
| 0 | usual nodes in the preferred region; without a preference all usual nodes |
| 1 | usual nodes elsewhere |
| 2, 3 | the same two for nodes on battery, or held back by their temperature: a last resort |
| 4 to 7 | the same four for replicas that stand by for the others |
| 8 | nodes that are being drained: they go on until others have taken over |

Groups rather than a penalty in milliseconds, because no number of milliseconds is right for a caller's contract or
for a laptop's battery.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Collection

    from meshnode.routing.conditions import NodeConditions
    from meshnode.types import RoutingHints

_OUTSIDE: Final = 1
_LAST_RESORT: Final = 2
_STANDBY: Final = 4
_DRAINING: Final = 8
"""What adds up to a group's place; draining outweighs all else."""

GROUPS: Final = _DRAINING + 1
"""How many groups there can be."""

_COPIES: Final = 2
"""A request's data is in memory twice while its model runs: as it came, and as the model takes it."""

LARGE_BYTES: Final = 1 << 20
"""Below a mebibyte a request takes no memory worth a look."""


def in_region(region: str, wanted: str) -> bool:
    """Whether a region is the wanted one or below it: `eu` is `eu`, `eu-west` and `eu-west-1`, but not `europe`."""
    return region == wanted or region.startswith(wanted + "-")


def broken_rule(region: str, conditions: NodeConditions, hints: RoutingHints) -> str:
    """Return which rule of a request a replica misses, for people; empty if it misses none.

    Args:
        region: Where its node says it is.
        conditions: Of its node.
        hints: Of the request.
    """
    wanted = hints.region
    if wanted and hints.region_required and not in_region(region, wanted):
        return f"region {region}: the request must run in {wanted}"
    for label in hints.labels:
        if label not in conditions.labels:
            return f"label {label[0]}={label[1]} is not the node's"
    return ""


def lacks_memory(conditions: NodeConditions, size_bytes: int) -> bool:
    """Whether a request's data would not fit into a node's free memory; false where that is not known."""
    free_bytes = conditions.memory_free_bytes
    if free_bytes is None or size_bytes < LARGE_BYTES:
        return False
    return _COPIES * size_bytes > free_bytes


def group_of(region: str, conditions: NodeConditions, hints: RoutingHints) -> int:
    """Return the place of a replica's group, 0 for the first; see the table in this module's text."""
    if conditions.draining:
        return _DRAINING
    preferred = hints.region
    place = _OUTSIDE if preferred and not in_region(region, preferred) else 0
    if conditions.is_last_resort:
        place += _LAST_RESORT
    return place + _STANDBY if conditions.standby else place


def why_later(region: str, conditions: NodeConditions, hints: RoutingHints) -> str:
    """Return why a replica is not of the first group, for people; empty if it is."""
    if conditions.draining:
        return "draining"
    if conditions.standby:
        return "standby: it is asked where the others cannot answer"
    if conditions.throttled:
        return "last resort: held back by its temperature"
    if conditions.on_battery:
        left = conditions.battery_percent
        return "last resort: on battery" + ("" if left is None else f" ({left:.0f} %)")
    if hints.region and not in_region(region, hints.region):
        return f"region {region}: the request prefers {hints.region}"
    return ""


def is_plain(hints: RoutingHints) -> bool:
    """Whether a request has neither rule nor preference of where it may run."""
    return not hints.region and not hints.labels


def all_usual(conditions: Collection[NodeConditions]) -> bool:
    """Whether nodes are all of the first group for a request without rules."""
    return not any(each.draining or each.is_last_resort or each.standby for each in conditions)
