"""`meshnode drain` as people type it, with a client that answers by heart."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any, Self

import pytest
from typer.testing import CliRunner

from meshnode.cli import arguments
from meshnode.cli import drain as command
from meshnode.cli.main import app
from meshnode.client.results import DrainInfo
from meshnode.limits import DRAIN_HAND_OVER_S

READY = DrainInfo(node="n1", name="beta", state="drained", since="2026-01-02T03:04:05Z")
BUSY = DrainInfo(node="n1", name="beta", state="draining", replicas=1, waits_for=("it waits",))
STUCK = DrainInfo(node="n1", name="beta", state="draining", replicas=1, blocked_by=("pinned",))


class Client:
    """Answers with these states, one after another; the last one for ever."""

    def __init__(self, *states: DrainInfo) -> None:
        self.states = [*states]
        self.calls: list[tuple[Any, ...]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def next(self) -> DrainInfo:
        return self.states.pop(0) if len(self.states) > 1 else self.states[0]

    def drain(self, node: str, **wish: Any) -> DrainInfo:
        self.calls.append((node, wish))
        return self.next()

    def drain_state(self, _node: str) -> DrainInfo:
        return self.next()

    def undrain(self, node: str) -> DrainInfo:
        self.calls.append((node, "undo"))
        return DrainInfo(node=node, name="beta", state="serving")


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Client:
    made = Client(BUSY, READY)
    monkeypatch.setattr(arguments, "client_of", lambda *_: made)
    monkeypatch.setattr(command, "_LOOK_S", 0.0)
    return made


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["drain", *arguments])


def test_it_says_what_it_waits_for_and_ends_when_the_node_is_drained(client: Client) -> None:
    done = run("beta", "--timeout", "30")
    assert done.exit_code == 0
    assert "waiting for: it waits" in done.stderr
    assert "beta is drained" in done.stdout
    assert client.calls == [("beta", {"force": False, "wait_s": 30})]


def test_what_blocks_it_is_said_and_is_a_failure(client: Client) -> None:
    client.states = [STUCK]
    done = run("beta")
    assert done.exit_code == 1
    assert "cannot go on: pinned" in done.stdout
    assert "--undo" in done.stdout


def test_a_drain_that_takes_too_long_ends_the_command_and_goes_on_by_itself(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "DRAIN_HAND_OVER_S", 0.0)
    monkeypatch.setattr(command, "_LATE_S", 0.0)
    client.states = [BUSY]
    done = run("beta", "--timeout", "0")
    assert done.exit_code == 1
    assert "waits for: it waits" in done.stdout


def test_it_waits_for_the_last_word_of_a_node_that_began_a_little_later(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = [0.0, DRAIN_HAND_OVER_S + 1.0]  # when it begins, and from then on
    clock = SimpleNamespace(
        monotonic=lambda: times.pop(0) if len(times) > 1 else times[0], sleep=lambda _: None
    )
    monkeypatch.setattr(command, "time", clock)
    client.states = [BUSY, READY]
    assert run("beta", "--timeout", "0").exit_code == 0


def test_without_waiting_it_returns_at_once_and_json_is_all_that_it_prints(client: Client) -> None:
    done = run("beta", "--no-wait", "--json")
    assert done.exit_code == 0
    assert json.loads(done.stdout)["waits_for"] == ["it waits"]


def test_it_is_taken_back(client: Client) -> None:
    done = run("beta", "--undo")
    assert (done.exit_code, done.stdout) == (0, "beta is not drained; it serves.\n")
    assert client.calls == [("beta", "undo")]


def test_a_time_that_is_none_is_refused(client: Client) -> None:
    assert run("beta", "--timeout", "-1").exit_code == 2
    assert client.calls == []
