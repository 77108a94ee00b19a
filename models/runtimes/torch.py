"""PyTorch: TorchScript (`.pt`, `.pth`) and `torch.export` (`.pt2`), each model in a process of its own.

Such files are code: a crafted one writes files or runs commands when it is opened. So this process never
imports PyTorch, and a model is opened only where its owner allowed code (`meshnode.models.workers`).
"""

from __future__ import annotations

import importlib.util
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from meshnode.errors import ModelError
from meshnode.models.execution import Spelling
from meshnode.models.repository.config_backend import TORCH_RUNTIME
from meshnode.models.runtimes.base import Capability
from meshnode.models.runtimes.processes import describe_worker, load_worker

if TYPE_CHECKING:
    from meshnode.models.runtimes.base import Described, Environment, Opening
    from meshnode.models.workers.host import WorkerProcess

_BUILT_FOR: Final = ("cuda:", "cuda =", "hip:", "hip =", "xpu:", "xpu =")
_MISSING: Final = "PyTorch is not installed: pip install 'meshnode[torch]'"


class TorchRuntime:
    """Opens TorchScript files and exported programs."""

    name = TORCH_RUNTIME
    platform = "pytorch_libtorch"
    is_code = True
    shares_instance = False

    def __init__(self, environment: Environment) -> None:
        """Run models as this node runs its worker processes."""
        self._settings = environment.workers

    def __repr__(self) -> str:
        return "<TorchRuntime>"

    def capability(self) -> Capability:
        """Say which version there is, and on what it can run; see `Runtime.capability`.

        A build for the processor alone says so in a small file; only others are imported for it.
        """
        if not _is_installed():
            return Capability("", (), _MISSING)
        from importlib.metadata import version

        return Capability(version("torch"), (*_accelerators(), "cpu"))

    def describe(self, opening: Opening) -> Described:
        """Open a file in a process for what it takes and gives; see `Runtime.describe`."""
        _check_installed()
        return describe_worker(self.name, Spelling.NONE, opening, self._settings)

    def load(self, opening: Opening) -> WorkerProcess:
        """Open a file in a process of its own; see `Runtime.load`."""
        _check_installed()
        return load_worker(self.name, Spelling.NONE, opening, self._settings)


def _check_installed() -> None:
    if not _is_installed():
        raise ModelError(_MISSING)


def _is_installed() -> bool:
    return importlib.util.find_spec("torch") is not None


def _accelerators() -> tuple[str, ...]:
    """Return the accelerators that PyTorch can use, without importing a build that has none."""
    spec = importlib.util.find_spec("torch")
    for place in (spec and spec.submodule_search_locations) or ():
        with suppress(OSError):
            lines = Path(place, "version.py").read_text(encoding="utf-8").splitlines()
            built = [line for line in lines if line.startswith(_BUILT_FOR)]
            if built and all(line.endswith("= None") for line in built) and not _is_apple():
                return ()
    try:
        import torch
    except Exception:  # noqa: BLE001 - a driver that does not fit raises whatever it likes
        return ()
    if torch.cuda.is_available():
        return tuple(
            f"cuda:{at} ({torch.cuda.get_device_name(at)})"
            for at in range(torch.cuda.device_count())
        )
    return ("mps",) if torch.backends.mps.is_available() else ()


def _is_apple() -> bool:
    import platform

    return platform.system() == "Darwin" and platform.machine() == "arm64"
