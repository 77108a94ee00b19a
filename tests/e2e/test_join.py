"""Founding, joining, rejoining and leaving, with real daemons."""

from __future__ import annotations

import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from functools import partial
from typing import TYPE_CHECKING

import pytest

from tests.e2e.conftest import DIGITS, Daemon, alive, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.e2e.conftest import Mesh

pytestmark = pytest.mark.e2e


def test_a_founder_prints_the_line_to_type_and_that_line_joins(mesh: Mesh) -> None:
    alpha = mesh.start("alpha", "--new").wait_ready()
    line = wait_until(lambda: re.search(r"meshnode join (mesh1\S+)", alpha.output), 5, "the line")
    beta = mesh.start("beta", line[1]).wait_ready()
    wait_until(lambda: alpha.sees(2) and beta.sees(2), 15, "both see both")
    assert alpha.status["mesh"] == beta.status["mesh"]
    assert alpha.request("GET", "/readyz")[0] == 200


def test_a_plain_join_rejoins_after_a_crash_with_the_same_identity(mesh: Mesh) -> None:
    alpha, beta = mesh.grow("alpha", "beta")
    identity = beta.status["id"]
    beta.signal(signal.SIGKILL)
    beta.process.wait()
    again = mesh.start("beta").wait_ready()
    wait_until(lambda: alpha.sees(2) and again.sees(2), 15, "both see both again")
    assert again.status["id"] == identity


def test_a_whole_mesh_that_restarts_finds_itself_again(mesh: Mesh) -> None:
    nodes = mesh.grow("alpha", "beta", "gamma")
    ports = [node.mesh_port for node in nodes]
    for node in nodes:
        node.signal(signal.SIGKILL)
    for node in nodes:
        node.process.wait()
    again = [
        mesh.start(node.name, mesh=f"127.0.0.1:{port}")
        for node, port in zip(nodes, ports, strict=True)
    ]
    for node in again:
        node.wait_ready()
    for node in again:
        wait_until(partial(node.sees, 3), 20, f"{node.name} sees all again")


def test_a_fresh_invite_brings_a_member_back_whose_mesh_has_moved(mesh: Mesh) -> None:
    alpha, beta = mesh.grow("alpha", "beta")
    identity, port = beta.status["id"], alpha.mesh_port
    assert beta.stop() == 0
    assert alpha.stop() == 0
    with socket.create_server(("127.0.0.1", port)):  # the old address is another program's now
        alpha = mesh.start("alpha").wait_ready()
        assert alpha.mesh_port != port
        beta = mesh.start("beta", alpha.invite()).wait_ready()
        wait_until(lambda: alpha.sees(2) and beta.sees(2), 15, "both see both")
    assert beta.status["id"] == identity
    assert "is a member already; the invite's addresses are tried" in beta.output


def test_a_plain_rejoin_keeps_name_region_labels_addresses_and_models(mesh: Mesh) -> None:
    repository = mesh.folder / "repository" / "digits" / "1"
    repository.mkdir(parents=True)
    shutil.copy(DIGITS, repository / "model.onnx")
    alpha = mesh.start(
        "alpha", "--new", "--region", "eu-west", "--zone", "rack-7", "--label", "gpu=none",
        "--models", str(mesh.folder / "repository"),
    ).wait_ready()  # fmt: skip
    wait_until(lambda: alpha.has_replicas(1), 30, "the folder's model is served")
    kept = ("name", "region", "zone", "labels")
    (before,) = alpha.control.get("/mesh/v1/nodes")
    alpha.stop()
    assert '"listen": "127.0.0.1:0"' in (alpha.data_dir / "options").read_text()
    again = plain_join(mesh, alpha)
    wait_until(lambda: again.has_replicas(1), 30, "it is served again")
    (after,) = again.control.get("/mesh/v1/nodes")
    assert [after[key] for key in kept] == [before[key] for key in kept]
    assert after["region"] == "eu-west"
    assert after["labels"] == {"gpu": "none"}
    again.stop()
    moved = plain_join(mesh, again, "--region", "us")
    (node,) = moved.control.get("/mesh/v1/nodes")
    assert (node["region"], node["name"]) == ("us", "alpha")


