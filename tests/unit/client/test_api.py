"""The client against a server that answers each connection with bytes a test chose."""

import os
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from meshnode.client.api import ControlClient, deployment_path, mesh_model_path, model_path
from meshnode.client.control import ControlAddress, write_control
from meshnode.errors import (
    ConfigError,
    DeadlineExceeded,
    Forbidden,
    InvalidRequest,
    InviteError,
    MeshError,
    ModelNotFound,
    NoReplica,
    PeerError,
    Saturated,
    TooLarge,
)
from meshnode.types import Address


def http_answer(status: int, body: bytes = b"", *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status} X", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


@dataclass
class CannedServer:
    """Answers every request with `answer`, then closes (or holds the line); keeps what it was sent."""

    listener: socket.socket
    answer: bytes = b""
    silent_after: bool = False
    received: list[bytes] = field(default_factory=list)
    hold: threading.Event = field(default_factory=threading.Event)

    def serve(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            with connection:
                self.received.append(_read_request(connection))
                connection.sendall(self.answer)
                if self.silent_after:
                    self.hold.wait(10)


def _read_request(connection: socket.socket) -> bytes:
    data = b""
    while b"\r\n\r\n" not in data:
        data += connection.recv(65536)
    head, _, rest = data.partition(b"\r\n\r\n")
    lengths = [
        int(line.split(b":")[1])
        for line in head.lower().split(b"\r\n")
        if line.startswith(b"content-length:")
    ]
    while lengths and len(rest) < lengths[0]:
        rest += connection.recv(65536)
    return head + b"\r\n\r\n" + rest


@pytest.fixture
def data_dir() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="mn-") as name:
        yield Path(name)


def running(listener: socket.socket) -> tuple[CannedServer, Callable[[], None]]:
    listener.listen()
    server = CannedServer(listener)
    thread = threading.Thread(target=server.serve)
    thread.start()

    def stop() -> None:
        server.hold.set()
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(5)

    return server, stop


@pytest.fixture
def server(data_dir: Path) -> Iterator[CannedServer]:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(data_dir / "control.sock"))
    server, stop = running(listener)
    yield server
    stop()


def test_get_returns_the_answers_document(server: CannedServer, data_dir: Path) -> None:
    server.answer = http_answer(200, b'[{"name": "alpha"}]')
    assert ControlClient(data_dir).get("/mesh/v1/nodes") == [{"name": "alpha"}]
    assert server.received[0].startswith(b"GET /mesh/v1/nodes HTTP/1.1\r\nHost: localhost\r\n")


def test_post_sends_json_and_takes_any_success(server: CannedServer, data_dir: Path) -> None:
    server.answer = http_answer(202, b'{"ok": true}')
    assert ControlClient(data_dir).post("/p", {"ttl_s": 5}) == {"ok": True}
    head, _, body = server.received[0].partition(b"\r\n\r\n")
    assert head.startswith(b"POST /p ")
    assert b"Content-Type: application/json" in head
    assert body == b'{"ttl_s": 5}'


def test_delete_without_a_body_returns_none(server: CannedServer, data_dir: Path) -> None:
    server.answer = http_answer(204)
    assert ControlClient(data_dir).delete("/d") is None
    assert server.received[0].startswith(b"DELETE /d ")


def test_infer_sends_json_alone_as_json(server: CannedServer, data_dir: Path) -> None:
    server.answer = http_answer(200, b'{"outputs": []}', "Mesh-Route: node=beta")
    answer = ControlClient(data_dir).infer("a/b", {"inputs": []}, version=3, timeout_s=5)
    assert answer.document == {"outputs": []}
    assert answer.route == "node=beta"
    head, _, body = server.received[0].partition(b"\r\n\r\n")
    assert head.startswith(b"POST /v2/models/a%2Fb/versions/3/infer ")
    assert b"Inference-Header-Content-Length" not in head
    assert body == b'{"inputs": []}'


def test_infer_sends_binary_parts_behind_the_json(server: CannedServer, data_dir: Path) -> None:
    server.answer = http_answer(200, b"{}")
    ControlClient(data_dir).infer("m", {"inputs": []}, [b"ab", memoryview(b"cd")], timeout_s=5)
    head, _, body = server.received[0].partition(b"\r\n\r\n")
    assert b"Inference-Header-Content-Length: 14" in head
    assert body == b'{"inputs": []}abcd'


def test_a_tcp_channel_gets_the_token(data_dir: Path) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    write_control(data_dir, ControlAddress(tcp=Address("127.0.0.1", port), token="secret"))
    server, stop = running(listener)
    server.answer = http_answer(200, b"1")
    assert ControlClient(data_dir).get("/x") == 1
    stop()
    assert b"Authorization: Bearer secret" in server.received[0]


@pytest.mark.parametrize("left_over", [False, True])
def test_without_a_daemon_it_says_what_to_type(data_dir: Path, left_over: bool) -> None:
    """A socket that a killed daemon left behind is no daemon either."""
    if left_over:
        with socket.socket(socket.AF_UNIX) as gone:
            gone.bind(str(data_dir / "control.sock"))
    with pytest.raises(ConfigError) as caught:
        ControlClient(data_dir).get("/x")
    assert str(caught.value) == (
        f"no meshnode daemon is running on {data_dir}; "
        f"start one with: meshnode join --data-dir {data_dir}"
    )


