"""Which of the gateways that mDNS tells of a client uses, and where its key goes."""

from __future__ import annotations

import pytest

from meshnode import AsyncMeshClient, MeshClient
from meshnode.client import discovery
from meshnode.client.endpoints import named_gateways
from meshnode.client.found_gateways import choose
from meshnode.errors import ConfigError
from meshnode.net import mdns
from meshnode.net.mdns import Announcement, Discovery
from meshnode.types import Address, NodeId

A, B = "a" * 32, "b" * 32
OWN = frozenset({"192.0.2.1", "127.0.0.1"})


def node(
    gateway: str, *, mesh: str = A, name: str = "alpha", host: str = "192.0.2.1"
) -> Announcement:
    return Announcement(NodeId(name.ljust(32, "a")), mesh, name, (Address(host, 8471),), gateway)


HERE = node("http://127.0.0.1:8470")
OTHER_LOOPBACK = node("http://127.0.0.1:8470", name="beta", host="192.0.2.2")
PLAIN = node("http://192.0.2.2:8470", name="gamma", host="192.0.2.2")
SECURE = node("https://192.0.2.3:8470", name="delta", host="192.0.2.3")


def test_without_a_key_only_this_machines_gateways_are_used() -> None:
    assert choose([PLAIN, SECURE, HERE], OWN, None, has_key=False) == ["http://127.0.0.1:8470"]
    with pytest.raises(ConfigError, match=r"192\.0\.2\.2:8470.*without an API key"):
        choose([PLAIN, SECURE], OWN, None, has_key=False)


def test_a_key_goes_only_where_a_certificate_is_shown() -> None:
    assert choose([PLAIN, SECURE, HERE], OWN, None, has_key=True) == ["https://192.0.2.3:8470"]
    with pytest.raises(ConfigError, match="an API key is not sent to a gateway"):
        choose([PLAIN, HERE], OWN, None, has_key=True)


def test_another_machines_loopback_is_not_ours() -> None:
    with pytest.raises(ConfigError, match="no gateway was found"):
        choose([OTHER_LOOPBACK], OWN, None, has_key=False)


def test_nodes_without_a_gateway_and_an_empty_network_are_told() -> None:
    with pytest.raises(ConfigError, match="no gateway was found"):
        choose([node("")], OWN, None, has_key=False)
    with pytest.raises(ConfigError, match="no node was heard"):
        choose([], OWN, None, has_key=False)


def test_several_meshes_want_a_choice() -> None:
    other = node("http://127.0.0.1:9000", mesh=B, name="omega")
    with pytest.raises(
        ConfigError, match=r"several meshes.*aaaaaaaa \(alpha\); bbbbbbbb \(omega\)"
    ):
        choose([HERE, other], OWN, None, has_key=False)
    assert choose([HERE, other], OWN, "bbbb", has_key=False) == ["http://127.0.0.1:9000"]
    with pytest.raises(ConfigError, match="no node of the mesh cc"):
        choose([HERE, other], OWN, "cc", has_key=False)


def test_either_variable_names_gateways_and_both_must_agree() -> None:
    assert named_gateways({"MESHNODE_URL": "http://a, http://b"}) == ["http://a", "http://b"]
    both = {"MESHNODE_URL": "http://a", "MESHNODE_GATEWAY": "http://a"}
    assert named_gateways(both) == ["http://a"]
    with pytest.raises(ConfigError, match="different"):
        named_gateways(both | {"MESHNODE_URL": "http://c"})
    assert named_gateways({}) == []


async def test_where_a_variable_names_gateways_nobody_is_looked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MESHNODE_URL", "http://192.0.2.9:1")
    monkeypatch.delenv("MESHNODE_GATEWAY", raising=False)
    assert "192.0.2.9:1" in repr(await AsyncMeshClient.discover(wait_s=600))
    with MeshClient.discover(wait_s=600) as found:
        assert "192.0.2.9:1" in repr(found)


async def test_a_node_that_announces_itself_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MESHNODE_URL", "MESHNODE_GATEWAY", "MESHNODE_API_KEY", "MESHNODE_API_KEY_FILE"):
        monkeypatch.delenv(name, raising=False)
    told = Announcement(
        NodeId("q" * 32), B, "found", (Address("127.0.0.1", 8471),), "http://127.0.0.1:8999"
    )
    async with Discovery(lambda _: None, ["127.0.0.1"]) as announcing:
        await announcing.announce(told)
        target = await discovery.find(B, None, None, 1.0, ["127.0.0.1"])
    assert [each.url for each in target.endpoints] == ["http://127.0.0.1:8999"]


def test_a_machine_without_multicast_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MESHNODE_URL", "MESHNODE_GATEWAY"):
        monkeypatch.delenv(name, raising=False)

    async def fails(_: Discovery) -> Discovery:
        raise OSError("no such device")

    monkeypatch.setattr(mdns.Discovery, "__aenter__", fails)
    with pytest.raises(ConfigError, match=r"cannot be searched.*no such device"):
        MeshClient.discover(wait_s=0.1)
