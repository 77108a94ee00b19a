"""Routes about devices that ask to join."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from meshnode.errors import InvalidRequest
from meshnode.gateway.protocols.caller import OWNER
from meshnode.types import Role
from tests.unit.gateway.test_dispatch import ask, body_of

if TYPE_CHECKING:
    from meshnode.gateway.dispatch import Dispatcher
    from tests.unit.gateway.conftest import FakeControl

APPROVE = "/mesh/v1/join-requests/approve"


async def test_requests_are_listed_and_approved_with_who_asks(
    dispatcher: Dispatcher, control: FakeControl
) -> None:
    (waiting,) = await body_of(dispatcher, "GET", "/mesh/v1/join-requests")
    assert waiting["name"] == "camera"
    await ask(dispatcher, "POST", APPROVE, b'{"code":"123 456","role":"member","region":"eu"}')
    await ask(dispatcher, "POST", APPROVE, b'{"code":"123456"}')
    assert control.calls == [
        ("approve", "123 456", Role.MEMBER, "eu", OWNER),
        ("approve", "123456", Role.OPERATOR, "", OWNER),
    ]


async def test_a_plain_member_answers_itself_for_devices_wait_at_the_node_they_asked(
    dispatcher: Dispatcher, control: FakeControl
) -> None:
    control.role = Role.MEMBER
    assert len(await body_of(dispatcher, "GET", "/mesh/v1/join-requests")) == 1
    await ask(dispatcher, "POST", APPROVE, b'{"code":"123456"}')
    assert control.calls[-1][0] == "approve"


@pytest.mark.parametrize(
    "body",
    [
        b"{}", b'{"code":123456}', b'{"code":""}', b'{"code":"' + b"1" * 33 + b'"}',
        b'{"code":"123456","role":"king"}', b'{"code":"123456","region":"a b"}',
        b'{"code":"123456","roles":"member"}', b"[]",
    ],
)  # fmt: skip
async def test_a_malformed_approval_is_refused_before_a_code_is_looked_at(
    dispatcher: Dispatcher, control: FakeControl, body: bytes
) -> None:
    with pytest.raises(InvalidRequest):
        await ask(dispatcher, "POST", APPROVE, body)
    assert control.calls == []
