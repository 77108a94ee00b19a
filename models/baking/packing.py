"""A baked folder as one file: a tar archive, the same bytes for the same folder."""

from __future__ import annotations

import gzip
import tarfile
from typing import IO, TYPE_CHECKING, Final

from meshnode.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PACKED_SUFFIXES: Final = (".tar", ".tar.gz", ".tgz")
"""Names of archives that `pack` writes; of the others nobody needs a third kind."""


def is_packed(name: str) -> bool:
    """Whether a name is that of an archive, rather than of a folder."""
    return name.lower().endswith(PACKED_SUFFIXES)


def pack(folder: Path, archive: Path) -> None:
    """Write a folder as an archive that `meshnode join --models` and `ADD` of a Dockerfile take.

    Args:
        folder: Its content becomes the root of the archive.
        archive: The file to write; one that is there is replaced when the new one is complete.

    Raises:
        ConfigError: if it cannot be written.
    """
    part = archive.with_name(f".{archive.name}.part")
    try:
        archive.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as raw:
            if archive.name.lower().endswith(".tar"):
                _write(folder, raw)
            else:
                with gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0) as packed:
                    _write(folder, packed)
        part.replace(archive)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise ConfigError(f"{archive} cannot be written: {error.strerror or error}") from None


def _write(folder: Path, stream: IO[bytes] | gzip.GzipFile) -> None:
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for path in _files(folder):
            member = tarfile.TarInfo(path.relative_to(folder).as_posix())
            member.size = path.stat().st_size
            member.mode = 0o644
            with path.open("rb") as content:
                tar.addfile(member, content)


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())
