"""The doctor inside whole daemons: faults that are made here, and what it says of each."""

from __future__ import annotations

import socket
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from meshnode import __version__
from meshnode.daemon import checkup, doctor
from meshnode.daemon.doctor import address_in
from meshnode.daemon.doctor_alone import examine_invite, examine_stopped
from meshnode.datafolder import DataFolder, Evicted
from meshnode.errors import InvalidRequest, Saturated
from meshnode.net import trial
from meshnode.net.clock import RealClock
from meshnode.net.mdns import Discovery
from meshnode.types import Address, NodeId, NodeState
from tests.unit.daemon.conftest import eventually

if TYPE_CHECKING:
    from meshnode.observations import CheckupSeen
    from tests.unit.daemon.conftest import Daemons, Running


class Skewed(RealClock):
    """A clock whose owner never set it."""

    def __init__(self, ahead_s: float) -> None:
        super().__init__()
        self._ahead_s = ahead_s

    def wall_s(self) -> float:
        return super().wall_s() + self._ahead_s


@pytest.fixture(autouse=True)
def brisk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loopback loses nothing: no need to wait for bursts of loss to end."""
    monkeypatch.setattr(checkup, "CHECKUP_KNOCK_INTERVAL_S", 0.02)
    monkeypatch.setattr(checkup, "CHECKUP_PAUSE_S", 0.0)


async def pair(daemons: Daemons, ahead_s: float = 0.0) -> tuple[Running, Running]:
    one = await daemons.start("one").ready()
    two = daemons.start("two", await one.invite())
    two.daemon._clock = Skewed(ahead_s)
    await two.ready()
    for each in (one, two):
        await each.sees(2)
    return one, two


async def examined(running: Running, peer: str) -> dict[str, dict[str, Any]]:
    found = await running.post("/mesh/v1/doctor", {"peer": peer})
    return {check["code"]: check for check in found["checks"]}


def results(checks: dict[str, dict[str, Any]]) -> dict[str, str]:
    return {code: check["result"] for code, check in checks.items()}


async def test_two_nodes_that_are_well_say_so_of_each_other_and_of_themselves(
    daemons: Daemons,
) -> None:
    one, two = await pair(daemons)
    for running, peer in ((one, "two"), (two, "one")):
        checks = await examined(running, peer)
        assert results(checks) == {"linked": "ok", "reachable": "ok", "udp": "ok"}
    own = await examined(one, "")
    assert results(own) == {"reachable": "ok", "only_here": "note", "mdns": "ok"}
    assert await examined(one, "one") == own


async def test_a_clock_that_is_wrong_is_found_from_both_sides(daemons: Daemons) -> None:
    one, two = await pair(daemons, ahead_s=250)
    assert (await examined(one, "two"))["clock"]["says"].startswith("the clock of two is 4 minutes")
    assert "behind this device's" in (await examined(two, "one"))["clock"]["says"]


async def test_a_clock_beyond_what_the_mesh_bears_is_a_fault(daemons: Daemons) -> None:
    one, two = await pair(daemons)
    two.daemon._clock._ahead_s = 3600.0  # type: ignore[attr-defined]
    assert (await examined(one, "two"))["clock"]["result"] == "fault"
    assert (await examined(two, "one"))["clock"]["result"] == "fault"


async def test_a_node_of_another_version_of_meshnode_is_noted(
    daemons: Daemons, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, _ = await pair(daemons)
    monkeypatch.setattr(checkup, "__version__", "99.0")
    check = (await examined(one, "two"))["version"]
    assert check["result"] == "note"
    assert "99.0" in check["says"]
    assert __version__ in check["says"]


async def test_a_key_that_was_seen_twice_is_reported_for_a_while(
    daemons: Daemons, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = await pair(daemons)
    peer = NodeId((await two.get("/mesh/v1/status"))["id"])
    driver = one.daemon._driver
    assert driver is not None
    driver._twins.note(peer)
    assert (await examined(one, "two"))["twin"]["result"] == "fault"
    monkeypatch.setattr(doctor, "TWIN_REMEMBERED_S", 0.0)
    assert "twin" not in await examined(one, "two")


async def test_a_peer_that_is_no_node_may_be_an_address_and_else_is_an_error(
    daemons: Daemons,
) -> None:
    one, two = await pair(daemons)
    address = (await two.get("/mesh/v1/status"))["mesh_address"]
    assert results(await examined(one, address)) == {"reachable": "ok"}
    assert (await examined(one, address))["reachable"]["says"].startswith("two answers there")
    assert results(await examined(one, "127.0.0.1:1")) == {"port_closed": "fault"}
    with pytest.raises(InvalidRequest, match="no node is called 'three'"):
        await examined(one, "three")


async def test_a_member_that_answers_at_an_address_and_is_not_known_here_is_a_fault(
    daemons: Daemons, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = await pair(daemons)
    status = await two.get("/mesh/v1/status")
    driver = one.daemon._driver
    assert driver is not None
    assert driver.node is not None
    membership = driver.node.membership
    members = dict(membership.members)
    member = members.pop(NodeId(status["id"]))
    monkeypatch.setattr(membership, "members", members)
    check = (await examined(one, status["mesh_address"]))["unknown_member"]
    assert check["result"] == "fault"
    assert status["id"] in check["says"]
    members[member.node_id] = replace(member, state=NodeState.DEAD)
    check = (await examined(one, status["mesh_address"]))["unknown_member"]
    assert check["says"].startswith(f"two ({member.node_id}) answers there")


async def test_a_member_whose_process_is_frozen_is_told_from_another_program(
    daemons: Daemons, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = await pair(daemons)
    status = await two.get("/mesh/v1/status")
    await two.kill()
    monkeypatch.setattr(trial, "HANDSHAKE_TIMEOUT_S", 0.05)
    host, port = status["mesh_address"].rsplit(":", 1)
    with socket.create_server((host, int(port))), socket.create_server((host, 0)) as other:
        for peer in ("two", status["mesh_address"]):
            assert "the process of two hangs" in (await examined(one, peer))["hangs"]["says"]
        assert "mute" in await examined(one, f"{host}:{other.getsockname()[1]}")


async def test_a_stopped_node_tries_the_members_that_it_knows(daemons: Daemons) -> None:
    one, two = await pair(daemons)
    folder = Path(two.options.data_dir)
    await eventually((folder / "state" / "members").exists, "the members are written down")
    await two.stop()

    async def codes(peer: str) -> list[set[str]]:
        return [
            {str(check["code"]) for check in subject["checks"]}
            async for subject in examine_stopped(folder, peer, RealClock())
        ]

    assert await codes("") == [{"not_running"}, {"reachable"}]
    assert await codes("one") == [{"not_running"}, {"reachable"}]
    assert await codes("127.0.0.1:1") == [{"not_running"}, {"port_closed"}]
    with pytest.raises(InvalidRequest, match="it knows one"):
        await codes("three")
    await one.stop()
    assert await codes("one") == [{"not_running"}, {"port_closed"}]


async def test_an_invite_is_tried_without_being_used(daemons: Daemons, tmp_path: Path) -> None:
    one = await daemons.start("one").ready()
    line = await one.invite()
    found = await examine_invite(line, tmp_path / "none", RealClock())
    assert {check["code"] for check in found["checks"]} == {"reachable", "invite"}
    assert not (tmp_path / "none").exists()
    assert len(await one.get("/mesh/v1/nodes")) == 1


async def test_a_device_whose_own_clock_is_wrong_learns_that_the_invite_is_not_to_blame(
    daemons: Daemons, tmp_path: Path
) -> None:
    one = await daemons.start("one").ready()
    line = await one.invite()
    found = await examine_invite(line, tmp_path / "none", Skewed(86_400.0))
    faults = {check["code"] for check in found["checks"] if check["result"] == "fault"}
    assert faults == {"expired", "clock"}


async def test_a_device_of_another_mesh_learns_that_before_it_tries_to_join(
    daemons: Daemons,
) -> None:
    one, other = await daemons.start("one").ready(), await daemons.start("other").ready()
    line = await one.invite()
    found = await examine_invite(line, Path(other.options.data_dir), RealClock())
    faults = {check["code"] for check in found["checks"] if check["result"] == "fault"}
    assert faults == {"wrong_mesh"}


def test_a_single_word_is_a_name_and_not_an_address() -> None:
    assert address_in("minipc") is None
    assert address_in("minipc.local") == Address("minipc.local", 8471)
    assert address_in("192.0.2.7:1") == Address("192.0.2.7", 1)
    assert address_in("192.0.2.7:port") is None


async def test_two_members_of_a_large_mesh_that_have_no_link_get_one_to_be_examined(
    daemons: Daemons, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, _ = await pair(daemons)
    driver = one.daemon._driver
    assert driver is not None
    monkeypatch.setattr(driver, "linked", lambda _: None)
    assert results(await examined(one, "two")) == {"linked": "ok", "reachable": "ok", "udp": "ok"}


async def test_a_peer_that_is_busy_is_asked_once_more_and_then_that_is_said(
    daemons: Daemons, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, _ = await pair(daemons)
    monkeypatch.setattr(doctor, "CHECKUP_PAUSE_S", 0.0)
    asked: list[NodeId] = []

    async def busy(_: checkup.Checkups, peer: NodeId) -> CheckupSeen:
        asked.append(peer)
        raise Saturated("it answers checkups already")

    monkeypatch.setattr(checkup.Checkups, "ask", busy)
    check = (await examined(one, "two"))["no_checkup"]
    assert check["result"] == "fault"
    assert "it answers checkups already" in check["says"]
    assert len(asked) == 2


async def test_a_node_with_mdns_hears_itself_and_its_neighbours(daemons: Daemons) -> None:
    options: dict[str, Any] = {"mdns": True, "mdns_interfaces": ("127.0.0.1",)}
    one = await daemons.start("one", **options).ready()
    two = await daemons.start("two", await one.invite(), **options).ready()
    await two.sees(2)
    check = (await examined(one, ""))["mdns"]
    assert check["says"] == "this node's announcement is heard, and 1 other node"


async def test_where_no_network_takes_multicast_the_doctor_says_so(
    daemons: Daemons, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(_: Discovery) -> Discovery:
        raise OSError("no such device")

    options: dict[str, Any] = {"mdns": True, "mdns_interfaces": ("127.0.0.1",)}
    one = await daemons.start("one", **options).ready()
    two = await daemons.start("two", await one.invite()).ready()
    await two.sees(2)
    monkeypatch.setattr(Discovery, "__aenter__", fail)
    monkeypatch.setattr(doctor, "shares_network", lambda _: True)
    check = (await examined(one, ""))["mdns_broken"]
    assert (check["result"], check["says"]) == ("note", "mDNS does not work here: no such device")
    assert "mdns_silent" not in await examined(one, "two")


async def test_a_device_without_a_mesh_is_told_what_there_is(
    daemons: Daemons, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "DOCTOR_LISTEN_S", 0.01)
    one = await daemons.start("one").ready()
    address = (await one.get("/mesh/v1/status"))["mesh_address"]

    async def codes(peer: str) -> set[str]:
        (found,) = [each async for each in examine_stopped(tmp_path / "none", peer, RealClock())]
        return {str(check["code"]) for check in found["checks"]}

    assert await codes(address) == {"reachable", "no_mesh"}
    assert "no_mesh" in await codes("")
    with pytest.raises(InvalidRequest, match="give an address"):
        await codes("one")


async def test_a_device_that_was_evicted_is_told_that_and_nothing_else(tmp_path: Path) -> None:
    folder = DataFolder(tmp_path)
    folder.evict(Evicted("aa", "one said that it was lost", "2026-01-01T00:00:00Z"))
    folder.close()
    (found,) = [each async for each in examine_stopped(tmp_path, "one", RealClock())]
    assert [check["code"] for check in found["checks"]] == ["revoked"]


async def test_a_node_that_was_evicted_is_known_by_its_name_until_another_has_it(
    daemons: Daemons,
) -> None:
    one, two = await pair(daemons)
    await one.post("/mesh/v1/evictions", {"node": "two", "reason": "it was lost"})
    assert await two.end() == 2
    check = (await examined(one, "two"))["revoked"]
    assert "it was lost" in check["says"]
