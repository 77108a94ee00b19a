"""Living with a daemon: in the background, behind a port mapping, on IPv6, and when the disk is full."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import pickle
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from meshnode.cli.settings import load_settings
from meshnode.client.mesh import MeshClient
from meshnode.errors import ConfigError, MeshError
from meshnode.folderlock import holder
from meshnode.net.sockets import has_ipv6
from tests.e2e.conftest import DIGIT_REQUEST, DIGITS, alive, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.e2e.conftest import Mesh

pytestmark = pytest.mark.e2e

QUIET = ("--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--no-mdns")
NOBODY = 65534


class Commands:
    """Runs commands as a person does, each on a data folder by its name."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(
        self, name: str, *args: str, stdin: str = "", env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "meshnode", *args, "--data-dir", str(self.folder / name)],
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
            env={**os.environ, **(env or {})},
        )

    def control(self, name: str) -> MeshClient:
        """The daemon of a folder."""
        return MeshClient.local(self.folder / name)

    def pid(self, name: str) -> int | None:
        """The daemon that runs on a folder."""
        running = holder(self.folder / name)
        return None if running is None else running.pid

    def close(self) -> None:
        for path in self.folder.iterdir():
            with contextlib.suppress(ConfigError, ProcessLookupError):
                if path.is_dir() and (pid := self.pid(path.name)):
                    os.kill(pid, signal.SIGKILL)


@pytest.fixture
def commands(tmp_path: Path) -> Iterator[Commands]:
    made = Commands(tmp_path)
    yield made
    made.close()


def test_a_node_lives_in_the_background_and_its_invite_shows_nowhere(commands: Commands) -> None:
    started = commands("alpha", "join", "--detach", "--new", "--name", "alpha", *QUIET)
    assert started.returncode == 0, started.stderr
    assert "meshnode join mesh1" in started.stdout
    pid = commands.pid("alpha")
    assert pid is not None
    assert f"runs in the background (pid {pid})" in started.stderr
    assert os.getsid(pid) == pid
    status = json.loads(commands("alpha", "status", "--json").stdout)
    assert (status["pid"], status["state"], status["serving"]) == (pid, "running", 0)
    assert status["data_dir"] == str(commands.folder / "alpha")
    for again in (commands("alpha", "join"), commands("alpha", "join", "--detach")):
        assert again.returncode == 2
        assert f"(pid {pid}); see it with `meshnode status`" in again.stderr

    invite = commands.control("alpha").post("/mesh/v1/invites", {})["invite"]
    piped = commands("beta", "join", "-", "--detach", *QUIET, stdin=f"\n {invite} \n")
    assert piped.returncode == 0, piped.stderr
    assert "meshnode join mesh1" not in piped.stdout
    beta = commands.pid("beta")
    for name in ("cmdline", "environ") if Path("/proc").exists() else ():
        assert b"mesh1" not in Path(f"/proc/{beta}/{name}").read_bytes()
    assert "founded a new mesh" in commands("alpha", "logs").stdout

    identity = commands.control("beta").get("/mesh/v1/status")["id"]
    left = commands("beta", "leave")
    assert (left.returncode, left.stdout.splitlines()[0]) == (0, "The other nodes have been told.")
    nodes = commands.control("alpha").get("/mesh/v1/nodes")
    assert [node["state"] for node in nodes] == ["alive", "left"]
    assert not (commands.folder / "beta" / "mesh").exists()
    file = commands.folder / "invite"
    assert commands("alpha", "invite", "--output", str(file)).returncode == 0
    back = commands("beta", "join", "--invite-file", str(file), "--detach", *QUIET)
    assert back.returncode == 0, back.stderr
    assert commands.control("beta").get("/mesh/v1/status")["id"] == identity

    for name in ("beta", "alpha"):
        assert commands(name, "stop").returncode == 0
        assert commands.pid(name) is None
    wait_until(lambda: not alive(pid), 10, "the process has ended")


