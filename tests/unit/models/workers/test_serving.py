"""Worker processes behind the node's model server: what other models and people notice of them."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from msgspec import structs

from meshnode.errors import InferenceFailed, NotServing
from meshnode.models.execution import (
    ControlInput,
    ControlKind,
    Execution,
    SequenceBatching,
    SequenceState,
)
from meshnode.models.manifest import Manifest, TensorSpec
from meshnode.models.runtimes.base import Environment
from meshnode.models.runtimes.python import PythonRuntime
from meshnode.models.serving.server import ModelServer
from meshnode.types import DataType, InferRequest, ReplicaState, Tensor
from tests.unit.models.workers.conftest import INPUTS, OUTPUTS, QUICK, array_of, written

if TYPE_CHECKING:
    from pathlib import Path

    from meshnode.types import InferResponse

MODEL = """
import os
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        responses = []
        for request in requests:
            x = request.inputs()[0].as_numpy()
            if x.ravel()[0] == 13:
                os._exit(13)
            responses.append(pb_utils.InferenceResponse([pb_utils.Tensor("y", x + 1)]))
        return responses
"""


def asked(model: str, first: float) -> InferRequest:
    array = np.full((1, 4), first, np.float32)
    return InferRequest(model, (Tensor("x", DataType.FP32, (1, 4), array.tobytes()),))


async def nobody(request: InferRequest) -> InferResponse:
    raise NotServing(request.model)


async def test_a_crash_shows_its_reason_and_leaves_other_models_alone(tmp_path: Path) -> None:
    changes: asyncio.Queue[tuple[str, ReplicaState, str]] = asyncio.Queue()
    environment = Environment(infer=nobody, manifest_of=lambda *_: None, workers=QUICK)
    server = ModelServer(
        {"python": PythonRuntime(environment)},
        on_change=lambda model, _, state, reason: changes.put_nowait((model, state, reason)),
        cores=2,
    )

    async def until(model: str, state: ReplicaState) -> str:
        async with asyncio.timeout(20):
            while True:
                changed, found, reason = await changes.get()
                if (changed, found) == (model, state):
                    return reason

    for name in ("steady", "fragile"):
        opening = written(tmp_path / name, MODEL)
        manifest = Manifest(
            name, 1, "python", "python", INPUTS, OUTPUTS, 8, (), opening.entry, opening.execution
        )
        await server.load(manifest, opening.folder)
        await until(name, ReplicaState.READY)
    try:
        with pytest.raises(InferenceFailed, match="exit code 13"):
            await server.infer(asked("fragile", 13))
        assert "exit code 13" in await until("fragile", ReplicaState.LOADING)
        with pytest.raises(NotServing):
            await server.infer(asked("fragile", 1))
        steady = (await server.infer(asked("steady", 1))).single
        assert steady is not None
        assert array_of(steady.outputs[0]).tolist() == [[2, 2, 2, 2]]
        await until("fragile", ReplicaState.READY)
        again = (await server.infer(asked("fragile", 2))).single
        assert again is not None
        assert array_of(again.outputs[0]).tolist() == [[3, 3, 3, 3]]
        processes = server.processes()
        assert {key: restarts for key, (_, restarts) in processes.items()} == {
            ("fragile", 1): 1,
            ("steady", 1): 0,
        }
        assert all(memory_bytes > 2**20 for memory_bytes, _ in processes.values())
    finally:
        await server.close()
    assert server.processes() == {}


async def test_code_that_is_not_allowed_fails_with_what_the_owner_could_do(tmp_path: Path) -> None:
    workers = replace(QUICK, allow_code=False)
    environment = Environment(infer=nobody, manifest_of=lambda *_: None, workers=workers)
    server = ModelServer({"python": PythonRuntime(environment)}, cores=1)
    opening = written(tmp_path, MODEL)
    spec = (TensorSpec("x", DataType.FP32, (-1, -1)),)
    manifest = Manifest("m", 1, "python", "python", spec, OUTPUTS, 8, (), opening.entry)
    try:
        status = await server.load(manifest, opening.folder)
        assert status.state is ReplicaState.FAILED
        assert "--allow-code" in status.reason
    finally:
        await server.close()


SUMS = """
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def initialize(self, args):
        self.sums = {}

    def execute(self, requests):
        responses = []
        for request in requests:
            given = {each.name(): each.as_numpy() for each in request.inputs()}
            assert given["CORRID"].dtype == np.uint64, given
            key = int(given["CORRID"][0, 0])
            self.sums[key] = given["x"] + (0 if given["START"][0, 0] else self.sums[key])
            kept = pb_utils.Tensor("COUNTED", given["COUNT"] + 1)
            responses.append(pb_utils.InferenceResponse([
                pb_utils.Tensor("y", self.sums[key] * 10 + given["COUNT"]), kept,
            ]))
        return responses
"""


async def test_a_python_model_is_told_of_its_sequence_in_control_inputs_and_states(
    tmp_path: Path,
) -> None:
    controls = (
        ControlInput("START", ControlKind.START, DataType.FP32, (0.0, 1.0)),
        ControlInput("CORRID", ControlKind.CORRELATION_ID, DataType.UINT64),
    )
    states = (SequenceState("COUNT", "COUNTED", DataType.FP32, (1,)),)
    execution = Execution(sequences=SequenceBatching(controls=controls, states=states))
    opening = written(tmp_path, SUMS, execution)
    manifest = Manifest(
        "m", 1, "python", "python", INPUTS, OUTPUTS, 8, (), opening.entry, execution
    )
    environment = Environment(infer=nobody, manifest_of=lambda *_: None, workers=QUICK)
    server = ModelServer({"python": PythonRuntime(environment)}, cores=2)
    try:
        status = await server.load(manifest, opening.folder)
        assert (status.state, status.reason) == (ReplicaState.READY, "")
        answers: list[list[float]] = []
        for number in range(3):
            parameters = {"sequence_id": 2**63 + 1, "sequence_start": number == 0}
            request = structs.replace(asked("m", 1 + number), parameters=parameters)
            part = (await server.infer(request)).single
            assert part is not None
            assert [tensor.name for tensor in part.outputs] == ["y"]
            answers.append(array_of(part.outputs[0]).ravel().tolist())
        assert answers == [[10.0] * 4, [31.0] * 4, [62.0] * 4]
    finally:
        await server.close()
