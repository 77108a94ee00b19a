"""Routes and handlers, without a server."""

from __future__ import annotations

import inspect
import json
from typing import TYPE_CHECKING, Any

import pytest

from meshnode.errors import (
    Forbidden,
    InferenceFailed,
    InvalidRequest,
    ModelError,
    ModelNotFound,
    NoReplica,
)
from meshnode.gateway import dispatch as dispatch_module
from meshnode.gateway.dispatch import Dispatcher
from meshnode.gateway.protocols.http import HttpRequest, HttpResponse
from meshnode.gateway.protocols.status import HttpRefusal
from meshnode.types import InferResponse, ResponsePart

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshnode.gateway.metrics import GatewayMetrics
    from meshnode.gateway.pipeline import Pipeline
    from meshnode.models.manifest import Manifest

GOOD = json.dumps(
    {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}]}
).encode()


@pytest.fixture
def owner(pipeline: Pipeline, control: Any, metrics: GatewayMetrics) -> Dispatcher:
    """The dispatcher of the control socket."""
    return Dispatcher(pipeline, control, metrics, privileged=True)


async def ask(dispatcher: Dispatcher, method: str, path: str, body: bytes = b"") -> HttpResponse:
    found = dispatcher.match(method, path)
    reply = found.answer(HttpRequest(method, path, "", {}, body), "id-1")
    if isinstance(reply, HttpResponse):
        return reply
    assert inspect.isawaitable(reply)
    return await reply


async def body_of(dispatcher: Dispatcher, method: str, path: str, body: bytes = b"") -> Any:
    response = await ask(dispatcher, method, path, body)
    assert isinstance(response.body, bytes)
    return json.loads(response.body)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/v2", {"name": "meshnode", "version": "0.1.0"}),
        ("/v2/", {"name": "meshnode"}),
        ("/v2/health/live", {"live": True}),
        ("/v2/health/ready", {"ready": True}),
        ("/v2/models/digits", {"name": "digits", "versions": ["1"]}),
        ("/v2/models/digits/", {"name": "digits"}),
        ("/v2/models/d%69gits", {"name": "digits"}),
        ("/v2/models/digits/versions/1", {"versions": ["1"], "platform": "onnxruntime_onnx"}),
        ("/v2/models/digits/ready", {"name": "digits", "ready": True}),
        ("/v2/models/digits/versions/1/ready", {"ready": True}),
        ("/v2/models/digits/config", {"backend": "onnx"}),
        ("/healthz", {"status": "ok"}),
        ("/readyz", {"ready": True}),
        ("/mesh/v1/status", {"name": "alpha"}),
        ("/mesh/v1/models/digits", {"name": "digits", "versions": [1]}),
    ],
)
async def test_what_can_be_read(
    dispatcher: Dispatcher, path: str, expected: dict[str, Any]
) -> None:
    for method in ("GET", "HEAD", "GET"):
        got = await body_of(dispatcher, method, path)
        assert {key: got[key] for key in expected} == expected


async def test_lists_are_answered_as_lists(dispatcher: Dispatcher) -> None:
    assert (await body_of(dispatcher, "GET", "/mesh/v1/nodes"))[0]["self"] is True
    assert [m["name"] for m in await body_of(dispatcher, "GET", "/mesh/v1/models")] == ["digits"]


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "",
        "v2",
        "/v1",
        "/v2/models/",
        "/v2/models//infer",
        "/v2/models/digits/stats",
        "/v2/models/digits/infer/more",
        "/v2/models/digits/versions/1/infer/x",
        "/mesh/v1/models/a/b",
        "/mesh/v1/deployments/a/b",
        "/mesh/v2",
        "http://evil.example/v2",
        "/v2/../mesh/v1/status",
    ],
)
def test_other_paths_are_not_found(dispatcher: Dispatcher, path: str) -> None:
    with pytest.raises(HttpRefusal) as caught:
        dispatcher.match("GET", path)
    assert caught.value.status == 404


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("POST", "/v2", "GET, HEAD"),
        ("GET", "/v2/models/digits/infer", "POST"),
        ("HEAD", "/v2/models/digits/infer", "POST"),
        ("OPTIONS", "/v2/models/digits/infer", "POST"),
        ("DELETE", "/mesh/v1/nodes", "GET, HEAD"),
        ("GET", "/mesh/v1/invites", "POST"),
        ("POST", "/mesh/v1/deployments/digits", "DELETE"),
        ("X" * 500, "/metrics", "GET, HEAD"),
    ],
)
def test_other_methods_are_told_which_are_allowed(
    dispatcher: Dispatcher, method: str, path: str, allow: str
) -> None:
    with pytest.raises(HttpRefusal) as caught:
        dispatcher.match(method, path)
    assert (caught.value.status, caught.value.headers) == (405, {"Allow": allow})
    assert len(str(caught.value)) < 100


