"""JAX: a function (with its parameters) or an exported one to ONNX or TensorFlow Lite.

A function goes to ONNX with jax2onnx. What `jax.export` wrote is a compiled program whose steps jax2onnx
does not see; TensorFlow Lite's converter reads it, and tf2onnx reads that one's result.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from meshnode.errors import ModelError, UsageError
from meshnode.models.convert.child import library, load_function
from meshnode.models.convert.formats import Source, split_function
from meshnode.models.convert.from_tensorflow import run_tf2onnx, write_function_tflite
from meshnode.models.convert.samples import (
    InputForm,
    forms_of_sample,
    read_forms,
    read_sample,
    sample_for,
)
from meshnode.models.convert.steps import Converted

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from meshnode.models.convert.steps import Progress

_OPSET: Final = 18


def run(job: Mapping[str, Any], progress: Progress) -> Converted:
    """Convert a JAX function."""
    progress("loading JAX")
    library("jax")
    if Source(job["source"]) is Source.JAX_EXPORT:
        function, forms = _exported(job)
    else:
        function, forms = _function(job)
    sample = sample_for(job, forms)
    found = function(*(sample[form.name] for form in forms))
    names, flatten = _outputs(found)
    progress(f"converting to {job['target']}")
    if job["target"] == "tflite":
        _to_tflite(function, job, forms, names, flatten, sample)
    elif Source(job["source"]) is Source.JAX_EXPORT:
        _through_tflite(function, job, forms, names, flatten, sample)
    else:
        _to_onnx(function, job, forms, names, flatten)
    expected = dict(zip(names, map(np.asarray, flatten(found)), strict=True))
    return Converted(forms, sample, expected)


def _function(job: Mapping[str, Any]) -> tuple[Callable[..., Any], tuple[InputForm, ...]]:
    named = split_function(job["model"])
    assert named is not None
    function = load_function(*named)
    names = [
        each.name
        for each in inspect.signature(function).parameters.values()
        if each.default is each.empty and each.kind is not each.VAR_POSITIONAL
    ]
    if job.get("weights"):
        parameters = _tree(read_sample(job["weights"]))
        inner = function
        names = names[1:]

        def function(*arrays: Any) -> Any:
            return inner(parameters, *arrays)

    forms = tuple(read_forms(job))
    if not forms and job.get("sample"):
        forms = tuple(forms_of_sample(job["sample"], names))
    if not forms:
        raise UsageError(
            "a JAX function does not say what shape its inputs have; describe each in order, such as "
            f"--input {names[0] if names else 'x'}:float32:-1,4 (-1: any size), or give --sample FILE.npz"
        )
    return function, forms


def _tree(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Nest arrays by the `/` in their names, as parameters of JAX models are nested."""
    tree: dict[str, Any] = {}
    for name, array in flat.items():
        *folders, leaf = name.split("/")
        place = tree
        for folder in folders:
            place = place.setdefault(folder, {})
        place[leaf] = array
    return tree


def _exported(job: Mapping[str, Any]) -> tuple[Callable[..., Any], tuple[InputForm, ...]]:
    export = library("jax.export")
    try:
        program = export.deserialize(bytearray(Path(job["model"]).read_bytes()))
    # The reader of the format raises what its flatbuffers library does on damaged bytes.
    except Exception as error:
        raise ModelError(f"it is not what jax.export serialises: {error}") from error
    given = tuple(read_forms(job))
    forms = given or tuple(
        InputForm(
            "input" if len(program.in_avals) == 1 else f"input_{at}",
            str(form.dtype),
            tuple(size if isinstance(size, int) else -1 for size in form.shape),
        )
        for at, form in enumerate(program.in_avals)
    )
    return program.call, forms


def _outputs(found: Any) -> tuple[list[str], Callable[[Any], list[Any]]]:
    """Return names for what a function returns, and how to make a list of it."""
    if isinstance(found, dict):
        names = [str(name) for name in found]
        return names, lambda each: [each[name] for name in found]
    if isinstance(found, (list, tuple)):
        return [f"output_{at}" for at in range(len(found))], list
    return ["output"], lambda each: [each]


def _symbols(form: InputForm) -> str:
    sizes = [
        ("batch" if at == 0 else f"{form.name}_{at}") if size < 0 else str(size)
        for at, size in enumerate(form.shape)
    ]
    return f"({', '.join(sizes)}{',' if len(sizes) == 1 else ''})"


def _to_onnx(
    function: Callable[..., Any],
    job: Mapping[str, Any],
    forms: Sequence[InputForm],
    names: Sequence[str],
    flatten: Callable[[Any], list[Any]],
) -> None:
    jax = library("jax")
    jax2onnx = library("jax2onnx")
    shapes = [
        jax.ShapeDtypeStruct(jax.export.symbolic_shape(_symbols(form)), form.datatype)
        if -1 in form.shape
        else jax.ShapeDtypeStruct(form.shape, form.datatype)
        for form in forms
    ]
    if any(-1 in form.shape for form in forms):
        shapes = [
            [
                ("B" if at == 0 else f"D{at}") if size < 0 else size
                for at, size in enumerate(form.shape)
            ]
            for form in forms
        ]
        if any(form.datatype != "float32" for form in forms):
            raise ModelError(
                "jax2onnx takes free dimensions for float32 inputs only; give --input with fixed sizes"
            )

    def flat(*arrays: Any) -> Any:
        parts = flatten(function(*arrays))
        return parts[0] if len(parts) == 1 else tuple(parts)

    model = jax2onnx.to_onnx(
        flat,
        shapes,
        opset=job.get("opset") or _OPSET,
        input_names=[form.name for form in forms],
        output_names=list(names),
    )
    Path(job["out"]).write_bytes(model.SerializeToString())


def _to_tflite(
    function: Callable[..., Any],
    job: Mapping[str, Any],
    forms: Sequence[InputForm],
    names: Sequence[str],
    flatten: Callable[[Any], list[Any]],
    sample: Mapping[str, Any],
) -> None:
    jax2tf = library("jax.experimental.jax2tf")
    shapes = [_symbols(form) if -1 in form.shape else None for form in forms]
    converted = jax2tf.convert(
        lambda *arrays: flatten(function(*arrays)), polymorphic_shapes=shapes, with_gradient=False
    )

    def call(*tensors: Any) -> dict[str, Any]:
        return dict(zip(names, converted(*tensors), strict=True))

    write_function_tflite(call, None, job, forms, sample)


def _through_tflite(
    function: Callable[..., Any],
    job: Mapping[str, Any],
    forms: Sequence[InputForm],
    names: Sequence[str],
    flatten: Callable[[Any], list[Any]],
    sample: Mapping[str, Any],
) -> None:
    between = f"{job['out']}.tflite"
    _to_tflite(function, {**job, "out": between, "quantize": "none"}, forms, names, flatten, sample)
    run_tf2onnx(job, "--tflite", between)
    if len(forms) == len(names) == 1:  # of several, the order is the converter's
        _rename(job["out"], forms[0].name, names[0])


def _rename(path: str, input_name: str, output_name: str) -> None:
    """Give the input and the output of an ONNX file their own names back."""
    onnx = library("onnx")
    model = onnx.load(path)
    graph = model.graph
    new = {graph.input[0].name: input_name, graph.output[0].name: output_name}
    for value in (graph.input[0], graph.output[0]):
        value.name = new[value.name]
    for node in graph.node:
        for ends in (node.input, node.output):
            ends[:] = [new.get(name, name) for name in ends]
    onnx.save(model, path)
