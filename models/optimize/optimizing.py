"""The flow of `meshnode optimize`: optimise in a child process, measure both, judge, write."""

from __future__ import annotations

import re
import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from meshnode.errors import ConfigError, ModelError, UsageError
from meshnode.models.convert.agreement import Agreement, compare
from meshnode.models.convert.converting import look_at, measure, read_form
from meshnode.models.convert.environments import check_measurable, missing
from meshnode.models.convert.formats import CODE, Family, Source, Target, identify
from meshnode.models.convert.isolation import Limits, run_job
from meshnode.models.convert.writing import (
    finished_parts,
    next_version,
    parts_of,
    torchscript_config,
)
from meshnode.models.optimize.planning import (
    DEFAULT_THRESHOLD,
    Kind,
    Treatment,
    plan_steps,
    refusal,
)
from meshnode.models.repository.scanning import scan
from meshnode.models.repository.version_names import read_version

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Progress = Callable[[str], None]

_NAME_LINE: Final = re.compile(r"^\s*name\s*:.*$\n?", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class OptimizeWish:
    """What is to be optimised.

    Attributes:
        model: A model folder, or an `.onnx`, `.pt` or `.pth` file.
        version: Of a folder; None for the highest.
        treatment: What is to be done to it.
        calibration: File of inputs for static quantisation.
        sample: File of inputs for the comparison; None for the calibration set, else made-up ones.
        inputs: Of a PyTorch model, each `NAME:TYPE:SHAPE`.
        threshold: Agreement below which the result is refused, 0 to 1.
        force: Whether it is written all the same.
    """

    model: str
    treatment: Treatment
    version: int | None = None
    calibration: str | None = None
    sample: str | None = None
    inputs: tuple[str, ...] = ()
    threshold: float = DEFAULT_THRESHOLD
    force: bool = False


@dataclass(frozen=True, slots=True)
class OptimizePlan:
    """A wish that was checked.

    Attributes:
        wish: What is to be done.
        name: The model's name.
        file: The file that is optimised.
        folder: Its model folder; None for a bare file.
        kind: What the file is.
        steps: What is done to it, in order.
        code: Why loading it may run code; empty if it is data.
    """

    wish: OptimizeWish
    name: str
    file: Path
    folder: Path | None
    kind: Kind
    steps: tuple[dict[str, Any], ...]
    code: str

    @property
    def target(self) -> Target:
        """What the result is."""
        return Target.ONNX if self.kind is Kind.ONNX else Target.TORCHSCRIPT


@dataclass(frozen=True, slots=True)
class Figures:
    """Of one file.

    Attributes:
        size_bytes: With external data.
        latency_ms: Median time of one row with one thread.
        peak_memory_bytes: Memory that it took beyond its runtime's own.
    """

    size_bytes: int
    latency_ms: float
    peak_memory_bytes: int


@dataclass(frozen=True, slots=True)
class OptimizeReport:
    """What came of it.

    Attributes:
        plan: What was asked.
        original: Figures of the original.
        result: Figures of the result.
        agreement: Between the two.
        sparsity: Share of zeros among the pruned weights; None if nothing was pruned.
        refused: Why the result may not be published; empty if it may.
        notes: Sentences to read.
    """

    plan: OptimizePlan
    original: Figures
    result: Figures
    agreement: Agreement
    sparsity: float | None
    refused: str
    notes: tuple[str, ...]


def plan_optimization(wish: OptimizeWish) -> OptimizePlan:
    """Check a wish; nothing is loaded.

    Raises:
        UsageError: if it cannot be carried out.
        ModelError: if the folder holds no model that can be served.
    """
    path = Path(wish.model)
    if not path.exists():
        raise UsageError(f"{wish.model!r} does not exist")
    if not 0 <= wish.threshold <= 1:
        raise UsageError(f"--threshold {wish.threshold:g} is not between 0 and 1")
    for name in (wish.calibration, wish.sample):
        if name is not None and not Path(name).is_file():
            raise UsageError(f"{name!r} does not exist")
    if path.is_dir():
        name, file = _of_folder(path, wish.version)
    else:
        name, file = path.name.rpartition(".")[0] or path.name, path
    kind, code = _kind(file)
    if kind is Kind.ONNX:
        if missing(["onnx"]):
            raise UsageError("optimising ONNX models needs onnx: pip install 'meshnode[optimize]'")
    else:
        check_measurable(Target.TORCHSCRIPT)
    steps = plan_steps(kind, wish.treatment, calibrated=wish.calibration is not None)
    for text in wish.inputs:
        read_form(text)
    folder = path if path.is_dir() else None
    return OptimizePlan(wish, name, file.resolve(), folder, kind, tuple(steps), code)


def _of_folder(path: Path, version: int | None) -> tuple[str, Path]:
    found = scan(path)
    if len(found) != 1:
        names = ", ".join(model.name for model in found[:5])
        raise UsageError(f"{path} holds several models ({names}); name the folder of one")
    model = found[0]
    if model.error:
        raise ModelError(f"{path}: {model.error}")
    versions = {each.version: each for each in model.versions}
    chosen = max(versions, default=0) if version is None else version
    if chosen not in versions:
        # One that the version policy leaves out is no worse an original.
        older = [each for each in path.iterdir() if _number(each.name) == chosen]
        entry = versions[max(versions)].entry if versions else ""
        if entry and older and (older[0] / entry).is_file():
            return model.name, older[0] / entry
        numbers = {*versions, *filter(None, (_number(each.name) for each in path.iterdir()))}
        there = ", ".join(map(str, sorted(numbers)))
        raise UsageError(f"{path} has no version {chosen}; it has {there}")
    return model.name, versions[chosen].folder / versions[chosen].entry


def _number(name: str) -> int:
    """Return the version that a folder's name tells; 0 for none."""
    read = read_version(name)
    return read.number if read is not None else 0


def _kind(file: Path) -> tuple[Kind, str]:
    suffix = file.suffix.lower()
    if suffix == ".onnx":
        return Kind.ONNX, ""
    if suffix == ".tflite":
        raise UsageError(
            "a TensorFlow Lite file cannot be quantised afterwards; do it while converting: meshnode convert "
            "MODEL --to tflite --quantize int8"
        )
    source = identify(look_at(file), Family.TORCH if suffix in (".pt", ".pth") else None)
    if source is Source.TORCHSCRIPT:
        return Kind.TORCHSCRIPT, CODE[source]
    if source is Source.TORCH_PICKLE:
        return Kind.TORCH_PICKLE, CODE[source]
    raise UsageError(f"a {source} model is converted first: meshnode convert {file.name}")


def optimize(plan: OptimizePlan, work: Path, limits: Limits, progress: Progress) -> OptimizeReport:
    """Carry out a plan; the result is `result_file(plan, work)`.

    Args:
        plan: What `plan_optimization` returned; the caller has asked about its `code`.
        work: Existing folder to work in.
        limits: Of each step.
        progress: Told what goes on.

    Raises:
        MeshError: of `run_job`.
    """
    result = result_file(plan, work)
    original = plan.file
    if (
        plan.wish.treatment.fine_tune is not None
    ):  # the caller's own training reads and writes as it likes
        limits = replace(limits, protected=None)
    if plan.kind is Kind.ONNX:
        progress("looking at the original")
        told = run_job("sample", _job(plan, work), work, limits=limits, progress=progress)
        done = run_job("optimize", _job(plan, work), work, limits=limits, progress=progress)
    else:
        told = done = run_job("optimize", _job(plan, work), work, limits=limits, progress=progress)
        if plan.kind is Kind.TORCH_PICKLE:
            original = work / "original.pt"
    names = [name for name, _, _ in told["inputs"]]
    outputs = list(told["outputs"])
    before = measure(original, plan.target, names, outputs, work, limits, progress)
    after = measure(result, plan.target, names, outputs, work, limits, progress)
    agreement = _agreement(before["answers"], after["answers"], plan.wish)
    refused = refusal(agreement.score, plan.wish.threshold)
    _describe(plan, work, told, before["answers"])
    return OptimizeReport(
        plan,
        _figures(original, before),
        _figures(result, after),
        agreement,
        done.get("sparsity"),
        "" if plan.wish.force else refused,
        tuple(done["notes"]),
    )


def result_file(plan: OptimizePlan, work: Path) -> Path:
    """Return where `optimize` leaves its result."""
    return work / f"optimized{plan.target.suffix}"


def _job(plan: OptimizePlan, work: Path) -> dict[str, Any]:
    wish = plan.wish
    sample = wish.sample or wish.calibration
    source = Source.TORCHSCRIPT if plan.kind is Kind.TORCHSCRIPT else Source.TORCH_PICKLE
    return {
        "kind": "onnx" if plan.kind is Kind.ONNX else "torch",
        "source": source,
        "model": str(plan.file),
        "out": str(result_file(plan, work)),
        "original": str(work / "original.pt"),
        "expected": str(work / "expected.npz"),
        "steps": [_with_whole_path(step) for step in plan.steps],
        "calibration": wish.calibration and str(Path(wish.calibration).resolve()),
        "sample": sample and str(Path(sample).resolve()),
        "inputs": [read_form(text) for text in wish.inputs],
    }


def _with_whole_path(step: dict[str, Any]) -> dict[str, Any]:
    if not step.get("fine_tune"):
        return step
    where, _, name = str(step["fine_tune"]).rpartition(":")
    return {**step, "fine_tune": f"{Path(where).resolve()}:{name}"}


def _figures(file: Path, measured: dict[str, Any]) -> Figures:
    return Figures(
        sum(part.stat().st_size for part in parts_of(file)),
        float(measured["latency_ms"]),
        int(measured["peak_memory_bytes"]),
    )


def _agreement(before: dict[str, Any], after: dict[str, Any], wish: OptimizeWish) -> Agreement:
    sample = wish.sample or wish.calibration
    try:
        return compare(before, after, Path(sample).name if sample else "random")
    except ValueError as error:
        raise ModelError(f"the result does not answer as the original does: {error}") from None


def _describe(
    plan: OptimizePlan, work: Path, told: dict[str, Any], answers: dict[str, Any]
) -> None:
    """Write the configuration that a TorchScript file needs beside the result."""
    if plan.target is Target.TORCHSCRIPT:
        inputs = [(name, kind, tuple(shape)) for name, kind, shape in told["inputs"]]
        (work / "config.pbtxt").write_text(torchscript_config(inputs, answers), encoding="utf-8")


def write_version(plan: OptimizePlan, work: Path, out: Path, number: int | None = None) -> Path:
    """Copy a result into a model folder as a version, and return the version's folder.

    What else lies in the original's version (labels, say) goes with it, and so does its configuration.

    Args:
        plan: What was optimised.
        work: Folder that `optimize` worked in.
        out: A model folder, or one to be made.
        number: Of the version; None for the next one of that folder.

    Raises:
        ConfigError: if it cannot be written.
    """
    version = out / str(number or next_version(out))
    result = result_file(plan, work)
    try:
        version.mkdir(parents=True)
        if plan.folder is not None:
            _copy_companions(plan, version)
        entry = plan.file.name if plan.file.suffix == plan.target.suffix and plan.folder else ""
        for part in finished_parts(result):
            name = entry or f"model{plan.target.suffix}"
            shutil.copyfile(part, version / (name if part == result else part.name))
        _copy_config(plan, work, out)
    except OSError as error:
        raise ConfigError(f"{error.filename or out} cannot be written: {error.strerror}") from None
    return version


def _copy_companions(plan: OptimizePlan, version: Path) -> None:
    left_out = {part.name for part in parts_of(plan.file)}

    def unwanted(folder: str, _names: Sequence[str]) -> set[str]:
        return left_out if Path(folder) == plan.file.parent else set()

    shutil.copytree(plan.file.parent, version, ignore=unwanted, dirs_exist_ok=True)


def _copy_config(plan: OptimizePlan, work: Path, out: Path) -> None:
    config = out / "config.pbtxt"
    if config.exists():
        return
    own = plan.folder / "config.pbtxt" if plan.folder is not None else None
    if own is not None and own.is_file():
        # The name in it is the old folder's; without one, the folder's own counts.
        config.write_text(
            _NAME_LINE.sub("", own.read_text(encoding="utf-8"), count=1), encoding="utf-8"
        )
    elif (work / "config.pbtxt").exists():
        shutil.copyfile(work / "config.pbtxt", config)


def following_version(plan: OptimizePlan) -> int:
    """Return the number after the original's highest; a bare file counts as version 1."""
    return max(2, next_version(plan.folder)) if plan.folder is not None else 2


def working_folder() -> tempfile.TemporaryDirectory[str]:
    """Return a folder that goes away when it is left."""
    return tempfile.TemporaryDirectory(prefix="meshnode-optimize-")
