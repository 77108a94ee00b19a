"""A baked folder on this disk: what of it may be used on this machine, and where it lies.

Whatever does not fit is left out with a warning and made anew; a baked folder never keeps a model from being
served. Like any folder of `--models` it is its owner's word: what it holds runs as the owner's own models do.
"""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from meshnode.errors import ModelError
from meshnode.limits import MAX_BAKED_INDEX_BYTES
from meshnode.models.baking.index import (
    BAKED_FOLDER,
    INDEX_FILE,
    Index,
    build_differences,
    key_of,
    read_index,
    speed_differences,
)
from meshnode.models.variables import without_variables

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from meshnode.models.baking.index import BakedVersion, Machine, Measured
    from meshnode.models.manifest import FileEntry, Manifest
    from meshnode.models.repository.config import ModelConfig

log = logging.getLogger(__name__)

COMPILED_FOLDER = "compiled"
CACHE_FOLDER = "cache"


@dataclass(frozen=True, slots=True)
class Prepared:
    """What need not be done again when a version is opened.

    Attributes:
        graphs: Folder of optimised graphs; None for none.
        writes: Whether the graphs are written there now, instead of read.
        cache: What its code kept in its cache folder; None for nothing.
        measured: What its warm-up found out; None if it has to be measured.
    """

    graphs: Path | None = None
    writes: bool = False
    cache: Path | None = None
    measured: Measured | None = None


class BakedFolder:
    """One baked folder, as this machine may use it.

    Attributes:
        path: The folder.
        warnings: Sentences about what is made anew here, and why.
    """

    def __init__(self, path: Path, index: Index, here: Machine) -> None:
        """Decide what may be used.

        Args:
            path: The folder.
            index: What it says of itself.
            here: This machine.
        """
        self.path = path
        runtimes = sorted({each.manifest.runtime for each in index.versions})
        differences = {each: build_differences(index.machine, here, each) for each in runtimes}
        built = dict.fromkeys(clause for each in differences.values() for clause in each)
        measured = speed_differences(index.machine, here)
        self._unusable = frozenset(each for each in runtimes if differences[each])
        self._may_use_times = not measured
        self._by_key = {each.key: each for each in index.versions}
        self._by_digest = {each.manifest.digest: each for each in index.versions}
        self._files: dict[bytes, Path] = {
            entry.sha256: path / each.folder / entry.path
            for each in index.versions
            for entry in each.manifest.files
        }
        self.warnings: tuple[str, ...] = ()
        if built:
            self.warnings = (
                (
                    f"{path} was baked elsewhere: its models of the runtime {', '.join(sorted(self._unusable))} are "
                    f"compiled and measured anew, because {'; '.join(built)}. Bake it on a machine like this one to "
                    "start without that"
                ),
            )
        if measured and len(self._unusable) < len(runtimes):
            self.warnings += (
                (
                    f"{path} was baked on another machine: its models are measured anew (nothing is compiled), "
                    f"because {'; '.join(measured)}"
                ),
            )

    def __repr__(self) -> str:
        return f"<BakedFolder {self.path}: {len(self._by_key)} versions>"

    @classmethod
    def read(cls, path: Path, here: Machine) -> Self:
        """Read what a folder says of itself.

        Raises:
            ModelError: if it is not baked, or its index cannot be used.
        """
        file = path / BAKED_FOLDER / INDEX_FILE
        try:
            with file.open("rb") as stream:
                data = stream.read(MAX_BAKED_INDEX_BYTES + 1)
        except OSError as error:
            raise ModelError(f"{file} cannot be read: {error.strerror}") from None
        try:
            return cls(path, read_index(data), here)
        except ModelError as error:
            raise ModelError(
                f"{file} is not used, so its models are compiled anew: {error}"
            ) from None

    def manifest_of(self, provisional: Manifest, config: ModelConfig | None) -> Manifest | None:
        """Return what a version was found to be when it was baked; None if it, or what opens it, has changed.

        Args:
            provisional: Its files and settings as they are now, without tensors.
            config: Its configuration as it is now; None for none.
        """
        if provisional.runtime in self._unusable:
            return None
        named = config and (config.inputs, config.outputs, config.max_batch_size)
        found = self._by_key.get(key_of(provisional, *(named or ((), (), 0))))
        return None if found is None else found.manifest

    def prepared(self, manifest: Manifest) -> Prepared | None:
        """Return what need not be done again for a version, its own or a deployed one; None if all has to be.

        Files are compared with their hashes; one that is damaged is not used.
        """
        found = self._by_digest.get(without_variables(manifest).digest)
        if found is None or manifest.runtime in self._unusable:
            return None
        place = compiled_place(self.path, found.manifest)
        is_sound = self._are_sound(place, found)
        return Prepared(
            graphs=place if found.graphs and is_sound else None,
            cache=place / CACHE_FOLDER if found.has_cache else None,
            measured=found.measured if self._may_use_times else None,
        )

    def file_of(self, entry: FileEntry) -> Path | None:
        """Return where a file of this content should lie here; None if it is not in this folder."""
        return self._files.get(entry.sha256)

    def _are_sound(self, place: Path, version: BakedVersion) -> bool:
        for name, reason in self._flaws(place, version):
            log.warning(
                "model %s version %d is compiled anew: %s of %s %s",
                version.manifest.model, version.manifest.version, name, self.path, reason,
            )  # fmt: skip
            return False
        return True

    def _flaws(self, place: Path, version: BakedVersion) -> Iterator[tuple[str, str]]:
        for name, sha256 in version.graphs.items():
            try:
                with (place / name).open("rb") as stream:
                    if hashlib.file_digest(stream, "sha256").hexdigest() != sha256:
                        yield name, "is damaged"
            except OSError as error:
                yield name, f"cannot be read: {error.strerror}"


def is_baked(path: Path) -> bool:
    """Whether a folder says that it is baked."""
    return (path / BAKED_FOLDER / INDEX_FILE).is_file()


def compiled_place(path: Path, manifest: Manifest) -> Path:
    """Return the folder in which a baked folder keeps what was compiled of a version."""
    return path / BAKED_FOLDER / COMPILED_FOLDER / manifest.digest
