"""Endpoint style, with curl and an ordinary HTTP client, through a node that holds none of the models."""

from __future__ import annotations

import base64
import io
import json
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import requests
from PIL import Image

from tests.conformance.table import conforms
from tests.e2e.conftest import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conformance.conftest import ConformanceMesh

EXAMPLES = Path(__file__).parents[2] / "examples"
DIGIT = EXAMPLES / "digits" / "images" / "7-7.png"
STREET = EXAMPLES / "detector" / "street.png"
PROMPT = {"prompt": "a big red circle on a white background", "size": 64, "seed": 1}


class Client:
    """Asks the front's gateway."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.session = requests.Session()

    def post(self, path: str, data: Any = None, **options: Any) -> requests.Response:
        return self.session.post(f"{self.url}{path}", data=data, timeout=60, **options)

    def curl(self, path: str, *options: str) -> bytes:
        command = ["curl", "-sS", "--fail-with-body", *options, f"{self.url}{path}"]
        return subprocess.run(command, check=True, capture_output=True, timeout=60).stdout


@pytest.fixture(scope="module")
def client(mesh: ConformanceMesh) -> Iterator[Client]:
    mesh.deploy(EXAMPLES / "detector" / "model", "detector", on=("alpha",), endpoint="/count-cars")
    mesh.deploy(EXAMPLES / "text_to_image" / "model", "painter", on=("beta",))
    made = Client(mesh.url)
    with made.session:
        yield made


needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")


def picture(data: bytes) -> Image.Image:
    made = Image.open(io.BytesIO(data))
    made.load()
    return made


@needs_curl
@conforms("Endpoint style", "JSON in, JSON out, also under curl's own content type")
def test_a_document_is_answered_as_curl_sends_it(client: Client) -> None:
    answer = json.loads(client.curl("/inference/painter", "-d", json.dumps(PROMPT)))
    assert (answer["width"], answer["media_type"]) == (64, "image/png")
    made = np.asarray(picture(base64.b64decode(answer["image"])).convert("RGB")).astype(int)
    assert made[32, 32, 0] > made[32, 32, 2] + 60  # red in the middle
    assert made[2, 2].min() > 150  # white at the edge


@needs_curl
@conforms("Endpoint style", "a file of any media type for an explicit Accept")
def test_a_picture_is_the_answer_where_one_is_accepted(client: Client) -> None:
    data = client.curl("/inference/painter", "-H", "Accept: image/png", "-d", json.dumps(PROMPT))
    assert picture(data).size == (64, 64)
    drawn = client.curl("/inference/detector", "-H", "Accept: image/jpeg", "-F", f"image=@{STREET}")
    assert picture(drawn).format == "JPEG"


@conforms("Endpoint style", '`"stream": true`, with progress')
def test_a_picture_gets_finer_while_it_is_streamed(client: Client) -> None:
    events_wanted = {"Accept": "text/event-stream"}
    answer = client.post(
        "/inference/painter", json={**PROMPT, "stream": True}, stream=True, headers=events_wanted
    )
    assert answer.headers["Content-Type"] == "text/event-stream"
    events = [json.loads(line[6:]) for line in answer.iter_lines() if line.startswith(b"data: ")]
    assert [each["width"] for each in events] == [16, 32, 64]
    assert [each["progress"] for each in events] == sorted(each["progress"] for each in events)
    assert events[-1]["progress"] == 1
    whole = client.post("/inference/painter", json=PROMPT).json()
    assert events[-1]["image"] == whole["image"]


@needs_curl
@conforms("Endpoint style", "forms with a file (`multipart/form-data`)")
def test_a_form_with_a_file_and_a_field_is_answered(client: Client) -> None:
    sure = json.loads(client.curl("/inference/detector", "-F", f"image=@{STREET}"))
    assert sure["count"] == len(sure["detections"]) > 0
    assert {each["label"] for each in sure["detections"]} <= {"car", "truck", "bus"}
    options = ("-F", f"image=@{STREET}", "-F", "threshold=0.99")
    fewer = json.loads(client.curl("/inference/detector", *options))
    assert fewer["count"] <= sure["count"]


@conforms("Endpoint style", "a file as the body")
def test_a_picture_may_be_the_body(client: Client) -> None:
    data = STREET.read_bytes()
    raw = client.post("/inference/detector", data, headers={"Content-Type": "image/png"}).json()
    inline = {"image": base64.b64encode(data).decode()}
    assert raw == client.post("/inference/detector", json=inline).json()


@pytest.mark.parametrize(
    ("data", "content_type"),
    [(b"RIFF\0\0\0\0WAVEfmt ", "audio/wav"), (b"%PDF-1.7", "application/octet-stream")],
)
@conforms("Endpoint style", "415 for a file that the model does not take")
def test_a_file_that_the_model_does_not_take_is_refused(
    client: Client, data: bytes, content_type: str
) -> None:
    raw = client.post("/inference/detector", data, headers={"Content-Type": content_type})
    sent = client.post("/inference/painter", files={"file": ("x", data, content_type)})
    assert (raw.status_code, sent.status_code) == (415, 415)
    assert "does not take" in raw.json()["error"]
    assert raw.headers["Mesh-Error"] == "unsupported_media_type"


@conforms("Endpoint style", 'errors as `{"error": sentence}`')
def test_bad_input_is_told_as_a_sentence(client: Client) -> None:
    unknown = client.post("/inference/no-such-model", b"{}")
    assert (unknown.status_code, "no-such-model" in unknown.json()["error"]) == (404, True)
    broken = client.post("/inference/digits", b"{")
    assert (broken.status_code, "not JSON" in broken.json()["error"]) == (400, True)
    wrong = client.post("/inference/painter", json={"prompt": "xyzzy"})
    assert wrong.status_code == 400
    none = client.session.get(f"{client.url}/inference/digits", timeout=60)
    assert (none.status_code, none.headers["Allow"]) == (405, "POST")
    assert "POST" in none.json()["error"]
    damaged = client.post(
        "/inference/detector", b"\x89PNG\r\n\x1a\n", headers={"Content-Type": "image/png"}
    )
    assert damaged.status_code == 400


@conforms("Endpoint style", "models that take tensors: plain values by name, pictures")
def test_tensors_are_plain_values_and_pictures(client: Client) -> None:
    png = {"Content-Type": "image/png"}
    raw = client.post("/inference/digits", DIGIT.read_bytes(), headers=png).json()
    assert raw["label"] == [7]
    shades = np.asarray(Image.open(DIGIT).convert("L").reduce(16), dtype=float) / 255
    values = client.post("/inference/digits", json={"image": shades.tolist()}).json()
    assert values["label"] == [7]
    assert values["probabilities"][0] == pytest.approx(raw["probabilities"][0], abs=0.1)
    streamed = client.post(
        "/inference/digits",
        DIGIT.read_bytes(),
        headers={"Content-Type": "image/png", "Accept": "text/event-stream"},
    )
    assert streamed.text.endswith("\n\n")
    assert json.loads(streamed.text.removeprefix("data: ")) == raw


@conforms("Endpoint style", "paths of one's own choice, with or without a slash at the end")
def test_a_model_is_asked_at_the_path_that_its_deployer_chose(
    mesh: ConformanceMesh, client: Client
) -> None:
    data = STREET.read_bytes()
    answers = [
        client.post(path, data, headers={"Content-Type": "image/png"}).json()
        for path in ("/inference/detector", "/count-cars", "/count-cars/")
    ]
    assert answers[0] == answers[1] == answers[2]
    (before,) = mesh.operator.model("detector").replicas
    for holder in mesh.holders[:1]:
        holder.deploy(
            EXAMPLES / "detector" / "model", name="detector", on=["alpha"], endpoint="/cars/"
        )
    wait_until(lambda: _status(client, "/cars") == 200, 15, "the new path is offered")
    assert _status(client, "/count-cars") == 404
    model = mesh.front.request("GET", "/mesh/v1/models/detector")[2]
    assert (model["endpoint"], model["tasks"], model["cache"]) == ("/cars", [], None)
    (after,) = mesh.operator.model("detector").replicas
    assert (before.state, after.state, before.version) == ("ready", "ready", after.version)
    mesh.deploy(EXAMPLES / "detector" / "model", "detector", on=("alpha",), endpoint="/count-cars")
    wait_until(lambda: _status(client, "/count-cars") == 200, 15, "the first path is back")


def _status(client: Client, path: str) -> int:
    headers = {"Content-Type": "image/png"}
    return client.post(path, STREET.read_bytes(), headers=headers).status_code


@conforms("Endpoint style", "`POST /predict?model=NAME` with a form's `file`")
def test_predict_takes_a_form_with_a_file(client: Client) -> None:
    with STREET.open("rb") as file:
        answer = client.post("/predict?model=detector", files={"file": ("street.png", file)})
    assert answer.json()["count"] > 0
    unnamed = client.post("/predict", b"{}")
    assert (unnamed.status_code, "/predict?model=NAME" in unnamed.json()["error"]) == (400, True)


@conforms("Endpoint style", "`POST /predict/async`: a job")
def test_predict_async_makes_a_job(client: Client) -> None:
    answer = client.post("/predict/async?model=painter", json=PROMPT)
    assert answer.status_code == 202
    task = answer.json()
    assert task["status"] == "processing"
    result = f"{client.url}{task['url']}/result"
    wait_until(
        lambda: client.session.get(result, timeout=30).status_code == 200, 30, "the job is done"
    )
    assert (
        client.session.get(result, timeout=30).json()
        == client.post("/inference/painter", json=PROMPT).json()
    )
