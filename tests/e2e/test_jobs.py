"""Jobs on real daemons: they survive kill -9 of the node that accepted them, and then of the one that runs them."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import signal
import threading
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.conftest import Mesh, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.e2e.conftest import Daemon

pytestmark = pytest.mark.e2e

SLOW = """
import asyncio, json

class Slow:
    def predict(self, request):
        return {}

    async def async_predict(self, request):
        for step in range(4):
            yield f"data: {json.dumps({'progress': step / 4})}\\n\\n"
            await asyncio.sleep(request["seconds"] / 4)
        yield f"data: {json.dumps({'slept': request['seconds']})}\\n\\n"
"""
SECRET = "a secret of sixteen bytes"
KILLED = getattr(signal, "SIGKILL", signal.SIGTERM)


class Receiver:
    """A caller's own server: what it was told."""

    def __init__(self) -> None:
        self.told: list[tuple[dict[str, str], bytes]] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.told.append(({k.lower(): v for k, v in self.headers.items()}, body))
                self.send_response(503 if len(receiver.told) == 1 else 204)
                self.end_headers()

            def log_message(self, *args: Any) -> None: ...

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/hook"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.05,))
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    yield receiver
    receiver.close()


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Daemon]]:
    """Four nodes; the first serves a model that takes its time. The last test here kills some."""
    mesh = Mesh(tmp_path_factory.mktemp("jobs"))
    try:
        yield _grown(mesh)
    finally:
        mesh.close()


def _grown(mesh: Mesh) -> list[Daemon]:
    folder = mesh.folder / "models" / "slow"
    folder.mkdir(parents=True)
    (folder / "predictor.py").write_text(SLOW)
    allow = ("--allow-outbound", "127.0.0.1/32")
    first = mesh.start("alpha", "--new", "--models", str(folder.parent), *allow).wait_ready()
    nodes = [first]
    nodes += [mesh.start(name, first.invite(), *allow) for name in ("beta", "gamma", "delta")]
    for node in nodes:
        node.wait_ready()
    for node in nodes:
        wait_until(partial(node.sees, 4), 15, f"{node.name} sees all")
        wait_until(lambda node=node: node.ready_nodes("slow"), 30, "slow is served")  # type: ignore[misc]
    return nodes


