"""Models on disk: what a path holds, in the layout of Triton's model repository.

A path may be

- a bare `.onnx`, `.pt`, `.pt2`, `.pth`, `.tflite` or `.mar` file: one model, version 1, named after the file,
  with the external data that exporters put beside an ONNX file (`big.onnx.data`, `big.onnx_data`); data
  under any other name needs the folder layout, where every file belongs to the model;
- a model's folder: `<model>/config.pbtxt` (optional) and `<model>/<version>/<file>`;
- a model's folder without versions: `<model>/pipeline.py`, `<model>/model.py` or another Python model
  (`meshnode.models.repository.spellings`), the only `.mar` in it, or a single data file of a usual name such as
  `<model>/model.onnx`; all of it is version 1;
- a repository: a folder of such folders and bare files. `SERVER_MODELS` may say which of them are served.

Versions are positive integers or moments such as `20260131_120000` (`meshnode.models.repository.version_names`); other
folders (`01`, `old`) are ignored, as Triton ignores them, and the version policy is applied. Every regular
file of a version's folder belongs to the version, in subfolders too, and so do the files in `warmup` and
`initial_state` beside it that the configuration names. A `metadata.json` in a version's folder, or else
beside the version folders or the bare file, says where the version comes from.

What opens a model is told by its configuration, else by what its folder holds
(`meshnode.models.repository.config_backend`). A model that cannot be served never stops the others: it is returned with
its `error`.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from meshnode.errors import ModelError
from meshnode.limits import MAX_METADATA_BYTES, MAX_MODEL_CONFIG_BYTES, MAX_MODELS, MAX_SOURCE_BYTES
from meshnode.models.execution import DEFAULT_EXECUTION, Execution, Spelling
from meshnode.models.manifest import check_model_name, check_relative_path, shown_name
from meshnode.models.provenance import Provenance
from meshnode.models.repository.config import ModelConfig, parse_config
from meshnode.models.repository.config_backend import (
    BARE_SUFFIXES,
    DATA_ENTRIES,
    ENSEMBLE_RUNTIME,
    ONNX_RUNTIME,
    Entry,
    bare_entry,
    choose_entry,
    expected_entry,
)
from meshnode.models.repository.config_execution import STATE_FOLDER, WARM_UP_FOLDER
from meshnode.models.repository.metadata import METADATA_FILE, Metadata, read_metadata
from meshnode.models.repository.server_models import (
    ENVIRONMENT_FILE,
    SERVER_MODELS,
    find_server_models,
    read_server_models,
)
from meshnode.models.repository.spellings import (
    ARCHIVE_MANIFEST,
    ARCHIVE_SUFFIX,
    ENDPOINT_FILE,
    PIPELINE_FILE,
    written,
)
from meshnode.models.repository.version_files import (
    FoundFile,
    collect,
    is_inside,
    is_passed_over,
    read_text,
    regular_size,
    take,
    take_one,
)
from meshnode.models.repository.version_names import VersionName, read_version

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

CONFIG_FILE: Final = "config.pbtxt"
_EXTERNAL_DATA = re.compile(r"[._-](data|weights|bin)([._-].*)?")  # what follows the file's name
_BESIDE: Final = frozenset({CONFIG_FILE, METADATA_FILE})


@dataclass(frozen=True, slots=True)
class FoundVersion:
    """One version of a model on disk.

    Attributes:
        version: Its number.
        folder: The folder that its runtime can open it from.
        files: All its files, sorted by path.
        entry: Path of the file that its runtime opens, one of `files`; empty for an ensemble, which has none.
        runtime: Which runtime executes it.
        execution: How, as far as its configuration and its folder say.
        provenance: What its folder's name and `metadata.json` say of where it comes from, unsigned; None if
            nothing does.
    """

    version: int
    folder: Path
    files: tuple[FoundFile, ...]
    entry: str
    runtime: str = ONNX_RUNTIME
    execution: Execution = DEFAULT_EXECUTION
    provenance: Provenance | None = None


@dataclass(frozen=True, slots=True)
class FoundModel:
    """One model on disk.

    Attributes:
        name: The public name: the folder's or file's, or the one that the caller chose; of one that cannot be a
            name, with other characters in it, so that its `error` can be shown.
        path: Its folder or file.
        config: Its configuration; None if it has none.
        versions: The versions to serve, ascending; empty if there is an error.
        warnings: Sentences about what was left out or has no effect.
        error: Why it cannot be served; empty if it can.
        numbered: Whether its author gave the version's number; what has no version folder seldom has one.
    """

    name: str
    path: Path
    config: ModelConfig | None = None
    versions: tuple[FoundVersion, ...] = ()
    warnings: tuple[str, ...] = ()
    error: str = ""
    numbered: bool = True


def scan(
    path: Path,
    name: str | None = None,
    server_models: str | None = None,
    *,
    may_be_empty: bool = False,
) -> list[FoundModel]:
    """Find the models at a path.

    Args:
        path: A bare model file, a model's folder, or a repository of both.
        name: Public name, for a path that is one model.
        server_models: Value of `SERVER_MODELS` in the environment; None or empty if it is not set, so that a
            repository's own `.env` counts.
        may_be_empty: Whether a folder that holds nothing that looks like a model is a repository without any.

    Returns:
        The models sorted by name, those with an `error` included.

    Raises:
        ModelError: if the path does not exist, is neither, or holds nothing that looks like a
            model; if a name is given for a repository; or if `SERVER_MODELS` cannot be read.
    """
    path = Path(os.path.abspath(path))  # noqa: PTH100 - resolve() would lose a link's own name
    try:
        if path.is_file():
            return [_scan_one(path, name, boundary=None)]
        if not path.is_dir():
            raise ModelError(f"{path} does not exist")
        if _is_one_model(path) or (name is not None and _is_archive_folder(path)):
            return [_scan_one(path, name, boundary=None)]
        if name is not None:
            raise ModelError(f"{path} is not one model, so it cannot be given the name {name!r}")
        return _scan_repository(path, server_models, may_be_empty)
    except OSError as error:
        raise ModelError(f"{error.filename or path} cannot be read: {error.strerror}") from None


def _is_one_model(path: Path) -> bool:
    """Whether a folder is a model; a folder of models may have a stray script in it."""
    if _is_versioned(path):
        return True
    has_versioned = any(_is_versioned(child) for child in _folders(path))
    return not has_versioned and _is_unversioned(path, archives=False)


def _is_archive_folder(path: Path) -> bool:
    """Whether a folder holds one archive and no other model; by itself it is a repository of that."""
    bare = [child for child in path.iterdir() if _is_bare_name(child)]
    has_others = any(_is_model_folder(child) for child in _folders(path))
    return len(bare) == 1 and bare[0].name.endswith(ARCHIVE_SUFFIX) and not has_others


def passed_over(path: Path, server_models: str | None = None) -> list[str]:
    """Return a sentence for each folder of a repository in which nothing was found that can be served.

    Args:
        path: As for `scan`.
        server_models: Likewise; folders that are not wanted are not told.
    """
    if not path.is_dir() or _is_one_model(path) or _server_models(path, server_models):
        return []
    return [
        f"folder {child.name!r} is passed over: it has no version folder such as {child.name}/1/model.onnx, and "
        "neither a Python model nor a single archive (.mar) lies right in it"
        for child in sorted(_folders(path))
        if not is_passed_over(child.name) and any(child.iterdir()) and not _is_model_folder(child)
    ]


def _scan_repository(path: Path, server_models: str | None, may_be_empty: bool) -> list[FoundModel]:
    wanted = _server_models(path, server_models)
    children = [
        child
        for child in sorted(path.iterdir())
        if not is_passed_over(child.name) and (_is_bare_name(child) or _is_model_folder(child))
    ]
    if not children and not wanted and not may_be_empty:
        if (path / ENDPOINT_FILE).is_file():
            raise ModelError(_without_pipeline(path))
        raise ModelError(
            f"{path} holds no model: expected <model>/<version>/{expected_entry(ONNX_RUNTIME)} or <model>.onnx in it"
        )
    if len(children) > MAX_MODELS:
        raise ModelError(f"{path} holds {len(children)} models; at most {MAX_MODELS}")
    if wanted:
        children = [child for child in children if _own_name(child) in wanted]
    found: dict[str, FoundModel] = {}
    for child in children:
        model = _scan_one(child, None, boundary=path)
        earlier = found.get(model.name)
        if earlier is None:
            found[model.name] = model
        else:
            note = f"{child.name!r} is left out: {earlier.path.name!r} has the same model name"
            found[model.name] = replace(earlier, warnings=(*earlier.warnings, note))
    for name, replicas in wanted.items():
        found[name] = _with_replicas(found.get(name) or _missing(name, path), replicas)
    return [found[key] for key in sorted(found)]


def _server_models(path: Path, value: str | None) -> dict[str, int]:
    """Return which models are wanted, with their replicas; empty for all."""
    place = path / ENVIRONMENT_FILE
    if not value and place.is_file():
        value = find_server_models(
            read_text(place, path, MAX_MODEL_CONFIG_BYTES, f"{ENVIRONMENT_FILE} of {path}")
        )
    return read_server_models(value) if value else {}


def _missing(name: str, path: Path) -> FoundModel:
    return FoundModel(
        name, path / name, error=f"{SERVER_MODELS} names {name!r}, but {path} has no such model"
    )


def _with_replicas(model: FoundModel, replicas: int) -> FoundModel:
    versions = tuple(
        replace(version, execution=msgspec.structs.replace(version.execution, replicas=replicas))
        for version in model.versions
    )
    return replace(model, versions=versions)


def _scan_one(path: Path, name: str | None, boundary: Path | None) -> FoundModel:
    """Scan one model; within a repository its links must stay below `boundary`."""
    public_name = _own_name(path) if name is None else name
    notes: list[str] = []
    config = None
    numbered = True
    try:
        check_model_name(public_name)
        if boundary is not None and not is_inside(path, boundary):
            raise ModelError(f"{path.name!r} is a link that leads out of {boundary}")
        if not path.is_dir():
            metadata = _bare_metadata(path)
            numbered = _has_number(metadata)
            versions: tuple[FoundVersion, ...] = (_bare_version(path, metadata, notes),)
        else:
            config = _read_config(path)
            notes.extend(config.warnings if config else ())
            metadata = _read_metadata(path / METADATA_FILE, path)
            versions = tuple(_scan_versions(path, config or ModelConfig(), metadata, notes))
            numbered = versions[0].folder != path or _has_number(metadata)
    except ModelError as error:
        return FoundModel(shown_name(public_name), path, config, (), tuple(notes), str(error))
    except OSError as error:
        reason = f"{error.filename or path} cannot be read: {error.strerror}"
        return FoundModel(shown_name(public_name), path, config, (), tuple(notes), reason)
    return FoundModel(public_name, path, config, versions, tuple(notes), numbered=numbered)


def _own_name(path: Path) -> str:
    if path.is_dir():
        return path.name
    suffix = next((suffix for suffix in BARE_SUFFIXES if path.name.endswith(suffix)), "")
    return path.name.removesuffix(suffix)


def _is_bare_name(path: Path) -> bool:
    return path.name.endswith(BARE_SUFFIXES) and not path.is_dir()


def _is_model_folder(path: Path) -> bool:
    return path.is_dir() and (_is_versioned(path) or _is_unversioned(path))


def _is_versioned(path: Path) -> bool:
    """A folder with a configuration, or with a version folder that has a file right in it."""
    return (path / CONFIG_FILE).exists() or any(
        # Anything but a folder: of a pipe or a link that leads nowhere it is told that it cannot be served.
        read_version(child.name) and any(not grandchild.is_dir() for grandchild in child.iterdir())
        for child in _folders(path)
    )


def _is_unversioned(path: Path, *, archives: bool = True) -> bool:
    """A folder that is a Python model, or that has one data file of a usual name and no other model.

    Args:
        path: The folder.
        archives: Whether the only `.mar` in it makes it a model; in a repository that is one by itself.
    """
    names = [child.name for child in path.iterdir() if child.is_file()]
    bare = [name for name in names if name.endswith(BARE_SUFFIXES)]
    sources = {name: path / name for name in names if name.endswith(".py")}
    for folder in ("src", "app"):
        if (path / folder).is_dir():
            places = (path / folder).glob("*.py")
            sources.update({f"{folder}/{place.name}": place for place in places})
    if archives:
        sources.update({name: path / name for name in bare if name.endswith(ARCHIVE_SUFFIX)})
    if (path / ARCHIVE_MANIFEST).is_file():
        sources[ARCHIVE_MANIFEST] = path / ARCHIVE_MANIFEST
    if sources and written(sources, _reader(sources, path)) is not None:
        return True
    return len(bare) == 1 and bare[0] in DATA_ENTRIES


def _folders(path: Path) -> Iterator[Path]:
    return (child for child in path.iterdir() if child.is_dir())


def _reader(sources: dict[str, Path], boundary: Path) -> Callable[[str], str]:
    """Return what reads a Python file; one that cannot be read counts by its name."""

    def read(name: str) -> str:
        try:
            return read_text(sources[name], boundary, MAX_SOURCE_BYTES, repr(name))
        except (ModelError, OSError, KeyError):
            return ""

    return read


def _has_number(metadata: Metadata | None) -> bool:
    return metadata is not None and metadata.version is not None and metadata.version.number > 0


def _bare_version(path: Path, metadata: Metadata | None, notes: list[str]) -> FoundVersion:
    entry = bare_entry(path.name)
    if entry is None:
        raise ModelError(
            f"{path.name!r} is no model file: its name ends in none of {', '.join(BARE_SUFFIXES)}"
        )
    files = [FoundFile(check_relative_path(path.name), path, regular_size(path))]
    if entry.runtime == ONNX_RUNTIME:
        for sibling in sorted(path.parent.iterdir()):
            rest = sibling.name.removeprefix(path.name)
            if rest != sibling.name and _EXTERNAL_DATA.fullmatch(rest):
                files.extend(take(sibling, sibling.name, path.parent, notes))
    execution = Execution(spelling=entry.spelling) if entry.spelling else DEFAULT_EXECUTION
    return FoundVersion(
        version=_number(metadata),
        folder=path.parent,
        files=tuple(files),
        entry=path.name,
        runtime=entry.runtime,
        execution=execution,
        provenance=metadata.provenance if metadata else None,
    )


def _number(metadata: Metadata | None) -> int:
    """Return the version of what has no version folder."""
    return (metadata.version.number if metadata and metadata.version else 0) or 1


def bare_metadata_file(path: Path) -> Path | None:
    """Return `net.metadata.json` beside `net.onnx`, or `metadata.json` if that is the only model there."""
    own = path.parent / f"{_own_name(path)}.{METADATA_FILE}"
    if own.is_file():
        return own
    models = [sibling for sibling in path.parent.iterdir() if _is_bare_name(sibling)]
    shared = path.parent / METADATA_FILE
    return shared if len(models) == 1 and shared.is_file() else None


def _bare_metadata(path: Path) -> Metadata | None:
    own = bare_metadata_file(path)
    return _read_metadata(own, path.parent) if own is not None else None


def _read_metadata(path: Path, boundary: Path) -> Metadata | None:
    if not path.is_file():
        return None
    return read_metadata(read_text(path, boundary, MAX_METADATA_BYTES, str(path)))


def _read_config(folder: Path) -> ModelConfig | None:
    path = folder / CONFIG_FILE
    if not path.exists() and not path.is_symlink():
        return None
    text = read_text(path, folder, MAX_MODEL_CONFIG_BYTES, f"{CONFIG_FILE} of {folder.name!r}")
    return parse_config(text, folder.name)


def _scan_versions(
    folder: Path, config: ModelConfig, beside: Metadata | None, notes: list[str]
) -> Iterator[FoundVersion]:
    available = _version_folders(folder, config, beside, notes)
    notes.extend(
        f"version_policy names version {number}, which the folder does not have"
        for number in config.version_policy.missing(tuple(available))
    )
    for number in config.version_policy.select(tuple(available)):
        name, path = available[number]
        leave_out = _BESIDE if path == folder else frozenset[str]()
        found = collect(path, folder, notes, f"version {path.name}", leave_out)
        entry = _entry(config, found, folder, number)
        if entry.runtime == ENSEMBLE_RUNTIME:
            found = ()
        elif path != folder:
            found = (*found, *_named_files(config.execution, folder, found))
        execution = config.execution
        if entry.spelling is not Spelling.NONE:
            execution = msgspec.structs.replace(execution, spelling=entry.spelling)
        own = None if path == folder else _read_metadata(path / METADATA_FILE, folder)
        metadata = own or _of_version(beside, name)
        left_out = own is None and metadata is None and beside is not None
        if left_out and number == max(available):
            notes.append(
                f"{METADATA_FILE} beside the versions is of version {_named(beside)}, and is left out for "
                f"version {name.label or number}"
            )
        yield FoundVersion(
            version=number,
            folder=path,
            files=tuple(sorted(found, key=lambda file: file.path)),
            entry=entry.path,
            runtime=entry.runtime,
            execution=execution,
            provenance=_provenance(name, metadata, notes),
        )


def _version_folders(
    folder: Path, config: ModelConfig, beside: Metadata | None, notes: list[str]
) -> dict[int, tuple[VersionName, Path]]:
    """Return the folders of all versions by number; the model's own where it has none."""
    available: dict[int, tuple[VersionName, Path]] = {}
    for child in sorted(_folders(folder)):
        name = read_version(child.name)
        if name is None:
            continue
        if not is_inside(child, folder):
            notes.append(f"version {child.name} is left out: a link that leads out of the folder")
            continue
        earlier = available.setdefault(name.number, (name, child))[1]
        if earlier != child:
            raise ModelError(f"{earlier.name!r} and {child.name!r} are the same version")
    if not available and (config.runtime == ENSEMBLE_RUNTIME or _is_unversioned(folder)):
        number = _number(beside)
        available[number] = (VersionName(number), folder)
    if not available:
        entry = config.default_model_filename or expected_entry(config.runtime)
        raise ModelError(f"{folder} has no version folder such as {folder.name}/1/{entry}")
    return available


