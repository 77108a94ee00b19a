"""Jobs and the native calls through both clients, against a gateway that says what a test wants."""

from __future__ import annotations

import base64
import json
import socket
from collections.abc import Callable
from typing import Any

import pytest

from meshnode import JobInfo, Webhook
from meshnode.client import jobs
from meshnode.client.calls import Call, Pause, Reply
from meshnode.client.tensors import InputTensor
from meshnode.errors import (
    DeadlineExceeded,
    InferenceFailed,
    InvalidRequest,
    JobUnfinished,
    ModelNotFound,
    NotFound,
    ProtocolError,
)
from tests.unit.client.conftest import StandIn, answering, http_answer
from tests.unit.client.test_streams import Reading, told, whole

Connect = Callable[..., Any]
Start = Callable[[Callable[[socket.socket, bytes], object]], StandIn]

QUEUED = {"id": "j1", "status": "queued", "model": "echo", "created_at": "2026-01-01T00:00:00Z"}
RUNNING = {**QUEUED, "status": "running", "progress": 0.5, "node": "beta", "attempt": 1}
DONE = {**RUNNING, "status": "succeeded", "progress": 1.0}


def answer(document: object, status: int = 200) -> bytes:
    return http_answer(status, json.dumps(document).encode(), "Content-Type: application/json")


def body_of(request: bytes) -> Any:
    return json.loads(request.partition(b"\r\n\r\n")[2])


def headers_of(request: bytes) -> dict[str, str]:
    lines = request.partition(b"\r\n\r\n")[0].decode().split("\r\n")[1:]
    return {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}


def path_of(request: bytes) -> str:
    return request.split(b" ")[1].decode()


def test_a_job_is_made_with_a_key_of_its_own(connect: Connect, stand_in: Start) -> None:
    server = stand_in(answering(answer(QUEUED, 202)))
    client = connect(server.url)
    made = client.infer_later(
        "echo",
        {"x": InputTensor([[1.5]], "FP32")},
        version=3,
        parameters={"p": 1},
        run_timeout_s=60,
    )
    assert isinstance(made, JobInfo)
    assert (made.id, made.status, made.has_ended) == ("j1", "queued", False)
    assert repr(made) == "<JobInfo j1 of echo: queued>"
    client.infer_later("echo", {"x": InputTensor([[1.5]], "FP32")})
    first, second = server.requests
    assert path_of(first) == "/mesh/v1/models/echo/jobs"
    assert body_of(first) == {
        "inputs": {"x": [[1.5]]},
        "version": 3,
        "parameters": {"p": 1},
        "encoding": "b64",
        "timeout_s": 60,
    }
    assert "timeout_s" not in body_of(second)
    keys = [headers_of(each)["idempotency-key"] for each in server.requests]
    assert len(keys[0]) == 32
    assert keys[0] != keys[1]


def test_making_a_job_goes_on_at_another_gateway_under_the_same_key(
    connect: Connect, stand_in: Start
) -> None:
    dying = stand_in(lambda _line, _request: None)  # hangs up
    good = stand_in(answering(answer(QUEUED, 202)))
    connect(dying.url, good.url).predict_later("echo", {"x": [1]})
    (sent,), (again, *_) = good.requests, dying.requests
    assert headers_of(sent)["idempotency-key"] == headers_of(again)["idempotency-key"]


def test_a_webhook_and_the_callers_own_key_are_told(connect: Connect, stand_in: Start) -> None:
    server = stand_in(answering(answer({**QUEUED, "webhook_secret": "whsec_1"}, 202)))
    client = connect(server.url)
    hook = Webhook("https://example.com/done", "hush")
    made = client.predict_later("echo", {"x": [1]}, webhook=hook, idempotency_key="order-7")
    assert made.webhook_secret == "whsec_1"
    assert "whsec_1" not in repr(made)
    assert "hush" not in repr(hook)
    client.predict_later("echo", {"x": [1]}, webhook="https://example.com/other")
    first, second = (headers_of(each) for each in server.requests)
    assert first["mesh-webhook"] == "https://example.com/done"
    assert first["mesh-webhook-secret"] == "hush"
    assert first["idempotency-key"] == "order-7"
    assert second["mesh-webhook"] == "https://example.com/other"
    assert "mesh-webhook-secret" not in second
    with pytest.raises(InvalidRequest, match="Mesh-Webhook"):
        client.predict_later("echo", {"x": [1]}, webhook="https://example.com/\r\nX: y")


