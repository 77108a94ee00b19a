"""Devices that ask to join: whole daemons in this process, from the knock to the approval."""

from __future__ import annotations

import asyncio
import re
import socket
from typing import TYPE_CHECKING, Any

import pytest

from meshnode.daemon import local_network, pairing
from meshnode.daemon.asking import meshes_of
from meshnode.errors import (
    ConfigError,
    Forbidden,
    HandshakeError,
    InvalidRequest,
    LinkLost,
    NotFound,
    Throttled,
)
from meshnode.limits import MAX_JOIN_REQUESTS_PER_SOURCE, MAX_WRONG_CODES
from meshnode.net.mdns import Announcement
from meshnode.trust import join_requests
from meshnode.types import Address, NodeId
from tests.unit.daemon.conftest import eventually

if TYPE_CHECKING:
    from tests.unit.daemon.conftest import Daemons, Running

REQUESTS = "/mesh/v1/join-requests"
SHOWN = re.compile(r"meshnode approve (\d{6})")


async def mesh_address(running: Running) -> str:
    return str((await running.get("/mesh/v1/status"))["mesh_address"])


async def code_of(caplog: pytest.LogCaptureFixture, count: int = 1) -> str:
    """The last code that a device has logged, once so many were."""
    found = await eventually(
        lambda: codes if len(codes := SHOWN.findall(caplog.text)) >= count else None
    )
    return str(found[-1])


async def approve(running: Running, code: str, **wish: Any) -> Any:
    return await running.post(f"{REQUESTS}/approve", {"code": code, **wish})


@pytest.fixture(autouse=True)
def _log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")


