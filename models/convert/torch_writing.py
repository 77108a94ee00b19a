"""From a PyTorch module to a file: ONNX, TorchScript or TensorFlow Lite."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from meshnode.errors import ModelError
from meshnode.models.convert.child import library

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from meshnode.models.convert.samples import InputForm

_OPSET: Final = 18  # the lowest that PyTorch's newer exporter writes
_TRACED_OPSET: Final = 17
_TRACED_ROWS: Final = 2  # one row would be taken for a dimension that may be squeezed away


def flat_module(module: Any, *, as_list: bool = False) -> Any:
    """Return a module that takes tensors and returns a tensor or a tuple of them.

    Args:
        module: In evaluation mode. Takes tensors; may return a tensor, a list, a tuple or a dictionary.
        as_list: Whether it wants all inputs as one list, as Keras models with several inputs do.
    """
    torch = library("torch")

    class Flat(torch.nn.Module):  # type: ignore[misc, name-defined] # the base is known at run time
        def __init__(self) -> None:
            super().__init__()
            self.module = module

        def forward(self, *tensors: Any) -> Any:
            found = self.module(list(tensors)) if as_list else self.module(*tensors)
            if isinstance(found, dict):
                found = tuple(found.values())
            if isinstance(found, (list, tuple)):
                return found[0] if len(found) == 1 else tuple(found)
            return found

    return _still(Flat())


def _still(module: Any) -> Any:
    """Mark a wrapper as not training; `eval()` would also ask exported programs, which refuse."""
    module.training = False
    return module


def _named_arguments(module: Any, names: Sequence[str]) -> None:
    """Let a flat module's arguments have these names, as a trace of it then has."""
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    arguments = [inspect.Parameter(name, kind) for name in ("self", *names)]
    forward = type(module).forward
    forward.__signature__ = inspect.Signature(arguments)


