"""What headers say of where a request may run: read alike in every dialect, refused where it is not understood."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from msgspec.structs import replace

from meshnode.errors import InvalidRequest, NoReplica
from meshnode.gateway.protocols.caller import Caller
from meshnode.gateway.protocols.hints import hints_of
from meshnode.gateway.protocols.http import HttpRequest, HttpResponse
from meshnode.routing.conditions import NodeConditions
from meshnode.types import NO_HINTS, Priority, RoutingHints, Scope
from tests.unit.gateway.conftest import ME, PEERS
from tests.unit.gateway.test_server import GOOD
from tests.unit.gateway.text_gateway import model, says

if TYPE_CHECKING:
    from meshnode.gateway.dispatch import Dispatcher
    from meshnode.routing.router import Router
    from tests.unit.gateway.conftest import FakeLocal, FakePeers
    from tests.unit.gateway.text_gateway import Gateway


@pytest.mark.parametrize(
    ("headers", "hints"),
    [
        ({}, NO_HINTS),
        ({"mesh-region": "eu"}, RoutingHints(region="eu", region_required=True)),
        ({"mesh-region": " eu ; Prefer"}, RoutingHints(region="eu", region_required=False)),
        (
            {"mesh-labels": "tier=2, gpu=a100,"},
            RoutingHints(labels=(("gpu", "a100"), ("tier", "2"))),
        ),
        ({"mesh-labels": "spot="}, RoutingHints(labels=(("spot", ""),))),
        ({"mesh-priority": "High"}, RoutingHints(priority=Priority.HIGH)),
    ],
)
def test_headers_are_read(headers: dict[str, str], hints: RoutingHints) -> None:
    assert hints_of(headers) == hints


def test_of_a_session_only_a_digest_is_kept_that_is_the_same_at_every_gateway() -> None:
    hints = hints_of({"mesh-session": "user-7/tab:2"})
    assert hints == RoutingHints(session="4ce7b3900bcf7163")
    assert hints_of({"mesh-session": "user-8"}).session != hints.session


@pytest.mark.parametrize(
    "headers",
    [
        {"mesh-region": ""},
        {"mesh-region": "eu west"},
        {"mesh-region": "eu;maybe"},
        {"mesh-region": "eu;"},
        {"mesh-region": "eu-"},
        {"mesh-region": "eu-;prefer"},
        {"mesh-region": "e" * 64},
        {"mesh-labels": "gpu"},
        {"mesh-labels": ""},
        {"mesh-labels": " , "},
        {"mesh-labels": "gpu=a100,gpu=h100"},
        {"mesh-labels": "=x"},
        {"mesh-labels": "gpu=" + "x" * 2000},
        {"mesh-labels": ",".join(f"k{number}=v" for number in range(40))},
        {"mesh-session": ""},
        {"mesh-session": "two words"},
        {"mesh-session": "ä"},
        {"mesh-session": "s" * 129},
        {"mesh-priority": "urgent"},
        {"mesh-priority": ""},
    ],
)
def test_what_is_not_understood_is_refused_and_never_ignored(headers: dict[str, str]) -> None:
    with pytest.raises(InvalidRequest, match="Mesh-"):
        hints_of(headers)


FORMS: list[tuple[str, bytes]] = [
    ("/v2/models/digits/infer", GOOD),
    ("/mesh/v1/models/digits/infer", b'{"inputs": {"x": [[1, 2, 3, 4]]}}'),
    ("/v1/models/digits:predict", b'{"instances": [[1, 2, 3, 4]]}'),
    ("/predictions/digits", b'{"instances": [[1, 2, 3, 4]]}'),
    ("/inference/digits", b'{"x": [[1, 2, 3, 4]]}'),
]


async def ask(
    dispatcher: Dispatcher, path: str, body: bytes, caller: Caller | None = None, **headers: str
) -> HttpResponse:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    named["content-type"] = "application/json"
    http = HttpRequest("POST", path, "", named, body, caller or Caller(Scope.INFER))
    reply = dispatcher.answer(dispatcher.match("POST", path), http, "r1")
    answer = reply if isinstance(reply, HttpResponse) else await reply
    assert isinstance(answer, HttpResponse)
    return answer


@pytest.mark.parametrize(("path", "body"), FORMS)
async def test_every_dialect_heeds_the_headers(
    dispatcher: Dispatcher, local: FakeLocal, serve: Any, manifest: Any, path: str, body: bytes
) -> None:
    serve(what=manifest)
    local.inline = False
    key = Caller(Scope.INFER, key_id="k1")
    await ask(dispatcher, path, body, key, mesh_region="eu;prefer", mesh_priority="low")
    assert local.requests[-1].hints == RoutingHints(
        region="eu", region_required=False, priority=Priority.LOW, caller="k1"
    )
    with pytest.raises(InvalidRequest, match="Mesh-Region"):
        await ask(dispatcher, path, body, mesh_region="no region")


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}]}),
        ("/v1/completions", {"prompt": "hi"}),
    ],
)
async def test_openais_dialect_heeds_them_too(
    gateway: Gateway, dispatcher: Dispatcher, path: str, said: dict[str, Any]
) -> None:
    gateway.answers(model(), says("hello"))
    body = json.dumps({"model": "writer", **said}).encode()
    key = Caller(Scope.INFER, key_id="k1")
    await ask(dispatcher, path, body, key, mesh_region="eu;prefer", mesh_priority="low")
    hints = gateway.asked[-1].hints
    assert (hints.region, hints.region_required, hints.caller) == ("eu", False, "k1")
    assert hints.priority is Priority.LOW
    with pytest.raises(InvalidRequest, match="Mesh-Region"):
        await ask(dispatcher, path, body, mesh_region="no region")


@pytest.mark.parametrize("inline", [True, False])
async def test_a_request_that_must_run_elsewhere_does_not_run_here(
    dispatcher: Dispatcher,
    local: FakeLocal,
    peers: FakePeers,
    serve: Any,
    manifest: Any,
    inline: bool,
) -> None:
    local.inline = inline
    serve(what=manifest)
    with pytest.raises(NoReplica, match="must run in mars"):
        await ask(dispatcher, *FORMS[0], mesh_region="mars")
    serve("beta", region="mars", what=manifest)
    answer = await ask(dispatcher, *FORMS[0], mesh_region="mars")
    assert answer.headers["Mesh-Route"].startswith("node=beta; region=mars")
    assert not local.requests
    assert [node for node, _, _ in peers.calls] == [PEERS["beta"]]


@pytest.mark.parametrize(
    "conditions",
    [
        NodeConditions(on_battery=True),
        NodeConditions(throttled=True),
        NodeConditions(draining=True),
    ],
)
async def test_an_inline_model_of_a_node_that_is_a_last_resort_runs_elsewhere_if_it_can(
    dispatcher: Dispatcher,
    local: FakeLocal,
    router: Router,
    serve: Any,
    manifest: Any,
    conditions: NodeConditions,
) -> None:
    serve(what=manifest)
    router.conditions_changed(ME, conditions)
    await ask(dispatcher, *FORMS[0])
    assert len(local.requests) == 1, "the only one serves"
    serve("beta", what=manifest)
    answer = await ask(dispatcher, *FORMS[0])
    assert answer.headers["Mesh-Route"].startswith("node=beta")
    assert len(local.requests) == 1


async def test_only_the_beginning_of_a_text_that_is_answered_in_parts_is_remembered(
    serve: Any, manifest: Any
) -> None:
    from meshnode.routing.stickiness import with_beginning
    from meshnode.types import DataType, InferRequest, Tensor

    text = (1000).to_bytes(4, "little") + b"x" * 1000
    request = InferRequest("m", (Tensor("text", DataType.BYTES, (1,), text),))
    streams = replace(manifest.execution, decoupled=True)
    assert with_beginning(request, manifest.execution) is request
    assert len(with_beginning(request, streams).hints.prefix) == 16
