"""What a baked folder says of itself: written, read, compared with machines, packed; and refused."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from meshnode.errors import ModelError
from meshnode.models.baking.baking import Bakery
from meshnode.models.baking.folder import BakedFolder, is_baked
from meshnode.models.baking.index import (
    Machine,
    Measured,
    build_differences,
    read_index,
    speed_differences,
    write_index,
)
from meshnode.models.baking.machine import machine_here
from meshnode.models.baking.packing import pack
from meshnode.models.repository.unpacking import unpack

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

HERE = Machine(
    system="linux", architecture="x86_64", features="f0", python="3.11",
    packages={"onnxruntime": "1.20", "torch": "2.5"}, processor="Fast 9", cores=4,
)  # fmt: skip


@pytest.fixture
def bakery() -> Bakery:
    return Bakery(machine=HERE)


def bake(bakery: Bakery, source: Path, target: Path) -> Path:
    bakery.bake([source], target)
    return target


def test_another_onnx_runtime_spoils_what_it_compiled_and_another_torch_does_not() -> None:
    newer = replace(HERE, packages={**HERE.packages, "onnxruntime": "1.21"})
    assert build_differences(HERE, newer, "onnx") == ("onnxruntime is 1.21 here and was 1.20",)
    assert build_differences(HERE, newer, "torch") == ()
    without = replace(HERE, packages={"onnxruntime": "1.20"}, python="3.12")
    assert build_differences(HERE, without, "onnx") == ()
    assert build_differences(HERE, without, "torch") == ("torch is absent here and was 2.5",)
    assert build_differences(HERE, without, "python") == (
        "Python is 3.12 here and was 3.11",
        "torch is absent here and was 2.5",
    )
    assert build_differences(HERE, replace(HERE, accelerators=("A100 550",)), "onnx") == (
        "the accelerators are A100 550 here and were none",
    )
    assert speed_differences(HERE, HERE) == ()


def test_an_archive_unpacks_to_the_same_folder_and_is_the_same_each_time(
    bakery: Bakery, write_model: Callable[..., Path], tmp_path: Path
) -> None:
    folder = bake(bakery, write_model("plain"), tmp_path / "baked")
    for name in ("a.tar", "b.tar", "a.tgz", "b.tgz"):
        pack(folder, tmp_path / name)
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()
    assert (tmp_path / "a.tgz").read_bytes() == (tmp_path / "b.tgz").read_bytes()
    for name in ("a.tar", "a.tgz"):
        again = tmp_path / f"of-{name}"
        unpack(tmp_path / name, again, 10**9)
        assert is_baked(again)
        assert contents(again) == contents(folder)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"format": 2}, "format 2"),
        ({"versions": [{}]}, "cannot be read"),
        ({"machine": {}}, "cannot be read"),
    ],
)
def test_an_index_that_cannot_be_used_says_why(
    bakery: Bakery,
    write_model: Callable[..., Path],
    tmp_path: Path,
    change: dict[str, Any],
    reason: str,
) -> None:
    folder = bake(bakery, write_model("plain"), tmp_path / "baked")
    place = folder / ".baked" / "index.json"
    place.write_text(json.dumps({**json.loads(place.read_text()), **change}))
    with pytest.raises(ModelError, match=f"compiled anew: .*{reason}"):
        BakedFolder.read(folder, HERE)


@pytest.mark.parametrize("name", ["../graph.onnx", "a/b.onnx", "/etc/passwd"])
def test_an_index_cannot_name_files_elsewhere(
    bakery: Bakery, write_model: Callable[..., Path], tmp_path: Path, name: str
) -> None:
    index = bakery.bake([write_model("plain")], tmp_path / "baked")
    (version,) = index.versions
    for changed in (
        replace(version, graphs={name: ""}),
        replace(version, folder=f"../{name}"),
    ):
        with pytest.raises(ModelError, match="plain"):
            read_index(write_index(replace(index, versions=(changed,))))


@given(st.binary(max_size=200))
def test_any_bytes_are_an_index_or_refused(data: bytes) -> None:
    with pytest.raises(ModelError):
        read_index(data)


def test_this_machine_is_the_same_when_it_is_looked_at_again(tmp_path: Path) -> None:
    here = machine_here()
    assert here == machine_here()
    assert here.packages["onnxruntime"] == onnxruntime.__version__
    assert machine_here(cores=1).cores == 1
    (tmp_path / "proc").mkdir()
    found = set()
    for flags in ("sse avx2", "avx2 sse", "sse"):
        (tmp_path / "proc" / "cpuinfo").write_text(f"model name : Fast 9\nflags : {flags}\n")
        found.add(machine_here(tmp_path).features)
    assert len(found) == 2


def test_times_of_an_index_are_within_limits(
    bakery: Bakery, write_model: Callable[..., Path], tmp_path: Path
) -> None:
    index = bakery.bake([write_model("plain")], tmp_path / "baked")
    (version,) = index.versions
    wrong = Measured(first_s=-1.0)
    with pytest.raises(ModelError, match="times"):
        read_index(write_index(replace(index, versions=(replace(version, measured=wrong),))))


def test_an_index_is_read_as_it_was_written(
    bakery: Bakery, write_model: Callable[..., Path], tmp_path: Path
) -> None:
    index = bakery.bake([write_model("plain")], tmp_path / "baked")
    assert read_index(write_index(index)) == index
