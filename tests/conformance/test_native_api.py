"""The native API of a running mesh, asked at a node that holds no model, and fuzzed as its description says."""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from http.client import HTTPConnection
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pytest

from meshnode.limits import STREAM_RESUME_S
from tests.conformance.table import conforms
from tests.e2e.conftest import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.conformance.conftest import ConformanceMesh

FUZZ_LIMIT_S: Final = float(os.environ.get("FUZZ_LIMIT_S", "15"))
"""Time of the fuzzing test; the operations share it."""

LINES = "fuzz_lines"
_PREDICTOR = """
import asyncio


def read(request, times):
    # A fuzzer asks, too: what is no such request is an empty one.
    if not isinstance(request, dict) or not isinstance(request.get("times", 1), int):
        return "", 0, 0
    return request.get("text"), min(request.get("times", times), 100), request.get("pause_s", 0)


class Lines:
    def predict(self, request):
        text, times, _ = read(request, 1)
        return {"lines": [text] * times}

    async def async_predict(self, request):
        text, times, pause_s = read(request, 3)
        for number in range(times):
            yield f"{text} {number}"
            await asyncio.sleep(pause_s if isinstance(pause_s, float) else 0)
"""


@pytest.fixture(scope="module")
def lines(mesh: ConformanceMesh, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder: Path = tmp_path_factory.mktemp("lines") / LINES
    (folder / "1").mkdir(parents=True)
    (folder / "1" / "predictor.py").write_text(_PREDICTOR)
    mesh.deploy(folder, LINES, on=("alpha",))
    yield LINES
    mesh.undeploy(LINES)


def ask(
    mesh: ConformanceMesh, method: str, path: str, body: Any = None, **headers: str
) -> tuple[int, Any]:
    line = HTTPConnection("127.0.0.1", mesh.port, timeout=15)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    line.request(method, path, None if body is None else json.dumps(body), named)
    response = line.getresponse()
    data = response.read()
    line.close()
    return response.status, json.loads(data) if data else None


def begin(mesh: ConformanceMesh, model: str, body: Any, **headers: str) -> tuple[Any, Any]:
    line = HTTPConnection("127.0.0.1", mesh.port, timeout=15)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    line.request("POST", f"/mesh/v1/models/{model}/stream", json.dumps(body), named)
    return line, line.getresponse()


def next_event(response: Any) -> dict[str, str]:
    fields: dict[str, str] = {}
    while True:
        text = response.readline().decode().rstrip("\n")
        if not text and "data" in fields:
            return fields
        if not text or text.startswith(":"):
            continue  # without data it is no event, only an id to begin with
        name, _, value = text.partition(": ")
        fields[name] = value


@conforms("Native API", "infer with plain nested lists, by the model's names")
def test_plain_lists(mesh: ConformanceMesh) -> None:
    image = np.linspace(0, 1, 64, dtype=np.float32).reshape(1, 8, 8)
    exact = mesh.operator.infer("digits", {"image": image})
    status, answer = ask(
        mesh, "POST", "/mesh/v1/models/digits/infer", {"inputs": {"image": image.tolist()}}
    )
    assert status == 200, answer
    assert (answer["model"], answer["version"]) == ("digits", 1)
    assert set(answer["outputs"]) == {"probabilities", "label"}
    for name, value in answer["outputs"].items():
        np.testing.assert_allclose(value, exact[name], rtol=1e-5)


@conforms("Native API", "exact tensors in base64")
def test_exact_tensors(mesh: ConformanceMesh) -> None:
    body = {"inputs": {"image": [[0.0] * 8] * 8}, "encoding": "b64"}
    status, answer = ask(mesh, "POST", "/mesh/v1/models/digits/versions/1/infer", body)
    assert status == 200, answer
    assert all(set(value) == {"b64", "datatype", "shape"} for value in answer["outputs"].values())


@conforms("Native API", "infer and stream with JSON documents")
def test_documents(mesh: ConformanceMesh, lines: str) -> None:
    body = {"inputs": {"request": {"text": "a", "times": 2}}}
    assert ask(mesh, "POST", f"/mesh/v1/models/{lines}/infer", body)[1]["outputs"] == {
        "response": {"lines": ["a", "a"]}
    }
    line, response = begin(mesh, lines, body)
    events = [next_event(response) for _ in range(3)]
    line.close()
    assert [each["event"] for each in events] == ["part", "part", "done"]
    assert json.loads(events[1]["data"])["outputs"] == {"response": "a 1"}


@conforms("Native API", "a stream goes on after the connection was lost (Last-Event-ID)")
def test_a_stream_is_taken_up_again(mesh: ConformanceMesh, lines: str) -> None:
    body = {"inputs": {"request": {"text": "a", "times": 20, "pause_s": 0.05}}}
    line, response = begin(mesh, lines, body)
    events = [next_event(response) for _ in range(3)]
    line.close()
    time.sleep(0.1)
    line, response = begin(mesh, lines, body, Last_Event_ID=events[-1]["id"])
    while events[-1]["event"] == "part":
        events.append(next_event(response))
    line.close()
    told = [json.loads(each["data"]) for each in events]
    assert [each["outputs"]["response"] for each in told[:-1]] == [f"a {n}" for n in range(20)]
    assert events[-1]["event"] == "done"
    assert STREAM_RESUME_S > 1
    status, answer = ask(
        mesh, "POST", f"/mesh/v1/models/{lines}/stream", body, Last_Event_ID="other.1"
    )
    assert (status, answer["code"]) == (404, "unknown")


@conforms("Native API", "errors as {error, code}; unknown models, wrong tensors, wrong methods")
def test_errors(mesh: ConformanceMesh) -> None:
    path = "/mesh/v1/models/digits/infer"
    for method, at, body, status, code in (
        ("POST", "/mesh/v1/models/nothing/infer", {"inputs": {}}, 404, "not_found"),
        ("POST", path, {"inputs": {"image": [1]}}, 400, "invalid_request"),
        ("POST", path, [], 400, "invalid_request"),
        ("GET", path, None, 405, "http"),
        ("POST", "/mesh/v1/keys", {"name": "x"}, 401, "unauthenticated"),
    ):
        got, answer = ask(mesh, method, at, body)
        assert (got, answer["code"], set(answer)) == (status, code, {"error", "code"}), at


@conforms("Native API", "events of the mesh, to follow and to go on with")
def test_events_follow_a_deployment(mesh: ConformanceMesh, tmp_path: Path) -> None:
    line = HTTPConnection("127.0.0.1", mesh.port, timeout=15)
    line.request("GET", "/mesh/v1/events?kinds=deployment,model")
    response = line.getresponse()
    folder = tmp_path / "followed"
    (folder / "1").mkdir(parents=True)
    (folder / "1" / "predictor.py").write_text(_PREDICTOR)
    mesh.deploy(folder, "followed", on=("alpha",))
    seen: list[dict[str, Any]] = []
    while not seen or seen[-1].get("state") != "ready":
        seen.append(json.loads(next_event(response)["data"]))
    line.close()
    assert seen[0] | {"id": "", "time": ""} == {
        "id": "", "time": "", "kind": "deployment", "name": "followed", "change": "written",
    }  # fmt: skip
    assert seen[-1]["node"] == "alpha"
    deployment = ask(mesh, "GET", "/mesh/v1/deployments/followed")[1]
    assert (deployment["on"], deployment["changed_by"]) == (["alpha"], "alpha")
    mesh.undeploy("followed")
    names = {each["name"] for each in ask(mesh, "GET", "/mesh/v1/deployments")[1]}
    assert "digits" in names
    assert "followed" not in names


_TYPED = """
from typing import Annotated, Literal

from pydantic import BaseModel, Field


class Circle(BaseModel):
    kind: Literal["circle"]
    radius: float


class Square(BaseModel):
    kind: Literal["square"]
    side: float


class Shape(BaseModel):
    item: Annotated[Circle | Square, Field(discriminator="kind")]


class Area(BaseModel):
    area: float


class Areas:
    def predict(self, request: Shape) -> Area:
        item = request.item
        return Area(area=item.side**2 if item.kind == "square" else 3 * item.radius**2)
"""


@pytest.fixture(scope="module")
def typed(mesh: ConformanceMesh, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A model of Pydantic types, which its deployer offers where other paths could be meant."""
    folder = tmp_path_factory.mktemp("typed") / "areas"
    (folder / "1").mkdir(parents=True)
    (folder / "1" / "predictor.py").write_text(_TYPED)
    mesh.deploy(folder, "areas", on=("alpha",), endpoint="/areas/infer")
    yield "/areas/infer"
    mesh.undeploy("areas")


def page(mesh: ConformanceMesh, path: str) -> tuple[Any, str]:
    line = HTTPConnection("127.0.0.1", mesh.port, timeout=15)
    line.request("GET", path)
    response = line.getresponse()
    text = response.read().decode()
    line.close()
    assert response.status == 200
    return response.headers, text


@conforms("Native API", "OpenAPI 3.1, valid, with each deployed model's own schema")
def test_the_description_has_the_models(mesh: ConformanceMesh, typed: str) -> None:
    openapi = pytest.importorskip("openapi_spec_validator")
    jsonschema = pytest.importorskip("jsonschema")

    def description() -> dict[str, Any]:
        found: dict[str, Any] = ask(mesh, "GET", "/openapi.json")[1]
        return found

    wait_until(lambda: typed in description()["paths"], 10, "the model is described")
    whole = description()
    openapi.validate(whole)
    assert whole["openapi"].startswith("3.1")

    def check(document: Any, path: str, *place: str) -> None:
        schema = whole["paths"][path]["post"]
        for each in (*place, "content", "application/json", "schema"):
            schema = schema[each]
        jsonschema.Draft202012Validator({**schema, "components": whole["components"]}).validate(
            document
        )

    square = {"item": {"kind": "square", "side": 3}}
    native = {"inputs": {"request": square}}
    image = {"inputs": {"image": [[[0.5] * 8] * 8]}}
    for path, body in (
        (typed, square),
        ("/inference/areas", square),
        ("/mesh/v1/models/areas/infer", native),
        ("/mesh/v1/models/digits/infer", image),
        ("/inference/digits", image["inputs"]),
    ):
        check(body, path, "requestBody")
        status, answer = ask(mesh, "POST", path, body)
        assert status == 200, answer
        check(answer, path, "responses", "200")
    with pytest.raises(jsonschema.ValidationError):
        check({"item": {"kind": "circle", "side": 3}}, typed, "requestBody")
    assert ask(mesh, "POST", typed, {"item": {"kind": "circle", "side": 3}})[0] == 400


@conforms("Native API", "/docs, a page that works without internet")
def test_the_page_loads_nothing_from_elsewhere(mesh: ConformanceMesh) -> None:
    headers, text = page(mesh, "/docs")
    assert headers["X-Frame-Options"] == "DENY"
    policy = headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "connect-src 'self'" in policy
    named = re.findall(r'(?:src|href)="([^"]*)"', text)
    assert {each for each in named if each.startswith("/docs/")} == {"/docs/page.js", "/docs/page.css"}  # fmt: skip
    assert all(each.startswith(("/", "data:")) and not each.startswith("//") for each in named)
    for each in ("/docs/page.js", "/docs/page.css"):
        assert "//" not in re.sub(r"(?m)^\s*//.*$", "", page(mesh, each)[1])


_ENDLESS: Final = frozenset({"/mesh/v1/events"})


def _of_other_tests(schema: dict[str, Any]) -> set[str]:
    """Return the tags of models that are not made for being asked anything."""
    tags = {each["name"] for each in schema["tags"] if each["name"].startswith("Model ")}
    return tags - {"Model digits", f"Model {LINES}"}


@conforms("Native API", "fuzzed by schemathesis as its description says, all dialects: no defect")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::hypothesis.errors.HypothesisWarning")
def test_nothing_that_is_described_can_be_made_to_fail(mesh: ConformanceMesh, lines: str) -> None:
    """Each operation is asked with what its schema allows, then with what it does not.

    What comes must be described: the status, the type of the body, and its schema. The only answers from 500 on are 501
    and 503, and 504 to who wants kept answers only. What is asked with a key of an admin may change the mesh, so names
    are what the fuzzer invents; the model that others use is only asked.
    """
    schemathesis = pytest.importorskip("schemathesis")
    conformance = pytest.importorskip("schemathesis.specs.openapi.checks")
    from hypothesis import HealthCheck, Phase, given, seed, settings
    from hypothesis.errors import Unsatisfiable

    headers = {"Authorization": f"Bearer {mesh.key('admin')}"}
    schema = schemathesis.openapi.from_url(f"{mesh.url}/openapi.json", headers=headers)
    operations = [
        operation
        for operation in (each.ok() for each in schema.get_all_operations())
        if operation.path not in _ENDLESS
        and operation.definition.raw["tags"][0] not in _of_other_tests(schema.raw_schema)
    ]
    assert len(operations) > 50
    # A model's own paths first, then what runs models, then the rest.
    operations.sort(key=lambda each: ("{model}" in each.path, each.method != "post", each.path))
    checks = [
        conformance.status_code_conformance,
        conformance.content_type_conformance,
        conformance.response_schema_conformance,
    ]
    began = time.monotonic()
    asked: dict[int, int] = {}
    wrong: list[str] = []

    def only_kept(case: Any) -> bool:
        return "only-if-cached" in str((case.headers or {}).get("Cache-Control", ""))

    def ask_once(operation: Any, mode: Any, number: int) -> None:
        is_reading = operation.definition.raw.get("x-meshnode-scope") == "infer"

        @seed(number)
        @settings(
            max_examples=1, deadline=None, database=None, phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        @given(case=operation.as_strategy(generation_mode=mode))
        def run(case: Any) -> None:
            if is_reading and number % 2 and "model" in (case.path_parameters or {}):
                case.path_parameters["model"] = "digits"
            response = case.call(base_url=mesh.url, headers=headers, timeout=10)
            status = response.status_code
            asked[status] = asked.get(status, 0) + 1
            told = f"{status} {response.text[:300]}\n{case.as_curl_command()[:1000]}"
            if status >= 500 and status not in (501, 503) and not only_kept(case):
                wrong.append(told)
            try:
                case.validate_response(response, checks=checks)
            except schemathesis.core.failures.FailureGroup as failed:
                reasons = "; ".join(f"{each.title}: {each.message}" for each in failed.exceptions)
                wrong.append(f"{reasons}\n{told}")

        # Nothing can be said wrongly where nothing is said.
        with contextlib.suppress(Unsatisfiable):
            run()

    number = 0
    while time.monotonic() - began < FUZZ_LIMIT_S:
        number += 1
        for operation in operations:
            for mode in (*schemathesis.GenerationMode,):
                if time.monotonic() - began < FUZZ_LIMIT_S:
                    ask_once(operation, mode, number)
    assert wrong == []
    assert sum(asked.values()) > 50
    assert asked.get(200, 0) > 5
    assert asked.get(400, 0) > 5
