"""ONNX: quantisation, 16-bit floats, graph optimisation and pruning, from one file to another."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from meshnode.errors import ModelError
from meshnode.models.convert.child import library
from meshnode.models.convert.samples import read_sample
from meshnode.models.optimize.pruning import prune_array

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

_EXTERNAL_FROM_BYTES: Final = (
    1 << 30
)  # protobuf cannot hold 2 GiB; weights then lie beside the file
_CALIBRATION_ROWS: Final = 16  # at once; memory grows with it
_WEIGHTED: Final = {"MatMul": (0, 1), "Gemm": (0, 1), "Conv": (1,), "ConvTranspose": (1,)}
"""Operators whose inputs at these places are weights."""
_QUANTIZABLE: Final = frozenset(
    {"MatMul", "Gemm", "Conv", "Attention", "LSTM", "Gather", "EmbedLayerNormalization"}
)
_QUANTIZED: Final = frozenset({"DequantizeLinear", "MatMulInteger", "ConvInteger", "QLinearMatMul"})


def apply(
    step: Mapping[str, Any], source: Path, target: Path, calibration: str | None
) -> dict[str, Any]:
    """Do one step.

    Args:
        step: `do` names it; `share` is how much is pruned.
        source: The model.
        target: Where the result is written.
        calibration: File of inputs, for `static`.

    Returns:
        `notes`, and `sparsity` if it was pruned.

    Raises:
        ModelError: if the model cannot be read, or has nothing for this step.
    """
    name = step["do"]
    if name == "prune":
        return _prune(source, target, float(step["share"]))
    if name == "graph":
        return _simplify(source, target)
    if name == "fp16":
        return _halve(source, target)
    if name == "static":
        assert calibration is not None
        return _quantize_statically(source, target, calibration)
    return _quantize_dynamically(source, target)


def _load(path: Path) -> Any:
    onnx = library("onnx")
    try:
        return onnx.load(str(path))
    # protobuf's DecodeError, and what onnx raises for external data.
    except Exception as error:
        raise ModelError(f"{path.name} cannot be read as ONNX: {error}") from error


def _save(model: Any, path: Path) -> None:
    onnx = library("onnx")
    large = model.ByteSize() > _EXTERNAL_FROM_BYTES
    onnx.save(
        model, str(path), save_as_external_data=large, all_tensors_to_one_file=True,
        location=f"{path.name}.data",
    )  # fmt: skip


def _operators(model: Any) -> set[str]:
    return {node.op_type for node in model.graph.node}


def _check_quantizable(model: Any, step: str) -> None:
    if not _operators(model) & _QUANTIZABLE:
        raise ModelError(
            f"the model has no operators that {step} quantisation is for "
            f"({', '.join(sorted(_QUANTIZABLE))}); it has {', '.join(sorted(_operators(model))[:8])}"
        )


def _prepared(source: Path, target: Path) -> tuple[Path, list[str]]:
    """Fold constants and infer shapes, without which less can be quantised."""
    inference = library("onnxruntime.quantization.shape_inference")
    prepared = target.with_name(f"{target.stem}.prepared.onnx")
    try:
        inference.quant_pre_process(
            str(source), str(prepared), skip_symbolic_shape=True,
            save_as_external_data=source.stat().st_size > _EXTERNAL_FROM_BYTES,
        )  # fmt: skip
        _tell_types(prepared)
    # Shape inference fails on graphs that run well; quantisation then does with what it knows.
    except Exception as error:  # noqa: BLE001
        reason = " ".join(str(error).split())[:120]
        return source, [f"shapes could not be inferred ({reason}); less may be quantised"]
    return prepared, []


def _quantize_dynamically(source: Path, target: Path) -> dict[str, Any]:
    quantization = library("onnxruntime.quantization")
    _check_quantizable(_load(source), "dynamic")
    prepared, notes = _prepared(source, target)
    quantization.quantize_dynamic(
        str(prepared),
        str(target),
        weight_type=quantization.QuantType.QInt8,
        per_channel=False,
        use_external_data_format=source.stat().st_size > _EXTERNAL_FROM_BYTES,
    )
    return {"notes": notes}


def _tell_types(prepared: Path) -> None:
    """Write down the types that ONNX does not infer.

    Behind a classifier's own operators (`ai.onnx.ml`) it knows none, and what has no type is not quantised.
    ONNX Runtime knows them once it opens the model.
    """
    onnx, onnxruntime = library("onnx"), library("onnxruntime")
    model = _load(prepared)
    graph = model.graph
    told = {each.name for each in (*graph.value_info, *graph.output)}
    names = [name for node in graph.node for name in node.output if name and name not in told]
    if not names:
        return
    graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    probe = prepared.with_name(f"{prepared.stem}.typed.onnx")
    _save(model, probe)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(probe), options, providers=["CPUExecutionProvider"])
    types = {each.name: each.type for each in session.get_outputs()}
    del graph.output[-len(names) :]
    graph.value_info.extend(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
        for name in names
        if types.get(name) == "tensor(float)"
    )
    _save(model, prepared)


def _quantize_statically(source: Path, target: Path, calibration: str) -> dict[str, Any]:
    quantization = library("onnxruntime.quantization")
    model = _load(source)
    _check_quantizable(model, "static")
    prepared, notes = _prepared(source, target)
    weights = {each.name for each in model.graph.initializer}
    inputs = [each.name for each in model.graph.input if each.name not in weights]
    sample = read_sample(calibration)
    if not all(name in sample for name in inputs):
        if len(sample) < len(inputs):
            raise ModelError(
                f"the calibration set has {', '.join(map(repr, sample))}, the model's inputs are "
                f"{', '.join(map(repr, inputs))}"
            )
        sample = dict(zip(inputs, sample.values(), strict=False))
    rows = min(len(sample[name]) for name in inputs)

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc, name-defined] # known at run time
        def __init__(self) -> None:
            self._pieces = _pieces(sample, inputs, rows)

        def get_next(self) -> Any:
            return next(self._pieces, None)

    quantization.quantize_static(
        str(prepared),
        str(target),
        Reader(),
        quant_format=quantization.QuantFormat.QDQ,
        per_channel=True,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
        use_external_data_format=source.stat().st_size > _EXTERNAL_FROM_BYTES,
    )
    if rows < _FEW_ROWS:
        notes.append(
            f"the calibration set has only {rows} rows; a hundred or more give better ranges"
        )
    return {"notes": notes}


_FEW_ROWS: Final = 32


def _pieces(sample: Mapping[str, Any], inputs: list[str], rows: int) -> Iterator[dict[str, Any]]:
    for start in range(0, rows, _CALIBRATION_ROWS):
        yield {name: sample[name][start : start + _CALIBRATION_ROWS] for name in inputs}


def _halve(source: Path, target: Path) -> dict[str, Any]:
    float16 = library("onnxruntime.transformers.float16")
    model = _load(source)
    if _operators(model) & _QUANTIZED:
        raise ModelError(
            "the model is quantised, and what is left of it gains nothing by 16-bit floats; give the version "
            "that it was made of, with --version"
        )
    halved = float16.convert_float_to_float16(model, keep_io_types=True)
    _save(halved, target)
    return {
        "notes": [
            "processors without 16-bit arithmetic, most CPUs among them, run fp16 models slower"
        ]
    }


def _simplify(source: Path, target: Path) -> dict[str, Any]:
    onnxruntime = library("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    # Extended, not all: the last level writes layouts for the processor that it runs on.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(target)
    if source.stat().st_size > _EXTERNAL_FROM_BYTES:
        options.add_session_config_entry(
            "session.optimized_model_external_initializers_file_name", f"{target.name}.data"
        )
    before = len(_load(source).graph.node)
    try:
        onnxruntime.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])
    # ONNX Runtime raises a dozen classes that derive from Exception alone.
    except Exception as error:
        raise ModelError(
            f"ONNX Runtime cannot open it: {' '.join(str(error).split())[:300]}"
        ) from error
    after = len(_load(target).graph.node)
    return {"notes": [f"{before} operators became {after}"]}


_ZEROS: Final = (
    "zeros take as much room and time as other numbers until the file is compressed or the runtime has "
    "kernels for sparse weights"
)


def _prune(source: Path, target: Path, share: float) -> dict[str, Any]:
    numpy_helper = library("onnx.numpy_helper")
    model = _load(source)
    weights = {
        name
        for node in model.graph.node
        for at in _WEIGHTED.get(node.op_type, ())
        for name in node.input[at : at + 1]
    }
    zeros = total = 0
    for initializer in model.graph.initializer:
        if initializer.name not in weights or len(initializer.dims) < 2:
            continue
        array = numpy_helper.to_array(initializer)
        if array.dtype.kind != "f":
            continue
        pruned = prune_array(array, share)
        initializer.CopyFrom(numpy_helper.from_array(pruned, initializer.name))
        zeros += int(np.count_nonzero(pruned == 0))
        total += pruned.size
    if total == 0:
        raise ModelError("the model has no weights of matrix products or convolutions to prune")
    _save(model, target)
    return {
        "sparsity": zeros / total,
        "notes": [_ZEROS],
    }
