"""Who may call a gateway: keys, loopback, proxies, guesses."""

from __future__ import annotations

import random
import re
from typing import Any

import msgspec
import pytest

from meshnode.errors import Forbidden, MeshError, Throttled, Unauthenticated
from meshnode.gateway.access import (
    Approach,
    ChannelAccess,
    GatewayAccess,
    is_forwarded,
    key_shown,
    require,
)
from meshnode.gateway.protocols.caller import LOCAL, OWNER, Caller
from meshnode.gateway.protocols.origin import OriginPolicy
from meshnode.limits import KEY_FAILURE_REFILL_S, MAX_KEY_FAILURES
from meshnode.state.api_keys import ApiKey, make_api_key
from meshnode.types import Scope

WALL = 1_700_000_000.0
AWAY, HERE = "192.168.1.9", "127.0.0.1"
DRAW = random.Random(7)  # the same keys in every process: they are in names of tests


class Gateway:
    """A gateway on all interfaces, with its keys, its clock and callers."""

    def __init__(self, bound: str = "0.0.0.0", *allowed: str, require_key: bool = False) -> None:
        self.keys: dict[str, ApiKey] = {}
        self.refused: list[tuple[str, str]] = []
        self.access = GatewayAccess(
            OriginPolicy(bound, allowed),
            self.keys.get,
            require_key=require_key,
            on_refusal=lambda peer, reason: self.refused.append((peer, reason)),
        )
        self.now = 0.0
        self.wall_s = WALL

    def key(self, name: str = "phone", *scopes: str, ttl_s: int | None = None) -> str:
        key, text = make_api_key(
            name, scopes or ("infer",), ttl_s, WALL, DRAW.randbytes(42), self.keys.values()
        )
        self.keys[key.id] = key
        return text

    def change(self, text: str, **changes: Any) -> None:
        key_id = text.split("_")[1]
        self.keys[key_id] = msgspec.structs.replace(self.keys[key_id], **changes)

    def admit(self, peer: str = AWAY, /, **shown: Any) -> Caller:
        shown.setdefault("host", "192.168.1.5:8470")
        return self.access.admit(Approach(peer, **shown), self.now, self.wall_s)

    def with_key(self, text: str, peer: str = AWAY) -> Caller:
        return self.admit(peer, authorization=f"Bearer {text}")


@pytest.fixture
def gateway() -> Gateway:
    return Gateway()


# Keys.


def test_a_valid_key_says_who_asks_and_what_they_may(gateway: Gateway) -> None:
    text = gateway.key("ci", "infer", "deploy")
    caller = gateway.with_key(text)
    assert caller == Caller(Scope.DEPLOY, text.split("_")[1], "ci")
    assert gateway.admit(api_key=text) == caller
    assert str(caller) == f"key ci ({caller.key_id})"
    assert gateway.with_key(text) is caller  # made once


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_the_schemes_case_does_not_matter(gateway: Gateway, scheme: str) -> None:
    assert gateway.admit(authorization=f"{scheme} {gateway.key()}").name == "phone"


def test_a_proxys_own_authorization_leaves_room_for_the_key(gateway: Gateway) -> None:
    caller = gateway.admit(authorization="Basic dXNlcjpwYXNz", api_key=gateway.key())
    assert caller.name == "phone"


@pytest.mark.parametrize("placeholder", ["placeholder", "", "sk-" + "x" * 400, "mesh_no_key"])
def test_a_placeholder_leaves_room_for_the_key(gateway: Gateway, placeholder: str) -> None:
    text = gateway.key()
    shown = {"authorization": f"Bearer {placeholder}", "api_key": text}
    assert gateway.admit(**shown).name == "phone"
    assert key_shown({"authorization": shown["authorization"], "x-api-key": text}) == text
    with pytest.raises(Unauthenticated):
        gateway.admit(authorization=shown["authorization"], api_key="placeholder")
    other = gateway.key("other")
    assert gateway.admit(authorization=f"Bearer {other}", api_key=text).name == "other"


