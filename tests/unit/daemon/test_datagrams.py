"""Where datagrams go: behind routers, after a move, by the run that a link or a record shows."""

from __future__ import annotations

import pytest

from meshnode.limits import PATH_KEEPALIVE_S, PATH_LIFETIME_S
from meshnode.types import Address, NodeId
from tests.unit.daemon.routers import CLOUD, HOME, ROUTER, Network, Node, home_and_cloud, to_victim


@pytest.fixture
def network() -> Network:
    return Network()


def test_a_cloud_reaches_a_home_behind_a_router_once_that_has_spoken(network: Network) -> None:
    home, cloud = home_and_cloud(network)
    cloud.send(home, b"early")
    assert home.heard == []
    home.send(cloud, b"a ping with a coordinate")
    cloud.send(home, b"hello behind the router")
    assert home.heard == [b"hello behind the router"]
    assert cloud.datagrams.paths.moved == 1
    assert home.datagrams.paths.moved == 0


def test_who_dialled_shows_its_place_as_soon_as_the_link_is_up(network: Network) -> None:
    """Nothing was told yet: the first probe of the other side must not be lost."""
    home, cloud = home_and_cloud(network)
    home.members.clear()
    home.linked[cloud.id] = (CLOUD, True)
    cloud.linked[home.id] = (Address(ROUTER.host, 55_555), False)
    home.datagrams.link_up(cloud.id)
    cloud.send(home, b"first")
    assert home.heard == [b"first"]
    assert cloud.heard == []
    cloud.datagrams.link_up(home.id)  # this one was dialled: it has nothing to show
    assert len(to_victim(network, HOME)) == 0


def test_a_router_that_maps_anew_is_followed(network: Network) -> None:
    home, cloud = home_and_cloud(network)
    home.send(cloud)
    network.routers[HOME] = Address(ROUTER.host, 50_000)
    cloud.send(home, b"lost")
    home.send(cloud)
    cloud.send(home, b"found again")
    assert home.heard == [b"found again"]


def test_a_home_keeps_the_router_s_mapping_to_linked_peers(network: Network) -> None:
    home, cloud = home_and_cloud(network)
    home.linked[cloud.id] = (CLOUD, True)
    home.send(cloud)
    count = len(network.sent)
    home.datagrams.keep_paths()
    assert len(network.sent) == count
    for _ in range(20):
        network.now += PATH_KEEPALIVE_S
        home.datagrams.keep_paths()
    assert len(network.sent) == count + 20
    assert network.now > PATH_LIFETIME_S
    cloud.send(home, b"still here")
    assert home.heard == [b"still here"]
    assert len(cloud.heard) == 1  # what keeps a path open is nobody's message


def test_a_member_that_is_gone_is_looked_for_where_its_record_says(network: Network) -> None:
    home, cloud = home_and_cloud(network)
    home.send(cloud)
    cloud.datagrams.gone(home.id)
    cloud.send(home)
    assert network.sent[-1][1] == HOME
    del cloud.keys[home.id]
    home.send(cloud)
    cloud.send(home)
    assert cloud.dropped == {"unknown": 1, "no_address": 1}


def test_a_link_shows_the_run_of_a_peer_better_than_an_older_record(network: Network) -> None:
    home, cloud = home_and_cloud(network)
    restarted = Node(network, "home", HOME, 9)
    restarted.knows(cloud)
    cloud.boots[home.id] = 9
    assert cloud.datagrams.seal.set_peer_boot(home.id, 9)
    cloud.datagrams.learn(cloud.members[home.id].record)  # a late echo of the former run
    restarted.send(cloud, b"again")
    assert cloud.heard == [b"again"]
    del cloud.boots[home.id]
    cloud.datagrams.link_down(home.id)
    cloud.datagrams.link_down(NodeId("nobody"))
    home.send(cloud, b"by the record")
    assert cloud.heard[1:] == [b"by the record"]
