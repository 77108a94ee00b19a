"""The protobuf messages of `inference.GRPCInferenceService`, as they come compiled with `tritonclient`.

They are loaded by the first call that needs them: an idle node knows no protobuf.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from functools import cache
from types import ModuleType
from typing import Any, Final

from meshnode.errors import ConfigError
from meshnode.models.repository import config_messages

SERVICE: Final = "inference.GRPCInferenceService"
"""The service's full name; its methods are at `/<SERVICE>/<method>`."""

_PACKAGE: Final = "tritonclient.grpc"
_MODULE: Final = "service_pb2"


@cache
def messages() -> Any:
    """Return the module with the messages' classes.

    Raises:
        ConfigError: if the package is not installed.
    """
    if _PACKAGE in sys.modules:
        return importlib.import_module(f"{_PACKAGE}.{_MODULE}")
    package = importlib.util.find_spec("tritonclient")
    for folder in (package and package.submodule_search_locations) or ():
        spec = importlib.util.spec_from_file_location(
            "meshnode_triton_service", f"{folder}/grpc/{_MODULE}.py"
        )
        if spec is not None and spec.loader is not None:
            module = importlib.util.module_from_spec(spec)
            _load(module, spec.loader)
            return module
    raise ConfigError("gRPC needs the package tritonclient: pip install 'meshnode[grpc]'")


def _load(module: ModuleType, loader: Any) -> None:
    """Run the module's code, which asks its package for the messages of model configurations.

    The package itself is kept out: it is a whole client, with numpy and more, of which nothing is needed.
    """
    stand_in = ModuleType(_PACKAGE)
    stand_in.model_config_pb2 = config_messages.messages()  # type: ignore[attr-defined]
    sys.modules[_PACKAGE] = stand_in
    try:
        loader.exec_module(module)
    finally:
        del sys.modules[_PACKAGE]
