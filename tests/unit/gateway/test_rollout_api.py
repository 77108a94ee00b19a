"""Releases through the gateway."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from meshnode.errors import InvalidRequest, NotFound
from meshnode.gateway.protocols.caller import OWNER
from meshnode.state.release import Release, Step
from meshnode.types import Role
from tests.unit.gateway.test_dispatch import ask, body_of

if TYPE_CHECKING:
    from meshnode.gateway.dispatch import Dispatcher
    from tests.unit.gateway.conftest import FakeControl

PATH = "/mesh/v1/deployments/digits/rollout"


async def test_how_a_release_stands_is_told(dispatcher: Dispatcher, control: FakeControl) -> None:
    told = await body_of(dispatcher, "GET", PATH)
    assert told == {"name": "digits", "phase": "running"}
    with pytest.raises(NotFound):
        await ask(dispatcher, "GET", PATH.replace("digits", "letters"))


async def test_what_is_asked_of_it_reaches_the_daemon_with_the_reason(
    dispatcher: Dispatcher, control: FakeControl
) -> None:
    answer = await ask(dispatcher, "POST", PATH, b'{"verb":"abort","reason":"no"}')
    assert answer.status == 202
    assert control.calls == [("rollout", "digits", "abort", "no", OWNER)]


@pytest.mark.parametrize(
    "body",
    [b"{}", b'{"verb":"explode"}', b'{"verb":"abort","why":1}', b'{"verb":"abort","reason":1}'],
)
async def test_what_nobody_can_ask_is_refused(dispatcher: Dispatcher, body: bytes) -> None:
    with pytest.raises(InvalidRequest):
        await ask(dispatcher, "POST", PATH, body)


async def test_a_node_that_may_not_change_the_mesh_has_another_one_asked(
    dispatcher: Dispatcher, control: FakeControl
) -> None:
    control.role = Role.MEMBER
    answer = await body_of(dispatcher, "POST", PATH, b'{"verb":"pause"}')
    assert answer == {"answered": "elsewhere"}
    assert [name for name, *_ in control.calls] == ["forward"]


async def test_a_deployment_may_say_how_it_is_released(
    dispatcher: Dispatcher, control: FakeControl
) -> None:
    wish = b'{"upload":"u1","release":{"strategy":"canary","steps":[50],"gates":{}}}'
    assert (await ask(dispatcher, "POST", "/mesh/v1/deployments", wish)).status == 202
    assert control.calls[0][-1] == Release("canary", 0, 0, (Step(0.5),))
    wrong = b'{"upload":"u1","release":{"strategy":"x"}}'
    with pytest.raises(InvalidRequest, match=r"release\.strategy: 'x' \(a text\) is not one of"):
        await ask(dispatcher, "POST", "/mesh/v1/deployments", wrong)
