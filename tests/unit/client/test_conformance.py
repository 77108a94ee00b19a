"""Both clients against real and misbehaving gateways: the same calls, results and errors."""

from __future__ import annotations

import json
import socket
import ssl
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from meshnode import MeshError, PeerError
from meshnode.errors import (
    ConfigError,
    DeadlineExceeded,
    Forbidden,
    GatewayUnavailable,
    InferenceFailed,
    InvalidRequest,
    ModelNotFound,
    NoReplica,
    NotFound,
    ProtocolError,
    Saturated,
    Throttled,
    TooLarge,
    Unauthenticated,
    UsageError,
)
from tests.unit.client.conftest import Gateway, StandIn, answering, http_answer, reset, took

if TYPE_CHECKING:
    from meshnode.client.results import DeployProgress
    from tests.unit.client.conftest import Loop

Connect = Callable[..., Any]
Start = Callable[[Callable[[socket.socket, bytes], object]], StandIn]

ROW = np.array([[1.5, -2.0]], np.float32)
INFER = "/v2/models/echo/infer"
OK = http_answer(200, b'{"ok": true}')


def infer(client: Any, **more: Any) -> Any:
    return client.infer("echo", {"x": ROW}, **more)


# A gateway that works


def test_an_inference_comes_back_with_its_route(connect: Connect, gateway: Gateway) -> None:
    result = infer(connect(gateway.url), request_id="my-id", parameters={"temperature": 0.5})
    np.testing.assert_array_equal(result["x"], ROW)
    assert (result.model, result.version, result.gateway) == ("echo", 1, gateway.url)
    assert result.parameters == {"temperature": 0.5}
    assert (result.route.node, result.route.region, result.route.attempts) == (
        "alpha",
        "eu-west",
        1,
    )
    assert str(result.route).startswith("node=alpha;")
    (request,) = gateway.local.requests
    assert request.parameters == {"temperature": 0.5}


def test_the_deadline_reaches_the_gateway(connect: Connect, gateway: Gateway) -> None:
    infer(connect(gateway.url), timeout_s=5)
    (request,) = gateway.local.requests
    assert 4 < request.timeout_s < 5


def test_lists_ask_for_the_models_inputs_once(connect: Connect, gateway: Gateway) -> None:
    client = connect(gateway.url)
    asked: list[str] = []
    describe = gateway.control.model

    def model(name: str) -> dict[str, Any]:  # asked by the gateway for a model's metadata only
        asked.append(name)
        return describe(name)

    gateway.control.model = model  # type: ignore[method-assign]
    for _ in range(2):
        assert client.infer("echo", [1, 2])["x"].tolist() == [[1, 2]]
    assert asked == ["echo"]
    # A refusal may mean that the model has changed: its inputs are asked for again.
    with pytest.raises(InvalidRequest):
        client.infer("echo", [1, 2, 3])
    client.infer("echo", [1, 2])
    assert asked == ["echo", "echo"]


def test_a_large_tensor_arrives_whole(connect: Connect, gateway: Gateway) -> None:
    array = np.random.default_rng(1).random((500_000, 2), np.float32)
    np.testing.assert_array_equal(connect(gateway.url).infer("echo", {"x": array})["x"], array)


def test_outputs_can_be_chosen_and_unknown_names_are_explained(
    connect: Connect, gateway: Gateway
) -> None:
    result = infer(connect(gateway.url), outputs=("x",))
    assert list(result) == ["x"]
    assert list(infer(connect(gateway.url), outputs="x")) == ["x"]
    assert len(result) == 1
    with pytest.raises(KeyError, match="no output 'y'; there are 'x'"):
        result["y"]
    assert repr(result) == "<InferResult of echo 1 by alpha: x: float32[1, 2]>"
    with pytest.raises(InvalidRequest, match="output"):
        infer(connect(gateway.url), outputs=("y",))


def test_a_model_is_described(connect: Connect, gateway: Gateway) -> None:
    metadata = connect(gateway.url).metadata("echo")
    assert (metadata.name, metadata.versions) == ("echo", ("1",))
    assert [(spec.name, spec.datatype, spec.shape) for spec in metadata.inputs] == [
        ("x", "FP32", (-1, 2))
    ]


