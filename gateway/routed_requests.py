"""A request as routing sees it, and as it is sent on: with the version that answers, and the time that is left."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meshnode.limits import MAX_BODY_BYTES
from meshnode.routing.affinity import sequence_part
from meshnode.routing.request import RoutedRequest
from meshnode.types import InferRequest

if TYPE_CHECKING:
    from meshnode.gateway.targets import Arm
    from meshnode.models.manifest import Manifest
    from meshnode.routing.affinity import SequencePart
    from meshnode.tracing import Trace


_TOKENS_PARAMETER = "max_tokens"


def variant(
    request: InferRequest,
    version: int,
    timeout_s: float,
    trace: Trace | None,
    *,
    elsewhere: bool = False,
) -> InferRequest:
    """Return a request with another version, time (in seconds) and trace, and whether it may go elsewhere; all else stays."""
    return InferRequest(
        request.model,
        request.inputs,
        version,
        request.outputs,
        request.request_id,
        request.parameters,
        timeout_s,
        trace,
        request.cache_control,
        request.hints,
        request.keep,
        elsewhere,
    )


def routed(
    request: InferRequest,
    version: int | None,
    part: SequencePart | None,
    arm: Arm | None = None,
) -> RoutedRequest:
    """Return what routing needs to know of a request that insists on a version, or for which a release chose one, or neither."""
    return RoutedRequest(
        request.model,
        version,
        request.timeout_s,
        request.rows,
        sum(tensor.size_bytes for tensor in request.inputs),
        _most_tokens(request),
        hints=request.hints,
        part=part,
        fallback=None if arm is None else arm.fallback,
        is_arm=arm is not None,
    )


def part_of_sequence(manifest: Manifest, request: InferRequest) -> SequencePart | None:
    """Return what a request says about its sequence; None for other models, and where it says nothing valid."""
    sequences = manifest.execution.sequences
    if sequences is None:
        return None
    return sequence_part(request.parameters, sequences.max_idle_us / 1e6)


def _most_tokens(request: InferRequest) -> int:
    """Return how many tokens a request may have written, where it says so in whole numbers; else 0."""
    most = request.parameters.get(_TOKENS_PARAMETER)
    if isinstance(most, bool) or not isinstance(most, int):
        return 0
    return min(MAX_BODY_BYTES, max(0, most))
