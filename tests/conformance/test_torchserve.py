"""TorchServe's inference and management, as its documentation writes the requests, through a node without the model."""

from __future__ import annotations

import json
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tests.conformance.models import archive
from tests.conformance.table import conforms
from tests.e2e.conftest import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.conformance.conftest import ConformanceMesh

IMAGE = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
JSON = {"Content-Type": "application/json"}
HANDLER = """
class Handler:
    def initialize(self, context):
        self.name = context.model_name

    def handle(self, data, context):
        answers = []
        for row in data:
            if "image" in row:
                answers.append({"fields": sorted(row), "bytes": len(row["image"])})
                continue
            body = row.get("data") or row.get("body")
            if isinstance(body, (bytes, bytearray)):
                answers.append(bytes(body)[::-1])
            else:
                answers.append({"said": body})
        return answers
"""


@pytest.fixture(scope="module")
def handler(mesh: ConformanceMesh, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = archive(tmp_path_factory.mktemp("mar") / "ts_echo.mar", HANDLER)
    mesh.deploy(path, "ts_echo")
    return "ts_echo"


@pytest.fixture(scope="module")
def operator(mesh: ConformanceMesh) -> dict[str, str]:
    """Headers of a caller who may deploy, once the front knows the key."""
    headers = {"Authorization": f"Bearer {mesh.key('deploy')}"}
    wait_until(
        lambda: mesh.front.request("GET", "/ping", None, headers)[0] == 200, 10, "the key works"
    )
    return headers


@pytest.fixture
def web(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder, and the URL of a web server of this machine that has its files."""
    serve = partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), serve) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield tmp_path, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@conforms("TorchServe", "`/ping`")
def test_ping(mesh: ConformanceMesh) -> None:
    status, _, body = mesh.front.request("GET", "/ping")
    assert (status, body["status"]) == (200, "Healthy")


@conforms("TorchServe", "predictions of a model of tensors: JSON, and raw bytes")
def test_tensors_are_predicted_on(mesh: ConformanceMesh) -> None:
    ask = partial(mesh.front.request, "POST", "/predictions/digits")
    one = ask(json.dumps({"data": IMAGE.tolist()}).encode(), JSON)[2]
    batch = ask(json.dumps({"image": [IMAGE.tolist()]}).encode(), JSON)[2]
    raw = ask(IMAGE.tobytes(), {"Content-Type": "application/octet-stream"})[2]
    assert len(one["probabilities"]) == 10
    assert batch["probabilities"] == [one["probabilities"]]
    assert raw["probabilities"][0] == pytest.approx(one["probabilities"])
    assert (
        mesh.front.request(
            "POST", "/predictions/digits/1", json.dumps({"data": IMAGE.tolist()}).encode()
        )[0]
        == 200
    )


@conforms(
    "TorchServe", "predictions of an archive (.mar): JSON, raw bytes by POST and PUT, multipart"
)
def test_an_archive_predicts(mesh: ConformanceMesh, handler: str) -> None:
    path = f"/predictions/{handler}"
    assert mesh.front.request("POST", path, b'{"a": 1}', JSON)[2] == {"said": {"a": 1}}
    status, headers, body = mesh.front.request("PUT", path, b"kitten")
    assert (status, headers["content-type"], body) == (200, "application/octet-stream", b"nettik")
    form = (
        b'--x\r\nContent-Disposition: form-data; name="image"; filename="k.jpg"\r\n\r\n\xff\xd8\x00\r\n'
        b'--x\r\nContent-Disposition: form-data; name="top"\r\n\r\n3\r\n--x--\r\n'
    )
    answer = mesh.front.request(
        "POST", path, form, {"Content-Type": "multipart/form-data; boundary=x"}
    )
    assert answer[2] == {"fields": ["image", "top"], "bytes": 3}


@conforms("TorchServe", "list and describe models")
def test_models_are_listed_and_described(mesh: ConformanceMesh, handler: str) -> None:
    listed = mesh.front.request("GET", "/models?limit=1")[2]
    assert len(listed["models"]) == 1
    assert listed["nextPageToken"] == "1"
    (told,) = mesh.front.request("GET", f"/models/{handler}")[2]
    assert (told["modelName"], told["modelVersion"], told["minWorkers"]) == (handler, "1", 2)
    assert [each["status"] for each in told["workers"]] == ["READY", "READY"]
    assert mesh.front.request("GET", f"/models/{handler}/all")[2] == [told]


@conforms("TorchServe", "register by URL, scale, unregister")
def test_a_model_is_registered_scaled_and_unregistered(
    mesh: ConformanceMesh, operator: dict[str, str], web: tuple[Path, str]
) -> None:
    folder, url = web
    archive(folder / "ts_new.mar", HANDLER)
    control = mesh.holders[0].control
    told = control.post(
        f"/models?url={url}/ts_new.mar&initial_workers=1&synchronous=true", {}, timeout_s=60
    )
    assert told == {"status": 'Model "ts_new" Version: 1 registered with 1 initial workers'}
    mesh.wait_served("ts_new", on=())
    ask = partial(mesh.front.request, headers=operator)
    status, _, told = ask("PUT", "/models/ts_new?min_worker=2&synchronous=true")
    assert (status, told) == (200, {"status": "Workers scaled to 2 for model: ts_new"})
    mesh.wait_served("ts_new")
    assert ask("PUT", "/models/ts_new/1/set-default")[0] == 200
    assert ask("DELETE", "/models/ts_new")[2] == {"status": 'Model "ts_new" unregistered'}
    wait_until(lambda: ask("POST", "/predictions/ts_new", b"x")[0] != 200, 15, "it is gone")


@conforms("TorchServe", "errors as `{code, type, message}`")
def test_what_is_wrong_is_told_in_torchserves_words(
    mesh: ConformanceMesh, operator: dict[str, str], web: tuple[Path, str]
) -> None:
    cases: tuple[tuple[str, str, bytes | None, int, str], ...] = (
        ("POST", "/predictions/nothing", b"x", 404, "ModelNotFoundException"),
        ("POST", "/predictions/digits", b"x", 400, "BadRequestException"),
        ("GET", "/predictions/digits", None, 405, "MethodNotAllowedException"),
        ("GET", "/models/nothing", None, 404, "ModelNotFoundException"),
        ("PUT", "/models/digits?min_worker=x", None, 400, "BadRequestException"),
        ("POST", "/models", None, 400, "BadRequestException"),
        ("POST", f"/models?url={web[1]}/m.mar", None, 403, "ForbiddenException"),
        ("POST", "/models?url=file:///etc/passwd", None, 400, "BadRequestException"),
    )
    for method, path, body, status, kind in cases:
        answer: Any = mesh.front.request(method, path, body, operator)
        assert (answer[0], answer[2]["code"], answer[2]["type"]) == (status, status, kind), path
        assert answer[2]["message"]


@conforms("TorchServe", "explanations", supported=False)
def test_explanations_are_refused(mesh: ConformanceMesh) -> None:
    status, _, told = mesh.front.request("POST", "/explanations/digits", b"{}")
    assert (status, told["type"]) == (501, "NotImplementedException")
