"""What a model of code is given and asked for beyond the tensors that its clients see: those of its sequences.

A file of ONNX or LiteRT states all its tensors. Of a model of code only the configuration does, which names
control inputs and states in `sequence_batching` and nowhere else, as Triton's does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from meshnode.models.manifest import TensorSpec

if TYPE_CHECKING:
    from meshnode.models.execution import Execution


def kept_inputs(execution: Execution, max_batch_size: int) -> tuple[TensorSpec, ...]:
    """Return the inputs that the node fills in: controls, one element each, then states."""
    sequences = execution.sequences
    if sequences is None:
        return ()
    rows = (-1,) if max_batch_size > 0 else ()
    controls = [TensorSpec(each.name, each.datatype, (*rows, 1)) for each in sequences.controls]
    states = [
        TensorSpec(each.input_name, each.datatype, (*rows, *each.shape))
        for each in sequences.states
    ]
    return (*controls, *states)


def kept_outputs(execution: Execution, max_batch_size: int) -> tuple[TensorSpec, ...]:
    """Return the outputs that the node keeps for a sequence's next request: its states."""
    sequences = execution.sequences
    if sequences is None:
        return ()
    rows = (-1,) if max_batch_size > 0 else ()
    return tuple([
        TensorSpec(each.output_name, each.datatype, (*rows, *each.shape))
        for each in sequences.states
    ])  # fmt: skip


def with_kept(
    stated: tuple[TensorSpec, ...], kept: tuple[TensorSpec, ...]
) -> tuple[TensorSpec, ...]:
    """Return tensors with those that the node keeps to itself; a configuration may state these as well."""
    known = {spec.name for spec in stated}
    return (*stated, *[spec for spec in kept if spec.name not in known])


def without_kept(
    stated: tuple[TensorSpec, ...], kept: tuple[TensorSpec, ...]
) -> tuple[TensorSpec, ...]:
    """Return the tensors that clients see."""
    own = {spec.name for spec in kept}
    return tuple([spec for spec in stated if spec.name not in own])
