"""Jobs through a node that holds no model, by plain HTTP as any client sends it."""

from __future__ import annotations

import json
import uuid
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from tests.conformance.table import conforms
from tests.e2e.conftest import DIGIT_REQUEST, wait_until

if TYPE_CHECKING:
    from tests.conformance.conftest import ConformanceMesh

pytestmark = pytest.mark.e2e

NATIVE = {"inputs": {"image": [[[column / 64 for column in range(8)] for _ in range(8)]]}}


def ended(mesh: ConformanceMesh, job: dict[str, Any]) -> dict[str, Any] | None:
    shown = mesh.front.request("GET", job["url"])[2]
    return dict(shown) if shown["finished_at"] else None


def finished(mesh: ConformanceMesh, job: dict[str, Any]) -> dict[str, Any]:
    return dict(wait_until(partial(ended, mesh, job), 20, "the job ends"))


def make(mesh: ConformanceMesh, **headers: str) -> dict[str, Any]:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    status, _, job = mesh.front.request("POST", "/mesh/v1/models/digits/jobs", NATIVE, named)
    assert status == 202, job
    return dict(job)


@conforms("Jobs", "POST …/jobs, state, result")
def test_a_job_is_made_shown_and_its_result_fetched(mesh: ConformanceMesh) -> None:
    job = make(mesh)
    assert finished(mesh, job)["status"] == "succeeded"
    status, headers, result = mesh.front.request("GET", job["result_url"])
    assert (status, headers["mesh-job"]) == (200, "succeeded")
    assert result["model"] == "digits"
    assert result == mesh.front.request("POST", "/mesh/v1/models/digits/infer", NATIVE)[2]


@conforms("Jobs", "`Prefer: respond-async` on the paths of other dialects")
def test_an_inference_of_another_dialect_becomes_a_job_by_its_preference(
    mesh: ConformanceMesh,
) -> None:
    status, headers, job = mesh.front.request(
        "POST", "/v2/models/digits/infer", DIGIT_REQUEST, {"Prefer": "respond-async"}
    )
    assert (status, headers["preference-applied"]) == (202, "respond-async")
    finished(mesh, job)
    result = mesh.front.request("GET", job["result_url"])[2]
    assert result["outputs"][0]["data"] == mesh.front.request(
        "POST", "/v2/models/digits/infer", DIGIT_REQUEST
    )[2]["outputs"][0]["data"]  # fmt: skip


@conforms("Jobs", "every node answers for every job")
def test_every_node_tells_the_same_of_a_job(mesh: ConformanceMesh) -> None:
    job = make(mesh)
    shown = finished(mesh, job)
    for node in mesh.nodes:
        assert node.request("GET", job["url"])[2] == shown
        assert node.request("GET", job["result_url"])[0] == 200


@conforms("Jobs", "`Idempotency-Key`, at every gateway")
def test_a_repeated_call_is_the_same_job_at_every_gateway(mesh: ConformanceMesh) -> None:
    key = {"Idempotency-Key": uuid.uuid4().hex, "Authorization": f"Bearer {mesh.key('infer')}"}
    made = [
        node.request("POST", "/mesh/v1/models/digits/jobs", NATIVE, key)[2]["id"]
        for node in mesh.nodes
    ]
    assert len(set(made)) == 1
    other = {"inputs": {"image": [[[0.0] * 8 for _ in range(8)]]}}
    status, _, told = mesh.front.request("POST", "/mesh/v1/models/digits/jobs", other, key)
    assert (status, told["code"]) == (422, "idempotency_key_reused")


@conforms("Jobs", "events (server-sent), until the end")
def test_events_end_with_the_job(mesh: ConformanceMesh) -> None:
    job = make(mesh)
    status, headers, body = mesh.front.request("GET", job["events_url"])
    assert (status, headers["content-type"]) == (200, "text/event-stream")
    last = [line for line in bytes(body).splitlines() if line.startswith(b"data: ")][-1]
    assert json.loads(last[6:])["status"] == "succeeded"


@conforms("Jobs", "list and pages, of one's own key only")
def test_a_list_shows_the_jobs_of_its_key(mesh: ConformanceMesh) -> None:
    key = {"Authorization": f"Bearer {mesh.key('infer')}"}
    made = {
        mesh.front.request("POST", "/mesh/v1/models/digits/jobs", NATIVE, key)[2]["id"]
        for _ in range(3)
    }
    found: list[str] = []
    cursor = ""
    while True:
        page = mesh.holders[1].request("GET", f"/mesh/v1/jobs?limit=2{cursor}", None, key)[2]
        found += [job["id"] for job in page["jobs"]]
        if page["next"] is None:
            break
        cursor = f"&after={page['next']}"
    assert made <= set(found)
    assert len(found) == len(set(found))
    local = mesh.front.request("GET", "/mesh/v1/jobs?limit=1000")[2]["jobs"]
    assert not made & {job["id"] for job in local}
    (one, *_) = made
    assert mesh.front.request("GET", f"/mesh/v1/jobs/{one}")[0] == 404


@conforms("Jobs", "a failed job's result is the error of its dialect")
def test_the_result_of_a_failed_job_is_its_dialects_error(mesh: ConformanceMesh) -> None:
    status, _, job = mesh.front.request(
        "POST", "/v2/models/digits/infer", {"inputs": []}, {"Prefer": "respond-async"}
    )
    assert status == 202
    shown = finished(mesh, job)
    assert (shown["status"], shown["error"]["status"]) == ("failed", 400)
    status, headers, told = mesh.front.request("GET", job["result_url"])
    assert (status, headers["mesh-job"], set(told)) == (400, "failed", {"error"})


@conforms("Jobs", "webhooks into private networks, unless the owner allowed them", supported=False)
def test_a_webhook_into_a_private_network_is_refused(mesh: ConformanceMesh) -> None:
    for url in ("http://127.0.0.1:9/", "http://192.168.1.1/", "http://localhost/", "http://[::1]/"):
        status, _, told = mesh.front.request(
            "POST", "/mesh/v1/models/digits/jobs", NATIVE, {"Mesh-Webhook": url}
        )
        assert (status, told["code"]) == (403, "forbidden"), url
