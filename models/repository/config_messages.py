"""Triton's published protobuf messages, and what their values mean here."""

from __future__ import annotations

import importlib.util
from functools import cache
from typing import Any

from meshnode.errors import ModelError
from meshnode.types import DataType


@cache
def messages() -> Any:
    """Return Triton's compiled messages, loaded on first use.

    The module is loaded by its location: importing it as `tritonclient.grpc.model_config_pb2`
    would run that package's `__init__`, which needs grpcio, and a node has no use for that.

    Raises:
        ModelError: if the package is not installed.
    """
    package = importlib.util.find_spec("tritonclient")
    for folder in (package and package.submodule_search_locations) or ():
        spec = importlib.util.spec_from_file_location(
            "meshnode_triton_model_config", f"{folder}/grpc/model_config_pb2.py"
        )
        if spec is not None and spec.loader is not None:
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            return module
    raise ModelError(
        "reading config.pbtxt needs the package tritonclient: pip install tritonclient"
    )


def datatype_of(number: int, what: str) -> DataType:
    """Return an element type.

    Args:
        number: The message's value.
        what: What has it, for the message.

    Raises:
        ModelError: if none is set.
    """
    name = messages().DataType.Name(number).removeprefix("TYPE_")
    if name == "INVALID":
        raise ModelError(f"{what} has no data_type")
    return DataType.BYTES if name == "STRING" else DataType(name)


def dims_of(dims: Any, what: str, *, free: bool = True) -> tuple[int, ...]:
    """Return a shape.

    Args:
        dims: The message's repeated field.
        what: What has it, for the message.
        free: Whether -1, any size, may stand in it.

    Raises:
        ModelError: if a size is none.
    """
    for size in dims:
        if size < 1 and not (free and size == -1):
            allowed = "positive, or -1 for any" if free else "positive"
            raise ModelError(f"{what} has dimension {size}; it must be {allowed}")
    return tuple(dims)


def enum_name(message: Any, field: str) -> str:
    """Return the name of a message's enumerated value, such as `KIND_CPU`."""
    descriptor = message.DESCRIPTOR.fields_by_name[field].enum_type
    value = descriptor.values_by_number.get(getattr(message, field))
    return str(value.name) if value is not None else str(getattr(message, field))