def wrong_keys() -> dict[str, str]:
    right = Gateway().key()
    _, key_id, secret = right.split("_")
    return {
        "another id": f"mesh_{'a' * 16}_{secret}",
        "another secret": f"mesh_{key_id}_{'a' * 52}",
        "upper case": right.upper(),
        "cut": right[:-1],
        "longer": right + "a",
        "blank inside": right[:30] + " " + right[30:],
        "tab": right + "\t",
        "nothing": "",
        "text": "password",
        "very long": "mesh_" + "a" * 10_000,
        "not ASCII": "mesh_ü" + right,
        "surrogate": "mesh_\udcff" + right,
        "NUL": right + "\0",
    }


@pytest.mark.parametrize(("what", "text"), wrong_keys().items())
def test_a_wrong_key_is_refused_and_never_repeated(gateway: Gateway, what: str, text: str) -> None:
    gateway.key()
    for shown in ({"authorization": f"Bearer {text}"}, {"api_key": text}):
        with pytest.raises(Unauthenticated) as caught:
            gateway.admit(**shown)
        assert "meshnode keys create NAME --scope infer" in str(caught.value)
        assert not text or text not in str(caught.value)


def test_the_right_id_with_a_wrong_secret_tells_no_more_than_a_wrong_id(gateway: Gateway) -> None:
    right = gateway.key()
    sentences = set()
    for text in (right[:-1] + ("a" if right[-1] != "a" else "q"), f"mesh_{'z' * 16}_{'a' * 52}"):
        with pytest.raises(Unauthenticated) as caught:
            gateway.with_key(text)
        sentences.add(str(caught.value))
    assert len(sentences) == 1


@pytest.mark.parametrize(
    "header",
    ["{}", "Basic {}", "Token {}", "Bearer{}", "Bearer", "", " ", "Bearer" + " " * 400 + "{}"],
)
def test_other_schemes_are_refused(gateway: Gateway, header: str) -> None:
    with pytest.raises(Unauthenticated):
        gateway.admit(authorization=header.format(gateway.key()))


def test_a_revoked_key_is_refused_from_the_next_call_on(gateway: Gateway) -> None:
    text = gateway.key()
    gateway.with_key(text)
    gateway.change(text, revoked_at_s=int(WALL))
    with pytest.raises(Unauthenticated, match="'phone' was revoked at 2023-11-14T22:13:20Z"):
        gateway.with_key(text)


def test_an_expired_key_is_refused_with_both_clocks(gateway: Gateway) -> None:
    text = gateway.key(ttl_s=60)
    gateway.wall_s = WALL + 59.9
    gateway.with_key(text)
    gateway.wall_s = WALL + 60
    with pytest.raises(Unauthenticated, match=r"expired at 2023-11-14T22:14:20Z .*clock says"):
        gateway.with_key(text)


def test_a_changed_key_has_its_new_scope_at_once(gateway: Gateway) -> None:
    text = gateway.key()
    assert gateway.with_key(text).scope is Scope.INFER
    gateway.change(text, scopes=("admin",))
    assert gateway.with_key(text).scope is Scope.ADMIN


def test_a_key_of_a_later_version_opens_nothing(gateway: Gateway) -> None:
    text = gateway.key()
    gateway.change(text, scopes=("fly",))
    with pytest.raises(Forbidden, match="no scope that this version"):
        gateway.with_key(text)


def test_what_is_remembered_of_callers_and_peers_is_bounded(gateway: Gateway) -> None:
    for number in range(200):
        gateway.with_key(gateway.key(f"key-{number}"))
        gateway.admit(f"127.0.0.{number}", host="localhost", header_names=b"X-%d" % number)
    access = gateway.access
    assert max(len(access._callers), len(access._peers), len(access._direct)) <= 64


# Without a key.


@pytest.mark.parametrize("peer", ["127.0.0.1", "127.8.8.8", "::1", "::ffff:127.0.0.1"])
@pytest.mark.parametrize("host", ["localhost:8470", "127.0.0.1", "[::1]:8470"])
def test_programs_of_the_same_machine_need_none(gateway: Gateway, peer: str, host: str) -> None:
    for _ in range(2):
        assert gateway.admit(peer, host=host) is LOCAL


