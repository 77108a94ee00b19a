"""Definitions of deployments through the gateway."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from meshnode.errors import Forbidden, InvalidRequest, StaleRevision
from meshnode.gateway.deployments_api import Definition
from meshnode.gateway.protocols.caller import OWNER, Caller
from meshnode.gateway.protocols.status import HttpRefusal, status_of_kind
from meshnode.types import Role, Scope
from tests.unit.gateway.test_dispatch import ask, body_of

if TYPE_CHECKING:
    from meshnode.gateway.dispatch import Dispatcher
    from tests.unit.gateway.conftest import FakeControl

PATH = "/mesh/v1/deployments/digits"
SPEC = b'{"deployment":{"model":"digits","replicas":2,"where":{"regions":["eu"]}}'


async def test_a_definition_reaches_the_daemon_with_where_its_files_are(
    dispatcher: Dispatcher, control: FakeControl
) -> None:
    files = b',"upload":"u1","variants":{"int8":{"upload":"u2"}},"source":"s","revision":"1.0.a"}'
    assert (await ask(dispatcher, "PUT", PATH, SPEC + files)).status == 202
    name, wish, caller = control.calls[0]
    assert isinstance(wish, Definition)
    assert (name, wish.spec.name, wish.spec.replicas, caller) == ("apply", "digits", 2, OWNER)
    assert wish.spec.where.regions == ("eu",)
    assert wish.places == {"": ("", "u1"), "int8": ("", "u2")}
    assert (wish.source, wish.base, wish.dry_run, wish.force) == ("s", "1.0.a", False, False)


async def test_what_changes_nothing_and_a_dry_run_are_answered_with_200(
    dispatcher: Dispatcher, control: FakeControl
) -> None:
    assert (await ask(dispatcher, "PUT", PATH, SPEC + b',"dry_run":true}')).status == 200
    assert control.calls[0][1].dry_run
    control.definitions.changes = False
    assert (await ask(dispatcher, "PUT", PATH, SPEC + b"}")).status == 200
    assert (await ask(dispatcher, "PATCH", PATH, b'{"enabled":false}')).status == 200


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (
            b'{"deployment":{"model":"d","replicas":0,"regoin":1}}',
            "replicas: 0 .*; .*regoin: unknown key",
        ),
        (b'{"deployment":{"name":"other","model":"d"}}', "the path names 'digits'"),
        (
            b'{"deployment":{"model":"d"},"upload":"u","path":"p"}',
            "either by an upload, or by a path",
        ),
        (b'{"deployment":{"model":"d"},"variants":{"int8":{"upload":"u"}}}', "either by an upload"),
        (b'{"deployment":{"model":"d"},"upload":"u","dry_run":true}', "a dry run takes no files"),
        (b'{"deployment":{"model":"d"},"path":"a\\u0000"}', "NUL"),
        (b'{"deployment":{"model":"d"},"forced":true}', "forced"),
        (b'{"deployment":[]}', "object"),
        (b"[]", "object"),
    ],
)
async def test_a_definition_that_is_none_is_refused_with_every_mistake(
    dispatcher: Dispatcher, control: FakeControl, body: bytes, said: str
) -> None:
    with pytest.raises(InvalidRequest, match=said):
        await ask(dispatcher, "PUT", PATH, body)
    assert control.calls == []


async def test_only_the_owner_applies_a_path_of_this_machine(dispatcher: Dispatcher) -> None:
    caller = Caller(Scope.DEPLOY, "k" * 16, "ci")
    with pytest.raises(Forbidden, match="upload the files"):
        await ask(dispatcher, "PUT", PATH, SPEC + b',"path":"/m"}', caller=caller)


async def test_single_things_are_changed_and_revisions_restored(
    dispatcher: Dispatcher, control: FakeControl
) -> None:
    body = b'{"enabled":false,"env":{"A":"1","B":null},"revision":"1.0.a"}'
    assert (await ask(dispatcher, "PATCH", PATH, body)).status == 202
    assert (await ask(dispatcher, "POST", f"{PATH}/rollback", b'{"to":"1.0"}')).status == 202
    await ask(dispatcher, "DELETE", f"{PATH}?revision=2.0.b")
    assert control.calls == [
        ("change", "digits", "1.0.a", False, {"A": "1", "B": None}, OWNER),
        ("rollback", "digits", "1.0", None, OWNER),
        ("undeploy", "digits", "2.0.b", OWNER),
    ]


async def test_history_and_differences_are_read(dispatcher: Dispatcher) -> None:
    assert await body_of(dispatcher, "GET", f"{PATH}/history") == [{"id": "1.0.a"}]
    found = await body_of(dispatcher, "GET", f"{PATH}/diff?from=1&to=2")
    assert (found["from"], found["to"]) == ("1", "2")
    assert (await body_of(dispatcher, "GET", f"{PATH}?revision=1"))["revision"] == "1"
    with pytest.raises(InvalidRequest, match="takes from, to"):
        await ask(dispatcher, "GET", f"{PATH}/diff?form=1")
    with pytest.raises(HttpRefusal):
        await ask(dispatcher, "GET", f"{PATH}/diffs")


async def test_a_node_that_may_not_change_the_mesh_has_another_do_it(
    dispatcher: Dispatcher, control: FakeControl
) -> None:
    control.role = Role.MEMBER
    await ask(dispatcher, "PUT", PATH, SPEC + b',"upload":"u1"}')
    await ask(dispatcher, "PATCH", PATH, b'{"enabled":true}')
    await ask(dispatcher, "POST", f"{PATH}/rollback", b"{}")
    assert [(call[0], call[2], call[5]) for call in control.calls] == [
        ("forward", "PUT", "u1"),
        ("forward", "PATCH", None),
        ("forward", "POST", None),
    ]


def test_a_stale_revision_is_a_conflict() -> None:
    assert status_of_kind(StaleRevision) == 409
