"""Which runtime executes a model: from its configuration, or from what its folder holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from meshnode.errors import ModelError
from meshnode.models.execution import Spelling
from meshnode.models.repository.spellings import (
    ARCHIVE_SUFFIX,
    PREDICTOR_FILES,
    TRITON_FILE,
    written,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from meshnode.models.repository.spellings import Written

ONNX_RUNTIME: Final = "onnx"
TORCH_RUNTIME: Final = "torch"
LITERT_RUNTIME: Final = "litert"
PYTHON_RUNTIME: Final = "python"
ENSEMBLE_RUNTIME: Final = "ensemble"


@dataclass(frozen=True, slots=True)
class Form:
    """One form in which models come as data or TorchScript.

    Attributes:
        runtime: What executes it.
        entries: Names that its file has where nobody says another, the first as an example to name.
        suffixes: Of its files.
    """

    runtime: str
    entries: tuple[str, ...]
    suffixes: tuple[str, ...]


_FORMS: Final = (
    Form(ONNX_RUNTIME, ("model.onnx",), (".onnx",)),
    Form(TORCH_RUNTIME, ("model.pt", "model.pt2", "model.pth"), (".pt", ".pt2", ".pth")),
    Form(LITERT_RUNTIME, ("model.tflite",), (".tflite",)),
)
"""In the order in which Triton looks at a folder without a configuration."""

BARE_SUFFIXES: Final = (".onnx", ".pt", ".pt2", ".pth", ".tflite", ARCHIVE_SUFFIX)
"""Of files that are a model by themselves."""

DATA_ENTRIES: Final = tuple(entry for form in _FORMS for entry in form.entries)
"""Usual names of such files in a version's folder."""


class Entry(NamedTuple):
    """Which runtime opens which file, and how a Python model is written."""

    runtime: str
    path: str
    spelling: Spelling = Spelling.NONE


_BY_NAME: Final = {
    "onnxruntime_onnx": ONNX_RUNTIME,
    "onnxruntime": ONNX_RUNTIME,
    "pytorch_libtorch": TORCH_RUNTIME,
    "pytorch": TORCH_RUNTIME,
    "python": PYTHON_RUNTIME,
    "tflite": LITERT_RUNTIME,
    "tensorflow_lite": LITERT_RUNTIME,
    "litert": LITERT_RUNTIME,
    "armnn_tflite": LITERT_RUNTIME,
    "ensemble": ENSEMBLE_RUNTIME,
}

_INSTEAD: Final = {
    "tensorrt": "give the ONNX file that the plan was built from: it runs on TensorRT where the machine "
    'has it, with optimization { execution_accelerators { gpu_execution_accelerator { name: "tensorrt" } } }',
    "tensorflow": "convert it: meshnode convert MODEL --to onnx",
    "openvino": "give the model as ONNX or TensorFlow Lite",
    "dali": "write the preprocessing as a Python model (model.py) or an ONNX graph",
    "vllm": "write it as a Python model (model.py or pipeline.py)",
    "tensorrtllm": "write it as a Python model (model.py or pipeline.py)",
    "fil": "convert it: meshnode convert MODEL --to onnx",
}
_FAMILIES: Final = {
    "tensorrt_plan": "tensorrt",
    "tensorflow_graphdef": "tensorflow",
    "tensorflow_savedmodel": "tensorflow",
}


def runtime_of(platform: str, backend: str) -> str:
    """Return the runtime that a configuration names, or an empty string if it names none.

    Raises:
        ModelError: if there is none of that name, saying what would work; or if both name different ones.
    """
    by_platform = _known("platform", platform)
    by_backend = _known("backend", backend)
    if by_platform and by_backend and by_platform != by_backend:
        raise ModelError(f"platform is {platform!r}, but backend is {backend!r}")
    return by_platform or by_backend


def _known(field: str, name: str) -> str:
    if not name:
        return ""
    runtime = _BY_NAME.get(name)
    if runtime is None:
        instead = _INSTEAD.get(_FAMILIES.get(name, name))
        raise ModelError(
            f"{field} {name!r} is not supported; "
            + (instead or f"supported are {', '.join(map(repr, _BY_NAME))}")
        )
    return runtime


