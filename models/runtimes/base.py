"""The interface of a runtime: it opens a model's files and executes requests on them.

What a runtime opens is one of two kinds:

- a `LoadedModel` lies in this process and is synchronous: `run` occupies the thread it is called in. Whether
  that is the event loop's own or a worker is the policy of `meshnode.models.serving.replica`.
- a `ProcessModel` lies in a process of its own and is asked from the event loop.

Adding a runtime is one file here with a class that fulfils `Runtime`, and its line in
`meshnode.models.runtimes.registry`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from meshnode.models.execution import DEFAULT_EXECUTION, Execution
from meshnode.models.workers.settings import WorkerSettings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
    from pathlib import Path

    from meshnode.errors import MeshError
    from meshnode.models.manifest import Manifest, TensorSpec
    from meshnode.types import InferRequest, InferResponse, ResponsePart, Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """How a version is to be opened.

    Attributes:
        folder: The version's folder; nothing is written there.
        entry: Relative path of the file to open.
        model: Public name, for messages and logs.
        version: Its number.
        threads: Threads that one run may spread over, at least 1.
        device: `cpu`, `gpu` or `gpu:N`; `auto` lets the runtime take the best that there is.
        max_batch_size: Of the manifest; 0 if the first dimension is not a limited batch.
        inputs: What the configuration says of the inputs; empty if the file decides.
        outputs: Likewise.
        execution: All settings.
        instance: Which of the version's instances this is, from 0.
        cache_folder: Where the model may keep what it compiled, across restarts; None for nowhere.
        graphs: Folder of the file's graph in the form that this very build of the runtime made of it; None for none.
            A runtime that has no such form passes it over.
        writes_graphs: Whether that form is written to `graphs` now, instead of read from there.
        files_stay: Whether the files are the node's own copies, which nobody changes. Other files must not be
            mapped into memory: one that is cut short or overwritten meanwhile would end the process.
    """

    folder: Path
    entry: str
    model: str = ""
    version: int = 1
    threads: int = 1
    device: str = "auto"
    max_batch_size: int = 0
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    execution: Execution = DEFAULT_EXECUTION
    instance: int = 0
    cache_folder: Path | None = None
    graphs: Path | None = None
    writes_graphs: bool = False
    files_stay: bool = False


def opening_of(manifest: Manifest, folder: Path, *, threads: int = 1) -> Opening:
    """Return how the version of a manifest is opened, on the best device, as its first instance.

    Args:
        manifest: What it is; its tensors are what the opening promises.
        folder: The folder that holds its files.
        threads: Threads that one run may spread over.
    """
    return Opening(
        folder=folder,
        entry=manifest.entry,
        model=manifest.model,
        version=manifest.version,
        threads=threads,
        max_batch_size=manifest.max_batch_size,
        inputs=manifest.inputs,
        outputs=manifest.outputs,
        execution=manifest.execution,
        # The store names the folders that it makes by their manifests; others' are named by versions.
        files_stay=folder.name == manifest.digest,
    )


@dataclass(frozen=True, slots=True)
class Described:
    """What a model says about itself, which its manifest then promises.

    Attributes:
        inputs: Full shapes.
        outputs: Full shapes.
        max_batch_size: As in `Manifest`.
        execution: The settings, completed by the model (routes, interface, decoupled).
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    max_batch_size: int = 0
    execution: Execution = DEFAULT_EXECUTION


