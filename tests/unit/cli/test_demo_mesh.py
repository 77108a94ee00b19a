"""The demo's children must never outlive it, whatever ends it."""

from __future__ import annotations

import os
import signal
import sys
from typing import TYPE_CHECKING

import pytest

from meshnode.cli.demo_mesh import DemoMesh, Interrupts, tail, wait_until
from meshnode.client.mesh import MeshClient
from meshnode.errors import PeerError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Choose the shell script that stands in for the daemon."""

    def use(script: str) -> None:
        path = tmp_path / "interpreter"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(path))

    return use


def has_ended(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_a_daemon_that_ends_is_reported_with_its_last_words(child: Callable[[str], None]) -> None:
    child("echo first; echo 'error: port in use' >&2; exit 2")
    with Interrupts() as interrupts, DemoMesh(interrupts) as mesh:
        with pytest.raises(
            PeerError, match=r"alpha ended with code 2: first \| error: port in use"
        ):
            mesh.start("alpha", "eu-west", invite=None)
        folder = mesh.folder
    assert not folder.exists()


def test_a_daemon_that_never_answers_is_given_up_on_and_stopped(
    child: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("meshnode.cli.demo_mesh._START_TIMEOUT_S", 0.1)
    child("exec sleep 60")
    with Interrupts() as interrupts, DemoMesh(interrupts) as mesh:
        with pytest.raises(PeerError, match=r"did not start .* it said nothing"):
            mesh.start("alpha", "eu-west", invite="mesh1x")
        (process,) = mesh._children
    assert has_ended(process.pid)
    assert process.returncode == -signal.SIGTERM


def test_a_daemon_that_ignores_sigterm_is_killed(
    child: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("meshnode.cli.demo_mesh._START_TIMEOUT_S", 0.2)
    monkeypatch.setattr("meshnode.cli.demo_mesh._STOP_TIMEOUT_S", 0.1)
    child("trap '' TERM; echo deaf; while :; do sleep 0.05; done")
    with Interrupts() as interrupts, DemoMesh(interrupts) as mesh:
        with pytest.raises(PeerError, match="deaf"):
            mesh.start("alpha", "eu-west", invite=None)
        (process,) = mesh._children
    assert process.returncode == -signal.SIGKILL


@pytest.mark.parametrize(
    ("number", "raised"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)]
)
def test_a_signal_ends_the_demo_through_its_clean_up(
    child: Callable[[str], None], number: signal.Signals, raised: type[BaseException]
) -> None:
    child(f"kill -{number.value} {os.getpid()}; exec sleep 60")
    former = signal.getsignal(number)
    meshes: list[DemoMesh] = []
    with (  # noqa: PT012 - the signal may come at any of these steps
        pytest.raises(raised),
        Interrupts() as interrupts,
        DemoMesh(interrupts) as mesh,
    ):
        meshes.append(mesh)
        mesh.start("alpha", "eu-west", invite=None)
    (mesh,) = meshes
    assert all(has_ended(process.pid) for process in mesh._children)
    assert not mesh.folder.exists()
    assert signal.getsignal(number) is former


def test_a_signal_waits_until_the_daemon_has_been_asked(
    child: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = []

    def get(_client: MeshClient, _path: str, **_options: float) -> dict[str, str]:
        os.kill(os.getpid(), signal.SIGINT)
        steps.append("the socket is open, and somebody closes it")
        return {"http": "http://127.0.0.1:1"}

    monkeypatch.setattr(MeshClient, "get", get)
    child("exec sleep 60")
    with (
        pytest.raises(KeyboardInterrupt),
        Interrupts() as interrupts,
        DemoMesh(interrupts) as mesh,
    ):
        mesh.start("alpha", "eu-west", invite=None)
    assert steps


def test_a_held_signal_is_raised_once_it_is_let_go() -> None:
    steps = []
    with Interrupts() as interrupts:
        with pytest.raises(SystemExit) as caught, interrupts.held():  # noqa: PT012 - see above
            os.kill(os.getpid(), signal.SIGTERM)
            steps.append("finished what must not be interrupted")
        assert caught.value.code == 143
        with interrupts.held():
            steps.append("the signal came only once")
    assert len(steps) == 2


def test_waiting_ends_with_what_was_awaited() -> None:
    answers = iter([False, True])
    wait_until("never mind", lambda: next(answers), 10.0)
    with pytest.raises(PeerError, match=r"the moon is blue: not after 0\.01 s"):
        wait_until("the moon is blue", lambda: False, 0.01)


def test_the_end_of_a_log_is_one_line(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert tail(log) == "it left no log"
    log.write_bytes(b"x" * 5000 + b"\nlast \xff words\n\n")
    assert len(tail(log)) < 2100
    assert tail(log).endswith("| last \ufffd words")
