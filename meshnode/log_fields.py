"""The fields that lines of the log carry beside their message, and how a request's are put together.

::

    log.warning("...", extra=request_fields(request_id, trace, model="digits", code="link_lost"))

Names are stable: people and programs search by them. A field without a value is left out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypedDict, Unpack

if TYPE_CHECKING:
    from meshnode.tracing import Trace


class LogFields(TypedDict, total=False):
    """All fields there are, in the order in which lines show them.

    Attributes:
        node: Name of the node that writes; on every line once it is known.
        mesh: Id of its mesh; likewise.
        request_id: What the answer's `X-Request-Id` says, the same on every node.
        trace_id: The trace that the request belongs to, the same on every node.
        span_id: This node's part in it.
        parent_id: The span that asked this node.
        model: Public name of the model.
        version: Its version.
        peer: Name of the node that was asked, or that asked.
        outcome: `ok`, `cancelled`, or the error's code.
        code: The error's code (docs/errors.md).
        duration_ms: How long it took.
        attempts: How many replicas were tried.
        tried: Those that failed, each with its code.
    """

    node: str
    mesh: str
    request_id: str
    trace_id: str
    span_id: str
    parent_id: str
    model: str
    version: int
    peer: str
    outcome: str
    code: str
    duration_ms: float
    attempts: int
    tried: str


FIELDS: Final = tuple(LogFields.__annotations__)
"""The names, in order."""


def request_fields(
    request_id: str, trace: Trace | None = None, /, **others: Unpack[LogFields]
) -> LogFields:
    """Return what every line about a request carries, and others of `LogFields`."""
    fields: LogFields = {"request_id": request_id}
    if trace is not None:
        fields["trace_id"] = trace.trace_id
        fields["span_id"] = trace.span_id
        fields["parent_id"] = trace.parent_id
    fields.update(others)
    return fields
