"""Two homes, each behind a router that lets nobody in, and boxes that both reach: the homes meet through one.

    laptop 192.168.1.10 ── router (NAT) 198.51.100.2 ───┐
                                                    internet ── 203.0.113.7 cloud
    phone  192.168.1.10 ── router2 (NAT) 198.51.100.130 ┘ └──── 203.0.114.7 office

Both homes even have the same private addresses, as homes do.
"""

from __future__ import annotations

import os
import signal
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.network.devices import Network, bridge, poll
from tests.network.lan import DIGITS, PORT, Host, environment

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.network.devices import Device

CLOUD, OFFICE, PHONE = "203.0.113.7", "203.0.114.7", "198.51.100.130"  # as the internet sees them
ROUTER_RULES = """table ip home {
    chain out { type nat hook postrouting priority srcnat; oifname "wan" masquerade random; }
    chain in { type nat hook prerouting priority dstnat; }
    chain pass { type filter hook forward priority filter; policy drop;
        iifname "lan" accept; ct state established,related accept; ct status dnat accept; }
}"""


def build_two_homes(network: Network) -> None:
    """Make the devices of the picture at the top of this file."""
    names = ("internet", "laptop", "router", "phone", "router2", "cloud", "office")
    internet, laptop, router, phone, router2, cloud, office = map(network.add, names)
    for home, gate, cable, net in (
        (laptop, router, "home", "198.51.100.0"),
        (phone, router2, "home2", "198.51.100.128"),
    ):
        first = int(net.rpartition(".")[2])
        bridge(network, gate, [home])
        gate.address("lan", "192.168.1.1/24")
        home.address("eth0", "192.168.1.10/24", "192.168.1.1")
        network.cable(gate, "wan", internet, cable)
        internet.address(cable, f"198.51.100.{first + 1}/25")
        gate.address("wan", f"198.51.100.{first + 2}/25", f"198.51.100.{first + 1}")
        gate.nft(ROUTER_RULES)
    for box, address in ((cloud, CLOUD), (office, OFFICE)):
        network.cable(box, "eth0", internet, box.name)
        gate_address = address.rpartition(".")[0] + ".1"
        internet.address(box.name, f"{gate_address}/24")
        box.address("eth0", f"{address}/24", gate_address)
    for forwarder in (router, router2, internet):
        forwarder.set("net/ipv4/ip_forward", "1")


class Box(Host):
    """A node in the internet; its relay does harm when it is told to."""

    program = "tests.network.losing_relay"

    def relays(self, harm: str = "") -> None:
        """Relay like this from now on: honestly, or as `tests.network.losing_relay` says."""
        self.device.write("relays", harm)


@pytest.fixture(scope="module")
def homes() -> Iterator[tuple[Host, Host, Host, Host]]:
    """The laptop, the phone (which serves the digits), and two boxes."""
    with (
        tempfile.TemporaryDirectory(prefix="homes-") as folder,
        Network(Path(folder), environment()) as network,
    ):
        build_two_homes(network)
        devices = network.devices
        cloud = Box(devices["cloud"], CLOUD).join("--new", "--advertise", CLOUD, "--no-mdns")
        hosts: list[Host] = [cloud]
        try:
            cloud.ready()
            for name, more in (
                ("office", ["--advertise", OFFICE]),
                ("laptop", []),
                (
                    "phone",
                    ["--advertise", PHONE, "--models", str(repository(devices["phone"]))],
                ),
            ):
                kind = Box if name == "office" else Host
                hosts.append(kind(devices[name], name))
                hosts[-1].join(cloud.invite(), "--no-mdns", *more).ready()
            _, office, laptop, phone = hosts
            yield laptop, phone, cloud, office
        finally:
            for host in hosts:
                host.end()


def repository(device: Device) -> Path:
    """Make a model repository with the digits on a device."""
    folder = device.home / "models" / "digits" / "1"
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(DIGITS.read_bytes())
    return folder.parents[1]


def path_to(host: Host, other: str) -> str:
    """How one sees the way to another: `direct`, `relayed via X`, or none."""
    node = host.nodes()[other]
    return f"relayed via {node['relay']}" if node.get("relay") else str(node.get("path"))


def is_relayed(host: Host, other: str) -> bool:
    return path_to(host, other).startswith("relayed")


