"""Evictions, roles, use counts, new keys and changes through plain members, with real daemons."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import subprocess
import sys
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from meshnode.client.mesh import MeshClient
from meshnode.errors import Forbidden, InvalidRequest, MeshError
from tests.e2e.conftest import DIGIT_REQUEST, DIGITS, wait_until

if TYPE_CHECKING:
    from tests.e2e.conftest import Daemon, Mesh

pytestmark = pytest.mark.e2e


def command(daemon: Daemon, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command of the command line on a node's machine."""
    return subprocess.run(
        [sys.executable, "-m", "meshnode", *arguments, "--data-dir", str(daemon.data_dir)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def done(daemon: Daemon, *arguments: str) -> Any:
    """Run a command that must work; return its JSON."""
    ended = command(daemon, *arguments, "--json")
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


def members(daemon: Daemon) -> dict[str, dict[str, Any]]:
    """The members by name, as a node's trust has them."""
    rows = daemon.control.get("/mesh/v1/trust")["members"]
    return {row["name"]: row for row in rows}


def links(daemon: Daemon) -> set[str]:
    """Names of the nodes that it has a link to."""
    nodes = daemon.control.get("/mesh/v1/nodes")
    return {node["name"] for node in nodes if node["linked"] and not node["self"]}


def test_an_evicted_node_is_cut_off_at_once_and_comes_back_only_as_another(mesh: Mesh) -> None:
    alpha, beta, gamma = mesh.grow("alpha", "beta", "gamma")
    leftover = beta.invite()
    former = beta.status["id"]
    wait_until(lambda: links(gamma) == {"alpha", "beta"}, 10, "all are linked")
    beta.signal(signal.SIGSTOP)  # it cannot help with its own eviction
    begin = time.monotonic()
    evicted = done(alpha, "evict", "beta", "--reason", "it was stolen", "--yes")
    assert (evicted["node"], evicted["changed"]) == (former, True)
    told = time.monotonic()
    wait_until(lambda: links(alpha) == {"gamma"} and links(gamma) == {"alpha"}, 1, "cut off")
    assert time.monotonic() - told < 1
    assert told - begin < 10  # the command line's own start
    beta.signal(signal.SIGCONT)
    assert beta.process.wait(15) == 2
    assert "is no member of mesh" in beta.output
    assert "it was stolen" in beta.output

    again = mesh.start("beta")
    assert again.process.wait(20) == 2
    assert again.output.count("it was stolen") >= 2
    stranger = mesh.start("delta", leftover)
    assert stranger.process.wait(20) != 0
    assert not (stranger.data_dir / "mesh").exists()
    back = mesh.start("beta", gamma.invite()).wait_ready()
    assert back.status["id"] != former
    for node in (alpha, gamma, back):
        wait_until(partial(node.sees, 3), 15, f"{node.name} sees all")
    (row,) = alpha.control.get("/mesh/v1/trust")["revoked"]
    assert (row["id"], row["by_name"], row["reason"]) == (former, "alpha", "revoked")
    assert "it was stolen" in row["why"]


@pytest.mark.parametrize("way", ["invite", "code"])
def test_a_node_that_was_evicted_after_it_had_left_comes_back_as_another_by_one_command(
    mesh: Mesh, way: str
) -> None:
    alpha, beta = mesh.grow("alpha", "beta")
    former = beta.status["id"]
    assert command(beta, "leave").returncode == 0
    assert beta.process.wait(15) == 0
    wait_until(lambda: alpha.states()["beta"] == "left", 5, "the goodbye is heard")
    assert done(alpha, "evict", "beta", "--yes")["changed"]
    if way == "invite":
        beta = mesh.start("beta", alpha.invite())
    else:
        beta = mesh.start("beta", "--ask", alpha.status["mesh_address"])
        code = wait_until(
            lambda: re.search(r"meshnode approve (\d{6})", beta.output), 15, "the code is shown"
        )
        alpha.control.post("/mesh/v1/join-requests/approve", {"code": code[1]})
    beta.wait_ready()
    assert beta.status["id"] != former
    assert "as a new node" in beta.output
    wait_until(lambda: alpha.sees(2) and beta.sees(2), 15, "both see both")


def test_a_plain_member_changes_nothing_by_itself_and_everything_by_its_callers_key(
    mesh: Mesh,
) -> None:
    alpha = mesh.start("alpha", "--new", "--region", "us").wait_ready()
    lent = done(alpha, "invite", "--role", "member", "--region", "eu-west", "--uses", "1")
    beta = mesh.start("beta", lent["invite"]).wait_ready()
    assert (beta.status["role"], beta.status["region"]) == ("member", "eu-west")
    wait_until(lambda: alpha.sees(2) and beta.sees(2), 15, "both see both")
    late = mesh.start("gamma", lent["invite"])
    assert late.process.wait(20) != 0
    assert "refused" in late.output
    assert not (late.data_dir / "mesh").exists()

    refused = command(beta, "keys", "create", "mine")
    assert refused.returncode == 2
    assert "this node is a member of the mesh" in refused.stderr
    assert "(alpha)" in refused.stderr
    with pytest.raises(Forbidden):
        beta.invite()
    keys = {
        scope: done(alpha, "keys", "create", scope, "--scope", scope)["key"]
        for scope in ("deploy", "admin")
    }
    gateway = f"http://127.0.0.1:{beta.http_port}"
    wait_until(lambda: len(beta.control.get("/mesh/v1/keys")) == 2, 5, "the keys arrive")
    with MeshClient(gateway, api_key=keys["deploy"]) as deployer:
        deployer.deploy(DIGITS, name="digits", on=["alpha", "beta"], timeout_s=60)
        with pytest.raises(Forbidden):
            deployer.create_key("more")
    status, headers, _ = beta.request("POST", "/v2/models/digits/infer", DIGIT_REQUEST)
    assert (status, "node=" in headers["mesh-route"]) == (200, True)
    with MeshClient(gateway, api_key=keys["admin"]) as admin:
        assert admin.create_key("more", ttl_s=60).name == "more"
        assert admin.invite(ttl_s=60, role="member").role == "member"
        assert admin.revoke_key("more").state == "revoked"
        admin.undeploy("digits")
        with pytest.raises(InvalidRequest, match="cannot be evicted through its own gateway"):
            admin.evict("beta")
    assert "through beta" in alpha.output
    for daemon in (alpha, beta):
        assert not any(key in daemon.output for key in keys.values())
    assert done(alpha, "evict", "beta", "--yes")["changed"]
    assert beta.process.wait(15) == 2
    assert not done(alpha, "evict", "beta", "--yes")["changed"]


def test_a_second_admin_evicts_while_the_founder_is_away_who_hears_it_later(mesh: Mesh) -> None:
    alpha, beta, gamma = mesh.grow("alpha", "beta", "gamma")
    refused = command(beta, "evict", "gamma", "--yes")
    assert refused.returncode == 2
    assert "needs an admin's node" in refused.stderr
    made = done(beta, "keys", "create", "sneaky", "--scope", "admin")["key"]
    wait_until(lambda: len(alpha.control.get("/mesh/v1/keys")) == 1, 5, "the key arrives")
    with (
        MeshClient(f"http://127.0.0.1:{alpha.http_port}", api_key=made) as sneaky,
        pytest.raises(Forbidden, match="made on a node that is operator"),
    ):
        sneaky.evict("gamma")
    assert done(alpha, "trust", "role", "beta", "admin")["changed"]
    wait_until(lambda: members(beta)["beta"]["role"] == "admin", 5, "beta hears it")
    assert alpha.stop() == 0
    # It has just met them, and will look for them by this list.
    assert (alpha.data_dir / "state" / "members").exists()
    assert [each["name"] for each in done(beta, "evict", "gamma", "--yes")["evicted"]] == ["gamma"]
    assert gamma.process.wait(15) == 2
    alpha = mesh.start("alpha").wait_ready()
    wait_until(lambda: set(members(alpha)) == {"alpha", "beta"}, 10, "the founder hears it")
    assert done(beta, "trust", "seal", "--yes")["changed"]
    wait_until(lambda: alpha.control.get("/mesh/v1/trust")["sealed"], 5, "the seal is known")
    delta = mesh.start("delta", alpha.invite()).wait_ready()  # nothing needs the root key
    wait_until(lambda: delta.sees(3), 15, "delta sees all")


def test_a_node_with_a_new_key_keeps_its_place_and_the_old_key_is_out(mesh: Mesh) -> None:
    alpha, beta = mesh.grow("alpha", "beta")
    beta.deploy(DIGITS, name="digits", replicas=2)
    for node in (alpha, beta):
        wait_until(partial(node.has_replicas, 2), 30, "digits is served")
    for node, other, role in ((beta, alpha, "operator"), (alpha, beta, "admin")):
        before, ports = node.status["id"], (node.mesh_port, node.http_port)
        rotated = done(node, "trust", "rotate", "--yes")
        assert rotated["former"] == before

        def is_back(node: Daemon = node, new: str = rotated["node"]) -> bool:
            with contextlib.suppress(MeshError):
                return bool(node.status["id"] == new)
            return False

        wait_until(is_back, 15, f"{node.name} is back")
        assert node.process.poll() is None
        assert (node.mesh_port, node.http_port) == ports
        assert node.status["role"] == role
        wait_until(partial(other.sees, 2), 15, f"{other.name} sees the new one")
        row = members(other)[node.name]
        assert (row["id"], row["how"], row["role"]) == (rotated["node"], "rotated", role)
        assert any(
            each["id"] == before and each["successor"] == rotated["node"]
            for each in other.control.get("/mesh/v1/trust")["revoked"]
        )
    for node in (alpha, beta):
        wait_until(partial(node.has_replicas, 2), 30, "digits is served again")
    assert done(alpha, "evict", "beta", "--yes")["changed"]  # an admin still
    assert beta.process.wait(15) == 2
