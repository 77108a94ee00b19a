"""Routes and handlers, without a server."""

from __future__ import annotations

import inspect
import json
from typing import TYPE_CHECKING, Any

import pytest

from meshnode.errors import (
    Forbidden,
    InvalidRequest,
    ModelError,
    ModelNotFound,
    NoReplica,
    TooLarge,
)
from meshnode.gateway import dispatch as dispatch_module
from meshnode.gateway.protocols.caller import LOCAL, OWNER, Caller
from meshnode.gateway.protocols.http import HttpRequest, HttpResponse
from meshnode.gateway.protocols.status import HttpRefusal
from meshnode.limits import UPLOAD_PIECE_BYTES
from meshnode.models.exposure import ExposureChange, Task, TaskMapping
from meshnode.state.scaling import Scaling
from meshnode.types import InferResponse, ResponsePart, Role, Scope

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshnode.gateway.dispatch import Dispatcher
    from meshnode.gateway.metrics import GatewayMetrics
    from meshnode.models.manifest import Manifest

GOOD = json.dumps(
    {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}]}
).encode()


async def ask(
    dispatcher: Dispatcher, method: str, path: str, body: bytes = b"", caller: Caller = OWNER
) -> HttpResponse:
    found = dispatcher.match(method, path.partition("?")[0])
    path, _, query = path.partition("?")
    reply = found.answer(HttpRequest(method, path, query, {}, body, caller), "id-1")
    if isinstance(reply, HttpResponse):
        return reply
    assert inspect.isawaitable(reply)
    response = await reply
    assert isinstance(response, HttpResponse)
    return response


async def body_of(dispatcher: Dispatcher, method: str, path: str, body: bytes = b"") -> Any:
    response = await ask(dispatcher, method, path, body)
    assert isinstance(response.body, bytes)
    return json.loads(response.body)


@pytest.mark.parametrize(
    ("caller", "sees_paths"),
    [(OWNER, True), (Caller(Scope.ADMIN), True), (Caller(Scope.DEPLOY), False), (LOCAL, False)],
)
async def test_where_a_node_keeps_its_files_is_told_to_admins_only(
    dispatcher: Dispatcher, caller: Caller, sees_paths: bool
) -> None:
    response = await ask(dispatcher, "GET", "/mesh/v1/status", caller=caller)
    assert isinstance(response.body, bytes)
    document = json.loads(response.body)
    assert document["name"] == "alpha"
    assert ("data_dir" in document, "pid" in document) == (sees_paths, sees_paths)


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
        ("/v2/models/digits/config", {"backend": "onnxruntime"}),
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


async def test_the_round_trip_between_two_nodes_is_asked_for_by_query(
    dispatcher: Dispatcher,
) -> None:
    route = dispatcher.match("GET", "/mesh/v1/rtt")

    def ask(query: str) -> Any:
        return route.answer(HttpRequest("GET", "/mesh/v1/rtt", query, {}, b"", OWNER), "r1")

    answer = ask("to=gamma&from=n%C3%B6de+1")
    assert json.loads(answer.body)["from"] == {"name": "nöde 1"}
    for query in ("", "from=a", "from=a&to=b&to=c", "from=a&from=b", "a=1&b=2"):
        with pytest.raises(InvalidRequest, match="two nodes are named by"):
            ask(query)


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
        "/v2/models/digits/nothing",
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
        ("POST", "/mesh/v1/deployments/digits", "GET, HEAD, PUT, PATCH, DELETE"),
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


@pytest.mark.parametrize(
    "version", ["0x1", "01", "-1", "latest", "²", "9" * 19, "", "20261331_120000"]
)
def test_a_version_is_a_number(dispatcher: Dispatcher, version: str) -> None:
    with pytest.raises(InvalidRequest, match="is not a model version"):
        dispatcher.match("POST", f"/v2/models/digits/versions/{version}/infer")


