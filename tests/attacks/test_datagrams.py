"""Datagrams of attackers: reflected, amplified, replayed, forged, too many; addresses moved by force."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from meshnode.limits import MAX_BAD_DATAGRAMS, MAX_DATAGRAM_BYTES
from meshnode.trust.paths import CHALLENGE_BYTES
from meshnode.types import Address
from tests.unit.daemon.routers import (
    CLOUD,
    HOME,
    ROUTER,
    VICTIM,
    Network,
    Node,
    home_and_cloud,
    to_victim,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshnode.types import NodeId


@pytest.fixture
def network() -> Network:
    return Network()


def test_strangers_get_no_answer_whatever_they_send(network: Network) -> None:
    """Nothing is reflected: not to garbage, nor to members of other meshes, nor to those evicted."""
    _, cloud = home_and_cloud(network)
    stranger = Node(network, "stranger", VICTIM, 3)
    stranger.knows(cloud)
    stranger.send(cloud)
    for size in (0, 1, 53, 200, MAX_DATAGRAM_BYTES, MAX_DATAGRAM_BYTES + 1):
        cloud.receive(bytes([1]) * size, VICTIM)
    assert to_victim(network) == []
    assert cloud.heard == []
    assert sum(cloud.dropped.values()) == 7


def test_a_copy_sent_from_elsewhere_moves_nothing(network: Network) -> None:
    home, cloud = home_and_cloud(network)
    home.send(cloud)
    sent = [data for source, to, data in network.sent if to == CLOUD and source == ROUTER]
    for data in sent:
        cloud.receive(data, VICTIM)
    assert to_victim(network) == []
    assert cloud.dropped["replayed"] == len(sent)
    cloud.send(home, b"unmoved")
    assert home.heard == [b"unmoved"]


def test_a_copy_that_overtakes_the_original_moves_nothing_either(network: Network) -> None:
    home, cloud = home_and_cloud(network)
    home.send(cloud)
    network.delivers = False
    home.send(cloud)
    overtaking = network.sent[-1][2]
    network.delivers = True
    cloud.receive(overtaking, VICTIM)
    assert [len(data) for data in to_victim(network)] == [CHALLENGE_BYTES]
    cloud.receive(overtaking, ROUTER)  # the original: late, and a copy now
    cloud.send(home, b"unmoved")
    assert home.heard == [b"unmoved"]


@pytest.mark.parametrize("payload_bytes", [0, 1, 12, 500])
def test_a_member_cannot_make_others_send_a_third_party_more_than_it_sends(
    network: Network, payload_bytes: int
) -> None:
    home, cloud = home_and_cloud(network)
    came = 0
    for second in range(300):
        network.now = second / 10
        network.delivers = False
        home.send(cloud, bytes(payload_bytes))
        network.delivers = True
        data = network.sent[-1][2]
        came += len(data)
        cloud.receive(data, VICTIM)
        assert sum(map(len, to_victim(network))) <= came
    assert len(to_victim(network)) <= 6  # and ever less often
    cloud.send(home)
    assert network.sent[-1][1] == HOME  # no place that has not answered is used


@pytest.mark.parametrize("host", ["127.0.0.1", "169.254.169.254", "224.0.0.1", "::1"])
def test_no_source_makes_a_node_send_to_its_own_machine_or_to_a_cloud_s_metadata(
    network: Network, host: str
) -> None:
    home, cloud = home_and_cloud(network)
    network.delivers = False
    home.send(cloud)
    network.delivers = True
    cloud.receive(network.sent[-1][2], Address(host, 80))
    assert cloud.heard
    assert to_victim(network, Address(host, 80)) == []


def flood(node: Node, source: Address, make: Callable[[int], bytes], count: int = 5000) -> None:
    for number in range(count):
        node.receive(make(number), source)


def test_a_flood_is_read_no_more_and_a_member_behind_the_same_address_still_is(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, cloud = home_and_cloud(network)
    home.send(cloud)
    opened: list[bytes] = []
    real_open = cloud.datagrams.seal.open

    def counting(data: bytes, keys: Any) -> tuple[NodeId, bytes]:
        opened.append(data)
        return real_open(data, keys)

    monkeypatch.setattr(cloud.datagrams.seal, "open", counting)
    flood(cloud, ROUTER, lambda number: number.to_bytes(200, "big"))
    assert cloud.dropped["throttled"] == 5000 - MAX_BAD_DATAGRAMS
    assert len(opened) == MAX_BAD_DATAGRAMS
    home.send(cloud, b"a member")
    assert cloud.heard[-1] == b"a member"
    other_port = Address(ROUTER.host, 1)
    network.delivers = False
    home.send(cloud, b"from an unknown place")
    cloud.receive(network.sent[-1][2], other_port)
    assert cloud.heard[-1] == b"a member"  # its router maps anew in the middle of a flood: later
    network.now += 1.0
    network.delivers = True
    home.send(cloud, b"later")
    assert cloud.heard[-1] == b"later"


def test_forged_datagrams_in_a_member_s_name_cost_a_bounded_number_of_openings(
    network: Network,
) -> None:
    """They bear the member's run, but come from elsewhere than it is known to be."""
    home, cloud = home_and_cloud(network)
    home.send(cloud)
    real = network.sent[-1][2]

    def forged(number: int) -> bytes:
        counter = (1000 + number).to_bytes(8, "big")
        return real[:29] + counter + bytes(100)

    flood(cloud, VICTIM, forged)
    assert cloud.dropped["forged"] == MAX_BAD_DATAGRAMS
    assert to_victim(network) == []
    home.send(cloud, b"unharmed")
    assert cloud.heard[-1] == b"unharmed"


def test_malformed_messages_about_paths_are_counted(network: Network) -> None:
    home, cloud = home_and_cloud(network)
    for payload in (b"\x92\x4d\xc4\x00", b"\x92\x4d\x05", b"\x92\x4e\xc4\x04abcd", b"\x91\x4d"):
        home.send(cloud, payload)
    assert cloud.dropped["path"] == 4
    assert cloud.heard == []
