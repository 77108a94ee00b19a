"""What a process answered, as the node gives it on: checked against what the model promised."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meshnode.errors import InferenceFailed, MeshError, error_of
from meshnode.limits import MAX_WORKER_ERROR_LENGTH
from meshnode.models.workers.placing import find
from meshnode.types import ResponsePart, Tensor

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from meshnode.models.manifest import TensorSpec
    from meshnode.models.workers.protocol import WireAnswer

Outcome = tuple[Tensor, ...] | ResponsePart | MeshError
"""Of one request; a whole part only where the answer has parameters."""


def outcome_of(
    answer: WireAnswer,
    region: memoryview | None,
    start: int,
    wanted: Sequence[str],
    specs: Mapping[str, TensorSpec],
    *,
    may_be_empty: bool = False,
) -> Outcome:
    """Return an answer whose tensors are what they claim to be, or an error.

    Args:
        answer: What the process said.
        region: The memory that its tensors may lie in.
        start: Offset at which that begins.
        wanted: Outputs that were asked for; empty for all.
        specs: The model's outputs; empty where it names none.
        may_be_empty: Whether it may leave out all of them, as a part of a decoupled model's stream may.
    """
    if answer.code:
        return failure_of(answer.code, answer.error)
    try:
        tensors = tuple(
            Tensor(each.name, each.datatype, each.shape, data)
            for each, data in find(answer.outputs, region, start)
        )
        if specs:
            _check(tensors, wanted, specs, may_be_empty=may_be_empty)
    except InferenceFailed as error:
        return error
    return ResponsePart(tensors, answer.parameters) if answer.parameters else tensors


def failure_of(code: str, error: str) -> MeshError:
    """Return an error that a process told, cut to what a person reads."""
    return error_of(code, error[:MAX_WORKER_ERROR_LENGTH])


def _check(
    tensors: Sequence[Tensor],
    wanted: Sequence[str],
    specs: Mapping[str, TensorSpec],
    *,
    may_be_empty: bool,
) -> None:
    for tensor in tensors:
        spec = specs.get(tensor.name)
        if spec is None:
            known = ", ".join(specs)
            raise InferenceFailed(f"the model answered {tensor.name!r}; its outputs are {known}")
        if tensor.datatype is not spec.datatype or not spec.accepts(tensor.shape):
            raise InferenceFailed(
                f"the model answered {tensor.name!r} as {tensor.datatype} {list(tensor.shape)}; its "
                f"configuration says {spec.datatype} {list(spec.shape)}"
            )
    if not tensors:
        if may_be_empty:
            return
        raise InferenceFailed(
            f"the model answered without any output; its outputs are {', '.join(specs)}"
        )
    missing = set(wanted) - {tensor.name for tensor in tensors}
    if missing:
        raise InferenceFailed(f"the model did not answer {', '.join(sorted(missing))}")