async def test_a_version_may_be_named_by_its_label(dispatcher: Dispatcher) -> None:
    with pytest.raises(ModelNotFound, match="20260131120000"):
        await ask(dispatcher, "GET", "/v2/models/digits/versions/20260131_120000")


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


async def test_a_callers_trace_is_taken_over_and_a_malformed_one_is_none(
    dispatcher: Dispatcher, serve: Callable[..., None], local: Any
) -> None:
    serve()
    found = dispatcher.match("POST", "/v2/models/digits/infer")
    for header in (f"00-{'a' * 32}-{'b' * 16}-01", "malformed", None):
        headers = {} if header is None else {"traceparent": header}
        found.answer(HttpRequest("POST", "", "", headers, GOOD, OWNER), "id-1")
    taken, begun, none = [request.trace for request in local.requests]
    assert (taken.trace_id, taken.parent_id, taken.flags) == ("a" * 32, "b" * 16, "01")
    assert begun.trace_id != "a" * 32
    assert begun.parent_id == ""
    assert none is None  # nobody else hears of it


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
    with pytest.raises(InvalidRequest, match="generate_stream"):
        await ask(dispatcher, "POST", "/v2/models/digits/infer", GOOD)


async def test_errors_of_inference_reach_the_caller_and_the_counters(
    dispatcher: Dispatcher,
    serve: Callable[..., None],
    router: Any,
    metrics: GatewayMetrics,
) -> None:
    serve("beta")
    with pytest.raises(InvalidRequest):
        await ask(dispatcher, "POST", "/v2/models/digits/infer", b"{}")
    with pytest.raises(InvalidRequest, match="has shape"):
        await ask(dispatcher, "POST", "/v2/models/digits/infer", GOOD.replace(b"[1, 4]", b"[4]"))
    router.link_changed(next(iter(router.table.replicas("digits", 1))).node, "down", 0.0)
    with pytest.raises(NoReplica):
        await ask(dispatcher, "POST", "/v2/models/digits/infer", GOOD)
    assert metrics.requests.values == {
        ("digits", "invalid_request"): 2,
        ("digits", "no_replica"): 1,
    }


def test_the_memory_of_matched_paths_is_bounded(
    dispatcher: Dispatcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch_module, "MAX_REMEMBERED_PATHS", 3)
    for number in range(10):
        first = dispatcher.match("POST", f"/v2/models/m{number}/infer")
        assert dispatcher.match("POST", f"/v2/models/m{number}/infer") is first
    assert len(dispatcher._remembered) <= 3
    assert repr(dispatcher).startswith("<Dispatcher of ")


# Changes.


async def test_the_owner_invites_deploys_and_undeploys(
    dispatcher: Dispatcher, control: Any
) -> None:
    assert (await body_of(dispatcher, "POST", "/mesh/v1/invites", b'{"ttl_s":60}'))[
        "invite"
    ] == "mesh1abc"
    await ask(dispatcher, "POST", "/mesh/v1/invites")
    deployment = {"path": "/models/digits", "name": "d", "replicas": 2, "on": ["alpha"]}
    response = await ask(
        dispatcher, "POST", "/mesh/v1/deployments", json.dumps(deployment).encode()
    )
    assert response.status == 202
    await ask(dispatcher, "POST", "/mesh/v1/deployments", b'{"path":"x.onnx","name":null}')
    form = b'{"path":"x8.onnx","name":"x","variant":"int8"}'
    await ask(dispatcher, "POST", "/mesh/v1/deployments", form)
    offered = b'{"path":"y.onnx","endpoint":"/y/","tasks":["chat"],"cache":false}'
    await ask(dispatcher, "POST", "/mesh/v1/deployments", offered)
    scaled = b'{"path":"z.onnx","autoscaling":{"min":0,"max":3,"qps":5}}'
    await ask(dispatcher, "POST", "/mesh/v1/deployments", scaled)
    gone = await body_of(dispatcher, "DELETE", "/mesh/v1/deployments/digits")
    assert gone["name"] == "digits"
    assert control.calls == [
        ("invite", 60, Role.OPERATOR, 0, "", OWNER),
        ("invite", 86400, Role.OPERATOR, 0, "", OWNER),
        ("deploy", "/models/digits", "d", 2, ["alpha"]),
        ("deploy", "x.onnx", None, None, []),
        ("deploy", "x8.onnx", "x", None, [], "int8"),
        (
            "deploy",
            "y.onnx",
            None,
            None,
            [],
            ExposureChange("/y", (TaskMapping(Task.CHAT),), False),
        ),
        ("deploy", "z.onnx", None, None, [], Scaling(0, 3, qps=5.0)),
        ("undeploy", "digits", None, OWNER),
    ]