@pytest.mark.parametrize(
    ("peer", "host"),
    [
        (AWAY, "192.168.1.5:8470"),
        (AWAY, "localhost"),
        (HERE, "192.168.1.5:8470"),
        ("192.168.1.5", "192.168.1.5:8470"),
        ("::ffff:192.168.1.9", "localhost"),
        ("", "localhost"),
        ("unix", "localhost"),
    ],
)
def test_everybody_else_is_told_how_to_get_one(gateway: Gateway, peer: str, host: str) -> None:
    def refusal() -> str:
        with pytest.raises(Unauthenticated) as caught:
            gateway.admit(peer, host=host)
        return str(caught.value)

    sentences = {refusal() for _ in range(50)}  # none is no guess: it is never throttled
    assert sentences == {
        (
            "this gateway needs an API key for calls from other machines. Create one on a node of the "
            "mesh with `meshnode keys create NAME --scope infer`, and send it as "
            "`Authorization: Bearer KEY`"
        )
    }


PROXY_HEADERS = [
    b"Forwarded", b"X-Forwarded-For", b"x-forwarded-host", b"X-FORWARDED-PROTO", b"X-Real-IP",
    b"Via", b"X-Original-Forwarded-For", b"CF-Connecting-IP", b"True-Client-Ip", b"X-Forwarded",
    b"Client-IP", b"X-Client-IP", b"X-Envoy-External-Address", b"X-Azure-ClientIP", b"CF-Ray",
    b"Fly-Client-IP", b"X-Amzn-Trace-Id", b"X-Original-URL", b"X-Real-Port", b"X_Forwarded_For",
    b"CDN-Loop", b"Tailscale-User-Login", b"X-Cluster-Client-Ip", b"Fastly-Client-IP",
    b"X-ProxyUser-Ip", b"X-Originating-IP", b"X-ARR-LOG-ID", b"X-NginX-Proxy", b"X-Remote-User",
]  # fmt: skip


@pytest.mark.parametrize("name", PROXY_HEADERS)
def test_what_a_proxy_forwards_to_loopback_needs_a_key(gateway: Gateway, name: bytes) -> None:
    names = b"\n".join([b"Host", name, b"Accept"])
    for _ in range(2):
        with pytest.raises(Unauthenticated):
            gateway.admit(HERE, host="localhost", header_names=names)
    text = gateway.key()
    caller = gateway.admit(HERE, host="localhost", header_names=names, api_key=text)
    assert caller.name == "phone"


def test_ordinary_headers_are_no_proxys() -> None:
    assert not is_forwarded(b"Host\nUser-Agent\nAccept\nX-Request-Id\nAviator\nTraceparent")
    assert not is_forwarded(b"X-Client-Version\nX-API-Key\nViable\nX-Stainless-Lang\nClient-Name")
    assert not is_forwarded(b"")


def test_a_proxy_that_keeps_the_hosts_name_needs_a_key(gateway: Gateway) -> None:
    behind = Gateway("127.0.0.1", "mesh.example.com")
    with pytest.raises(Unauthenticated):
        behind.admit(HERE, host="mesh.example.com")
    caller = behind.admit(
        HERE,
        host="mesh.example.com",
        origin="https://mesh.example.com",
        authorization=f"Bearer {behind.key()}",
    )
    assert caller.name == "phone"


@pytest.mark.parametrize("header", ["Bearer none", "Bearer sk-123", "Basic abc", "Bearer", ""])
def test_what_is_no_key_is_ignored_where_none_is_needed(gateway: Gateway, header: str) -> None:
    """Clients of other services always send something."""
    for _ in range(50):
        assert gateway.admit(HERE, host="localhost", authorization=header) is LOCAL


def test_a_key_counts_on_loopback_too_and_a_dead_one_is_told(gateway: Gateway) -> None:
    text = gateway.key("boss", "admin")
    assert gateway.admit(HERE, host="localhost", api_key=text).scope is Scope.ADMIN
    gateway.change(text, revoked_at_s=1)
    with pytest.raises(Unauthenticated, match="revoked"):
        gateway.admit(HERE, host="localhost", api_key=text)


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8470", "127.0.0.1.evil.org"])
def test_rebound_names_are_refused_with_and_without_a_key(gateway: Gateway, host: str) -> None:
    for shown in ({}, {"api_key": gateway.key()}):
        for peer in (HERE, AWAY):
            with pytest.raises(Forbidden, match="Host header"):
                gateway.admit(peer, host=host, **shown)
    with pytest.raises(Forbidden, match="other origins"):
        gateway.admit(HERE, host="localhost", origin="http://evil.example")


