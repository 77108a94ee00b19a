"""PyTorch: dynamic quantisation (qint8) and pruning; the result is TorchScript."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from meshnode.errors import ModelError
from meshnode.models.convert.child import library, load_function
from meshnode.models.convert.formats import Source, split_function
from meshnode.models.convert.from_torch import load_module
from meshnode.models.convert.samples import sample_for, save_arrays
from meshnode.models.convert.torch_writing import answers, flat_module, write_torchscript
from meshnode.models.optimize.pruning import MagnitudePruner, PolynomialSchedule

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meshnode.models.convert.steps import Progress


def optimize_torch(job: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
    """Do `job["steps"]` to a TorchScript file or a pickled module.

    Returns:
        As `steps.run`, and `inputs` and `outputs` of the model; the unoptimised model's answers are in
        `job["expected"]`, and itself, as TorchScript, in `job["original"]`.
    """
    source = Source(job["source"])
    module, forms = load_module(source, job)
    sample = sample_for(job, forms)
    scripted = source is Source.TORCHSCRIPT
    flat = module if scripted else flat_module(module)
    expected = answers(flat, sample, ())
    save_arrays(job["expected"], [sample[form.name] for form in forms], list(expected.values()))
    told: dict[str, Any] = {
        "inputs": [[form.name, form.datatype, list(form.shape)] for form in forms],
        "outputs": list(expected),
        "notes": [],
    }
    if scripted:
        progress("quantising the weights to qint8")
        quantization = library("torch.ao.quantization")
        jit = library("torch.ao.quantization.quantize_jit")
        jit.quantize_dynamic_jit(module, {"": quantization.per_channel_dynamic_qconfig}).save(
            job["out"]
        )
        return told
    write_torchscript(flat, {"out": job["original"], "quantize": "none"}, forms, sample)
    steps = {step["do"]: step for step in job["steps"]}
    if "prune" in steps:
        told["sparsity"] = _prune(module, steps["prune"], progress)
    progress("writing TorchScript")
    quantize = "dynamic" if "dynamic" in steps else "none"
    write_torchscript(
        flat_module(module.eval()), {"out": job["out"], "quantize": quantize}, forms, sample
    )
    return told


def _prune(module: Any, step: Mapping[str, Any], progress: Progress) -> float:
    """Prune at once, or in steps with the caller's training between them."""
    count = int(step["steps"])
    train = None
    if step.get("fine_tune"):
        named = split_function(step["fine_tune"])
        if named is None:
            raise ModelError(f"--fine-tune {step['fine_tune']!r} is not FILE.py:FUNCTION")
        train = load_function(*named)
    schedule = PolynomialSchedule(float(step["share"]), begin=0, end=max(count, 1))
    pruner = MagnitudePruner(module, schedule)
    for at in range(1, count + 1):
        pruner.step(at)
        progress(f"pruned {pruner.sparsity():.0%}, step {at} of {count}")
        if train is not None:
            train(module, at)
            pruner.step(at)  # training moved the zeros
    return pruner.sparsity()