def test_a_ready_gateway_is_ready_and_one_that_is_not_says_so(
    connect: Connect, gateway: Gateway
) -> None:
    client = connect(gateway.url)
    assert client.ready() is True
    gateway.control.is_ready = False
    assert client.ready() is False


def test_a_connection_is_kept_between_calls(connect: Connect, stand_in: Start) -> None:
    server = stand_in(answering(OK))
    client = connect(server.url)
    for _ in range(5):
        client.get("/x")
    assert len(server.threads) == 1


def test_the_key_goes_with_every_request_and_is_never_shown(
    connect: Connect, stand_in: Start
) -> None:
    server = stand_in(answering(OK))
    client = connect(server.url, api_key="mesh_abc_secret")
    client.get("/x")
    client.post("/y", {})
    assert all(b"Authorization: Bearer mesh_abc_secret\r\n" in each for each in server.requests)
    assert "secret" not in repr(client)


def test_a_path_in_the_url_comes_before_every_path(connect: Connect, stand_in: Start) -> None:
    server = stand_in(answering(OK))
    connect(server.url + "/my/mesh/").get("/x")
    assert server.requests[0].startswith(b"GET /my/mesh/x HTTP/1.1\r\n")


def test_a_closed_client_says_so(connect: Connect, gateway: Gateway) -> None:
    client = connect(gateway.url)
    client.close()
    with pytest.raises(UsageError, match="this client was closed"):
        client.models()


# What a gateway answers


def errors() -> list[tuple[bytes, type[MeshError], str]]:
    said = b'{"error": "what went wrong", "code": "%s"}'
    plain = b'{"error": "what went wrong"}'
    return [
        (http_answer(400, said % b"invalid_request"), InvalidRequest, "what went wrong"),
        (http_answer(400, plain, "Mesh-Error: model"), MeshError, "what went wrong"),
        (http_answer(400, plain), InvalidRequest, "what went wrong"),
        (http_answer(401, plain), Unauthenticated, "what went wrong"),
        (http_answer(403, plain), Forbidden, "what went wrong"),
        (http_answer(404, plain), ModelNotFound, "what went wrong"),
        (http_answer(413, plain), TooLarge, "what went wrong"),
        (http_answer(429, said % b"throttled"), Throttled, "what went wrong"),
        (http_answer(500, plain, "Mesh-Error: inference_failed"), InferenceFailed, "what went"),
        (http_answer(503, plain, "Mesh-Error: deadline"), DeadlineExceeded, "what went wrong"),
        (http_answer(504, plain), DeadlineExceeded, "what went wrong"),
        (
            http_answer(404, b"<html>"),
            ProtocolError,
            "is no meshnode gateway, or the URL has a path",
        ),
        (http_answer(500), PeerError, "answered with HTTP status 500"),
        (http_answer(500, b"<html>"), PeerError, "HTTP status 500"),
        (http_answer(500, b"[]"), PeerError, "HTTP status 500"),
        (http_answer(500, b'{"error": 3}'), PeerError, "HTTP status 500"),
        (http_answer(301, b"", "Location: https://b/x"), PeerError, "redirection to 'https://b/x'"),
        (http_answer(200, b"hello"), ProtocolError, "is not JSON"),
    ]


@pytest.mark.parametrize(("answer", "kind", "said"), errors())
def test_an_error_is_raised_at_once_as_what_it_is(
    connect: Connect, stand_in: Start, answer: bytes, kind: type[MeshError], said: str
) -> None:
    """No other gateway is asked: it would say the same."""
    server, other = stand_in(answering(answer)), stand_in(answering(OK))
    with pytest.raises(kind, match=said) as caught:
        connect(server.url, other.url).get("/x")
    assert len(server.requests) == 1
    assert other.requests == []
    if kind is not ProtocolError:
        assert caught.value.gateway == server.url


