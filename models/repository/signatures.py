"""A model's tensors: what its configuration says, reconciled with what its file says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from meshnode.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from meshnode.models.execution import SequenceBatching
    from meshnode.models.manifest import TensorSpec
    from meshnode.models.repository.config import ModelConfig
    from meshnode.types import DataType


@dataclass(frozen=True, slots=True)
class Signature:
    """A model's tensors, full shapes, and whether their first dimension is a limited batch."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    max_batch_size: int = 0


def reconcile(config: ModelConfig | None, file: Signature) -> Signature:
    """Combine a configuration with what the model's file says.

    As in Triton's ONNX Runtime backend: all inputs must be configured, outputs may be a subset;
    a dimension that the file fixes must be the same in the configuration, one that is dynamic in
    the file may be fixed by it. A tensor whose shape the file does not state (ONNX Runtime then
    reports no dimensions) takes the configured one. Where the configuration has a reshape, that is
    compared with the file, and clients see the `dims`.

    Inputs and outputs that the node itself fills in and keeps for sequences are not part of the result:
    clients neither give nor see them.

    Args:
        config: The configuration, or None if there is none.
        file: The tensors as the file states them; its `max_batch_size` is not used.

    Raises:
        ModelError: naming both sides where they disagree.
    """
    if config is None:
        return Signature(file.inputs, file.outputs)
    if config.execution.sequences is not None:
        file = _without_sequences(config.execution.sequences, file)
    reshapes = dict(config.execution.reshape)
    inputs = _reconcile_side("input", config, config.inputs, file.inputs, reshapes)
    outputs = _reconcile_side("output", config, config.outputs, file.outputs, reshapes)
    if len(inputs) != len(file.inputs):
        raise ModelError(
            f"config.pbtxt has {len(inputs)} inputs ({_names(inputs)}), the file has "
            f"{len(file.inputs)} ({_names(file.inputs)})"
        )
    if config.max_batch_size:
        _check_batch(config.max_batch_size, (*inputs, *outputs), file)
    return Signature(inputs, outputs, config.max_batch_size)


def _without_sequences(sequences: SequenceBatching, file: Signature) -> Signature:
    """Check the controls and states against the file, and return what is left for clients."""
    inputs = {spec.name: spec for spec in file.inputs}
    outputs = {spec.name: spec for spec in file.outputs}
    for control in sequences.controls:
        _check_own("control input", control.name, control.datatype, inputs)
    for state in sequences.states:
        _check_own("state input", state.input_name, state.datatype, inputs)
        _check_own("state output", state.output_name, state.datatype, outputs)
    own = {control.name for control in sequences.controls}
    own |= {state.input_name for state in sequences.states}
    own_outputs = {state.output_name for state in sequences.states}
    return Signature(
        tuple(spec for spec in file.inputs if spec.name not in own),
        tuple(spec for spec in file.outputs if spec.name not in own_outputs),
    )


def _check_own(kind: str, name: str, datatype: DataType, known: Mapping[str, TensorSpec]) -> None:
    actual = known.get(name)
    if actual is None:
        raise ModelError(f"config.pbtxt has {kind} {name!r}, the file has {_names(known.values())}")
    if actual.datatype != datatype:
        raise ModelError(
            f"{kind} {name!r} is {datatype} in config.pbtxt, but {actual.datatype} in the file"
        )


def _check_batch(max_batch_size: int, specs: Iterable[TensorSpec], file: Signature) -> None:
    in_file = {spec.name: spec for spec in (*file.outputs, *file.inputs)}
    for spec in specs:
        shape = in_file[spec.name].shape
        if shape and shape[0] != -1:
            raise ModelError(
                f"config.pbtxt has max_batch_size {max_batch_size}, but the first "
                f"dimension of {spec.name!r} is fixed in the file: {list(shape)}"
            )


def _reconcile_side(
    kind: str,
    config: ModelConfig,
    configured: tuple[TensorSpec, ...],
    in_file: tuple[TensorSpec, ...],
    reshapes: Mapping[str, tuple[int, ...]],
) -> tuple[TensorSpec, ...]:
    if not configured:
        return in_file
    known = {spec.name: spec for spec in in_file}
    if len({spec.name for spec in configured}) != len(configured):
        raise ModelError(f"config.pbtxt names an {kind} twice: {_names(configured)}")
    for spec in configured:
        actual = known.get(spec.name)
        if actual is None:
            raise ModelError(
                f"config.pbtxt has {kind} {spec.name!r}, the file has {_names(in_file)}"
            )
        if actual.datatype != spec.datatype:
            raise ModelError(
                f"{kind} {spec.name!r} is {spec.datatype} in config.pbtxt, but "
                f"{actual.datatype} in the file"
            )
        shape = spec.shape
        if spec.name in reshapes:
            shape = ((-1,) if config.max_batch_size else ()) + reshapes[spec.name]
        if actual.shape and not _narrows(shape, actual.shape):
            how = "by the reshape of" if spec.name in reshapes else "by"
            raise ModelError(
                f"{kind} {spec.name!r} has shape {list(shape)} {how} config.pbtxt, but "
                f"{list(actual.shape)} in the file"
            )
    return configured


def _narrows(configured: Sequence[int], in_file: Sequence[int]) -> bool:
    """Whether a configured shape is the file's, or fixes some of its dynamic dimensions."""
    return len(configured) == len(in_file) and all(
        size in (-1, wanted) for wanted, size in zip(configured, in_file, strict=True)
    )


def _names(specs: Iterable[TensorSpec]) -> str:
    return ", ".join(repr(spec.name) for spec in specs) or "none"
