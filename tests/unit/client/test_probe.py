"""The health check of containers, against a stand-in for a node's control channel."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from meshnode.client import probe

if TYPE_CHECKING:
    from collections.abc import Iterator


class Node:
    """Answers one request after the other with what the test says; notes what it was asked."""

    def __init__(self, listener: socket.socket, status: str) -> None:
        self.asked: list[str] = []
        self._listener = listener
        self._status = status
        threading.Thread(target=self._answer, daemon=True).start()

    def _answer(self) -> None:
        while True:
            try:
                stream, _ = self._listener.accept()
            except OSError:
                return
            with stream:
                self.asked.append(stream.recv(65536).decode())
                stream.sendall(f"HTTP/1.1 {self._status}\r\nContent-Length: 4\r\n\r\nsaid".encode())


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as path:  # short, as a socket's path must be
        yield Path(path)


def listen(folder: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(folder / "control.sock"))
    listener.listen()
    return listener


@pytest.mark.parametrize(("status", "code"), [("200 OK", 0), ("503 Unavailable", 1)])
def test_the_exit_code_says_what_the_node_answered(
    folder: Path, status: str, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with listen(folder) as listener:
        node = Node(listener, status)
        assert probe.main(["readyz", str(folder)]) == code
    assert node.asked[0].startswith("GET /readyz HTTP/1.1\r\nHost: localhost\r\n")
    assert capsys.readouterr().err == ("" if code == 0 else "said\n")


def test_the_data_folder_may_be_in_the_environment(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MESHNODE_DATA_DIR", str(folder))
    with listen(folder) as listener:
        Node(listener, "200 OK")
        assert probe.main(["healthz"]) == 0


def test_a_channel_on_loopback_gets_its_token(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        place = f"127.0.0.1:{listener.getsockname()[1]}"
        (folder / "control").write_text(json.dumps({"tcp": place, "token": "secret"}))
        node = Node(listener, "200 OK")
        assert probe.main(["healthz", str(folder)]) == 0
    assert "Authorization: Bearer secret\r\n" in node.asked[0]


@pytest.mark.parametrize("control", [None, "{", "{}", '{"tcp": "127.0.0.1:x", "token": "t"}'])
def test_no_node_is_no_answer(
    folder: Path, control: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    if control is not None:
        (folder / "control").write_text(control)
    assert probe.main(["healthz", str(folder)]) == 1
    assert capsys.readouterr().err.startswith("no answer: ")


@pytest.mark.parametrize("arguments", [[], ["metrics", "/data"], ["healthz", "/data", "more"]])
def test_wrong_arguments_are_told(arguments: list[str]) -> None:
    assert probe.main(arguments) == 2


def test_it_imports_next_to_nothing(tmp_path: Path) -> None:
    """It runs every few seconds, for as long as a container lives."""
    script = (
        "import sys; from meshnode.client import probe; "
        "print(sorted(n for n in sys.modules if n.partition('.')[0] in "
        "('aiohttp', 'asyncio', 'msgspec', 'numpy', 'typer')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert done.stdout == "[]\n"
