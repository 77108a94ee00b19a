"""What a request line asks for, and of which host."""

from __future__ import annotations

import pytest

from meshnode.gateway.protocols.request_target import one_host, split_target
from meshnode.gateway.protocols.status import HttpRefusal


@pytest.mark.parametrize(
    ("target", "authority", "path"),
    [
        ("http://localhost:8470/healthz", "localhost:8470", "/healthz"),
        ("HTTPS://Mesh.example/v2?a=http://b/c", "Mesh.example", "/v2?a=http://b/c"),
        ("http://h", "h", "/"),
        ("http://h?x=1", "h", "/?x=1"),
        ("http://h/x#y", "h", "/x"),
        ("http://h#y/z", "h", "/"),
        ("http://[::1]:8470//x", "[::1]:8470", "//x"),
        ("http://user@localhost/x", "user@localhost", "/x"),
        ("http:///x", "", "/x"),
        ("ftp://h/x", None, "ftp://h/x"),
        ("*", None, "*"),
        ("h:80", None, "h:80"),
    ],
)
def test_a_url_is_split_at_its_host(target: str, authority: str | None, path: str) -> None:
    assert split_target(target) == (authority, path)


def test_the_url_and_the_header_must_name_one_host() -> None:
    assert one_host("localhost:8470", "LocalHost:8470") == "localhost:8470"
    assert one_host("localhost", None) == "localhost"
    for header in ("mesh.example.com", "localhost:80", "", "localhost.evil.example"):
        with pytest.raises(HttpRefusal, match="not the host of the URL"):
            one_host("localhost", header)
