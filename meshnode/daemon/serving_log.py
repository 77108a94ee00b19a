"""What a serving node logs about the requests of other nodes' gateways.

The same levels as the gateway's own lines (`meshnode.gateway.request_log`), and the same ids: the
span that asked is the parent of the one that answers.
"""

from __future__ import annotations

import logging
from collections import Counter
from typing import TYPE_CHECKING

from meshnode.errors import Cancelled, UsageError
from meshnode.limits import MAX_REQUEST_LOG_LINES, SLOW_REQUEST_S
from meshnode.log_fields import request_fields
from meshnode.net.log_budget import LogBudget

if TYPE_CHECKING:
    from meshnode.clock import Clock
    from meshnode.errors import MeshError
    from meshnode.tracing import TraceIds
    from meshnode.types import InferRequest

log = logging.getLogger(__name__)


class ServingLog:
    """Counts and logs how peers' requests ended.

    Attributes:
        outcomes: Requests by `ok` or the error's code.
    """

    def __init__(self, clock: Clock, traces: TraceIds) -> None:
        """Bound what is written by this clock; `traces` makes this node's spans."""
        self._traces = traces
        self.outcomes: Counter[str] = Counter()
        self._budget = LogBudget(log, clock, MAX_REQUEST_LOG_LINES)

    def __repr__(self) -> str:
        return f"<ServingLog {dict(self.outcomes)}>"

    @property
    def is_detailed(self) -> bool:
        """Whether every request has a line."""
        return log.isEnabledFor(logging.DEBUG)

    def wants(self, error: MeshError | None, took_s: float) -> bool:
        """Whether `ended` would write anything."""
        if error is not None and not isinstance(error, UsageError | Cancelled):
            return True
        return took_s > SLOW_REQUEST_S or self.is_detailed

    def ended(
        self,
        request: InferRequest,
        parent: str,
        peer: str,
        error: MeshError | None,
        took_s: float,
        defect: Exception | None = None,
    ) -> None:
        """Write the line of a request; ask `wants` first.

        Args:
            request: What was asked.
            parent: The asking node's span, as its message named it; this node's is made here,
                because nobody else hears of it and most requests have no line.
            peer: Name of the node that asked.
            error: What it was answered, or None if it was answered well.
            took_s: From its arrival to the end of its answer.
            defect: What nobody foresaw and was the reason, or None.
        """
        code = "ok" if error is None else error.code
        took_ms = round(took_s * 1e3, 3)
        fields = request_fields(
            request.request_id,
            self._traces.join(parent),
            model=request.model,
            peer=peer,
            outcome=code,
            duration_ms=took_ms,
        )
        if request.version is not None:
            fields["version"] = request.version
        text = f"infer {request.model} for node {peer}"
        if error is None:
            text += f" ok in {took_ms:.1f} ms"
        else:
            fields["code"] = code
            text += f" failed after {took_ms:.1f} ms: {code}: {error}"
        if defect is not None:
            log.error("%s", text, extra=fields, exc_info=defect)
        elif error is not None and not isinstance(error, UsageError | Cancelled):
            self._budget.write(
                logging.WARNING, f"served requests that ended in {code}", text, fields
            )
        elif error is None and took_s > SLOW_REQUEST_S:
            self._budget.write(logging.INFO, "slow requests of peers", text, fields)
        else:
            log.debug("%s", text, extra=fields)
