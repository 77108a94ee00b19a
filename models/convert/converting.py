"""The flow of `meshnode convert`: plan, convert in a child process, measure in another, report."""

from __future__ import annotations

import re
import sys
import tempfile
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from meshnode.errors import ModelError, UsageError
from meshnode.limits import MAX_NAMES_LOOKED_AT
from meshnode.models.convert.agreement import Agreement, compare
from meshnode.models.convert.environments import (
    check_installed,
    check_measurable,
    managed_python,
    missing,
)
from meshnode.models.convert.formats import (
    CODE,
    Conversion,
    Family,
    Looked,
    Quantization,
    Source,
    Target,
    conversion,
    identify,
    identify_function,
    split_function,
)
from meshnode.models.convert.isolation import Limits, run_job
from meshnode.models.convert.samples import load_arrays
from meshnode.models.convert.writing import place

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    Progress = Callable[[str], None]

_HEAD_BYTES: Final = 16
_INPUT: Final = re.compile(r"(?P<name>[^:]+):(?P<datatype>[a-z]+[0-9]*):(?P<shape>[-0-9, ]*)")
_DATATYPES: Final = frozenset({
    "float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32",
    "uint64", "bool",
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class ConvertWish:
    """What is to be converted.

    Attributes:
        model: A path, or `FILE.py:NAME`, or `package.module:NAME`.
        out: Where the result goes: a file with the target's suffix, else a model folder.
        target: What it becomes; None for ONNX.
        quantization: How its numbers are stored.
        family: What `--from` said.
        sample: File of inputs for the comparison and for int8 ranges.
        inputs: Each `NAME:TYPE:SHAPE`.
        weights: File of weights for a class or function.
        opset: Of ONNX; None for the exporter's own.
        python: Another interpreter to convert in.
        install: Whether libraries that are missing may be installed in an environment of their own.
    """

    model: str
    out: str
    target: Target = Target.ONNX
    quantization: Quantization = Quantization.NONE
    family: Family | None = None
    sample: str | None = None
    inputs: tuple[str, ...] = ()
    weights: str | None = None
    opset: int | None = None
    python: str | None = None
    install: bool = False


@dataclass(frozen=True, slots=True)
class ConvertPlan:
    """A wish that was checked.

    Attributes:
        wish: What is to be done.
        source: What the model is.
        way: How it is done.
        code: Why loading the model may run code; empty if it is data.
        forms: (name, type, shape) of the inputs that the caller described.
    """

    wish: ConvertWish
    source: Source
    way: Conversion
    code: str
    forms: tuple[tuple[str, str, tuple[int, ...]], ...]


@dataclass(frozen=True, slots=True)
class ConvertReport:
    """What came of it.

    Attributes:
        plan: What was asked.
        path: The result's file.
        size_bytes: Its size, with external data.
        inputs: (name, type, shape).
        outputs: Names.
        agreement: With the original.
        latency_ms: Median time of one row, or as many as the result insists on, with one thread.
        peak_memory_bytes: Memory that it took beyond its runtime's own.
        notes: Sentences to read.
    """

    plan: ConvertPlan
    path: Path
    size_bytes: int
    inputs: tuple[tuple[str, str, tuple[int, ...]], ...]
    outputs: tuple[str, ...]
    agreement: Agreement
    latency_ms: float
    peak_memory_bytes: int
    notes: tuple[str, ...] = field(default=())


def plan_conversion(wish: ConvertWish) -> ConvertPlan:
    """Check a wish; nothing is loaded.

    Raises:
        UsageError: if it cannot be carried out, or contradicts itself.
    """
    source = _source(wish)
    way = conversion(source, wish.target, wish.quantization)
    if wish.quantization is Quantization.INT8 and wish.sample is None:
        raise UsageError(
            "--quantize int8 needs --sample FILE.npz: real inputs, a hundred or more, that show in which "
            "range the numbers inside the model lie"
        )
    if wish.weights is not None and source not in (Source.TORCH_CODE, Source.JAX_FUNCTION):
        raise UsageError("--weights goes with FILE.py:NAME; a saved model has its own")
    for path in (wish.sample, wish.weights):
        if path is not None and not Path(path).is_file():
            raise UsageError(f"{path!r} does not exist")
    forms = tuple(read_form(text) for text in wish.inputs)
    if wish.python is None and not wish.install:
        check_installed(way)
    if (
        wish.target is Target.ONNX
        and wish.quantization is not Quantization.NONE
        and missing(["onnx"])
    ):
        raise UsageError("quantising ONNX models needs onnx: pip install 'meshnode[optimize]'")
    check_measurable(wish.target)
    _check_out(wish)
    return ConvertPlan(wish, source, way, CODE.get(source, ""), forms)


def _source(wish: ConvertWish) -> Source:
    path = Path(wish.model)
    if not path.exists():
        function = split_function(wish.model)
        if function is None:
            raise UsageError(f"{wish.model!r} does not exist")
        where = function[0]
        if where.endswith(".py") and not Path(where).is_file():
            raise UsageError(f"{where!r} does not exist")
        return identify_function(where, wish.family)
    return identify(look_at(path), wish.family)


def look_at(path: Path) -> Looked:
    """See what a path is from its name, its first bytes and its table of contents."""
    try:
        if path.is_dir():
            return Looked(
                path.name, is_folder=True, members=sorted(each.name for each in path.iterdir())
            )
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
        members: list[str] = []
        if head.startswith(b"PK") and zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                members = archive.namelist()[:MAX_NAMES_LOOKED_AT]
    except (OSError, zipfile.BadZipFile) as error:
        raise UsageError(f"{path} cannot be read: {error}") from None
    return Looked(path.name, head=head, members=members)


def read_form(text: str) -> tuple[str, str, tuple[int, ...]]:
    """Read what `--input` says: (name, type, shape).

    Raises:
        UsageError: if it is not of the form `NAME:TYPE:SHAPE`.
    """
    match = _INPUT.fullmatch(text.strip())
    if match is None or match["datatype"] not in _DATATYPES:
        raise UsageError(
            f"--input {text!r} is not NAME:TYPE:SHAPE, such as image:float32:-1,3,224,224 (-1: any size); "
            f"types: {', '.join(sorted(_DATATYPES))}"
        )
    try:
        shape = tuple(int(size) for size in match["shape"].split(",") if size.strip())
    except ValueError:
        shape = (-2,)
    if any(size < -1 or size == 0 for size in shape):
        raise UsageError(f"--input {text!r}: sizes are positive, or -1 for any")
    return match["name"], match["datatype"], shape


def _check_out(wish: ConvertWish) -> None:
    out = Path(wish.out)
    if out.is_file():
        raise UsageError(f"{wish.out!r} exists already; name another -o, or remove it first")
    if out.suffix and out.suffix != wish.target.suffix and not out.is_dir():
        raise UsageError(
            f"-o {wish.out!r} ends in {out.suffix!r}, but a {wish.target} file ends in "
            f"{wish.target.suffix!r}; name such a file, or a folder"
        )


def convert(
    plan: ConvertPlan, limits: Limits, progress: Progress, data_folder: Path
) -> ConvertReport:
    """Carry out a plan.

    Args:
        plan: What `plan_conversion` returned; the caller has asked about its `code`.
        limits: Of each step.
        progress: Told what goes on.
        data_folder: Where environments are kept.

    Raises:
        MeshError: of `run_job`, and where the result cannot be written.
    """
    wish = plan.wish
    python = wish.python or sys.executable
    if wish.install and wish.python is None and not _has_all(plan.way):
        python = managed_python(data_folder, plan.way.packages, progress)
    with tempfile.TemporaryDirectory(prefix="meshnode-convert-") as folder:
        work = Path(folder)
        result = work / f"model{wish.target.suffix}"
        told = run_job(
            "convert",
            _job(plan, work, result),
            work,
            limits=limits,
            progress=progress,
            python=python,
            variables={"KERAS_BACKEND": _keras_backend(plan.way)},
        )
        if wish.target is Target.ONNX and wish.quantization is not Quantization.NONE:
            result = _quantize(wish, result, work, limits, progress)
        measured = measure(
            result,
            wish.target,
            [name for name, _, _ in told["inputs"]],
            told["outputs"],
            work,
            limits,
            progress,
        )
        _, expected = load_arrays(work / "expected.npz")
        agreement = _agreement(told["outputs"], expected, measured, wish.sample)
        inputs = _inputs_of_result(told["inputs"], measured)
        outputs = dict(zip(told["outputs"], expected, strict=True))
        path, size_bytes = place(result, Path(wish.out), wish.target, inputs, outputs)
    return ConvertReport(
        plan,
        path,
        size_bytes,
        inputs,
        tuple(measured["outputs"]),
        agreement,
        float(measured["latency_ms"]),
        int(measured["peak_memory_bytes"]),
        (*told["notes"], *_rows_note(measured)),
    )


def _has_all(way: Conversion) -> bool:
    try:
        check_installed(way)
    except UsageError:
        return False
    return True


def _keras_backend(way: Conversion) -> str:
    return "tensorflow" if "tensorflow" in way.imports else "torch"


def _job(plan: ConvertPlan, work: Path, result: Path) -> dict[str, Any]:
    wish = plan.wish
    model = wish.model
    if plan.source in (Source.TORCH_CODE, Source.JAX_FUNCTION):
        where, _, name = model.rpartition(":")
        model = f"{Path(where).resolve()}:{name}" if where.endswith(".py") else model
    else:
        model = str(Path(model).resolve())
    return {
        "step": plan.way.step,
        "source": plan.source,
        "model": model,
        "target": wish.target,
        "quantize": wish.quantization,
        "sample": wish.sample and str(Path(wish.sample).resolve()),
        "weights": wish.weights and str(Path(wish.weights).resolve()),
        "inputs": plan.forms,
        "opset": wish.opset,
        "out": str(result),
        "expected": str(work / "expected.npz"),
    }


def _quantize(
    wish: ConvertWish, result: Path, work: Path, limits: Limits, progress: Progress
) -> Path:
    """Quantise an ONNX file as `meshnode optimize` does."""
    quantized = work / "quantized.onnx"
    step = "static" if wish.quantization is Quantization.INT8 else str(wish.quantization)
    run_job(
        "optimize",
        {
            "kind": "onnx",
            "model": str(result),
            "out": str(quantized),
            "steps": [{"do": step}],
            "calibration": wish.sample and str(Path(wish.sample).resolve()),
        },
        work,
        limits=limits,
        progress=progress,
    )
    return quantized


def measure(
    file: Path,
    runtime: Target,
    names: list[str],
    outputs: list[str],
    work: Path,
    limits: Limits,
    progress: Progress,
) -> dict[str, Any]:
    """Run a file on the arrays of `expected.npz` in a child process.

    Returns:
        What the task `measure` says, with the answers by output under `answers`.
    """
    answers = work / f"{file.stem}.answers.npz"
    told = run_job(
        "measure",
        {
            "file": str(file),
            "runtime": runtime,
            "names": names,
            "expected": outputs,
            "arrays": str(work / "expected.npz"),
            "answers": str(answers),
        },
        work,
        limits=limits,
        progress=progress,
    )
    told["answers"] = dict(zip(told["outputs"], load_arrays(answers)[1], strict=True))
    return told


def _agreement(
    names: list[str], expected: list[Any], measured: Mapping[str, Any], sample: str | None
) -> Agreement:
    """Compare by name; by position where a converter gave its own names."""
    found: dict[str, Any] = measured["answers"]
    if not set(names) <= set(found) and len(found) == len(names):
        found = dict(zip(names, found.values(), strict=True))
    try:
        return compare(
            dict(zip(names, expected, strict=True)),
            found,
            Path(sample).name if sample else "random",
        )
    except ValueError as error:
        raise ModelError(f"the result does not answer as the original does: {error}") from None


def _inputs_of_result(
    forms: Sequence[tuple[str, str, Sequence[int]]], measured: Mapping[str, Any]
) -> tuple[tuple[str, str, tuple[int, ...]], ...]:
    """Return the inputs as the result has them: a converter may rename them, or fix the rows."""
    rows = measured["rows"]
    return tuple(
        (name, kind, (rows, *shape[1:]) if rows and shape[:1] == [-1] else tuple(shape))
        for name, (_, kind, shape) in zip(measured["inputs"], forms, strict=True)
    )


def _rows_note(measured: Mapping[str, Any]) -> tuple[str, ...]:
    rows = measured.get("rows")
    return (f"the result takes exactly {rows} row(s) per request",) if rows else ()
