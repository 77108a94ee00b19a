"""Models on disk: what a path holds, in the layout of Triton's model repository.

A path may be

- a bare `.onnx` file: one model, version 1, named after the file, with the external data that
  exporters put beside it (`big.onnx.data`, `big.onnx_data`); data under any other name needs the
  folder layout, where every file belongs to the model;
- a model's folder: `<model>/config.pbtxt` (optional) and `<model>/<integer>/model.onnx`;
- a repository: a folder of such folders and bare files.

Version folders that are not plain positive integers (`01`, `old`) are ignored, as Triton ignores
them, and the version policy is applied. Every regular file of a version's folder belongs to the
version, in subfolders too; names that begin with a dot are what editors and Finder leave behind.
Links are followed while they stay inside the model's folder; others, and what is no regular file,
are left out with a reason. A model that cannot be served never stops the others: it is returned
with its `error`.
"""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from meshnode.errors import ModelError
from meshnode.limits import (
    MAX_MODEL_CONFIG_BYTES,
    MAX_MODEL_FILE_BYTES,
    MAX_MODEL_FILES,
    MAX_MODELS,
)
from meshnode.models.config import ModelConfig, VersionPolicy, parse_config
from meshnode.models.manifest import check_model_name, check_relative_path

if TYPE_CHECKING:
    from collections.abc import Iterator

CONFIG_FILE = "config.pbtxt"
_DEFAULT_ENTRY = ModelConfig().default_model_filename
_EXTERNAL_DATA = re.compile(r"[._-](data|weights|bin)([._-].*)?")  # what follows the file's name
_VERSION = re.compile(r"[1-9][0-9]{0,17}")  # below 2**63, without leading zeros


@dataclass(frozen=True, slots=True)
class FoundFile:
    """One file of a version: its relative POSIX path there, where it lies now, and its size."""

    path: str
    source: Path
    size_bytes: int


@dataclass(frozen=True, slots=True)
class FoundVersion:
    """One version of a model on disk.

    Attributes:
        version: Its number.
        folder: The folder that its runtime can open it from.
        files: All its files, sorted by path.
        entry: Path of the file that its runtime opens, one of `files`.
    """

    version: int
    folder: Path
    files: tuple[FoundFile, ...]
    entry: str


@dataclass(frozen=True, slots=True)
class FoundModel:
    """One model on disk.

    Attributes:
        name: The public name: the folder's or file's, or the one that the caller chose.
        path: Its folder or file.
        config: Its configuration; None if it has none.
        versions: The versions to serve, ascending; empty if there is an error.
        warnings: Sentences about what was left out or has no effect.
        error: Why it cannot be served; empty if it can.
    """

    name: str
    path: Path
    config: ModelConfig | None = None
    versions: tuple[FoundVersion, ...] = ()
    warnings: tuple[str, ...] = ()
    error: str = ""


def scan(path: Path, name: str | None = None) -> list[FoundModel]:
    """Find the models at a path.

    Args:
        path: A bare `.onnx` file, a model's folder, or a repository of both.
        name: Public name, for a path that is one model.

    Returns:
        The models sorted by name, those with an `error` included.

    Raises:
        ModelError: if the path does not exist, is neither, or holds nothing that looks like a
            model; or if a name is given for a repository.
    """
    path = Path(os.path.abspath(path))  # noqa: PTH100 - resolve() would lose a link's own name
    try:
        if path.is_file():
            return [_scan_one(path, name, boundary=None)]
        if not path.is_dir():
            raise ModelError(f"{path} does not exist")
        if _is_model_folder(path):
            return [_scan_one(path, name, boundary=None)]
        if name is not None:
            raise ModelError(f"{path} is not one model, so it cannot be given the name {name!r}")
        return _scan_repository(path)
    except OSError as error:
        raise ModelError(f"{error.filename or path} cannot be read: {error.strerror}") from None


def _scan_repository(path: Path) -> list[FoundModel]:
    children = [
        child
        for child in sorted(path.iterdir())
        if not child.name.startswith(".")
        and (_is_bare_name(child) or (child.is_dir() and _is_model_folder(child)))
    ]
    if not children:
        raise ModelError(
            f"{path} holds no model: expected <model>/<version>/{_DEFAULT_ENTRY} or <model>.onnx in it"
        )
    if len(children) > MAX_MODELS:
        raise ModelError(f"{path} holds {len(children)} models; at most {MAX_MODELS}")
    found: dict[str, FoundModel] = {}
    for child in children:
        model = _scan_one(child, None, boundary=path)
        earlier = found.get(model.name)
        if earlier is None:
            found[model.name] = model
        else:
            note = f"{child.name!r} is left out: {earlier.path.name!r} has the same model name"
            found[model.name] = _with_warning(earlier, note)
    return [found[key] for key in sorted(found)]


def _scan_one(path: Path, name: str | None, boundary: Path | None) -> FoundModel:
    """Scan one model; within a repository its links must stay below `boundary`."""
    bare = not path.is_dir()
    own_name = path.name.removesuffix(".onnx") if bare else path.name
    public_name = own_name if name is None else name
    notes: list[str] = []
    config = None
    try:
        check_model_name(public_name)
        if boundary is not None and not _inside(path, boundary):
            raise ModelError(f"{path.name!r} is a link that leads out of {boundary}")
        if bare:
            versions: tuple[FoundVersion, ...] = (_bare_version(path, notes),)
        else:
            config = _read_config(path)
            notes.extend(config.warnings if config else ())
            versions = tuple(_scan_versions(path, config, notes))
    except ModelError as error:
        return FoundModel(public_name, path, config, (), tuple(notes), str(error))
    except OSError as error:
        reason = f"{error.filename or path} cannot be read: {error.strerror}"
        return FoundModel(public_name, path, config, (), tuple(notes), reason)
    return FoundModel(public_name, path, config, versions, tuple(notes))


