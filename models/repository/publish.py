"""From a model on disk to its manifest: open it once, complete its signature, hash its files.

`describe` looks at the files where they lie, for a node that serves its own folder in place.
`publish` copies them into the blob store first and opens the copy, so that what was checked is what
will travel, even if the owner edits the originals meanwhile.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
from dataclasses import replace
from typing import TYPE_CHECKING

import msgspec

from meshnode.errors import ModelError
from meshnode.models.exposure import NO_EXPOSURE
from meshnode.models.manifest import FileEntry, Manifest, check_manifest
from meshnode.models.repository.config_backend import LITERT_RUNTIME, ONNX_RUNTIME
from meshnode.models.repository.signatures import Signature, reconcile
from meshnode.models.runtimes.base import opening_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from meshnode.models.artifacts.store import BlobStore
    from meshnode.models.execution import Execution
    from meshnode.models.repository.config import ModelConfig
    from meshnode.models.repository.scanning import FoundModel, FoundVersion
    from meshnode.models.repository.version_files import FoundFile
    from meshnode.models.runtimes.base import Opening, Runtime

log = logging.getLogger(__name__)

_TENSORS_IN_FILE = frozenset({ONNX_RUNTIME, LITERT_RUNTIME})
"""Runtimes whose files state all their tensors, so that a configuration is compared with them."""


def describe(
    model: FoundModel,
    version: FoundVersion,
    runtime: Runtime,
    known: Callable[[Manifest, ModelConfig | None], Manifest | None] = lambda _manifest, _config: (
        None
    ),
) -> Manifest:
    """Return the manifest of a version as it lies on disk.

    Args:
        model: What `scan` found; its `name` becomes the public name.
        version: One of its versions.
        runtime: The runtime that will execute it.
        known: Returns what opening it came to earlier, of its files and settings and its configuration; then it is
            not opened. None if it has to be.

    Raises:
        ModelError: if a file cannot be read, the runtime cannot open the model, or its
            configuration disagrees with it.
    """
    provisional = hashed(model, version, runtime)
    return known(provisional, model.config) or _complete(
        provisional, model, version.folder, runtime
    )


def hashed(model: FoundModel, version: FoundVersion, runtime: Runtime) -> Manifest:
    """Return which files a version has, without its tensors: nothing is opened or copied.

    Raises:
        ModelError: if a file cannot be read.
    """
    return _provisional(model, version, runtime, map(_hash_file, version.files))


def publish(
    store: BlobStore, model: FoundModel, version: FoundVersion, runtime: Runtime
) -> Manifest:
    """Copy a version into the store and return its manifest; `store.materialise` makes its folder.

    Raises:
        ModelError: as `describe`.
        ConfigError: if the data folder cannot be written.
        TransferFailed: if the disk is full.
    """
    entries = [store.add_file(file.source, file.path) for file in version.files]
    provisional = _provisional(model, version, runtime, entries)
    folder = store.materialise(provisional)
    try:
        manifest = _complete(provisional, model, folder, runtime)
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # its name was the digest without the tensors
    store.materialise(manifest)
    return manifest


def _provisional(
    model: FoundModel, version: FoundVersion, runtime: Runtime, files: Iterable[FileEntry]
) -> Manifest:
    return Manifest(
        model=model.name,
        version=version.version,
        runtime=runtime.name,
        platform=runtime.platform,
        inputs=(),
        outputs=(),
        max_batch_size=0,
        files=tuple(files),
        entry=version.entry,
        execution=version.execution,
        provenance=version.provenance,
        exposure=NO_EXPOSURE if model.config is None else model.config.exposure,
    )


def _complete(provisional: Manifest, model: FoundModel, folder: Path, runtime: Runtime) -> Manifest:
    """Open the model once for its tensors, and reconcile them with its configuration."""
    try:
        described = runtime.describe(_opening(provisional, model, folder))
        signature = Signature(described.inputs, described.outputs, described.max_batch_size)
        if provisional.runtime in _TENSORS_IN_FILE:
            signature = reconcile(model.config, signature)
            described = replace(described, execution=_all_needed(described.execution, model))
    except ModelError as error:
        raise ModelError(
            f"version {provisional.version} of model {model.name!r}: {error}"
        ) from None
    return check_manifest(
        msgspec.structs.replace(
            provisional,
            inputs=signature.inputs,
            outputs=signature.outputs,
            max_batch_size=signature.max_batch_size or described.max_batch_size,
            execution=described.execution,
        )
    )


def _all_needed(execution: Execution, model: FoundModel) -> Execution:
    """Return the settings without optional inputs: what these runtimes open takes all of its inputs.

    A request that leaves one out is then told so, instead of failing in the model.
    """
    if execution.optional_inputs:
        log.warning(
            "model %s: input %s is optional in its config.pbtxt, but its file has no default for it: every "
            "request must give it",
            model.name, ", ".join(map(repr, execution.optional_inputs)),
        )  # fmt: skip
    return msgspec.structs.replace(execution, optional_inputs=())


def _opening(provisional: Manifest, model: FoundModel, folder: Path) -> Opening:
    """Return how a version is opened whose tensors only its configuration names yet."""
    opening = opening_of(provisional, folder)
    config = model.config
    if config is None:
        return opening
    return replace(
        opening,
        max_batch_size=config.max_batch_size,
        inputs=config.inputs,
        outputs=config.outputs,
    )


def _hash_file(file: FoundFile) -> FileEntry:
    try:
        with file.source.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").digest()
            return FileEntry(file.path, stream.tell(), digest)
    except OSError as error:
        raise ModelError(f"{file.source} cannot be read: {error.strerror}") from None
