"""What versions keep for themselves: how much it is, and when it goes."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from meshnode.models.artifacts.caches import VersionCaches
from meshnode.models.artifacts.disk_use import disk_use

if TYPE_CHECKING:
    from pathlib import Path

MIB = 1 << 20


def cache(root: Path, digest: str, size_bytes: int = MIB) -> Path:
    folder = root / digest
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "engine").write_bytes(os.urandom(size_bytes))
    os.utime(folder, (1, 1))
    return folder


def test_caches_of_versions_that_are_gone_are_removed_unless_they_are_young(tmp_path: Path) -> None:
    kept, gone, young = (cache(tmp_path, name) for name in ("kept", "gone", "young"))
    os.utime(young)
    assert VersionCaches(tmp_path).sweep({"kept"}, min_age_s=600) == ["gone"]
    assert [each.exists() for each in (kept, gone, young)] == [True, False, True]


def test_all_that_versions_keep_is_counted(tmp_path: Path) -> None:
    caches = VersionCaches(tmp_path / "compiled")
    assert caches.size_bytes() == 0
    assert caches.sweep([], 0) == []
    cache(caches.root, "a", 3 * MIB)
    cache(caches.root, "b")
    assert 4 * MIB <= caches.size_bytes() < 5 * MIB


def test_measuring_neither_follows_links_nor_walks_without_end(tmp_path: Path) -> None:
    here = cache(tmp_path, "here")
    cache(tmp_path, "far", 8 * MIB)
    (here / "link").symlink_to(tmp_path / "far")
    assert disk_use([here, tmp_path / "none"], 1000).size_bytes < 2 * MIB
    for number in range(20):
        (here / str(number)).touch()
    assert disk_use([here], 10).files == 11