def test_a_job_is_waited_for_and_every_change_is_told(connect: Connect, stand_in: Start) -> None:
    seen: list[JobInfo] = []
    server = stand_in(answering(*(answer(each) for each in (QUEUED, QUEUED, RUNNING, DONE))))
    ended = connect(server.url).wait_job("j1", timeout_s=10, progress=seen.append)
    assert (ended.status, ended.has_ended, ended.node) == ("succeeded", True, "beta")
    assert [each.status for each in seen] == ["queued", "running", "succeeded"]
    assert repr(seen[1]) == "<JobInfo j1 of echo: running, 50%>"


def test_the_pauses_between_looks_grow_and_the_time_ends_the_wait() -> None:
    pauses: list[float] = []
    flow = jobs.wait_job("j1", jobs.ignore, lambda: sum(pauses), 5.0)

    def carried_out() -> None:
        step = next(flow)
        while True:
            if isinstance(step, Pause):
                pauses.append(step.seconds)
                step = flow.send(None)
            else:
                assert isinstance(step, Call)
                step = flow.send(Reply(200, {}, json.dumps(RUNNING).encode()))

    with pytest.raises(DeadlineExceeded, match="job j1 is running after 5 s; it goes on"):
        carried_out()
    assert pauses == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 1.9])


def test_jobs_are_listed_page_by_page(connect: Connect, stand_in: Start) -> None:
    pages = (
        {"jobs": [QUEUED, RUNNING], "next": "c2", "incomplete": []},
        {"jobs": [DONE], "next": None, "incomplete": ["delta"]},
    )
    server = stand_in(answering(*map(answer, pages)))
    found = connect(server.url).jobs(status=["queued", "running"], limit=5)
    assert [each.status for each in found] == ["queued", "running", "succeeded"]
    assert [path_of(each) for each in server.requests] == [
        "/mesh/v1/jobs?status=queued%2Crunning&limit=5",
        "/mesh/v1/jobs?status=queued%2Crunning&after=c2&limit=3",
    ]


def test_a_result_comes_as_arrays_or_as_plain_values(connect: Connect, stand_in: Start) -> None:
    exact = {
        "b64": base64.b64encode(b"\x01\x00\x02\x00").decode(),
        "datatype": "INT16",
        "shape": [2],
    }
    server = stand_in(
        answering(
            answer({"model": "echo", "version": 2, "outputs": {"y": exact}}),
            answer({"model": "echo", "version": 2, "outputs": {"y": [1, 2]}}),
        )
    )
    client = connect(server.url)
    result = client.job_result("j1")
    assert (result["y"].dtype.name, result["y"].tolist()) == ("int16", [1, 2])
    assert (result.model, result.version) == ("echo", 2)
    result["y"][0] = 7  # its memory is the caller's
    assert client.job_prediction("j1")["y"] == [1, 2]
    assert path_of(server.requests[0]) == "/mesh/v1/jobs/j1/result"


def test_a_result_of_plain_values_is_no_array(connect: Connect, stand_in: Start) -> None:
    server = stand_in(answering(answer({"model": "e", "version": 1, "outputs": {"y": [1]}})))
    with pytest.raises(ProtocolError, match="asked with `predict`"):
        connect(server.url).job_result("j1")


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (404, "unknown", NotFound),
        (409, "job_unfinished", JobUnfinished),
        (500, "inference_failed", InferenceFailed),
        (404, "not_found", ModelNotFound),
    ],
)
def test_a_job_that_failed_raises_what_it_failed_with(
    connect: Connect, stand_in: Start, status: int, code: str, kind: type[Exception]
) -> None:
    server = stand_in(answering(answer({"error": "it did", "code": code}, status)))
    with pytest.raises(kind, match="it did"):
        connect(server.url).job_result("j1")


