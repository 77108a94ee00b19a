"""`meshnode doctor`: what is tried, how it is shown, and what the exit code says."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from typer.testing import Result as CommandResult

from meshnode.cli import doctor
from meshnode.diagnosis.checks import Result

if TYPE_CHECKING:
    import pytest

    from tests.unit.cli.conftest import FakeDaemon

Run = Callable[..., CommandResult]

GOOD = {"code": "udp", "result": "ok", "about": "UDP", "says": "both ways", "to_do": ""}
NOTE = {"code": "mdns_silent", "result": "note", "about": "mDNS", "says": "no", "to_do": "look"}
FAULT = {
    "code": "port_closed", "result": "fault", "about": "192.0.2.3:8471", "says": "closed",
    "to_do": "open \x1b[31mit",
}  # fmt: skip


def test_all_nodes_are_examined_this_one_first_and_the_missing_ones_before_others(
    daemon: FakeDaemon, meshnode: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "_AT_ONCE", 1)
    daemon.checks = {"alpha": [GOOD], "beta": [GOOD, NOTE], "gamma": [FAULT]}
    result = meshnode("doctor")
    assert result.exit_code == 1
    asked = [body["peer"] for method, _, body in daemon.requests if method == "POST"]
    assert asked == ["", "c" * 32, "b" * 32]
    assert result.stdout.splitlines() == [
        "alpha",
        "  ✔ UDP: both ways",
        "gamma",
        "  ✘ 192.0.2.3:8471: closed",
        "    to do: open ?[31mit",
        "beta",
        "  ✔ UDP: both ways",
        "  ! mDNS: no",
        "    to do: look",
        "",
        "1 thing to mend.",
    ]


def test_a_mesh_without_faults_ends_with_0_whatever_is_noted(
    daemon: FakeDaemon, meshnode: Run
) -> None:
    daemon.checks = {"beta": [GOOD, NOTE]}
    result = meshnode("doctor")
    assert result.exit_code == 0
    assert result.stdout.endswith("Nothing to mend was found.\n")


def test_one_peer_is_examined_alone_and_json_says_all_of_it(
    daemon: FakeDaemon, meshnode: Run
) -> None:
    daemon.checks = {"beta": [FAULT, FAULT]}
    result = meshnode("doctor", "b" * 32, "--json")
    assert result.exit_code == 1
    document = json.loads(result.stdout)
    assert document == {
        "faults": 2,
        "subjects": [{"subject": "beta", "id": "b" * 32, "checks": [FAULT, FAULT]}],
    }
    assert daemon.sent("POST", "/mesh/v1/doctor") == {"peer": "b" * 32}


def test_a_node_that_left_is_not_missed(daemon: FakeDaemon, meshnode: Run) -> None:
    daemon.nodes[2]["state"] = "left"
    meshnode("doctor")
    asked = [body["peer"] for method, _, body in daemon.requests if method == "POST"]
    assert sorted(asked) == ["", "b" * 32]


def test_an_invite_and_a_peer_are_not_examined_together(daemon: FakeDaemon, meshnode: Run) -> None:
    result = meshnode("doctor", "beta", "--invite", "mesh1" + "a" * 200)
    assert result.exit_code == 2
    assert "names its addresses itself" in result.stderr


def test_an_invite_that_is_none_is_an_error_and_not_a_finding(meshnode: Run) -> None:
    result = meshnode("doctor", "--invite", "mesh1" + "a" * 200)
    assert result.exit_code == 2
    assert "damaged" in result.stderr


def test_a_terminal_without_unicode_gets_plain_signs(monkeypatch: pytest.MonkeyPatch) -> None:
    class Ascii:
        encoding = "ascii"

    monkeypatch.setattr(sys, "stdout", Ascii())
    assert [doctor._mark(result) for result in Result] == ["+", "!", "x"]


def test_without_a_daemon_it_is_tried_from_here(
    meshnode: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("meshnode.daemon.doctor.DOCTOR_LISTEN_S", 0.01)
    result = meshnode("doctor")
    assert result.exit_code == 1
    assert "✘ membership: this device belongs to no mesh" in result.stdout


def test_a_gateway_that_is_not_there_is_an_error_and_nothing_is_tried_instead(
    meshnode: Run,
) -> None:
    result = meshnode("doctor", "--gateway", "http://127.0.0.1:1")
    assert result.exit_code == 1
    assert "to mend" not in result.stdout
    assert "error:" in result.stderr


def test_an_invite_is_tried_here_although_a_daemon_runs(
    daemon: FakeDaemon, meshnode: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def examined(line: str, *_: object) -> object:
        return {"subject": line[:8], "id": "", "checks": [GOOD]}

    monkeypatch.setattr("meshnode.daemon.doctor_alone.examine_invite", examined)
    result = meshnode("doctor", "--invite", "-", stdin=b"mesh1" + b"a" * 200 + b"\n")
    assert result.exit_code == 0
    assert result.stdout.startswith("mesh1aaa\n")
    assert daemon.requests == []


def test_a_terminal_shows_that_something_is_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    waits = []

    class Terminal:
        is_terminal = True

        def __init__(self, *, stderr: bool) -> None:
            assert stderr  # standard output is for the findings

        def status(self, text: str) -> contextlib.nullcontext[None]:
            waits.append(text)
            return contextlib.nullcontext()

    monkeypatch.setattr(doctor, "terminal", Terminal)
    subjects: list[Mapping[str, Any]] = [{"subject": "alpha"}, {"subject": "beta"}]
    assert list(doctor._with_progress(iter(subjects), quiet=False)) == subjects
    assert len(waits) == 3
    assert list(doctor._with_progress(iter(subjects), quiet=True)) == subjects
    assert len(waits) == 3
