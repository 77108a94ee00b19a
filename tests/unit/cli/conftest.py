"""A daemon's HTTP API in process: aiohttp on the control socket, in a thread of its own."""

import asyncio
import contextlib
import copy
import json
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from typer.testing import CliRunner, Result

from meshnode.cli.main import app
from meshnode.client.control import plan_control, remove_control, write_control

NODES: list[dict[str, Any]] = [
    {
        "id": "a" * 32,
        "name": "alpha",
        "region": "eu-west",
        "zone": "",
        "state": "alive",
        "http": "http://127.0.0.1:8470",
        "mesh": "192.0.2.1:8471",
        "capabilities": {"cpus": 8},
        "load": {},
        "labels": {"gpu": "none"},
        "rtt_ms": 0.0,
        "self": True,
    },
    {
        "id": "b" * 32,
        "name": "beta",
        "region": "us-east",
        "zone": "rack-1",
        "state": "alive",
        "http": None,
        "mesh": "192.0.2.2:8471",
        "capabilities": {},
        "load": {},
        "labels": {},
        "rtt_ms": 12.34,
        "self": False,
    },
    {
        "id": "c" * 32,
        "name": "gamma",
        "region": "ap-south",
        "zone": "",
        "state": "dead",
        "http": None,
        "mesh": "192.0.2.3:8471",
        "capabilities": {},
        "load": {},
        "labels": {},
        "rtt_ms": None,
        "self": False,
    },
]

DIGITS_METADATA: dict[str, Any] = {
    "name": "digits",
    "versions": ["1"],
    "platform": "onnxruntime_onnx",
    "inputs": [{"name": "image", "datatype": "FP32", "shape": [-1, 2, 2]}],
    "outputs": [
        {"name": "label", "datatype": "INT64", "shape": [-1]},
        {"name": "probabilities", "datatype": "FP32", "shape": [-1, 3]},
    ],
}

DIGITS_ANSWER: dict[str, Any] = {
    "model_name": "digits",
    "model_version": "1",
    "outputs": [
        {"name": "label", "datatype": "INT64", "shape": [1], "data": [2]},
        {"name": "probabilities", "datatype": "FP32", "shape": [1, 3], "data": [0.1, 0.15, 0.75]},
    ],
}

ROUTE = "node=beta; region=us-east; version=1; candidates=1; attempts=1; reason=only-candidate"


