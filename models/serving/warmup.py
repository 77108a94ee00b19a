"""The first runs of a freshly opened model: they measure it, and make it allocate what it needs.

Two kinds. The node's own run zeros: they prove nothing, since zeros may be bad input for a good model (a
divisor), so a failure only leaves the time unknown, with a warning in the log. Those that the author
configured (`model_warmup`) are promises: where one fails, the version is not ready, with the reason.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from meshnode.errors import MeshError, ModelError
from meshnode.limits import MAX_BODY_BYTES
from meshnode.models.serving.measure import RunTime, has_free_sizes
from meshnode.models.serving.profile import Profile, batch_sizes, smoothed, worth_measuring
from meshnode.types import DataType, Tensor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from meshnode.models.manifest import Manifest, TensorSpec
    from meshnode.models.runtimes.base import LoadedModel, ProcessModel

log = logging.getLogger(__name__)

_ZERO_STRING = b"\x01\x00\x00\x000"
"""A BYTES element: its length, and the digit 0; models that read numbers refuse an empty string."""

_PROFILE_RUNS = 2
"""Of each batch size; the faster one counts: the first run of a size allocates."""


def fits(manifest: Manifest, model: LoadedModel | ProcessModel) -> None:
    """Check that a model's file has the tensors that its manifest promises.

    Inputs and outputs that the node keeps to itself (control inputs and states of a sequence model) are
    in the file only.

    Raises:
        ModelError: naming both sides.
    """
    own_inputs, own_outputs = _kept_from_clients(manifest)
    promised, actual = _tensors(manifest.inputs), _tensors(model.inputs)
    if promised != {each for each in actual if each[0] not in own_inputs}:
        raise ModelError(f"the manifest has inputs {_names(promised)}, the file {_names(actual)}")
    missing = own_inputs - {name for name, _ in actual}
    if missing:
        raise ModelError(
            f"sequence_batching fills the input {min(missing)!r}, but the file has {_names(actual)}"
        )
    promised, actual = _tensors(manifest.outputs), _tensors(model.outputs)
    if not promised <= actual:
        raise ModelError(f"the manifest has outputs {_names(promised)}, the file {_names(actual)}")
    missing = own_outputs - {name for name, _ in actual}
    if missing:
        raise ModelError(
            f"sequence_batching keeps the output {min(missing)!r}, but the file has {_names(actual)}"
        )


def zeros_for(
    manifest: Manifest, model: LoadedModel | ProcessModel, rows: int = 1
) -> tuple[Tensor, ...] | None:
    """Return zeros for every input of a model's file, every dynamic dimension 1; None if too large.

    Args:
        manifest: What it promises: shapes that the file leaves free are taken from it.
        model: Whose file it is.
        rows: Size of a dynamic first dimension.
    """
    specs = model_specs(manifest, model)
    size_bytes = sum(
        _elements(spec, rows) * (spec.datatype.size_bytes or len(_ZERO_STRING)) for spec in specs
    )
    if size_bytes > MAX_BODY_BYTES:
        return None  # no request can be that large; a manifest that claims it costs no memory
    return tuple(_zeros(spec, rows) for spec in specs)


def model_specs(manifest: Manifest, model: LoadedModel | ProcessModel) -> tuple[TensorSpec, ...]:
    """Return the inputs of a model's file, with the shapes that the manifest promises of them."""
    reshaped = {name for name, _ in manifest.execution.reshape}
    promised = {spec.name: spec for spec in manifest.inputs if spec.name not in reshaped}
    return tuple(promised.get(spec.name, spec) for spec in model.inputs)


