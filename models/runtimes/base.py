"""The interface of a runtime: it opens a model's files and runs requests on them.

A runtime is synchronous: `load` takes its time (call it in a thread) and `run` occupies the thread
it is called in. Whether that thread is the event loop's own or a worker is the policy of
`meshnode.models.server`, not the runtime's business.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from meshnode.models.manifest import TensorSpec
    from meshnode.types import Tensor


class LoadedModel(Protocol):
    """A model in memory, ready to run. `run` may be called from several threads at once."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Input tensors as the model's file states them, full shapes."""
        ...

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Output tensors as the model's file states them, full shapes."""
        ...

    def run(self, inputs: Sequence[Tensor], outputs: Sequence[str]) -> tuple[Tensor, ...]:
        """Run one request and return the outputs asked for, in that order.

        Args:
            inputs: Every input once, in any order, matching its spec.
            outputs: Names of the outputs wanted; empty for all.

        Raises:
            InvalidRequest: if a tensor's bytes do not fill its shape.
            InferenceFailed: if the model raises.
        """
        ...

    def close(self) -> None:
        """Free the model's memory; the caller sees to it that nothing runs any more."""
        ...


class Runtime(Protocol):
    """Loads models of one kind."""

    @property
    def name(self) -> str:
        """The word for it in manifests, such as `onnx`."""
        ...

    @property
    def platform(self) -> str:
        """The name that Open Inference Protocol clients see, such as `onnxruntime_onnx`."""
        ...

    def load(self, folder: Path, entry: str, *, threads: int) -> LoadedModel:
        """Open a model.

        Args:
            folder: The version's folder.
            entry: Relative path of the file to open.
            threads: Threads that one run may spread over.

        Raises:
            ModelError: if the file is missing, damaged or beyond this runtime.
        """
        ...