def test_the_route_of_a_failed_request_is_told(connect: Connect, stand_in: Start) -> None:
    body = b'{"error": "it raised"}'
    server = stand_in(answering(http_answer(500, body, "Mesh-Route: node=beta; attempts=2")))
    with pytest.raises(PeerError) as caught:
        infer(connect(server.url))
    assert caught.value.mesh_route == "node=beta; attempts=2"


def test_an_endless_sentence_is_cut(connect: Connect, stand_in: Start) -> None:
    server = stand_in(answering(http_answer(500, b'{"error": "' + b"x" * 10_000 + b'"}')))
    with pytest.raises(PeerError) as caught:
        connect(server.url).get("/x")
    assert len(str(caught.value)) == 2000


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 9999999999\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n" + b" " * 200_000,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n30d40\r\n" + b" " * 200_000,
    ],
)
def test_an_oversized_answer_is_refused(
    connect: Connect, stand_in: Start, monkeypatch: pytest.MonkeyPatch, answer: bytes
) -> None:
    monkeypatch.setattr("meshnode.client.connection.MAX_CLIENT_ANSWER_BYTES", 100_000)
    monkeypatch.setattr("meshnode.client.async_pool.MAX_CLIENT_ANSWER_BYTES", 100_000)

    def behave(line: socket.socket, _request: bytes) -> None:
        line.sendall(answer)
        line.recv(1)  # until the client hangs up

    server = stand_in(behave)
    with pytest.raises(TooLarge, match="ask for fewer outputs"):
        connect(server.url).get("/x")


def test_an_answer_in_chunks_and_one_that_ends_with_its_connection_are_read(
    connect: Connect, stand_in: Start
) -> None:
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n[1\r\n3\r\n, 2\r\n1\r\n]\r\n0\r\n\r\n"
    assert connect(stand_in(answering(chunked)).url).get("/x") == [1, 2]

    def old(line: socket.socket, _request: bytes) -> None:
        line.sendall(b"HTTP/1.0 200 OK\r\n\r\n[1, 2]")

    assert connect(stand_in(old).url).get("/x") == [1, 2]


# Failover


def test_a_refused_connection_goes_to_the_next_gateway(
    connect: Connect, refused: str, gateway: Gateway
) -> None:
    client = connect(refused, gateway.url)
    assert infer(client).gateway == gateway.url
    assert client.post("/mesh/v1/invites", {"ttl_s": 60})["invite"]  # not even a change is lost


