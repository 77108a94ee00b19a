"""Devices that wait are listed, and admitted by their code."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from typer.testing import Result

    from tests.unit.cli.conftest import FakeDaemon

    Run = Callable[..., Result]

CAMERA = {
    "node": "c" * 32,
    "name": "camera",
    "address": "192.0.2.9",
    "asked_at": "2026-01-02T03:04:05Z",
    "expires_at": "2026-01-02T03:09:05Z",
}


def test_without_a_code_those_that_wait_are_listed_and_what_to_do(
    daemon: FakeDaemon, meshnode: Run
) -> None:
    assert "No device asks this node to join" in meshnode("approve").stdout
    assert json.loads(meshnode("approve", "--json").stdout) == []
    daemon.join_requests = [CAMERA]
    shown = meshnode("approve").stdout
    assert "camera" in shown
    assert "192.0.2.9" in shown
    assert "meshnode approve CODE" in shown
    assert json.loads(meshnode("approve", "--json").stdout) == [CAMERA]


def test_a_code_admits_as_an_operator_unless_told_otherwise(
    daemon: FakeDaemon, meshnode: Run
) -> None:
    daemon.join_requests = [CAMERA]
    result = meshnode("approve", "123 456")
    assert result.exit_code == 0
    assert "camera" in result.stdout
    assert "admitted as operator" in result.stdout
    assert daemon.sent("POST", "/mesh/v1/join-requests/approve") == {
        "code": "123 456", "role": "operator", "region": "",
    }  # fmt: skip
    shown = meshnode("approve", "123456", "--role", "member", "--region", "attic", "--json").stdout
    assert json.loads(shown) == {
        **CAMERA, "role": "member", "region": "attic", "invite_id": "0" * 16,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--role", "member"], "name it by the code"),
        (["--region", "attic"], "name it by the code"),
        (["123456", "--role", "king"], "there are member, operator, admin"),
        (["123456", "--region", "a b"], "--region"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_the_daemon_is_asked(
    daemon: FakeDaemon, meshnode: Run, arguments: list[str], message: str
) -> None:
    result = meshnode("approve", *arguments)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())
    assert daemon.requests == []