def test_without_a_host_a_valid_key_passes_and_nothing_else(gateway: Gateway) -> None:
    """As HTTP/1.0 may come; a browser always names one, so a page cannot hide behind that."""
    text = gateway.key()
    for peer in (HERE, AWAY):
        assert gateway.admit(peer, host=None, api_key=text).name == "phone"
        with pytest.raises(Forbidden, match="without a Host header needs an API key"):
            gateway.admit(peer, host=None)
        with pytest.raises(Unauthenticated):
            gateway.admit(peer, host=None, api_key=text[:-1])
        for origin in ("http://none", "https://None", "null"):
            with pytest.raises(Forbidden, match="other origins"):
                gateway.admit(peer, host=None, api_key=text, origin=origin)


# Where a key is wanted of everybody.


@pytest.mark.parametrize("peer", ["127.0.0.1", "::1", "::ffff:127.0.0.1"])
@pytest.mark.parametrize("host", ["localhost:8470", "127.0.0.1:8470", "[::1]"])
def test_behind_a_proxy_that_says_nothing_even_loopback_needs_a_key(peer: str, host: str) -> None:
    """Stock nginx calls `127.0.0.1:8470` by that name, for whoever called it."""
    gateway = Gateway("127.0.0.1", require_key=True)
    for _ in range(50):
        with pytest.raises(Unauthenticated) as caught:
            gateway.admit(peer, host=host)
        assert "programs on its own machine included" in str(caught.value)
        assert "--require-key or --allow-host" in str(caught.value)
        assert "meshnode keys create NAME" in str(caught.value)
    for header in ("Bearer none", "Basic abc", ""):
        with pytest.raises(Unauthenticated):
            gateway.admit(peer, host=host, authorization=header)
    assert gateway.admit(peer, host=host, api_key=gateway.key()).name == "phone"


# What the log is told.


def test_refusals_are_told_with_their_source_and_reason_and_without_the_key(
    gateway: Gateway,
) -> None:
    text = gateway.key()
    gateway.change(text, revoked_at_s=int(WALL))
    for shown in ({}, {"api_key": text}, {"api_key": text[:-1]}, {"authorization": "Basic x"}):
        with pytest.raises(Unauthenticated):
            gateway.admit(**shown)
    assert [peer for peer, _ in gateway.refused] == [AWAY] * 4
    assert [reason for _, reason in gateway.refused] == [
        "it showed no API key",
        "the API key 'phone' was revoked at 2023-11-14T22:13:20Z",
        "that is not an API key of this mesh; a key looks like mesh_…_…",
        "the Authorization header is not of the form `Bearer KEY`",
    ]
    gateway.admit(HERE, host="localhost")
    for _ in range(50):
        guess(gateway)
    assert len(gateway.refused) == 4 + MAX_KEY_FAILURES - 3  # of what is throttled, nothing


# Guesses.


def guess(gateway: Gateway, peer: str = AWAY) -> MeshError:
    with pytest.raises((Unauthenticated, Throttled)) as caught:
        gateway.with_key(f"mesh_{'a' * 16}_{'b' * 52}", peer)
    return caught.value


def test_guesses_of_one_source_are_throttled_and_refill(gateway: Gateway) -> None:
    for _ in range(MAX_KEY_FAILURES):
        assert isinstance(guess(gateway), Unauthenticated)
    refused = guess(gateway)
    assert isinstance(refused, Throttled)
    assert refused.retry_after_s == KEY_FAILURE_REFILL_S
    gateway.now += KEY_FAILURE_REFILL_S - 1
    refused = guess(gateway)
    assert isinstance(refused, Throttled)
    assert refused.retry_after_s == 1
    gateway.now += 1
    assert isinstance(guess(gateway), Unauthenticated)
    assert isinstance(guess(gateway), Throttled)
    gateway.now += 1000
    kinds = [type(guess(gateway)) for _ in range(MAX_KEY_FAILURES + 1)]
    assert kinds == [Unauthenticated] * MAX_KEY_FAILURES + [Throttled]


