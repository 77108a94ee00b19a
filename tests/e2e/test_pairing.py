"""Joining without an invite, with real daemons: by address, and on a terminal."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Self

import pytest

from tests.e2e.conftest import Daemon, wait_until

if TYPE_CHECKING:
    from tests.e2e.conftest import Mesh

pytestmark = pytest.mark.e2e

CODE = re.compile(r"meshnode approve (\d{6})")


def meshnode(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "meshnode", *arguments], capture_output=True, text=True, check=False
    )


def code_in_log(daemon: Daemon) -> str:
    return str(wait_until(lambda: CODE.search(daemon.output), 20, "the code is logged")[1])


def test_a_device_without_a_terminal_logs_its_code_and_is_admitted_by_a_command(
    mesh: Mesh,
) -> None:
    alpha = mesh.start("alpha", "--new").wait_ready()
    camera = mesh.start("camera", "--ask", alpha.status["mesh_address"])
    code = code_in_log(camera)
    here = ("--data-dir", str(alpha.data_dir))
    listed = meshnode("approve", *here).stdout
    assert "camera" in listed
    assert code not in listed
    wrong = meshnode("approve", f"{(int(code) + 1) % 10**6:06d}", *here)
    assert wrong.returncode == 2
    assert "somebody may stand between" in wrong.stderr
    assert not (camera.data_dir / "mesh").exists()
    done = meshnode("approve", code, "--role", "member", "--region", "attic", "--json", *here)
    assert done.returncode == 0
    admitted = json.loads(done.stdout)
    camera.wait_ready()
    wait_until(lambda: alpha.sees(2) and camera.sees(2), 15, "both see both")
    assert camera.status["id"] == admitted["node"]
    assert (camera.status["role"], camera.status["region"]) == ("member", "attic")
    assert "admitted by 127.0.0.1:" in camera.output
    assert "`meshnode leave` undoes this" in camera.output
    assert meshnode("approve", code, *here).returncode == 2


def test_an_admin_key_approves_from_elsewhere_and_others_do_not(mesh: Mesh) -> None:
    alpha = mesh.start("alpha", "--new").wait_ready()
    keys = {
        scope: alpha.control.post("/mesh/v1/keys", {"name": scope, "scopes": [scope]})["key"]
        for scope in ("deploy", "admin")
    }
    camera = mesh.start("camera", "--ask", alpha.status["mesh_address"])
    wish = {"code": code_in_log(camera)}
    path = "/mesh/v1/join-requests/approve"
    assert alpha.request("POST", path, wish)[0] == 401
    for scope, status in (("deploy", 403), ("admin", 200)):
        bearer = {"Authorization": f"Bearer {keys[scope]}"}
        assert alpha.request("POST", path, wish, bearer)[0] == status
    camera.wait_ready()
    wait_until(lambda: alpha.sees(2), 15, "it is there")
    _, _, metrics = alpha.request("GET", "/metrics")
    counted = metrics.decode()
    assert 'meshnode_join_requests_total{event="asked"} 1' in counted
    assert 'meshnode_join_requests_total{event="approved"} 1' in counted
    assert "meshnode_join_requests_waiting 0" in counted


def test_an_admitted_device_is_a_member_like_any_other(mesh: Mesh) -> None:
    """It comes back by itself, also with the same command line, and may admit the next one."""
    alpha = mesh.start("alpha", "--new").wait_ready()
    where = alpha.status["mesh_address"]
    beta = mesh.start("beta", "--ask", where)
    alpha.control.post("/mesh/v1/join-requests/approve", {"code": code_in_log(beta)})
    identity = beta.wait_ready().status["id"]
    beta.signal(signal.SIGKILL)
    beta.process.wait()
    again = mesh.start("beta", "--ask", where).wait_ready()
    assert again.status["id"] == identity
    gamma = mesh.start("gamma", "--ask", again.status["mesh_address"])
    again.control.post("/mesh/v1/join-requests/approve", {"code": code_in_log(gamma)})
    gamma.wait_ready()
    wait_until(lambda: alpha.sees(3) and gamma.sees(3), 15, "all see all")


def test_in_the_background_the_code_is_seen_where_it_was_started(mesh: Mesh) -> None:
    alpha = mesh.start("alpha", "--new").wait_ready()
    beta = mesh.start("beta", "--detach", "--ask", alpha.status["mesh_address"])
    alpha.control.post("/mesh/v1/join-requests/approve", {"code": code_in_log(beta)})
    assert beta.process.wait(20) == 0
    assert beta.sees(2)
    assert meshnode("stop", "--data-dir", str(beta.data_dir)).returncode == 0


class Terminal:
    """A `meshnode join` on a pseudo-terminal, and what a person sees and types there."""

    def __init__(self, mesh: Mesh, name: str) -> None:
        import pty  # not there on Windows

        self.data_dir = mesh.folder / name
        command = [
            sys.executable, "-m", "meshnode", "join", "--name", name, "--data-dir",
            str(self.data_dir), "--listen", "127.0.0.1:0", "--no-gateway", "--mdns-interface",
            "127.0.0.1",
        ]  # fmt: skip
        person, program = pty.openpty()
        self.process = subprocess.Popen(
            command, stdin=program, stdout=program, stderr=program, start_new_session=True
        )
        os.close(program)
        self._person = person
        self.screen = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._person)

    def type(self, text: str) -> None:
        os.write(self._person, text.encode())

    def sees(self, pattern: str, limit_s: float = 20.0) -> re.Match[str]:
        deadline = time.monotonic() + limit_s
        while (found := re.search(pattern, self.screen)) is None:
            if time.monotonic() > deadline:
                pytest.fail(f"{pattern!r} is not on the screen:\n{self.screen}")
            if select.select([self._person], [], [], 0.1)[0]:
                try:
                    self.screen += os.read(self._person, 4096).decode(errors="replace")
                except OSError:  # the program has closed it
                    deadline = 0.0
        return found


needs_terminal = pytest.mark.skipif(sys.platform == "win32", reason="there is no pseudo-terminal")


@pytest.fixture
def announced(mesh: Mesh) -> Daemon:
    alpha = mesh.start("alpha", "--new", mdns=True).wait_ready()
    time.sleep(2.5)  # mDNS asks whether the name is free before it announces it
    return alpha


@needs_terminal
def test_on_a_terminal_one_chooses_a_mesh_types_the_code_and_is_in(
    mesh: Mesh, announced: Daemon
) -> None:
    alpha = announced
    with Terminal(mesh, "beta") as beta:
        beta.sees(rf"1  ask to join {alpha.status['mesh']} with alpha \(127\.0\.0\.1:\d+\)")
        beta.sees(r"2  found a new mesh\s+Which one\? \[1-2\] ")
        beta.type("what?\n")
        beta.sees("Type a number from 1 to 2")
        beta.type("1\n")
        code = beta.sees(r"The code of this device is  (\d{3} \d{3})")[1].replace(" ", "")
        beta.sees(rf"On alpha \(127\.0\.0\.1\), type within 5 min:\s+meshnode approve {code}")
        assert meshnode("approve", code, "--data-dir", str(alpha.data_dir)).returncode == 0
        beta.sees(
            rf"Joined mesh {alpha.status['mesh']}, admitted by alpha \({alpha.status['id']}\)"
        )
        beta.sees("node beta of mesh")
        wait_until(lambda: alpha.sees(2), 15, "it is there")
        beta.process.send_signal(signal.SIGINT)
        assert beta.process.wait(20) == 0


@needs_terminal
def test_giving_up_on_a_terminal_leaves_nothing_behind(mesh: Mesh, announced: Daemon) -> None:
    """In the menu, while the code is shown, and by closing the input."""
    alpha = announced
    with Terminal(mesh, "beta") as beta:
        beta.sees(r"Which one\?")
        beta.process.send_signal(signal.SIGINT)
        assert beta.process.wait(20) == 130
    with Terminal(mesh, "beta") as beta:
        beta.sees(r"Which one\?")
        beta.type("alpha\n")
        beta.sees(CODE.pattern)
        assert len(alpha.control.get("/mesh/v1/join-requests")) == 1
        beta.process.send_signal(signal.SIGINT)
        assert beta.process.wait(20) == 130
        wait_until(lambda: not alpha.control.get("/mesh/v1/join-requests"), 5, "it is forgotten")
    with Terminal(mesh, "beta") as beta:
        beta.sees(r"Which one\?")
        beta.type("\x04")
        assert beta.process.wait(20) == 2
        assert "Traceback" not in beta.screen
        assert not (beta.data_dir / "mesh").exists()