def _entry(config: ModelConfig, files: Sequence[FoundFile], folder: Path, version: int) -> Entry:
    if config.runtime == ENSEMBLE_RUNTIME:
        return Entry(ENSEMBLE_RUNTIME, "")
    sources = {file.path: file.source for file in files}
    filename = config.default_model_filename
    entry = choose_entry(sources, _reader(sources, folder), config.runtime, filename)
    if entry is None or entry.path not in sources:
        if not filename and ENDPOINT_FILE in sources and PIPELINE_FILE not in sources:
            raise ModelError(_without_pipeline(f"version {version} of {folder.name!r}"))
        expected = filename or expected_entry(config.runtime)
        names = ", ".join(file.path for file in files[:5]) or "no file that can be served"
        raise ModelError(
            f"version {version} of {folder.name!r} has no {expected!r}; it has {names}"
        )
    return entry


def _without_pipeline(where: object) -> str:
    return (
        f"{where} has {ENDPOINT_FILE}, but no {PIPELINE_FILE} beside it: {ENDPOINT_FILE} has the routes of the model "
        f"that {PIPELINE_FILE} loads"
    )


def _named_files(
    execution: Execution, folder: Path, taken: Iterable[FoundFile]
) -> Iterator[FoundFile]:
    """Yield the files beside the version folders that the configuration names."""
    named = {each.file for warm_up in execution.warm_up for each in warm_up.inputs if each.file}
    if execution.sequences is not None:
        named |= {state.initial_file for state in execution.sequences.states if state.initial_file}
    for path in sorted(named - {file.path for file in taken}):
        place = folder / path
        if not place.exists():
            kind = "model_warmup" if path.startswith(f"{WARM_UP_FOLDER}/") else STATE_FOLDER
            raise ModelError(f"{kind} names the file {path!r}, but {place} does not exist")
        try:
            yield take_one(place, path, folder)
        except ModelError as error:
            raise ModelError(f"file {path!r} cannot be taken: {error}") from None


def _of_version(metadata: Metadata | None, name: VersionName) -> Metadata | None:
    """Return what lies beside all versions if it is of this one, or names none."""
    if metadata is None or metadata.version is None or metadata.version.number in (0, name.number):
        return metadata
    return None


def _named(metadata: Metadata | None) -> str:
    version = metadata.version if metadata is not None else None
    return str(version.label or version.number) if version is not None else ""


def _provenance(
    name: VersionName, metadata: Metadata | None, notes: list[str]
) -> Provenance | None:
    if metadata is None:
        return Provenance(label=name.label) if name.label else None
    said = metadata.version
    if said is not None and said.number not in (0, name.number):
        notes.append(
            f"{METADATA_FILE} says version {said.label or said.number}, but the folder is "
            f"{name.label or name.number}: the folder counts"
        )
        return msgspec.structs.replace(metadata.provenance, label=name.label)
    return msgspec.structs.replace(
        metadata.provenance, label=name.label or metadata.provenance.label
    )
