"""Routes about who belongs to the mesh, and changes that another node has to make."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from meshnode.errors import InvalidRequest
from meshnode.gateway.access import key_shown
from meshnode.gateway.protocols.caller import OWNER
from meshnode.types import Role
from tests.unit.gateway.test_dispatch import ask, body_of

if TYPE_CHECKING:
    from meshnode.gateway.dispatch import Dispatcher
    from tests.unit.gateway.conftest import FakeControl

KEY = f"mesh_{'a' * 16}_{'b' * 52}"


async def test_invites_evictions_and_roles_reach_the_daemon_with_who_asks(
    dispatcher: Dispatcher, control: FakeControl
) -> None:
    wish = b'{"ttl_s":60,"uses":3,"role":"member","region":"eu"}'
    await ask(dispatcher, "POST", "/mesh/v1/invites", wish)
    evicted = b'{"node":"beta","reason":"stolen","with_invited":true}'
    await ask(dispatcher, "POST", "/mesh/v1/evictions", evicted)
    await ask(dispatcher, "POST", "/mesh/v1/evictions", b'{"node":"beta"}')
    await ask(dispatcher, "PUT", "/mesh/v1/roles/b%C3%A9ta", b'{"role":"admin"}')
    assert (await body_of(dispatcher, "GET", "/mesh/v1/trust"))["mesh"] == "m"
    assert (await ask(dispatcher, "POST", "/mesh/v1/trust/rotate")).status == 202
    assert (await ask(dispatcher, "POST", "/mesh/v1/trust/seal")).status == 200
    assert control.calls == [
        ("invite", 60, Role.MEMBER, 3, "eu", OWNER),
        ("evict", "beta", "stolen", True, OWNER),
        ("evict", "beta", "", False, OWNER),
        ("role", "béta", Role.ADMIN, OWNER),
        ("rotate",),
        ("seal",),
    ]


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/mesh/v1/invites", b'{"role":"king"}'),
        ("POST", "/mesh/v1/invites", b'{"uses":-1}'),
        ("POST", "/mesh/v1/invites", b'{"uses":1.5}'),
        ("POST", "/mesh/v1/invites", b'{"limit":1}'),  # a misspelt limit must not be no limit
        ("POST", "/mesh/v1/invites", b'{"ttl_s":0}'),
        ("POST", "/mesh/v1/invites", b"[1]"),
        ("POST", "/mesh/v1/evictions", b"{}"),
        ("POST", "/mesh/v1/evictions", b'{"node":""}'),
        ("POST", "/mesh/v1/evictions", b'{"node":"beta","with_invite":true}'),
        ("POST", "/mesh/v1/evictions", b'{"node":"beta","reason":"' + b"x" * 201 + b'"}'),
        ("PUT", "/mesh/v1/roles/beta", b"{}"),
        ("PUT", "/mesh/v1/roles/beta", b'{"role":"root"}'),
    ],
)
async def test_a_wish_about_trust_that_is_not_exact_changes_nothing(
    dispatcher: Dispatcher, control: FakeControl, method: str, path: str, body: bytes
) -> None:
    with pytest.raises(InvalidRequest):
        await ask(dispatcher, method, path, body)
    assert control.calls == []


OPERATORS = [
    ("POST", "/mesh/v1/deployments", b'{"upload":"u7"}', "u7"),
    ("DELETE", "/mesh/v1/deployments/digits", b"", None),
    ("POST", "/mesh/v1/uploads", b'{"files":[{"path":"a.onnx","size_bytes":1}]}', None),
    ("GET", "/mesh/v1/uploads/u7", b"", "u7"),
    ("DELETE", "/mesh/v1/uploads/u7", b"", "u7"),
    ("PUT", "/mesh/v1/uploads/u7/0", b"x", "u7"),
    ("POST", "/mesh/v1/invites", b"{}", None),
    ("POST", "/mesh/v1/keys", b'{"name":"phone"}', None),
    ("DELETE", "/mesh/v1/keys/phone", b"", None),
]
ADMINS = [
    ("POST", "/mesh/v1/invites", b'{"role":"admin"}', None),
    ("POST", "/mesh/v1/evictions", b'{"node":"beta"}', None),
    ("PUT", "/mesh/v1/roles/beta", b'{"role":"member"}', None),
]


@pytest.mark.parametrize(
    ("needed", "own", "method", "path", "body", "upload"),
    [
        (needed, own, *line)
        for needed, own, lines in (
            (Role.OPERATOR, Role.MEMBER, OPERATORS),
            (Role.ADMIN, Role.MEMBER, ADMINS),
            (Role.ADMIN, Role.OPERATOR, ADMINS),
        )
        for line in lines
    ],
)
async def test_a_change_beyond_the_role_of_this_node_is_made_by_another(
    dispatcher: Dispatcher,
    control: FakeControl,
    needed: Role,
    own: Role,
    method: str,
    path: str,
    body: bytes,
    upload: str | None,
) -> None:
    control.role = own
    answered = await body_of(dispatcher, method, path, body)
    assert answered == {"answered": "elsewhere"}
    assert control.calls == [("forward", needed, method, path, body, upload)]
    assert dispatcher.match(method, path).forwarded


async def test_what_reads_or_belongs_to_this_node_alone_is_never_passed_on(
    dispatcher: Dispatcher, control: FakeControl
) -> None:
    control.role = Role.MEMBER
    await ask(dispatcher, "POST", "/mesh/v1/deployments", b'{"path":"/models/digits"}')
    for method, path in (
        ("POST", "/mesh/v1/shutdown"),
        ("POST", "/mesh/v1/trust/seal"),
        ("POST", "/mesh/v1/trust/rotate"),
        ("GET", "/mesh/v1/trust"),
        ("GET", "/mesh/v1/keys"),
        ("GET", "/mesh/v1/uploads"),
        ("GET", "/mesh/v1/status"),
        ("GET", "/metrics"),
        ("GET", "/v2"),
        ("POST", "/v2/models/digits/infer"),
    ):
        assert not dispatcher.match(method, path).forwarded
    assert control.calls == [("deploy", "/models/digits", None, None, [])]


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, None),
        ({"authorization": f"Bearer {KEY}"}, KEY),
        ({"x-api-key": KEY}, KEY),
        ({"authorization": "Bearer a-channels-token", "x-api-key": KEY}, KEY),
        ({"authorization": "Bearer a-channels-token"}, None),
        ({"authorization": f"Basic {KEY}"}, None),
        ({"authorization": f"Bearer {KEY}{'x' * 300}"}, None),
        ({"x-api-key": KEY * 9}, None),
    ],
)
def test_only_what_is_an_api_key_is_passed_on_as_one(
    headers: dict[str, str], expected: str | None
) -> None:
    assert key_shown(headers) == expected
