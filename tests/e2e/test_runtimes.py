"""Models of several runtimes on real daemons: an ensemble over two nodes, and files that mean harm."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from meshnode.errors import MeshError
from tests.e2e.conftest import wait_until
from tests.unit.models import conftest as onnx_files
from tests.unit.models.runtimes import tflite

if TYPE_CHECKING:
    from pathlib import Path

    from tests.e2e.conftest import Daemon, Mesh

pytestmark = pytest.mark.e2e

TENSOR = '{ name: "%s" data_type: TYPE_FP32 dims: [ -1, 2 ] }'
ENSEMBLE = f"""
platform: "ensemble"
input [ {TENSOR % "IN"} ]
output [ {TENSOR % "OUT"} ]
ensemble_scheduling {{ step [
  {{ model_name: "first" model_version: -1
    input_map {{ key: "x" value: "IN" }} output_map {{ key: "y" value: "BETWEEN" }} }},
  {{ model_name: "second" model_version: -1
    input_map {{ key: "x" value: "BETWEEN" }} output_map {{ key: "y" value: "OUT" }} }}
] }}
"""


def infer(node: Daemon, model: str, name: str = "IN") -> tuple[int, Any]:
    tensor = {"name": name, "shape": [2, 2], "datatype": "FP32", "data": [1, 2, 3, 4]}
    status, _, answer = node.request("POST", f"/v2/models/{model}/infer", {"inputs": [tensor]})
    return status, answer


def replicas(node: Daemon) -> dict[str, Any]:
    models = node.control.get("/mesh/v1/models")
    return {model["name"]: each for model in models for each in model["replicas"]}


def own_models(folder: Path) -> Path:
    """An ONNX model, one of TensorFlow Lite, and one that crashes its interpreter."""
    (folder / "first" / "1").mkdir(parents=True)
    (folder / "first" / "1" / "model.onnx").write_bytes(onnx_files.identity())
    (folder / "second.tflite").write_bytes(tflite.identity())
    (folder / "crash.tflite").write_bytes(tflite.crash())
    return folder


def test_an_ensemble_runs_over_two_nodes_and_what_crashes_harms_nobody(
    mesh: Mesh, tmp_path: Path
) -> None:
    models = own_models(tmp_path / "models")
    alpha = mesh.start("alpha", "--new", "--models", str(models)).wait_ready()
    beta = mesh.start("beta", alpha.invite()).wait_ready()
    (tmp_path / "both" / "1").mkdir(parents=True)
    (tmp_path / "both" / "config.pbtxt").write_text(ENSEMBLE)
    wait_until(lambda: len(replicas(beta)) == 3, 20, "all models are known")
    beta.deploy(tmp_path / "both", on=["beta"])
    ready = {"first", "second", "both"}
    wait_until(
        lambda: all(replicas(alpha).get(name, {}).get("state") == "ready" for name in ready),
        20,
        "ready",
    )
    for node in (alpha, beta):
        status, answer = infer(node, "both")
        assert status == 200, answer
        assert answer["outputs"][0]["data"] == [1.0, 2.0, 3.0, 4.0]
    known = replicas(beta)
    assert (known["both"]["runtime"], known["both"]["node"]) == ("ensemble", "beta")
    assert (known["second"]["runtime"], known["second"]["device"]) == ("litert", "cpu")
    crashed = known["crash"]
    assert crashed["state"] == "failed"
    assert "took the process that tried it out with it" in crashed["reason"]


def test_code_is_refused_where_it_is_not_allowed(mesh: Mesh, tmp_path: Path) -> None:
    alpha = mesh.start("alpha", "--new").wait_ready()
    place = tmp_path / "model.pt"
    place.write_bytes(b"PK\x03\x04 whatever")
    with pytest.raises(MeshError, match=r"this model is code .* join with --allow-code"):
        alpha.deploy(place, name="net")
    nodes = alpha.control.get("/mesh/v1/nodes")
    assert not {"python", "torch"} & set(nodes[0]["capabilities"]["runtimes"])