def plain_join(mesh: Mesh, former: Daemon, *arguments: str) -> Daemon:
    """Start a daemon again with nothing but its data folder, as after a reboot."""
    command = [sys.executable, "-m", "meshnode", "join", "--no-mdns", *arguments]
    with former.log.open("ab") as output:
        process = subprocess.Popen(
            [*command, "--data-dir", str(former.data_dir)],
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
        )
    daemon = Daemon(former.name, former.data_dir, process, former.log)
    mesh.daemons.append(daemon)
    return daemon.wait_ready()


def test_an_invite_of_a_node_that_was_invited_works_too(mesh: Mesh) -> None:
    alpha, beta = mesh.grow("alpha", "beta")
    gamma = mesh.start("gamma", beta.invite()).wait_ready()
    for node in (alpha, beta, gamma):
        wait_until(partial(node.sees, 3), 15, f"{node.name} sees all")


def test_an_invite_is_refused_on_a_folder_of_another_mesh_and_the_mesh_it_has_is_kept(
    mesh: Mesh,
) -> None:
    alpha = mesh.start("alpha", "--new").wait_ready()
    stranger = mesh.start("stranger", "--new").wait_ready()
    invite = alpha.invite()
    before = stranger.status["mesh"]
    assert stranger.stop() == 0
    refused = mesh.start("stranger", invite)
    assert refused.process.wait(20) == 2
    assert "belongs to mesh" in refused.output
    assert "--data-dir" in refused.output
    assert mesh.start("stranger").wait_ready().status["mesh"] == before


def test_new_is_refused_on_a_folder_that_has_a_mesh(mesh: Mesh) -> None:
    alpha = mesh.start("alpha", "--new").wait_ready()
    alpha.stop()
    again = mesh.start("alpha", "--new")
    assert again.process.wait(20) == 2
    assert "already" in again.output


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda text: text[:-7], "damaged"),
        (lambda text: text[:40] + ("A" if text[40] != "A" else "B") + text[41:], "damaged"),
        (lambda _: "mesh1abc", "damaged"),
    ],
)
def test_a_damaged_invite_says_so_and_leaves_nothing(
    mesh: Mesh, damage: Callable[[str], str], expected: str
) -> None:
    alpha = mesh.start("alpha", "--new").wait_ready()
    beta = mesh.start("beta", damage(alpha.invite()))
    assert beta.process.wait(20) != 0
    assert expected in beta.output
    assert "Traceback" not in beta.output
    assert not (beta.data_dir / "mesh").exists()


def test_an_expired_invite_is_refused_with_when(mesh: Mesh) -> None:
    alpha = mesh.start("alpha", "--new").wait_ready()
    invite = alpha.invite(ttl_s=1)
    time.sleep(2.1)  # invites count in whole seconds of the wall clock
    beta = mesh.start("beta", invite)
    assert beta.process.wait(20) != 0
    assert "expired at" in beta.output
    assert "meshnode invite" in beta.output


def test_an_unreachable_inviter_is_named_with_what_to_check(mesh: Mesh) -> None:
    alpha = mesh.start("alpha", "--new").wait_ready()
    invite = alpha.invite()
    alpha.stop()
    beta = mesh.start("beta", invite)
    assert beta.process.wait(30) == 1
    assert "could be reached" in beta.output
    assert "port" in beta.output


def test_a_second_daemon_on_a_folder_and_a_port_in_use_are_refused(mesh: Mesh) -> None:
    alpha = mesh.start("alpha", "--new").wait_ready()
    twin = mesh.start("alpha")
    assert twin.process.wait(20) == 2
    assert "another meshnode daemon is running" in twin.output
    taken = mesh.start("other", "--new", mesh=f"127.0.0.1:{alpha.mesh_port}")
    assert taken.process.wait(20) == 2
    assert "in use" in taken.output
    assert "--listen" in taken.output
    assert alpha.sees(1)


def test_a_node_without_a_gateway_listens_for_no_http_and_still_serves_the_mesh(mesh: Mesh) -> None:
    alpha = mesh.start("alpha", "--new").wait_ready()
    beta = mesh.start("beta", alpha.invite(), "--no-gateway").wait_ready()
    wait_until(lambda: alpha.sees(2), 15, "both are there")
    assert beta.status["http"] is None
    nodes = {node["name"]: node for node in alpha.request("GET", "/mesh/v1/nodes")[2]}
    assert nodes["beta"]["http"] is None
    assert nodes["alpha"]["http"] == alpha.status["http"]


