"""A running node follows the addresses of its machine."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from meshnode.daemon import own_node, whereabouts
from meshnode.daemon.whereabouts import Whereabouts
from meshnode.types import Address
from tests.unit.daemon.conftest import eventually

if TYPE_CHECKING:
    from tests.unit.daemon.conftest import Daemons

EVERYWHERE = Address("0.0.0.0", 8471)


class Machine:
    """A machine's addresses, and what its node was told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.hosts: tuple[str, ...] = ("192.168.1.10", "10.8.0.2")
        self.told: list[tuple[str, Any]] = []
        for module in (whereabouts, own_node):
            monkeypatch.setattr(module, "reachable_hosts", lambda _: self.hosts)

    def whereabouts(self, advertise: tuple[tuple[str, int | None], ...] = ()) -> Whereabouts:
        def tell(what: str) -> Any:
            return lambda *arguments: self.told.append((what, *arguments))

        mesh = SimpleNamespace(
            driver=SimpleNamespace(reached_at=tell("reached at")),
            hub=SimpleNamespace(leave_addresses=tell("leave")),
            moved=tell("moved"),
        )
        options = SimpleNamespace(advertise=advertise)
        return Whereabouts(cast("Any", mesh), cast("Any", options), EVERYWHERE)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


def test_nothing_is_told_while_nothing_changes(machine: Machine) -> None:
    assert not machine.whereabouts().look()
    assert machine.told == []


def test_another_address_is_told_and_links_from_the_former_one_are_parted_with(
    machine: Machine,
) -> None:
    here = machine.whereabouts()
    machine.hosts = ("192.168.7.20", "10.8.0.2")
    assert here.look()
    assert machine.told == [
        ("reached at", machine.hosts),
        ("leave", frozenset({"192.168.1.10"})),
        ("moved", tuple(Address(host, 8471) for host in machine.hosts)),
    ]
    assert not here.look()
    assert repr(here) == "<Whereabouts 192.168.7.20, 10.8.0.2>"


def test_what_the_owner_advertises_stays_what_others_are_told(machine: Machine) -> None:
    here = machine.whereabouts(advertise=(("mesh.example", 9000), ("203.0.113.7", None)))
    machine.hosts = ("192.168.7.20",)
    assert here.look()
    advertised = (Address("mesh.example", 9000), Address("203.0.113.7", 8471))
    assert machine.told[-1] == ("moved", advertised)


def test_a_machine_that_lost_its_network_keeps_what_it_told(machine: Machine) -> None:
    here = machine.whereabouts()
    machine.hosts = ("127.0.0.1", "::1")
    assert not here.look()
    machine.hosts = ("192.168.1.10", "10.8.0.2")  # the same network is back
    assert not here.look()
    assert machine.told == []


async def test_a_daemon_that_gets_another_address_is_known_by_it_with_its_gateway(
    daemons: Daemons, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(whereabouts, "ADDRESS_POLL_S", 0.01)
    machine = Machine(monkeypatch)
    machine.hosts = ("127.0.0.1", "192.0.2.1")
    alpha = await daemons.start("alpha", http=Address("0.0.0.0", 0)).ready()
    beta = await daemons.start("beta", await alpha.invite()).ready()
    await beta.sees(2)
    before = (await alpha.get("/mesh/v1/status"))["http"]
    driver = beta.daemon._driver
    assert driver is not None
    assert driver.node is not None
    members = driver.node.membership.members
    me = (await alpha.get("/mesh/v1/status"))["id"]
    port = members[me].record.addresses[0][1]
    machine.hosts = ("127.0.0.1", "192.0.2.2")
    now_at = ((host, port) for host in machine.hosts)
    await eventually(lambda: "192.0.2.2" in members[me].record.http)
    assert tuple(tuple(each) for each in members[me].record.addresses) == tuple(now_at)
    after = before.replace("192.0.2.1", "192.0.2.2")
    assert after != before
    assert (await alpha.get("/mesh/v1/status"))["http"] == after
    assert f"http://{members[me].record.http}" == after
    await beta.sees(2)
