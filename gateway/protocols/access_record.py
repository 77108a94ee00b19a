"""What the access log tells of one request: filled in by whoever comes to know it, written when the answer has ended.

A record is made only where there is an access log, so that a gateway without one pays nothing for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from meshnode.limits import MAX_ACCESS_LOG_TEXT_LENGTH

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meshnode.gateway.protocols.caller import Caller
    from meshnode.tracing import Trace

CLIENT_GONE = 499
"""The status of a request whose client went away before its answer (nginx' number; it is never sent)."""


class AccessRecord:
    """One request, as far as it is known.

    Attributes:
        began: When it came, in monotonic seconds.
        request_id: As the answer's `X-Request-Id` says it.
        method: The request's; of gRPC the procedure's path stands in `path` and the method is `POST`.
        path: Without the query, which may hold what is nobody's business.
        remote: The address at the other end of the connection; empty if there is none.
        user_agent: What the client calls itself.
        caller: Who asked; None if nobody was recognised.
        model: The model's name, if one was asked for.
        trace: This node's part of the request's trace, if a model was asked for.
        status: Of the answer; `CLIENT_GONE` as long as there is none.
        request_bytes: Of the body, as it was sent.
        response_bytes: Of the body, as far as it was sent.
        route: The answer's `Mesh-Route`.
        cache: The answer's `Mesh-Cache`.
        error: The error's code, if it failed.
        is_broken: Whether an answer that had begun ended before its end: its client hung up, or it failed.
        replayed: Whether the answer was kept from an earlier request with the same `Idempotency-Key`.
    """

    __slots__ = (
        "began", "cache", "caller", "error", "is_broken", "method", "model", "path", "remote", "replayed", "request_bytes",
        "request_id", "response_bytes", "route", "status", "trace", "user_agent",
    )  # fmt: skip

    def __init__(
        self,
        request_id: str,
        method: str,
        path: str,
        remote: str = "",
        user_agent: str = "",
    ) -> None:
        """Begin with what a request shows at once."""
        self.began = 0.0
        self.request_id = request_id
        self.method = method
        self.path = path
        self.remote = remote
        self.user_agent = user_agent
        self.caller: Caller | None = None
        self.model = ""
        self.trace: Trace | None = None
        self.status = CLIENT_GONE
        self.request_bytes = 0
        self.response_bytes = 0
        self.route = ""
        self.cache = ""
        self.error = ""
        self.replayed = False
        self.is_broken = False

    def __repr__(self) -> str:
        return f"<AccessRecord {self.request_id}: {self.method} {self.path} {self.status}>"

    def answered(self, status: int, headers: Mapping[str, str], response_bytes: int) -> None:
        """Note an answer."""
        self.status = status
        self.response_bytes = response_bytes
        self.route = headers.get("Mesh-Route", "")
        self.cache = headers.get("Mesh-Cache", "")
        self.error = headers.get("Mesh-Error", "")
        self.replayed = "Idempotent-Replayed" in headers

    def fields(self, time: str, duration_s: float) -> dict[str, Any]:
        """Return the line: what is known, and nothing that is empty.

        Args:
            time: When the request came, as RFC 3339 text.
            duration_s: From then until the answer was handed to the connection, or its stream ended.
        """
        line: dict[str, Any] = {
            "time": time,
            "request_id": self.request_id,
            "remote": self.remote,
            "method": self.method[:MAX_ACCESS_LOG_TEXT_LENGTH],
            "path": self.path[:MAX_ACCESS_LOG_TEXT_LENGTH],
            "status": self.status,
            "request_bytes": self.request_bytes,
            "response_bytes": self.response_bytes,
            "duration_ms": round(duration_s * 1e3, 3),
        }
        caller = self.caller
        trace = self.trace
        told = {
            "caller": "" if caller is None else caller.name or str(caller.scope),
            "key_id": "" if caller is None else caller.key_id,
            "model": self.model[:MAX_ACCESS_LOG_TEXT_LENGTH],
            "node": _node_of(self.route),
            "cache": self.cache,
            "error": self.error,
            "replayed": self.replayed,
            "broken": self.is_broken,
            "trace_id": "" if trace is None else trace.trace_id,
            "span_id": "" if trace is None else trace.span_id,
            "parent_id": "" if trace is None else trace.parent_id,
            "user_agent": self.user_agent[:MAX_ACCESS_LOG_TEXT_LENGTH],
        }
        line.update((name, value) for name, value in told.items() if value)
        for name, value in line.items():
            # Headers are whatever bytes a client sends; as text that is no UTF-8 they could not be written.
            if isinstance(value, str) and not value.isascii():
                line[name] = value.encode("utf-8", "backslashreplace").decode()
        return line


def _node_of(route: str) -> str:
    """Return the name of the node that a `Mesh-Route` header names first."""
    first = route.partition(";")[0]
    return first.removeprefix("node=") if first.startswith("node=") else ""
