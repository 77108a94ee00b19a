"""`--mdns-interface`: only this machine's IP addresses."""

from __future__ import annotations

import pytest

from meshnode.errors import ConfigError
from meshnode.options import check_interface


@pytest.mark.parametrize("text", ["127.0.0.1", "fe80::1"])
def test_addresses_are_taken_as_they_are(text: str) -> None:
    assert check_interface("--mdns-interface", text) == text


@pytest.mark.parametrize("text", ["eth0", "", "127.0.0.1:80", "300.1.1.1"])
def test_anything_else_is_refused_with_what_is_expected(text: str) -> None:
    with pytest.raises(ConfigError, match=r"--mdns-interface .* is not an IP address"):
        check_interface("--mdns-interface", text)
