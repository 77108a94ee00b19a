"""Drains through the gateway."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from meshnode.errors import InvalidRequest
from meshnode.gateway.protocols.status import HttpRefusal
from meshnode.limits import DRAIN_WAIT_S, MAX_DRAIN_WAIT_S
from tests.unit.gateway.test_dispatch import ask, body_of

if TYPE_CHECKING:
    from meshnode.gateway.dispatch import Dispatcher
    from tests.unit.gateway.conftest import FakeControl

PATH = "/mesh/v1/nodes/beta/drain"


async def test_drains_reach_the_daemon_with_how_and_who_asks(
    dispatcher: Dispatcher, control: FakeControl
) -> None:
    begun = await ask(dispatcher, "PUT", PATH, b'{"force":true,"wait_s":5}')
    assert begun.status == 202
    await ask(dispatcher, "PUT", PATH, b"{}")
    assert (await body_of(dispatcher, "GET", PATH))["state"] == "serving"
    await ask(dispatcher, "DELETE", PATH)
    calls = [each[:4] for each in control.calls]
    assert calls[0] == ("drain", "beta", True, 5)
    assert calls[1] == ("drain", "beta", False, DRAIN_WAIT_S)
    assert calls[2][:2] == ("undrain", "beta")


@pytest.mark.parametrize("body", [b'{"wait_s":-1}', b'{"forced":true}', b"[]"])
async def test_a_wish_that_is_none_is_refused(dispatcher: Dispatcher, body: bytes) -> None:
    with pytest.raises(InvalidRequest):
        await ask(dispatcher, "PUT", PATH, body)
    with pytest.raises(InvalidRequest):
        await ask(dispatcher, "PUT", PATH, b'{"wait_s":%d}' % (MAX_DRAIN_WAIT_S + 1))


async def test_nothing_else_is_below_a_node(dispatcher: Dispatcher) -> None:
    with pytest.raises(HttpRefusal):
        await ask(dispatcher, "GET", "/mesh/v1/nodes/beta")
