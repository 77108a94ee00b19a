"""What a deployment asks for besides replicas: variables, a pause, a standby; real daemons and processes."""

from __future__ import annotations

import threading
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.conftest import DIGITS, wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from tests.e2e.conftest import Daemon, Mesh

pytestmark = pytest.mark.e2e

SOURCE = """
import os
import numpy as np
import triton_python_backend_utils as pb_utils

SCALE = float(os.environ.get("SCALE", "1"))

class TritonPythonModel:
    def execute(self, requests):
        given = [pb_utils.get_input_tensor_by_name(each, "x").as_numpy() for each in requests]
        return [pb_utils.InferenceResponse([pb_utils.Tensor("y", each * np.float32(SCALE))]) for each in given]
"""
CONFIG = """
name: "scaler" backend: "python" max_batch_size: 8
input [{ name: "x" data_type: TYPE_FP32 dims: [1] }]
output [{ name: "y" data_type: TYPE_FP32 dims: [1] }]
"""
ASKED = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 1], "data": [2.0]}]}


def written(folder: Path) -> Path:
    model = folder / "scaler"
    (model / "1").mkdir(parents=True)
    (model / "1" / "model.py").write_text(SOURCE, encoding="utf-8")
    (model / "config.pbtxt").write_text(CONFIG, encoding="utf-8")
    return model


def ask(daemon: Daemon, model: str = "scaler") -> tuple[int, Any]:
    status, _, body = daemon.request("POST", f"/v2/models/{model}/infer", ASKED)
    return status, body["outputs"][0]["data"][0] if status == 200 else body


def both_serve(daemon: Daemon) -> bool:
    return len(daemon.ready_nodes("scaler")) == 2


def entry(daemon: Daemon, model: str) -> dict[str, Any]:
    found: dict[str, Any] = daemon.control.get(f"/mesh/v1/models/{model}")
    return found


def test_a_change_of_the_variables_reaches_the_code_without_a_failed_request(
    mesh: Mesh, tmp_path: Path
) -> None:
    alpha = mesh.start("alpha", "--new", "--allow-code").wait_ready()
    beta = mesh.start("beta", alpha.invite(), "--allow-code").wait_ready()
    alpha.deploy(written(tmp_path), replicas=2)
    for node in (alpha, beta):
        wait_until(partial(both_serve, node), 60, "both serve it")
    assert ask(alpha) == (200, 2.0)
    answers: list[tuple[int, Any]] = []
    stop = threading.Event()

    def keep_asking() -> None:
        while not stop.is_set():
            answers.append(ask(beta))

    asking = threading.Thread(target=keep_asking)
    asking.start()
    try:
        alpha.control.set_env("scaler", {"SCALE": "10"})
        wait_until(
            lambda: all(ask(node) == (200, 20.0) for node in (alpha, beta) for _ in range(5)),
            90,
            "all replicas have the new value",
        )
    finally:
        stop.set()
        asking.join(30)
    assert {status for status, _ in answers} == {200}
    assert {value for _, value in answers} == {2.0, 20.0}
    # What is told of a replica has no variables: only who may deploy sees their values.
    assert "SCALE" not in str(alpha.control.get("/mesh/v1/models"))


def test_a_paused_deployment_answers_at_once_that_it_is_and_goes_on_when_it_is_resumed(
    mesh: Mesh,
) -> None:
    alpha, beta = mesh.grow("alpha", "beta", regions=("eu", "us"))
    alpha.deploy(DIGITS, name="digits", replicas=1)
    wait_until(partial(beta.has_replicas, 1), 30, "it is served")
    alpha.control.pause("digits")
    wait_until(partial(beta.has_replicas, 0), 30, "it is unloaded")
    status, body = ask(beta, "digits")
    assert status == 503
    assert "is paused" in str(body)
    assert "meshnode resume digits" in str(body)
    assert entry(beta, "digits")["paused"]
    alpha.control.resume("digits")
    wait_until(partial(beta.has_replicas, 1), 30, "it is served again")
