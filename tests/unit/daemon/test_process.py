"""A daemon from start to stop, in this process, with real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import http.client
import logging
import os
import signal
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from meshnode.client.control import ControlAddress
from meshnode.daemon import local_network, own_node, ports, process
from meshnode.daemon.assembly import Assembly
from meshnode.daemon.process import Daemon
from meshnode.datafolder import DataFolder, MeshFile, kept_options
from meshnode.errors import ConfigError, HandshakeError, InviteError, LinkLost, MeshError
from meshnode.folderlock import holder
from meshnode.limits import MAX_MDNS_DIALS, MAX_PART_BYTES, MIB
from meshnode.net.links import LinkHub
from meshnode.net.listening import port_error
from meshnode.net.mdns import Announcement, Discovery
from meshnode.net.udp import DatagramSocket
from meshnode.options import Chosen
from meshnode.trust.invite import Invite
from meshnode.types import Address, NodeId
from meshnode.wire.link import LinkConfig
from tests.unit.daemon.conftest import eventually

if TYPE_CHECKING:
    from tests.unit.daemon.conftest import Daemons

DIGITS = Path(__file__).parents[3] / "examples" / "digits" / "digits.onnx"
LOOPBACK = Address("127.0.0.1", 0)


async def test_two_nodes_join_and_one_leaves_with_a_goodbye(
    daemons: Daemons, capsys: pytest.CaptureFixture[str]
) -> None:
    alpha = await daemons.start("alpha", http=LOOPBACK).ready()
    assert "meshnode join mesh1" in capsys.readouterr().out
    beta = await daemons.start("beta", await alpha.invite()).ready()
    await alpha.sees(2)
    await beta.sees(2)
    assert "meshnode join mesh1" not in capsys.readouterr().out
    assert repr(alpha.daemon) == f"<Daemon alpha in {daemons.folder / 'alpha'}>"
    assert await beta.stop() == 0
    nodes = await alpha.get("/mesh/v1/nodes")
    assert {node["name"]: node["state"] for node in nodes} == {"alpha": "alive", "beta": "left"}
    assert not (daemons.folder / "beta" / "control.sock").exists()
    status = await alpha.get("/mesh/v1/status")
    assert status["http"].startswith("http://127.0.0.1:")
    assert await alpha.stop() == 0


async def test_a_plain_start_rejoins_and_an_invite_is_not_needed_again(daemons: Daemons) -> None:
    alpha = await daemons.start("alpha").ready()
    invite = await alpha.invite()
    beta = await daemons.start("beta", invite).ready()
    identity = (await beta.get("/mesh/v1/status"))["id"]
    await beta.stop()
    again = await daemons.start("beta", invite).ready()
    await alpha.sees(2)
    assert (await again.get("/mesh/v1/status"))["id"] == identity


async def test_a_folder_of_another_mesh_is_not_given_up(daemons: Daemons) -> None:
    alpha = await daemons.start("alpha").ready()
    invite = await alpha.invite()
    await (await daemons.start("stranger").ready()).stop()
    with pytest.raises(InviteError, match=r"belongs to mesh .*--data-dir"):
        await daemons.start("stranger", invite).end()
    with pytest.raises(ConfigError, match=r"belongs to mesh .* already; start it without --new"):
        await daemons.start("stranger", new=True).end()


async def test_an_invite_whose_nodes_do_not_answer_says_what_to_check(daemons: Daemons) -> None:
    alpha = await daemons.start("alpha").ready()
    invite = await alpha.invite()
    await alpha.stop()
    with pytest.raises(
        LinkLost, match=r"could be reached: .* refused .* its port is open .*--advertise"
    ):
        await daemons.start("beta", invite).end()
    assert not (daemons.folder / "beta" / "mesh").exists()


async def test_a_refusal_of_the_mesh_is_shown(
    daemons: Daemons, monkeypatch: pytest.MonkeyPatch
) -> None:
    alpha = await daemons.start("alpha").ready()
    invite = await alpha.invite()
    assert alpha.daemon._driver is not None
    monkeypatch.setattr(alpha.daemon._driver._credentials.roster, "_max_members", 1)
    with pytest.raises(HandshakeError, match="no room for another member"):
        await daemons.start("beta", invite).end()


async def test_a_full_disk_at_the_moment_of_admission_is_told_as_that(
    daemons: Daemons, monkeypatch: pytest.MonkeyPatch
) -> None:
    alpha = await daemons.start("alpha").ready()
    invite = await alpha.invite()

    def full(self: DataFolder, mesh: object) -> None:
        raise ConfigError("cannot write mesh: No space left on device")

    monkeypatch.setattr(DataFolder, "save_mesh", full)
    with pytest.raises(ConfigError, match="No space left"):
        await daemons.start("beta", invite).end()


async def test_a_full_disk_at_the_start_is_told_and_founds_nothing(
    daemons: Daemons, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = daemons.start("alpha")
    with monkeypatch.context() as patch:

        def full(_: int) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        patch.setattr(os, "fsync", full)
        with pytest.raises(ConfigError, match=r"cannot write .*identity\.key: No space left"):
            await running.end()
    assert not (daemons.folder / "alpha" / "mesh").exists()
    await (await daemons.start("alpha", new=True).ready()).stop()


async def test_no_place_for_a_temporary_file_is_told(
    daemons: Daemons, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: Path) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(ports, "server_tls", full)
    with pytest.raises(ConfigError, match=r"temporary file .*Read-only file system.*--data-dir"):
        await daemons.start("alpha").end()


async def test_an_invite_of_its_own_mesh_leads_a_member_back_to_it(
    daemons: Daemons, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    alpha = await daemons.start("alpha").ready()
    beta = await daemons.start("beta", await alpha.invite()).ready()
    await beta.sees(2)
    identity = (await beta.get("/mesh/v1/status"))["id"]
    await beta.kill()
    await alpha.kill()
    with socket.create_server(("127.0.0.1", 0)):  # so that alpha's port is surely another one
        again = await daemons.start("alpha").ready()
    back = await daemons.start("beta", await again.invite()).ready()
    await back.sees(2)
    await again.sees(2)
    assert (await back.get("/mesh/v1/status"))["id"] == identity
    assert "is a member already; the invite's addresses are tried to find the mesh" in caplog.text
    folder = daemons.folder / "beta" / "mesh"
    address = Address.parse((await again.get("/mesh/v1/status"))["mesh_address"])
    stored = msgspec.msgpack.decode(folder.read_bytes(), type=MeshFile)
    assert stored.seeds[0] == address
    assert len(stored.seeds) == 2


async def test_what_was_chosen_is_kept_once_the_node_runs(daemons: Daemons) -> None:
    chosen = Chosen(name="alpha", listen="127.0.0.1:0")
    await daemons.start("alpha", chosen=chosen).ready()
    assert kept_options(daemons.folder / "alpha") == chosen
    taken = daemons.start("taken", chosen=chosen, listen=Address("192.0.2.1", 1))
    with pytest.raises(ConfigError):
        await taken.end()
    assert kept_options(daemons.folder / "taken") == Chosen()


async def test_options_that_cannot_be_kept_are_told_and_the_node_runs(
    daemons: Daemons, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(self: DataFolder, chosen: object) -> None:
        raise ConfigError("cannot write options: No space left on device")

    monkeypatch.setattr(DataFolder, "save_options", full)
    await daemons.start("alpha").ready()
    assert "not kept for the next start: cannot write options: No space" in caplog.text


async def test_a_founder_on_loopback_says_that_others_cannot_reach_it(
    daemons: Daemons, capsys: pytest.CaptureFixture[str]
) -> None:
    await daemons.start("alpha").ready()
    out = capsys.readouterr().out
    assert "listens on 127.0.0.1, which other devices cannot reach" in out
    assert "--listen [::]:8471" in out
    await daemons.start("beta", listen=Address("0.0.0.0", 0)).ready()
    assert "cannot reach" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("hosts", "warned"), [(("127.0.0.1", "::1"), True), (("127.0.0.1", "192.0.2.7"), False)]
)
async def test_a_founder_without_a_network_says_that_its_invite_is_for_this_machine(
    daemons: Daemons,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    hosts: tuple[str, ...],
    warned: bool,
) -> None:
    monkeypatch.setattr(own_node, "reachable_hosts", lambda _: hosts)
    alpha = await daemons.start("alpha", listen=Address("0.0.0.0", 0)).ready()
    assert ("It names loopback addresses only" in capsys.readouterr().out) is warned
    answer = await alpha.post("/mesh/v1/invites", {"ttl_s": 60})
    assert [address.rpartition(":")[0].strip("[]") for address in answer["addresses"]] == list(
        hosts
    )


# Ports


async def test_a_mesh_port_in_use_is_named_and_nothing_is_founded(daemons: Daemons) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = Address("127.0.0.1", taken.getsockname()[1])
        with pytest.raises(ConfigError, match=rf"port {address.port} .*in use.*--listen"):
            await daemons.start("alpha", listen=address).end()
    assert not (daemons.folder / "alpha" / "mesh").exists()


async def test_a_udp_port_in_use_is_named(daemons: Daemons) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        address = Address("127.0.0.1", taken.getsockname()[1])
        with pytest.raises(ConfigError, match=rf"port {address.port} .*in use.*--listen"):
            await daemons.start("alpha", listen=address).end()


async def test_a_free_port_is_free_for_both_protocols_or_another_one_is_taken(
    daemons: Daemons, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_socket = DatagramSocket.open
    refused: list[Address] = []

    async def refuse_twice(address: Address, receive: object) -> object:
        if len(refused) < 2:
            refused.append(address)
            raise OSError(errno.EADDRINUSE, "in use")
        return await open_socket(address, receive)  # type: ignore[arg-type]  # passed on

    monkeypatch.setattr(DatagramSocket, "open", refuse_twice)
    alpha = await daemons.start("alpha").ready()
    port = (await alpha.get("/mesh/v1/status"))["mesh_address"].rpartition(":")[2]
    assert int(port) not in [address.port for address in refused]
    for address in refused:  # what was tried is given back
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address, 1)


async def test_where_no_port_is_free_for_both_it_says_so(
    daemons: Daemons, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(address: Address, receive: object) -> object:
        raise OSError(errno.EADDRINUSE, "in use")

    monkeypatch.setattr(DatagramSocket, "open", refuse)
    with pytest.raises(ConfigError, match=r"no port of 127.0.0.1 is free for both"):
        await daemons.start("alpha").end()


async def test_an_http_port_in_use_is_named_and_nothing_is_founded(daemons: Daemons) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = Address("127.0.0.1", taken.getsockname()[1])
        with pytest.raises(ConfigError, match=rf"port {address.port} .*in use.*--http"):
            await daemons.start("alpha", http=address).end()
    assert not (daemons.folder / "alpha" / "mesh").exists()


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (OSError(errno.EACCES, "x"), "this user may not open port 80; name one above 1023"),
        (
            OSError(errno.EADDRNOTAVAIL, "Cannot assign"),
            "is no address of this machine; .*--advertise",
        ),
        (socket.gaierror(-2, "Name or service not known"), "Name or service not known"),
    ],
)
def test_what_is_wrong_with_an_address_is_said(error: OSError, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        raise port_error("--listen", Address("192.0.2.1", 80), error)


async def test_the_control_channel_over_tcp_takes_its_token_only(
    daemons: Daemons, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = ControlAddress(tcp=LOOPBACK, token="secret")
    monkeypatch.setattr(process, "plan_control", lambda *_: plan)
    alpha = await daemons.start("alpha").ready()
    assert (await alpha.get("/mesh/v1/status"))["name"] == "alpha"
    assert await alpha.invite()
    file = daemons.folder / "alpha" / "control"
    assert file.stat().st_mode & 0o077 == 0
    text = file.read_text()
    file.write_text(text.replace("secret", "guess"))
    with pytest.raises(MeshError):
        await alpha.get("/mesh/v1/status")
    file.write_text(text)
    assert await alpha.stop() == 0
    assert not file.exists()


# Models


async def test_a_folder_with_one_bad_model_serves_the_others(daemons: Daemons) -> None:
    models = daemons.folder / "models"
    for name, content in (("good", DIGITS.read_bytes()), ("bad", b"no model")):
        (models / name / "1").mkdir(parents=True)
        (models / name / "1" / "model.onnx").write_bytes(content)
    alpha = await daemons.start("alpha", models=str(models)).ready()
    deadline = asyncio.get_running_loop().time() + 10
    while True:
        found = {each["name"]: each["replicas"] for each in await alpha.get("/mesh/v1/models")}
        states = {name: [each["state"] for each in group] for name, group in found.items()}
        if states == {"good": ["ready"], "bad": ["failed"]}:
            break
        assert asyncio.get_running_loop().time() < deadline, states
        await asyncio.sleep(0.02)
    assert found["bad"][0]["reason"]


@pytest.mark.parametrize("exists", [True, False])
async def test_a_models_folder_without_models_is_told_and_the_node_runs(
    daemons: Daemons, exists: bool, caplog: pytest.LogCaptureFixture
) -> None:
    models = daemons.folder / "none"
    if exists:
        models.mkdir()
    alpha = await daemons.start("alpha", models=str(models)).ready()
    await eventually(lambda: "cannot be served" in caplog.text)
    assert str(models) in caplog.text
    assert await alpha.get("/mesh/v1/models") == []


# Going down


async def test_a_leaving_node_finishes_what_runs_and_no_more_than_its_limit(
    daemons: Daemons, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "DRAIN_LIMIT_S", 0.3)
    busy = True
    monkeypatch.setattr(Assembly, "busy", property(lambda self: busy))
    alpha = await daemons.start("alpha").ready()
    loop = asyncio.get_running_loop()
    alpha.signal()
    began = loop.time()
    assert await asyncio.wait_for(alpha.task, 5) == 0
    assert 0.3 <= loop.time() - began < 1.5
    beta = await daemons.start("beta").ready()
    began = loop.time()
    busy = False
    assert await beta.stop() == 0
    assert loop.time() - began < 0.3


async def test_a_second_signal_exits_at_once(
    daemons: Daemons, monkeypatch: pytest.MonkeyPatch
) -> None:
    codes: list[int] = []
    monkeypatch.setattr(os, "_exit", codes.append)
    alpha = await daemons.start("alpha").ready()
    alpha.signal(signal.SIGINT)
    alpha.signal(signal.SIGINT)
    assert codes == [130]
    await alpha.end()


async def test_real_signals_reach_the_daemon(daemons: Daemons) -> None:
    alpha = await daemons.start("alpha").ready()
    os.kill(os.getpid(), signal.SIGTERM)
    assert await alpha.end() == 0


async def test_a_closed_terminal_is_a_polite_stop(
    daemons: Daemons, monkeypatch: pytest.MonkeyPatch
) -> None:
    former = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may run under nohup
    try:
        alpha = await daemons.start("alpha").ready()
        os.kill(os.getpid(), signal.SIGHUP)
        assert await alpha.end() == 0
    finally:
        signal.signal(signal.SIGHUP, former)
    monkeypatch.setattr(signal, "getsignal", lambda _: signal.SIG_IGN)  # started under nohup
    assert signal.SIGHUP not in process._stop_signals()


async def test_where_no_terminal_was_closed_that_signal_opens_the_access_log_anew(
    daemons: Daemons, tmp_path: Path
) -> None:
    former = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    path = tmp_path / "access.log"
    try:
        alpha = await daemons.start(
            "alpha", http=Address("127.0.0.1", 0), access_log=str(path)
        ).ready()
        path.rename(tmp_path / "access.old")
        os.kill(os.getpid(), signal.SIGHUP)
        await asyncio.sleep(0)
        await alpha.get("/mesh/v1/nodes")
        assert await alpha.stop() == 0
    finally:
        signal.signal(signal.SIGHUP, former)
    assert '"path":"/mesh/v1/nodes"' in path.read_text()


@pytest.mark.parametrize("leave", [False, True])
async def test_its_owner_ends_it_over_the_control_channel_and_nobody_else(
    daemons: Daemons, leave: bool
) -> None:
    alpha = await daemons.start("alpha").ready()
    beta = await daemons.start("beta", await alpha.invite(), http=LOOPBACK).ready()
    await alpha.sees(2)
    status = await beta.get("/mesh/v1/status")

    def over_http() -> int:
        gateway = Address.parse(status["http"].removeprefix("http://"))
        connection = http.client.HTTPConnection(*gateway, timeout=10)
        with contextlib.closing(connection):
            connection.request("POST", "/mesh/v1/shutdown", "{}")
            return connection.getresponse().status

    assert await asyncio.to_thread(over_http) in (401, 403)
    answer = await beta.post("/mesh/v1/shutdown", {"leave": leave})
    assert answer == {"pid": os.getpid(), "leave": leave}
    assert await beta.end() == 0
    nodes = await alpha.get("/mesh/v1/nodes")
    assert {node["name"]: node["state"] for node in nodes} == {"alpha": "alive", "beta": "left"}
    folder = daemons.folder / "beta"
    assert (folder / "mesh").exists() is not leave
    assert any((folder / "state").iterdir()) is not leave
    assert (folder / "identity.key").exists()


async def test_its_status_tells_of_the_process(daemons: Daemons) -> None:
    alpha = await daemons.start("alpha", config_files=("/x/config.toml",)).ready()
    status = await alpha.get("/mesh/v1/status")
    assert (status["pid"], status["state"], status["paused"]) == (os.getpid(), "running", None)
    assert status["data_dir"] == str(daemons.folder / "alpha")
    assert status["log_file"] == str(daemons.folder / "alpha" / "logs" / "meshnode.log")
    assert (status["profile"], status["config_files"]) == ("lan", ["/x/config.toml"])
    assert 0 <= status["uptime_s"] < 60
    assert status["memory_bytes"] > 1e6
    assert status["serving"] == 0


async def test_advertised_addresses_are_the_only_ones_that_others_are_told(
    daemons: Daemons, monkeypatch: pytest.MonkeyPatch
) -> None:
    announced = heard_by(monkeypatch)
    told = (Address("cloud.example", 9000), Address("203.0.113.7", 0))
    alpha = await daemons.start("alpha", advertise=told, mdns=True, new=True).ready()
    await eventually(lambda: announced)
    port = int((await alpha.get("/mesh/v1/status"))["mesh_address"].rpartition(":")[2])
    expected = (told[0], Address("203.0.113.7", port))  # without a port: the one it listens at
    assert announced[0].addresses == expected
    assert Invite.parse(await alpha.invite()).seeds == expected
    (node,) = await alpha.get("/mesh/v1/nodes")
    assert node["mesh"] == "cloud.example:9000"


async def test_without_signal_handlers_of_the_loop_the_platforms_are_used(
    daemons: Daemons, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = asyncio.get_running_loop()
    handlers: dict[int, object] = {}

    def unsupported(*_: object) -> None:
        raise NotImplementedError

    monkeypatch.setattr(loop, "add_signal_handler", unsupported)
    monkeypatch.setattr(loop, "remove_signal_handler", unsupported)
    monkeypatch.setattr(signal, "signal", handlers.__setitem__)
    alpha = await daemons.start("alpha").ready()
    handlers[signal.SIGTERM](signal.SIGTERM, None)  # type: ignore[operator]  # it is a handler
    assert await alpha.end() == 0


async def test_a_signal_while_it_joins_ends_it_at_once(
    daemons: Daemons, monkeypatch: pytest.MonkeyPatch
) -> None:
    alpha = await daemons.start("alpha").ready()
    invite = await alpha.invite()
    begun = asyncio.Event()

    async def hang(*_: object) -> None:
        begun.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(LinkHub, "connect", hang)
    beta = daemons.start("beta", invite)
    await asyncio.wait_for(begun.wait(), 5)
    beta.signal(signal.SIGINT)
    assert await beta.end() == 130
    assert not (daemons.folder / "beta" / "mesh").exists()


# The local network


def heard_by(monkeypatch: pytest.MonkeyPatch, *announcements: Announcement) -> list[Announcement]:
    """Let every daemon hear these, and return what they announce."""
    announced: list[Announcement] = []

    class Heard(Discovery):
        async def __aenter__(self) -> Heard:  # noqa: PYI034 - a test's stand-in
            for each in announcements:
                self._heard[each.node_id] = each
                self._on_found(each)
            return self

        async def __aexit__(self, *_: object) -> None:
            pass

        async def announce(self, announcement: Announcement) -> None:
            announced.append(announcement)
            if announcement.name == "mute":
                raise OSError("it is refused")

    monkeypatch.setattr(local_network, "Discovery", Heard)
    monkeypatch.setattr(local_network, "SEARCH_S", 0.05)
    return announced


def stranger(index: int) -> Announcement:
    letter = "abcdefghijklmnop"[index]
    return Announcement(NodeId(letter * 32), "f" * 32, f"node-{letter}", (Address("192.0.2.1", 1),))


async def test_a_device_without_an_invite_names_the_mesh_it_hears_and_ends_with_2(
    daemons: Daemons, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    heard_by(monkeypatch, *(stranger(index) for index in range(12)))
    assert await daemons.start("alpha", mdns=True, new=False).end() == 2
    out = capsys.readouterr().out
    assert f"Found mesh {'f' * 32} with node-a (192.0.2.1:1), node-b" in out
    assert "4 more" in out
    assert "meshnode invite" in out
    assert not (daemons.folder / "alpha" / "mesh").exists()


@pytest.mark.parametrize(("count", "more"), [(8, ""), (9, ", 1 more")])
async def test_of_a_mesh_that_it_hears_eight_nodes_are_named(
    daemons: Daemons,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    count: int,
    more: str,
) -> None:
    heard_by(monkeypatch, *(stranger(index) for index in range(count)))
    assert await daemons.start("alpha", mdns=True, new=False).end() == 2
    assert f"node-h (192.0.2.1:1){more}.\n" in capsys.readouterr().out


async def test_a_device_that_hears_nobody_founds_a_mesh_and_announces_it(
    daemons: Daemons, monkeypatch: pytest.MonkeyPatch
) -> None:
    announced = heard_by(monkeypatch)
    alpha = await daemons.start("alpha", mdns=True, new=False).ready()
    await eventually(lambda: announced)
    status = await alpha.get("/mesh/v1/status")
    assert announced[0].mesh_id == status["mesh"]
    assert str(announced[0].addresses[0]) == status["mesh_address"]


async def test_a_signal_during_the_search_founds_nothing(
    daemons: Daemons, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard_by(monkeypatch)
    monkeypatch.setattr(local_network, "SEARCH_S", 60.0)
    alpha = daemons.start("alpha", mdns=True, new=False)
    await eventually(lambda: alpha.daemon._network and alpha.daemon._network.discovery)
    alpha.signal(signal.SIGTERM)
    assert await alpha.end() == 143
    assert not (daemons.folder / "alpha" / "mesh").exists()


async def test_without_multicast_a_node_runs_unless_an_interface_was_asked_for(
    daemons: Daemons, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(Discovery):
        async def __aenter__(self) -> Broken:  # noqa: PYI034 - a test's stand-in
            raise OSError("no multicast")

    monkeypatch.setattr(local_network, "Discovery", Broken)
    await daemons.start("alpha", mdns=True, new=False).ready()
    assert "no network of this device takes multicast (no multicast)" in caplog.text
    assert "`meshnode invite`" in caplog.text
    with pytest.raises(ConfigError, match=r"--mdns-interface 192\.0\.2\.9: .*no multicast"):
        await daemons.start("beta", mdns=True, mdns_interfaces=("192.0.2.9",)).end()


async def test_mdns_follows_the_networks_and_addresses_of_the_machine(
    daemons: Daemons, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Started without a network, a node is found on the one that appears; then its address changes."""
    interfaces: list[str] = []
    heard: list[tuple[list[str], list[str]]] = []

    class OnInterfaces(Discovery):
        async def __aenter__(self) -> OnInterfaces:  # noqa: PYI034 - a test's stand-in
            if not self._interfaces:
                raise OSError(errno.ENODEV, "No such device")
            return self

        async def __aexit__(self, *_: object) -> None:
            pass

        async def announce(self, announcement: Announcement) -> None:
            hosts = [address.host for address in announcement.addresses]
            heard.append((list(self._interfaces), hosts))

    monkeypatch.setattr(local_network, "Discovery", OnInterfaces)
    monkeypatch.setattr(local_network, "MDNS_RETRY_S", 0.02)
    monkeypatch.setattr(local_network, "multicast_hosts", lambda: tuple(interfaces))
    alpha = await daemons.start("alpha", mdns=True, new=True).ready()
    assert "which this node will notice" in caplog.text
    network = alpha.daemon._network
    assert network is not None
    assert network.discovery is None
    interfaces.append("192.168.1.10")
    await eventually(lambda: heard == [(["192.168.1.10"], ["127.0.0.1"])])
    interfaces.append("10.0.0.7")
    await eventually(lambda: heard[1:] == [(["192.168.1.10", "10.0.0.7"], ["127.0.0.1"])])
    driver = alpha.daemon._driver
    assert driver is not None
    assert driver.node is not None
    moved = (Address("192.168.1.11", 8471),)
    driver.carry_out(driver.node.membership.update_record(time.monotonic(), addresses=moved))
    await eventually(lambda: heard[2:] == [(interfaces, ["192.168.1.11"])])
    await asyncio.sleep(0.1)
    assert len(heard) == 3


