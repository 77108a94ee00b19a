"""PyTorch: a class, a pickled module, TorchScript or a torch.export program to all targets."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from meshnode.errors import ModelError, UsageError
from meshnode.models.convert.child import library, load_function
from meshnode.models.convert.formats import Source, split_function
from meshnode.models.convert.samples import InputForm, forms_of_sample, read_forms, sample_for
from meshnode.models.convert.steps import Converted
from meshnode.models.convert.torch_writing import (
    answers,
    flat_module,
    write_onnx,
    write_tflite,
    write_torchscript,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meshnode.models.convert.steps import Progress


def run(job: Mapping[str, Any], progress: Progress) -> Converted:
    """Convert a PyTorch model."""
    progress("loading the PyTorch model")
    source = Source(job["source"])
    module, forms = load_module(source, job)
    sample = sample_for(job, forms)
    progress(f"converting {type(module).__name__} to {job['target']}")
    scripted = source is Source.TORCHSCRIPT
    if job["target"] == "onnx":
        flat = module if scripted else flat_module(module)
        expected = write_onnx(flat, job, forms, sample, traced=scripted)
    elif job["target"] == "tflite":
        expected = write_tflite(flat_module(module), job, forms, sample)
    elif scripted:
        expected = _requantize(module, job, sample)
    else:
        expected = write_torchscript(flat_module(module), job, forms, sample)
    return Converted(forms, sample, expected)


def load_module(source: Source, job: Mapping[str, Any]) -> tuple[Any, tuple[InputForm, ...]]:
    """Load a module in evaluation mode, and say what its inputs are.

    Raises:
        ModelError: if the file holds none.
        UsageError: if nothing says what its inputs are.
    """
    torch = library("torch")
    if source is Source.TORCH_EXPORT:
        program = torch.export.load(job["model"])
        return program.module(), tuple(read_forms(job)) or _program_forms(program)
    if source is Source.TORCHSCRIPT:
        module = torch.jit.load(job["model"], map_location="cpu").eval()
        return module, _forms(
            job, [argument.name for argument in module.forward.schema.arguments[1:]]
        )
    if source is Source.TORCH_CODE:
        module = _construct(torch, job)
    else:
        module = torch.load(job["model"], map_location="cpu", weights_only=False)
    if not isinstance(module, torch.nn.Module):
        raise ModelError(
            f"it is a {type(module).__name__}, not a module. If these are weights (a state_dict), name the "
            "class and give them as weights: FILE.py:Class --from torch --weights FILE"
        )
    return module.eval(), _forms(job, _argument_names(module))


def _construct(torch: Any, job: Mapping[str, Any]) -> Any:
    found = split_function(job["model"])
    assert found is not None
    module = load_function(*found)
    if not isinstance(module, torch.nn.Module):
        module = module()
    if job.get("weights") and isinstance(module, torch.nn.Module):
        weights = torch.load(job["weights"], map_location="cpu", weights_only=True)
        try:
            module.load_state_dict(weights)
        except RuntimeError as error:
            raise ModelError(
                f"the weights do not fit the class: {' '.join(str(error).split())[:300]}"
            ) from None
    return module


def _argument_names(module: Any) -> list[str]:
    parameters = inspect.signature(module.forward).parameters.values()
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [each.name for each in parameters if each.kind in kinds and each.default is each.empty]


def _forms(job: Mapping[str, Any], names: list[str]) -> tuple[InputForm, ...]:
    given = tuple(read_forms(job))
    if given:
        return given
    if job.get("sample"):
        return tuple(forms_of_sample(job["sample"], names))
    example = names[0] if names else "x"
    raise UsageError(
        "a PyTorch module does not say what shape its inputs have; describe each in order, such as "
        f"--input {example}:float32:-1,3,224,224 (-1: any size), or give --sample FILE.npz"
    )


def _program_forms(program: Any) -> tuple[InputForm, ...]:
    wanted = program.graph_signature.user_inputs
    values = {node.name: node.meta["val"] for node in program.graph.nodes if node.name in wanted}
    return tuple(
        InputForm(
            name,
            str(values[name].dtype).removeprefix("torch."),
            tuple(size if isinstance(size, int) else -1 for size in values[name].shape),
        )
        for name in wanted
    )


def _requantize(module: Any, job: Mapping[str, Any], sample: Mapping[str, Any]) -> dict[str, Any]:
    """Write a script again, its weights as int8 if asked for."""
    expected = answers(module, sample, ())
    if job["quantize"] == "dynamic":
        quantization = library("torch.ao.quantization")
        jit = library("torch.ao.quantization.quantize_jit")
        module = jit.quantize_dynamic_jit(module, {"": quantization.per_channel_dynamic_qconfig})
    module.save(job["out"])
    return expected
