"""`--mdns-interface`: only this machine's IP addresses, and not together with `--no-mdns`."""

from __future__ import annotations

import pytest

from meshnode.cli.join import join
from meshnode.errors import ConfigError
from meshnode.options import parse_interfaces


def test_addresses_are_taken_as_they_are() -> None:
    assert parse_interfaces(["127.0.0.1", "fe80::1"]) == ("127.0.0.1", "fe80::1")
    assert parse_interfaces([]) == ()


@pytest.mark.parametrize("text", ["eth0", "", "127.0.0.1:80", "300.1.1.1"])
def test_anything_else_is_refused_with_what_is_expected(text: str) -> None:
    with pytest.raises(ConfigError, match=r"--mdns-interface .* is not an IP address"):
        parse_interfaces([text])


def test_an_interface_and_no_mdns_contradict_each_other() -> None:
    with pytest.raises(ConfigError, match=r"--mdns-interface .* --no-mdns leaves it out"):
        join(no_mdns=True, mdns_interface=["127.0.0.1"])
