"""What is read off a version and off a request before it stands in the queue."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meshnode.errors import InvalidRequest, Saturated
from meshnode.models.serving.joining import has_rows
from meshnode.types import Priority

if TYPE_CHECKING:
    from meshnode.models.execution import DynamicBatching
    from meshnode.models.manifest import Manifest
    from meshnode.models.serving.instances import Asked, Instances
    from meshnode.models.serving.rate_limit import TokenBucket
    from meshnode.types import InferRequest


def why_apart(manifest: Manifest, instances: Instances, seen: str) -> str:
    """Return why requests of a version are not joined; empty if they are.

    Args:
        manifest: What it is.
        instances: What executes it.
        seen: What the warm-up found against it; empty if nothing.
    """
    execution = manifest.execution
    if execution.sequences is not None:
        return ""
    if execution.decoupled:
        return "each request has its own stream of answers"
    if execution.batching is not None:
        return "" if manifest.max_batch_size > 1 else "its configuration allows one row"
    if not execution.adaptive:
        return "it is not configured"
    if manifest.max_batch_size == 1:
        return "it takes one row"
    if not has_rows(manifest):
        return "not every tensor's first dimension is free"
    if instances.takes_lists:
        return "a Python model gets one request at a time unless batching is configured"
    return seen


def join_sequence(job: Asked, manifest: Manifest) -> None:
    """Read from a request's parameters which sequence it belongs to.

    Raises:
        InvalidRequest: if that is missing, or it has several rows.
    """
    parameters = job.request.parameters
    said = parameters.get("sequence_id", 0)
    correlation_id = said if isinstance(said, str) else number(said)
    if correlation_id is None:
        raise InvalidRequest(
            "parameter 'sequence_id' must be a whole number, 0 or more, or a string"
        )
    if not correlation_id:
        raise InvalidRequest(
            f"model {manifest.model!r} works on sequences: each request needs the parameter "
            "'sequence_id', and the first of a sequence 'sequence_start'"
        )
    if manifest.max_batch_size > 0 and job.rows != 1:
        raise InvalidRequest(
            f"a request of a sequence has one row, not {job.rows} (model {manifest.model!r})"
        )
    job.correlation_id = correlation_id
    job.start = bool(parameters.get("sequence_start", False))
    job.end = bool(parameters.get("sequence_end", False))
    job.elsewhere = job.request.elsewhere


def level_of(request: InferRequest, batching: DynamicBatching | None) -> int:
    """Return the priority level at which a request waits: what it names itself, or what its priority is here.

    Level 1 goes first. A request that is as urgent as most has the model's default (0 stands for it), also where
    the model knows no levels.
    """
    named = number(request.parameters.get("priority")) if request.parameters else None
    if named or batching is None or not batching.priority_levels:
        return named or 0
    by_priority = {Priority.HIGH: 1, Priority.LOW: batching.priority_levels}
    return by_priority.get(request.hints.priority, 0)


def hold_to(bucket: TokenBucket, now: float, manifest: Manifest) -> None:
    """Count a request against its version's rate.

    Raises:
        Saturated: if there is no room for it.
    """
    wait_s = bucket.take(now)
    if wait_s > 0:
        raise Saturated(
            f"model {manifest.model!r} takes {1 / bucket.refill_s:g} requests per second on each node; "
            f"the next in {wait_s:.3g} s",
            wait_s,
        )


def number(value: object) -> int | None:
    """Return a parameter as a whole number of 0 or more; None if it is something else."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
