"""Which addresses of others may be dialled."""

from __future__ import annotations

import pytest

from meshnode.membership.addresses import (
    Kind,
    datagram_address,
    dialable,
    is_of_vpn,
    kind_of,
    seeds_of_invite,
)
from meshnode.types import Address


@pytest.mark.parametrize(
    ("host", "kind"),
    [
        ("10.0.0.1", Kind.ROUTED),
        ("2001:db8::1", Kind.ROUTED),
        ("node-1.example", Kind.ROUTED),
        ("3f2a9c1b", Kind.ROUTED),
        ("127.0.0.1", Kind.LOOPBACK),
        ("127.9.9.9", Kind.LOOPBACK),
        ("::1", Kind.LOOPBACK),
        ("::ffff:127.0.0.1", Kind.LOOPBACK),
        ("LOCALHOST.", Kind.LOOPBACK),
        ("x.localhost", Kind.LOOPBACK),
        ("169.254.169.254", Kind.LINK_LOCAL),
        ("::ffff:169.254.169.254", Kind.LINK_LOCAL),
        ("fe80::1%eth0", Kind.LINK_LOCAL),
        ("0.0.0.0", Kind.NOWHERE),
        ("::", Kind.NOWHERE),
        ("224.0.0.1", Kind.NOWHERE),
        ("255.255.255.255", Kind.NOWHERE),
        ("240.0.0.1", Kind.NOWHERE),
        ("0.0.0.1", Kind.NOWHERE),
        ("0.255.1.2", Kind.NOWHERE),
        ("::ffff:240.0.0.1", Kind.NOWHERE),
        ("ff02::1", Kind.NOWHERE),
        ("ff0e::1", Kind.NOWHERE),
        ("::2", Kind.NOWHERE),
        ("4000::1", Kind.NOWHERE),
        ("64:ff9b::203.0.113.7", Kind.ROUTED),
        ("64:ff9b:1::203.0.113.7", Kind.ROUTED),
        ("203.0.113.7", Kind.ROUTED),
        ("198.51.100.7", Kind.ROUTED),
        ("100.64.0.1", Kind.ROUTED),
        ("fd00::1", Kind.ROUTED),
        ("", Kind.NOWHERE),
        ("127.1", Kind.NOWHERE),
        ("2130706433", Kind.NOWHERE),
        ("0x7f000001", Kind.NOWHERE),
    ],
)
def test_a_host_leads_where_its_spelling_says(host: str, kind: Kind) -> None:
    assert kind_of(host) is kind


def test_loopback_and_link_local_are_dialled_only_by_nodes_that_listen_there() -> None:
    routed, loopback, link_local, nowhere = (
        Address(host, 8471) for host in ("10.0.0.1", "::1", "169.254.169.254", "0.0.0.0")
    )
    offered = (loopback, routed, nowhere, link_local)
    assert dialable(offered, [Address("10.0.0.2", 1)]) == (routed,)
    assert dialable(offered, [Address("127.0.0.1", 1)]) == (loopback, routed)
    assert dialable(offered, [nowhere, link_local]) == (routed, link_local)
    assert dialable((), [routed]) == ()


def test_what_is_likely_to_answer_soonest_is_dialled_first() -> None:
    offered = [
        Address(host, 8471)
        for host in (
            "100.100.1.2",
            "fd7a:115c:a1e0::2",
            "203.0.113.7",
            "home.example",
            "2001:db8:1::7",
            "10.9.9.9",
            "fd00:1::7",
            "192.168.1.20",
            "2001:db8:2::7",
        )
    ]
    own = [Address("192.168.1.10", 1), Address("2001:db8:2::1", 1), Address("100.100.1.1", 1)]
    near, private, public, vpn = (
        ["192.168.1.20", "2001:db8:2::7"],
        ["10.9.9.9", "fd00:1::7"],
        ["203.0.113.7", "home.example", "2001:db8:1::7"],
        ["100.100.1.2", "fd7a:115c:a1e0::2"],
    )
    assert [each.host for each in dialable(offered, own)] == near + private + public + vpn


def test_without_a_link_datagrams_go_to_a_neighbour_s_address_or_a_public_one() -> None:
    """The private address of a home is another device's in the next home."""
    advertised = [Address(host, 8471) for host in ("192.168.1.20", "10.0.0.5", "1.2.3.4")]

    def found(*own: str) -> str | None:
        to = datagram_address(advertised, None, has_dialled=False, kinds=ANYWHERE, own=own)
        return None if to is None else to.host

    assert found("10.0.0.9", "node.example") == "10.0.0.5"
    assert found("172.16.0.1") == "1.2.3.4"
    assert found() == "1.2.3.4"
    assert is_of_vpn("100.64.0.9")
    assert not is_of_vpn("node.example")


ANYWHERE = frozenset({Kind.ROUTED, Kind.LOOPBACK})


@pytest.mark.parametrize(
    ("advertised", "remote", "has_dialled", "to"),
    [
        # A port mapping: what was dialled is where datagrams go, whatever the node listens at.
        (["1.2.3.4:9000"], "1.2.3.4:9000", True, "1.2.3.4:9000"),
        (["cloud.example:9000", "10.0.0.5:8471"], "1.2.3.4:9000", True, "1.2.3.4:9000"),
        # It dialled us, from a port that is of no use.
        (["10.0.0.5:8471", "10.0.0.6:9000"], "10.0.0.6:55555", False, "10.0.0.6:9000"),
        (["10.0.0.5:8471"], "1.2.3.4:55555", False, "1.2.3.4:8471"),
        (["cloud.example:9000"], "1.2.3.4:55555", False, "1.2.3.4:9000"),
        # We are behind a proxy, or it is behind a NAT, and it says where it can be reached.
        (["10.0.0.5:8471", "1.2.3.4:9000"], "172.17.0.1:55555", False, "1.2.3.4:9000"),
        # No link yet.
        (["cloud.example:9000", "1.2.3.4:9000"], None, False, "1.2.3.4:9000"),
        (["169.254.169.254:80", "127.0.0.1:9"], None, False, "127.0.0.1:9"),
        (["cloud.example:9000"], None, False, None),
    ],
)
def test_datagrams_find_a_node_behind_a_port_mapping(
    advertised: list[str], remote: str | None, has_dialled: bool, to: str | None
) -> None:
    found = datagram_address(
        [Address.parse(each) for each in advertised],
        None if remote is None else Address.parse(remote),
        has_dialled=has_dialled,
        kinds=ANYWHERE,
    )
    assert found == (None if to is None else Address.parse(to))


def test_an_invite_names_the_inviter_and_then_others_public_ones_first() -> None:
    own = [Address("192.168.1.10", 8471), Address("fd00::10", 8471)]
    others = [
        [Address("192.168.1.20", 8471)],
        [Address("127.0.0.1", 8471)],
        [Address("203.0.113.7", 8471), Address("10.0.0.7", 8471)],
        [Address("box.example.org", 8471)],
        [],
        own,
    ]
    public = (Address("203.0.113.7", 8471), Address("box.example.org", 8471))
    assert seeds_of_invite(own, others, 4) == (*own, *public)
    assert seeds_of_invite(own, others, 5) == (*own, *public, Address("192.168.1.20", 8471))
    assert seeds_of_invite(own, others, 2) == (own[0], public[0])
    assert seeds_of_invite(own, [], 2) == tuple(own)
