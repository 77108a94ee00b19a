"""Five hosts on a bridge: a mesh that is torn, shaken and moved, and comes back by itself."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from meshnode.errors import MeshError
from tests.network.devices import poll
from tests.network.lan import DIGITS, IMAGE, PORT, Host, Lan

pytestmark = [pytest.mark.slow, pytest.mark.e2e]

NAMES = ("one", "two", "three", "four", "five")


@pytest.fixture(scope="module")
def hosts(lan: Lan) -> list[Host]:
    lan.add(*NAMES)
    lan.grow()
    wish = {"path": str(DIGITS), "name": "digits", "replicas": 2, "on": ["one", "four"]}
    lan.hosts[0].client.post("/mesh/v1/deployments", wish, timeout_s=60)
    for host in lan.hosts:
        poll(host.infers, 30, f"{host.name} is answered")
    return lan.hosts


@pytest.fixture(autouse=True)
def healed(lan: Lan, hosts: list[Host]) -> None:
    """Begin each test with a whole mesh and no firewall."""
    lan.heal()
    lan.wait_whole(60)


def test_the_doctor_finds_nothing_to_mend_on_a_mesh_that_is_well(hosts: list[Host]) -> None:
    found = hosts[2].doctor()
    assert found["fault"] == set()
    assert {"linked", "reachable", "udp", "mdns"} <= found["ok"]


def test_a_torn_mesh_serves_on_both_sides_and_heals_unaided(lan: Lan, hosts: list[Host]) -> None:
    left, right = hosts[:2], hosts[2:]
    lan.part(left, right)
    for host, side in ((hosts[0], left), (hosts[4], right)):
        poll(lambda host=host, side=side: host.sees(*(each.name for each in side)), 60, "it parts")
    assert hosts[1].infers()
    assert hosts[2].infers()
    lan.heal()
    lan.wait_whole(60)


def lose_packets(hosts: list[Host]) -> None:
    """Let every host drop three of ten packets that come in."""
    for host in hosts:
        host.block("numgen random mod 10 < 3 drop")


def nobody_is_dead(hosts: list[Host]) -> bool:
    return not any(node["state"] == "dead" for host in hosts for node in host.nodes().values())


def test_a_third_of_all_packets_lost_kills_nobody(hosts: list[Host]) -> None:
    lose_packets(hosts)
    deadline = time.monotonic() + 4
    answered = 0
    while time.monotonic() < deadline:
        assert nobody_is_dead(hosts), hosts[0].nodes()
        answered += hosts[1].infers()
    assert answered > 0


@pytest.mark.soak
def test_every_request_is_answered_while_a_third_of_all_packets_is_lost_for_long(
    hosts: list[Host],
) -> None:
    lose_packets(hosts)
    deadline = time.monotonic() + 30
    asked, failed = 0, []
    while time.monotonic() < deadline:
        assert nobody_is_dead(hosts), hosts[0].nodes()
        for host in hosts:
            asked += 1
            try:
                host.client.post("/v2/models/digits/infer", IMAGE)  # in the time that clients give
            except MeshError as error:
                failed.append(f"{host.name}: {error}")
    assert not failed, f"{len(failed)} of {asked}: {failed}"
    assert not any("member.dead" in host.log for host in hosts)


def test_a_host_whose_udp_is_blocked_stays_alive_and_serves(hosts: list[Host]) -> None:
    walled = hosts[3]
    walled.block(f"udp dport {PORT} drop")
    poll(lambda: "udp_blocked" in "".join(host.log for host in hosts), 30, "somebody warns")
    assert all(host.nodes()["four"]["state"] == "alive" for host in hosts)
    assert all(host.infers() for host in hosts)
    with ThreadPoolExecutor() as pool:  # most of it is waiting
        seen_by_one = pool.submit(hosts[0].faults, "four")
        assert walled.faults("one") == {"udp_blocked_in"}
        assert seen_by_one.result() == {"udp_blocked_out"}


def test_a_host_that_gets_another_address_is_found_there(lan: Lan, hosts: list[Host]) -> None:
    mover = hosts[4]
    mover.move("10.7.0.99")
    lan.wait_whole(60)
    poll(lambda: hosts[0].nodes()["five"]["mesh"] == f"10.7.0.99:{PORT}", 60, "its record says so")
    assert hosts[0].faults("five") == set()


def test_a_host_evicted_behind_a_torn_network_is_out_and_told_once_that_heals(
    lan: Lan, hosts: list[Host]
) -> None:
    """It comes last: the mesh of this module has a host less from here on."""
    one, two, three, four, five = hosts
    lan.part([one, two, three], [four, five])
    poll(lambda: one.sees("one", "two", "three"), 60, "the network is torn")
    evicted_id = one.nodes()["five"]["id"]
    one.client.post("/mesh/v1/evictions", {"node": evicted_id, "reason": "it was lost"})
    poll(lambda: "five" not in two.nodes(), 10, "two has heard of it")
    assert one.faults("five") == {"revoked"}
    poll(lambda: four.sees("four", "five"), 60, "nobody could tell them yet")
    lan.heal()
    for host in (one, two, three, four):
        poll(lambda host=host: host.sees("one", "two", "three", "four"), 60, "the others are whole")
        assert "five" not in host.nodes()
    assert five.process is not None
    assert five.process.wait(60) == 2
    assert "evicted" in five.log
    assert "it was lost" in five.log
    assert five.faults("one") == {"revoked"}
    assert all(host.infers() for host in (one, two, three, four))
