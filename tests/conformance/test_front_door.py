"""What all dialects have in common: keys and their limits, kept answers, repetitions, ids, browsers.

Everything is asked of a node that does not hold the model.
"""

from __future__ import annotations

import http.client
import json
import uuid
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import pytest

from tests.conformance.table import conforms
from tests.e2e.conftest import DIGITS, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conformance.conftest import ConformanceMesh
    from tests.e2e.conftest import Daemon

MODEL: Final = "front-door"
IMAGE: Final = [[[0.5] * 8] * 8]
TRACE: Final = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def ask(node: Daemon, method: str, path: str, document: object = None, /, **headers: str) -> Answer:
    """Ask a node's gateway; header names are written with underscores."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    body = b""
    if document is not None:
        body = document if isinstance(document, bytes) else json.dumps(document).encode()
        named.setdefault("Content-Type", "application/json")
    line = http.client.HTTPConnection("127.0.0.1", node.http_port, timeout=30)
    try:
        line.request(method, path, body, named)
        response = line.getresponse()
        told = {name.lower(): value for name, value in response.getheaders()}
        return Answer(response.status, told, response.read())
    finally:
        line.close()


class Dialect(NamedTuple):
    """How one dialect asks for the digits, and how it tells errors."""

    path: str
    document: dict[str, Any]
    sentence: Callable[[Any], str]


OIP: Final = {"inputs": [{"name": "image", "datatype": "FP32", "shape": [1, 8, 8], "data": IMAGE}]}
DIALECTS: Final = {
    "OIP": Dialect(f"/v2/models/{MODEL}/infer", OIP, lambda told: told["error"]),
    "native": Dialect(
        f"/mesh/v1/models/{MODEL}/infer", {"inputs": {"image": IMAGE}}, lambda told: told["error"]
    ),
    "TensorFlow Serving": Dialect(
        f"/v1/models/{MODEL}:predict", {"instances": IMAGE}, lambda told: told["error"]
    ),
    "TorchServe": Dialect(f"/predictions/{MODEL}", {"image": IMAGE}, lambda told: told["message"]),
    "endpoint": Dialect(f"/inference/{MODEL}", {"image": IMAGE}, lambda told: told["error"]),
}
each_dialect = pytest.mark.parametrize("dialect", DIALECTS.values(), ids=DIALECTS)


@pytest.fixture(scope="module", autouse=True)
def served(mesh: ConformanceMesh) -> None:
    """The digits on one holder, whose answers are kept."""
    mesh.deploy(DIGITS, MODEL, on=("alpha",), cache=True)


def made_key(mesh: ConformanceMesh, **wish: Any) -> str:
    """Make an API key, and wait until the front knows it."""
    wish = {"name": f"front-{uuid.uuid4().hex[:8]}", **wish}
    key = str(mesh.operator.post("/mesh/v1/keys", wish)["key"])
    known = mesh.front.control
    wait_until(
        lambda: any(each["name"] == wish["name"] for each in known.get("/mesh/v1/keys")),
        15,
        "the key arrives",
    )
    return f"Bearer {key}"


@conforms("Front door", "API keys: rate per key, 429 with Retry-After in each dialect's words")
@each_dialect
def test_a_rate_that_is_used_up_is_told_in_the_words_of_the_dialect(
    mesh: ConformanceMesh, dialect: Dialect
) -> None:
    key = made_key(mesh, rate="1/h")
    assert ask(mesh.front, "POST", dialect.path, dialect.document, Authorization=key).status == 200
    refused = ask(mesh.front, "POST", dialect.path, dialect.document, Authorization=key)
    assert refused.status == 429
    assert 3500 < int(refused.headers["retry-after"]) <= 3600
    assert "is allowed 1/h" in dialect.sentence(refused.json)


@conforms("Front door", "API keys: limits changed while the mesh runs")
def test_a_limit_is_changed_for_a_key_that_is_in_use(mesh: ConformanceMesh) -> None:
    name = f"front-{uuid.uuid4().hex[:8]}"
    key = made_key(mesh, name=name, rate="1/h")
    for expected in (200, 429):
        assert ask(mesh.front, "GET", "/v2", Authorization=key).status == expected
    mesh.operator.put(f"/mesh/v1/keys/{name}", {"concurrency": 2})
    wait_until(
        lambda: ask(mesh.front, "GET", "/v2", Authorization=key).status == 200, 15, "it is told"
    )


@conforms("Front door", "kept answers: Mesh-Cache and Age in each dialect")
@each_dialect
def test_kept_answers_say_so_in_every_dialect(mesh: ConformanceMesh, dialect: Dialect) -> None:
    fresh = ask(mesh.front, "POST", dialect.path, dialect.document, Cache_Control="no-cache")
    assert (fresh.status, fresh.headers["mesh-cache"]) == (200, "bypass")
    assert "age" not in fresh.headers
    kept = ask(mesh.front, "POST", dialect.path, dialect.document)
    assert (kept.headers["mesh-cache"], int(kept.headers["age"]) < 60) == ("hit", True)
    assert "cache_age_s" not in kept.body.decode()
    old = ask(mesh.front, "POST", dialect.path, dialect.document, Cache_Control="max-age=0")
    assert old.headers["mesh-cache"] in ("miss", "hit"), (
        "an answer of this very millisecond will do"
    )


@conforms("Front door", "kept answers: Cache-Control of the request, 504 for only-if-cached")
@each_dialect
def test_only_a_kept_answer_will_do(mesh: ConformanceMesh, dialect: Dialect) -> None:
    seen = json.loads(json.dumps(dialect.document).replace("0.5", "0.25"))
    unseen = json.loads(json.dumps(dialect.document).replace("0.5", str(uuid.uuid4().int % 10**9)))
    refused = ask(mesh.front, "POST", dialect.path, unseen, Cache_Control="only-if-cached")
    assert (refused.status, refused.headers["mesh-error"]) == (504, "not_cached")
    assert "only-if-cached" in dialect.sentence(refused.json)
    ask(mesh.front, "POST", dialect.path, seen)
    answer = ask(mesh.front, "POST", dialect.path, seen, Cache_Control="only-if-cached")
    assert (answer.status, answer.headers["mesh-cache"]) == (200, "hit")


@conforms("Front door", "Idempotency-Key: the same answer again, in each dialect")
@each_dialect
def test_a_repetition_gets_the_answer_that_there_was(
    mesh: ConformanceMesh, dialect: Dialect
) -> None:
    name = str(uuid.uuid4())
    headers = {"Idempotency_Key": name, "Authorization": made_key(mesh)}
    first = ask(mesh.front, "POST", dialect.path, dialect.document, **headers)
    again = ask(mesh.front, "POST", dialect.path, dialect.document, **headers)
    assert (first.status, again.status, again.body) == (200, 200, first.body)
    assert "idempotent-replayed" not in first.headers
    assert again.headers["idempotent-replayed"] == "true"
    assert first.headers["x-request-id"] != again.headers["x-request-id"]
    other = {**dialect.document, "parameters": {}}
    refused = ask(mesh.front, "POST", dialect.path, other, **headers)
    assert (refused.status, refused.headers["mesh-error"]) == (422, "idempotency_key_reused")
    assert "Idempotency-Key" in dialect.sentence(refused.json)


@conforms("Front door", "Idempotency-Key: repeated at another gateway of the mesh")
def test_a_change_that_is_repeated_at_another_gateway_is_made_once(mesh: ConformanceMesh) -> None:
    admin = made_key(mesh, scopes=["admin"])
    wait_until(
        lambda: all(
            ask(node, "GET", "/mesh/v1/keys", Authorization=admin).status == 200
            for node in mesh.nodes
        ),
        15,
        "all know the key",
    )
    wish = {"name": f"once-{uuid.uuid4().hex[:8]}"}
    headers = {"Authorization": admin, "Idempotency_Key": str(uuid.uuid4())}
    answers = [ask(node, "POST", "/mesh/v1/keys", wish, **headers) for node in mesh.nodes]
    assert [each.status for each in answers] == [201] * 3
    assert len({each.json["key"] for each in answers}) == 1


@conforms("Front door", "request ids and W3C trace context, taken over and given back")
@each_dialect
def test_a_request_keeps_its_id(mesh: ConformanceMesh, dialect: Dialect) -> None:
    answer = ask(
        mesh.front, "POST", dialect.path, dialect.document, X_Request_Id="mine-1", traceparent=TRACE
    )
    assert (answer.status, answer.headers["x-request-id"]) == (200, "mine-1")
    assert answer.headers["mesh-route"].startswith("node=alpha;")
    odd = ask(mesh.front, "POST", dialect.path, dialect.document, traceparent="no trace")
    assert odd.status == 200, "a malformed header begins a new trace"


@conforms(
    "Front door", "errors in each dialect's words: no key, wrong scope, no model, method, body"
)
@each_dialect
def test_what_is_refused_before_a_model_is_asked_is_told_in_the_words_of_the_dialect(
    mesh: ConformanceMesh, dialect: Dialect
) -> None:
    missing = ask(mesh.front, "POST", dialect.path.replace(MODEL, "nothing"), dialect.document)
    assert missing.status == 404
    assert "nothing" in dialect.sentence(missing.json)
    wrong = "Bearer mesh_aaaaaaaaaaaaaaaa_" + "a" * 52
    unknown = ask(mesh.front, "POST", dialect.path, dialect.document, Authorization=wrong)
    assert (unknown.status, "www-authenticate" in unknown.headers) == (401, True)
    assert "not an API key of this mesh" in dialect.sentence(unknown.json)
    method = ask(mesh.front, "PATCH", dialect.path)
    assert method.status == 405
    assert dialect.sentence(method.json)
    broken = ask(mesh.front, "POST", dialect.path, b"{")
    assert broken.status == 400
    assert dialect.sentence(broken.json)


@conforms("Front door", "CORS: closed to pages of origins that nobody named")
@each_dialect
def test_pages_of_other_origins_are_refused_unless_their_origin_was_named(
    mesh: ConformanceMesh, dialect: Dialect
) -> None:
    """The mesh of these tests names none; tests/unit/gateway/test_cors.py has one that does."""
    origin = "https://app.example.org"
    asked = ask(
        mesh.front, "OPTIONS", dialect.path, Origin=origin, Access_Control_Request_Method="POST"
    )
    assert asked.status == 403
    refused = ask(mesh.front, "POST", dialect.path, dialect.document, Origin=origin)
    assert refused.status == 403
    assert "--cors-origin" in dialect.sentence(refused.json)
    assert "access-control-allow-origin" not in refused.headers


@conforms("Front door", "all of this over gRPC: limits of keys, kept answers, repetitions")
def test_grpc_has_the_same_door(mesh: ConformanceMesh) -> None:
    """With grpcio and Triton's messages alone: Triton's own client hides the trailing metadata."""
    grpc = pytest.importorskip("grpc")
    messages = pytest.importorskip("tritonclient.grpc.service_pb2")
    image = messages.ModelInferRequest.InferInputTensor(
        name="image", datatype="FP32", shape=[1, 8, 8]
    )
    image.contents.fp32_contents.extend([0.75] * 64)
    wish = messages.ModelInferRequest(model_name=MODEL, inputs=[image])
    with grpc.insecure_channel(str(mesh.front.control.get("/mesh/v1/status")["grpc"])) as channel:
        infer = channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            request_serializer=messages.ModelInferRequest.SerializeToString,
            response_deserializer=messages.ModelInferResponse.FromString,
        )

        def told(**metadata: str) -> dict[str, str]:
            named = [(name.replace("_", "-"), value) for name, value in metadata.items()]
            _answer, call = infer.with_call(wish, metadata=named, timeout=30)
            return dict(call.trailing_metadata())

        assert told(cache_control="no-cache")["mesh-cache"] == "bypass"
        assert told()["mesh-cache"] == "hit"
        assert told(x_request_id="mine-2")["x-request-id"] == "mine-2"
        repeated = {"authorization": made_key(mesh), "idempotency_key": str(uuid.uuid4())}
        told(**repeated)
        assert told(**repeated)["idempotent-replayed"] == "true"
        once = made_key(mesh, rate="1/h")
        told(authorization=once)
        with pytest.raises(grpc.RpcError) as refused:
            told(authorization=once)
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "is allowed 1/h" in refused.value.details()
        trailing = dict(refused.value.trailing_metadata())
        assert (trailing["mesh-error"], int(trailing["retry-after"]) > 3500) == ("throttled", True)


@conforms("Front door", "OpenAI's SDK honours what the door says: RateLimitError, Retry-After, ids")
def test_openais_client_understands_the_door(mesh: ConformanceMesh) -> None:
    openai = pytest.importorskip("openai")
    key = made_key(mesh, rate="1/h").removeprefix("Bearer ")
    with openai.OpenAI(base_url=f"{mesh.url}/v1", api_key=key, max_retries=0) as client:
        client.models.list()
        with pytest.raises(openai.RateLimitError) as refused:
            client.models.list()
    assert refused.value.status_code == 429
    assert int(refused.value.response.headers["retry-after"]) > 3500
    assert refused.value.request_id
    assert "is allowed 1/h" in refused.value.message
    wrong = "mesh_" + "a" * 16 + "_" + "a" * 52
    with (
        openai.OpenAI(base_url=f"{mesh.url}/v1", api_key=wrong, max_retries=0) as client,
        pytest.raises(openai.AuthenticationError),
    ):
        client.models.list()
