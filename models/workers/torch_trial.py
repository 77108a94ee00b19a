"""What a bare TorchScript file takes and gives, found by trying.

TorchScript knows the names of `forward`'s arguments, but neither their types nor their shapes. The first
weight tells which shapes are likely (a convolution's its channels, a linear layer's its features), so a few
are tried; from the first that runs, each dimension is varied to see which ones are free. A model for which
nothing runs needs a configuration, and the error says so.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any, Final

import torch

from meshnode.errors import ModelError
from meshnode.limits import MAX_SIGNATURE_TRIALS
from meshnode.models.manifest import TensorSpec
from meshnode.models.workers.torch_types import datatype_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from meshnode.models.runtimes.base import Opening

Form = tuple[Any, tuple[int, ...]]
"""An element type and a shape."""

_SIDES: Final = (64, 224, 32, 28)
"""Heights and widths that pictures are trained with; one of them runs where the size is fixed."""
_MOST_INPUTS_MIXED: Final = 3
_BATCH: Final = 2  # rows of the first trial: 1 would broadcast where it should not


def find_signature(
    module: Any, device: Any, opening: Opening
) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Return the inputs and outputs of a TorchScript module.

    Raises:
        ModelError: if no trial ran, with what to write.
    """
    arguments = [
        each for each in module.forward.schema.arguments[1:] if not each.has_default_value()
    ]
    others = [each for each in arguments if str(each.type) != "Tensor"]
    if others or not arguments:
        raise ModelError(_advice(opening, "forward() takes something else than tensors"))
    trial = _Trial(module, device)
    forms = next(
        filter(
            trial.runs, itertools.islice(_candidates(module, len(arguments)), MAX_SIGNATURE_TRIALS)
        ),
        None,
    )
    if forms is None:
        raise ModelError(_advice(opening, "what it takes could not be found by trying"))
    free = trial.free_dimensions(forms)
    inputs = tuple(
        TensorSpec(
            argument.name,
            datatype_of(argument.name, dtype),
            tuple(-1 if (at, axis) in free else size for axis, size in enumerate(shape)),
        )
        for at, (argument, (dtype, shape)) in enumerate(zip(arguments, forms, strict=True))
    )
    return inputs, trial.outputs(forms, free)


class _Trial:
    """Runs of one module on made-up inputs."""

    def __init__(self, module: Any, device: Any) -> None:
        self._module = module
        self._device = device

    def runs(self, forms: Sequence[Form]) -> bool:
        """Whether it runs on inputs of these forms."""
        return self._run(forms) is not None

    def free_dimensions(self, forms: Sequence[Form]) -> set[tuple[int, int]]:
        """Return which (input, axis) may have another size: alone, or together in all inputs."""
        free: set[tuple[int, int]] = set()
        for axis in range(max(len(shape) for _, shape in forms)):
            having = {(at, axis) for at, (_, shape) in enumerate(forms) if axis < len(shape)}
            if self.runs(_grown(forms, having)):
                free |= having
                continue
            free |= {place for place in having if self.runs(_grown(forms, {place}))}
        return free

    def outputs(self, forms: Sequence[Form], free: set[tuple[int, int]]) -> tuple[TensorSpec, ...]:
        """Return what comes out, with -1 where a size follows the inputs'."""
        first = self._run(forms)
        other = self._run(_grown(forms, free)) or first
        assert first is not None
        assert other is not None
        specs = []
        for name, value in first.items():
            if not isinstance(value, torch.Tensor):
                raise ModelError(f"output {name!r} is {type(value).__name__}, no tensor")
            sizes = zip(value.shape, other[name].shape, strict=True)
            shape = tuple(size if size == again else -1 for size, again in sizes)
            specs.append(TensorSpec(name, datatype_of(name, value.dtype), shape))
        return tuple(specs)

    def _run(self, forms: Sequence[Form]) -> dict[str, Any] | None:
        inputs = [torch.zeros(shape, dtype=dtype, device=self._device) for dtype, shape in forms]
        try:
            with torch.inference_mode():
                said = self._module(*inputs)
        # Whatever a model raises on inputs that are not meant for it.
        except Exception:  # noqa: BLE001
            return None
        if isinstance(said, dict):
            return {str(key): value for key, value in said.items()}
        values = said if isinstance(said, list | tuple) else (said,)
        return {f"OUTPUT__{at}": value for at, value in enumerate(values)}


def _grown(forms: Sequence[Form], places: set[tuple[int, int]]) -> list[Form]:
    return [
        (dtype, tuple(size + size * ((at, axis) in places) for axis, size in enumerate(shape)))
        for at, (dtype, shape) in enumerate(forms)
    ]


def _candidates(module: Any, count: int) -> Iterator[tuple[Form, ...]]:
    """Yield forms for so many inputs, the likely ones first."""
    single = list(dict.fromkeys(_forms_of(module)))
    for form in single:
        yield (form,) * count
    if 1 < count <= _MOST_INPUTS_MIXED:
        yield from itertools.product(single, repeat=count)


def _forms_of(module: Any) -> Iterator[Form]:
    weights = [weight for _, weight in module.named_parameters() if weight.dim() > 1]
    for weight in weights[:2]:
        real = weight.dtype if weight.dtype.is_floating_point else torch.float32
        sizes = tuple(weight.shape)
        if len(sizes) == 4:
            for side in _SIDES:
                yield real, (_BATCH, sizes[1], side, side)
        elif len(sizes) == 3:
            yield real, (_BATCH, sizes[1], 64)
        elif len(sizes) == 5:
            yield real, (_BATCH, sizes[1], 16, 32, 32)
        else:  # linear (out, in), embedding (words, features), recurrent (4 hidden, in)
            name = next(name for name, each in module.named_parameters() if each is weight)
            embedding = "emb" in name or sizes[0] > 8 * sizes[1]
            forms: list[Form] = [
                (real, (_BATCH, sizes[1])),
                (real, (_BATCH, 5, sizes[1])),
                (torch.int64, (_BATCH, 5)),
            ]
            yield from reversed(forms) if embedding else forms
    yield torch.float32, (_BATCH, 3)
    yield torch.float32, (_BATCH, 3, 64, 64)
    yield torch.float32, (_BATCH,)
    yield torch.int64, (_BATCH, 5)


def _advice(opening: Opening, why: str) -> str:
    return (
        f"{opening.entry!r} does not say what it takes, and {why}; write a config.pbtxt with the inputs "
        'and outputs, such as: input [ { name: "INPUT__0" data_type: TYPE_FP32 dims: [ 3, 224, 224 ] } ] '
        'output [ { name: "OUTPUT__0" data_type: TYPE_FP32 dims: [ 1000 ] } ] max_batch_size: 32'
    )
