"""The owner's limits on real daemons, what they tell of their machines, and what they keep."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from meshnode.daemon.watch import PROBE_DELAY_S
from tests.e2e.conftest import DIGIT_REQUEST, DIGITS, wait_until

if TYPE_CHECKING:
    from tests.e2e.conftest import Daemon, Mesh

pytestmark = pytest.mark.e2e

MIB = 1024 * 1024


def big_model(path: Path, size_bytes: int) -> Path:
    """Write a model whose weights take so many bytes."""
    side = int((size_bytes / 4) ** 0.5)
    weights = np.zeros((side, side), np.float32)
    tensors = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, side]) for name in ("x", "y")
    ]
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "big", tensors[:1], tensors[1:], [numpy_helper.from_array(weights, "w")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path)
    return path


def seen_by(observer: Daemon, name: str) -> dict[str, Any]:
    nodes = observer.control.get("/mesh/v1/nodes")
    found: dict[str, Any] = next(node for node in nodes if node["name"] == name)
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_processors_and_priority_hold_for_every_thread_of_a_serving_node(mesh: Mesh) -> None:
    node = mesh.start("alpha", "--new", "--max-cpus", "1", "--nice", "5").wait_ready()
    node.deploy(DIGITS)
    wait_until(lambda: node.has_replicas(1), 30, "it serves")
    assert node.request("POST", "/v2/models/digits/infer", DIGIT_REQUEST)[0] == 200
    tasks = list(Path(f"/proc/{node.process.pid}/task").iterdir())
    for task in tasks:
        status = (task / "status").read_text()
        (allowed,) = [line for line in status.splitlines() if line.startswith("Cpus_allowed_list")]
        assert allowed.split()[1].isdigit(), f"{task} may run on {allowed}"
        nice = int((task / "stat").read_text().rpartition(")")[2].split()[16])
        assert nice == 5
    # One inline model needs no thread of its own, and ONNX Runtime makes no pool for one core.
    assert len(tasks) < 16
    facts = seen_by(node, "alpha")["capabilities"]
    assert facts["cpus"] == 1
    assert facts["limits"] == {"max_cpus": 1, "nice": 5}


def test_a_model_beyond_a_nodes_memory_goes_to_the_others_which_know_why(mesh: Mesh) -> None:
    alpha = mesh.start("alpha", "--new").wait_ready()
    beta = mesh.start("beta", alpha.invite(), "--max-memory", "300M").wait_ready()
    wait_until(lambda: alpha.sees(2) and beta.sees(2), 15, "both see both")
    facts = seen_by(alpha, "beta")["capabilities"]
    assert facts["memory_bytes"] == 300 * MIB < facts["memory_total_bytes"]
    assert facts["limits"] == {"max_memory_bytes": 300 * MIB}
    assert facts["absent"]  # no test machine has everything
    assert facts["cpu"]["logical_cores"] == os.cpu_count()
    model = big_model(mesh.folder / "big.onnx", 150_000_000)
    entry = alpha.deploy(model, replicas=2)
    assert entry["placed"] == ["alpha"]
    assert entry["missing"] == 1
    (ineligible,) = entry["ineligible"]
    assert ineligible["node"] == "beta"
    assert ineligible["reason"] == (
        "it would take about 332 MiB of memory, and this node has 300 MiB for it"
    )
    wait_until(lambda: alpha.ready_nodes("big") == {"alpha"}, 30, "alpha serves it")
    alpha.deploy(DIGITS, on=["beta"])
    wait_until(lambda: alpha.ready_nodes("digits") == {"beta"}, 30, "a small one fits")


def test_a_model_of_the_nodes_own_folder_is_refused_with_the_numbers(mesh: Mesh) -> None:
    folder = mesh.folder / "models"
    big_model(folder / "big" / "1" / "model.onnx", 150_000_000)
    node = mesh.start("alpha", "--new", "--models", str(folder), "--max-memory", "300M")
    node.wait_ready()

    def failed() -> Any:
        entries = node.control.get("/mesh/v1/models")
        return [each for entry in entries for each in entry["replicas"] if each["reason"]]

    (replica,) = wait_until(failed, 20, "it is refused")
    assert replica["state"] == "failed"
    assert "it would take about 332 MiB of memory (its files have 143 MiB)" in replica["reason"]
    assert "this node's owner allows 300 MiB (--max-memory), of which" in replica["reason"]
    status, _, _ = node.request("POST", "/v2/models/big/infer", {"inputs": []})
    assert status in (400, 503)
    assert node.process.poll() is None


def test_the_speed_is_measured_once_shown_to_all_and_kept_across_a_restart(mesh: Mesh) -> None:
    alpha, beta = mesh.grow("alpha", "beta")
    kept = beta.data_dir / "hardware.json"
    wait_until(kept.exists, 60, "the speed is measured")
    speed = json.loads(kept.read_bytes())["measured"]["speed"]
    assert speed["matmul_gflops"] > 0
    wait_until(
        lambda: seen_by(alpha, "beta")["capabilities"].get("speed") == speed, 60, "alpha knows it"
    )
    details = seen_by(alpha, "beta")["capabilities"]["runtime_details"]["onnx"]
    assert "CPUExecutionProvider" in details["providers"]
    written_at = kept.stat().st_mtime_ns
    assert beta.stop() == 0
    again = mesh.start("beta").wait_ready()
    assert seen_by(again, "beta")["capabilities"]["speed"] == speed
    time.sleep(PROBE_DELAY_S + 1.0)
    assert again.output.count("measuring the speed of this machine") == 1
    assert kept.stat().st_mtime_ns == written_at


def test_what_the_machine_cannot_tell_is_said_at_the_start_and_to_the_mesh(mesh: Mesh) -> None:
    node = mesh.start("alpha", "--new", "--max-temperature", "80", "--only-on-mains").wait_ready()
    facts = seen_by(node, "alpha")
    said = facts["capabilities"]["limits"].get("not_enforced", [])
    assert any("--max-temperature" in each for each in said) == (
        facts["load"].get("temperature_c") is None
    )
    for sentence in said:
        assert f"not enforced: {sentence}" in node.output


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_bodies_that_never_end_keep_a_node_within_its_memory(mesh: Mesh) -> None:
    node = mesh.start("alpha", "--new", "--max-memory", "300M").wait_ready()
    node.deploy(DIGITS)
    wait_until(lambda: node.has_replicas(1), 30, "it serves")
    status_file = Path(f"/proc/{node.process.pid}/status")

    def peak_bytes() -> int:
        (line,) = [each for each in status_file.read_text().splitlines() if "VmHWM" in each]
        return int(line.split()[1]) * 1024

    head = (
        "POST /v2/models/digits/infer HTTP/1.1\r\nHost: localhost\r\n"
        f"Content-Length: {60 * MIB}\r\n\r\n"
    ).encode()
    stalled = []
    for _ in range(10):
        connection = socket.create_connection(("127.0.0.1", node.http_port), 10)
        stalled.append(connection)
        with contextlib.suppress(OSError):  # refused, and closed
            connection.sendall(head)
            connection.sendall(bytes(59 * MIB))
    assert peak_bytes() < 300 * MIB
    assert node.request("POST", "/v2/models/digits/infer", DIGIT_REQUEST)[0] == 200
    for connection in stalled:
        connection.close()
