"""How this node's gateway decides about requests, as plain dictionaries and as its log."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from meshnode.errors import NoReplica
from meshnode.routing.choice import Candidates
from meshnode.routing.explaining import explain
from meshnode.routing.request import RoutedRequest

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from meshnode.clock import Clock
    from meshnode.gateway.explain_api import AskedFor
    from meshnode.node import Node
    from meshnode.routing.decisions import Decision, Recorder
    from meshnode.routing.explaining import Explained, Explanation
    from meshnode.types import NodeId, RoutingHints


class RoutingViews:
    """What one gateway can tell of its decisions."""

    def __init__(
        self, node: Node, clock: Clock, name_of: Callable[[NodeId], str], recorder: Recorder
    ) -> None:
        """Look at a node's router, and at what was recorded of its decisions."""
        self._node = node
        self._clock = clock
        self._name_of = name_of
        self._recorder = recorder

    def __repr__(self) -> str:
        return f"<RoutingViews of {self._recorder!r}>"

    def explain(self, model: str, asked: AskedFor, hints: RoutingHints) -> dict[str, Any]:
        """Tell where a request would go, and why.

        Raises:
            ModelNotFound: if the mesh has no such model, or no such version of it.
        """
        router, now = self._node.router, self._clock.now()
        request = RoutedRequest(
            model, asked.version, asked.timeout_s, asked.rows, asked.bytes, asked.tokens, hints
        )
        version = asked.version
        try:
            version = router.resolve(model, version)
            candidates = router.candidates(model, version)
        except NoReplica:
            usual = router.table.usual(model)
            version = version or (usual.version if usual else max(router.table.versions(model)))
            group = router.table.group(model, version)
            excluded = () if group is None else group.excluded
            candidates = Candidates((), tuple((each.node_name, why) for each, why in excluded))
        told = explain(candidates, router.stickiness.placed(request, now), now)
        return {
            "gateway": self._name_of(self._node.me),
            "model": model,
            "version": version,
            **view(told),
        }

    def decisions(self) -> Sequence[Decision]:
        """Return the last decisions, oldest first."""
        return [
            msgspec.structs.replace(each, time=self.time_of(each.now))
            for each in self._recorder.kept
        ]

    def time_of(self, moment: float) -> str:
        """Return a moment of this node's clock as a calendar says it."""
        from meshnode.daemon.log_format import timestamp

        return timestamp(self._clock.wall_s() - (self._clock.now() - moment))


def view(told: Explanation) -> dict[str, Any]:
    """Return an explanation as JSON tells it (`meshnode.gateway.explain_api`)."""
    return {
        "reason": told.reason,
        "estimated": told.estimated,
        "candidates": [_candidate(each) for each in told.replicas],
        "excluded": [{"name": name, "reason": reason} for name, reason in told.excluded],
    }


def _candidate(each: Explained) -> dict[str, Any]:
    seen = each.seen
    return {
        "node": seen.node,
        "name": seen.name,
        "region": seen.region,
        "odds": each.odds,
        "expected_ms": seen.score_ms,
        "terms": seen.terms._asdict(),
        "slots": seen.slots,
        "queued": each.queued,
        "outstanding": each.outstanding,
        "report_age_s": each.age_s,
        "link": str(seen.link),
        "breaker": str(seen.breaker),
        "dropped": each.dropped,
        "later": each.later,
    }
