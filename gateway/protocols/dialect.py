"""What a dialect is: pure functions from its HTTP requests to inferences, and back.

    body ── decode ──> Call(request, form) ── pipeline ──> parts ── encode ──> body
                                                          └─ or stream: one piece of the body per part

A dialect costs a file here, a set of routes, and a row in the conformance table. Routing, failover, batching, caching,
limits, jobs and metrics are the same for all (`meshnode.gateway.inference`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from meshnode.errors import MeshError
    from meshnode.gateway.protocols.http import HttpRequest, HttpResponse
    from meshnode.models.manifest import Manifest
    from meshnode.tracing import Trace
    from meshnode.types import InferRequest, InferResponse, ResponsePart


class Asked(NamedTuple):
    """What a request asks for, as far as its path and body say so.

    Attributes:
        http: The request.
        model: The model's name.
        version: The version that the caller insists on, or None.
        body: What was read of the body to find the model's name, so that nothing is read twice; else None.
    """

    http: HttpRequest
    model: str
    version: int | None = None
    body: Any = None


class PartEncoder(Protocol):
    """Encodes an answer part by part. One per request; it may keep what it has seen."""

    @property
    def headers(self) -> Mapping[str, str]:
        """Of the answer, its Content-Type above all. Asked after the first part was encoded."""
        ...

    def part(self, part: ResponsePart) -> bytes:
        """Return the piece of the body for a part; empty for a part that shows nothing.

        Raises:
            Enough: if the rest of the answer is not wanted.
        """
        ...

    def end(self) -> bytes:
        """Return what ends the body of a complete answer."""
        ...

    def failed(self, error: MeshError) -> bytes | None:
        """Return what tells, within the body, that the answer broke off; None where its form has no place for that.

        The connection then ends without the body's end, so that nobody takes a part for the whole.
        """
        ...


class Enough(Exception):
    """Raised by `PartEncoder.part` where no more of an answer is wanted: the work on it is stopped, `end` follows.

    Attributes:
        piece: Of the body, for the part that was given.
    """

    def __init__(self, piece: bytes = b"") -> None:
        super().__init__()
        self.piece = piece


class Call(NamedTuple):
    """A decoded request and the form of its answer.

    Attributes:
        request: For the pipeline. Its version is the manifest's.
        form: Whatever the dialect's `encode` needs to know.
        stream: Given where the client wants the answer as it is made; called with the answer before its first part.
        joined: Given where an answer of several parts is told as one document: its body is what `end` returns when
            all parts were given to `part`.
    """

    request: InferRequest
    form: Any = None
    stream: Callable[[InferResponse], PartEncoder] | None = None
    joined: Callable[[InferResponse], PartEncoder] | None = None


class Dialect(Protocol):
    """A dialect's module (or object) that serves inferences."""

    def decode(
        self, asked: Asked, manifest: Manifest, request_id: str, trace: Trace | None
    ) -> Call:
        """Return the inference that a request asks for.

        Args:
            asked: The request.
            manifest: The model version that will answer.
            request_id: For logs and headers.
            trace: The request's, if its caller named one.

        Raises:
            InvalidRequest: with what was expected.
            TooLarge: if a limit is exceeded.
        """
        ...

    def encode(self, response: InferResponse, part: ResponsePart, form: Any) -> HttpResponse:
        """Return a complete answer of one part."""
        ...
