"""Sequences of one version that leave a node which is emptied, and those that come from another one.

A sequence can be given away if all that is known of it lies in its states (`meshnode.models.serving.sequence_run`): of an ONNX model
always, of other formats if their configuration names the states. Python keeps what it likes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from meshnode.errors import InvalidRequest, NotServing
from meshnode.types import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from meshnode.models.execution import SequenceState
    from meshnode.models.manifest import Manifest
    from meshnode.models.serving.batching import Effects
    from meshnode.models.serving.sequences import Sequencer

_STATELESS: Final = frozenset({"onnx"})
"""Runtimes whose models remember nothing by themselves."""

_EXPLICIT: Final = frozenset({"torch", "litert"})
"""Runtimes whose models could, but do not where their configuration names their states."""


def can_leave(manifest: Manifest) -> bool:
    """Whether a version's sequences can be given to another node."""
    sequences = manifest.execution.sequences
    if sequences is None:
        return False
    return manifest.runtime in _STATELESS or (
        manifest.runtime in _EXPLICIT and bool(sequences.states)
    )


class SequenceHandover:
    """Takes sequences out of one version's queue, and puts them in."""

    def __init__(
        self,
        manifest: Manifest,
        queue: Sequencer[Any],
        do: Callable[[Effects[Any]], None],
        now: Callable[[], float],
    ) -> None:
        """Work on a queue.

        Args:
            manifest: Of the version, which has sequences.
            queue: Its queue.
            do: Carries out what the queue asks for.
            now: Monotonic seconds.
        """
        sequences = manifest.execution.sequences
        assert sequences is not None
        self.manifest = manifest
        self._can_leave = can_leave(manifest)
        self._states = {each.input_name: each for each in sequences.states}
        self._has_rows = manifest.max_batch_size > 0
        self._queue = queue
        self._do = do
        self._now = now

    def __repr__(self) -> str:
        return f"<SequenceHandover of {self.manifest.model}/{self.manifest.version}>"

    def at_rest(self) -> list[int | str]:
        """Return the sequences that can be given away, and of which nothing runs or waits now."""
        return self._queue.at_rest() if self._can_leave else []

    def hold(self, sequence_id: int | str) -> list[Tensor] | None:
        """Let a sequence's requests wait, and return its states; None if it is not at rest."""
        states = self._queue.hold(sequence_id)
        return None if states is None else [*states.values()]

    def turn_away(self) -> None:
        """Refuse the sequences that wait for a place here; they may begin elsewhere."""
        error = NotServing("this node is being emptied, and begins no sequence")
        self._do(self._queue.turn_away(error))

    def give(self, sequence_id: int | str, node: str) -> None:
        """A node has taken a sequence that was held."""
        self._do(self._queue.give(sequence_id, node))

    def keep(self, sequence_id: int | str) -> None:
        """Nobody has taken a sequence that was held."""
        self._do(self._queue.keep(sequence_id, self._now()))

    def take(self, sequence_id: int | str, states: Sequence[Tensor]) -> None:
        """Go on with a sequence of another node.

        Raises:
            InvalidRequest: if its states are not those of this version, or one of this name goes on here.
            NotServing: if this version's sequences stay where they began.
            Saturated: if there are too many sequences.
        """
        if not self._can_leave:
            raise NotServing("sequences of this model stay where they began")
        for tensor in states:
            state = self._states.get(tensor.name)
            if state is None or not self._fits(tensor, state):
                raise InvalidRequest(
                    f"{tensor.name[:80]!r} is no state of this model as it is here"
                )
        # Copies: the bytes are a message's, which should not be kept for as long as a sequence lasts.
        kept = {
            each.name: Tensor(each.name, each.datatype, each.shape, bytes(each.data))
            for each in states
        }
        self._do(self._queue.take(sequence_id, kept, self._now()))

    def _fits(self, tensor: Tensor, state: SequenceState) -> bool:
        shape = (1, *state.shape) if self._has_rows else state.shape
        return (
            tensor.datatype is state.datatype
            and len(tensor.shape) == len(shape)
            and all(wanted in (-1, size) for size, wanted in zip(tensor.shape, shape, strict=True))
        )