def warm_up(
    manifest: Manifest,
    model: LoadedModel,
    run_time: RunTime,
    runs: int,
    timer: Callable[[], float],
) -> float:
    """Run a model on zeros, every dynamic dimension 1, and learn its time.

    A model with free dimensions besides the first may refuse such an input with good reason
    (a convolution wider than one pixel), and its time says little about real ones: it is run, for
    what it allocates on first use, but its time does not count.

    Args:
        manifest: What it should be given.
        model: What runs.
        run_time: Learns the shortest run: the first ones include allocations.
        runs: How often to run it.
        timer: Seconds.

    Returns:
        The shortest run, in seconds; 0 where it does not count, or the model raised.
    """
    inputs = zeros_for(manifest, model)
    if inputs is None:
        return 0.0
    free = has_free_sizes(manifest)
    outputs = [spec.name for spec in manifest.outputs]
    times: list[float] = []
    try:
        for _ in range(runs):
            started = timer()
            model.run(inputs, outputs)
            times.append(timer() - started)
    except MeshError as error:
        if not free:
            log.warning(
                "model %s version %d: its warm-up on zeros failed, so its run time is unknown until "
                "it has answered: %s",
                manifest.model,
                manifest.version,
                error,
            )
        return 0.0
    if free:
        return 0.0
    run_time.observe(min(times), 1)
    return min(times)


def has_rows(manifest: Manifest) -> bool:
    """Whether the first dimension of all tensors is free, so that a batch may have any rows."""
    specs = (*manifest.inputs, *manifest.outputs)
    return bool(manifest.inputs) and all(spec.shape[:1] == (-1,) for spec in specs)


def profile_sizes(manifest: Manifest) -> Iterable[int]:
    """Return the batch sizes at which a version's time says something; none where sizes are free."""
    if has_free_sizes(manifest):
        return ()
    if not has_rows(manifest):
        return (1,)
    return batch_sizes(manifest.max_batch_size)


def measure_profile(
    manifest: Manifest,
    model: LoadedModel,
    first_s: float,
    budget_s: float,
    timer: Callable[[], float],
) -> Profile:
    """Measure how long batches of several sizes take, on zeros.

    Args:
        manifest: What it should be given.
        model: What runs, warmed up.
        first_s: What one row takes, as the warm-up measured; 0 if that is unknown.
        budget_s: Seconds that all of it may take.
        timer: Seconds.
    """
    if first_s <= 0:
        return ()
    measured: list[tuple[int, float]] = []
    deadline = timer() + budget_s
    outputs = [spec.name for spec in manifest.outputs]
    for rows in profile_sizes(manifest):
        if rows == 1:
            measured.append((1, first_s * 1000))
            continue
        if not worth_measuring(tuple(measured), rows, _PROFILE_RUNS, deadline - timer()):
            break
        inputs = zeros_for(manifest, model, rows)
        if inputs is None:
            break
        try:
            times = []
            for _ in range(_PROFILE_RUNS):
                started = timer()
                model.run(inputs, outputs)
                times.append(timer() - started)
        except MeshError as error:
            log.warning(
                "model %s version %d: a batch of %d rows of zeros failed, so its profile ends before: %s",
                manifest.model, manifest.version, rows, error,
            )  # fmt: skip
            break
        measured.append((rows, max(min(times) * 1000, 1e-3)))
    return smoothed(measured)


def _kept_from_clients(manifest: Manifest) -> tuple[set[str], set[str]]:
    """Return the names of a file's inputs and outputs that the node fills in or keeps."""
    sequences = manifest.execution.sequences
    if sequences is None:
        return set(), set()
    inputs = {each.name for each in sequences.controls}
    inputs |= {each.input_name for each in sequences.states}
    return inputs, {each.output_name for each in sequences.states}


def _elements(spec: TensorSpec, rows: int) -> int:
    count = 1
    for size in _shape(spec, rows):
        count *= size
    return count


def _shape(spec: TensorSpec, rows: int) -> tuple[int, ...]:
    return tuple(
        (rows if axis == 0 else 1) if size == -1 else size for axis, size in enumerate(spec.shape)
    )


def _zeros(spec: TensorSpec, rows: int) -> Tensor:
    element_bytes = spec.datatype.size_bytes
    count = _elements(spec, rows)
    data = _ZERO_STRING * count if element_bytes is None else bytes(element_bytes * count)
    return Tensor(spec.name, spec.datatype, _shape(spec, rows), data)


def _tensors(specs: Sequence[TensorSpec]) -> set[tuple[str, DataType]]:
    return {(spec.name, spec.datatype) for spec in specs}


def _names(tensors: set[tuple[str, DataType]]) -> str:
    return ", ".join(f"{name} ({datatype})" for name, datatype in sorted(tensors)) or "none"