async def test_a_device_asks_by_address_and_is_a_member_once_its_code_was_typed(
    daemons: Daemons, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    alpha = await daemons.start("alpha").ready()
    assert await alpha.get(REQUESTS) == []
    beta = daemons.start("beta", new=False, ask=await mesh_address(alpha))
    code = await code_of(caplog)
    (waiting,) = await alpha.get(REQUESTS)
    assert (waiting["name"], waiting["address"]) == ("beta", "127.0.0.1")
    assert code not in str(waiting)
    assert (
        f"to admit this device to mesh {(await alpha.get('/mesh/v1/status'))['mesh']}"
        in caplog.text
    )
    admitted = await approve(alpha, f"{code[:3]} {code[3:]}", role="member", region="attic")
    assert {key: admitted[key] for key in waiting} == waiting
    assert (admitted["role"], admitted["region"]) == ("member", "attic")
    await beta.ready()
    await alpha.sees(2)
    status = await beta.get("/mesh/v1/status")
    assert (status["id"], status["role"]) == (waiting["node"], "member")
    assert status["region"] == "attic"
    assert await alpha.get(REQUESTS) == []
    output = capsys.readouterr().out
    assert "`meshnode leave` undoes this" in output
    assert f"Joined mesh {status['mesh']}" in output
    with pytest.raises(NotFound):
        await approve(alpha, code)
    await beta.stop()
    again = await daemons.start("beta", new=False, ask=await mesh_address(alpha)).ready()
    await alpha.sees(2)
    assert "is a member of mesh" in caplog.text
    assert (await again.get("/mesh/v1/status"))["id"] == waiting["node"]


async def test_a_wrong_code_admits_nobody_and_too_many_slow_everybody_down(
    daemons: Daemons, caplog: pytest.LogCaptureFixture
) -> None:
    alpha = await daemons.start("alpha").ready()
    daemons.start("beta", new=False, ask=await mesh_address(alpha))
    code = await code_of(caplog)
    for _ in range(MAX_WRONG_CODES):
        with pytest.raises(NotFound, match="somebody may stand between"):
            await approve(alpha, f"{(int(code) + 1) % 10**6:06d}")
    with pytest.raises(Throttled, match="too many codes"):
        await approve(alpha, code)
    with pytest.raises(InvalidRequest, match="six digits"):
        await approve(alpha, "12345")
    with pytest.raises(InvalidRequest):
        await approve(alpha, code, region="not a region")
    with pytest.raises(InvalidRequest):
        await approve(alpha, code, role="king")
    assert len(await alpha.get("/mesh/v1/nodes")) == 1


async def test_nobody_came_so_the_device_ends_and_says_so(
    daemons: Daemons, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(join_requests, "JOIN_REQUEST_TTL_S", 0.3)
    monkeypatch.setattr(pairing, "JOIN_REMINDER_S", 0.1)
    alpha = await daemons.start("alpha").ready()
    beta = daemons.start("beta", new=False, ask=await mesh_address(alpha))
    with pytest.raises(HandshakeError, match="nobody typed the code on alpha"):
        await beta.end()
    assert await alpha.get(REQUESTS) == []
    assert not (daemons.folder / "beta" / "mesh").exists()


async def test_a_device_that_gives_up_is_gone_from_the_list(
    daemons: Daemons, caplog: pytest.LogCaptureFixture
) -> None:
    alpha = await daemons.start("alpha").ready()
    beta = daemons.start("beta", new=False, ask=await mesh_address(alpha))
    code = await code_of(caplog)
    beta.signal(2)
    assert await beta.end() == 130
    await eventually(lambda: "asks no longer to join" in caplog.text)
    assert "was refused" not in caplog.text
    assert await alpha.get(REQUESTS) == []
    with pytest.raises(NotFound, match="no device asks this node"):
        await approve(alpha, code)


async def test_a_device_that_asks_anew_replaces_its_former_request(
    daemons: Daemons, caplog: pytest.LogCaptureFixture
) -> None:
    alpha = await daemons.start("alpha").ready()
    where = await mesh_address(alpha)
    beta = daemons.start("beta", new=False, ask=where)
    first = await code_of(caplog)
    beta.task.cancel()  # its connection may stay open for a while
    await asyncio.gather(beta.task, return_exceptions=True)
    beta.folder.close()
    daemons.start("beta", new=False, ask=where)
    second = await code_of(caplog, 2)
    assert len(await alpha.get(REQUESTS)) == 1
    assert first != second
    with pytest.raises(NotFound):
        await approve(alpha, first)
    await approve(alpha, second)
    await alpha.sees(2)


async def test_a_plain_member_refuses_and_names_a_node_that_may_admit(
    daemons: Daemons, caplog: pytest.LogCaptureFixture
) -> None:
    alpha = await daemons.start("alpha").ready()
    beta = daemons.start("beta", new=False, ask=await mesh_address(alpha))
    await approve(alpha, await code_of(caplog), role="member")
    await (await beta.ready()).sees(2)
    gamma = daemons.start("gamma", new=False, ask=await mesh_address(beta))
    with pytest.raises(HandshakeError, match=r"plain member.*alpha \(127.0.0.1:\d+\)"):
        await gamma.end()
    assert await beta.get(REQUESTS) == []


async def test_an_operator_admits_no_admin(
    daemons: Daemons, caplog: pytest.LogCaptureFixture
) -> None:
    alpha = await daemons.start("alpha").ready()
    beta = daemons.start("beta", await alpha.invite())
    await (await beta.ready()).sees(2)
    daemons.start("gamma", new=False, ask=await mesh_address(beta))
    code = await code_of(caplog)
    with pytest.raises(Forbidden):
        await approve(beta, code, role="admin")
    (waiting,) = await beta.get(REQUESTS)
    assert waiting["name"] == "gamma"
    assert (await approve(beta, code))["role"] == "operator"
    await alpha.sees(3)


async def test_too_many_from_one_address_are_told_to_use_an_invite(
    daemons: Daemons, caplog: pytest.LogCaptureFixture
) -> None:
    alpha = await daemons.start("alpha").ready()
    where = await mesh_address(alpha)
    for number in range(MAX_JOIN_REQUESTS_PER_SOURCE):
        daemons.start(f"device-{number}", new=False, ask=where)
    await code_of(caplog, MAX_JOIN_REQUESTS_PER_SOURCE)
    late = daemons.start("late", new=False, ask=where)
    with pytest.raises(HandshakeError, match=r"too many devices wait here.*meshnode invite"):
        await late.end()
    assert len(await alpha.get(REQUESTS)) == MAX_JOIN_REQUESTS_PER_SOURCE


async def test_who_stops_tells_the_devices_that_wait(
    daemons: Daemons, caplog: pytest.LogCaptureFixture
) -> None:
    alpha = await daemons.start("alpha").ready()
    beta = daemons.start("beta", new=False, ask=await mesh_address(alpha))
    await code_of(caplog)
    await alpha.stop()
    with pytest.raises(HandshakeError, match="the node is stopping"):
        await beta.end()


async def test_an_address_where_nothing_answers_is_named(daemons: Daemons) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        beta = daemons.start("beta", new=False, ask=f"127.0.0.1:{port}")
        with pytest.raises(LinkLost, match=rf"127.0.0.1:{port}.*refused.*port is open"):
            await beta.end()


async def test_a_name_that_nobody_has_is_a_mistake_and_founds_no_mesh(
    daemons: Daemons, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_network, "SEARCH_S", 0.0)
    with pytest.raises(ConfigError, match="no mesh and no node called kitchen"):
        await daemons.start("beta", new=False, ask="kitchen").end()
    assert not (daemons.folder / "beta" / "mesh").exists()


# Several nodes of one mesh, and the terminal


async def test_what_was_heard_is_asked_in_turn_until_one_lets_the_device_wait(
    daemons: Daemons, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node that is not there, a plain member, and then one that may admit; nobody else after it."""
    alpha = await daemons.start("alpha").ready()
    plain = daemons.start("plain", new=False, ask=await mesh_address(alpha))
    await approve(alpha, await code_of(caplog), role="member")
    await plain.ready()
    status = await alpha.get("/mesh/v1/status")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        places = [
            ("a-gone", NodeId("a" * 32), closed.getsockname()[1]),
            ("b-plain", await node_id(plain), int((await mesh_address(plain)).rpartition(":")[2])),
            ("c-alpha", await node_id(alpha), int((await mesh_address(alpha)).rpartition(":")[2])),
        ]
        heard = [
            Announcement(node, status["mesh"], name, (Address("127.0.0.1", port),))
            for name, node, port in places
        ]
        hear(monkeypatch, heard)
        device = daemons.start("device", new=False, ask=status["mesh"][:8])
        code = await code_of(caplog, 2)
    assert "type on c-alpha (127.0.0.1)" in caplog.text
    await approve(alpha, code)
    await device.ready()
    await alpha.sees(3)


async def test_on_a_terminal_the_person_chooses_and_sees_the_code(
    daemons: Daemons, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    alpha = await daemons.start("alpha").ready()
    await hear_daemon(monkeypatch, alpha)
    type_in(monkeypatch, "1\n")
    capsys.readouterr()
    beta = daemons.start("beta", new=False, on_terminal=True)
    shown = ""

    def code() -> re.Match[str] | None:
        nonlocal shown
        shown += capsys.readouterr().out
        return SHOWN.search(shown)

    found = await eventually(code)
    assert "  1  ask to join" in shown
    assert "  2  found a new mesh" in shown
    assert f"The code of this device is  {found[1][:3]} {found[1][3:]}" in shown
    assert "On heard (127.0.0.1), type within 5 min:" in shown
    await approve(alpha, found[1])
    await beta.ready()
    await alpha.sees(2)
    assert "admitted by heard" in capsys.readouterr().out


async def test_on_a_terminal_a_new_mesh_can_be_founded_beside_those_that_are_there(
    daemons: Daemons, monkeypatch: pytest.MonkeyPatch
) -> None:
    alpha = await daemons.start("alpha").ready()
    await hear_daemon(monkeypatch, alpha)
    type_in(monkeypatch, "2\n")
    beta = await daemons.start("beta", new=False, on_terminal=True).ready()
    one, other = [await each.get("/mesh/v1/status") for each in (alpha, beta)]
    assert one["mesh"] != other["mesh"]


async def test_on_a_terminal_that_is_closed_nothing_is_chosen(
    daemons: Daemons, monkeypatch: pytest.MonkeyPatch
) -> None:
    alpha = await daemons.start("alpha").ready()
    await hear_daemon(monkeypatch, alpha)
    type_in(monkeypatch, None)
    assert await daemons.start("beta", new=False, on_terminal=True).end() == 2


async def test_poisoned_mdns_leads_a_device_to_no_address_of_its_own_machine(
    daemons: Daemons, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that listens for its network does not talk to what listens on its loopback."""
    with socket.create_server(("127.0.0.1", 0)) as own:
        port = own.getsockname()[1]
        bad = Announcement(NodeId("a" * 32), "b" * 32, "bad", (Address("127.0.0.1", port),))
        hear(monkeypatch, [bad])
        everywhere = Address("0.0.0.0", 0)
        device = daemons.start("device", new=False, ask="bad", listen=everywhere)
        monkeypatch.setattr("meshnode.daemon.process.reachable_hosts", lambda _: ("192.0.2.1",))
        with pytest.raises(LinkLost, match="may not lead"):
            await device.end()


def hear(monkeypatch: pytest.MonkeyPatch, heard: list[Announcement]) -> None:
    """Let devices hear this by mDNS."""

    async def search(self: local_network.LocalNetwork) -> object:
        return meshes_of(heard)

    monkeypatch.setattr(local_network.LocalNetwork, "search", search)


async def hear_daemon(monkeypatch: pytest.MonkeyPatch, running: Running) -> None:
    status = await running.get("/mesh/v1/status")
    address = Address("127.0.0.1", int(status["mesh_address"].rpartition(":")[2]))
    hear(monkeypatch, [Announcement(NodeId(status["id"]), status["mesh"], "heard", (address,))])


def type_in(monkeypatch: pytest.MonkeyPatch, line: str | None) -> None:
    async def read() -> str | None:
        return line

    monkeypatch.setattr("meshnode.daemon.choosing.read_line", read)


async def node_id(running: Running) -> NodeId:
    return NodeId((await running.get("/mesh/v1/status"))["id"])
