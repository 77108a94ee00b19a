"""Finding nodes with real multicast DNS, on the loopback interface only."""

from __future__ import annotations

import asyncio
import base64
import secrets
from typing import TYPE_CHECKING

import pytest
from zeroconf.asyncio import AsyncServiceInfo

from meshnode.limits import MAX_MDNS_ADDRESSES, MAX_MDNS_LOOKUPS
from meshnode.net import mdns
from meshnode.net.mdns import SERVICE_TYPE, Announcement, Discovery, announcement_of
from meshnode.types import Address, NodeId
from tests.unit.net.conftest import eventually

if TYPE_CHECKING:
    from collections.abc import Callable

LOOPBACK = ["127.0.0.1"]
MESH = secrets.token_hex(16)  # others may run these tests on the same machine at the same time
RUN = base64.b32encode(secrets.token_bytes(15)).decode().lower()


def node_id(letter: str) -> NodeId:
    return NodeId(letter * 8 + RUN)


def of_this_run(discovery: Discovery) -> list[Announcement]:
    return [each for each in discovery.heard if each.mesh_id == MESH]


def announcement(letter: str, name: str = "alpha", port: int = 8471) -> Announcement:
    return Announcement(node_id(letter), MESH, name, (Address("127.0.0.1", port),))


async def test_two_nodes_hear_each_other_changes_and_the_goodbye() -> None:
    heard: list[Announcement] = []
    async with Discovery(heard.append, LOOPBACK) as listening:
        async with Discovery(lambda _: None, LOOPBACK) as announcing:
            await announcing.announce(announcement("a"))
            await eventually(lambda: announcement("a") in heard)
            assert of_this_run(listening) == [announcement("a")]
            assert f"<Discovery {len(listening.heard)} heard, " in repr(listening)
        await eventually(lambda: not of_this_run(listening), "the goodbye is heard")


async def test_who_comes_later_hears_who_was_there_within_the_time_of_a_search() -> None:
    heard: list[Announcement] = []
    async with Discovery(lambda _: None, LOOPBACK) as first:
        await first.announce(announcement("b"))
        loop = asyncio.get_running_loop()
        began = loop.time()
        async with Discovery(heard.append, LOOPBACK):
            await eventually(lambda: announcement("b") in heard)
        assert loop.time() - began < 2.0


async def test_names_are_not_told_and_a_node_without_an_address_is_an_error() -> None:
    async with Discovery(lambda _: None, LOOPBACK) as discovery:
        nowhere = Announcement(node_id("c"), MESH, "alpha", (Address("localhost", 1),))
        with pytest.raises(OSError, match="no address"):
            await discovery.announce(nowhere)


async def test_a_name_that_another_process_announces_is_an_error() -> None:
    async with Discovery(lambda _: None, LOOPBACK) as first:
        await first.announce(announcement("d"))
        with pytest.raises(OSError, match="mDNS refused it"):
            await first.announce(announcement("d"))


async def test_an_address_that_zeroconf_does_not_know_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def unknown(**_: object) -> None:
        raise RuntimeError("No adapter found for IP address 192.0.2.200")

    monkeypatch.setattr("zeroconf.asyncio.AsyncZeroconf", unknown)
    with pytest.raises(OSError, match="No adapter"):
        async with Discovery(lambda _: None, ["192.0.2.200"]):
            pytest.fail("it is open")


async def test_a_goodbye_that_hangs_does_not_hold_the_node_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(mdns, "MDNS_GOODBYE_TIMEOUT_S", 0.02)
    async with Discovery(lambda _: None, LOOPBACK) as discovery:
        await discovery.announce(announcement("e"))
        assert discovery._zeroconf is not None

        async def hang(_: object) -> None:
            await asyncio.sleep(60)

        monkeypatch.setattr(discovery._zeroconf, "async_unregister_service", hang)


# Floods and poison


class Lookups:
    """Stands for the network: lookups wait until they are released."""

    def __init__(self, discovery: Discovery) -> None:
        self.waiting: dict[str, asyncio.Event] = {}
        discovery._resolve = self._resolve  # type: ignore[method-assign]  # no packets

    async def _resolve(self, name: str) -> None:
        self.waiting[name] = asyncio.Event()
        await self.waiting[name].wait()


def service(index: int) -> str:
    letters = "abcdefghijklmnopqrstuvwxyz234567"
    digits = [letters[index >> shift & 31] for shift in (0, 5, 10)]
    return "".join(digits).ljust(32, "a") + f".{SERVICE_TYPE}"


async def test_a_flood_of_names_is_looked_up_a_few_at_a_time() -> None:
    async with Discovery(lambda _: None, LOOPBACK) as discovery:
        lookups = Lookups(discovery)
        listener = discovery._listener()
        for index in range(5000):
            listener.add_service(None, SERVICE_TYPE, service(index))  # type: ignore[arg-type]  # not read
            listener.update_service(None, SERVICE_TYPE, service(index))  # type: ignore[arg-type]  # not read
        assert len(discovery._lookups) == MAX_MDNS_LOOKUPS
        await eventually(lambda: len(lookups.waiting) == MAX_MDNS_LOOKUPS)
        for event in lookups.waiting.values():
            event.set()
        await eventually(lambda: not discovery._lookups)
        listener.add_service(None, SERVICE_TYPE, service(6000))  # type: ignore[arg-type]  # not read
        assert len(discovery._lookups) == 1
    listener.add_service(None, SERVICE_TYPE, service(1))  # type: ignore[arg-type]  # it is closed


