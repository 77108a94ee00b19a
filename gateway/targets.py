"""What a request is for, and what came of it: the words that the parts of a gateway's pipeline have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from meshnode.models.serving.response_cache import HIT

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meshnode.models.manifest import Manifest
    from meshnode.routing.table import ReplicaGroup
    from meshnode.types import InferResponse, NodeId


class Target(NamedTuple):
    """What a request is for.

    Attributes:
        manifest: The model version that will answer, unless its last replica is lost meanwhile
            and the caller did not insist on it.
        asked: The version that the caller insists on, or that a release chose; None for neither.
        group: Its replicas.
    """

    manifest: Manifest
    asked: int | None
    group: ReplicaGroup


class Arm(NamedTuple):
    """What a release decided about a request that names no version.

    Attributes:
        fallback: The version that answers if the chosen one fails; None where there is none to take its place.
    """

    fallback: int | None = None


class Answered(NamedTuple):
    """An answer, and where it came from.

    Attributes:
        response: The answer.
        route_header: The `Mesh-Route` header: which replica gave it, and why that one.
        cache: `hit`, `miss` or `bypass` if the model's answers are kept; else empty.
        age_s: How long ago a kept answer was made.
        node: Who gave it; None for an answer that this node gave at once.
    """

    response: InferResponse
    route_header: str
    cache: str = ""
    age_s: float = 0.0
    node: NodeId | None = None

    @property
    def is_kept(self) -> bool:
        """Whether no model ran for it."""
        return self.cache == HIT

    @property
    def cache_headers(self) -> Mapping[str, str]:
        """The headers about kept answers; none where the model keeps none."""
        if self.cache == HIT:
            return {"Mesh-Cache": HIT, "Age": str(int(self.age_s))}
        return {"Mesh-Cache": self.cache} if self.cache else {}
