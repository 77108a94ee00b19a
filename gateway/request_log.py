"""What the gateway logs about requests.

| level | what |
|---|---|
| debug | every request: `infer digits ok in 3.2 ms on node beta`; also those that the client got wrong |
| info | the same line, when it took longer than `SLOW_REQUEST_S` |
| warning | a failed attempt, and a request that failed, unless its client is to blame |

Lines above debug are bounded (`MAX_REQUEST_LOG_LINES`): what clients cause must not fill a disk.
"""

from __future__ import annotations

import logging
import random
from typing import TYPE_CHECKING

from meshnode.errors import Cancelled, DeadlineExceeded, InferenceFailed, UsageError
from meshnode.limits import MAX_REQUEST_LOG_LINES, SLOW_REQUEST_S
from meshnode.log_fields import request_fields
from meshnode.net.log_budget import LogBudget
from meshnode.tracing import TraceIds

if TYPE_CHECKING:
    from collections.abc import Sequence

    from meshnode.clock import Clock
    from meshnode.errors import MeshError
    from meshnode.tracing import Trace
    from meshnode.types import InferRequest

log = logging.getLogger(__name__)

Tried = tuple[tuple[str, str], ...]
"""Node name and error code of each attempt that failed."""


class RequestLog:
    """Writes the lines, with the ids of the request on each.

    Attributes:
        traces: Makes this gateway's spans.
    """

    def __init__(self, clock: Clock, traces: TraceIds | None = None) -> None:
        """Bound what is written by this clock."""
        self.traces = traces or TraceIds(random.SystemRandom())
        self._budget = LogBudget(log, clock, MAX_REQUEST_LOG_LINES)

    def __repr__(self) -> str:
        return f"<RequestLog {self._budget!r}>"

    def wants(self, took_s: float) -> bool:
        """Whether `answered` would write anything."""
        return took_s > SLOW_REQUEST_S or log.isEnabledFor(logging.DEBUG)

    def answered(
        self, request: InferRequest, version: int, node: str, took_s: float, tried: Tried = ()
    ) -> None:
        """A request was answered by a node; ask `wants` first."""
        took_ms = round(took_s * 1e3, 3)
        text = f"infer {request.model} ok in {took_ms:.1f} ms on node {node}"
        fields = request_fields(
            request.request_id,
            request.trace or self.traces.begin(),
            model=request.model,
            version=version,
            peer=node,
            outcome="ok",
            duration_ms=took_ms,
            attempts=len(tried) + 1,
            tried=_spelled(tried),
        )
        if took_s > SLOW_REQUEST_S:
            self._budget.write(logging.INFO, "slow requests", text, fields)
        else:
            log.debug("%s", text, extra=fields)

    def attempt_failed(
        self,
        request: InferRequest,
        version: int,
        node: str,
        error: MeshError,
        took_s: float,
        *,
        local: bool = False,
    ) -> None:
        """A replica did not answer; another may be tried.

        What a model of this node (`local`) raised, or a deadline here, is tried nowhere else: the request's own
        line tells it.
        """
        blameless = not isinstance(error, UsageError) and not (
            local and isinstance(error, InferenceFailed | DeadlineExceeded)
        )
        if not blameless and not log.isEnabledFor(logging.DEBUG):
            return
        took_ms = round(took_s * 1e3, 3)
        text = (
            f"infer {request.model} on node {node} failed after {took_ms:.1f} ms: "
            f"{error.code}: {error}"
        )
        fields = request_fields(
            request.request_id,
            request.trace or self.traces.begin(),
            model=request.model,
            version=version,
            peer=node,
            outcome=error.code,
            code=error.code,
            duration_ms=took_ms,
        )
        if blameless:
            kind = f"attempts that ended in {error.code}"
            self._budget.write(logging.WARNING, kind, text, fields)
        else:
            log.debug("%s", text, extra=fields)

    def failed(
        self,
        model: str,
        request_id: str,
        trace: Trace | None,
        error: MeshError,
        took_s: float | None = None,
        tried: Tried = (),
    ) -> None:
        """A request failed.

        Args:
            model: As the client named it.
            request_id: Of the request.
            trace: Likewise, or None if it has none yet.
            error: What the client is told.
            took_s: How long it was worked on; None if it never was.
            tried: The attempts before.
        """
        blameless = not isinstance(error, UsageError | Cancelled)
        if not blameless and not log.isEnabledFor(logging.DEBUG):
            return
        after = "" if took_s is None else f" after {took_s * 1e3:.1f} ms"
        text = f"infer {model} failed{after}: {error.code}: {error}"
        fields = request_fields(
            request_id,
            trace or self.traces.begin(),
            model=model,
            outcome=error.code,
            code=error.code,
            attempts=len(tried),
            tried=_spelled(tried),
        )
        if took_s is not None:
            fields["duration_ms"] = round(took_s * 1e3, 3)
        if blameless:
            self._budget.write(
                logging.WARNING, f"requests that ended in {error.code}", text, fields
            )
        else:
            log.debug("%s", text, extra=fields)


def _spelled(tried: Sequence[tuple[str, str]]) -> str:
    return ", ".join(f"{node}: {code}" for node, code in tried)
