"""Which addresses of others may be dialled."""

from __future__ import annotations

import pytest

from meshnode.membership.addresses import Kind, dialable, kind_of
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
