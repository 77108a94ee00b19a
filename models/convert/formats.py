"""What can be converted into what, by which libraries, and which files are code.

One row of `CONVERSIONS` is one way. It is a table, so that the command's help, its errors and its
documentation say the same.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from meshnode.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Collection


class Source(StrEnum):
    """What a model to convert is."""

    SKLEARN = "scikit-learn"
    KERAS = "Keras"
    SAVED_MODEL = "TensorFlow SavedModel"
    JAX_FUNCTION = "JAX function"
    JAX_EXPORT = "JAX export"
    TORCH_CODE = "PyTorch class"
    TORCH_PICKLE = "pickled PyTorch module"
    TORCHSCRIPT = "TorchScript"
    TORCH_EXPORT = "torch.export program"


class Target(StrEnum):
    """What it becomes."""

    ONNX = "onnx"
    TORCHSCRIPT = "torchscript"
    TFLITE = "tflite"

    @property
    def suffix(self) -> str:
        """Of its file's name."""
        return _SUFFIXES[self]


_SUFFIXES: Final = {Target.ONNX: ".onnx", Target.TORCHSCRIPT: ".pt", Target.TFLITE: ".tflite"}


class Quantization(StrEnum):
    """How the result's numbers are stored.

    NONE: as the original's. DYNAMIC: weights as int8, activations quantised while it runs. INT8: both as
    int8, by the ranges seen in a sample. FP16: weights as 16-bit floats.
    """

    NONE = "none"
    DYNAMIC = "dynamic"
    INT8 = "int8"
    FP16 = "fp16"


class Family(StrEnum):
    """What `--from` names."""

    SKLEARN = "sklearn"
    KERAS = "keras"
    JAX = "jax"
    TORCH = "torch"


CODE: Final = {
    Source.SKLEARN: "a pickle runs whatever code its author put into it",
    Source.KERAS: "a Keras file may hold layers that are Python code",
    Source.SAVED_MODEL: "a SavedModel's graph may read and write files",
    Source.JAX_FUNCTION: "it is Python code",
    Source.TORCH_CODE: "it is Python code",
    Source.TORCH_PICKLE: "a pickle runs whatever code its author put into it",
    Source.TORCHSCRIPT: "crafted TorchScript files run code when they are opened",
    Source.TORCH_EXPORT: "crafted .pt2 files run code when they are opened",
}
"""Why loading this can run its author's code; a source that is not here is data."""


@dataclass(frozen=True, slots=True)
class Conversion:
    """One way.

    Attributes:
        step: The module of this package that goes it.
        imports: Modules that it needs.
        packages: What to install for them.
        extra: Extra of the package that has them; empty where they do not fit beside meshnode's own
            libraries and so need an environment of their own.
        quantizations: What can be asked for besides `none`.
    """

    step: str
    imports: tuple[str, ...]
    packages: tuple[str, ...]
    extra: str
    quantizations: frozenset[Quantization]


_ALL: Final = frozenset({Quantization.DYNAMIC, Quantization.INT8, Quantization.FP16})
_SKLEARN: Final = ("sklearn", "joblib")
_ONNX_TORCH: Final = ("torch", "onnx", "onnxscript")
_TENSORFLOW: Final = ("tensorflow", "keras")
_KERAS_PACKAGES: Final = ("keras", "torch", "onnx", "onnxscript")
_TF_PACKAGES: Final = ("tensorflow-cpu", "tf2onnx", "onnx")
_JAX_TF_PACKAGES: Final = ("jax", "tensorflow-cpu", "tf2onnx", "onnx")


def _to_onnx(
    step: str, imports: tuple[str, ...], packages: tuple[str, ...], extra: str
) -> Conversion:
    return Conversion(step, imports, packages, extra, _ALL)


