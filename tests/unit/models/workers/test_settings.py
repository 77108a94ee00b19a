"""Where code may run, and what a model may ask for."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from meshnode.errors import ModelError
from meshnode.limits import WORKER_DISK_SHARE
from meshnode.models.execution import Execution, Spelling
from meshnode.models.runtimes.base import Opening
from meshnode.models.workers.disk import disk_bytes
from meshnode.models.workers.environment import environment_of
from meshnode.models.workers.launch import Plan, memory_size
from meshnode.models.workers.settings import WorkerSettings

if TYPE_CHECKING:
    from pathlib import Path


def test_code_of_the_owners_folder_is_allowed_through_links_but_nothing_beside_it(
    tmp_path: Path,
) -> None:
    own, far = tmp_path / "own", tmp_path / "far" / "m"
    own.mkdir()
    far.mkdir(parents=True)
    (own / "m").symlink_to(far)
    settings = WorkerSettings(own_folders=(own,))
    assert settings.why_refused(own / "m" / "1") == ""
    for other in (far, own / ".." / "far" / "m", tmp_path / "own2", tmp_path):
        assert "--allow-code" in settings.why_refused(other)
    assert WorkerSettings(allow_code=True).why_refused(far) == ""
    assert WorkerSettings().why_refused(own) != ""


@pytest.mark.parametrize(
    ("text", "size_bytes"), [("1000", 1000), ("2K", 2048), ("3m", 3 * 2**20), ("1G", 2**30)]
)
def test_a_memory_limit_is_a_number_of_bytes_or_has_a_unit(text: str, size_bytes: int) -> None:
    assert memory_size(text) == size_bytes


@pytest.mark.parametrize(
    ("asked", "most", "limit_bytes"),
    [("2G", None, 2 << 30), ("2G", 1 << 30, 1 << 30), ("1M", 1 << 30, 1 << 20), ("", 4096, 4096)],
)
def test_a_model_says_what_it_writes_and_the_owner_what_it_may(
    tmp_path: Path, asked: str, most: int | None, limit_bytes: int
) -> None:
    execution = Execution(parameters=(("disk_limit", asked),) if asked else ())
    opening = Opening(folder=tmp_path, entry="model.py", execution=execution)
    settings = WorkerSettings(disk_limit_bytes=most, work_folder=tmp_path / "not" / "made")
    plan = Plan("python", Spelling.TRITON, opening, settings)
    assert plan.disk_limit_bytes == limit_bytes


def test_without_a_word_a_model_may_write_a_share_of_the_disk(tmp_path: Path) -> None:
    settings = WorkerSettings(work_folder=tmp_path)
    plan = Plan("python", Spelling.TRITON, Opening(folder=tmp_path, entry="model.py"), settings)
    assert plan.disk_limit_bytes == int(disk_bytes(tmp_path) * WORKER_DISK_SHARE)
    odd = Execution(parameters=(("disk_limit", "all"),))
    with pytest.raises(ModelError, match="parameter disk_limit is 'all'"):
        _ = replace(plan, opening=replace(plan.opening, execution=odd)).disk_limit_bytes


@pytest.mark.parametrize("text", ["much", "1.5G", "G", "-1", "2T", "1GB"])
def test_any_other_memory_limit_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ModelError, match="such as 2G"):
        memory_size(text)


def test_a_process_sees_the_variables_it_needs_and_no_secrets(tmp_path: Path) -> None:
    given = {
        "PATH": "/bin", "LC_ALL": "C", "CUDA_VISIBLE_DEVICES": "1", "HF_HOME": "/hf", "HF_TOKEN": "s",
        "AWS_SECRET_ACCESS_KEY": "s", "MESHNODE_KEY": "s", "PYTHONPATH": "/evil", "LD_PRELOAD": "/evil.so",
        "HOME": "/home/anna", "OMP_NUM_THREADS": "64",
    }  # fmt: skip
    opening = Opening(folder=tmp_path, entry="model.py", threads=3, cache_folder=tmp_path / "cache")
    seen = environment_of(given, opening, tmp_path / "work")
    assert {
        "PATH": "/bin",
        "LC_ALL": "C",
        "CUDA_VISIBLE_DEVICES": "1",
        "HF_HOME": "/hf",
    }.items() <= (seen.items())
    assert not {
        "HF_TOKEN",
        "AWS_SECRET_ACCESS_KEY",
        "MESHNODE_KEY",
        "PYTHONPATH",
        "LD_PRELOAD",
    } & set(seen)
    assert seen["HOME"] == seen["TMPDIR"] == str(tmp_path / "work")
    assert seen["OMP_NUM_THREADS"] == "3"
    assert seen["MESHNODE_CACHE_FOLDER"] == str((tmp_path / "cache").resolve())
