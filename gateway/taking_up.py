"""Streams that another gateway began, and that end here, since that gateway is lost.

The node that makes the answer keeps it and tells what follows. Where that node is lost too, but the model is resumable,
the request runs anew, and what the client has is left out. Else nobody has the rest: NotFound.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol

from meshnode.errors import MeshError, NotFound, PeerError
from meshnode.gateway.answer_streams import HUNG_UP, AnswerStream, Delivered

if TYPE_CHECKING:
    from meshnode.gateway.pipeline import Pipeline
    from meshnode.gateway.targets import Target
    from meshnode.routing.attempts import Attempts
    from meshnode.types import InferRequest, InferResponse, KeptAs, NodeId


class KeptElsewhere(Protocol):
    """The way to streams that nodes keep (`meshnode.daemon.kept_streams`)."""

    async def resume(self, node: NodeId, keep: KeptAs, timeout_s: float) -> InferResponse:
        """Return what follows of a stream; NotFound if it is not kept there, LinkLost if the node is not reached."""
        ...


async def take_up(
    pipeline: Pipeline, request: InferRequest, target: Target, executor: NodeId
) -> tuple[InferResponse, str]:
    """Go on with a stream that another gateway began.

    Args:
        pipeline: Of this gateway.
        request: As it was asked then; its `keep` names the stream, and says what its client has.
        target: What `Pipeline.resolve` returned.
        executor: The node that made the answer.

    Returns:
        The rest, and the `Mesh-Route` header.

    Raises:
        NotFound: if nobody keeps it for this owner.
        MeshError: if the node is lost, or no other one can go on.
    """
    keep, kept = request.keep, pipeline.kept
    if keep is None or kept is None:
        raise NotFound("this gateway takes no streams up")
    running = pipeline.enter(request, target.manifest)
    attempts: Attempts | None = None
    begun: InferResponse | None = None
    failure: MeshError | None = None
    try:
        try:
            begun = await kept.resume(executor, keep, request.timeout_s)
        except (NotFound, PeerError):
            if running.goes_on is None:
                raise
            attempts, begun, _ = await running.goes_on(Delivered(keep.after), ())
    except MeshError as error:
        failure = error
        raise
    except asyncio.CancelledError:
        failure = HUNG_UP
        raise
    finally:
        if begun is None:
            running.ended(failure, attempts)
    header = f"{executor}; reason=resumed" if attempts is None else attempts.header
    stream = AnswerStream(
        begun,
        attempts,
        pipeline.now,
        running.ended,
        running.goes_on,
        has_parts=keep.after,
        anew=attempts is not None,
    )
    return stream.response, header