CONVERSIONS: Final[dict[tuple[Source, Target], Conversion]] = {
    (Source.SKLEARN, Target.ONNX): _to_onnx(
        "from_sklearn", (*_SKLEARN, "skl2onnx"), ("scikit-learn", "skl2onnx"), "convert"
    ),
    (Source.SKLEARN, Target.TORCHSCRIPT): Conversion(
        "from_sklearn",
        (*_SKLEARN, "torch"),
        ("scikit-learn", "torch"),
        "torch,convert",
        frozenset({Quantization.DYNAMIC, Quantization.FP16}),
    ),
    (Source.SKLEARN, Target.TFLITE): Conversion(
        "from_sklearn",
        (*_SKLEARN, "tensorflow"),
        ("scikit-learn", "tensorflow-cpu"),
        "convert,convert-tensorflow",
        _ALL,
    ),
    (Source.KERAS, Target.ONNX): _to_onnx(
        "from_keras", ("keras", *_ONNX_TORCH), _KERAS_PACKAGES, "torch,convert"
    ),
    (Source.KERAS, Target.TORCHSCRIPT): Conversion(
        "from_keras",
        ("keras", "torch"),
        ("keras", "torch"),
        "torch,convert",
        frozenset({Quantization.FP16}),
    ),
    (Source.KERAS, Target.TFLITE): Conversion(
        "from_tensorflow", _TENSORFLOW, ("tensorflow-cpu",), "convert-tensorflow", _ALL
    ),
    (Source.SAVED_MODEL, Target.ONNX): _to_onnx(
        "from_tensorflow", ("tensorflow", "tf2onnx"), _TF_PACKAGES, "convert-tensorflow"
    ),
    (Source.SAVED_MODEL, Target.TFLITE): Conversion(
        "from_tensorflow", _TENSORFLOW, ("tensorflow-cpu",), "convert-tensorflow", _ALL
    ),
    (Source.JAX_FUNCTION, Target.ONNX): _to_onnx(
        "from_jax", ("jax", "jax2onnx"), ("jax", "jax2onnx"), "convert-jax"
    ),
    (Source.JAX_FUNCTION, Target.TFLITE): Conversion(
        "from_jax", ("jax", "tensorflow"), _JAX_TF_PACKAGES, "convert-jax,convert-tensorflow", _ALL
    ),
    (Source.JAX_EXPORT, Target.ONNX): _to_onnx(
        "from_jax",
        ("jax", "tensorflow", "tf2onnx"),
        _JAX_TF_PACKAGES,
        "convert-jax,convert-tensorflow",
    ),
    (Source.JAX_EXPORT, Target.TFLITE): Conversion(
        "from_jax", ("jax", "tensorflow"), _JAX_TF_PACKAGES, "convert-jax,convert-tensorflow", _ALL
    ),
    **{
        (source, Target.ONNX): _to_onnx(
            "from_torch", _ONNX_TORCH, ("torch", "onnx", "onnxscript"), "torch,convert"
        )
        for source in (
            Source.TORCH_CODE,
            Source.TORCH_PICKLE,
            Source.TORCHSCRIPT,
            Source.TORCH_EXPORT,
        )
    },
    **{
        (source, Target.TORCHSCRIPT): Conversion(
            "from_torch",
            ("torch",),
            ("torch",),
            "torch",
            frozenset({Quantization.DYNAMIC, Quantization.FP16}),
        )
        for source in (Source.TORCH_CODE, Source.TORCH_PICKLE, Source.TORCH_EXPORT)
    },
    (Source.TORCHSCRIPT, Target.TORCHSCRIPT): Conversion(
        "from_torch", ("torch",), ("torch",), "torch", frozenset({Quantization.DYNAMIC})
    ),
    **{
        (source, Target.TFLITE): Conversion(
            "from_torch",
            ("torch", "litert_torch"),
            ("torch", "litert-torch"),
            "",
            frozenset({Quantization.DYNAMIC, Quantization.INT8}),
        )
        for source in (Source.TORCH_CODE, Source.TORCH_PICKLE, Source.TORCH_EXPORT)
    },
}
"""Every way that there is."""


def conversion(source: Source, target: Target, quantization: Quantization) -> Conversion:
    """Return the way from a source to a target.

    Raises:
        UsageError: if there is none, naming those that there are.
    """
    way = CONVERSIONS.get((source, target))
    if way is None:
        others = " or ".join(each for each in Target if (source, each) in CONVERSIONS)
        raise UsageError(
            f"a {source} model cannot be converted to {target}; it can become {others} (--to)"
        )
    if quantization is not Quantization.NONE and quantization not in way.quantizations:
        offered = ", ".join(sorted(way.quantizations)) or "none"
        raise UsageError(
            f"--quantize {quantization} is not possible from a {source} model to {target}; "
            f"possible there: {offered}"
        )
    return way