def test_guesses_lock_out_neither_a_valid_key_nor_other_sources(gateway: Gateway) -> None:
    text = gateway.key()
    for _ in range(1000):
        guess(gateway)
    assert gateway.with_key(text).name == "phone"
    assert isinstance(guess(gateway, "192.168.1.10"), Unauthenticated)
    with pytest.raises(Unauthenticated, match="needs an API key"):
        gateway.admit()


def test_an_ipv6_network_is_one_source_and_a_mapped_address_its_ipv4(gateway: Gateway) -> None:
    for number in range(MAX_KEY_FAILURES):
        guess(gateway, f"2001:db8:0:1::{number:x}")
        guess(gateway, "10.0.0.1" if number % 2 else "::ffff:10.0.0.1")
    assert isinstance(guess(gateway, "2001:db8:0:1:ffff::1"), Throttled)
    assert isinstance(guess(gateway, "10.0.0.1"), Throttled)
    assert isinstance(guess(gateway, "2001:db8:0:2::1"), Unauthenticated)


@pytest.mark.parametrize("peer", ["", "no address"])
def test_peers_without_an_address_are_counted_too(gateway: Gateway, peer: str) -> None:
    for _ in range(MAX_KEY_FAILURES):
        assert isinstance(guess(gateway, peer), Unauthenticated)
    assert isinstance(guess(gateway, peer), Throttled)


def test_the_table_of_sources_is_bounded(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway.access._failures, "_max_sources", 100)
    throttled = 0
    for number in range(3000):
        gateway.now += 0.001
        peer = f"10.{number >> 8}.{number & 255}.1"
        throttled += isinstance(guess(gateway, peer), Throttled)
    assert len(gateway.access._failures._full_at) <= 101
    assert throttled >= 3000 - 100 - MAX_KEY_FAILURES - 1  # the rest shares one count
    assert "101 sources" in repr(gateway.access)
    gateway.now += 100
    assert isinstance(guess(gateway, "10.200.0.1"), Unauthenticated)
    assert len(gateway.access._failures._full_at) == 1


def test_a_busy_source_does_not_keep_the_rows_of_quiet_ones(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateway.access._failures, "_max_sources", 2)
    for peer in ("10.0.0.1", "10.0.0.2", "10.0.0.1"):
        guess(gateway, peer)
    gateway.now += KEY_FAILURE_REFILL_S  # the second has its full count again, the first does not
    guess(gateway, "10.0.0.3")
    assert list(gateway.access._failures._full_at) == ["10.0.0.1", "10.0.0.3"]


# What a caller may do.


KEYED = {scope: Caller(scope, "k" * 16, "ci") for scope in Scope}


@pytest.mark.parametrize("needed", list(Scope))
def test_a_scope_suffices_for_itself_and_those_before_it(needed: Scope) -> None:
    for caller in (*KEYED.values(), LOCAL, OWNER):
        if caller.scope.allows(needed):
            require(caller, needed)
        else:
            with pytest.raises((Forbidden, Unauthenticated)):
                require(caller, needed)


def test_a_refusal_says_which_scope_is_missing_and_how_to_get_it() -> None:
    with pytest.raises(Forbidden, match=r"scope deploy, and 'ci' has infer.*--scope deploy"):
        require(KEYED[Scope.INFER], Scope.DEPLOY)
    with pytest.raises(Unauthenticated, match=re.escape("meshnode keys create NAME --scope admin")):
        require(LOCAL, Scope.ADMIN)
    for caller in (LOCAL, KEYED[Scope.ADMIN]):
        with pytest.raises(Forbidden, match="only the owner of this node"):
            require(caller, Scope.OWNER)


def test_the_owners_channel_wants_its_token_and_its_own_host() -> None:
    channel = ChannelAccess(OriginPolicy("127.0.0.1"), lambda header: header == "Bearer t")
    assert channel.admit(Approach(HERE, "localhost", authorization="Bearer t"), 0, 0) is OWNER
    with pytest.raises(Forbidden, match="token"):
        channel.admit(Approach(HERE, "localhost"), 0, 0)
    for host in ("evil.example", None):
        with pytest.raises(Forbidden, match="Host"):
            channel.admit(Approach(HERE, host, authorization="Bearer t"), 0, 0)
