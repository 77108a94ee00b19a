"""The methods of `MeshClient` about how good answers were."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meshnode.client import feedback as flows
from meshnode.client.blocking_calls import BlockingCalls
from meshnode.client.feedback import NO_LABEL

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meshnode.client.feedback import Disagreements, FeedbackResult


class FeedbackCalls(BlockingCalls):
    """What people say of answers."""

    def feedback(
        self,
        request_id: str,
        metrics: Mapping[str, float] | None = None,
        *,
        label: object = NO_LABEL,
        timeout_s: float | None = None,
    ) -> FeedbackResult:
        """Say how good an answer of a model in a release was, or what would have been right.

        It counts for the version that answered. Any gateway takes it, for a day.

        Args:
            request_id: Of the answer (`result.request_id`).
            metrics: Numbers by name, such as `{"stars": 4}`; true is 1, false 0. Each counts once for an answer.
            label: What would have been right, in a release with `against = "labels"`: a value, a list of values, or
                values by the names of the outputs.
            timeout_s: Seconds for the call.

        Raises:
            NotFound: if no gateway remembers an answer of this id to this API key; the message says why that may be.
            InvalidRequest: if it says nothing, a metric is measured by the gateways themselves, or the label names an
                output that the answer has not.
        """
        return self._ask(flows.feedback(request_id, metrics or {}, label), timeout_s)

    def disagreements(self, name: str, *, timeout_s: float | None = None) -> Disagreements:
        """Return where the new version of a deployment answers otherwise than it should, as all gateways saw it.

        Needs the scope `deploy`, since the examples show what clients sent.

        Args:
            name: The deployment's.
            timeout_s: Seconds for the call.
        """
        return self._ask(flows.disagreements(name), timeout_s)