def asked(node: Daemon, seconds: float, **headers: str) -> dict[str, Any]:
    """Have the slow model run as a job."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    body = {"seconds": seconds, "stream": True}  # which ends when nobody wants it any more
    status, found, job = node.request(
        "POST", "/inference/slow", body, {"Prefer": "respond-async", **named}
    )
    assert (status, found.get("preference-applied")) == (202, "respond-async"), job
    assert found["location"] == job["url"]
    return dict(job)


def shown(node: Daemon, job: dict[str, Any]) -> dict[str, Any]:
    status, _, found = node.request("GET", job["url"])
    return dict(found) if status == 200 else {"status": f"HTTP {status}", "node": None}


def is_at(node: Daemon, job: dict[str, Any], status: str) -> dict[str, Any] | None:
    found = shown(node, job)
    return found if found["status"] == status else None


def test_progress_is_followed_at_any_node_and_a_cancelled_job_stops(four: list[Daemon]) -> None:
    job = asked(four[1], 1.2)
    status, headers, body = four[2].request("GET", job["events_url"])
    assert (status, headers["content-type"]) == (200, "text/event-stream")
    events = [
        json.loads(line[6:]) for line in bytes(body).splitlines() if line.startswith(b"data: ")
    ]
    assert events[-1]["status"] == "succeeded"
    seen = [event["progress"] for event in events if event["status"] == "running"]
    assert any(value and 0 < value < 1 for value in seen), seen
    status, headers, result = four[3].request("GET", job["result_url"])
    assert (status, headers["content-type"]) == (200, "text/event-stream")
    assert b'"slept": 1.2' in result
    # One that nobody wants any more.
    job = asked(four[1], 30.0)
    assert four[3].request("GET", job["result_url"])[0] == 409
    wait_until(partial(is_at, four[2], job, "running"), 5, "it runs")
    assert four[3].request("DELETE", job["url"])[2]["status"] == "cancelled"
    wait_until(partial(is_at, four[0], job, "cancelled"), 5, "all know that it is cancelled")
    status, _, told = four[0].request("GET", job["result_url"])
    assert (status, told["code"]) == (409, "job_cancelled")


def test_a_plain_members_gateway_answers_for_every_job_of_the_key_that_it_is_shown(
    mesh: Mesh,
) -> None:
    folder = mesh.folder / "models" / "slow"
    folder.mkdir(parents=True)
    (folder / "predictor.py").write_text(SLOW)
    alpha = mesh.start("alpha", "--new", "--models", str(folder.parent)).wait_ready()
    beta = mesh.start("beta", alpha.invite()).wait_ready()
    lent = alpha.control.post("/mesh/v1/invites", {"role": "member"})["invite"]
    gamma = mesh.start("gamma", lent).wait_ready()
    for node in (alpha, beta, gamma):
        wait_until(partial(node.sees, 3), 15, f"{node.name} sees all")
    wait_until(lambda: alpha.ready_nodes("slow"), 30, "slow is served")
    key = alpha.control.post("/mesh/v1/keys", {"name": "ci", "scopes": ["infer"]})["key"]
    wait_until(lambda: gamma.control.get("/mesh/v1/keys"), 5, "the key arrives")
    shows = {"Authorization": f"Bearer {key}"}
    made = [asked(alpha, 0.01, **shows) for _ in range(12)]  # of which gamma keeps eight or so
    for job in made:
        wait_until(
            lambda job=job: gamma.request("GET", job["url"], headers=shows)[2].get("finished_at"), 20, "it ends"  # type: ignore[misc]
        )  # fmt: skip
        results = [node.request("GET", job["result_url"], headers=shows) for node in (alpha, gamma)]
        assert [status for status, _, _ in results] == [200, 200]
        assert results[0][2] == results[1][2]
        kinds = {headers["content-type"].partition(";")[0] for _, headers, _ in results}
        assert kinds == {"text/event-stream"}
        assert gamma.request("DELETE", job["url"], headers=shows)[2]["status"] == "succeeded"
        assert gamma.request("GET", job["url"])[0] == 404  # its owner, without the key
    listed = gamma.request("GET", "/mesh/v1/jobs", headers=shows)[2]
    assert {job["id"] for job in listed["jobs"]} == {job["id"] for job in made}
    assert gamma.request("GET", "/mesh/v1/jobs")[2]["jobs"] == []


def test_a_job_survives_kill_9_of_who_accepted_it_and_then_of_who_runs_it(
    four: list[Daemon], receiver: Receiver
) -> None:
    alpha, *others = four
    by_name = {node.name: node for node in others}
    acceptor, job, running = alpha, {}, {}
    # Any node may come to run a job: ask until one runs that is neither its gateway nor the model's node.
    for turn in range(40):
        acceptor = others[turn % 3]
        job = asked(
            acceptor, 4.0, Mesh_Webhook=receiver.url, Mesh_Webhook_Secret=SECRET,
            Idempotency_Key=f"order-{turn}",
        )  # fmt: skip
        running = wait_until(partial(is_at, acceptor, job, "running"), 5, "it runs")
        if running["node"] not in (alpha.name, acceptor.name):
            break
        assert acceptor.request("DELETE", job["url"])[2]["status"] == "cancelled"
    acceptor.signal(KILLED)
    acceptor.process.wait()
    del by_name[acceptor.name]
    # The other copy is alive and tells of it, through a node that never heard of it.
    wait_until(partial(is_at, alpha, job, "running"), 10, "alpha tells of it")
    runner = by_name.pop(running["node"])
    (last,) = by_name.values()

    def has_two_copies() -> bool:
        found = [
            line
            for node in (alpha, last, runner)
            for line in [node.request("GET", "/metrics")[2]]
            if b'meshnode_jobs{status="running"} 1' in bytes(line)
        ]
        return len(found) >= 2

    wait_until(has_two_copies, 15, "two live nodes keep it")
    runner.signal(KILLED)
    runner.process.wait()
    done = wait_until(partial(is_at, last, job, "succeeded"), 40, "it ends")
    assert done["attempt"] > running["attempt"]
    for node in (alpha, last):
        status, headers, result = node.request("GET", job["result_url"])
        assert (status, headers["mesh-job"]) == (200, "succeeded")
        assert b'"slept": 4.0' in result
    # Its key still means the same job; and its end was told, signed, again after a refusal.
    assert asked(last, 4.0, Mesh_Webhook=receiver.url, Mesh_Webhook_Secret=SECRET,
                 Idempotency_Key=f"order-{turn}")["id"] == job["id"]  # fmt: skip
    wait_until(lambda: _told_of(receiver, job), 15, "the webhook was told")
    headers, body = _told_of(receiver, job)[-1]
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    digest = base64.b64encode(hmac.new(SECRET.encode(), signed, hashlib.sha256).digest()).decode()
    assert headers["webhook-signature"] == f"v1,{digest}"
    assert json.loads(body)["type"] == "job.succeeded"


def _told_of(receiver: Receiver, job: dict[str, Any]) -> list[tuple[dict[str, str], bytes]]:
    found = [each for each in receiver.told if job["id"] in each[0]["webhook-id"]]
    return [each for each in found if json.loads(each[1])["data"]["status"] == "succeeded"]
