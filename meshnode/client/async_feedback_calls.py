"""The methods of `AsyncMeshClient` about how good answers were."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meshnode.client import feedback as flows
from meshnode.client.async_calls import AsyncCalls
from meshnode.client.feedback import NO_LABEL

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meshnode.client.feedback import Disagreements, FeedbackResult


class AsyncFeedbackCalls(AsyncCalls):
    """What people say of answers."""

    async def feedback(
        self,
        request_id: str,
        metrics: Mapping[str, float] | None = None,
        *,
        label: object = NO_LABEL,
        timeout_s: float | None = None,
    ) -> FeedbackResult:
        """Say how good an answer was, or what would have been right; as `MeshClient.feedback`."""
        return await self._ask(flows.feedback(request_id, metrics or {}, label), timeout_s)

    async def disagreements(self, name: str, *, timeout_s: float | None = None) -> Disagreements:
        """Return where the new version of a deployment answers otherwise; as `MeshClient.disagreements`."""
        return await self._ask(flows.disagreements(name), timeout_s)
