"""The first runs of a freshly opened model: they measure it, and make it allocate what it needs.

They prove nothing: zeros may be bad input for a good model (a divisor), so a failure only leaves
the time unknown, with a warning in the log.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from meshnode.errors import MeshError, ModelError
from meshnode.limits import MAX_BODY_BYTES
from meshnode.models.measure import RunTime, has_free_sizes
from meshnode.types import DataType, Tensor

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from meshnode.models.manifest import Manifest, TensorSpec
    from meshnode.models.runtimes.base import LoadedModel

log = logging.getLogger(__name__)

_ZERO_STRING = b"\x01\x00\x00\x000"
"""A BYTES element: its length, and the digit 0; models that read numbers refuse an empty string."""


def fits(manifest: Manifest, model: LoadedModel) -> None:
    """Check that a model's file has the tensors that its manifest promises.

    Raises:
        ModelError: naming both sides.
    """
    promised, actual = _tensors(manifest.inputs), _tensors(model.inputs)
    if promised != actual:
        raise ModelError(f"the manifest has inputs {_names(promised)}, the file {_names(actual)}")
    promised, actual = _tensors(manifest.outputs), _tensors(model.outputs)
    if not promised <= actual:
        raise ModelError(f"the manifest has outputs {_names(promised)}, the file {_names(actual)}")


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
    free = has_free_sizes(manifest)
    size_bytes = sum(
        _elements(spec) * (spec.datatype.size_bytes or len(_ZERO_STRING))
        for spec in manifest.inputs
    )
    if size_bytes > MAX_BODY_BYTES:
        return 0.0  # no request can be that large; a manifest that claims it costs no memory
    inputs = [_zeros(spec) for spec in manifest.inputs]
    times: list[float] = []
    try:
        for _ in range(runs):
            started = timer()
            model.run(inputs, [spec.name for spec in manifest.outputs])
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


def _elements(spec: TensorSpec) -> int:
    count = 1
    for size in spec.shape:
        count *= 1 if size == -1 else size
    return count


def _zeros(spec: TensorSpec) -> Tensor:
    shape = tuple(1 if size == -1 else size for size in spec.shape)
    element_bytes = spec.datatype.size_bytes
    if element_bytes is None:
        return Tensor(spec.name, spec.datatype, shape, _ZERO_STRING * _elements(spec))
    return Tensor(spec.name, spec.datatype, shape, bytes(element_bytes * _elements(spec)))


def _tensors(specs: Sequence[TensorSpec]) -> set[tuple[str, DataType]]:
    return {(spec.name, spec.datatype) for spec in specs}


def _names(tensors: set[tuple[str, DataType]]) -> str:
    return ", ".join(f"{name} ({datatype})" for name, datatype in sorted(tensors)) or "none"
