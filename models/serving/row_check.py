"""Whether joined requests get the answers that they get alone: tried before a version is ready.

A first dimension that is free need not be a batch: it may be a sequence, over which a softmax or a window
runs, and batch normalisation in training mode or dynamic quantisation let each row's answer depend on the
others. Little of that can be read off a model's file, so requests of one and of several rows are run alone and
together, several times: small values and large ones beside each other, since what leaks from a row into the next is
seen where they differ. An output that stays the same whatever comes in shows nothing, and counts as
a reason not to join. Models that differ are never joined unless their owner configures it.
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from meshnode.errors import MeshError
from meshnode.limits import MAX_BODY_BYTES, ROW_CHECK_S
from meshnode.models.serving.batch_run import as_mesh_error
from meshnode.models.serving.joining import join, split
from meshnode.models.tensors import DTYPES, from_numpy, pack_strings, to_numpy
from meshnode.types import DataType, InferRequest, ResponsePart, Tensor

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Sequence

    from meshnode.models.manifest import Manifest, TensorSpec
    from meshnode.models.runtimes.base import LoadedModel, ProcessModel

    Answer = tuple[Tensor, ...]
    Check = Generator[tuple[Tensor, ...], Answer | MeshError, str]
    """Yields inputs to run, is sent what they gave, and returns why requests must not be joined."""

_SIZES: Final = (1, 8, 32, 224)
"""What free dimensions besides the first are tried with: a convolution refuses one pixel."""

_ROWS: Final = (1, 1, 2, 1, 3)
"""Rows of the requests of one trial: each has neighbours that it must not see."""

_TRIALS: Final = 8
"""With a rarer value in an eighth of the rows, and four borders between requests in each trial, a leak to
the next row goes unseen in one model of a thousand."""

_CLEAR_TRIALS: Final = 4
"""Enough where no two rows of an output were the same: what leaks into such numbers shows at once."""

_RARER: Final = 8
"""Of each output, one row in so many must differ from the commonest."""

_INTEGER_ENDS: Final = (2, 2, 10, 100, 1000, 2, 100, 10_000)
"""Integers of a trial lie below: indices exist in small tables only, other numbers are larger."""

_TOLERANCE: Final = {DataType.FP16: 1e-2, DataType.BF16: 5e-2}
"""Relative, for types in which sums of another order differ more."""

_USUAL_TOLERANCE: Final = 1e-3

_LARGEST_POWER: Final = {DataType.FP16: 1.5}
"""Of ten, for what numbers are multiplied by; usually 4. A model's sums must not overflow."""

_FLOATS: Final = frozenset({DataType.FP16, DataType.BF16, DataType.FP32, DataType.FP64})

_SEED: Final = 6

_NO_ROWS: Final = "its inputs are too large to try it"


def why_not_joined(
    manifest: Manifest, model: LoadedModel, timer: Callable[[], float] = time.perf_counter
) -> str:
    """Return why requests of a model must not be joined; empty if joined rows gave the same answers.

    Args:
        manifest: What it is; all first dimensions are free.
        model: What runs, some dozens of times, in the calling thread.
        timer: Seconds; no trial begins after `ROW_CHECK_S`.
    """
    if getattr(model, "works_by_values", False):
        return "how much it works depends on the values that it is given, so it cannot be tried"
    outputs = [spec.name for spec in manifest.outputs]
    check = _check(manifest, timer)
    try:
        inputs = next(check)
        while True:
            answer: Answer | MeshError
            try:
                answer = model.run(inputs, outputs)
            except Exception as error:  # noqa: BLE001 - whatever it is, nothing is known of joined rows
                answer = as_mesh_error(error)
            inputs = check.send(answer)
    except StopIteration as end:
        reason: str = end.value
        return reason


async def why_not_joined_process(
    manifest: Manifest, model: ProcessModel, timer: Callable[[], float] = time.perf_counter
) -> str:
    """Return the same of a model in a process of its own that takes joined rows."""
    check = _check(manifest, timer)
    try:
        inputs = next(check)
        while True:
            [answer] = await model.execute([InferRequest(manifest.model, inputs)])
            inputs = check.send(answer.outputs if isinstance(answer, ResponsePart) else answer)
    except StopIteration as end:
        reason: str = end.value
        return reason


def _check(manifest: Manifest, timer: Callable[[], float]) -> Check:
    """Try each way to fill free dimensions until one of them tells."""
    ends_s = timer() + ROW_CHECK_S
    reason = _NO_ROWS
    free = any(-1 in spec.shape[1:] for spec in manifest.inputs)
    for size in _SIZES if free else _SIZES[:1]:
        shapes = [
            tuple(size if each == -1 else each for each in spec.shape[1:])
            for spec in manifest.inputs
        ]
        if 8 * sum(_ROWS) * sum(map(math.prod, shapes)) > MAX_BODY_BYTES:
            return reason
        is_told, reason = yield from _check_size(manifest, shapes, lambda: timer() > ends_s)
        if is_told:
            return reason
    return reason


def _check_size(
    manifest: Manifest, shapes: Sequence[tuple[int, ...]], is_over: Callable[[], bool]
) -> Generator[tuple[Tensor, ...], Answer | MeshError, tuple[bool, str]]:
    """Run all trials with free dimensions of one size; return whether that tells, and the reason."""
    seen = _Seen([spec.name for spec in manifest.outputs])
    reason = ""
    for requests in _trials(manifest, shapes):
        if seen.is_clear() or (seen.trials and is_over()):
            break
        alone: list[Answer] = []
        for inputs in requests:
            answer = yield inputs
            if isinstance(answer, MeshError):
                reason = f"it could not be tried ({answer})"
                break
            alone.append(answer)
        else:
            joined = yield join(requests)
            if isinstance(joined, MeshError):
                return True, f"requests that work alone fail when they are joined ({joined})"
            why = _difference(alone, joined)
            if why:
                return True, why
            seen.take(alone)
    if not seen.trials:
        return False, reason
    constant = seen.constant()
    if constant:
        return False, (
            f"output {constant!r} hardly changed with what was tried, which shows nothing about joined rows"
        )
    return True, ""


