from __future__ import annotations

import textwrap
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pytest

from meshnode.models.execution import DEFAULT_EXECUTION, Execution, Spelling
from meshnode.models.manifest import TensorSpec
from meshnode.models.runtimes.base import Opening
from meshnode.models.runtimes.processes import load_worker
from meshnode.models.workers.settings import WorkerSettings
from meshnode.types import DataType, InferRequest, Tensor

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    from meshnode.models.workers.host import WorkerProcess

INPUTS = (TensorSpec("x", DataType.FP32, (-1, -1)),)
OUTPUTS = (TensorSpec("y", DataType.FP32, (-1, -1)),)
QUICK = WorkerSettings(
    allow_code=True,
    shared_bytes=64 * 2**20,
    watch_s=0.05,
    cancel_grace_s=0.3,
    restart_first_s=0.05,
    restart_max_s=0.2,
    stop_grace_s=2.0,
)
"""Times that are short for tests."""


def request(
    rows: int = 1, columns: int = 4, *, timeout_s: float = 30.0, **parameters: str | int | bool
) -> InferRequest:
    """Return a request whose values say which one it is."""
    array = np.arange(rows * columns, dtype=np.float32).reshape(rows, columns)
    tensor = Tensor("x", DataType.FP32, array.shape, array.tobytes())
    return InferRequest("m", (tensor,), parameters=parameters, timeout_s=timeout_s)


def array_of(tensor: Tensor) -> NDArray[np.float32]:
    return np.frombuffer(tensor.data, np.float32).reshape(tensor.shape)


def values(outcome: object) -> NDArray[np.float32]:
    """Return what the only output of an answer holds."""
    assert isinstance(outcome, tuple), outcome
    (tensor,) = outcome
    return array_of(tensor)


def written(
    root: Path,
    source: str,
    execution: Execution = DEFAULT_EXECUTION,
    *,
    inputs: tuple[TensorSpec, ...] = INPUTS,
    outputs: tuple[TensorSpec, ...] = OUTPUTS,
    max_batch_size: int = 8,
) -> Opening:
    """Write a `model.py` and return how it is opened."""
    folder = root / "m" / "1"
    folder.mkdir(parents=True)
    (folder / "model.py").write_text(textwrap.dedent(source))
    return Opening(
        folder=folder, entry="model.py", model="m", version=1, max_batch_size=max_batch_size,
        inputs=inputs, outputs=outputs, execution=execution,
    )  # fmt: skip


@pytest.fixture
def opening(tmp_path: Path) -> Callable[..., Opening]:
    """Return `written` in this test's own folder."""
    return partial(written, tmp_path)


def load(opening: Opening, settings: WorkerSettings = QUICK, infer: object = None) -> WorkerProcess:
    return load_worker("python", Spelling.TRITON, opening, settings, infer)  # type: ignore[arg-type]
