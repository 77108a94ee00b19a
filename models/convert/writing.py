"""Puts a finished file where it was asked for: a bare file, or a version of a model folder."""

from __future__ import annotations

import re
import shutil
import stat
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from meshnode.errors import ConfigError, ModelError
from meshnode.models.convert.formats import Target

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

_VERSION: Final = re.compile(r"[1-9][0-9]{0,17}")
_TYPES: Final = {
    "float16": "TYPE_FP16", "float32": "TYPE_FP32", "float64": "TYPE_FP64", "int8": "TYPE_INT8",
    "int16": "TYPE_INT16", "int32": "TYPE_INT32", "int64": "TYPE_INT64", "uint8": "TYPE_UINT8",
    "uint16": "TYPE_UINT16", "uint32": "TYPE_UINT32", "uint64": "TYPE_UINT64", "bool": "TYPE_BOOL",
}  # fmt: skip


def next_version(folder: Path) -> int:
    """Return the number after the highest version of a model folder; 1 if it has none."""
    if not folder.is_dir():
        return 1
    numbers = [int(each.name) for each in folder.iterdir() if _VERSION.fullmatch(each.name)]
    return max(numbers, default=0) + 1


def place(
    result: Path,
    out: Path,
    target: Target,
    inputs: Sequence[tuple[str, str, tuple[int, ...]]],
    outputs: Mapping[str, Any],
) -> tuple[Path, int]:
    """Copy a result, with its external data, to where it is wanted.

    Args:
        result: The file.
        out: A file with the target's suffix, else a model folder, which gets a new version.
        target: What the file is.
        inputs: (name, type, shape), for the configuration that a TorchScript file needs.
        outputs: Arrays by name, likewise.

    Returns:
        The file's path, and the size of all that was copied.

    Raises:
        ModelError: if the result is no plain file.
        ConfigError: if it cannot be written.
    """
    if out.suffix == target.suffix and not out.is_dir():
        path = out
    else:
        path = out / str(next_version(out)) / f"model{target.suffix}"
    size_bytes = 0
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for part in finished_parts(result):
            size_bytes += part.stat().st_size
            # External data keeps its name: the model refers to it.
            shutil.copyfile(part, path if part == result else path.parent / part.name)
        config = out / "config.pbtxt"
        if target is Target.TORCHSCRIPT and path != out and not config.exists():
            config.write_text(torchscript_config(inputs, outputs), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{error.filename or path} cannot be written: {error.strerror}") from None
    return path, size_bytes


def parts_of(file: Path) -> list[Path]:
    """Return a file and the external data that was written beside it under its name."""
    return [
        file,
        *sorted(each for each in file.parent.glob(f"{file.name}.data*") if each.is_file()),
    ]


def finished_parts(result: Path) -> list[Path]:
    """Return the parts of a file that a child process wrote.

    A model's code may have run in that process. A link that it left there would have this process, which may
    read more, copy what the link leads to: the node's key, say, into a model that is then published.

    Raises:
        ModelError: if one is missing, or is no plain file with a single name.
    """
    parts = parts_of(result)
    for part in parts:
        try:
            status = part.lstat()
        except OSError:
            raise ModelError("the conversion wrote no result") from None
        if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
            raise ModelError(
                f"the conversion left a link at {part.name}, not a file; it is not taken"
            )
    return parts


def torchscript_config(
    inputs: Sequence[tuple[str, str, tuple[int, ...]]], outputs: Mapping[str, Any]
) -> str:
    """Return a `config.pbtxt`: a TorchScript file does not say what its tensors are."""
    lines = ['backend: "pytorch"', "max_batch_size: 0"]
    for name, datatype, shape in inputs:
        lines.append(_tensor("input", name, datatype, shape))
    for name, array in outputs.items():
        found = np.asarray(array)
        lines.append(_tensor("output", name, str(found.dtype), (-1, *found.shape[1:])))
    return "\n".join(lines) + "\n"


def _tensor(kind: str, name: str, datatype: str, shape: Sequence[int]) -> str:
    dims = ", ".join(map(str, shape))
    return f'{kind} {{ name: "{name}" data_type: {_TYPES[datatype]} dims: [ {dims} ] }}'
