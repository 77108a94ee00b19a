"""A home behind a router and a box in a cloud: datagrams find their way, also when it changes."""

from __future__ import annotations

import re
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from meshnode.client.control import control_address
from tests.first_hour.network import build_home_and_cloud
from tests.network.devices import Network, poll
from tests.network.lan import PORT, Host, Lan, environment

if TYPE_CHECKING:
    from collections.abc import Iterator

CLOUD = "203.0.113.7"


@pytest.fixture(scope="module")
def hosts() -> Iterator[tuple[Host, Host, Host]]:
    """A cloud and two devices of a home, whose router gives every connection a port of its own."""
    with (
        tempfile.TemporaryDirectory(prefix="home-") as folder,
        Network(Path(folder), environment()) as network,
    ):
        build_home_and_cloud(network)
        devices = network.devices
        devices["cloud"].nft(
            f"add rule inet firewall input tcp dport {PORT} accept; "
            f"add rule inet firewall input udp dport {PORT} accept"
        )
        devices["router"].nft(
            'flush chain ip home out; add rule ip home out oifname "wan" masquerade random'
        )
        cloud = Host(devices["cloud"], CLOUD).join("--new", "--advertise", CLOUD, "--no-mdns")
        laptop, minipc = (Host(devices[name], name) for name in ("laptop", "minipc"))
        try:
            cloud.ready()
            for home in (laptop, minipc):
                home.join(cloud.invite(), "--no-mdns").ready()
            yield cloud, laptop, minipc
        finally:
            for host in (cloud, laptop, minipc):
                host.end()


def count(host: Host, metric: str) -> float:
    """Return the sum of a metric's values at a node."""
    at = control_address(host.data_dir).unix
    words = ["curl", "--silent", "--unix-socket", str(at), "http://localhost/metrics"]
    text = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    return sum(float(value) for value in re.findall(rf"^{metric}\S* (\S+)$", text, re.MULTILINE))


def asked_by_link(host: Host) -> float:
    """How often a node had to probe over a link, because no datagram was answered."""
    return count(host, r'meshnode_notes_sent_total\{kind="ping"')


def wait_for_datagrams(host: Host, number: int) -> None:
    before = count(host, "meshnode_datagrams_received_total")
    poll(
        lambda: count(host, "meshnode_datagrams_received_total") >= before + number,
        30,
        f"{host.name} receives datagrams",
    )


def test_a_home_behind_a_router_and_a_cloud_speak_udp(hosts: tuple[Host, Host, Host]) -> None:
    cloud, laptop, minipc = hosts
    for host in hosts:
        poll(lambda host=host: host.sees("cloud", "laptop", "minipc"), 30, "all see all")
    poll(lambda: count(cloud, "meshnode_paths_moved_total") == 2, 10, "both homes have answered")
    before = asked_by_link(cloud)  # until then the cloud could not know
    for host in hosts:
        wait_for_datagrams(host, 8)
    assert asked_by_link(cloud) == before
    assert asked_by_link(laptop) == asked_by_link(minipc) == 0
    assert "udp_blocked" not in cloud.log + laptop.log + minipc.log


def test_a_router_that_forgets_everything_costs_nobody_its_life(
    hosts: tuple[Host, Host, Host],
) -> None:
    cloud, laptop, minipc = hosts
    moved = count(cloud, "meshnode_paths_moved_total")
    router = cloud.device.network.devices["router"]
    router.ip("link", "set", "wan", "down")  # forgets all mappings, as a router that starts again
    router.ip("link", "set", "wan", "up")
    router.ip("route", "add", "default", "via", "198.51.100.1")
    poll(
        lambda: count(cloud, "meshnode_paths_moved_total") >= moved + 2, 30, "new places are found"
    )
    wait_for_datagrams(laptop, 6)
    wait_for_datagrams(minipc, 6)
    assert cloud.sees("cloud", "laptop", "minipc")
    assert "member.dead" not in cloud.log + laptop.log + minipc.log


def test_two_nodes_that_both_got_another_address_while_apart_find_each_other_by_mdns() -> None:
    with (
        tempfile.TemporaryDirectory(prefix="lan-") as folder,
        Network(Path(folder), environment()) as network,
    ):
        lan = Lan(network)
        one, two = lan.add("one", "two")
        try:
            lan.grow()
            one.end()
            two.end()
            one.move("10.7.0.51")
            two.move("10.7.0.52")
            one.join().ready()
            two.join().ready()
            lan.wait_whole()
        finally:
            lan.close()