async def test_the_oldest_of_too_many_announcements_makes_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(mdns, "MAX_MDNS_ANNOUNCEMENTS", 2)
    monkeypatch.setattr(AsyncServiceInfo, "async_request", answer_at_once)
    heard: list[Announcement] = []
    async with Discovery(heard.append, LOOPBACK) as discovery:
        for letter in ("a", "b", "c", "a"):
            await discovery._resolve(f"{node_id(letter)}.{SERVICE_TYPE}")
        await discovery._resolve(f"{node_id('a')}.{SERVICE_TYPE}")  # no change
        assert [each.node_id[0] for each in discovery.heard] == ["c", "a"]
    assert len(heard) == 4


async def answer_at_once(info: AsyncServiceInfo, *_: object) -> bool:
    info.port = 8471
    info.addresses = [b"\x7f\x00\x00\x01"]
    info._properties = {b"mesh": MESH.encode(), b"name": b"alpha"}
    info._decoded_properties = {"mesh": MESH, "name": "alpha"}
    return True


async def test_a_name_without_records_is_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mdns, "MDNS_RESOLVE_TIMEOUT_MS", 10)
    async with Discovery(lambda _: None, LOOPBACK) as discovery:
        await discovery._resolve(f"{node_id('f')}.{SERVICE_TYPE}")
        assert of_this_run(discovery) == []


GOOD = {"mesh": MESH, "name": "alpha"}
NAME = f"{'a' * 32}.{SERVICE_TYPE}"


@pytest.mark.parametrize(
    ("name", "port", "properties", "hosts"),
    [
        (NAME, 0, GOOD, ["192.0.2.1"]),
        (NAME, None, GOOD, ["192.0.2.1"]),
        (NAME, 8471, GOOD, []),
        (NAME, 8471, GOOD, ["not an address", "0.0.0.0", "224.0.0.1"]),
        (NAME, 8471, {"mesh": MESH}, ["192.0.2.1"]),
        (NAME, 8471, {"name": "alpha"}, ["192.0.2.1"]),
        (NAME, 8471, {"mesh": None, "name": None}, ["192.0.2.1"]),
        (NAME, 8471, {"mesh": MESH, "name": "\x1b[2J"}, ["192.0.2.1"]),
        (NAME, 8471, {"mesh": MESH, "name": "a" * 64}, ["192.0.2.1"]),
        (NAME, 8471, {"mesh": "\x1b]0;x\x07", "name": "alpha"}, ["192.0.2.1"]),
        (NAME, 8471, {"mesh": MESH + "0", "name": "alpha"}, ["192.0.2.1"]),
        (f"short.{SERVICE_TYPE}", 8471, GOOD, ["192.0.2.1"]),
        (f"{'A1' * 16}.{SERVICE_TYPE}", 8471, GOOD, ["192.0.2.1"]),
        ("a" * 32, 8471, GOOD, ["192.0.2.1"]),
    ],
)
def test_records_in_another_form_are_nobody(
    name: str, port: int | None, properties: dict[str, str | None], hosts: list[str]
) -> None:
    assert announcement_of(name, port, properties, hosts) is None


def test_of_thousands_of_addresses_a_few_are_taken() -> None:
    hosts = [f"10.0.{index >> 8}.{index & 255}" for index in range(5000)]
    found = announcement_of(NAME.replace("a", "A", 3), 8471, dict(GOOD), hosts)
    assert found is not None
    assert found.node_id == "a" * 32
    assert len(found.addresses) == MAX_MDNS_ADDRESSES


async def test_poisoned_packets_on_the_wire_do_no_harm() -> None:
    heard: list[Announcement] = []
    async with (
        Discovery(heard.append, LOOPBACK) as listening,
        Discovery(lambda _: None, LOOPBACK) as announcing,
    ):
        poisoner = announcing._zeroconf
        assert poisoner is not None
        poisons: list[Callable[[], AsyncServiceInfo]] = [
            lambda: AsyncServiceInfo(
                SERVICE_TYPE, f"{node_id('p')}.{SERVICE_TYPE}", port=0, server="x.local.",
                parsed_addresses=["127.0.0.1"], properties={"mesh": MESH, "name": "x"},
            ),
            lambda: AsyncServiceInfo(
                SERVICE_TYPE, f"{node_id('q')}.{SERVICE_TYPE}", port=1, server="y.local.",
                parsed_addresses=["127.0.0.1"], properties={b"\xff\xfe": b"\x1b[2J", b"mesh": b"\xff"},
            ),
            lambda: AsyncServiceInfo(
                SERVICE_TYPE, f"x.{SERVICE_TYPE}", port=1, server="z.local.",
                parsed_addresses=["127.0.0.1"], properties={},
            ),
        ]  # fmt: skip
        for poison in poisons:
            poisoner.zeroconf.async_send(
                poisoner.zeroconf.generate_service_broadcast(poison(), None)
            )
        await announcing.announce(announcement("g"))
        await eventually(lambda: announcement("g") in heard)
        assert of_this_run(listening) == [announcement("g")]
