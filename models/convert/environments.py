"""The interpreters that conversions run in: this one, one that the caller names, or one made for it.

Some converters pin libraries that meshnode has in other versions. They get a virtual environment of their
own in the data folder; it sees what is installed beside meshnode (PyTorch above all, which is large), and
has its own versions of what it must.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import site
import subprocess
import sys
import venv
from pathlib import Path
from typing import TYPE_CHECKING, Final

from meshnode.errors import PeerError, UsageError
from meshnode.limits import CONVERT_TIMEOUT_S
from meshnode.models.convert.formats import Target
from meshnode.models.convert.isolation import ENVIRONMENTS_FOLDER

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from meshnode.models.convert.formats import Conversion

    Installer = Callable[[str, Sequence[str]], None]

_READY: Final = "ready"
_RUNNING: Final = {
    Target.TORCHSCRIPT: ("torch", "torch"),
    Target.TFLITE: ("ai_edge_litert", "litert"),
}
"""By target: the module that runs it, and the extra that has it."""


def missing(imports: Sequence[str]) -> list[str]:
    """Return those of these modules that this interpreter does not have."""
    return [name for name in imports if importlib.util.find_spec(name) is None]


def check_installed(way: Conversion) -> None:
    """See that all libraries of a way are here.

    Raises:
        UsageError: if not, saying what to install and how.
    """
    absent = missing(way.imports)
    if not absent:
        return
    here = f"pip install 'meshnode[{way.extra}]', or " if way.extra else ""
    raise UsageError(
        f"this conversion needs {', '.join(absent)}: {here}let meshnode make an environment for it with "
        f"--install ({', '.join(way.packages)}), or name an interpreter that has them with --python"
    )


def check_measurable(target: Target) -> None:
    """See that what runs the result is here, since the result is compared by meshnode's own runtimes.

    Raises:
        UsageError: if not, saying what to install.
    """
    name, extra = _RUNNING.get(target, ("", ""))
    if name and missing([name]):
        raise UsageError(
            f"comparing a {target} model needs {name}: pip install 'meshnode[{extra}]'"
        )


def environment_folder(data_folder: Path, packages: Sequence[str]) -> Path:
    """Return where the environment with these packages is, or would be."""
    key = hashlib.sha256("\n".join((sys.version, *sorted(packages))).encode()).hexdigest()[:12]
    return data_folder / ENVIRONMENTS_FOLDER / key


def managed_python(
    data_folder: Path,
    packages: Sequence[str],
    progress: Callable[[str], None],
    install: Installer | None = None,
) -> str:
    """Return the interpreter of an environment that has these packages; make it if there is none.

    Args:
        data_folder: The node's data folder.
        packages: What pip is to install.
        progress: Told what goes on.
        install: Installs packages with an interpreter; pip by default.

    Raises:
        UsageError: if the environment cannot be made.
        PeerError: if pip fails.
    """
    folder = environment_folder(data_folder, packages)
    python = folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    if (folder / _READY).exists():
        return str(python)
    progress(f"making an environment with {', '.join(packages)} in {folder}")
    shutil.rmtree(folder, ignore_errors=True)  # one that was not finished
    try:
        venv.create(folder, with_pip=install is None)
        _see_own_packages(folder)
    except (OSError, subprocess.CalledProcessError) as error:
        raise UsageError(f"no environment can be made in {folder}: {error}") from None
    (install or _pip_install)(str(python), packages)
    (folder / _READY).write_text("\n".join(packages), encoding="utf-8")
    return str(python)


def _see_own_packages(folder: Path) -> None:
    """Let the environment see what this interpreter has, after its own."""
    found = [*site.getsitepackages(), site.getusersitepackages()]
    own = [path for path in found if Path(path).is_dir()]
    for packages in folder.glob(
        "Lib/site-packages" if sys.platform == "win32" else "lib/*/site-packages"
    ):
        (packages / "meshnode.pth").write_text("\n".join(own), encoding="utf-8")


def _pip_install(python: str, packages: Sequence[str]) -> None:
    try:
        done = subprocess.run(  # noqa: S603 - the packages are those of the table in `formats`
            [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *packages],
            check=False,
            capture_output=True,
            text=True,
            timeout=CONVERT_TIMEOUT_S,
            env=dict(os.environ),
        )
    except subprocess.TimeoutExpired:
        raise PeerError("pip was not done after half an hour and was ended; try again") from None
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        reason = next((line for line in lines if line.startswith("ERROR")), (lines or ["?"])[-1])
        raise PeerError(f"pip could not install {', '.join(packages)}: {reason}")
