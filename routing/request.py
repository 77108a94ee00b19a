"""What routing knows of a request: enough to tell which replicas may take it, and how long each would."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Final, NamedTuple

from meshnode.types import NO_HINTS, RoutingHints

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meshnode.routing.affinity import SequencePart
    from meshnode.types import NodeId

NOTHING_SAVED: Final[Mapping[NodeId, float]] = MappingProxyType({})
"""Of a request that no replica has seen the like of."""


class RoutedRequest(NamedTuple):
    """A request, as routing sees it.

    Attributes:
        model: Public name of the model.
        version: The version to use, or None for the highest with a ready replica, looked up anew for each try.
        timeout_s: Seconds that remain for the answer.
        rows: Of its first input.
        size_bytes: Of all its inputs.
        tokens: That it may write at most, where it says so; 0 otherwise.
        hints: Where it may run, and how urgent it is.
        part: What it says about its sequence; None if it belongs to none.
        saves: Share of its run time that it is spared, by node (`meshnode.routing.stickiness`).
        home: The node that has its session; None for none.
        fallback: The version that is asked next, at no cost to the retry budget, once a try of `version` fails, takes
            long, or finds no replica; None for none.
        is_arm: Whether a release of the model chose the version, and not the caller: what becomes of it then says
            something about the version, as it does where none was asked for.
    """

    model: str
    version: int | None = None
    timeout_s: float = 30.0
    rows: int = 1
    size_bytes: int = 0
    tokens: int = 0
    hints: RoutingHints = NO_HINTS
    part: SequencePart | None = None
    saves: Mapping[NodeId, float] = NOTHING_SAVED
    home: NodeId | None = None
    fallback: int | None = None
    is_arm: bool = False
