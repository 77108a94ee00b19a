"""Variables of a deployment in a real worker process."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING

from meshnode.models.manifest import Manifest
from meshnode.models.variables import with_variables
from tests.unit.models.workers.conftest import load, request, values

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshnode.models.runtimes.base import Opening

SOURCE = """
import json, os
import numpy as np
import triton_python_backend_utils as pb_utils

AT_IMPORT = os.environ.get("SCALE", "0")

class TritonPythonModel:
    def initialize(self, args):
        self.scale = float(os.environ.get("SCALE", "0"))
        self.parameters = json.loads(args["model_config"])["parameters"]

    def execute(self, requests):
        x = np.full((1, 4), self.scale, np.float32)
        x[0, 1] = float(AT_IMPORT)
        x[0, 2] = len(self.parameters)
        x[0, 3] = "HOME_OF_CALLER" in os.environ
        return [pb_utils.InferenceResponse([pb_utils.Tensor("y", x)]) for _ in requests]
"""


async def test_a_models_code_sees_its_deployments_variables_and_nothing_else_does(
    opening: Callable[..., Opening],
) -> None:
    plain = opening(SOURCE)
    manifest = Manifest("m", 1, "python", "python", (), (), 8, (), "model.py")
    execution = with_variables(manifest, (("SCALE", "2.5"),)).execution
    model = load(replace(plain, execution=execution))
    try:
        (outcome,) = await model.execute([request()])
        assert values(outcome).tolist() == [[2.5, 2.5, 0.0, 0.0]]
    finally:
        await model.close()
    assert "SCALE" not in os.environ