_FUNCTION: Final = re.compile(r"(?P<where>.+?):(?P<name>[A-Za-z_]\w*)")


def split_function(text: str) -> tuple[str, str] | None:
    """Split `net.py:Net` or `package.module:Net`; None if it is not of that form.

    A Windows drive before a path is no such form: a module's or file's name has two characters at least.
    """
    match = _FUNCTION.fullmatch(text)
    if match is None or len(match["where"]) < 2:
        return None
    return match["where"], match["name"]


@dataclass(frozen=True, slots=True)
class Looked:
    """What was seen of a path.

    Attributes:
        name: Its last part.
        is_folder: Whether it is a folder.
        head: Its first bytes, if it is a file.
        members: Names in it, if it is a folder or a zip archive.
    """

    name: str
    is_folder: bool = False
    head: bytes = b""
    members: Collection[str] = ()


def identify(looked: Looked, family: Family | None = None) -> Source:
    """Tell from a path's name and content what it is.

    Args:
        looked: What was seen of it.
        family: What `--from` said.

    Raises:
        UsageError: if that cannot be told, or is not what `--from` says.
    """
    found = _from_folder(looked) if looked.is_folder else _from_file(looked, family)
    if found is None and looked.name.lower().endswith((".onnx", ".tflite")):
        raise UsageError(
            f"{looked.name!r} is what the mesh serves, so there is nothing to convert: meshnode deploy it, or "
            "make it smaller with: meshnode optimize"
        )
    if found is None:
        raise UsageError(
            f"{looked.name!r} is not recognised; say what it is with --from sklearn, keras, jax or torch"
        )
    if family is not None and found not in _FAMILIES[family]:
        raise UsageError(f"{looked.name!r} is a {found} model, but --from says {family}")
    return found


def identify_function(where: str, family: Family | None) -> Source:
    """Tell what `module:name` is meant to be.

    Raises:
        UsageError: if `--from` does not say it.
    """
    if family is Family.JAX:
        return Source.JAX_FUNCTION
    if family is Family.TORCH:
        return Source.TORCH_CODE
    raise UsageError(
        f"say what {where!r} defines: --from torch (a class, or a function that returns a module) or "
        "--from jax (a function of arrays)"
    )


_FAMILIES: Final = {
    Family.SKLEARN: {Source.SKLEARN},
    Family.KERAS: {Source.KERAS, Source.SAVED_MODEL},
    Family.JAX: {Source.JAX_FUNCTION, Source.JAX_EXPORT},
    Family.TORCH: {
        Source.TORCH_CODE,
        Source.TORCH_PICKLE,
        Source.TORCHSCRIPT,
        Source.TORCH_EXPORT,
    },
}

_HDF5: Final = b"\x89HDF\r\n\x1a\n"


def _from_folder(looked: Looked) -> Source | None:
    return Source.SAVED_MODEL if "saved_model.pb" in looked.members else None


def _from_file(looked: Looked, family: Family | None) -> Source | None:
    names = {member.rpartition("/")[2] for member in looked.members}
    if looked.head.startswith(_HDF5) or {"config.json", "model.weights.h5"} <= names:
        return Source.KERAS
    if names & {"archive_format", "archive_version"} or "serialized_exported_program.json" in names:
        return Source.TORCH_EXPORT
    if "constants.pkl" in names:
        return Source.TORCHSCRIPT
    if "data.pkl" in names:
        return Source.TORCH_PICKLE
    suffix = looked.name.rpartition(".")[2].lower()
    if family is Family.JAX or suffix in ("jaxexport", "jax"):
        return Source.JAX_EXPORT
    if family is Family.SKLEARN or suffix in ("joblib", "pkl", "pickle", "skops"):
        return Source.SKLEARN
    if family is Family.TORCH:
        return Source.TORCH_PICKLE  # of before torch 1.6, without a zip archive around it
    return None