@pytest.mark.parametrize("version", ["0x1", "-1", "latest", "²", "9" * 19, ""])
def test_a_version_is_a_number(dispatcher: Dispatcher, version: str) -> None:
    with pytest.raises(InvalidRequest, match="is not a model version"):
        dispatcher.match("POST", f"/v2/models/digits/versions/{version}/infer")


async def test_unknown_models_are_not_found_everywhere(
    dispatcher: Dispatcher, metrics: GatewayMetrics
) -> None:
    for path in ("", "/ready", "/config", "/versions/1"):
        with pytest.raises(ModelNotFound):
            await ask(dispatcher, "GET", f"/v2/models/nothing{path}")
    with pytest.raises(ModelNotFound):
        await ask(dispatcher, "POST", "/v2/models/nothing/infer", GOOD)
    assert metrics.requests.values == {("other", "not_found"): 1}


async def test_only_ready_versions_are_in_a_models_metadata(
    dispatcher: Dispatcher, control: Any, make_manifest: Callable[..., Manifest]
) -> None:
    control.manifests["digits", 2] = make_manifest(version=2)
    control.ready_versions = {2}
    assert (await body_of(dispatcher, "GET", "/v2/models/digits"))["versions"] == ["2"]
    response = await ask(dispatcher, "GET", "/v2/models/digits/versions/1/ready")
    assert response.status == 400


async def test_readiness_says_why_not(dispatcher: Dispatcher, control: Any) -> None:
    control.is_ready = False
    response = await ask(dispatcher, "GET", "/readyz")
    assert (response.status, response.body) == (
        503,
        b'{"ready":false,"reason":"no mesh was joined yet"}',
    )
    assert (await ask(dispatcher, "GET", "/v2/health/ready")).status == 400
    assert (await ask(dispatcher, "GET", "/healthz")).status == 200


async def test_inference_at_once_and_later_answers_the_same(
    dispatcher: Dispatcher, serve: Callable[..., None], local: Any
) -> None:
    serve()
    answers = []
    for inline in (True, False):
        local.inline = inline
        response = await ask(dispatcher, "POST", "/v2/models/digits/versions/1/infer", GOOD)
        assert response.headers["Mesh-Route"].startswith("node=alpha; region=eu-west; version=1;")
        assert isinstance(response.body, bytes)
        answers.append(response.body)
    assert answers[0] == answers[1]
    assert json.loads(answers[0])["outputs"][0]["data"] == [1, 2, 3, 4]


async def test_a_stream_of_one_part_answers_too_and_a_longer_one_is_an_error(
    dispatcher: Dispatcher, serve: Callable[..., None], peers: Any
) -> None:
    serve("beta")

    def parts(count: int) -> Callable[..., Any]:
        async def answer(node: Any, request: Any) -> InferResponse:
            async def stream() -> Any:
                for _ in range(count):
                    yield ResponsePart(())

            return InferResponse("digits", 1, stream())

        return answer

    peers.behave = parts(1)
    assert (await ask(dispatcher, "POST", "/v2/models/digits/infer", GOOD)).status == 200
    peers.behave = parts(2)
    with pytest.raises(InferenceFailed):
        await ask(dispatcher, "POST", "/v2/models/digits/infer", GOOD)


async def test_errors_of_inference_reach_the_caller_and_the_counters(
    dispatcher: Dispatcher, serve: Callable[..., None], router: Any, metrics: GatewayMetrics
) -> None:
    serve("beta")
    with pytest.raises(InvalidRequest):
        await ask(dispatcher, "POST", "/v2/models/digits/infer", b"{}")
    with pytest.raises(InvalidRequest, match="has shape"):
        await ask(dispatcher, "POST", "/v2/models/digits/infer", GOOD.replace(b"[1, 4]", b"[4]"))
    router.link_changed(next(iter(router.table.replicas("digits", 1))).node, "down")
    with pytest.raises(NoReplica):
        await ask(dispatcher, "POST", "/v2/models/digits/infer", GOOD)
    assert metrics.requests.values == {
        ("digits", "invalid_request"): 2,
        ("digits", "no_replica"): 1,
    }