def bare_entry(name: str) -> Entry | None:
    """Return what a file that is a model by itself stands for, or None if its name is of no known kind."""
    if name.endswith(ARCHIVE_SUFFIX):
        return Entry(PYTHON_RUNTIME, name, Spelling.ARCHIVE)
    for form in _FORMS:
        if name.endswith(form.suffixes):
            return Entry(form.runtime, name)
    return None


def choose_entry(
    names: Collection[str], text_of: Callable[[str], str], runtime: str = "", filename: str = ""
) -> Entry | None:
    """Choose which file of a version its runtime opens.

    A pipeline, or a predictor under one of its usual names, comes before a data file: that is what it loads.
    Then comes Triton's own order, in which a data file comes before `model.py`.

    Args:
        names: Relative POSIX paths of the version's files.
        text_of: Returns the text of one of them; called for `.py` files only.
        runtime: Which the configuration names; empty if the content decides.
        filename: Which the configuration names; empty if it names none.

    Returns:
        None if there is none.

    Raises:
        ModelError: if several files could be meant, or the named one is none that the runtime opens.
    """
    if filename:
        return _named(filename, runtime, text_of if filename in names else None)
    python = written(names, text_of) if runtime in ("", PYTHON_RUNTIME) else None
    if python is not None and (runtime == PYTHON_RUNTIME or _comes_first(python)):
        return Entry(PYTHON_RUNTIME, python.entry, python.spelling)
    forms = [form for form in _FORMS if runtime in ("", form.runtime)]
    for form in forms:
        for entry in form.entries:
            if entry in names:
                return Entry(form.runtime, entry)
    if python is not None:
        return Entry(PYTHON_RUNTIME, python.entry, python.spelling)
    return _only_one(names, forms)


def _comes_first(python: Written) -> bool:
    """Whether it is written for this folder, and no stray script beside a data file."""
    name = python.entry.rsplit("/", 1)[-1]
    return python.spelling is Spelling.PIPELINE or name in PREDICTOR_FILES


def _named(filename: str, runtime: str, text_of: Callable[[str], str] | None) -> Entry:
    """Return what the file that a configuration names stands for."""
    if filename.endswith(".py") and runtime in ("", PYTHON_RUNTIME):
        found = written([filename], text_of) if text_of else None
        return Entry(PYTHON_RUNTIME, filename, found.spelling if found else Spelling.TRITON)
    entry = bare_entry(filename)
    if entry is not None and runtime in ("", entry.runtime):
        return entry
    if not runtime:
        raise ModelError(
            f"default_model_filename {filename!r} is of no known kind, and neither platform nor backend "
            f"is set; known are files that end in {', '.join((*BARE_SUFFIXES, '.py'))}"
        )
    form = next((form for form in _FORMS if form.runtime == runtime), None)
    if form is not None and entry is None:
        return Entry(runtime, filename)  # Triton opens a file under any name
    opens = form.suffixes if form else (".py", ARCHIVE_SUFFIX)
    raise ModelError(
        f"default_model_filename {filename!r} is no file that runtime {runtime!r} opens; its files end in "
        f"{', '.join(opens)}"
    )


def _only_one(names: Collection[str], forms: list[Form]) -> Entry | None:
    """Return the only file right in the folder that has a model's suffix."""
    found = [
        Entry(form.runtime, name)
        for form in forms
        for name in sorted(names)
        if "/" not in name and name.endswith(form.suffixes)
    ]
    if len(found) > 1:
        files = ", ".join(repr(entry.path) for entry in found)
        raise ModelError(
            f"any of {files} could be the model; name one with default_model_filename in config.pbtxt"
        )
    return found[0] if found else None


def expected_entry(runtime: str) -> str:
    """Return the name of a file that would be found, for messages."""
    if runtime == PYTHON_RUNTIME:
        return TRITON_FILE
    return next((form.entries[0] for form in _FORMS if form.runtime == runtime), "model.onnx")
