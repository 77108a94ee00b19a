"""What is installed is what is in the repository: wheel, sdist, and a wheel made from the sdist.

The folders at the top are packages below `meshnode`, reached in a checkout through links that an
sdist loses; so the wheel is built both ways and compared.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("examples", "gateway", "models", "routing", "sim")

pytestmark = pytest.mark.slow


def run(*command: str, cwd: Path | None = None, **environment: str) -> str:
    done = subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{command}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """Return (wheel of a checkout, sdist, wheel of the sdist)."""
    folder = tmp_path_factory.mktemp("dist")
    checkout = folder / "checkout"
    tracked = run("git", "ls-files", "-zco", "--exclude-standard", cwd=ROOT).split("\0")[:-1]
    for name in tracked:
        source, target = ROOT / name, checkout / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_symlink():
            target.symlink_to(source.readlink())
        elif source.exists():
            target.write_bytes(source.read_bytes())
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir"]
    run(*build, str(folder / "a"), "--sdist", "--wheel", str(checkout))
    sdist = next((folder / "a").glob("*.tar.gz"))
    with tarfile.open(sdist) as archive:
        archive.extractall(folder / "unpacked", filter="data")
    (unpacked,) = (folder / "unpacked").iterdir()
    run(*build, str(folder / "b"), "--wheel", str(unpacked))
    return next((folder / "a").glob("*.whl")), sdist, next((folder / "b").glob("*.whl"))


def modules_of_repository() -> set[str]:
    tracked = run("git", "ls-files", "-co", "--exclude-standard", cwd=ROOT).splitlines()
    modules = {name for name in tracked if name.startswith("meshnode/") and name.endswith(".py")}
    for folder in FOLDERS:
        inside = [
            name for name in tracked if name.startswith(f"{folder}/") and name.endswith(".py")
        ]
        modules.update(f"meshnode/{name}" for name in inside)
    return modules


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


def test_an_installed_wheel_runs_and_shadows_nobodys_models(
    built: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    target = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(target)]
    run(*pip, str(built[0]))
    probe = (
        "import meshnode, meshnode.gateway.server, meshnode.models.server, meshnode.routing.router, "
        "meshnode.sim.world, importlib.util as u; print(meshnode.__file__); "
        "assert all(u.find_spec(name) is None for name in ('gateway', 'models', 'routing', 'sim'))"
    )
    path = run(sys.executable, "-P", "-c", probe, cwd=tmp_path, PYTHONPATH=str(target))
    assert Path(path.strip()).is_relative_to(target)
    said = run(
        sys.executable, "-P", "-m", "meshnode", "--version", cwd=tmp_path, PYTHONPATH=str(target)
    )
    assert re.fullmatch(r"meshnode \S+\n", said)


def test_the_links_of_a_checkout_lead_to_the_folders() -> None:
    for folder in FOLDERS:
        link = ROOT / "meshnode" / folder
        assert link.is_symlink()
        assert link.readlink() == Path("..") / folder


def test_nothing_imports_a_folder_by_its_second_name() -> None:
    pattern = re.compile(rf"^\s*(from|import) ({'|'.join(FOLDERS)})\b", re.MULTILINE)
    for name in run("git", "ls-files", "-co", "--exclude-standard", "*.py", cwd=ROOT).splitlines():
        if name != "tests/packaging/test_packaging.py":
            assert not pattern.search((ROOT / name).read_text()), name