def test_the_memory_of_matched_paths_is_bounded(
    dispatcher: Dispatcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch_module, "_MAX_REMEMBERED", 3)
    for number in range(10):
        first = dispatcher.match("POST", f"/v2/models/m{number}/infer")
        assert dispatcher.match("POST", f"/v2/models/m{number}/infer") is first
    assert len(dispatcher._remembered) <= 3
    assert repr(dispatcher) == "<Dispatcher, read and infer only>"


# Changes.

CHANGES = [
    ("POST", "/mesh/v1/invites"),
    ("POST", "/mesh/v1/deployments"),
    ("DELETE", "/mesh/v1/deployments/digits"),
]


@pytest.mark.parametrize(("method", "path"), CHANGES)
async def test_the_gateway_changes_nothing_and_reads_no_body_for_it(
    dispatcher: Dispatcher, control: Any, method: str, path: str
) -> None:
    assert not dispatcher.match(method, path).takes_body
    with pytest.raises(Forbidden, match="meshnode command on its machine"):
        await ask(dispatcher, method, path, b"{}")
    assert control.calls == []


async def test_the_owner_invites_deploys_and_undeploys(owner: Dispatcher, control: Any) -> None:
    assert (await body_of(owner, "POST", "/mesh/v1/invites", b'{"ttl_s":60}'))[
        "invite"
    ] == "mesh1abc"
    await ask(owner, "POST", "/mesh/v1/invites")
    deployment = {"path": "/models/digits", "name": "d", "replicas": 2, "on": ["alpha"]}
    response = await ask(owner, "POST", "/mesh/v1/deployments", json.dumps(deployment).encode())
    assert response.status == 202
    await ask(owner, "POST", "/mesh/v1/deployments", b'{"path":"x.onnx","name":null}')
    assert await body_of(owner, "DELETE", "/mesh/v1/deployments/digits") == {"name": "digits"}
    assert control.calls == [
        ("invite", 60),
        ("invite", 86400),
        ("deploy", "/models/digits", "d", 2, ["alpha"]),
        ("deploy", "x.onnx", None, None, []),
        ("undeploy", "digits"),
    ]
    assert repr(owner) == "<Dispatcher, privileged>"


@pytest.mark.parametrize(
    ("path", "body", "sentence"),
    [
        ("invites", b'{"ttl_s":0}', "`int` >= 1"),
        ("invites", b'{"ttl_s":1e9}', "ttl_s"),
        ("invites", b'{"ttl_s":99999999999}', "<="),
        ("invites", b'{"ttl_s":"60"}', "Expected `int`"),
        ("invites", b"[]", "Expected `object`"),
        ("invites", b"{", "truncated"),
        ("invites", b'{"x":' + b"[" * 5000 + b"]" * 5000 + b"}", "recursion"),
        ("deployments", b"", "missing required field `path`"),
        ("deployments", b'{"path":""}', "length >= 1"),
        ("deployments", b'{"path":"a\\u0000b"}', "NUL"),
        ("deployments", b'{"path":"\xff"}', "utf-8"),
        ("deployments", b'{"path":"a","replicas":0}', "replicas"),
        ("deployments", b'{"path":"a","on":"alpha"}', "Expected `array`"),
    ],
)
async def test_bad_changes_are_explained(
    owner: Dispatcher, control: Any, path: str, body: bytes, sentence: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        await ask(owner, "POST", f"/mesh/v1/{path}", body)
    assert sentence in str(caught.value)
    assert control.calls == []


async def test_names_of_deployments_are_names_of_models(owner: Dispatcher, control: Any) -> None:
    with pytest.raises(ModelError):
        await ask(owner, "POST", "/mesh/v1/deployments", b'{"path":"a","name":"../b"}')
    with pytest.raises(ModelError):
        await ask(owner, "DELETE", "/mesh/v1/deployments/%2e%2e%2fetc")
    assert control.calls == []
