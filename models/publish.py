"""From a model on disk to its manifest: open it once, complete its signature, hash its files.

`describe` looks at the files where they lie, for a node that serves its own folder in place.
`publish` copies them into the blob store first and opens the copy, so that what was checked is what
will travel, even if the owner edits the originals meanwhile.
"""

from __future__ import annotations

import hashlib
import shutil
from typing import TYPE_CHECKING

import msgspec

from meshnode.errors import ModelError
from meshnode.models.config import Signature, reconcile
from meshnode.models.manifest import FileEntry, Manifest, check_manifest

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from meshnode.models.repository import FoundFile, FoundModel, FoundVersion
    from meshnode.models.runtimes.base import Runtime
    from meshnode.models.store import BlobStore


def describe(model: FoundModel, version: FoundVersion, runtime: Runtime) -> Manifest:
    """Return the manifest of a version as it lies on disk.

    Args:
        model: What `scan` found; its `name` becomes the public name.
        version: One of its versions.
        runtime: The runtime that will execute it.

    Raises:
        ModelError: if a file cannot be read, the runtime cannot open the model, or its
            configuration disagrees with it.
    """
    manifest = _provisional(model, version, runtime, map(_hash_file, version.files))
    return _complete(manifest, model, version.folder, runtime)


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
    )


def _complete(provisional: Manifest, model: FoundModel, folder: Path, runtime: Runtime) -> Manifest:
    """Open the model once for its tensors, and reconcile them with its configuration."""
    try:
        loaded = runtime.load(folder, provisional.entry, threads=1)
        try:
            in_file = Signature(loaded.inputs, loaded.outputs)
        finally:
            loaded.close()
        signature = reconcile(model.config, in_file)
    except ModelError as error:
        raise ModelError(
            f"version {provisional.version} of model {model.name!r}: {error}"
        ) from None
    return check_manifest(
        msgspec.structs.replace(
            provisional,
            inputs=signature.inputs,
            outputs=signature.outputs,
            max_batch_size=signature.max_batch_size,
        )
    )


def _hash_file(file: FoundFile) -> FileEntry:
    try:
        with file.source.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").digest()
            return FileEntry(file.path, stream.tell(), digest)
    except OSError as error:
        raise ModelError(f"{file.source} cannot be read: {error.strerror}") from None
