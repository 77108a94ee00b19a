"""Why a change is refused that was made from a revision which does not count any more."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from meshnode.errors import StaleRevision
from meshnode.state.deployment import NOTHING_BEFORE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_TOLD_CHANGES: Final = 3
"""Changes of others that a refusal names."""


def overtaken(name: str, base: str, kept: Sequence[Mapping[str, Any]]) -> StaleRevision:
    """Return the refusal, with who changed what since.

    Args:
        name: The deployment's.
        base: The revision that the change was made from.
        kept: Its revisions as `DeploymentViews.told` has them, newest first.
    """
    if base != NOTHING_BEFORE and all(each["id"] != base for each in kept):
        return StaleRevision(
            f"this node keeps no revision {base} of {name!r}: it is too old, or made a moment ago elsewhere. Look at "
            f"it with `meshnode history {name}`, and make your change from what counts, or give --force"
        )
    since = []
    for each in kept:
        if each["id"] == base:
            break
        since.append(f"{each['id']} by {each['by']} at {each['at']}: {each['summary']}")
    told = "; ".join(since[:_TOLD_CHANGES]) or "nothing is known of it"
    more = f"; and {len(since) - _TOLD_CHANGES} more" if len(since) > _TOLD_CHANGES else ""
    return StaleRevision(
        f"{name!r} was changed since revision {base}: {told}{more}. Look at it with `meshnode diff {name}`, make "
        "your change from that, or give --force to override it"
    )
