"""Models on a real mesh: deployed, found in a folder, versioned, asked at every node, misused."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
import sys
from functools import partial
from typing import TYPE_CHECKING, Any

import onnx
import pytest

from tests.e2e.conftest import DIGIT_REQUEST, DIGITS, wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from tests.e2e.conftest import Daemon, Mesh

pytestmark = pytest.mark.e2e

INFER = "/v2/models/digits/infer"


def has_state(observer: Daemon, name: str, state: str) -> bool:
    return observer.states()[name] == state


def test_every_node_answers_for_the_whole_mesh(trio: list[Daemon]) -> None:
    answers = []
    for node in trio:
        status, headers, answer = node.request("POST", INFER, DIGIT_REQUEST)
        assert status == 200
        assert "node=" in headers["mesh-route"]
        outputs = {each["name"]: each for each in answer["outputs"]}
        assert outputs["probabilities"]["shape"] == [1, 10]
        assert sum(outputs["probabilities"]["data"]) == pytest.approx(1.0, abs=1e-4)
        answers.append(outputs["label"]["data"])
    assert answers[0] == answers[1] == answers[2]


def test_every_node_describes_the_model_also_where_it_is_not(trio: list[Daemon]) -> None:
    for node in trio:
        _, _, metadata = node.request("GET", "/v2/models/digits")
        assert metadata["name"] == "digits"
        assert metadata["versions"] == ["1"]
        assert metadata["inputs"] == [{"name": "image", "datatype": "FP32", "shape": [-1, 8, 8]}]
        assert node.request("GET", "/v2/models/digits/ready")[0] == 200
        assert node.request("GET", "/v2/health/ready")[0] == 200


def test_a_binary_request_through_a_node_without_the_model_gets_a_binary_answer(
    trio: list[Daemon],
) -> None:
    serving = trio[0].ready_nodes("digits")
    gateway = next(node for node in trio if node.name not in serving)
    tensor = struct.pack("<64f", *(index / 64 for index in range(64)))
    head = json.dumps(
        {
            "inputs": [
                {
                    "name": "image", "shape": [1, 8, 8], "datatype": "FP32",
                    "parameters": {"binary_data_size": len(tensor)},
                }
            ],
            "outputs": [{"name": "probabilities", "parameters": {"binary_data": True}}],
        }
    ).encode()  # fmt: skip
    headers = {"Inference-Header-Content-Length": str(len(head))}
    status, got, body = gateway.request("POST", INFER, head + tensor, headers)
    assert status == 200
    length = int(got["inference-header-content-length"])
    probabilities = struct.unpack("<10f", body[length:])
    _, _, answer = gateway.request("POST", INFER, DIGIT_REQUEST)
    expected = next(each for each in answer["outputs"] if each["name"] == "probabilities")
    assert probabilities == pytest.approx(expected["data"])


def test_tritonclient_works_unmodified_through_any_node(trio: list[Daemon]) -> None:
    import numpy as np
    import tritonclient.http as triton

    for node in trio:
        client = triton.InferenceServerClient(f"127.0.0.1:{node.http_port}")
        try:
            assert client.is_server_ready()
            assert client.is_model_ready("digits")
            image = triton.InferInput("image", [2, 8, 8], "FP32")
            image.set_data_from_numpy(np.zeros((2, 8, 8), np.float32))
            result = client.infer("digits", [image])
            assert result.as_numpy("probabilities").shape == (2, 10)
        finally:
            client.close()


@pytest.mark.parametrize(
    ("path", "body", "status", "expected"),
    [
        ("/v2/models/unknown/infer", DIGIT_REQUEST, 404, "unknown"),
        ("/v2/models/digits/versions/7/infer", DIGIT_REQUEST, 404, "version 7"),
        (INFER, b"{", 400, ""),
        (INFER, b"\xff\xfe", 400, ""),
        (INFER, {"inputs": []}, 400, "image"),
        (
            INFER,
            {
                "inputs": [
                    {"name": "image", "shape": [1, 8, 8], "datatype": "INT32", "data": [1] * 64}
                ]
            },
            400,
            "FP32",
        ),
        (
            INFER,
            {
                "inputs": [
                    {"name": "image", "shape": [1, 8, 9], "datatype": "FP32", "data": [1] * 72}
                ]
            },
            400,
            "[-1, 8, 8]",
        ),
        (
            INFER,
            {
                "inputs": [
                    {"name": "image", "shape": [1, 8, 8], "datatype": "FP32", "data": [1] * 63}
                ]
            },
            400,
            "64",
        ),
        (
            INFER,
            {
                "inputs": [
                    {"name": "image", "shape": [1, 8, 8], "datatype": "FP32", "data": ["x"] * 64}
                ]
            },
            400,
            "image",
        ),
        (INFER, {**DIGIT_REQUEST, "outputs": [{"name": "nothing"}]}, 400, "nothing"),
    ],
)
def test_bad_input_is_answered_with_what_was_expected(
    trio: list[Daemon], path: str, body: dict[str, object] | bytes, status: int, expected: str
) -> None:
    for node in trio:
        got, _, answer = node.request("POST", path, body)
        assert got == status
        assert expected in answer["error"]


def test_a_body_over_the_limit_is_413_before_it_is_read(trio: list[Daemon]) -> None:
    status, _, answer = trio[0].request("POST", INFER, b"", {"Content-Length": str(10**9)})
    assert status == 413
    assert "larger than" in answer["error"]


def test_changes_over_http_need_a_key_and_foreign_hosts_are_refused(trio: list[Daemon]) -> None:
    status, _, answer = trio[0].request("POST", "/mesh/v1/invites", {"ttl_s": 60})
    assert status == 401
    assert answer["code"] == "unauthenticated"
    assert trio[0].request("DELETE", "/mesh/v1/deployments/digits")[0] == 401
    assert trio[0].request("GET", "/v2", headers={"Host": "evil.example"})[0] == 403
    assert trio[0].request("GET", "/v2", headers={"Origin": "http://evil.example"})[0] == 403


def test_nodes_and_models_are_listed_as_documented(trio: list[Daemon]) -> None:
    _, _, nodes = trio[1].request("GET", "/mesh/v1/nodes")
    assert [node["name"] for node in nodes] == ["beta", "alpha", "gamma"]
    for node in nodes:
        assert {
            "id",
            "name",
            "region",
            "zone",
            "state",
            "http",
            "mesh",
            "capabilities",
            "load",
        } <= set(node)
        assert node["capabilities"]["runtimes"] == ["onnx", "litert", "ensemble"]
    assert {node["region"] for node in nodes} == {"eu", "us", "ap"}
    _, _, models = trio[1].request("GET", "/mesh/v1/models")
    assert [(model["name"], model["versions"]) for model in models] == [("digits", [1])]
    assert len(models[0]["replicas"]) == 2
    for replica in models[0]["replicas"]:
        assert set(replica) == {
            "node",
            "node_id",
            "version",
            "state",
            "reason",
            "failure",
            "current",
            "standby",
            "placed",
            "fetch",
            "runtime",
            "variant",
            "provenance",
            "device",
            "instances",
            "batching",
            "profile",
            "restarted",
        }


def test_metrics_are_in_prometheus_format(trio: list[Daemon]) -> None:
    from prometheus_client.parser import text_string_to_metric_families

    trio[0].request("POST", INFER, DIGIT_REQUEST)
    _, _, text = trio[0].request("GET", "/metrics")
    families = {family.name: family for family in text_string_to_metric_families(text.decode())}
    assert families["meshnode_requests"].samples[0].value >= 1
    states = {each.labels["state"]: each.value for each in families["meshnode_members"].samples}
    assert states["alive"] == 3


def test_load_is_spread_and_round_trips_are_measured(trio: list[Daemon]) -> None:
    def known() -> bool:
        nodes = trio[2].control.get("/mesh/v1/nodes")
        others = [node for node in nodes if not node["self"]]
        return all(node["load"] and node["rtt_ms"] is not None for node in others)

    wait_until(known, 10, "load and round-trip times of the others are known")


def test_a_model_folder_is_served_in_place_and_one_bad_model_does_not_stop_others(
    mesh: Mesh, tmp_path: Path
) -> None:
    repository = tmp_path / "repository"
    for version in ("1", "2"):
        (repository / "digits" / version).mkdir(parents=True)
        shutil.copy(DIGITS, repository / "digits" / version / "model.onnx")
    (repository / "digits" / "config.pbtxt").write_text(
        'name: "digits"\nplatform: "onnxruntime_onnx"\nversion_policy: { all { } }\n'
    )
    (repository / "broken" / "1").mkdir(parents=True)
    (repository / "broken" / "1" / "model.onnx").write_bytes(b"no model")
    alpha = mesh.start("alpha", "--new", "--models", str(repository)).wait_ready()
    beta = mesh.start("beta", alpha.invite()).wait_ready()
    wait_until(lambda: beta.ready_nodes("digits", 2), 30, "both versions are served")
    for number in (1, 2):
        path = f"/v2/models/digits/versions/{number}/infer"
        status, _, answer = beta.request("POST", path, DIGIT_REQUEST)
        assert (status, answer["model_version"]) == (200, str(number))
    _, _, answer = beta.request("POST", INFER, DIGIT_REQUEST)
    assert answer["model_version"] == "2"
    models = {model["name"]: model for model in beta.control.get("/mesh/v1/models")}
    assert models["digits"]["versions"] == [1, 2]
    failed = models["broken"]["replicas"][0]
    assert failed["state"] == "failed"
    assert failed["reason"]
    assert beta.request("POST", "/v2/models/broken/infer", DIGIT_REQUEST)[0] == 503


def test_a_redeployed_file_becomes_the_next_version_and_the_old_one_goes(
    mesh: Mesh, tmp_path: Path
) -> None:
    alpha, beta = mesh.grow("alpha", "beta")
    alpha.deploy(DIGITS, name="digits", replicas=2)
    wait_until(lambda: len(beta.ready_nodes("digits", 1)) == 2, 30, "version 1 is served")
    alpha.deploy(DIGITS, name="digits", replicas=2)
    assert alpha.control.get("/mesh/v1/models/digits")["versions"] == [1]

    model = onnx.load(DIGITS)
    model.doc_string = "changed"
    changed = tmp_path / "changed.onnx"
    onnx.save(model, changed)
    beta.deploy(changed, name="digits", replicas=2)
    wait_until(lambda: len(alpha.ready_nodes("digits", 2)) == 2, 30, "version 2 is served")
    wait_until(lambda: not alpha.ready_nodes("digits", 1), 15, "version 1 is gone")
    assert alpha.request("POST", INFER, DIGIT_REQUEST)[2]["model_version"] == "2"


def test_undeploy_takes_the_model_away_everywhere_and_a_restart_does_not_bring_it_back(
    mesh: Mesh,
) -> None:
    alpha, beta = mesh.grow("alpha", "beta")
    alpha.deploy(DIGITS, name="digits", replicas=2)
    wait_until(lambda: len(beta.ready_nodes("digits")) == 2, 30, "digits is served")
    beta.control.delete("/mesh/v1/deployments/digits")
    for node in (alpha, beta):
        wait_until(partial(_has_no_models, node), 15, "it is gone")
    assert alpha.request("POST", INFER, DIGIT_REQUEST)[0] == 404
    assert alpha.stop() == 0
    again = mesh.start("alpha").wait_ready()
    wait_until(lambda: again.sees(2), 15, "alpha is back")
    assert again.control.get("/mesh/v1/models") == []


def test_a_deployment_survives_a_restart_of_the_whole_mesh(mesh: Mesh) -> None:
    alpha = mesh.start("alpha", "--new").wait_ready()
    alpha.deploy(DIGITS, name="digits")
    wait_until(lambda: alpha.ready_nodes("digits"), 30, "digits is served")
    alpha.stop()
    again = mesh.start("alpha").wait_ready()
    wait_until(lambda: again.ready_nodes("digits"), 30, "digits is served again")
    assert again.request("POST", INFER, DIGIT_REQUEST)[0] == 200


def test_a_model_on_a_pinned_node_comes_to_it_over_the_link_unharmed(mesh: Mesh) -> None:
    alpha, beta = mesh.grow("alpha", "beta")
    alpha.deploy(DIGITS, name="digits", on=["beta"])
    wait_until(lambda: alpha.ready_nodes("digits") == {"beta"}, 30, "beta serves")
    blobs = [path for path in (beta.data_dir / "blobs").rglob("*") if path.is_file()]
    assert DIGITS.read_bytes() in [path.read_bytes() for path in blobs]
    status, headers, _ = alpha.request("POST", INFER, DIGIT_REQUEST)
    assert status == 200
    assert "node=beta" in headers["mesh-route"]


def test_wishes_that_cannot_be_met_are_refused_with_a_sentence(mesh: Mesh, tmp_path: Path) -> None:
    from meshnode.errors import MeshError

    alpha = mesh.start("alpha", "--new").wait_ready()
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"not a model")
    cases: list[tuple[Path, dict[str, Any], str]] = [
        (tmp_path / "absent.onnx", {}, "does not exist"),
        (broken, {}, "broken"),
        (DIGITS, {"on": ["nobody"]}, "nobody"),
        (DIGITS, {"on": ["alpha"], "replicas": 2}, "do not fit"),
        (DIGITS, {"name": "../evil"}, "name"),
        (DIGITS, {"replicas": 0}, "replicas"),
    ]
    for path, wish, expected in cases:
        with pytest.raises(MeshError, match=expected):
            alpha.deploy(path, **wish)
    assert alpha.control.get("/mesh/v1/models") == []


def test_a_model_without_a_living_replica_is_503_with_retry_after(mesh: Mesh) -> None:
    alpha, beta = mesh.grow("alpha", "beta")
    alpha.deploy(DIGITS, name="digits", on=["beta"])
    wait_until(lambda: alpha.ready_nodes("digits"), 30, "beta serves")
    beta.process.kill()
    beta.process.wait()
    for belief in ("alive", "dead"):  # at once, and when membership has given the node up
        wait_until(partial(has_state, alpha, "beta", belief), 15, f"beta is {belief}")
        status, headers, answer = alpha.request("POST", INFER, DIGIT_REQUEST)
        assert status == 503
        assert int(headers["retry-after"]) >= 1
        assert "digits" in answer["error"]
    assert alpha.request("GET", "/v2/models/digits")[0] == 200
    assert alpha.request("GET", "/v2/models/digits/ready")[0] == 400


def _has_no_models(node: Daemon) -> bool:
    return bool(node.control.get("/mesh/v1/models") == [])


def test_deploy_waits_for_changed_files_under_the_same_version(mesh: Mesh, tmp_path: Path) -> None:
    """What the command calls ready is what every gateway then answers with."""
    alpha, beta = mesh.grow("alpha", "beta")
    folder = tmp_path / "switch"
    (folder / "1").mkdir(parents=True)
    model = onnx.load(DIGITS)
    for doc in ("first", "second"):
        model.doc_string = doc
        onnx.save(model, folder / "1" / "model.onnx")
        done = subprocess.run(
            [sys.executable, "-m", "meshnode", "deploy", str(folder), "--replicas", "2", "--json",
             "--data-dir", str(alpha.data_dir)],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        entry = json.loads(done.stdout)
        assert [each["current"] for each in entry["replicas"]] == [True, True]
        served = [path.read_bytes() for path in (beta.data_dir / "models").rglob("model.onnx")]
        assert (folder / "1" / "model.onnx").read_bytes() in served