def _with_warning(model: FoundModel, note: str) -> FoundModel:
    return FoundModel(
        model.name, model.path, model.config, model.versions, (*model.warnings, note), model.error
    )


def _is_bare_name(path: Path) -> bool:
    return path.name.endswith(".onnx") and not path.is_dir()


def _is_model_folder(path: Path) -> bool:
    """A folder with a configuration, or with a version folder that has a file right in it."""
    return (path / CONFIG_FILE).exists() or any(
        _VERSION.fullmatch(child.name)
        and child.is_dir()
        and any(grandchild.is_file() for grandchild in child.iterdir())
        for child in path.iterdir()
    )


def _inside(path: Path, boundary: Path) -> bool:
    """Whether a path, links followed, lies below a folder."""
    try:
        return path.resolve(strict=True).is_relative_to(boundary.resolve())
    except (OSError, RuntimeError):  # a dangling link; a loop of links
        return False


def _bare_version(path: Path, notes: list[str]) -> FoundVersion:
    if path.suffix != ".onnx":
        raise ModelError(f"{path.name!r} is no ONNX file: its name does not end in .onnx")
    files = [FoundFile(check_relative_path(path.name), path, _check_regular(path))]
    for sibling in sorted(path.parent.iterdir()):
        rest = sibling.name.removeprefix(path.name)
        if rest != sibling.name and _EXTERNAL_DATA.fullmatch(rest):
            files.extend(_take(sibling, sibling.name, path.parent, notes))
    return FoundVersion(1, path.parent, tuple(files), path.name)


def _read_config(folder: Path) -> ModelConfig | None:
    path = folder / CONFIG_FILE
    if not path.exists() and not path.is_symlink():
        return None
    if not _inside(path, folder):
        raise ModelError(f"{CONFIG_FILE} is a link that leads out of {folder}")
    if _check_regular(path) > MAX_MODEL_CONFIG_BYTES:
        raise ModelError(
            f"{CONFIG_FILE} of {folder.name!r} is longer than {MAX_MODEL_CONFIG_BYTES} bytes"
        )
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ModelError(f"{CONFIG_FILE} of {folder.name!r} is not UTF-8 text") from None
    return parse_config(text, folder.name)


def _scan_versions(
    folder: Path, config: ModelConfig | None, notes: list[str]
) -> Iterator[FoundVersion]:
    available: dict[int, Path] = {}
    for child in sorted(folder.iterdir()):
        if not _VERSION.fullmatch(child.name) or not child.is_dir():
            continue
        if _inside(child, folder):
            available[int(child.name)] = child
        else:
            notes.append(f"version {child.name} is left out: a link that leads out of the folder")
    if not available:
        raise ModelError(f"{folder} has no version folder such as {folder.name}/1/{_DEFAULT_ENTRY}")
    policy = config.version_policy if config else VersionPolicy()
    entry = config.default_model_filename if config else _DEFAULT_ENTRY
    for version in policy.select(tuple(available)):
        path = available[version]
        files = _version_files(path, folder, notes)
        if entry not in {file.path for file in files}:
            names = ", ".join(file.path for file in files[:5]) or "no file that can be served"
            raise ModelError(
                f"version {version} of {folder.name!r} has no {entry!r}; it has {names}"
            )
        yield FoundVersion(version, path, files, entry)


def _version_files(version: Path, model: Path, notes: list[str]) -> tuple[FoundFile, ...]:
    files: list[FoundFile] = []
    for parent, folders, names in os.walk(version):
        for name in sorted(folders):
            if name.startswith("."):
                folders.remove(name)
            elif (Path(parent) / name).is_symlink():  # os.walk does not enter it
                notes.append(f"folder {name!r} of version {version.name} is left out: a link")
        for name in sorted(names):
            if not name.startswith("."):
                path = Path(parent) / name
                files.extend(_take(path, path.relative_to(version).as_posix(), model, notes))
        if len(files) > MAX_MODEL_FILES:
            raise ModelError(f"version {version.name} has more than {MAX_MODEL_FILES} files")
    return tuple(sorted(files, key=lambda file: file.path))


def _take(path: Path, relative: str, boundary: Path, notes: list[str]) -> Iterator[FoundFile]:
    """Yield a file, or note why it is left out."""
    try:
        if not _inside(path, boundary):
            raise ModelError("it is a link that leads out of the folder, or nowhere")
        yield FoundFile(check_relative_path(relative), path, _check_regular(path))
    except ModelError as error:
        notes.append(f"file {relative!r} is left out: {error}")


def _check_regular(path: Path) -> int:
    """Return a regular file's size, following a link."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise ModelError(f"{path.name!r} is not a regular file")
    if status.st_size > MAX_MODEL_FILE_BYTES:
        raise ModelError(f"{path.name!r} is larger than {MAX_MODEL_FILE_BYTES} bytes")
    return status.st_size
