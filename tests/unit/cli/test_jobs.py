"""`meshnode jobs`: what is asked of the daemon, and what a person sees."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Self

import pytest
from typer.testing import CliRunner, Result

from meshnode.cli import arguments, jobs
from meshnode.cli.main import app

if TYPE_CHECKING:
    from pathlib import Path

ID = "a" * 26
JOB: dict[str, Any] = {
    "id": ID, "status": "running", "progress": 0.25, "model": "painter", "path": "/mesh/v1/models/painter/infer",
    "created_at": "2026-01-02T03:04:05Z", "started_at": "2026-01-02T03:04:05Z", "finished_at": None,
    "expires_at": "2026-01-04T03:04:05Z", "attempt": 1, "node": "mini", "error": None, "webhook": None,
    "url": f"/mesh/v1/jobs/{ID}", "result_url": f"/mesh/v1/jobs/{ID}/result", "events_url": f"/mesh/v1/jobs/{ID}/events",
}  # fmt: skip


class FakeClient:
    """Answers as a daemon would, and keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[Any, ...]] = []
        self.jobs: list[dict[str, Any]] = [JOB]
        self.page: dict[str, Any] = {"next": None, "incomplete": []}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def get(self, path: str) -> Any:
        self.asked.append(("GET", path))
        if "?" in path:
            return {"jobs": self.jobs, **self.page}
        return self.jobs.pop(0) if len(self.jobs) > 1 else self.jobs[0]

    def post(self, path: str, body: Any) -> Any:
        self.asked.append(("POST", path, body))
        return {**JOB, "status": "queued"}

    def delete(self, path: str) -> Any:
        self.asked.append(("DELETE", path))
        return self.jobs[0]

    def run(self, flow: Any) -> Any:
        call = next(flow)
        self.asked.append((call.method, call.path))
        return SimpleNamespace(body=b"\x89PNG")


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> FakeClient:
    client = FakeClient()
    monkeypatch.setattr(arguments, "client_of", lambda *_: client)
    monkeypatch.setattr(jobs, "_LOOK_S", 0.0)
    return client


def run(*arguments: str, given: str | None = None) -> Result:
    return CliRunner().invoke(app, ["jobs", *arguments], input=given)


def test_list_shows_jobs_with_their_progress(client: FakeClient) -> None:
    result = run("list", "--status", "running", "--limit", "7")
    assert client.asked == [("GET", "/mesh/v1/jobs?limit=7&status=running")]
    assert ID in result.output
    assert "running 25%" in result.output


def test_list_says_when_there_are_none_or_more_or_when_nodes_were_silent(
    client: FakeClient,
) -> None:
    client.jobs, client.page = [], {"next": "5-x", "incomplete": ["mini"]}
    result = run("list")
    assert "There are no jobs." in result.output
    assert "larger --limit" in result.output
    assert "mini did not answer" in result.output
    assert json.loads(run("list", "--json").stdout)["next"] == "5-x"


def test_show_tells_what_is_known(client: FakeClient) -> None:
    failed = {
        **JOB, "status": "failed", "error": {"error": "it broke", "code": "model", "status": 500},
        "webhook": {"url": "https://example.org", "state": "waiting"},
    }  # fmt: skip
    client.jobs = [failed]
    output = run("show", ID).output
    assert "failed" in output
    assert "error: it broke" in output
    assert "https://example.org (waiting)" in output
    assert "finished" not in output
    assert json.loads(run("show", ID, "--json").stdout) == failed


@pytest.mark.parametrize(("status", "code"), [("succeeded", 0), ("failed", 1), ("cancelled", 1)])
def test_show_waits_for_the_end_and_says_by_its_exit_code_which_it_was(
    client: FakeClient, status: str, code: int
) -> None:
    client.jobs = [JOB, JOB, {**JOB, "status": status}]
    assert run("show", ID, "--wait").exit_code == code
    assert len(client.asked) == 3


def test_cancel_says_whether_it_came_in_time(client: FakeClient) -> None:
    client.jobs = [{**JOB, "status": "cancelled"}]
    assert "is cancelled" in run("cancel", ID).output
    client.jobs = [{**JOB, "status": "succeeded"}]
    assert "had ended before" in run("cancel", ID).output
    assert json.loads(run("cancel", ID, "--json").stdout)["status"] == "succeeded"
    assert client.asked[0] == ("DELETE", f"/mesh/v1/jobs/{ID}")


def test_result_is_printed_as_it_is_or_written_to_a_file(
    client: FakeClient, tmp_path: Path
) -> None:
    assert run("result", ID).stdout_bytes == b"\x89PNG"
    assert run("result", ID, "--output", str(tmp_path / "a.png")).exit_code == 0
    assert (tmp_path / "a.png").read_bytes() == b"\x89PNG"
    refused = run("result", ID, "--output", str(tmp_path / "no" / "a.png"))
    assert refused.exit_code != 0
    assert client.asked[0] == ("GET", f"/mesh/v1/jobs/{ID}/result")


def test_submit_sends_a_file_or_what_is_piped(client: FakeClient, tmp_path: Path) -> None:
    body = {"inputs": {"x": [1]}}
    (tmp_path / "a.json").write_text(json.dumps(body))
    assert run("submit", "my model", str(tmp_path / "a.json")).stdout == f"{ID}\n"
    assert run("submit", "m", "-", "--json", given=json.dumps(body)).exit_code == 0
    assert client.asked == [
        ("POST", "/mesh/v1/models/my%20model/jobs", body),
        ("POST", "/mesh/v1/models/m/jobs", body),
    ]
    assert run("submit", "m", str(tmp_path / "none.json")).exit_code != 0
    assert run("submit", "m", "-", given="{").exit_code != 0