class FakeDaemon:
    """Speaks the control channel's API from canned state.

    Attributes:
        progress: What `GET /mesh/v1/models/NAME` answers in turn; the last one stays. None: 404.
        accepted: What a deployment's POST answers.
        deployed: What is deployed.
        history: The revisions of each deployment.
        rollouts: How its release stands, one after the other.
        disagreements: Where its new version answers otherwise.
        diff: In what two revisions differ.
        edit: What a change of a deployment answers.
        stale: Why changes of deployments are refused; empty if they are not.
        artifacts: The versions that are published or deployed.
        warnings: What is odd about what was published.
        checks: What the doctor finds, by the name of the node; of which nothing is known, of alpha.
        url: The same API as a gateway on TCP.
        headers: Of the last request.
        query: Of the last request.
        rtt: What `GET /mesh/v1/rtt` answers.
        invite_addresses: What its invites name.
        join_requests: The devices that ask it to join.
        requests: Method, path and JSON body (or raw bytes, where it is not JSON) of every request.
    """

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir
        self.nodes = copy.deepcopy(NODES)
        self.models = [
            self.entry(
                "digits", self.replica("alpha", "ready"), self.replica("beta", "loading"), wanted=2
            )
        ]
        self.metadata = DIGITS_METADATA
        self.answer: Any = DIGITS_ANSWER
        self.answer_type = "image/png"  # of an answer of bytes
        self.accepted = self.entry("digits", wanted=1)
        self.artifacts: list[dict[str, Any]] = []
        self.warnings: list[str] = []
        self.progress: list[dict[str, Any] | None] = []
        self.deployed: list[dict[str, Any]] = []
        self.history: list[dict[str, Any]] = []
        self.rollouts: list[dict[str, Any]] = []
        self.disagreements: dict[str, Any] = {}
        self.diff: dict[str, Any] = {}
        self.edit: dict[str, Any] = {}
        self.stale = ""
        self.checks: dict[str, list[dict[str, str]]] = {}
        self.requests: list[tuple[str, str, Any]] = []
        self.url = ""
        self.headers: dict[str, str] = {}
        self.query: dict[str, str] = {}
        self.rtt: dict[str, Any] = {}
        self.explain: dict[str, Any] = {}
        self.decisions: list[dict[str, Any]] = []
        self.invite_addresses = ["192.0.2.1:8471"]
        self.join_requests: list[dict[str, Any]] = []
        self._stop: Callable[[], object] = lambda: None
        self._started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))

    @staticmethod
    def replica(node: str, state: str, version: int = 1, reason: str = "") -> dict[str, Any]:
        return {
            "node": node,
            "node_id": node[0] * 32,
            "version": version,
            "state": state,
            "reason": reason,
            "current": True,
        }

    @staticmethod
    def entry(name: str, *replicas: dict[str, Any], wanted: int | None = None) -> dict[str, Any]:
        versions = sorted({each["version"] for each in replicas}) or [1]
        return {
            "name": name,
            "versions": versions,
            "replicas": list(replicas),
            "wanted": wanted,
            "deployed": versions[-1:],
            "revision": "1.0",
        }

    def start(self) -> None:
        self._thread.start()
        assert self._started.wait(10)

    def stop(self) -> None:
        self._stop()
        self._thread.join(10)

    async def _serve(self) -> None:
        loop, stopped = asyncio.get_running_loop(), asyncio.Event()
        runner = web.ServerRunner(web.Server(self._handle, access_log=None))
        await runner.setup()
        address = plan_control(self.data_dir, "linux")
        assert address.unix is not None
        await web.UnixSite(runner, address.unix).start()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{runner.addresses[-1][1]}"
        write_control(self.data_dir, address)
        self._stop = lambda: loop.call_soon_threadsafe(stopped.set)
        self._started.set()
        await stopped.wait()
        await runner.cleanup()
        remove_control(self.data_dir, address)

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        body = await request.read()
        content: Any = body
        with contextlib.suppress(ValueError):
            content = json.loads(body) if body else None
        self.requests.append((request.method, request.path, content))
        self.headers = dict(request.headers)
        self.query = dict(request.query)
        return self._respond(request.method, request.path)

    def _respond(self, method: str, path: str) -> web.Response:
        match method, path.strip("/").split("/"):
            case (
                "GET",
                ["mesh", "v1", "nodes" | "models" | "rtt" | "decisions" as what]
                | ["mesh", "v1", "models", _, "explain" as what],
            ):
                return web.json_response(getattr(self, what))
            case "GET", ["mesh", "v1", "models", name]:
                found = self.progress.pop(0) if len(self.progress) > 1 else self.progress[0]
                return web.json_response(found) if found else not_found(name, code="not_found")
            case "GET", ["mesh", "v1", "status"]:
                return web.json_response(
                    {
                        "id": "a" * 32,
                        "name": "alpha",
                        "mesh": "m" * 32,
                        "http": "http://127.0.0.1:8470",
                        "mesh_address": "0.0.0.0:8471",
                        "state": "running",
                        "version": "0.1.0",
                        "members": 2,
                    }
                )
            case "POST", ["mesh", "v1", "invites"]:
                return web.json_response(
                    {
                        "invite": "mesh1abc",
                        "expires_at": "2026-01-02T03:04:05Z",
                        "addresses": self.invite_addresses,
                    }
                )
            case _, ["mesh", "v1", "join-requests" | "doctor", *_]:
                return self._respond_about_devices(method, path)
            case "POST", ["mesh", "v1", "deployments"]:
                return web.json_response(self.accepted, status=202)
            case _, ["mesh", "v1", "artifacts", *named]:
                return self._respond_about_artifacts(method, named)
            case _, ["mesh", "v1", "deployments", *named]:
                return self._respond_about_deployments(method, named)
            case "GET", ["v2", "models", "digits", *_]:
                return web.json_response(self.metadata)
            case "POST", ["v2", "models", "digits", *_] | ["inference", "digits"]:
                return self._answered()
            case _, ["v2", "models", name, *_]:
                return not_found(name)
        return web.json_response({"error": f"no such path {path}"}, status=404)

    def _respond_about_deployments(self, method: str, named: list[str]) -> web.Response:
        match method, named:
            case "GET", []:
                return web.json_response(self.deployed)
            case "GET", [_, "history"]:
                return web.json_response(self.history)
            case "GET", [_, "diff"]:
                return web.json_response(self.diff)
            case _, [name, *_] if name != "digits":
                return not_found(name, code="not_found")
            case "GET", [_]:
                return web.json_response(self.deployed[0])
            case "GET", [_, "rollout", "disagreements"]:
                return web.json_response(self.disagreements)
            case _, [_, "rollout"]:
                found = self.rollouts.pop(0) if len(self.rollouts) > 1 else self.rollouts[0]
                return web.json_response(found, status=404 if "code" in found else 200)
            case "PUT" | "PATCH" | "POST", _ if self.stale:
                refused = {"error": self.stale, "code": "stale_revision"}
                return web.json_response(refused, status=409)
            case "PUT" | "PATCH" | "POST", _:
                (*_, (_, _, wish)) = self.requests
                planned = {**self.edit, "model": None} if wish.get("dry_run") else self.edit
                return web.json_response({**self.edit, **planned})
        return web.json_response({"name": named[0], "revision": "3.0.a"})

    def _answered(self) -> web.Response:
        if isinstance(self.answer, bytes):
            return web.Response(body=self.answer, content_type=self.answer_type)
        return web.json_response(self.answer, headers={"Mesh-Route": ROUTE})

    def _respond_about_artifacts(self, method: str, named: list[str]) -> web.Response:
        match method, named:
            case "POST", []:
                made = {"name": "digits", "versions": self.artifacts}
                if self.warnings:
                    made["warnings"] = self.warnings
                return web.json_response(made, status=201)
            case "DELETE", [name, number]:
                return web.json_response({"name": name, "version": int(number)})
        return web.json_response(self.artifacts)

    def _respond_about_devices(self, method: str, path: str) -> web.Response:
        match method, path.strip("/").split("/")[2:]:
            case "GET", ["join-requests"]:
                return web.json_response(self.join_requests)
            case "POST", ["join-requests", "approve"]:
                (*_, (_, _, wish)) = self.requests
                admitted = {**self.join_requests[0], **wish, "invite_id": "0" * 16}
                del admitted["code"]
                return web.json_response(admitted)
            case "POST", ["doctor"]:
                (*_, (_, _, asked)) = self.requests
                subject = next(
                    (it for it in self.nodes if it["id"] == asked["peer"]), self.nodes[0]
                )
                checks = self.checks.get(subject["name"], [])
                return web.json_response(
                    {"subject": subject["name"], "id": subject["id"], "checks": checks}
                )
        return web.json_response({"error": f"no such path {path}"}, status=404)

    def sent(self, method: str, path: str) -> Any:
        """Return the body of the only request with this method and path."""
        (body,) = [it[2] for it in self.requests if it[:2] == (method, path)]
        return body


def not_found(name: str, code: str | None = None) -> web.Response:
    document = {"error": f"no node of this mesh has a model {name!r}"}
    return web.json_response(document | ({"code": code} if code else {}), status=404)


@pytest.fixture
def data_dir() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="mn-") as name:
        yield Path(name)


@pytest.fixture
def daemon(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeDaemon]:
    monkeypatch.setattr("meshnode.client.deploying.POLL_INTERVAL_S", 0.005)
    fake = FakeDaemon(data_dir)
    fake.start()
    yield fake
    fake.stop()


@pytest.fixture
def meshnode(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Run a command line against the data folder; `stdin` is what it reads."""
    monkeypatch.setenv("MESHNODE_DATA_DIR", str(data_dir))

    def run(*args: str, stdin: bytes | None = None) -> Result:
        result = CliRunner().invoke(app, list(args), input=stdin, prog_name="meshnode")
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return run
