"""The words in which a request is refused that no replica answered."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meshnode.errors import DeadlineExceeded, MeshError, NoReplica, OutcomeUnknown, Saturated

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


def unknown_outcome(model: str, node_name: str, error: MeshError) -> MeshError:
    """Return what is said of a request that may have run, and must not run twice.

    Args:
        model: What it asked for.
        node_name: Where it went.
        error: What came of it there.
    """
    return OutcomeUnknown(
        f"no answer came from {node_name} ({error}). The request may have run, and it "
        f"was not tried elsewhere, because requests of model {model!r} must not run twice"
    )


def all_busy(model: str, error: MeshError | None, retry_after_s: float) -> MeshError:
    """Return what is said where all replicas are busy; `error` is what the last one said."""
    said = f" ({error})" if isinstance(error, Saturated) else ""
    return Saturated(
        f"every replica of model {model!r} is busy; try again later{said}", retry_after_s
    )


def nobody_can(
    model: str, failed: Mapping[str, str], left_out: Iterable[tuple[str, str]]
) -> MeshError:
    """Return what is said where no replica can take a request.

    Args:
        model: What it asks for.
        failed: Names of the nodes that were tried, with the code of the error.
        left_out: Names of those that were not, with the reason.
    """
    reasons = [f"{name}: {failed.get(name, reason)}" for name, reason in left_out]
    return NoReplica(f"no replica of model {model!r} can take the request: {'; '.join(reasons)}")


def is_conclusive(error: MeshError) -> bool:
    """Whether an error says all, although another try is out: no other replica would say anything else."""
    return not error.retryable and not isinstance(error, DeadlineExceeded)
