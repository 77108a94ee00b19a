"""Networks of devices for the tests, and a checkout that they install from."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.first_hour.network import offline_environment, tools_of
from tests.network.devices import Network, why_not_here
from tests.packaging.conftest import ROOT, listed

if TYPE_CHECKING:
    from collections.abc import Iterator


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs devices where there can be none, and say why."""
    here = Path(__file__).parent
    mine = [item for item in items if here in item.path.parents and "network" in _fixtures(item)]
    if mine and (reason := why_not_here()):
        for item in mine:
            item.add_marker(pytest.mark.skip(reason=reason))


def _fixtures(item: pytest.Item) -> list[str]:
    return list(getattr(item, "fixturenames", ()))


@pytest.fixture(scope="session")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the files that git tracks or would track."""
    folder = tmp_path_factory.mktemp("checkout") / "meshnode"
    for name in listed():
        source, target = ROOT / name, folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_symlink():
            target.symlink_to(source.readlink())
        else:
            target.write_bytes(source.read_bytes())
    return folder


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory, checkout: Path) -> Path:
    """Return a folder for PATH with an installed `meshnode`."""
    environment = {"HOME": str(checkout.parent), "PATH": "/usr/bin:/bin", **offline_environment()}
    folder = tmp_path_factory.mktemp("venv")
    tools = tools_of(folder / "tools")
    for command in (
        [str(tools / "python3"), "-m", "venv", str(folder / "venv")],
        [str(folder / "venv/bin/pip"), "install", "--quiet", str(checkout)],
    ):
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command}:\n{done.stdout}\n{done.stderr}"
    return folder / "venv/bin"


@pytest.fixture
def network(tmp_path: Path, checkout: Path) -> Iterator[Network]:
    """An empty network; what is added to it is gone after the test."""
    # Not below tmp_path: a home folder's path is short, and a Unix socket's must be.
    with tempfile.TemporaryDirectory(prefix="hour-") as folder:
        environment = {
            "FIRST_HOUR_CHECKOUT": str(checkout),
            "FIRST_HOUR_FOLDER": folder,
            **offline_environment(),
        }
        with Network(Path(folder), environment, tools_of(tmp_path / "tools")) as network:
            yield network