def test_a_start_in_the_background_that_fails_says_why_and_leaves_nothing(
    commands: Commands,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        failed = commands(
            "alpha", "join", "--detach", "--new", "--no-mdns", "--listen", f"127.0.0.1:{port}"
        )
    assert failed.returncode == 2
    assert f"error: port {port} of 127.0.0.1 is in use" in failed.stderr
    assert failed.stdout == ""
    assert commands.pid("alpha") is None


def test_ctrl_c_while_it_starts_in_the_background_ends_it_again(commands: Commands) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes the connection, says nothing
        alpha = commands("alpha", "join", "--detach", "--new", "--no-mdns", "--no-gateway",
                         "--listen", "127.0.0.1:0", "--advertise",
                         f"127.0.0.1:{silent.getsockname()[1]}")  # fmt: skip
        assert alpha.returncode == 0, alpha.stderr
        invite = commands.control("alpha").post("/mesh/v1/invites", {})["invite"]
        command = [sys.executable, "-m", "meshnode", "join", invite, "--detach", *QUIET]
        starter = subprocess.Popen(
            [*command, "--data-dir", str(commands.folder / "beta")],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        silent.settimeout(20)
        connection, _ = silent.accept()
        with connection:
            pid = wait_until(lambda: commands.pid("beta"), 10, "it runs")
            starter.send_signal(signal.SIGINT)
            _, errors = starter.communicate(timeout=20)
    assert starter.returncode == 130
    assert "stopping it again" in errors
    assert "Traceback" not in errors
    wait_until(lambda: not alive(pid), 10, "the process has ended")


@pytest.mark.parametrize("detached", [True, False])
def test_a_daemon_outlives_whoever_started_it(commands: Commands, detached: bool) -> None:
    """A closed session, or `kill -9` of the launcher: nobody reads what the daemon prints."""
    data_dir = commands.folder / "alpha"
    reading, writing = os.pipe()
    os.close(reading)
    command = [
        sys.executable,
        "-m",
        "meshnode",
        "join",
        "--new",
        *QUIET,
        "--data-dir",
        str(data_dir),
    ]
    given = b""
    if detached:
        command = [sys.executable, "-P", "-m", "meshnode.cli.background", str(data_dir)]
        loaded = load_settings({"listen": "127.0.0.1:0", "http": "off", "mdns": False},
                               data_dir=str(data_dir))  # fmt: skip
        options = loaded.settings.options(data_dir=str(data_dir), invite=None, new=True)
        given = pickle.dumps(options)
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=writing, stderr=writing)
    os.close(writing)
    assert process.stdin is not None
    with process.stdin as pipe:
        pipe.write(given)
    try:

        def answers() -> bool:
            assert process.poll() is None, commands("alpha", "logs").stdout
            with contextlib.suppress(MeshError):
                return bool(commands.control("alpha").get("/mesh/v1/status"))
            return False

        wait_until(answers, 30, "it answers")
        assert commands("alpha", "stop").returncode == 0
        assert process.wait(20) == 0
        assert "defect" not in commands("alpha", "logs").stdout
    finally:
        process.kill()
        process.wait()


# Behind a port mapping


class PortMapping:
    """Forwards one port to another, TCP and UDP, as a router or a container's proxy does."""

    def __init__(self, target: int) -> None:
        self._target = ("127.0.0.1", target)
        self._tcp = socket.create_server(("127.0.0.1", 0))
        self.port = self._tcp.getsockname()[1]
        self._udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._udp.bind(("127.0.0.1", self.port))
        self._stop = threading.Event()
        self._pairs: dict[socket.socket, socket.socket] = {}
        self._clients: dict[tuple[str, int], socket.socket] = {}
        self.datagrams = 0
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        self._thread.join(10)
        for each in {self._tcp, self._udp, *self._pairs, *self._clients.values()}:
            each.close()

    def _run(self) -> None:
        while not self._stop.is_set():
            watched = [self._tcp, self._udp, *self._pairs, *self._clients.values()]
            for ready in select.select(watched, [], [], 0.05)[0]:
                if ready is self._tcp:
                    accepted, _ = self._tcp.accept()
                    with contextlib.suppress(OSError):
                        far = socket.create_connection(self._target, 5)
                        self._pairs |= {accepted: far, far: accepted}
                elif ready is self._udp:
                    data, client = self._udp.recvfrom(65_535)
                    self.datagrams += 1
                    if client not in self._clients:
                        self._clients[client] = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
                        self._clients[client].connect(self._target)
                    self._clients[client].send(data)
                elif ready in self._pairs:
                    self._pass_on(ready)
                else:
                    for client, line in self._clients.items():
                        if line is ready:
                            self._udp.sendto(line.recv(65_535), client)

    def _pass_on(self, near: socket.socket) -> None:
        far = self._pairs[near]
        with contextlib.suppress(OSError):
            if data := near.recv(65_535):
                far.sendall(data)
                return
        for each in (near, far):
            self._pairs.pop(each, None)
            each.close()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def test_a_node_behind_a_port_mapping_is_joined_and_stays_alive(mesh: Mesh) -> None:
    inside = free_port()
    mapping = PortMapping(inside)
    try:
        outside = f"127.0.0.1:{mapping.port}"
        alpha = mesh.start("alpha", "--new", "--advertise", outside, mesh=f"127.0.0.1:{inside}")
        alpha.wait_ready()
        beta = mesh.start("beta", alpha.invite()).wait_ready()
        wait_until(lambda: alpha.sees(2) and beta.sees(2), 15, "both see both")
        seen = {node["name"]: node["mesh"] for node in beta.control.get("/mesh/v1/nodes")}
        assert seen["alpha"] == outside
        wait_until(lambda: mapping.datagrams > 3, 15, "datagrams take the same way")
        time.sleep(2.0)  # two rounds of probes
        assert beta.states() == {"alpha": "alive", "beta": "alive"}
    finally:
        mapping.close()


def test_an_address_that_leads_others_to_themselves_is_refused(commands: Commands) -> None:
    refused = commands("alpha", "join", "--new", "--no-mdns", "--listen", "0.0.0.0:0",
                       "--advertise", "127.0.0.1:8471")  # fmt: skip
    assert refused.returncode == 2
    assert "--advertise 127.0.0.1:8471: on another device" in refused.stderr


# IPv6


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
def test_two_nodes_with_ipv6_alone_join_deploy_and_infer(mesh: Mesh) -> None:
    anywhere = "[::1]:0"
    alpha = mesh.start("alpha", "--new", mesh=anywhere, http=anywhere).wait_ready()
    beta = mesh.start("beta", alpha.invite(), mesh=anywhere, http=anywhere).wait_ready()
    wait_until(lambda: alpha.sees(2) and beta.sees(2), 15, "both see both")
    alpha.deploy(DIGITS, name="digits", replicas=1, on=["alpha"])
    wait_until(partial(beta.has_replicas, 1), 30, "digits is served")
    for node in beta.control.get("/mesh/v1/nodes"):
        assert node["mesh"].startswith("[::1]:")
        assert node["http"].startswith("http://[::1]:")
    for host in ("[::1]", "localhost"):
        connection = http.client.HTTPConnection("::1", beta.http_port, timeout=30)
        body = json.dumps(DIGIT_REQUEST)
        headers = {"Host": f"{host}:{beta.http_port}"}
        connection.request("POST", "/v2/models/digits/infer", body, headers)
        response = connection.getresponse()
        assert (response.status, response.read()[:1]) == (200, b"{")
        connection.close()
    shown = subprocess.run(
        [sys.executable, "-m", "meshnode", "nodes", "--data-dir", str(alpha.data_dir)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"http://[::1]:{alpha.http_port}" in shown.stdout


# Faults


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of half a megabyte; needs root."""
    place = tmp_path / "disk"
    place.mkdir()
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("only root on Linux can mount a small file system")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(place)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode != 0:
        pytest.skip(f"nothing can be mounted here: {mounted.stderr.strip()}")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=False)


def fill(disk: Path) -> Path:
    """Leave no byte free."""
    file = disk / "filler"
    with file.open("ab", buffering=0) as stream, contextlib.suppress(OSError):
        while True:
            stream.write(bytes(4096))
    return file


def test_a_full_disk_is_named_at_the_start_and_survived_later(
    small_disk: Path, mesh: Mesh, commands: Commands
) -> None:
    filler = fill(small_disk)
    for detach in ((), ("--detach",)):
        refused = commands("disk/alpha", "join", "--new", *QUIET, *detach)
        assert refused.returncode == 2
        assert "No space left on device; free some space" in refused.stderr
        assert "Traceback" not in refused.stderr
    filler.unlink()
    mesh.folder = small_disk
    output = small_disk.parent / "alpha.log"
    (small_disk / "alpha.log").symlink_to(output)
    alpha = mesh.start("alpha", "--new").wait_ready()
    filler = fill(small_disk)
    beta_folder = small_disk.parent / "other"
    beta_folder.mkdir()
    mesh.folder = beta_folder
    invite = alpha.invite()
    beta = mesh.start("beta", invite)
    wait_until(lambda: alpha.status["members"] == 2, 20, "the mesh goes on")
    assert alpha.status["state"] == "running"
    filler.unlink()
    beta.wait_ready()
    wait_until((alpha.data_dir / "state" / "members").exists, 20, "it is written later")
    assert 1 <= output.read_text().count("No space left on device") <= 8  # told, not repeated
    assert beta.stop() == 0
    assert alpha.stop() == 0


def test_what_a_full_disk_cannot_keep_is_refused_and_leaves_no_trace(
    small_disk: Path, mesh: Mesh, commands: Commands
) -> None:
    mesh.folder = small_disk
    (small_disk / "alpha.log").symlink_to(small_disk.parent / "alpha.log")
    alpha = mesh.start("alpha", "--new").wait_ready()
    assert commands("disk/alpha", "keys", "create", "r1").returncode == 0
    filler = fill(small_disk)
    for change in (("keys", "revoke", "r1"), ("keys", "revoke", "r1"), ("keys", "create", "r2")):
        refused = commands("disk/alpha", *change)
        assert refused.returncode != 0
        assert "No space left on device" in refused.stderr
    (key,) = alpha.control.get("/mesh/v1/keys")
    assert (key["name"], key["state"]) == ("r1", "valid")
    filler.unlink()
    assert "was revoked before" not in commands("disk/alpha", "keys", "revoke", "r1").stdout
    assert alpha.stop() == 0
    alpha = mesh.start("alpha").wait_ready()
    (key,) = alpha.control.get("/mesh/v1/keys")
    assert (key["name"], key["state"]) == ("r1", "revoked")
    assert alpha.stop() == 0


# The interpreter may lie where nobody can read, so what a start needs is imported before.
BECOME_NOBODY = f"""
import os, encodings.ascii, encodings.idna, uvloop, meshnode.daemon.process
from typer.testing import CliRunner
from meshnode.cli.main import app, main
assert CliRunner().invoke(app, ["join", "--max-cpus", "none of these"]).exit_code == 2
os.setgroups([])
os.setgid({NOBODY})
os.setuid({NOBODY})
main()
"""


def as_nobody(*args: str) -> subprocess.CompletedProcess[str]:
    """Run a command line as another user."""
    if sys.platform == "win32" or os.geteuid() != 0:
        pytest.skip("only root can become another user")
    return subprocess.run(
        [sys.executable, "-c", BECOME_NOBODY, *args],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        cwd="/",
    )


@pytest.fixture
def public_folder(tmp_path: Path) -> Path:
    """A folder that another user can reach and not write."""
    for path in (tmp_path, *tmp_path.parents):
        if path == Path("/tmp"):
            break
        with contextlib.suppress(PermissionError):
            path.chmod(path.stat().st_mode | 0o055)
    return tmp_path


JOIN = ("join", "--new", "--no-mdns", "--no-gateway", "--listen", "127.0.0.1:0")


@pytest.mark.parametrize("made_by_root", [True, False])
def test_a_data_folder_of_another_user_is_named_with_its_owner(
    public_folder: Path, made_by_root: bool
) -> None:
    folder = public_folder / "data"
    if made_by_root:
        (folder / "state").mkdir(parents=True)
        (folder / "lock").touch(mode=0o600)
    done = as_nobody(*JOIN, "--data-dir", str(folder))
    assert done.returncode == 2, done.stderr
    assert "Permission denied" in done.stderr
    chown = "make it yours with chown, or " if made_by_root else ""
    assert f"belongs to user root: {chown}name another folder with --data-dir" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_folder_in_anothers_home_is_not_offered_to_be_taken_over() -> None:
    home = Path("~root").expanduser()
    if home.stat().st_mode & 0o007:
        pytest.skip("everybody may look into root's home here")
    done = as_nobody(*JOIN, "--data-dir", str(home / "x"))
    assert done.returncode == 2, done.stderr
    assert "belongs to user root: name another folder with --data-dir" in done.stderr
    assert "chown" not in done.stderr


def test_a_low_port_is_refused_with_another_to_take(public_folder: Path) -> None:
    start = Path("/proc/sys/net/ipv4/ip_unprivileged_port_start")
    if not start.exists() or int(start.read_text()) <= 80:
        pytest.skip("every user may open low ports here")
    folder = public_folder / "data"
    folder.mkdir()
    folder.chmod(0o777)
    done = as_nobody(*JOIN[:-1], "127.0.0.1:80", "--data-dir", str(folder))
    assert done.returncode == 2, done.stderr
    assert "may not open port 80; name one above 1023 with --listen 127.0.0.1:PORT" in done.stderr


def test_a_read_only_file_system_is_named(small_disk: Path, commands: Commands) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    done = commands("disk/alpha", "join", "--new", *QUIET)
    assert done.returncode == 2
    assert "Read-only file system; name a folder that can be written" in done.stderr


def test_a_missing_folder_for_temporary_files_does_no_harm(commands: Commands) -> None:
    missing = {"TMPDIR": str(commands.folder / "nowhere")}
    started = commands("alpha", "join", "--detach", "--new", *QUIET, env=missing)
    assert started.returncode == 0, started.stderr
    assert commands("alpha", "stop").returncode == 0