@pytest.mark.parametrize(
    ("path", "body", "sentence"),
    [
        ("invites", b'{"ttl_s":0}', "`int` >= 1"),
        ("invites", b'{"ttl_s":1e9}', "ttl_s"),
        ("invites", b'{"ttl_s":99999999999}', "<="),
        ("invites", b'{"ttl_s":"60"}', "Expected `int`"),
        ("invites", b"[]", "Expected `object`"),
        ("invites", b"{", "truncated"),
        ("deployments", b'{"x":' + b"[" * 5000 + b"]" * 5000 + b"}", "recursion"),
        ("deployments", b"", "either an upload, or a path"),
        ("deployments", b'{"path":"a","upload":"b"}', "either an upload, or a path"),
        ("keys", b"{}", "missing required field `name`"),
        ("keys", b'{"name":"a","scope":"admin"}', "unknown field `scope`"),
        ("keys", b'{"name":"a","scopes":"admin"}', "Expected `array`"),
        ("uploads", b'{"files":[]}', "length >= 1"),
        ("uploads", b'{"files":[{"path":"a","size_bytes":-1}]}', ">= 0"),
        ("uploads", b'{"files":["a"]}', "Expected `object`"),
        ("deployments", b'{"path":""}', "length >= 1"),
        ("deployments", b'{"path":"a","endpoint":"/v2"}', "the mesh itself answers"),
        ("deployments", b'{"path":"a","endpoint":"cars"}', "begins with '/'"),
        (
            "deployments",
            b'{"path":"a","autoscaling":{"min":2}}',
            "autoscaling.max: this is missing",
        ),
        ("deployments", b'{"path":"a","autoscaling":{"max":2,"qsp":1}}', "did you mean 'qps'?"),
        ("deployments", b'{"path":"a","tasks":["paint"]}', "is not a task"),
        ("deployments", b'{"path":"a","tasks":["chat","chat"]}', "at most one mapping"),
        ("deployments", b'{"path":"a\\u0000b"}', "NUL"),
        ("deployments", b'{"path":"\xff"}', "utf-8"),
        ("deployments", b'{"path":"a","replicas":0}', "replicas"),
        ("deployments", b'{"path":"a","on":"alpha"}', "Expected `array`"),
    ],
)
async def test_bad_changes_are_explained(
    dispatcher: Dispatcher, control: Any, path: str, body: bytes, sentence: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        await ask(dispatcher, "POST", f"/mesh/v1/{path}", body)
    assert sentence in str(caught.value)
    assert control.calls == []


async def test_names_of_deployments_are_names_of_models(
    dispatcher: Dispatcher, control: Any
) -> None:
    with pytest.raises(ModelError):
        await ask(dispatcher, "POST", "/mesh/v1/deployments", b'{"path":"a","name":"../b"}')
    with pytest.raises(ModelError):
        await ask(dispatcher, "DELETE", "/mesh/v1/deployments/%2e%2e%2fetc")
    assert control.calls == []


CI = Caller(Scope.DEPLOY, "k" * 16, "ci")


async def test_who_is_not_the_owner_deploys_uploads_and_no_paths(
    dispatcher: Dispatcher, control: Any
) -> None:
    with pytest.raises(Forbidden, match="only the owner of this node may deploy a path"):
        await ask(dispatcher, "POST", "/mesh/v1/deployments", b'{"path":"/etc"}', CI)
    files = b'{"files":[{"path":"a/1/model.onnx","size_bytes":3}]}'
    assert (await ask(dispatcher, "POST", "/mesh/v1/uploads", files, CI)).status == 201
    sent = await ask(dispatcher, "PUT", "/mesh/v1/uploads/u1/0?offset=2", b"xyz", CI)
    assert sent.body == b'{"received_bytes":5}'
    assert (await ask(dispatcher, "GET", "/mesh/v1/uploads/u1", b"", CI)).status == 200
    wish = b'{"upload":"u1","name":"d","replicas":2}'
    assert (await ask(dispatcher, "POST", "/mesh/v1/deployments", wish, CI)).status == 202
    assert (await ask(dispatcher, "DELETE", "/mesh/v1/uploads/u1", b"", CI)).status == 200
    assert control.calls == [
        ("begin_upload", [("a/1/model.onnx", 3)], CI),
        ("take_piece", "u1", 0, 2, b"xyz", CI),
        ("upload", "u1", CI),
        ("deploy_upload", "u1", "d", 2, [], CI),
        ("drop_upload", "u1", CI),
    ]


@pytest.mark.parametrize(
    "query", ["", "?", "?offset", "?offset=", "?offset=-1", "?offset=1x", "?offset=" + "9" * 30,
              "?at=1", "?offset=1&offset=2", "?offset=١"]
)  # fmt: skip
async def test_a_piece_says_where_it_begins(
    dispatcher: Dispatcher, control: Any, query: str
) -> None:
    with pytest.raises(InvalidRequest, match="offset=NUMBER"):
        await ask(dispatcher, "PUT", f"/mesh/v1/uploads/u1/0{query}", b"x")
    assert control.calls == []


async def test_a_piece_has_a_limit(dispatcher: Dispatcher, control: Any) -> None:
    piece = bytes(UPLOAD_PIECE_BYTES + 1)
    with pytest.raises(TooLarge, match=str(UPLOAD_PIECE_BYTES)):
        await ask(dispatcher, "PUT", "/mesh/v1/uploads/u1/0?offset=0", piece)
    assert control.calls == []


@pytest.mark.parametrize("index", ["x", "-1", "1/2", "١", "1" * 10, ""])
def test_files_of_an_upload_are_numbered(dispatcher: Dispatcher, index: str) -> None:
    with pytest.raises(HttpRefusal) as caught:
        dispatcher.match("PUT", f"/mesh/v1/uploads/u1/{index}")
    assert caught.value.status == 404


async def test_keys_are_made_listed_and_revoked(dispatcher: Dispatcher, control: Any) -> None:
    admin = Caller(Scope.ADMIN, "a" * 16, "boss")
    made = await ask(dispatcher, "POST", "/mesh/v1/keys", b'{"name":"phone"}', admin)
    assert made.status == 201
    assert (await body_of(dispatcher, "GET", "/mesh/v1/keys"))[0]["name"] == "phone"
    await ask(dispatcher, "DELETE", "/mesh/v1/keys/phone", b"", admin)
    assert control.calls == [
        ("create_key", "phone", ["infer"], None, admin),
        ("revoke_key", "phone", admin),
    ]


async def test_the_owner_ends_the_daemon(dispatcher: Dispatcher, control: Any) -> None:
    assert (await ask(dispatcher, "POST", "/mesh/v1/shutdown", b'{"leave":true}')).status == 202
    assert control.calls == [("shutdown", True)]


def test_what_is_not_a_models_path_is_not_remembered(dispatcher: Dispatcher) -> None:
    for number in range(10):
        dispatcher.match("PUT", f"/mesh/v1/uploads/u{number}/0")
    assert not dispatcher._remembered
