"""`/mesh/v1/artifacts`: what is passed on, and what is refused before."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from meshnode.errors import Forbidden, InvalidRequest, ModelError
from meshnode.gateway.protocols.caller import OWNER, Caller
from meshnode.models.provenance import Said
from meshnode.types import Scope
from tests.unit.gateway.test_dispatch import ask, body_of

if TYPE_CHECKING:
    from meshnode.gateway.dispatch import Dispatcher

PATH = "/mesh/v1/artifacts"


async def test_versions_are_published_listed_deployed_and_withdrawn(
    dispatcher: Dispatcher, control: Any
) -> None:
    said = b'{"path":"/m","name":"d","metrics":{"b":2,"a":0.5},"note":"n","version":3}'
    assert (await ask(dispatcher, "POST", PATH, said)).status == 201
    await ask(dispatcher, "POST", PATH, b'{"upload":"u1"}')
    await ask(dispatcher, "POST", PATH, b'{"path":"/s","variant":"int8","replace":true}')
    assert await body_of(dispatcher, "GET", PATH) == [{"name": "digits", "version": 1}]
    wish = b'{"artifact":"digits","version":3,"replicas":2}'
    assert (await ask(dispatcher, "POST", "/mesh/v1/deployments", wish)).status == 202
    gone = await body_of(dispatcher, "DELETE", f"{PATH}/digits/3")
    assert gone == {"name": "digits", "version": 3}
    assert control.calls == [
        ("publish", "/m", "d", Said((("a", 0.5), ("b", 2.0)), "n", 3)),
        ("publish_upload", "u1", None, Said(), OWNER),
        ("publish", "/s", None, Said(variant="int8", replace=True)),
        ("deploy_published", "digits", 3, 2, [], OWNER),
        ("withdraw", "digits", 3, OWNER),
    ]


@pytest.mark.parametrize(
    "body",
    [
        b"{}", b'{"path":"a","upload":"b"}', b'{"path":"a\\u0000b"}', b'{"path":"a","version":0}',
        b'{"path":"a","metrics":{"a":"b"}}', b'{"path":"a","unknown":1}',
    ],
)  # fmt: skip
async def test_wrong_publications_are_refused(dispatcher: Dispatcher, body: bytes) -> None:
    with pytest.raises(InvalidRequest):
        await ask(dispatcher, "POST", PATH, body)


async def test_names_and_numbers_are_checked(dispatcher: Dispatcher, control: Any) -> None:
    with pytest.raises(ModelError):
        await ask(dispatcher, "POST", PATH, b'{"path":"a","name":"../b"}')
    for place in ("digits/one", "digits/0", "a..b/1"):
        with pytest.raises(ModelError):
            await ask(dispatcher, "DELETE", f"{PATH}/{place}")
    with pytest.raises(ModelError):
        await ask(dispatcher, "POST", PATH, b'{"path":"a","variant":"not a name"}')
    assert control.calls == []


async def test_only_the_owner_publishes_paths_of_the_machine(
    dispatcher: Dispatcher, control: Any
) -> None:
    with pytest.raises(Forbidden, match="upload the files"):
        await ask(
            dispatcher, "POST", PATH, b'{"path":"/m"}', caller=Caller(Scope.ADMIN, "key1", "boss")
        )
    assert control.calls == []