def answers(module: Any, sample: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Run a module on a sample and return arrays by output.

    Args:
        module: As `flat_module` returns it.
        sample: Arrays in the order of its inputs.
        names: Names of the outputs; made up (`output_0`) where there are too few.

    Raises:
        ModelError: if it fails on the sample, or answers something else than tensors.
    """
    torch = library("torch")
    rows = [torch.from_numpy(np.ascontiguousarray(each)) for each in sample.values()]
    try:
        with torch.no_grad():
            found = module(*rows)
    # What the model's code raises when its inputs are others than it was written for.
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        given = ", ".join(f"{name} {each.dtype} {[*each.shape]}" for name, each in sample.items())
        raise ModelError(
            f"the module fails on inputs as they were described ({given}): "
            f"{' '.join(str(error).split())[:300]}; describe what it takes with --input or --sample"
        ) from error
    parts = found if isinstance(found, (tuple, list)) else (found,)
    if not all(hasattr(part, "detach") for part in parts):
        raise ModelError(
            "the module returns something else than tensors; wrap it in one that does not"
        )
    wanted = list(names)
    if len(wanted) != len(parts):
        wanted = ["output"] if len(parts) == 1 else [f"output_{at}" for at in range(len(parts))]
    return {
        name: part.detach().float().numpy()
        if part.dtype == torch.bfloat16
        else part.detach().numpy()
        for name, part in zip(wanted, parts, strict=True)
    }


def write_onnx(
    module: Any,
    job: Mapping[str, Any],
    forms: Sequence[InputForm],
    sample: Mapping[str, Any],
    *,
    names: Sequence[str] = (),
    traced: bool = False,
) -> dict[str, Any]:
    """Write a module as ONNX; return its answers to the sample.

    Args:
        module: As `flat_module` returns it, or an ExportedProgram's.
        job: `out` and `opset` count.
        forms: Its inputs.
        sample: Arrays by input.
        names: Names of its outputs.
        traced: Whether it must be traced, as TorchScript and Keras modules must.
    """
    torch = library("torch")
    expected = answers(module, sample, names)
    example = _example(forms, sample)
    if not traced:
        try:
            _write_exported(torch, module, job, forms, example, list(expected))
        # torch.export refuses what it does not understand with a dozen classes of its own; tracing
        # understands more, and the agreement shows whether it understood it rightly.
        except Exception as error:  # noqa: BLE001
            reason = " ".join(str(error).split())[:200]
            print(f"torch.export gave up ({reason}); tracing instead")  # noqa: T201 - goes to the log
        else:
            return expected
    free = {
        form.name: {at: _dimension(form, at) for at, size in enumerate(form.shape) if size < 0}
        for form in forms
    }
    if any(form.shape[:1] == (-1,) for form in forms):
        free.update({name: {0: "batch"} for name, array in expected.items() if array.ndim})
    torch.onnx.export(
        module,
        example,
        job["out"],
        dynamo=False,
        input_names=[form.name for form in forms],
        output_names=list(expected),
        dynamic_axes={name: axes for name, axes in free.items() if axes},
        opset_version=job.get("opset") or _TRACED_OPSET,
    )
    return expected


def _write_exported(
    torch: Any,
    module: Any,
    job: Mapping[str, Any],
    forms: Sequence[InputForm],
    example: tuple[Any, ...],
    names: Sequence[str],
) -> None:
    # All arguments of a flat module are one: *tensors.
    shapes = tuple(
        {at: torch.export.Dim.DYNAMIC for at, size in enumerate(form.shape) if size < 0}
        for form in forms
    )
    program = torch.export.export(module, example, dynamic_shapes=(shapes,))
    exported = torch.onnx.export(
        program,
        dynamo=True,
        input_names=[form.name for form in forms],
        output_names=list(names),
        opset_version=job.get("opset") or _OPSET,
        verbose=False,
    )
    exported.save(job["out"], external_data=False)


def _dimension(form: InputForm, at: int) -> str:
    return "batch" if at == 0 else f"{form.name}_{at}"


def _example(forms: Sequence[InputForm], sample: Mapping[str, Any]) -> tuple[Any, ...]:
    torch = library("torch")
    found = []
    for form in forms:
        array = np.ascontiguousarray(sample[form.name])
        if form.shape[:1] == (-1,):
            array = np.resize(array, (_TRACED_ROWS, *array.shape[1:]))
        found.append(torch.from_numpy(array))
    return tuple(found)


def write_torchscript(
    module: Any,
    job: Mapping[str, Any],
    forms: Sequence[InputForm],
    sample: Mapping[str, Any],
    *,
    names: Sequence[str] = (),
) -> dict[str, Any]:
    """Write a module as TorchScript by tracing it; return its answers, unquantised, to the sample.

    Args:
        module: As `flat_module` returns it.
        job: `out` and `quantize` count.
        forms: Its inputs.
        sample: Arrays by input.
        names: Names of its outputs.
    """
    torch = library("torch")
    expected = answers(module, sample, names)
    if job["quantize"] == "dynamic":
        layers = {torch.nn.Linear, torch.nn.LSTM, torch.nn.GRU}
        quantization = library("torch.ao.quantization")
        module = quantization.quantize_dynamic(module, layers, dtype=torch.qint8)
    elif job["quantize"] == "fp16":
        module = _in_half(torch, module)
    if all(form.name.isidentifier() for form in forms):
        _named_arguments(module, [form.name for form in forms])
    with torch.no_grad():
        torch.jit.trace(module, _example(forms, sample), check_trace=False).save(job["out"])
    return expected


def _in_half(torch: Any, module: Any) -> Any:
    """Return a module that computes in 16 bits, and takes and returns what it did before."""

    class Half(torch.nn.Module):  # type: ignore[misc] # the base is known at run time
        def __init__(self) -> None:
            super().__init__()
            self.module = module.half()

        def forward(self, *tensors: Any) -> Any:
            found = self.module(
                *(each.half() if each.is_floating_point() else each for each in tensors)
            )
            if isinstance(found, tuple):
                return tuple(each.float() if each.is_floating_point() else each for each in found)
            return found.float() if found.is_floating_point() else found

    return _still(Half())


def write_tflite(
    module: Any,
    job: Mapping[str, Any],
    forms: Sequence[InputForm],
    sample: Mapping[str, Any],
    *,
    names: Sequence[str] = (),
) -> dict[str, Any]:
    """Write a module as TensorFlow Lite with one row per call; return its answers to the sample."""
    torch = library("torch")
    litert_torch = library("litert_torch")
    expected = answers(module, sample, names)
    one = {
        form.name: torch.from_numpy(
            np.ascontiguousarray(sample[form.name][:1] if form.shape else sample[form.name])
        )
        for form in forms
    }
    litert_torch.convert(_by_keyword(module, list(one)), sample_kwargs=one).export(job["out"])
    if job["quantize"] != "none":
        _quantize_tflite(job, sample)
    return expected


def _by_keyword(module: Any, names: Sequence[str]) -> Any:
    """Return a module that takes its tensors by name: the names go into the file."""
    torch = library("torch")

    class ByKeyword(torch.nn.Module):  # type: ignore[misc, name-defined] # the base is known at run time
        def __init__(self) -> None:
            super().__init__()
            self.module = module

        def forward(self, **tensors: Any) -> Any:
            return self.module(*(tensors[name] for name in names))

    return _still(ByKeyword())


def _quantize_tflite(job: Mapping[str, Any], sample: Mapping[str, Any]) -> None:
    quantizer = library("ai_edge_quantizer")
    recipes = library("ai_edge_quantizer.recipe")
    static = job["quantize"] == "int8"
    recipe = recipes.static_wi8_ai8() if static else recipes.dynamic_wi8_afp32()
    making = quantizer.Quantizer(job["out"], recipe)
    for place in ("INPUT", "OUTPUT"):  # which stay float32, so that requests need not be quantised
        making.update_quantization_recipe(
            ".*",
            quantizer.qtyping.TFLOperationName(place),
            algorithm_key=recipes.AlgorithmName.NO_QUANTIZE,
        )
    ranges = None
    if static:
        rows = min(len(array) for array in sample.values())
        examples = [
            {name: array[row : row + 1] for name, array in sample.items()} for row in range(rows)
        ]
        ranges = making.calibrate({"serving_default": examples})
    making.quantize(ranges).export_model(job["out"], overwrite=True)
