"""Invites go to files and come from files and pipes, where neither `ps` nor the history shows them."""

from __future__ import annotations

import json
import os
import stat
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from meshnode.cli import invite as invite_command
from meshnode.cli.invite import read_invite
from meshnode.errors import ConfigError, InviteError
from meshnode.limits import MAX_INVITE_LENGTH

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from typer.testing import Result

    from tests.unit.cli.conftest import FakeDaemon

    Run = Callable[..., Result]


def test_an_invite_is_written_to_a_file_that_only_its_owner_reads(
    daemon: FakeDaemon, meshnode: Run, tmp_path: Path
) -> None:
    file = tmp_path / "invite"
    file.write_text("an earlier one, which others could read")
    file.chmod(0o644)
    result = meshnode("invite", "--output", str(file))
    assert result.exit_code == 0
    assert "mesh1abc" not in result.stdout
    assert "meshnode join --invite-file invite" in result.stdout
    assert file.read_text() == "mesh1abc\n"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert os.listdir(tmp_path) == ["invite"]  # noqa: PTH208 - names are compared
    document = json.loads(meshnode("invite", "-o", str(file), "--json").stdout)
    assert document == {
        "output": str(file),
        "expires_at": "2026-01-02T03:04:05Z",
        "addresses": ["192.0.2.1:8471"],
    }


@pytest.mark.parametrize(
    ("addresses", "told"),
    [
        (["127.0.0.1:8471", "[::1]:8471"], True),
        (["127.0.0.1:8471", "192.0.2.1:8471"], False),
        (["mesh.example.org:8471"], False),
    ],
)
def test_an_invite_that_no_other_machine_can_use_says_so(
    daemon: FakeDaemon, meshnode: Run, tmp_path: Path, addresses: list[str], told: bool
) -> None:
    daemon.invite_addresses = addresses
    for more in ([], ["-o", str(tmp_path / "invite")]):
        out = meshnode("invite", *more).output
        assert ("loopback addresses only" in out and "--advertise" in out) is told
    assert json.loads(meshnode("invite", "--json").stdout)["addresses"] == addresses


def test_on_a_terminal_an_invite_is_the_whole_command_to_type(
    daemon: FakeDaemon, meshnode: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = SimpleNamespace(stdout=SimpleNamespace(isatty=lambda: True))
    monkeypatch.setattr(invite_command, "sys", terminal)
    result = meshnode("invite")
    assert "On the other device, type:\n\n  meshnode join mesh1abc\n\nValid until" in result.stdout
    assert result.stderr == ""


def test_a_gateway_elsewhere_makes_an_invite_for_who_has_its_key(
    daemon: FakeDaemon, meshnode: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MESHNODE_DATA_DIR", str(tmp_path / "none"))
    (tmp_path / "key").write_text("mesh_admin\n")
    result = meshnode("invite", "--gateway", daemon.url, "--key-file", str(tmp_path / "key"))
    assert result.stdout == "mesh1abc\n"
    assert daemon.headers["Authorization"] == "Bearer mesh_admin"
    assert daemon.sent("POST", "/mesh/v1/invites") == {
        "ttl_s": 86_400,
        "role": "operator",
        "uses": 0,
        "region": "",
    }


def test_an_invite_is_made_for_so_many_devices_of_a_role_and_region(
    daemon: FakeDaemon, meshnode: Run
) -> None:
    result = meshnode("invite", "--uses", "2", "--role", "member", "--region", "eu-west")
    assert result.exit_code == 0
    wish = {"ttl_s": 86_400, "role": "member", "uses": 2, "region": "eu-west"}
    assert daemon.sent("POST", "/mesh/v1/invites") == wish
    assert meshnode("invite", "--uses", "0").exit_code == 2
    assert meshnode("invite", "--role", "king").exit_code == 2


def test_a_file_that_cannot_be_written_is_named(
    daemon: FakeDaemon, meshnode: Run, tmp_path: Path
) -> None:
    result = meshnode("invite", "--output", str(tmp_path / "none" / "invite"))
    assert result.exit_code == 2
    assert "invite cannot be written (No such file or directory)" in result.stderr


@pytest.mark.parametrize(
    "content", [b"mesh1abc", b"mesh1abc\n", b"\r\n\n  mesh1abc \r\n", b"mesh1abc\nmore lines\n"]
)
def test_white_space_around_an_invite_does_not_matter(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "invite"
    file.write_bytes(content)
    assert read_invite(None, str(file)) == "mesh1abc"
    assert read_invite(" mesh1abc\n", None) == "mesh1abc"
    assert read_invite(None, None) is None


@pytest.mark.parametrize(
    ("content", "error", "says"),
    [
        (b"", ConfigError, "the input is empty"),
        (b" \n\n", ConfigError, "the input is empty"),
        (b"hello", InviteError, "is not an invite"),
        (b"\xff\xfe", InviteError, "is not an invite"),
        (b"mesh1" + b"a" * MAX_INVITE_LENGTH, InviteError, "is not an invite"),
    ],
)
def test_what_is_no_invite_is_refused(
    tmp_path: Path, content: bytes, error: type[Exception], says: str
) -> None:
    file = tmp_path / "invite"
    file.write_bytes(content)
    with pytest.raises(error, match=says):
        read_invite(None, str(file))


def test_an_endless_input_is_not_read_to_its_end() -> None:
    with pytest.raises(InviteError):
        read_invite(None, "/dev/zero")


def test_a_file_that_is_not_there_is_named_and_two_invites_are_refused(meshnode: Run) -> None:
    missing = meshnode("join", "--invite-file", "/nowhere/invite")
    assert missing.exit_code == 2
    assert "--invite-file: /nowhere/invite cannot be read" in missing.stderr
    both = meshnode("join", "mesh1abc", "--invite-file", "/nowhere/invite")
    assert "give one of them" in both.stderr