def test_two_homes_meet_through_a_box(homes: tuple[Host, Host, Host, Host]) -> None:
    laptop, phone, _, _ = homes
    for host in homes:
        poll(lambda host=host: host.sees("cloud", "office", "laptop", "phone"), 30, "all see all")
    poll(laptop.infers, 20, "the laptop's request is answered by the phone")
    assert is_relayed(laptop, "phone")
    poll(lambda: is_relayed(phone, "laptop"), 5, "the phone says so too")
    assert path_to(laptop, "cloud") == "direct"
    code, output = laptop.run("rtt laptop phone")
    assert code == 0
    assert "via" in output


def test_a_hundred_requests_through_the_relay_all_succeed(
    homes: tuple[Host, Host, Host, Host],
) -> None:
    laptop = homes[0]
    assert all(laptop.infers() for _ in range(100))


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_when_the_relay_dies_or_freezes_another_one_takes_its_place_soon(
    homes: tuple[Host, Host, Host, Host], how: signal.Signals
) -> None:
    laptop, phone, cloud, office = homes
    poll(laptop.infers, 20, "a request is answered before")
    relay = path_to(laptop, "phone").removeprefix("relayed via ")
    box = cloud if relay == "cloud" else office
    began = time.monotonic()
    assert box.process is not None
    for pid in box.device.processes():
        os.kill(pid, how)
    poll(laptop.infers, 10, "a request is answered again")
    took_s = time.monotonic() - began
    poll(lambda: path_to(laptop, "phone") not in (f"relayed via {relay}", "none"), 10, "another")
    assert took_s < 5, f"answered again after {took_s:.2f} s"
    if how is signal.SIGSTOP:
        for pid in box.device.processes():
            os.kill(pid, signal.SIGCONT)
    else:
        box.process.wait()
        box.process = None
        address = CLOUD if relay == "cloud" else OFFICE
        box.join("--advertise", address, "--no-mdns").ready()
    poll(lambda: laptop.sees("cloud", "office", "laptop", "phone"), 30, "all are back")
    for home in (laptop, phone):  # the next relay that goes must find its twin in place
        poll(
            lambda home=home: path_to(home, "cloud") == path_to(home, "office") == "direct",
            10,
            "both homes have links to both boxes",
        )


@pytest.mark.parametrize("harm", ["hole", "loses"])
def test_a_relay_that_swallows_or_loses_what_it_relays_costs_no_request_but_a_moment(
    homes: tuple[Host, Host, Host, Host], harm: str
) -> None:
    laptop, _, cloud, office = homes
    poll(laptop.infers, 20, "a request is answered before")
    relay = path_to(laptop, "phone").removeprefix("relayed via ")
    bad, good = (cloud, office) if relay == "cloud" else (office, cloud)
    assert isinstance(bad, Box)
    bad.relays(harm)
    began = time.monotonic()
    lost = 0

    def is_left() -> bool:
        nonlocal lost
        lost += not laptop.infers()
        return path_to(laptop, "phone") == f"relayed via {good.name}"

    try:
        poll(is_left, 15, "the other one is taken")
        took_s = time.monotonic() - began
        lost += sum(not laptop.infers() for _ in range(50))
    finally:
        bad.relays()
    assert lost == 0
    assert took_s < 5, f"taken after {took_s:.2f} s"


def test_when_a_router_lets_somebody_in_the_direct_way_is_taken_without_a_lost_request(
    homes: tuple[Host, Host, Host, Host],
) -> None:
    laptop, phone, _, _ = homes
    poll(laptop.infers, 20, "a request is answered before")
    assert is_relayed(laptop, "phone")
    # Until now the phone told an address at which its router refused everybody.
    phone.device.network.devices["router2"].nft(
        f"add rule ip home in iifname wan tcp dport {PORT} dnat to 192.168.1.10:{PORT}; "
        f"add rule ip home in iifname wan udp dport {PORT} dnat to 192.168.1.10:{PORT}"
    )
    lost = 0

    def is_direct() -> bool:
        nonlocal lost
        lost += not laptop.infers()
        return path_to(laptop, "phone") == "direct"

    poll(is_direct, 60, "the direct way is taken")
    assert laptop.infers()
    assert lost == 0