def cut_off(line: socket.socket, _request: bytes) -> None:
    line.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n{")


def garbage(line: socket.socket, _request: bytes) -> None:
    line.sendall(b"\x16\x03\x01 this is not HTTP\r\n\r\n")


def reset_at_once(line: socket.socket, _request: bytes) -> None:
    reset(line)


def reset_in_the_middle(line: socket.socket, _request: bytes) -> None:
    line.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n{")
    time.sleep(0.02)
    reset(line)


def hang_up(line: socket.socket, _request: bytes) -> None:
    return None


def unwell(line: socket.socket, _request: bytes) -> None:
    line.sendall(http_answer(502, b"<html>bad gateway</html>"))


def negative_length(line: socket.socket, _request: bytes) -> None:
    line.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n[]")


BROKEN = [
    cut_off,
    garbage,
    reset_at_once,
    reset_in_the_middle,
    hang_up,
    unwell,
    negative_length,
]


@pytest.mark.parametrize("behave", BROKEN)
def test_what_breaks_off_is_asked_again_elsewhere(
    connect: Connect, stand_in: Start, gateway: Gateway, behave: Any
) -> None:
    server = stand_in(behave)
    client = connect(server.url, gateway.url)
    np.testing.assert_array_equal(infer(client)["x"], ROW)
    assert client.models()[0].name == "echo"
    assert server.asked(INFER) == 1  # and the second call went to the good one at once


@pytest.mark.parametrize("behave", BROKEN)
def test_a_change_that_may_have_been_carried_out_is_not_repeated(
    connect: Connect, stand_in: Start, behave: Any
) -> None:
    server, other = stand_in(behave), stand_in(answering(OK))
    with pytest.raises(GatewayUnavailable, match="may have been carried out") as caught:
        connect(server.url, other.url).post("/mesh/v1/deployments", {})
    assert server.url in str(caught.value)
    assert "POST /mesh/v1/deployments" in str(caught.value)
    assert len(server.requests) == 1
    with pytest.raises(GatewayUnavailable, match="may have been carried out"):
        connect(server.url, other.url).delete("/mesh/v1/deployments/m")
    assert len(server.requests) == 2
    assert other.requests == []


def endless_continue(line: socket.socket, _request: bytes) -> None:
    while True:
        line.sendall(b"HTTP/1.1 100 Continue\r\n\r\n" * 200)
        time.sleep(0.001)


def trickled_head(line: socket.socket, _request: bytes) -> None:
    line.sendall(b"HTTP/1.1 200 OK\r\nX-Slow: ")
    while True:
        line.sendall(b"x")
        time.sleep(0.02)


def trickled_body(line: socket.socket, _request: bytes) -> None:
    line.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
    while True:
        line.sendall(b" ")
        time.sleep(0.02)


TRICKLES = [endless_continue, trickled_head, trickled_body]


@pytest.mark.parametrize("behave", TRICKLES)
def test_bytes_that_never_make_an_answer_end_at_the_deadline(
    connect: Connect, stand_in: Start, behave: Any
) -> None:
    client = connect(stand_in(behave).url)

    def ask() -> None:
        with pytest.raises(DeadlineExceeded, match="no complete answer"):
            client.get("/x", timeout_s=0.4)

    assert took(ask) < 2


@pytest.mark.parametrize("behave", TRICKLES)
def test_a_gateway_that_only_trickles_is_left_for_the_next(
    connect: Connect, stand_in: Start, gateway: Gateway, behave: Any
) -> None:
    client = connect(stand_in(behave).url, gateway.url, timeout_s=10)
    assert took(lambda: infer(client)) < 8


def test_a_slow_line_is_waited_for_since_its_gateway_lives(
    connect: Connect, stand_in: Start
) -> None:
    def behave(line: socket.socket, request: bytes) -> bool:
        if b" /healthz " in request.split(b"\r\n")[0]:
            line.sendall(OK)
            return True
        line.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\n")
        for byte in b'["slow but healthy"]':
            line.sendall(bytes([byte]))
            time.sleep(0.06)
        return True

    server, other = stand_in(behave), stand_in(answering(OK))
    client = connect(server.url, other.url, timeout_s=10)
    assert client.get("/x") == ["slow but healthy"]
    assert server.asked("/healthz") >= 1
    assert other.requests == []


def test_a_saturated_gateway_is_left_and_its_retry_after_respected(
    connect: Connect, stand_in: Start
) -> None:
    busy = http_answer(503, b'{"error": "full"}', "Retry-After: 1", "Mesh-Error: saturated")
    server = stand_in(answering(busy, OK))
    client = connect(server.url)
    assert 0.9 < took(lambda: client.get("/x")) < 5
    first, second = stand_in(answering(busy)), stand_in(answering(OK))
    assert took(lambda: connect(first.url, second.url).get("/x")) < 0.9
    # A change goes elsewhere too: the gateway said that nothing ran.
    first, second = stand_in(answering(busy)), stand_in(answering(OK))
    assert connect(first.url, second.url).post("/x", {}) == {"ok": True}


def test_a_retry_after_beyond_the_deadline_ends_the_call_at_once(
    connect: Connect, stand_in: Start
) -> None:
    busy = http_answer(429, b'{"error": "full"}', "Retry-After: 60")
    client = connect(stand_in(answering(busy)).url, timeout_s=5)
    with pytest.raises(Saturated, match="full"):
        client.get("/x")


def test_when_no_replica_is_found_the_error_is_the_gateways_own(
    connect: Connect, stand_in: Start
) -> None:
    none = http_answer(503, b'{"error": "no replica"}', "Retry-After: 30", "Mesh-Error: no_replica")
    one, two = stand_in(answering(none)), stand_in(answering(none))
    with pytest.raises(
        NoReplica, match=f"no replica; tried {one.url}: no replica; {two.url}: no r"
    ):
        infer(connect(one.url, two.url))
    with pytest.raises(NoReplica, match=r"^no replica$"):
        infer(connect(one.url))


def test_the_error_at_the_end_names_each_gateway_and_why(
    connect: Connect, refused: str, stand_in: Start
) -> None:
    server = stand_in(hang_up)
    with pytest.raises(GatewayUnavailable) as caught:
        connect(refused, server.url).get("/x")
    assert f"{refused}: connection refused (nothing listens there)" in str(caught.value)
    assert f"{server.url}: broke off before it had answered" in str(caught.value)


def test_a_name_that_does_not_resolve_is_said_so(connect: Connect) -> None:
    with pytest.raises(GatewayUnavailable, match=r"'nowhere\.invalid' cannot be resolved"):
        connect("http://nowhere.invalid:1", timeout_s=5).get("/x")


def test_a_frozen_gateway_costs_little(connect: Connect, frozen: str, gateway: Gateway) -> None:
    client = connect(frozen, gateway.url, timeout_s=5)
    assert took(lambda: infer(client)) < 3.5
    assert took(lambda: infer(client)) < 1  # the next call goes to the good one
    assert infer(client, timeout_s=0.5).gateway == gateway.url


def test_a_frozen_gateway_alone_ends_at_the_deadline(connect: Connect, frozen: str) -> None:
    client = connect(frozen)
    with pytest.raises(DeadlineExceeded, match=f"no answer within 0.3 s: {frozen}: no complete"):
        client.get("/x", timeout_s=0.3)


def test_a_slow_model_is_waited_for_as_long_as_its_gateway_lives(
    connect: Connect, stand_in: Start
) -> None:
    """Silence alone is no reason to ask the model to run a second time."""

    def behave(line: socket.socket, request: bytes) -> bool:
        if b" /healthz " not in request.split(b"\r\n")[0]:
            time.sleep(1.2)
        line.sendall(OK)
        return True

    server, other = stand_in(behave), stand_in(answering(OK))
    assert connect(server.url, other.url, timeout_s=8).get("/slow") == {"ok": True}
    assert server.asked("/slow") == 1
    assert server.asked("/healthz") >= 1
    assert other.requests == []


@pytest.mark.parametrize(
    "head", [b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n", b"HTTP/1.1 200 "]
)
def test_a_trickle_ends_at_the_deadline(connect: Connect, stand_in: Start, head: bytes) -> None:
    def behave(line: socket.socket, _request: bytes) -> None:
        line.sendall(head)
        while True:
            line.sendall(b" ")
            time.sleep(0.05)

    client = connect(stand_in(behave).url)

    def ask() -> None:
        with pytest.raises(DeadlineExceeded):
            client.get("/x", timeout_s=0.4)

    assert took(ask) < 2


def test_a_kept_connection_that_was_closed_meanwhile_is_no_failure(
    connect: Connect, stand_in: Start
) -> None:
    def once(line: socket.socket, _request: bytes) -> None:
        line.sendall(OK)  # and closes, without having said so

    server = stand_in(once)
    client = connect(server.url)
    for _ in range(5):
        assert client.get("/x") == {"ok": True}
        assert client.post("/x", {}) == {"ok": True}
    assert len(server.requests) == 10


def closing_as_the_next_begins(line: socket.socket, _request: bytes) -> None:
    """Answer one request, and close when the next one's first byte is there, unread."""
    line.sendall(OK)
    line.recv(1)


def test_a_kept_connection_that_closes_as_the_next_request_begins_is_no_failure(
    connect: Connect, stand_in: Start
) -> None:
    """As a gateway does whose idle limit is over at that moment."""
    server, other = stand_in(closing_as_the_next_begins), stand_in(answering(OK))
    client = connect(server.url, other.url)
    for _ in range(3):
        client.get("/x")
        with pytest.raises(ProtocolError):  # nobody infers here; it is a repeatable POST
            infer(client)
    assert len(server.requests) == 6
    assert other.requests == []  # the gateway was not blamed


def test_what_must_not_be_repeated_is_never_sent_on_a_kept_connection(
    connect: Connect, stand_in: Start
) -> None:
    """There nobody could tell whether a request without an answer was read."""
    began: list[bytes] = []

    def behave(line: socket.socket, _request: bytes) -> None:
        line.sendall(OK)
        began.append(line.recv(1))  # of a second request; empty when the client hangs up

    server = stand_in(behave)
    client = connect(server.url)
    for _ in range(3):
        assert client.get("/x") == {"ok": True}
        assert client.post("/y", {}) == {"ok": True}
        assert client.delete("/y") == {"ok": True}
    assert server.asked("/y") == 6
    client.close()
    for thread in server.threads:
        thread.join(5)
    assert set(began) <= {b"", b"G"}


def test_a_connection_that_was_idle_for_long_is_not_used_again(
    connect: Connect, stand_in: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("meshnode.client.pool.CLIENT_IDLE_S", 0.01)
    monkeypatch.setattr("meshnode.client.async_pool.CLIENT_IDLE_S", 0.01)
    server = stand_in(answering(OK))
    client = connect(server.url)
    for _ in range(3):
        client.get("/x")
        time.sleep(0.05)
    assert len(server.threads) == 3


def test_a_refusal_is_heard_although_the_request_was_not_taken(
    connect: Connect, loop: Loop, gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gateway refuses a body by its length and stops reading."""
    monkeypatch.setattr("meshnode.gateway.reading.MAX_BODY_BYTES", 1000)
    array = np.zeros((4_000_000, 2), np.float32)
    with pytest.raises(TooLarge):
        connect(gateway.url).infer("echo", {"x": array})


def test_many_threads_share_a_client(connect: Connect, gateway: Gateway) -> None:
    client = connect(gateway.url)
    wrong: list[object] = []

    def work(number: int) -> None:
        for _ in range(20):
            row = np.array([[number, 1]], np.float32)
            try:
                result = client.infer("echo", {"x": row})
                if not np.array_equal(result["x"], row):
                    wrong.append(result)
            except MeshError as error:
                wrong.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert wrong == []


def test_the_number_of_connections_is_bounded(
    connect: Connect, stand_in: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("meshnode.client.pool.MAX_CLIENT_CONNECTIONS", 2)
    monkeypatch.setattr("meshnode.client.async_pool.MAX_CLIENT_CONNECTIONS", 2)
    now, most = [0], [0]
    guard = threading.Lock()

    def behave(line: socket.socket, _request: bytes) -> bool:
        with guard:
            now[0] += 1
            most[0] = max(most[0], now[0])
        time.sleep(0.05)
        with guard:
            now[0] -= 1
        line.sendall(OK)
        return True

    client = connect(stand_in(behave).url)
    threads = [threading.Thread(target=client.get, args=("/x",)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert most == [2]


# TLS


def test_a_certificate_is_verified_unless_its_authority_is_named(
    connect: Connect, stand_in: Start, tmp_path: Any
) -> None:
    from tests.unit.client.certificates import self_signed

    certificate = self_signed(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)

    def behave(line: socket.socket, _request: bytes) -> None:
        raise AssertionError("unreachable")

    server = stand_in(behave)
    server._serve = lambda line: _serve_tls(server, context, line)  # type: ignore[method-assign]
    url = server.url.replace("http://127.0.0.1", "https://localhost")
    with pytest.raises(ConfigError, match=r"is not trusted .* as ca_file"):
        connect(url).get("/x")
    assert connect(url, ca_file=str(certificate)).get("/x") == {"ok": True}
    wrong_name = server.url.replace("http:", "https:")
    with pytest.raises(ConfigError, match="is not trusted"):
        connect(wrong_name, ca_file=str(certificate)).get("/x")


def tls_server(stand_in: Start, folder: Any) -> tuple[StandIn, str]:
    """Start a server whose certificate nobody trusts; return it and its URL."""
    from tests.unit.client.certificates import self_signed

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(self_signed(folder))
    server = stand_in(hang_up)
    server._serve = lambda line: _serve_tls(server, context, line)  # type: ignore[method-assign]
    return server, server.url.replace("http://127.0.0.1", "https://localhost")


def test_a_gateway_with_a_bad_certificate_does_not_end_the_call(
    connect: Connect, stand_in: Start, refused: str, gateway: Gateway, tmp_path: Any
) -> None:
    _, url = tls_server(stand_in, tmp_path)
    client = connect(url, gateway.url)
    assert infer(client).gateway == gateway.url
    assert client.post("/mesh/v1/invites", {"ttl_s": 60})["invite"]
    with pytest.raises(GatewayUnavailable) as caught:
        connect(url, refused).get("/x")
    assert f"{url}: its certificate is not trusted" in str(caught.value)
    assert f"{refused}: connection refused" in str(caught.value)


def test_a_gateway_that_never_ends_its_tls_handshake_is_left(
    connect: Connect, frozen: str, gateway: Gateway
) -> None:
    client = connect(frozen.replace("http:", "https:"), gateway.url, timeout_s=3)
    assert took(lambda: infer(client)) < 2.8


def test_http_where_https_is_spoken_and_the_reverse_are_told(
    connect: Connect, stand_in: Start, tmp_path: Any
) -> None:
    plain = stand_in(answering(OK))
    plain._serve = _speak_first  # type: ignore[method-assign]
    wrong = plain.url.replace("http:", "https:")
    with pytest.raises(GatewayUnavailable, match=f"it answers without TLS; use {plain.url}"):
        connect(wrong, timeout_s=3).get("/x")
    server, _ = tls_server(stand_in, tmp_path)
    with pytest.raises(GatewayUnavailable, match="if it serves TLS, use https://127"):
        connect(server.url, timeout_s=3).get("/x")


def _speak_first(line: socket.socket) -> None:
    with line:
        line.sendall(OK)


def _serve_tls(server: StandIn, context: ssl.SSLContext, line: socket.socket) -> None:
    try:
        with context.wrap_socket(line, server_side=True) as secured:
            secured.recv(65536)
            secured.sendall(OK)
    except OSError:
        line.close()


# Typed answers


def test_nodes_models_and_status_are_typed(connect: Connect, stand_in: Start) -> None:
    answers = {
        "/mesh/v1/nodes": [
            {
                "id": "a" * 32,
                "name": "alpha",
                "state": "alive",
                "self": True,
                "rtt_ms": 0.5,
                "capabilities": {"cpus": 8, "later": "field"},
                "later": "field",
            }
        ],
        "/mesh/v1/models": [
            {
                "name": "digits",
                "versions": [1],
                "wanted": None,
                "replicas": [{"node": "alpha", "version": 1, "state": "ready"}],
            }
        ],
        "/mesh/v1/status": {
            "id": "a",
            "name": "alpha",
            "mesh": "m",
            "state": "running",
            "version": "1",
            "members": 2,
        },
        "/mesh/v1/models/digits": {"name": "digits"},
        "/mesh/v1/keys": [{"id": "k", "name": "n", "scopes": ["infer"], "created_at": "t"}],
    }

    def behave(line: socket.socket, request: bytes) -> bool:
        path = request.split()[1].decode()
        line.sendall(http_answer(200, json.dumps(answers[path]).encode()))
        return True

    client = connect(stand_in(behave).url)
    (node,) = client.nodes()
    assert (node.name, node.is_self, node.rtt_ms, node.machine.cpus) == ("alpha", True, 0.5, 8)
    (model,) = client.models()
    assert (model.wanted, model.ready_on) == (None, ("alpha",))
    assert client.status().members == 2
    assert client.model("digits").replicas == ()
    assert client.keys()[0].scopes == ("infer",)


def test_an_answer_of_another_form_is_a_protocol_error(connect: Connect, stand_in: Start) -> None:
    server = stand_in(answering(http_answer(200, b'{"name": 3}')))
    with pytest.raises(ProtocolError, match=r"not what this version of meshnode expects"):
        connect(server.url).status()


def test_keys_and_invites_show_no_secret(connect: Connect, stand_in: Start) -> None:
    made = b'{"id": "k", "name": "n", "scopes": ["infer"], "created_at": "t", "key": "SECRET"}'
    client = connect(stand_in(answering(http_answer(201, made))).url)
    key = client.create_key("n", ttl_s=60)
    assert key.key == "SECRET"
    assert "SECRET" not in repr(key)
    invite = b'{"invite": "SECRET", "expires_at": "t"}'
    client = connect(stand_in(answering(http_answer(201, invite))).url)
    assert client.invite().invite == "SECRET"
    assert "SECRET" not in repr(client.invite())


def test_a_device_that_asks_is_listed_and_admitted_by_its_code(
    connect: Connect, stand_in: Start
) -> None:
    asked = {
        "node": "id",
        "name": "camera",
        "address": "192.0.2.9",
        "asked_at": "t",
        "expires_at": "u",
    }
    waiting = http_answer(200, json.dumps([asked]).encode())
    (request,) = connect(stand_in(answering(waiting)).url).join_requests()
    assert (request.name, request.address) == ("camera", "192.0.2.9")
    admitted = {**asked, "role": "member", "region": "eu", "invite_id": "i"}
    server = stand_in(answering(http_answer(200, json.dumps(admitted).encode())))
    approval = connect(server.url).approve("123 456", role="member", region="eu")
    assert (approval.node, approval.role, approval.region) == ("id", "member", "eu")
    wrong = http_answer(404, b'{"error": "no device shows it", "code": "unknown"}')
    with pytest.raises(NotFound, match="no device shows it"):
        connect(stand_in(answering(wrong)).url).approve("654321")


def test_waiting_for_a_model_tells_what_is_missing(connect: Connect, stand_in: Start) -> None:
    def entry(state: str) -> bytes:
        replica = {"node": "beta", "version": 1, "state": state, "reason": "bad opset"}
        return http_answer(
            200,
            json.dumps({"name": "m", "versions": [1], "wanted": 1, "replicas": [replica]}).encode(),
        )

    unknown = http_answer(404, b'{"error": "no model", "code": "not_found"}')
    seen: list[DeployProgress] = []
    client = connect(stand_in(answering(unknown, entry("loading"), entry("ready"))).url)
    assert client.wait_ready("m", progress=seen.append).ready_on == ("beta",)
    assert [each.text for each in seen] == [
        "m: 0 of 1 replicas ready; beta: loading",
        "m: 1 of 1 replicas ready",
    ]
    client = connect(stand_in(answering(entry("failed"))).url)
    with pytest.raises(PeerError, match="m failed on beta: bad opset"):
        client.wait_ready("m")
    client = connect(stand_in(answering(entry("loading"))).url)
    with pytest.raises(DeadlineExceeded, match=r"m is not ready after 0.01 s \(0 of 1"):
        client.wait_ready("m", timeout_s=0.01)


def test_a_key_whose_rate_is_used_up_asks_again_when_it_may(
    connect: Connect, stand_in: Start
) -> None:
    slow_down = http_answer(429, b'{"error": "too fast", "code": "throttled"}', "Retry-After: 1")
    server = stand_in(answering(slow_down, OK))
    assert took(lambda: connect(server.url).get("/x")) >= 1
    assert len(server.requests) == 2


def test_a_keyed_post_is_sent_again_where_it_broke_off_under_the_same_key(
    connect: Connect, stand_in: Start
) -> None:
    def behave(line: socket.socket, _request: bytes) -> bool:
        if len(server.requests) == 1:
            reset(line)
            return False
        line.sendall(OK)
        return True

    server, other = stand_in(behave), stand_in(answering(OK))
    connect(server.url, other.url).post("/x", {}, idempotency_key="order-7")
    assert [b"Idempotency-Key: order-7\r\n" in each for each in server.requests] == [True, True]
    assert not other.requests
    with pytest.raises(InvalidRequest, match="idempotency key"):
        connect(server.url).post("/x", {}, idempotency_key="two words")


def test_a_post_without_a_key_has_none(connect: Connect, stand_in: Start) -> None:
    server = stand_in(answering(OK))
    connect(server.url).post("/x", {})
    assert b"idempotency-key" not in server.requests[0].lower()
