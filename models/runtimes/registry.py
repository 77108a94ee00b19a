"""All runtimes, by the name that manifests use.

Nothing heavy is imported here: each runtime imports its library when it opens its first model, and
`is_installed` only looks at what lies in the path.
"""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Final

from meshnode.errors import ModelError, NotServing
from meshnode.models.runtimes.base import Capability, Environment
from meshnode.models.runtimes.ensemble import EnsembleRuntime
from meshnode.models.runtimes.litert import LitertRuntime
from meshnode.models.runtimes.onnx import OnnxRuntime
from meshnode.models.runtimes.python import PythonRuntime
from meshnode.models.runtimes.reasons import clean_reason
from meshnode.models.runtimes.torch import TorchRuntime

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meshnode.models.runtimes.base import Runtime
    from meshnode.types import InferRequest, InferResponse

_MODULES: Final[dict[str, str]] = {
    "onnx": "onnxruntime",
    "torch": "torch",
    "litert": "ai_edge_litert",
}
"""What each runtime imports; one that is not named here needs nothing."""


def all_runtimes(environment: Environment) -> dict[str, Runtime]:
    """Return every runtime by its name, whether its library is installed or not."""
    runtimes: tuple[Runtime, ...] = (
        OnnxRuntime(),
        TorchRuntime(environment),
        LitertRuntime(),
        PythonRuntime(environment),
        EnsembleRuntime(environment),
    )
    return {runtime.name: runtime for runtime in runtimes}


def installed_runtimes(*, allow_code: bool) -> tuple[str, ...]:
    """Return the runtimes that this node can offer: without a library none, and code only if allowed.

    What a node's own folder holds may run as code in any case; this is what others may place here.
    """
    return tuple(
        name
        for name, runtime in all_runtimes(_alone()).items()
        if is_installed(name) and (allow_code or not runtime.is_code)
    )


def capabilities() -> dict[str, Capability]:
    """Ask each runtime what it can do here; imports their libraries, so this is for another process.

    What a library raises when it is asked is why its runtime is missing.
    """
    found: dict[str, Capability] = {}
    for name, runtime in all_runtimes(_alone()).items():
        try:
            found[name] = runtime.capability()
        except Exception as error:  # noqa: BLE001 - a library or a driver raises whatever it likes
            found[name] = Capability("", (), clean_reason(error))
    return found


def _alone() -> Environment:
    """Return the environment of runtimes that will open nothing."""

    async def infer(request: InferRequest) -> InferResponse:
        raise NotServing(f"there is no mesh to ask for {request.model!r}")

    return Environment(infer=infer, manifest_of=lambda _model, _version: None)


def is_installed(name: str) -> bool:
    """Whether the library of a runtime is there, without importing it."""
    module = _MODULES.get(name)
    try:
        return module is None or importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):  # a broken parent package
        return False


def runtime_named(runtimes: Mapping[str, Runtime], name: str) -> Runtime:
    """Return the runtime of this name.

    Raises:
        ModelError: if there is none.
    """
    runtime = runtimes.get(name)
    if runtime is None:
        raise ModelError(f"this node has no runtime {name!r}; it has {', '.join(sorted(runtimes))}")
    return runtime
