"""A wheel of the working tree, built once."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(*command: str, cwd: Path | None = None, **environment: str) -> str:
    """Run a command that must succeed; return what it printed."""
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


def listed(*patterns: str) -> list[str]:
    """Return the files of the working tree that git tracks or would track."""
    output = run("git", "ls-files", "-zco", "--exclude-standard", "--", *patterns, cwd=ROOT)
    return [name for name in output.split("\0") if name and os.path.lexists(ROOT / name)]


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """Return (wheel of a checkout, sdist, wheel of the sdist)."""
    folder = tmp_path_factory.mktemp("dist")
    checkout = folder / "checkout"
    for name in listed():
        source, target = ROOT / name, checkout / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_symlink():
            target.symlink_to(source.readlink())
        else:
            target.write_bytes(source.read_bytes())
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir"]
    run(*build, str(folder / "a"), "--sdist", "--wheel", str(checkout))
    sdist = next((folder / "a").glob("*.tar.gz"))
    with tarfile.open(sdist) as archive:
        archive.extractall(folder / "unpacked", filter="data")
    (unpacked,) = (folder / "unpacked").iterdir()
    run(*build, str(folder / "b"), "--wheel", str(unpacked))
    return next((folder / "a").glob("*.whl")), sdist, next((folder / "b").glob("*.whl"))


@pytest.fixture(scope="session")
def site(built: tuple[Path, Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder that holds the installed wheel and nothing else."""
    target = tmp_path_factory.mktemp("site")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(target)]
    run(*pip, str(built[0]))
    return target
