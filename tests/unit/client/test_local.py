"""Both clients on the control channel of this machine's daemon."""

from __future__ import annotations

import os
import socket
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from meshnode.client.control import ControlAddress, write_control
from meshnode.client.endpoints import control_target
from meshnode.errors import ConfigError, DeadlineExceeded, PeerError
from meshnode.types import Address
from tests.unit.client.conftest import StandIn, answering, http_answer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

OK = http_answer(200, b'[{"name": "alpha"}]')


@pytest.fixture
def data_dir() -> Iterator[Path]:
    """A folder whose path is short enough for a socket."""
    with tempfile.TemporaryDirectory(prefix="mn-") as name:
        yield Path(name)


@pytest.fixture
def local(connect: Any, data_dir: Path) -> Any:
    return connect.of(control_target(data_dir), timeout_s=5)


@pytest.fixture
def serve(data_dir: Path) -> Iterator[Callable[..., StandIn]]:
    """Listen at the folder's control socket."""
    started: list[StandIn] = []

    def start(behave: Any) -> StandIn:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(data_dir / "control.sock"))
        listener.listen()
        started.append(StandIn(behave, listener))
        return started[-1]

    yield start
    for server in started:
        server.close()


def test_a_request_names_localhost_and_leaves_nothing_open(local: Any, serve: Any) -> None:
    server = serve(answering(OK))
    for _ in range(2):
        assert local.get("/mesh/v1/nodes") == [{"name": "alpha"}]
    assert len(server.lines) == 2
    head = server.requests[0]
    assert head.startswith(b"GET /mesh/v1/nodes HTTP/1.1\r\nHost: localhost\r\n")
    assert b"Authorization" not in head


def test_post_sends_json_and_delete_may_be_answered_by_nothing(local: Any, serve: Any) -> None:
    server = serve(answering(http_answer(202, b'{"ok": true}'), http_answer(204)))
    assert local.post("/p", {"ttl_s": 5}) == {"ok": True}
    head, _, body = server.requests[0].partition(b"\r\n\r\n")
    assert b"Content-Type: application/json" in head
    assert body == b'{"ttl_s": 5}'
    assert local.delete("/d") is None


def test_a_tcp_channel_gets_the_token(local: Any, data_dir: Path) -> None:
    server = StandIn(answering(OK))
    port = server.listener.getsockname()[1]
    write_control(data_dir, ControlAddress(tcp=Address("127.0.0.1", port), token="secret"))
    try:
        assert local.get("/x") == [{"name": "alpha"}]
    finally:
        server.close()
    assert b"Authorization: Bearer secret" in server.requests[0]


@pytest.mark.parametrize("left_over", [False, True])
def test_without_a_daemon_it_says_what_to_type(local: Any, data_dir: Path, left_over: bool) -> None:
    """A socket that a killed daemon left behind is no daemon either."""
    if left_over:
        with socket.socket(socket.AF_UNIX) as gone:
            gone.bind(str(data_dir / "control.sock"))
    with pytest.raises(ConfigError) as caught:
        local.get("/x")
    assert str(caught.value) == (
        f"no meshnode daemon is running on {data_dir}; "
        f"start one with: meshnode join --data-dir {data_dir}"
    )


def test_the_command_to_type_is_quoted_where_the_folder_needs_it(
    connect: Any, data_dir: Path
) -> None:
    with pytest.raises(ConfigError, match=r"--data-dir '.*/my data'$"):
        connect.of(control_target(data_dir / "my data")).get("/x")


@pytest.mark.skipif(os.getuid() == 0, reason="permissions do not bind root")
def test_the_socket_of_another_user_is_explained(local: Any, serve: Any, data_dir: Path) -> None:
    serve(answering(OK))
    (data_dir / "control.sock").chmod(0)
    with pytest.raises(ConfigError, match="belongs to another user"):
        local.get("/x")


def test_a_path_that_no_socket_can_have_is_an_error(connect: Any, data_dir: Path) -> None:
    with pytest.raises(PeerError, match="the daemon on"):
        connect.of(control_target(data_dir / ("x" * 200))).get("/x")


def test_an_interrupted_answer_is_not_asked_for_again(local: Any, serve: Any) -> None:
    server = serve(
        lambda line, _request: line.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n1")
    )
    with pytest.raises(PeerError, match=r"the daemon on .*: broke off before it had answered"):
        local.get("/x")
    assert len(server.requests) == 1


def test_a_silent_daemon_is_given_up_on_in_time(local: Any, serve: Any) -> None:
    serve(lambda _line, _request: True)
    with pytest.raises(DeadlineExceeded, match=r"no answer within 0\.05 s: the daemon on "):
        local.get("/x", timeout_s=0.05)


def test_a_client_shows_its_folder(connect: Any, data_dir: Path) -> None:
    assert f"MeshClient of the daemon on {data_dir}>" in repr(connect.of(control_target(data_dir)))
