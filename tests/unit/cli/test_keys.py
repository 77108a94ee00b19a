"""`meshnode keys`: what is asked of the daemon, and what a person sees."""

from __future__ import annotations

import json
from typing import Any, Self

import pytest
from typer.testing import CliRunner, Result

from meshnode.cli import arguments
from meshnode.cli.main import app
from meshnode.errors import InvalidRequest, NotFound, PeerError

KEY = "mesh_" + "k" * 16 + "_" + "s" * 52
ENTRY: dict[str, Any] = {
    "id": "k" * 16,
    "name": "phone",
    "scopes": ["infer"],
    "created_at": "2026-01-02T03:04:05Z",
    "expires_at": None,
    "revoked_at": None,
    "state": "valid",
    "rate": "10/s",
    "concurrency": None,
    "priority": "high",
    "share": 1,
}


class FakeClient:
    """Answers as a daemon would, and keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[Any, ...]] = []
        self.keys: list[dict[str, Any]] = [ENTRY]
        self.http: str | None = "https://192.0.2.1:8470"
        self.changed = True
        self.fail: Exception | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def _ask(self, *question: Any) -> None:
        self.asked.append(question)
        if self.fail is not None:
            raise self.fail

    def get(self, path: str) -> Any:
        if path == "/mesh/v1/status":
            if self.http == "":
                raise PeerError("broken off")
            return {"http": self.http}
        self._ask("GET", path)
        return self.keys

    def post(self, path: str, body: Any) -> Any:
        self._ask("POST", path, body)
        return {**ENTRY, "key": KEY, "scopes": body["scopes"]}

    def put(self, path: str, body: Any) -> Any:
        self._ask("PUT", path, body)
        limit = {
            "rate": body.get("rate"),
            "concurrency": body.get("concurrency"),
            "priority": body.get("priority", "high"),
            "share": body.get("share", 1),
        }
        return {**ENTRY, **limit, "changed": self.changed}

    def delete(self, path: str) -> Any:
        self._ask("DELETE", path)
        return {**ENTRY, "revoked_at": "2026-02-02T03:04:05Z", "changed": self.changed}


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> FakeClient:
    made = FakeClient()
    monkeypatch.setattr(arguments, "client_of", lambda *_: made)
    return made


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["keys", *arguments])


def test_a_key_may_be_given_several_scopes(client: FakeClient) -> None:
    assert run("create", "ci", "--scope", "deploy", "--scope", "infer").exit_code == 0
    assert client.asked[0][2] == {"name": "ci", "scopes": ["deploy", "infer"], "ttl_s": None}


def test_a_new_key_is_shown_once_with_how_to_use_it(client: FakeClient) -> None:
    result = run("create", "phone", "--scope", "deploy", "--ttl", "90d")
    assert result.exit_code == 0
    body = {"name": "phone", "scopes": ["deploy"], "ttl_s": 90 * 86_400}
    assert client.asked == [("POST", "/mesh/v1/keys", body)]
    lines = result.stdout.splitlines()
    assert lines[0] == "API key phone, for deploy, valid until it is revoked, with at most 10/s:"
    assert f"  {KEY}" in lines
    assert f"  curl -H 'Authorization: Bearer {KEY}' https://192.0.2.1:8470/mesh/v1/models" in lines
    assert lines[-1] == "To take it back, on any node: meshnode keys revoke phone"
    assert "--http" not in result.stdout


@pytest.mark.parametrize("http", ["http://127.0.0.1:8470", "http://[::1]:8470"])
def test_where_only_this_machine_reaches_the_gateway_it_says_how_others_do(
    client: FakeClient, http: str
) -> None:
    client.http = http
    lines = run("create", "phone").stdout.splitlines()
    assert f"  curl -H 'Authorization: Bearer {KEY}' {http}/mesh/v1/models" in lines
    (hint,) = (line for line in lines if line.startswith("This gateway is reached from its own"))
    assert "--http 0.0.0.0:8470" in hint


@pytest.mark.parametrize("http", [None, ""])
def test_a_new_key_is_shown_whatever_happens_afterwards(
    client: FakeClient, http: str | None
) -> None:
    client.http = http
    result = run("create", "phone")
    assert result.exit_code == 0
    assert KEY in result.stdout
    assert "http://GATEWAY:8470/mesh/v1/models" in result.stdout
    assert client.asked[0][2] == {"name": "phone", "scopes": ["infer"], "ttl_s": None}


def test_json_is_what_the_daemon_says(client: FakeClient) -> None:
    assert json.loads(run("create", "phone", "--json").stdout)["key"] == KEY
    assert json.loads(run("list", "--json").stdout) == [ENTRY]
    assert json.loads(run("revoke", "phone", "--json").stdout)["changed"] is True


def test_keys_are_a_table_without_secrets(client: FakeClient) -> None:
    header, row = [line.split() for line in run("list").stdout.splitlines()]
    limits = ["RATE", "CONCURRENCY", "PRIORITY", "SHARE"]
    assert header == ["NAME", "ID", "SCOPES", "STATE", *limits, "CREATED", "EXPIRES", "REVOKED"]
    assert row == [
        "phone",
        "k" * 16,
        "infer",
        "valid",
        "10/s",
        "-",
        "high",
        "1",
        "2026-01-02T03:04:05Z",
        "-",
        "-",
    ]
    client.keys = []
    assert run("list").stdout == (
        "This mesh has no API keys; make one with: meshnode keys create NAME\n"
    )


def test_revoking_twice_says_so_and_succeeds(client: FakeClient) -> None:
    assert run("revoke", "a/b").stdout == f"API key phone ({'k' * 16}) is revoked.\n"
    assert client.asked == [("DELETE", "/mesh/v1/keys/a%2Fb")]
    client.changed = False
    result = run("revoke", "phone")
    assert result.exit_code == 0
    assert "was revoked before, at 2026-02-02T03:04:05Z" in result.stdout


def test_a_key_is_made_with_a_limit(client: FakeClient) -> None:
    assert run("create", "phone", "--rate", "600/min", "--concurrency", "4").exit_code == 0
    assert client.asked[0][2] == {
        "name": "phone",
        "scopes": ["infer"],
        "ttl_s": None,
        "rate": "600/min",
        "concurrency": 4,
    }


@pytest.mark.parametrize(
    ("options", "body", "told"),
    [
        (["--rate", "10/s"], {"rate": "10/s"}, "has at most 10/s"),
        (["--concurrency", "2"], {"concurrency": 2}, "has at most 2 at once"),
        (
            ["--rate", "1/d", "--concurrency", "9"],
            {"rate": "1/d", "concurrency": 9},
            "has at most 1/d and at most 9 at once",
        ),
        (["--priority", "low"], {"priority": "low"}, "has a priority of low at most"),
        (
            ["--rate", "1/d", "--priority", "normal", "--share", "3"],
            {"rate": "1/d", "priority": "normal", "share": 3},
            "has at most 1/d, a priority of normal at most and 3 shares",
        ),
        ([], {}, "has no limit"),
    ],
)
def test_a_limit_is_said_anew(
    client: FakeClient, options: list[str], body: dict[str, Any], told: str
) -> None:
    result = run("limit", "a/b", *options)
    assert result.stdout == f"API key phone ({'k' * 16}) {told}.\n"
    assert client.asked == [("PUT", "/mesh/v1/keys/a%2Fb", body)]
    client.changed = False
    assert run("limit", "a/b", *options).stdout.endswith(f"{told}, as before.\n")
    assert json.loads(run("limit", "a/b", "--json").stdout)["changed"] is False


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["create", "phone", "--rate", "fast"], "is not a rate"),
        (["limit", "phone", "--concurrency", "0"], "requests at once"),
        (["create", "phone", "--priority", "urgent"], "is not a priority"),
        (["limit", "phone", "--share", "101"], "share of an overloaded gateway"),
        (["create", "phone", "--ttl", "soon"], "is not a duration"),
        (["create", "phone", "--ttl", "0.1s"], "shorter than a second"),
    ],
)
def test_wrong_durations_and_limits_are_told_before_anything_is_asked(
    client: FakeClient, arguments: list[str], sentence: str
) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert sentence in result.stderr
    assert client.asked == []


@pytest.mark.parametrize(
    "failure", [InvalidRequest("there is a key 'phone' already"), NotFound("there is no API key")]
)
@pytest.mark.parametrize("arguments", [["create", "phone"], ["revoke", "phone"], ["list"]])
def test_the_daemons_refusals_are_printed(
    client: FakeClient, arguments: list[str], failure: Exception
) -> None:
    client.fail = failure
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert str(failure) in result.stderr


def test_what_a_daemon_says_cannot_move_the_cursor(client: FakeClient) -> None:
    client.keys = [{**ENTRY, "name": "a\x1b[2J"}]
    assert "\x1b" not in run("list").stdout
