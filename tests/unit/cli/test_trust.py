"""`meshnode evict` and `meshnode trust`: what is asked of the daemon, and what a person sees."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any, Self

import pytest
from typer.testing import CliRunner, Result

from meshnode.cli import arguments, evict, trust
from meshnode.cli.main import app
from meshnode.errors import Forbidden

BETA, OLD = "b" * 32, "o" * 32
EVICTED: dict[str, Any] = {
    "node": BETA,
    "name": "beta",
    "reason": "stolen",
    "changed": True,
    "sealed": False,
    "evicted": [{"id": BETA, "name": "beta"}],
    "keys": [],
}
TRUST: dict[str, Any] = {
    "mesh": "f" * 32,
    "node": "a" * 32,
    "role": "admin",
    "sealed": False,
    "members": [
        {
            "id": "a" * 32, "name": "alpha", "role": "admin", "state": "alive", "how": "founded",
            "by": None, "by_name": None, "witness": None, "at": "2026-01-02T03:04:05Z",
            "invite_id": "", "uses": 0, "used": 0,
        },
        {
            "id": BETA, "name": "beta\x1b[2J", "role": "member", "state": "unknown",
            "how": "invited", "by": "a" * 32, "by_name": "alpha", "witness": "a" * 32,
            "at": "2026-01-02T03:05:05Z", "invite_id": "0123456789abcdef", "uses": 3, "used": 1,
        },
        {
            "id": "c" * 32, "name": "gamma", "role": "operator", "state": "alive",
            "how": "rotated", "by": OLD, "by_name": OLD, "witness": None,
            "at": "2026-01-02T03:06:05Z", "invite_id": "", "uses": 0, "used": 0,
        },
    ],
    "revoked": [
        {
            "id": OLD, "name": OLD, "reason": "revoked", "why": "it has a new key", "by": OLD,
            "by_name": OLD, "at": "2026-01-02T03:06:05Z", "successor": "c" * 32,
        }
    ],
}  # fmt: skip


class FakeClient:
    """Answers as a daemon would, and keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[Any, ...]] = []
        self.answer: dict[str, Any] = {}
        self.fail: Exception | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def _ask(self, *question: Any) -> Any:
        self.asked.append(question)
        if self.fail is not None:
            raise self.fail
        return self.answer

    def get(self, path: str) -> Any:
        return self._ask("GET", path)

    def post(self, path: str, body: Any) -> Any:
        return self._ask("POST", path, body)

    def put(self, path: str, body: Any) -> Any:
        return self._ask("PUT", path, body)


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> FakeClient:
    made = FakeClient()
    for module in (arguments, trust):
        monkeypatch.setattr(module, "client_of", lambda *_: made)
    return made


def run(*arguments: str, given: str | None = None) -> Result:
    return CliRunner().invoke(app, list(arguments), input=given)


def test_an_eviction_says_who_is_gone_and_what_the_node_leaves_behind(client: FakeClient) -> None:
    client.answer = {
        **EVICTED,
        "sealed": True,
        "evicted": [{"id": BETA, "name": "beta"}, {"id": "d" * 32, "name": "delta\x07"}],
        "keys": [{"id": "k" * 16, "name": "ci", "scopes": ["infer", "admin"]}],
    }
    result = run("evict", "beta", "--reason", "stolen", "--with-invited", "--yes")
    assert result.exit_code == 0
    body = {"node": "beta", "reason": "stolen", "with_invited": True}
    assert client.asked == [("POST", "/mesh/v1/evictions", body)]
    assert "beta is evicted" in result.stdout
    assert "Evicted with it: delta?." in result.stdout
    assert "root key, which is sealed now" in result.stdout
    assert "API key ci (infer, admin)" in result.stdout
    assert "meshnode keys revoke ci" in result.stdout


def test_a_second_eviction_says_that_it_was_done_before(client: FakeClient) -> None:
    client.answer = {**EVICTED, "changed": False, "evicted": []}
    result = run("evict", "beta", "-y")
    assert result.stdout == "beta was evicted before.\n"
    result = run("evict", "beta", "-y", "--json")
    assert json.loads(result.stdout) == client.answer


def test_what_is_for_ever_needs_yes_where_nobody_can_be_asked(client: FakeClient) -> None:
    for command in (["evict", "beta"], ["trust", "rotate"], ["trust", "seal"]):
        result = run(*command)
        assert result.exit_code == 2
        assert "add --yes" in result.stderr
    assert client.asked == []