def test_a_job_is_cancelled_also_where_the_first_gateway_is_gone(
    connect: Connect, stand_in: Start, refused: str
) -> None:
    server = stand_in(answering(answer({**QUEUED, "status": "cancelled"})))
    assert connect(refused, server.url).cancel_job("j/1").status == "cancelled"
    assert server.requests[0].startswith(b"DELETE /mesh/v1/jobs/j%2F1 ")


def test_a_job_is_watched_until_its_end_also_at_another_gateway(
    connect: Connect, stand_in: Start
) -> None:
    def event(number: int, document: object) -> bytes:
        return f"id: {number}\nevent: job\ndata: {json.dumps(document)}\n\n".encode()

    first = stand_in(lambda line, _: told(line, event(1, {**QUEUED, "n": 0})))
    other = stand_in(lambda line, _: whole(line, event(2, RUNNING), event(3, DONE), event(4, DONE)))

    class Statuses(Reading):
        def _take(self, each: Any) -> None:
            self.parts.append(each.status)

    read = Statuses(connect(first.url, other.url), "watch_job", "j1")
    assert read.error is None
    assert read.parts[-2:] == ["running", "succeeded"]


def test_plain_values_go_and_come_as_they_are(connect: Connect, stand_in: Start) -> None:
    document = {"model": "echo", "version": 1, "outputs": {"response": {"any": [None]}}}
    server = stand_in(answering(answer(document)))
    result = connect(server.url).predict("echo", {"request": {"text": "é"}}, outputs=["response"])
    assert result["response"] == {"any": [None]}
    (request,) = server.requests
    assert path_of(request) == "/mesh/v1/models/echo/infer"
    body = body_of(request)
    assert 0 < body.pop("timeout_s") <= 30
    assert body == {"inputs": {"request": {"text": "é"}}, "outputs": ["response"]}


def test_what_cannot_be_sent_is_refused_before_anything_is_sent(
    connect: Connect, refused: str
) -> None:
    client = connect(refused)
    for inputs in ([1], {"x": object()}, {"x": b"bytes"}):
        with pytest.raises(InvalidRequest):
            client.predict("echo", inputs)


def test_numbers_that_json_does_not_have_are_texts(connect: Connect, stand_in: Start) -> None:
    server = stand_in(answering(answer(QUEUED, 202)))
    values = [float("nan"), float("inf"), -float("inf"), 1.0]
    connect(server.url).infer_later("echo", {"x": InputTensor(values, "FP32")})
    assert body_of(server.requests[0])["inputs"]["x"] == ["NaN", "Infinity", "-Infinity", 1.0]


KEY = {"id": "k", "name": "ci", "scopes": ["infer"], "created_at": "2026-01-01T00:00:00Z"}


def test_a_key_is_made_and_limited(connect: Connect, stand_in: Start) -> None:
    server = stand_in(
        answering(
            answer({**KEY, "key": "mesh_k_s", "rate": "10/s", "concurrency": None}, 201),
            answer({**KEY, "rate": None, "concurrency": 4, "changed": True}),
        )
    )
    client = connect(server.url)
    assert client.create_key("ci", rate="10/s").rate == "10/s"
    assert client.limit_key("ci", concurrency=4).concurrency == 4
    made, limited = server.requests
    assert body_of(made) == {"name": "ci", "scopes": ["infer"], "ttl_s": None, "rate": "10/s"}
    assert limited.startswith(b"PUT /mesh/v1/keys/ci ")
    assert body_of(limited) == {"concurrency": 4}
    assert "idempotency-key" not in headers_of(made)