def test_the_command_to_type_is_quoted_where_the_folder_needs_it(data_dir: Path) -> None:
    with pytest.raises(ConfigError, match=r"--data-dir '.*/my data'$"):
        ControlClient(data_dir / "my data").get("/x")


@pytest.mark.skipif(os.getuid() == 0, reason="permissions do not bind root")
def test_the_socket_of_another_user_is_explained(server: CannedServer, data_dir: Path) -> None:
    (data_dir / "control.sock").chmod(0)
    with pytest.raises(ConfigError, match="belongs to another user"):
        ControlClient(data_dir).get("/x")


def test_a_refused_connection_by_permission_is_explained(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("meshnode.client.api._UnixConnection.connect", refuse)
    with pytest.raises(ConfigError, match="belongs to another user"):
        ControlClient(data_dir).get("/x")


def test_a_socket_that_cannot_be_opened_at_all_is_an_error(data_dir: Path) -> None:
    """The path is longer than a socket's, and no control file names another."""
    with pytest.raises(PeerError, match="broke off"):
        ControlClient(data_dir / ("x" * 200)).get("/x")


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, InvalidRequest),
        (401, Forbidden),
        (403, Forbidden),
        (404, ModelNotFound),
        (413, TooLarge),
        (429, Saturated),
        (500, PeerError),
        (503, NoReplica),
        (504, DeadlineExceeded),
    ],
)
def test_an_error_body_becomes_the_error_of_its_status(
    server: CannedServer, data_dir: Path, status: int, error: type[MeshError]
) -> None:
    server.answer = http_answer(status, b'{"error": "what went wrong"}')
    with pytest.raises(error) as caught:
        ControlClient(data_dir).get("/x")
    assert type(caught.value) is error
    assert str(caught.value) == "what went wrong"


def test_a_code_in_the_body_wins_over_the_status(server: CannedServer, data_dir: Path) -> None:
    server.answer = http_answer(400, b'{"error": "expired", "code": "invite"}')
    with pytest.raises(InviteError, match="expired"):
        ControlClient(data_dir).get("/x")


@pytest.mark.parametrize(
    "body", [b"", b"<html>", b"[]", b'{"error": 3}', b'{"error": ""}', b"\xff"]
)
def test_an_error_without_a_sentence_names_its_status(
    server: CannedServer, data_dir: Path, body: bytes
) -> None:
    server.answer = http_answer(500, body)
    with pytest.raises(PeerError, match="HTTP status 500"):
        ControlClient(data_dir).get("/x")


def test_an_endless_sentence_is_cut(server: CannedServer, data_dir: Path) -> None:
    server.answer = http_answer(500, b'{"error": "' + b"x" * 10_000 + b'"}')
    with pytest.raises(PeerError) as caught:
        ControlClient(data_dir).get("/x")
    assert len(str(caught.value)) == 2000


def test_an_answer_that_is_not_json_is_an_error(server: CannedServer, data_dir: Path) -> None:
    server.answer = http_answer(200, b"hello")
    with pytest.raises(PeerError, match="not JSON"):
        ControlClient(data_dir).get("/x")


@pytest.mark.parametrize(
    "answer", [b"garbage\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n12", b"\r\n"]
)
def test_a_broken_answer_is_an_error(server: CannedServer, data_dir: Path, answer: bytes) -> None:
    server.answer = answer
    with pytest.raises(PeerError, match="broke off"):
        ControlClient(data_dir).get("/x")


def test_an_answer_whose_end_is_the_connections_end_is_read(
    server: CannedServer, data_dir: Path
) -> None:
    server.answer = b"HTTP/1.0 200 OK\r\n\r\n[1, 2]"
    assert ControlClient(data_dir).get("/x") == [1, 2]


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n"])
def test_a_silent_daemon_is_given_up_on_in_time(
    server: CannedServer, data_dir: Path, answer: bytes
) -> None:
    server.answer, server.silent_after = answer, True
    with pytest.raises(DeadlineExceeded, match=r"did not answer within 0\.05 s"):
        ControlClient(data_dir).get("/x", timeout_s=0.05)


def test_an_answer_over_the_limit_is_refused(
    server: CannedServer, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("meshnode.client.api._MAX_ANSWER_BYTES", 10)
    server.answer = http_answer(200, b"[" + b" " * 20 + b"]")
    with pytest.raises(TooLarge, match="10 bytes"):
        ControlClient(data_dir).get("/x")


def test_names_in_paths_are_quoted() -> None:
    assert model_path("a b") == "/v2/models/a%20b"
    assert model_path("m", 2) == "/v2/models/m/versions/2"
    assert mesh_model_path("../x") == "/mesh/v1/models/..%2Fx"
    assert deployment_path("m") == "/mesh/v1/deployments/m"


def test_a_client_shows_its_folder(tmp_path: Path) -> None:
    assert repr(ControlClient(tmp_path)) == f"<ControlClient {tmp_path}>"
