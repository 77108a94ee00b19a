"""Gateways that other machines reach: real daemons, the command line, a real network address."""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

from meshnode.hardware.addresses import reachable_hosts
from meshnode.options import is_loopback
from tests.e2e.conftest import DIGIT_REQUEST, DIGITS, Daemon, wait_until

if TYPE_CHECKING:
    from tests.e2e.conftest import Mesh

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def host() -> str:
    """An address of this machine that is not loopback: whoever calls it comes from outside."""
    found = [each for each in reachable_hosts("0.0.0.0") if not is_loopback(each)]
    if not found:
        pytest.skip("this machine has loopback only")
    return found[0]


def ask(
    host: str, port: int, method: str, path: str, body: bytes = b"", /, **headers: str
) -> tuple[int, Any]:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    line = http.client.HTTPConnection(host, port, timeout=30)
    try:
        line.request(method, path, body, named)
        response = line.getresponse()
        return response.status, json.loads(response.read())
    finally:
        line.close()


def command(daemon: Daemon, *arguments: str) -> str:
    """Run a command of the command line on a node's machine; return what it prints."""
    done = subprocess.run(
        [sys.executable, "-m", "meshnode", *arguments, "--data-dir", str(daemon.data_dir)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_key_of_one_node_opens_the_gateway_of_another_until_it_is_revoked(
    mesh: Mesh, host: str
) -> None:
    alpha = mesh.start("alpha", "--new").wait_ready()
    beta = mesh.start("beta", alpha.invite(), http="0.0.0.0:0").wait_ready()
    port = beta.http_port
    wait_until(lambda: alpha.sees(2), 15, "both see each other")
    wait_until(
        lambda: f"http://{host}:{port}" in command(alpha, "nodes"),
        15,
        "the gateway's address comes",
    )
    status, answer = ask(host, port, "GET", "/v2/models/digits")
    assert (status, set(answer)) == (401, {"error"})
    assert "meshnode keys create NAME --scope infer" in answer["error"]
    assert ask("127.0.0.1", port, "GET", "/v2")[0] == 200

    key = json.loads(command(alpha, "keys", "create", "phone", "--json"))["key"]
    bearer = {"Authorization": f"Bearer {key}"}
    wait_until(lambda: ask(host, port, "GET", "/v2", b"", **bearer)[0] == 200, 5, "the key arrives")
    assert ask(host, port, "GET", "/v2", X_API_Key=key)[0] == 200
    assert ask(host, port, "POST", "/mesh/v1/deployments", b'{"path":"/"}', **bearer)[0] == 403

    alpha.deploy(DIGITS, name="digits", replicas=2)
    wait_until(lambda: beta.has_replicas(2), 30, "digits is served")
    body = json.dumps(DIGIT_REQUEST).encode()
    assert ask(host, port, "POST", "/v2/models/digits/infer", body, **bearer)[0] == 200
    assert ask(host, port, "POST", "/v2/models/digits/infer", body)[0] == 401

    assert "is revoked" in command(alpha, "keys", "revoke", "phone")
    begin = time.monotonic()
    wait_until(lambda: ask(host, port, "GET", "/v2", b"", **bearer)[0] == 401, 5, "it is refused")
    assert time.monotonic() - begin < 2
    assert "revoked at" in ask(host, port, "GET", "/v2", b"", **bearer)[1]["error"]
    assert "revoked" in command(beta, "keys", "list")
    for daemon in (alpha, beta):
        assert key not in daemon.output
        assert key.split("_")[2] not in daemon.output
    assert "has no TLS" in beta.output


def test_a_gateway_behind_a_proxy_answers_to_its_name_with_keys_alone(mesh: Mesh) -> None:
    alpha = mesh.start("alpha", "--new", "--allow-host", "mesh.example.com").wait_ready()
    port = alpha.http_port
    key = json.loads(command(alpha, "keys", "create", "ci", "--scope", "admin", "--json"))["key"]
    bearer = {"Authorization": f"Bearer {key}", "Origin": "https://mesh.example.com"}
    here = "127.0.0.1"
    assert ask(here, port, "GET", "/v2", b"", Host="mesh.example.com")[0] == 401
    assert ask(here, port, "GET", "/v2", b"", Host="mesh.example.com", **bearer)[0] == 200
    assert ask(here, port, "GET", "/v2", b"", X_Forwarded_For="203.0.113.9")[0] == 401
    status, answer = ask(here, port, "GET", "/v2")  # as a proxy that passes on nothing
    assert (status, "--allow-host" in answer["error"]) == (401, True)
    assert (
        ask(here, port, "GET", "/v2", b"", **bearer | {"Origin": f"http://{here}:{port}"})[0] == 200
    )
    assert ask(here, port, "GET", "/v2", b"", Host="evil.example", **bearer)[0] == 403
    assert ask(here, port, "POST", "/mesh/v1/invites", b"", **bearer)[0] == 200
    assert ask(here, port, "POST", "/mesh/v1/shutdown", b"", **bearer)[0] == 403


def test_with_require_key_nobody_is_let_in_for_where_they_come_from(mesh: Mesh) -> None:
    """A proxy that passes on nothing, such as nginx as it is installed, looks like this machine."""
    alpha = mesh.start("alpha", "--new", "--require-key").wait_ready()
    port, here = alpha.http_port, "127.0.0.1"
    status, answer = ask(here, port, "GET", "/v2")
    assert status == 401
    assert "programs on its own machine included" in answer["error"]
    assert "meshnode keys create NAME --scope infer" in answer["error"]
    key = json.loads(command(alpha, "keys", "create", "local", "--json"))["key"]
    bearer = {"Authorization": f"Bearer {key}"}
    assert ask(here, port, "GET", "/v2", b"", **bearer)[0] == 200
    assert "alpha" in command(alpha, "nodes")  # over the owner's channel, without a key
    wrong = {"Authorization": f"Bearer {key[:-1]}"}
    assert ask(here, port, "GET", "/v2", b"", **wrong)[0] == 401
    wait_until(lambda: "was refused: that is not an API key" in alpha.output, 5, "it is logged")
    assert key[:-1] not in alpha.output
