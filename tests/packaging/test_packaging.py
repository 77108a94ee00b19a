"""What is installed is what is in the repository: wheel, sdist, and a wheel made from the sdist.

The folders at the top are packages below `meshnode`, reached in a checkout through links that an
sdist loses; so the wheel is built both ways and compared.
"""

from __future__ import annotations

import re
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.packaging.conftest import ROOT, listed, run

FOLDERS = ("examples", "gateway", "models", "routing", "sim")

pytestmark = pytest.mark.slow


def modules_of_repository() -> set[str]:
    inside = [name for folder in FOLDERS for name in listed(f"{folder}/*.py")]
    return {*listed("meshnode/*.py"), *(f"meshnode/{name}" for name in inside)}


def test_the_wheel_holds_every_module_below_meshnode_and_nothing_beside_it(
    built: tuple[Path, Path, Path],
) -> None:
    with zipfile.ZipFile(built[0]) as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert {name for name in names if name.endswith(".py")} == modules_of_repository()
    assert {name.partition("/")[0] for name in names} == {"meshnode"}
    assert "meshnode/py.typed" in names
    assert "meshnode/examples/digits/digits.onnx" in names
    assert sum(name.endswith(".png") for name in names) >= 10
    scenarios = {f"meshnode/{name}" for name in listed("sim/scenarios/*.toml")}
    assert len(scenarios) >= 12
    assert scenarios <= names


def test_the_wheel_brings_the_pytest_plugin(built: tuple[Path, Path, Path]) -> None:
    with zipfile.ZipFile(built[0]) as wheel:
        (name,) = [name for name in wheel.namelist() if name.endswith("entry_points.txt")]
        declared = wheel.read(name).decode()
    assert "[pytest11]\nmeshnode = meshnode.sim.pytest_plugin" in declared


def test_the_sdist_builds_the_same_wheel_although_it_has_no_links(
    built: tuple[Path, Path, Path],
) -> None:
    wheel, sdist, again = built
    with tarfile.open(sdist) as archive:
        assert not any(member.issym() for member in archive.getmembers())
    with zipfile.ZipFile(wheel) as one, zipfile.ZipFile(again) as other:
        names = sorted(name for name in one.namelist() if not name.endswith("RECORD"))
        assert names == sorted(name for name in other.namelist() if not name.endswith("RECORD"))
        assert all(one.read(name) == other.read(name) for name in names)


def test_an_installed_wheel_runs_and_shadows_nobodys_models(site: Path, tmp_path: Path) -> None:
    probe = (
        "import meshnode, meshnode.gateway.server, meshnode.models.serving.server, meshnode.routing.router, "
        "meshnode.sim.core_world, importlib.util as u; print(meshnode.__file__); "
        "assert all(u.find_spec(name) is None for name in ('gateway', 'models', 'routing', 'sim'))"
    )
    path = run(sys.executable, "-P", "-c", probe, cwd=tmp_path, PYTHONPATH=str(site))
    assert Path(path.strip()).is_relative_to(site)
    version = run(
        sys.executable, "-Pm", "meshnode", "--version", cwd=tmp_path, PYTHONPATH=str(site)
    )
    assert re.fullmatch(r"meshnode \S+\n", version)


def test_the_links_of_a_checkout_lead_to_the_folders() -> None:
    for folder in FOLDERS:
        link = ROOT / "meshnode" / folder
        assert link.is_symlink()
        assert link.readlink() == Path("..") / folder


def test_nothing_imports_a_folder_by_its_second_name() -> None:
    pattern = re.compile(rf"^\s*(from|import) ({'|'.join(FOLDERS)})\b", re.MULTILINE)
    for name in listed("*.py"):
        if name != "tests/packaging/test_packaging.py":
            assert not pattern.search((ROOT / name).read_text()), name
