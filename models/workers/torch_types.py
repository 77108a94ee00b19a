"""PyTorch's element types and devices, and ours."""

from __future__ import annotations

import logging
from typing import Any, Final

import torch

from meshnode.errors import ModelError
from meshnode.types import DataType

log = logging.getLogger(__name__)

TORCH_TYPES: Final[dict[Any, DataType]] = {
    torch.bool: DataType.BOOL,
    torch.uint8: DataType.UINT8,
    torch.uint16: DataType.UINT16,
    torch.uint32: DataType.UINT32,
    torch.uint64: DataType.UINT64,
    torch.int8: DataType.INT8,
    torch.int16: DataType.INT16,
    torch.int32: DataType.INT32,
    torch.int64: DataType.INT64,
    torch.float16: DataType.FP16,
    torch.bfloat16: DataType.BF16,
    torch.float32: DataType.FP32,
    torch.float64: DataType.FP64,
}


def datatype_of(name: str, dtype: Any) -> DataType:
    """Return our word for a tensor's type.

    Raises:
        ModelError: if there is none.
    """
    datatype = TORCH_TYPES.get(dtype)
    if datatype is None:
        raise ModelError(f"tensor {name!r} is {dtype}, which cannot be served")
    return datatype


def find_device(wanted: str) -> tuple[Any, str]:
    """Return the device for `cpu`, `gpu`, `gpu:N` or `auto`, and what people are shown of it.

    A GPU that is asked for and cannot be used is told in the model's log, and the processor takes over.
    """
    kind, _, number = wanted.partition(":")
    if kind == "cpu":
        return torch.device("cpu"), "cpu"
    index = int(number or 0)
    if torch.cuda.is_available() and index < torch.cuda.device_count():
        return torch.device("cuda", index), f"cuda:{index} ({torch.cuda.get_device_name(index)})"
    if torch.backends.mps.is_available():
        return torch.device("mps"), "mps"
    if kind == "gpu":
        log.warning(
            "a GPU is asked for, and PyTorch finds none it can use; it runs on the processor"
        )
    return torch.device("cpu"), "cpu"
