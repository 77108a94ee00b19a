"""What a model is told of sequences besides its inputs: control inputs, and the states of its last answer.

Each request of a sequence is one row. `completed` gives it the controls (start, end, ready, correlation id)
and states that the configuration names; a batch has one row per slot up to the highest that runs, and the rows
of slots that have nothing to do are zeros that are not `ready`. What the model says of its states is kept with
the sequence for its next request, and is not part of the answer unless it is an output too.
"""

from __future__ import annotations

import math
import struct
from typing import TYPE_CHECKING, Final

from meshnode.errors import InferenceFailed, InvalidRequest
from meshnode.models.execution import ControlKind
from meshnode.types import DataType, Tensor

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from meshnode.models.execution import ControlInput, SequenceBatching
    from meshnode.models.manifest import Manifest, TensorSpec
    from meshnode.models.serving.sequences import SequenceJob

_FORMATS: Final = {
    DataType.BOOL: "<?", DataType.UINT8: "<B", DataType.UINT16: "<H", DataType.UINT32: "<I",
    DataType.UINT64: "<Q", DataType.INT8: "<b", DataType.INT16: "<h", DataType.INT32: "<i",
    DataType.INT64: "<q", DataType.FP16: "<e", DataType.FP32: "<f", DataType.FP64: "<d",
}  # fmt: skip

_STRING_LENGTH: Final = struct.Struct("<I")
_NO_STRING: Final = _STRING_LENGTH.pack(0)


def is_direct(manifest: Manifest) -> bool:
    """Whether a model's sequences are rows of a batch, so that each row must be there."""
    sequences = manifest.execution.sequences
    return sequences is not None and sequences.strategy == "direct" and manifest.max_batch_size > 0


class SequenceRows:
    """Completes the rows of one version's sequences."""

    def __init__(
        self,
        manifest: Manifest,
        settings: SequenceBatching,
        specs: Sequence[TensorSpec],
        initial_states: Mapping[str, bytes],
    ) -> None:
        """Read the settings.

        Args:
            manifest: What it is.
            settings: Of its sequences.
            specs: All inputs as the model states them, controls and states included.
            initial_states: Bytes of states that do not begin as zeros, by input name.
        """
        self._settings = settings
        self._batch = manifest.max_batch_size > 0
        self._specs = {spec.name: spec for spec in specs}
        self._initial_states = initial_states

    def __repr__(self) -> str:
        return f"<SequenceRows {len(self._settings.controls)} controls, {len(self._settings.states)} states>"

    def outputs(self, wanted: tuple[str, ...]) -> tuple[str, ...]:
        """Return what to ask the model for: what is wanted, and the states."""
        states = [each.output_name for each in self._settings.states]
        return (*wanted, *[name for name in states if name not in wanted])

    def completed(self, inputs: Sequence[Tensor], job: SequenceJob) -> tuple[Tensor, ...]:
        """Return a job's inputs with its controls and states.

        Raises:
            InvalidRequest: if its correlation id is of another type than the model wants.
        """
        controls = [self._control(each, job) for each in self._settings.controls]
        return (*inputs, *controls, *self._states(job))

    def idle(self, row: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return the row of a slot that has nothing to do, in the form of one that has."""
        ready = {
            each.name: each for each in self._settings.controls if each.kind is ControlKind.READY
        }
        return tuple([
            self._flag(ready[tensor.name], value=False) if tensor.name in ready else _zeros(tensor)
            for tensor in row
        ])  # fmt: skip

    def taken(
        self, job: SequenceJob, outputs: Sequence[Tensor], wanted: Sequence[str]
    ) -> tuple[Tensor, ...]:
        """Keep the states among a model's outputs for the sequence's next job; return those wanted.

        Raises:
            InferenceFailed: if a state is missing.
        """
        given = {tensor.name: tensor for tensor in outputs}
        sequence = job.sequence
        for state in self._settings.states:
            tensor = given.get(state.output_name)
            if tensor is None:
                raise InferenceFailed(f"the model gave no state {state.output_name!r}")
            if sequence is not None:
                # A copy: the answer's memory is its reader's, and the batch's should not be kept.
                kept = Tensor(state.input_name, state.datatype, tensor.shape, bytes(tensor.data))
                sequence.states[state.input_name] = kept
        return tuple([given[name] for name in wanted if name in given])

    def _control(self, control: ControlInput, job: SequenceJob) -> Tensor:
        if control.kind is ControlKind.CORRELATION_ID:
            return self._correlation_id(control, job.correlation_id)
        value = {
            ControlKind.START: job.start,
            ControlKind.END: job.end,
            ControlKind.READY: True,
        }[control.kind]
        return self._flag(control, value=value)

    def _flag(self, control: ControlInput, *, value: bool) -> Tensor:
        number = control.values[value] if control.values else float(value)
        return self._scalar(control, number)

    def _correlation_id(self, control: ControlInput, value: int | str) -> Tensor:
        if control.datatype is DataType.BYTES:
            content = str(value).encode()
            data = _STRING_LENGTH.pack(len(content)) + content
            return Tensor(control.name, control.datatype, self._shape(control.name), data)
        if isinstance(value, str):
            raise InvalidRequest(
                f"sequence_id is {value!r}, but this model wants a number ({control.datatype})"
            )
        return self._scalar(control, value)

    def _scalar(self, control: ControlInput, value: float) -> Tensor:
        layout = _FORMATS[control.datatype]
        number = value if control.datatype in _FLOATS else int(value)
        try:
            data = struct.pack(layout, number)
        except struct.error:
            raise InvalidRequest(
                f"sequence_id {value} does not fit {control.datatype}, which this model wants"
            ) from None
        return Tensor(control.name, control.datatype, self._shape(control.name), data)

    def _shape(self, name: str) -> tuple[int, ...]:
        spec = self._specs.get(name)
        if spec is None:
            return (1, 1) if self._batch else (1,)
        return (1,) * len(spec.shape)

    def _states(self, job: SequenceJob) -> list[Tensor]:
        kept = {} if job.start or job.sequence is None else job.sequence.states
        tensors = []
        for state in self._settings.states:
            tensor = kept.get(state.input_name)
            if tensor is None:
                shape = tuple(max(1, size) for size in state.shape)
                data = self._initial_states.get(state.input_name) or _empty(state.datatype, shape)
                shape = (1, *shape) if self._batch else shape
                tensor = Tensor(state.input_name, state.datatype, shape, data)
            tensors.append(tensor)
        return tensors


_FLOATS: Final = (DataType.FP16, DataType.FP32, DataType.FP64)


def _zeros(tensor: Tensor) -> Tensor:
    data = _empty(tensor.datatype, tensor.shape)
    return Tensor(tensor.name, tensor.datatype, tensor.shape, data)


def _empty(datatype: DataType, shape: Sequence[int]) -> bytes:
    element_bytes = datatype.size_bytes
    if element_bytes is None:
        return _NO_STRING * math.prod(shape)
    return bytes(element_bytes * math.prod(shape))
