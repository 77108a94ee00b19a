"""`meshnode apply`, `diff`, `deployments`, `get`, `history`, `rollback`, `pause`, `resume`, `env`, `delete`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from meshnode.deployment_file import parse

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from typer.testing import Result

    from tests.unit.cli.conftest import FakeDaemon

    Run = Callable[..., Result]

DIGITS = "/mesh/v1/deployments/digits"
CHANGE = {"key": "replicas", "from": 1, "to": 2}


@pytest.fixture(autouse=True)
def _deployed(daemon: FakeDaemon) -> None:
    ready = daemon.entry("digits", daemon.replica("alpha", "ready"), wanted=1)
    daemon.progress = [ready]
    daemon.edit = {
        "name": "digits",
        "revision": "2.0.a",
        "changed": True,
        "files": "known",
        "changes": [CHANGE],
        "warnings": [],
        "model": ready,
    }
    daemon.deployed = [
        {
            "name": "digits",
            "id": "d" * 16,
            "urls": ["http://127.0.0.1:8470/numbers"],
            "status": "progressing",
            "reason": "1 of 2 replicas ready; beta: loading",
            "enabled": True,
            "definition": {"name": "digits", "model": "digits", "version": 1, "env": {"A": "b c"}},
            "versions": [{"version": 1}],
            "replicas": 2,
            "ready": 1,
            "wanted": 2,
            "placed": ["alpha", "beta"],
            "revision": "1.0.a",
            "changed_at": "2026-01-02T03:04:05Z",
            "changed_by": "alpha",
        }
    ]
    daemon.history = [
        {
            "id": "2.0.a",
            "at": "T2",
            "by": "key ci (k)",
            "summary": "replicas 1 → 2",
            "counts": True,
        },
        {
            "id": "1.0.a",
            "at": "T1",
            "by": "alpha",
            "summary": "deployed",
            "overwritten_by": "2.0.a",
        },
    ]
    daemon.diff = {"name": "digits", "from": "1.0.a", "to": "2.0.a", "changes": [CHANGE]}


def written(folder: Path, text: str = "", name: str = "digits.toml") -> str:
    (folder / "digits.onnx").write_bytes(b"onnx")
    path = folder / name
    path.write_text('name = "digits"\nmodel = "digits.onnx"\n' + text, encoding="utf-8")
    return str(path)


def puts(daemon: FakeDaemon) -> list[Any]:
    return [body for method, path, body in daemon.requests if (method, path) == ("PUT", DIGITS)]


def test_apply_asks_what_would_change_and_writes_that_from_the_revision_it_saw(
    daemon: FakeDaemon, meshnode: Run, tmp_path: Path
) -> None:
    daemon.edit["files"] = "needed"
    result = meshnode("apply", written(tmp_path, "replicas = 1"))
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines() == ["digits: is changed, revision 2.0.a", "  replicas: 1 → 2"]
    plan, change = puts(daemon)
    assert plan["dry_run"]
    daemon.edit |= {"files": "known", "new": True, "id": "d7jyufh2yvf5tadu"}
    told = meshnode("apply", written(tmp_path, "replicas = 1")).stdout.splitlines()
    assert told[0] == "digits: is new, id d7jyufh2yvf5tadu, revision 2.0.a"
    assert plan["deployment"] == {"name": "digits", "model": "digits.onnx"}
    assert change["path"] == str(tmp_path / "digits.onnx")
    assert (change["revision"], change["source"]) == ("2.0.a", plan["source"])
    assert "dry_run" not in change


def test_a_dry_run_writes_nothing(daemon: FakeDaemon, meshnode: Run, tmp_path: Path) -> None:
    result = meshnode("apply", written(tmp_path), "--dry-run")
    assert result.stdout.splitlines()[0] == "digits: would be changed"
    assert [body["dry_run"] for body in puts(daemon)] == [True]
    found = json.loads(meshnode("apply", written(tmp_path), "--dry-run", "--json").stdout)
    assert [each["changes"] for each in found] == [[CHANGE]]


def test_what_changes_nothing_is_not_written(
    daemon: FakeDaemon, meshnode: Run, tmp_path: Path
) -> None:
    daemon.edit |= {"changed": False, "changes": []}
    result = meshnode("apply", written(tmp_path), "--no-wait")
    assert result.stdout == "digits: nothing changes\n"
    assert len(puts(daemon)) == 1


def test_standard_input_is_toml_or_yaml(daemon: FakeDaemon, meshnode: Run) -> None:
    for text in ('# c\nname = "digits"\nmodel = "digits"\n', "# c\nname: digits\nmodel: digits\n"):
        daemon.requests.clear()
        daemon.artifacts = [{"name": "digits", "version": 1}]
        result = meshnode("apply", "-", "--no-wait", stdin=text.encode())
        assert result.exit_code == 0, result.output
        assert puts(daemon)[0]["deployment"] == {"name": "digits", "model": "digits"}
    assert "standard input" in meshnode("apply", "-", stdin=b"name = 1").stderr
    assert "give - once" in meshnode("apply", "-", "-", stdin=b"").stderr


def test_every_mistake_of_all_files_is_told_before_anything_is_asked(
    daemon: FakeDaemon, meshnode: Run, tmp_path: Path
) -> None:
    first = written(tmp_path, 'replicas = 0\n[wher]\nregions = ["eu"]')
    other = tmp_path / "other.yaml"
    other.write_text("name: digits\nmodel: gone.onnx\non: [omega]\n", encoding="utf-8")
    result = meshnode(
        "apply", first, str(other), str(tmp_path / "x.json"), str(tmp_path / "y.toml")
    )
    assert result.exit_code == 2
    assert puts(daemon) == []
    assert result.stderr.splitlines() == [
        f"error: {first}: replicas: 0 (a number) is not a whole number of 1 to 1024",
        f"{first}: wher: unknown key; did you mean 'where'?",
        f"{tmp_path}/x.json: a deployment file is called NAME.toml, NAME.yaml or NAME.yml",
        f"{tmp_path}/y.toml: it cannot be read: No such file or directory",
        f"{other}, line 2: model: 'gone.onnx' does not exist",
        f"{other}, line 3: on: no node is called 'omega'; there are alpha, beta, gamma",
    ]


def test_a_stale_change_is_refused_unless_it_is_forced(
    daemon: FakeDaemon, meshnode: Run, tmp_path: Path
) -> None:
    daemon.stale = "'digits' was changed since revision 1.0.a"
    result = meshnode("apply", written(tmp_path, 'revision = "1.0.a"'), "--json")
    assert result.exit_code == 2
    assert json.loads(result.stdout)["code"] == "stale_revision"
    daemon.stale = ""
    assert meshnode("apply", written(tmp_path), "--force").exit_code == 0
    assert [(body.get("force"), body.get("revision")) for body in puts(daemon)[-2:]] == [
        (True, None), (True, None),
    ]  # fmt: skip


def test_diff_ends_with_1_where_something_differs_and_with_2_on_trouble(
    daemon: FakeDaemon, meshnode: Run, tmp_path: Path
) -> None:
    result = meshnode("diff", written(tmp_path))
    assert (result.exit_code, result.stdout.splitlines()[-1]) == (1, "  replicas: 1 → 2")
    result = meshnode("diff", "digits", "--from", "1.0", "--to", "2.0")
    assert result.exit_code == 1
    assert result.stdout.splitlines() == ["digits: from 1.0.a to 2.0.a", "  replicas: 1 → 2"]
    assert daemon.query == {"from": "1.0", "to": "2.0"}
    daemon.edit["changed"], daemon.diff["changes"] = False, []
    assert meshnode("diff", written(tmp_path)).exit_code == 0
    assert meshnode("diff", "digits", "--json").exit_code == 0
    assert meshnode("diff", written(tmp_path), "--from", "1").exit_code == 2
    assert meshnode("diff", "digits", "--gateway", "http://127.0.0.1:1").exit_code == 2


def test_deployments_are_listed_with_how_they_stand(daemon: FakeDaemon, meshnode: Run) -> None:
    lines = meshnode("deployments").stdout.splitlines()
    assert lines[0].split() == ["NAME", "STATUS", "VERSION", "REPLICAS", "URL", "ID", "REASON"]
    assert lines[1].split()[:6] == [
        "digits", "progressing", "1", "1/2", "http://127.0.0.1:8470/numbers", "d" * 16,
    ]  # fmt: skip
    assert lines[1].endswith("1 of 2 replicas ready; beta: loading")
    assert json.loads(meshnode("deployments", "--json").stdout)[0]["id"] == "d" * 16
    daemon.deployed = []
    assert "meshnode apply FILE" in meshnode("deployments").stdout


def test_get_prints_a_definition_that_apply_takes(daemon: FakeDaemon, meshnode: Run) -> None:
    text = meshnode("get", "digits", "--toml", "--revision", "1.0").stdout
    assert daemon.query == {"revision": "1.0"}
    (spec,) = parse(text, "toml", "f")
    assert (spec.versions, spec.env) == ((1,), (("A", "b c"),))
    assert '# revision = "1.0.a"' in text
    shown = meshnode("get", "digits").stdout
    assert "progressing" in shown
    assert '[env]\nA = "b c"\n' in shown
    assert json.loads(meshnode("get", "digits", "--json").stdout)["status"] == "progressing"
    assert meshnode("get", "digits", "--json", "--toml").exit_code == 2
    assert "did you mean 'digits'" in meshnode("get", "digit").stderr


def test_history_says_who_changed_what_and_what_was_lost(meshnode: Run) -> None:
    lines = meshnode("history", "digits").stdout.splitlines()
    assert lines[1].split()[:2] == ["2.0.a", "*"]
    assert lines[1].endswith("replicas 1 → 2")
    assert lines[2].endswith("deployed (overwritten unseen by 2.0.a)")
    assert len(json.loads(meshnode("history", "digits", "--json").stdout)) == 2


def test_a_revision_is_restored_from_the_one_that_was_seen(
    daemon: FakeDaemon, meshnode: Run
) -> None:
    result = meshnode("rollback", "digits", "--to", "1.0")
    assert result.exit_code == 0, result.output
    assert daemon.sent("POST", f"{DIGITS}/rollback") == {"to": "1.0", "revision": "2.0.a"}
    daemon.requests.clear()
    assert meshnode("rollback", "digits", "--force", "--no-wait").exit_code == 0
    assert daemon.sent("POST", f"{DIGITS}/rollback") == {"to": ""}


def test_pause_resume_env_and_delete(daemon: FakeDaemon, meshnode: Run) -> None:
    assert meshnode("pause", "digits").exit_code == 0
    assert daemon.sent("PATCH", DIGITS) == {"enabled": False}
    daemon.requests.clear()
    assert meshnode("resume", "digits").exit_code == 0
    assert daemon.sent("PATCH", DIGITS) == {"enabled": True}
    daemon.requests.clear()
    assert meshnode("env", "digits").stdout == "A=b c\n"
    assert meshnode("env", "digits", "A=1=2", "B-", "--json").exit_code == 0
    assert daemon.sent("PATCH", DIGITS) == {"env": {"A": "1=2", "B": None}}
    assert "neither KEY=VALUE nor KEY-" in meshnode("env", "digits", "A").stderr
    result = meshnode("delete", "digits")
    assert "meshnode rollback digits" in result.stdout
    assert daemon.query == {"revision": "1.0.a"}
    assert meshnode("delete", "digits", "--force", "--json").exit_code == 0
    assert daemon.query == {}
    assert "did you mean 'digits'" in meshnode("delete", "digit").stderr


def test_a_release_that_was_rolled_back_is_shown_with_its_deployment(
    daemon: FakeDaemon, meshnode: Run
) -> None:
    daemon.deployed[0]["release"] = {
        "strategy": "shadow",
        "baseline": 1,
        "candidate": 2,
        "phase": "rolled_back",
        "serving": 1,
        "reason": "errors",
        "outcome": "rolled_back",
    }
    result = meshnode("get", "digits")
    assert "shadow, version 1 → 2, rolled back: errors; version 1 serves" in result.stdout
    assert json.loads(meshnode("get", "digits", "--json").stdout)["release"]["serving"] == 1
