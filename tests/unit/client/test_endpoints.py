"""Which gateways a client means, and with which key."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from meshnode.client.endpoints import gateway_target, parse_url
from meshnode.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path


def urls(given: str | list[str] | None, **environ: str) -> list[str]:
    return [endpoint.url for endpoint in gateway_target(given, None, environ).endpoints]


def key(given: str | None, key_file: str | None = None, **environ: str) -> str:
    return gateway_target("http://a", given, environ, key_file=key_file).api_key


def test_arguments_win_over_the_variable_and_that_over_the_default() -> None:
    assert urls("http://a:1", MESHNODE_GATEWAY="http://b:1") == ["http://a:1"]
    assert urls(None, MESHNODE_GATEWAY=" http://b:1 ,https://c, ") == ["http://b:1", "https://c"]
    assert urls(None, MESHNODE_GATEWAY="") == ["http://127.0.0.1:8470"]


def test_a_list_of_gateways_that_turned_out_empty_is_not_the_default() -> None:
    with pytest.raises(ConfigError, match="empty"):
        urls([])


def test_a_gateway_that_is_named_twice_is_one() -> None:
    assert urls(["http://a:1/", "http://A:1", "http://a:1"]) == ["http://a:1"]


@pytest.mark.parametrize(
    ("url", "host", "port", "tls", "prefix", "header"),
    [
        ("http://a", "a", 80, False, "", "a"),
        ("https://a", "a", 443, True, "", "a"),
        ("https://a:8470/", "a", 8470, True, "", "a:8470"),
        ("http://[::1]:8470", "::1", 8470, False, "", "[::1]:8470"),
        ("http://[fe80::1]", "fe80::1", 80, False, "", "[fe80::1]"),
        ("https://a/x/y/", "a", 443, True, "/x/y", "a"),
    ],
)
def test_a_url_says_where_to_connect(
    url: str, host: str, port: int, tls: bool, prefix: str, header: str
) -> None:
    found = parse_url(url)
    assert (*found.address, found.tls, found.prefix) == (host, port, tls, prefix)
    assert found.host_header == header
    assert parse_url(found.url) == found


@pytest.mark.parametrize(
    "url",
    [
        "",
        "a:8470",
        "ftp://a",
        "http://",
        "http://:80",
        "http://a:99999",
        "http://a:x",
        "http://a:0",
        "http://a?x=1",
        "http://a#x",
        "http://a b",
        "http://a\r\nX: y",
        "http://[::1",
        "http://ä",
    ],
)
def test_what_is_no_gateways_url_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="is not the URL of a gateway; write one such as"):
        parse_url(url)


@pytest.mark.parametrize("url", ["http://user:secret@a", "https://secret@a", "http://a/secret@b"])
def test_credentials_in_a_url_are_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(ConfigError, match="MESHNODE_API_KEY") as caught:
        parse_url(url)
    assert "secret" not in str(caught.value)


def test_more_gateways_than_the_limit_are_refused() -> None:
    with pytest.raises(ConfigError, match="at most 64"):
        gateway_target([f"http://a{number}" for number in range(65)], None, {})


def test_the_key_is_the_argument_the_file_the_variable_or_the_variables_file(
    tmp_path: Path,
) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_text("from_one\n")
    two.write_text("from_two\n")
    variables = {"MESHNODE_API_KEY": "from_variable", "MESHNODE_API_KEY_FILE": str(two)}
    assert key("given", str(one), **variables) == "given"
    assert key(None, str(one), **variables) == "from_one"
    assert key(None, **variables) == "from_variable"
    assert key(None, MESHNODE_API_KEY_FILE=str(two)) == "from_two"
    assert key(None) == ""
    assert key("") == ""


@pytest.mark.parametrize("content", [b"", b" \n", b"two words", b"x" * 5000, b"\xff", b"a\nb"])
def test_a_file_without_a_key_is_refused_without_its_content(
    tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "key").write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        key(None, str(tmp_path / "key"))
    assert "xx" not in str(caught.value)
    assert "two words" not in str(caught.value)


def test_a_missing_key_file_and_a_missing_certificate_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"API key's file .* cannot be read"):
        key(None, str(tmp_path / "none"))
    with pytest.raises(ConfigError, match=r"trusted certificates .* does not exist"):
        gateway_target("https://a", None, {}, ca_file=str(tmp_path / "none"))


def test_a_key_that_would_break_a_header_is_refused() -> None:
    with pytest.raises(ConfigError, match="not an API key"):
        key("a\r\nX: y")


@pytest.mark.parametrize(
    ("url", "shows"),
    [
        ("http://192.0.2.1", True),
        ("http://mesh.example.com", True),
        ("https://192.0.2.1", False),
        ("http://127.0.0.1:1", False),
        ("http://localhost", False),
        ("http://[::1]:1", False),
    ],
)
def test_it_is_known_where_a_key_can_be_read_on_the_way(url: str, shows: bool) -> None:
    assert parse_url(url).shows_key is shows


def test_a_target_shows_no_key() -> None:
    assert "secret" not in repr(gateway_target("http://a", "secret", {}))


def test_the_file_of_certificates_comes_from_the_argument_or_the_variable(tmp_path: Path) -> None:
    mine, other = tmp_path / "mine.pem", tmp_path / "other.pem"
    for path in (mine, other):
        path.touch()
    environ = {"MESHNODE_CA_FILE": str(other)}
    assert gateway_target("https://a", None, {}).ca_file is None
    assert gateway_target("https://a", None, {"MESHNODE_CA_FILE": ""}).ca_file is None
    assert gateway_target("https://a", None, environ).ca_file == str(other)
    assert gateway_target("https://a", None, environ, ca_file=str(mine)).ca_file == str(mine)
    with pytest.raises(ConfigError, match="MESHNODE_CA_FILE '/none' does not exist"):
        gateway_target("https://a", None, {"MESHNODE_CA_FILE": "/none"})