async def test_an_announcement_that_fails_is_told_and_the_node_runs(
    daemons: Daemons, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    heard_by(monkeypatch)
    await daemons.start("mute", mdns=True).ready()
    await eventually(lambda: "could not be announced by mDNS: it is refused" in caplog.text)


async def test_members_that_are_heard_are_dialled_a_few_at_a_time_and_others_never(
    daemons: Daemons, monkeypatch: pytest.MonkeyPatch
) -> None:
    alpha = await daemons.start("alpha").ready()
    driver = alpha.daemon._driver
    assert driver is not None
    assert driver.node is not None
    dialled: list[NodeId] = []
    monkeypatch.setattr(driver, "dial_heard", lambda addresses, node: dialled.append(node))
    network = alpha.daemon._network
    assert network is not None
    network._announced(stranger(0))
    network._announced(
        Announcement(driver.node.me, str(driver.mesh_id), "me", (Address("192.0.2.1", 1),))
    )
    assert dialled == []
    member = Announcement(NodeId("m" * 32), str(driver.mesh_id), "m", (Address("192.0.2.1", 1),))
    network._announced(member)
    assert dialled == [member.node_id]
    flood = [
        Announcement(NodeId(f"{index:032}"), str(driver.mesh_id), "m", member.addresses)
        for index in range(1000)
    ]
    network.dial(flood)
    assert len(dialled) == 1 + MAX_MDNS_DIALS
    for each in flood:
        network._announced(each)
    assert len(dialled) <= 2 * MAX_MDNS_DIALS + 1  # one more in a second or so


async def test_two_nodes_that_lost_each_others_addresses_meet_on_the_local_network(
    daemons: Daemons, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_network, "MDNS_RETRY_S", 0.2)
    local: dict[str, Any] = {"mdns": True, "mdns_interfaces": ("127.0.0.1",)}
    alpha = await daemons.start("alpha").ready()
    beta = await daemons.start("beta", await alpha.invite()).ready()
    await alpha.sees(2)
    await beta.sees(2)
    await beta.stop()
    await alpha.stop()
    for name in ("alpha", "beta"):
        (daemons.folder / name / "state" / "members").unlink(missing_ok=True)
        folder = DataFolder(daemons.folder / name)
        mesh = folder.mesh()
        assert mesh is not None
        folder.save_mesh(type(mesh)(mesh.mesh_id, mesh.chain, mesh.root_seed))  # without seeds
        folder.close()
    again = [await daemons.start(name, **local).ready() for name in ("alpha", "beta")]
    for running in again:
        await running.sees(2)


def test_the_loop_is_uvloops_where_it_exists(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    import uvloop

    assert process._loop_factory() is uvloop.new_event_loop
    monkeypatch.setitem(sys.modules, "uvloop", None)
    assert process._loop_factory() is None


def test_a_run_returns_the_exit_code_and_keeps_the_folder_until_its_process_ends(
    daemons_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from meshnode.options import JoinOptions

    async def answer(self: Daemon) -> int:
        return 7

    monkeypatch.setattr(Daemon, "run", answer)
    monkeypatch.setattr(logging, "basicConfig", lambda **_: None)
    options = JoinOptions(
        None, "a", "r", "", (), LOOPBACK, None, str(daemons_folder), None, True, False
    )
    assert process.run(options) == 7
    running = holder(daemons_folder)
    assert running is not None
    assert running.pid == os.getpid()


@pytest.fixture
def daemons_folder(tmp_path: Path) -> Path:
    return tmp_path / "data"


async def test_a_start_that_may_only_rejoin_founds_nothing(daemons: Daemons) -> None:
    """Its owner typed `meshnode leave` while it was starting, or a service outlived its mesh."""
    with pytest.raises(ConfigError, match=r"belongs to no mesh, perhaps since `meshnode leave`"):
        await daemons.start("alpha", rejoin=True).end()
    assert not (daemons.folder / "alpha" / "mesh").exists()
    await (await daemons.start("alpha").ready()).stop()
    await daemons.start("alpha", rejoin=True).ready()


def test_links_of_a_node_with_little_memory_hold_little() -> None:
    assert process.link_config(None) == LinkConfig()
    small = process.link_config(64 * MIB)
    assert (small.max_buffered_bytes, small.max_part_bytes) == (16 * MIB, 16 * MIB)
    assert small.window_bytes == LinkConfig().window_bytes
    medium = process.link_config(400 * MIB)
    assert (medium.max_buffered_bytes, medium.max_part_bytes) == (100 * MIB, MAX_PART_BYTES)
    assert process.link_config(64 * 1024 * MIB) == LinkConfig()