def test_a_data_folder_with_a_long_path_still_has_a_control_channel(mesh: Mesh) -> None:
    mesh.folder = mesh.folder / ("long-" * 24)
    mesh.folder.mkdir()
    alpha = mesh.start("alpha", "--new").wait_ready()
    assert alpha.status["name"] == "alpha"
    assert alpha.stop() == 0


def test_sigterm_says_goodbye_keeps_the_identity_and_frees_the_ports(mesh: Mesh) -> None:
    alpha, beta = mesh.grow("alpha", "beta")
    port, identity = beta.mesh_port, beta.status["id"]
    assert beta.stop() == 0
    wait_until(lambda: alpha.states()["beta"] == "left", 5, "the goodbye is heard")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", port))
    again = mesh.start("beta", mesh=f"127.0.0.1:{port}").wait_ready()
    wait_until(lambda: alpha.sees(2), 15, "it is back")
    assert again.status["id"] == identity


def test_a_second_signal_exits_at_once(mesh: Mesh) -> None:
    alpha = mesh.start("alpha", "--new").wait_ready()
    # A client that never finishes its request would hold a polite exit back for a while.
    with socket.create_connection(("127.0.0.1", alpha.http_port)) as connection:
        connection.sendall(
            b"POST /v2/models/x/infer HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n"
        )
        alpha.signal(signal.SIGINT)
        wait_until(lambda: "again to exit at once" in alpha.output, 10, "the first is heard")
        alpha.signal(signal.SIGINT)
        assert alpha.process.wait(10) == 128 + signal.SIGINT  # a polite exit ends with 0
    assert not alive(alpha.process.pid)


def test_without_mdns_an_empty_folder_founds_a_mesh(mesh: Mesh) -> None:
    alpha = mesh.start("alpha").wait_ready()
    assert alpha.sees(1)
    assert "meshnode join mesh1" in alpha.output


def test_the_identity_files_are_private(mesh: Mesh) -> None:
    alpha = mesh.start("alpha", "--new").wait_ready()
    for name in ("identity.key", "mesh", "control.sock"):
        assert (alpha.data_dir / name).stat().st_mode & 0o077 == 0, name
    assert alpha.data_dir.stat().st_mode & 0o077 == 0


def test_a_damaged_identity_is_reported_and_not_replaced(mesh: Mesh) -> None:
    alpha = mesh.start("alpha", "--new").wait_ready()
    alpha.stop()
    key = alpha.data_dir / "identity.key"
    key.write_bytes(b"short")
    again = mesh.start("alpha")
    assert again.process.wait(20) == 2
    assert "damaged" in again.output
    assert key.read_bytes() == b"short"


def test_python_dash_m_and_version_work() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "meshnode", "--version"], capture_output=True, text=True, check=True
    )
    assert re.fullmatch(r"meshnode \d+\.\d+\.\d+\n", done.stdout)


def test_a_device_without_an_invite_finds_the_mesh_on_the_local_network(mesh: Mesh) -> None:
    alpha = mesh.start("alpha", "--new", mdns=True).wait_ready()
    time.sleep(2.5)  # mDNS asks whether the name is free before it announces it
    beta = mesh.start("beta", mdns=True)
    assert beta.process.wait(20) == 2
    assert f"Found mesh {alpha.status['mesh']} with alpha (127.0.0.1:" in beta.output
    assert "meshnode invite" in beta.output
    assert not (beta.data_dir / "mesh").exists()
    beta = mesh.start("beta", alpha.invite(), mdns=True).wait_ready()
    # It answers as soon as it is admitted; the records of the others come over its first link after that.
    wait_until(lambda: alpha.sees(2) and beta.sees(2), 15, "both see both")


def test_a_place_that_cannot_be_written_is_named(mesh: Mesh) -> None:
    file = mesh.folder / "file"
    file.write_bytes(b"")
    command = [sys.executable, "-m", "meshnode", "join", "--new", "--no-mdns", "--no-gateway"]
    done = subprocess.run(
        [*command, "--data-dir", str(file / "data"), "--listen", "127.0.0.1:0"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "cannot use the data folder" in done.stderr
    assert "Traceback" not in done.stderr