@pytest.mark.parametrize(("answer", "code"), [("y\n", 0), ("n\n", 1), ("\n", 1)])
def test_a_person_is_asked_before_what_is_for_ever(
    client: FakeClient, monkeypatch: pytest.MonkeyPatch, answer: str, code: int
) -> None:
    terminal = SimpleNamespace(stdin=SimpleNamespace(isatty=lambda: True))
    for module in (evict, trust):
        monkeypatch.setattr(module, "sys", terminal)
    client.answer = {**EVICTED, "mesh": "f" * 32, "former": OLD}
    for command in (["evict", "beta", "--with-invited"], ["trust", "rotate"], ["trust", "seal"]):
        client.asked.clear()
        result = run(*command, given=answer)
        assert result.exit_code == code
        assert bool(client.asked) == (code == 0)
        assert "for ever" in result.stderr or "another key" in result.stderr


def test_a_reason_that_no_node_would_take_is_refused_at_once(client: FakeClient) -> None:
    result = run("evict", "beta", "--yes", "--reason", "x" * 201)
    assert result.exit_code == 2
    assert "at most 200 characters" in result.stderr
    assert client.asked == []


def test_trust_show_tells_who_let_each_in_and_who_is_out(client: FakeClient) -> None:
    client.answer = TRUST
    lines = run("trust", "show").stdout.splitlines()
    assert "root key is not sealed" in lines[0]
    alpha, beta, gamma = lines[3:6]
    assert alpha.split()[:4] == ["alpha", "admin", "alive", "founder"]
    assert "\x1b" not in beta
    assert "0123456789abcdef" in beta
    assert "1 of 3" in beta
    assert "new key" in gamma
    assert "No members any more:" in lines
    assert "it has a new key" in lines[-1]
    client.answer = {**TRUST, "sealed": True, "revoked": []}
    shown = run("trust", "show").stdout
    assert "sealed: it admits nobody" in shown
    assert "No members any more" not in shown
    assert json.loads(run("trust", "show", "--json").stdout) == client.answer


def test_a_role_is_given_and_what_no_role_is_is_refused(client: FakeClient) -> None:
    client.answer = {"node": BETA, "name": "beta", "role": "admin", "changed": True}
    assert run("trust", "role", "be ta", "admin").stdout == "beta is now admin of the mesh.\n"
    assert client.asked == [("PUT", "/mesh/v1/roles/be%20ta", {"role": "admin"})]
    client.answer["changed"] = False
    assert "was already admin" in run("trust", "role", "beta", "admin").stdout
    assert json.loads(run("trust", "role", "beta", "admin", "--json").stdout) == client.answer
    assert run("trust", "role", "beta", "king").exit_code == 2


def test_rotating_and_sealing_say_what_is_so_from_now_on(client: FakeClient) -> None:
    client.answer = {"node": BETA, "former": OLD}
    result = run("trust", "rotate", "--yes")
    assert result.stdout == f"This node is {BETA} now; {OLD} is out for ever.\n"
    assert json.loads(run("trust", "rotate", "--yes", "--json").stdout) == client.answer
    client.answer = {"mesh": "f" * 32, "changed": True}
    assert f"The root key of mesh {'f' * 32} is sealed" in run("trust", "seal", "--yes").stdout
    client.answer["changed"] = False
    assert "was sealed before" in run("trust", "seal", "--yes").stdout
    assert json.loads(run("trust", "seal", "-y", "--json").stdout) == client.answer


def test_a_refusal_is_one_sentence(client: FakeClient) -> None:
    client.fail = Forbidden("this node is an operator of the mesh")
    result = run("evict", "beta", "--yes")
    assert result.exit_code == 2
    assert result.stderr == "error: this node is an operator of the mesh\n"


def test_with_json_a_refusal_is_a_document_with_its_code(client: FakeClient) -> None:
    client.fail = Forbidden("this node is an operator of the mesh")
    for command in (["evict", "beta", "--yes"], ["trust", "seal", "--yes"], ["trust", "show"]):
        result = run(*command, "--json")
        assert result.exit_code == 2
        assert json.loads(result.stdout) == {
            "error": "this node is an operator of the mesh",
            "code": "forbidden",
        }
        assert result.stderr == "error: this node is an operator of the mesh\n"