class _Seen:
    """What the outputs of all trials were."""

    def __init__(self, names: Sequence[str]) -> None:
        self.trials = 0
        self._counts: dict[str, dict[bytes, int]] = {name: {} for name in names}

    def take(self, answers: Sequence[Answer]) -> None:
        """Count the rows of one trial."""
        self.trials += 1
        for tensor in (tensor for answer in answers for tensor in answer):
            counts = self._counts.setdefault(tensor.name, {})
            for (row,) in split([tensor], [1] * tensor.rows):
                # Which row it is, not what it holds: an answer may be large.
                key = hash(bytes(row.data)).to_bytes(8, "little", signed=True)
                counts[key] = counts.get(key, 0) + 1

    def is_clear(self) -> bool:
        """Whether further trials would hardly tell more."""
        return self.trials >= _CLEAR_TRIALS and all(
            counts and max(counts.values()) == 1 for counts in self._counts.values()
        )

    def constant(self) -> str:
        """Return the name of an output that did not change enough; empty if there is none."""
        for name, counts in self._counts.items():
            rows = sum(counts.values())
            if (rows - max(counts.values(), default=0)) * _RARER < max(1, rows):
                return name
        return ""


def _trials(
    manifest: Manifest, shapes: Sequence[tuple[int, ...]]
) -> Iterator[list[tuple[Tensor, ...]]]:
    rng = np.random.default_rng(_SEED)
    for number in range(_TRIALS):
        yield [
            tuple(
                _values(spec, (rows, *shape), rng, number)
                for spec, shape in zip(manifest.inputs, shapes, strict=True)
            )
            for rows in _ROWS
        ]


def _values(
    spec: TensorSpec, shape: tuple[int, ...], rng: np.random.Generator, trial: int
) -> Tensor:
    """Return one input of one request of a trial."""
    datatype = spec.datatype
    if datatype in _FLOATS:
        array = _floats(shape, rng, trial, _LARGEST_POWER.get(datatype, 4.0))
        if datatype is DataType.BF16:
            bits = array.astype("<f4").view("<u4") >> 16
            return Tensor(spec.name, datatype, shape, bits.astype("<u2").tobytes())
        return from_numpy(spec.name, np.asarray(array, DTYPES[datatype]))
    if datatype is DataType.BYTES:
        words = rng.integers(0, 10 ** (1 + trial // 2), math.prod(shape))
        return Tensor(spec.name, datatype, shape, pack_strings(words.tolist()))
    return from_numpy(spec.name, _integers(datatype, shape, rng, trial))


def _floats(
    shape: tuple[int, ...], rng: np.random.Generator, trial: int, largest_power: float
) -> Any:
    """Return numbers around 1, those of pictures, then each request of another magnitude and sign."""
    if trial == 0:
        return rng.normal(0, rng.choice([1.0, 3.0]), shape)
    if trial == 1:
        return rng.uniform(0, 1, shape)
    scale = 10 ** rng.uniform(-2, largest_power)
    return scale * (rng.normal(0, 1, shape) + rng.choice([-1.0, 0.0, 1.0]))


def _integers(
    datatype: DataType, shape: tuple[int, ...], rng: np.random.Generator, trial: int
) -> Any:
    dtype = np.dtype(DTYPES[datatype])
    end = _INTEGER_ENDS[trial]
    if datatype is DataType.BOOL:
        return np.asarray(rng.integers(0, 2, shape), dtype)
    bounds = np.iinfo(dtype)
    if end > 2 and bounds.bits == 8:  # pictures and what was quantised: all values occur
        return rng.integers(bounds.min, bounds.max, shape, dtype, endpoint=True)
    start = -end if trial == _TRIALS - 1 and bounds.min < 0 else 0
    return np.asarray(rng.integers(start, end, shape), dtype)


def _difference(alone: Sequence[Answer], joined: Answer) -> str:
    try:
        rows = split(joined, _ROWS)
    except MeshError as error:
        return str(error)
    for expected, given in zip(alone, rows, strict=True):
        for one, other in zip(expected, given, strict=True):
            if one.shape != other.shape or not _same(one, other):
                return f"output {one.name!r} of a row depends on the rows that are joined with it"
    return ""


def _same(one: Tensor, other: Tensor) -> bool:
    if one.datatype not in _FLOATS:
        return bytes(one.data) == bytes(other.data)
    tolerance = _TOLERANCE.get(one.datatype, _USUAL_TOLERANCE)
    first, second = _as_floats(one), _as_floats(other)
    finite = first[np.isfinite(first)]
    scale = float(np.abs(finite).max()) if finite.size else 0.0
    return bool(
        np.allclose(first, second, rtol=tolerance, atol=tolerance * 0.1 * scale, equal_nan=True)
    )


def _as_floats(tensor: Tensor) -> Any:
    if tensor.datatype is DataType.BF16:
        bits = np.frombuffer(tensor.data, "<u2").astype("<u4") << 16
        return bits.view("<f4").astype(np.float64)
    return to_numpy(tensor).astype(np.float64)