class LoadedModel(Protocol):
    """A model in this process, ready to run. `run` may be called from several threads at once."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Input tensors as the model's file states them, full shapes."""
        ...

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Output tensors as the model's file states them, full shapes."""
        ...

    @property
    def device(self) -> str:
        """Where it runs, for people: `cpu`, `cuda:0 (CUDAExecutionProvider)`."""
        ...

    def run(self, inputs: Sequence[Tensor], outputs: Sequence[str]) -> tuple[Tensor, ...]:
        """Run one request (or one batch of joined requests) and return the outputs asked for, in order.

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


class StoppableRun(Protocol):
    """Runs of a model in this process, one at a time, that another thread may end."""

    @property
    def stopped(self) -> bool:
        """Whether `stop` was called since it was made, or since `rearm`."""
        ...

    def run(self, inputs: Sequence[Tensor], outputs: Sequence[str]) -> tuple[Tensor, ...]:
        """As `LoadedModel.run`.

        Raises:
            Cancelled: if it was stopped.
        """
        ...

    def stop(self) -> None:
        """End the run that is under way, or the next one, between two of its operations; from any thread."""
        ...

    def rearm(self) -> None:
        """Let it run again after `stop`."""
        ...


@runtime_checkable
class StoppableModel(Protocol):
    """What a `LoadedModel` adds whose runs can be ended."""

    def stoppable(self) -> StoppableRun:
        """Return runs that can be ended; those of others go on."""
        ...


def is_inline(model: LoadedModel | ProcessModel) -> bool:
    """Whether runs of a model may occupy the event loop: not in a process, and as long as shapes say.

    A `LoadedModel` whose attribute `works_by_values` is true may take any time, whatever its inputs' shapes.
    """
    return not isinstance(model, ProcessModel) and not getattr(model, "works_by_values", False)


@runtime_checkable
class ProcessModel(Protocol):
    """A model in a process of its own, asked from the event loop.

    `on_lost` is called on the event loop with a reason when the process died or was killed, and with an
    empty one when it is ready again: it is restarted, later and later, while it is open. Meanwhile requests
    fail with `NotServing`, so that others take them.
    """

    on_lost: Callable[[str], None]

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """As `LoadedModel`."""
        ...

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """As `LoadedModel`."""
        ...

    @property
    def device(self) -> str:
        """As `LoadedModel`."""
        ...

    @property
    def joins_rows(self) -> bool:
        """Whether a batch is one joined request (torch) or a list of requests (Python models)."""
        ...

    @property
    def concurrency(self) -> int:
        """Batches that it takes at once: 1, or more for coroutines."""
        ...

    @property
    def memory_bytes(self) -> int:
        """Resident memory of its process."""
        ...

    async def execute(
        self, requests: Sequence[InferRequest]
    ) -> list[tuple[Tensor, ...] | ResponsePart | MeshError]:
        """Execute one batch; the outcomes are in the order of the requests.

        An outcome is a whole part only where the answer has parameters. Tensors may lie in memory that is
        shared with the process, and is given back when nothing refers to their bytes any more.

        Cancelling it tells the model where it listens, kills the process where it does not end in time, and
        returns when the slot is free.

        Raises:
            NotServing: if the process is gone; nothing is known to have run.
        """
        ...

    def stream(self, request: InferRequest) -> AsyncIterator[ResponsePart]:
        """Execute one request that may have any number of answers; closing the iterator cancels it."""
        ...

    async def close(self) -> None:
        """End the process; the caller sees to it that nothing runs any more."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """What runtimes take from the node around them.

    Attributes:
        infer: Answers a request for another model, here or elsewhere in the mesh: for ensembles.
        manifest_of: The manifest of a model (None for its newest version), where one is known.
        workers: How this node runs the processes of models that have their own.
        announced: As `manifest_of`, of models too that are announced or deployed and not ready anywhere.
        why_absent: Why no replica of a model is ready; empty if one is.
    """

    infer: Callable[[InferRequest], Awaitable[InferResponse]]
    manifest_of: Callable[[str, int | None], Manifest | None]
    workers: WorkerSettings = field(default_factory=WorkerSettings)
    announced: Callable[[str, int | None], Manifest | None] = lambda _model, _version: None
    why_absent: Callable[[str, int | None], str] = lambda _model, _version: ""


@dataclass(frozen=True, slots=True)
class Capability:
    """What a runtime can do on this machine.

    Attributes:
        version: Of the library behind it; empty if that is not installed.
        devices: What it can run on, best first, such as `cuda:0`, `cpu`.
        missing: Why it cannot run anything, with what to install; empty if it can.
    """

    version: str
    devices: tuple[str, ...] = ("cpu",)
    missing: str = ""


class Runtime(Protocol):
    """Opens models of one kind."""

    @property
    def name(self) -> str:
        """The word for it in manifests, such as `onnx`."""
        ...

    @property
    def platform(self) -> str:
        """The name that Open Inference Protocol clients see, such as `onnxruntime_onnx`."""
        ...

    @property
    def is_code(self) -> bool:
        """Whether its models can run their author's code: only where the owner allowed that."""
        ...

    @property
    def shares_instance(self) -> bool:
        """Whether one opened model serves several runs at once (else every instance is opened)."""
        ...

    def capability(self) -> Capability:
        """Say what it can do here. It may import its library, so a daemon asks in a child process."""
        ...

    def describe(self, opening: Opening) -> Described:
        """Open a model briefly, or look at it, for what it takes and gives.

        Raises:
            ModelError: if the file is missing, damaged, beyond this runtime, or contradicts the opening.
        """
        ...

    def load(self, opening: Opening) -> LoadedModel | ProcessModel:
        """Open a model; blocks, so it is called in a thread.

        Raises:
            ModelError: as `describe`.
        """
        ...
