"""`meshnode rollout`: status, the live view, waiting for the outcome, and what operators ask."""

from __future__ import annotations

import io
import json
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from rich.console import Console

from meshnode.cli import rollout, rollout_display
from meshnode.cli.rollout_display import RolloutDisplay, change_line, drawn
from meshnode.client.rollout_results import RolloutInfo

if TYPE_CHECKING:
    from collections.abc import Callable

    from typer.testing import Result

    from tests.unit.cli.conftest import FakeDaemon

    Run = Callable[..., Result]

PATH = "/mesh/v1/deployments/digits/rollout"
BEGAN = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
RUNNING: dict[str, Any] = {
    "name": "digits",
    "strategy": "canary",
    "baseline": 1,
    "candidate": 2,
    "phase": "running",
    "step": 2,
    "steps": [
        {"share": 0.05, "hold_s": 60},
        {"share": 0.2, "hold_s": 60, "wait": True},
        {"share": 0.5, "mirror": 0.1, "hold_s": 60},
    ],
    "share": 0.2,
    "reason": "all gates passed\x1b[2J",
    "serving": 1,
    "resident": [1, 2],
    "since": BEGAN.isoformat(),
    "begun_at": "2026-01-02T03:00:00Z",
    "steward": "alpha",
    "epoch": 3,
    "ready": {"baseline": 2, "candidate": 1, "wanted": 2},
    "room": "beta has no memory left",
    "verdict": "inconclusive",
    "gates": [
        {"metric": "errors", "limit": 0.01, "verdict": "pass", "baseline": 0.004, "candidate": 0.0, "reason": "fine"},
        {"metric": "latency_p99", "device": "cpu", "limit": 1.5, "verdict": "inconclusive", "reason": "23 of 100"},
    ],
    "arms": [
        {"version": 2, "device": "cuda", "requests": 120, "errors": 3, "p50_ms": 12.9, "p99_ms": 40.0,
         "compared": 10, "agreed": 9, "metrics": {"stars": {"number": 4, "mean": 3.25}}},
        {"version": 1, "device": "cuda", "requests": 900, "errors": 0, "p50_ms": 12.1, "p99_ms": 44.0},
    ],
    "verbs": ["promote", "pause", "abort", "undo"],
    "decisions": [{"at": "2026-01-02T03:03:00Z", "kind": "step", "reason": "step 2 of 3"}],
}  # fmt: skip
KEEPING = {**RUNNING, "phase": "keeping", "step": 4, "share": 1.0, "reason": "it has taken over"}
PROMOTED = {**KEEPING, "phase": "done", "outcome": "promoted", "serving": 2, "verbs": []}
BACK = {**RUNNING, "phase": "rolled_back", "outcome": "rolled_back", "share": 0.0, "verbs": []}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch, daemon: FakeDaemon) -> None:
    monkeypatch.setattr("meshnode.client.rollouts.LOOK_S", 0.005)
    daemon.rollouts = [RUNNING]


def info(document: dict[str, Any]) -> RolloutInfo:
    return msgspec.convert(document, RolloutInfo)


def text_of(document: dict[str, Any], width: int = 200) -> str:
    console = Console(file=io.StringIO(), width=width, markup=False, highlight=False)
    with console.capture() as captured:
        console.print(drawn(info(document), BEGAN + timedelta(seconds=75)))
    return captured.get()


def test_the_status_tells_of_the_steps_both_versions_the_gates_and_what_was_decided(
    meshnode: Run,
) -> None:
    result = meshnode("rollout", "status", "digits")
    assert result.exit_code == 0
    for said in (
        "digits: canary, version 1 → 2, running",
        "■ 5 % ─ ▶ 20 % wait ─ □ 50 %+10 % mirrored ─ □ all",
        "ready: 2 of version 1, 1 of 2 of version 2; steward alpha, epoch 3",
        "room: beta has no memory left",
        "why: all gates passed?[2J",
        "3 (2.5 %)",
        "90 % of 10",
        "3.25 (4)",
        "latency_p99 on cpu  1.5    inconclusive",
        "03:03:00 step step 2 of 3",
        "meshnode rollout promote|pause|abort|undo digits",
    ):
        assert said in result.stdout
    rows = [line.split()[:2] for line in result.stdout.splitlines() if " cuda " in line]
    assert rows == [["1", "cuda"], ["2", "cuda"]], "the old version comes first"


def test_the_status_as_json_is_one_document(meshnode: Run) -> None:
    result = meshnode("rollout", "status", "digits", "--json")
    assert info(json.loads(result.stdout)) == info(RUNNING)


def test_the_view_tells_how_long_a_step_lasts_and_how_it_ended() -> None:
    assert "step 2 of 3 for 1:15, holds 60 s" in text_of(RUNNING)
    assert "keeping for 1:15" in text_of(KEEPING)
    assert "■ 5 % ─ ■ 20 % wait ─ ■ 50 %+10 % mirrored ─ ▶ all" in text_of(KEEPING)
    assert "■ all" in text_of(PROMOTED)
    assert "✗ 20 % wait ─ □ 50 %" in text_of(BACK)
    assert "version 1 answers all requests" in text_of(BACK)
    late = {**RUNNING, "since": (BEGAN - timedelta(hours=3)).isoformat()}
    assert "for 3:01:15" in text_of(late)
    assert "for ?" in text_of({**RUNNING, "since": "soon"})
    assert "version 2" in text_of({"name": "digits", "candidate": 2}), "an older gateway says less"


def test_watching_prints_a_line_per_change_until_the_end_where_there_is_no_terminal(
    meshnode: Run, daemon: FakeDaemon
) -> None:
    daemon.rollouts = [RUNNING, {**RUNNING, "arms": []}, KEEPING, PROMOTED]
    result = meshnode("rollout", "status", "digits", "--watch")
    assert (result.exit_code, result.stdout.splitlines()) == (
        0,
        [change_line(info(each)) for each in (RUNNING, KEEPING, PROMOTED)],
    )
    assert change_line(info(RUNNING)).startswith(
        "digits: running, step 2 of 3, 20 % of the requests go to version 2: all gates passed?[2J [inconclusive]"
    )


def test_watching_as_json_prints_a_document_per_change(meshnode: Run, daemon: FakeDaemon) -> None:
    daemon.rollouts = [RUNNING, RUNNING, KEEPING, BACK]
    result = meshnode("rollout", "status", "digits", "--watch", "--json")
    phases = [json.loads(line)["phase"] for line in result.stdout.splitlines()]
    assert (result.exit_code, phases) == (0, ["running", "keeping", "rolled_back"])


@pytest.mark.parametrize(("last", "exit_code"), [(PROMOTED, 0), (BACK, 1)])
def test_waiting_has_the_outcome_as_its_exit_code(
    meshnode: Run, daemon: FakeDaemon, last: dict[str, Any], exit_code: int
) -> None:
    daemon.rollouts = [RUNNING, last]
    result = meshnode("rollout", "status", "digits", "--wait", "--json")
    assert result.exit_code == exit_code
    assert json.loads(result.stdout)["outcome"] == last["outcome"]


def test_waiting_ends_when_its_time_is_over_or_another_release_begins(
    meshnode: Run, daemon: FakeDaemon
) -> None:
    result = meshnode("rollout", "status", "digits", "--wait", "--timeout", "0.03s")
    assert result.exit_code == 1
    assert "has not ended after 0.03 s (running: all gates passed?[2J)" in result.stderr
    daemon.rollouts = [RUNNING, {**RUNNING, "begun_at": "2026-01-02T09:00:00Z"}]
    result = meshnode("rollout", "status", "digits", "--wait")
    assert result.exit_code == 1
    assert "another release of 'digits' took the place of this one" in result.stderr
    result = meshnode("rollout", "status", "digits", "--timeout", "1s")
    assert (result.exit_code, "--timeout goes with" in result.stderr) == (2, True)


def test_ctrl_c_ends_the_view_and_nothing_else(
    meshnode: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(self: RolloutDisplay, _: RolloutInfo) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(rollout_display.RolloutDisplay, "show", interrupted)
    assert meshnode("rollout", "status", "digits", "--watch").exit_code == 0
    assert meshnode("rollout", "status", "digits", "--watch", "--wait").exit_code == 130


def test_on_a_terminal_the_view_is_live(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=120, height=40)
    monkeypatch.setattr(rollout_display, "terminal", lambda: console)
    with RolloutDisplay() as display:
        display.show(info(RUNNING))
        display.show(info(KEEPING))
    shown = screen.getvalue()
    assert "running" in shown
    assert "keeping" in shown
    assert shown.rstrip().endswith("\x1b[?25h"), "the cursor is back"


def test_what_comes_of_an_order_is_told_and_a_refusal_is_an_error(
    meshnode: Run, daemon: FakeDaemon
) -> None:
    daemon.rollouts = [RUNNING, RUNNING, KEEPING]
    result = meshnode("rollout", "promote", "digits")
    assert result.exit_code == 0
    assert result.stdout.startswith("digits: keeping: ")
    refusal = {"kind": "refused", "reason": "promote by ada: no replica of version 2 is ready"}
    daemon.rollouts = [RUNNING, {**RUNNING, "decisions": [refusal]}]
    result = meshnode("rollout", "promote", "digits")
    assert result.exit_code != 0
    assert "no replica of version 2 is ready" in result.stderr


@pytest.mark.parametrize("verb", ["promote", "pause", "resume", "abort", "undo"])
def test_what_operators_ask_is_sent_with_their_reason(
    meshnode: Run, daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    monkeypatch.setattr(rollout, "ANSWERED_WITHIN_S", 0.0)
    result = meshnode("rollout", verb, "digits", "--reason", "looks good")
    assert result.exit_code == 0
    assert f"digits: asked to {verb}; what comes of it: meshnode rollout status" in result.stdout
    assert daemon.sent("POST", PATH) == {"verb": verb, "reason": "looks good"}
    result = meshnode("rollout", verb, "digits", "--json")
    assert json.loads(result.stdout)["phase"] == "running"


def test_promoting_may_wait_for_the_outcome(meshnode: Run, daemon: FakeDaemon) -> None:
    daemon.rollouts = [RUNNING, KEEPING, PROMOTED]
    result = meshnode("rollout", "promote", "digits", "--wait", "--watch")
    assert (result.exit_code, result.stdout.count("\n")) == (0, 2)


def test_without_a_release_the_error_says_what_to_do(meshnode: Run, daemon: FakeDaemon) -> None:
    daemon.rollouts = [{"error": "'digits' has no release in progress", "code": "not_found"}]
    result = meshnode("rollout", "status", "digits")
    assert (result.exit_code, "no release in progress" in result.stderr) == (2, True)
    daemon.models = [daemon.entry("digits")]
    result = meshnode("rollout", "abort", "digit")
    assert (result.exit_code, "did you mean 'digits'" in result.stderr) == (2, True)


def test_where_answers_disagree_is_shown_with_examples_and_what_they_have_in_common(
    meshnode: Run, daemon: FakeDaemon
) -> None:
    daemon.disagreements = {
        "model": "digits",
        "version": 3,
        "compared": 200,
        "disagreed": 4,
        "no_reference": 183,
        "reason": "127.0.0.1 is not allowed\x1b[2J",
        "clusters": [{"attribute": "device", "text": "device = cpu: 4 of 20\x1b[2J"}],
        "examples": [{"at": "2026-01-02T03:04:05Z", "answer": [3]}, {"at": "earlier"}],
        "silent": ["beta"],
    }
    result = meshnode("rollout", "disagreements", "digits", "--examples", "1")
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [
        "digits, version 3: 4 of 200 answers disagree (2 %)",
        "  183 had nothing to be compared with; the last one: 127.0.0.1 is not allowed?[2J",
        "  device = cpu: 4 of 20?[2J",
        "",
        "  at: 2026-01-02T03:04:05Z",
        "  answer: [3]",
    ]
    assert "beta did not answer" in result.stderr
    result = meshnode("rollout", "disagreements", "digits", "--json")
    assert json.loads(result.stdout)["disagreed"] == 4


def test_an_ab_test_tells_how_the_versions_differ_and_who_gets_the_new_one() -> None:
    known = {"baseline": 3.0, "candidate": 3.5, "baseline_count": 80, "candidate_count": 90}
    apart = {"difference": 0.5, "low": 0.2, "high": 0.8, "chance": 0.001, "is_significant": True}
    told = text_of(
        {
            **RUNNING,
            "strategy": "ab",
            "split_by": "header:x-group",
            "only": ["staff", "beta"],
            "significance": [{"metric": "stars", **known, **apart}, {"metric": "clicks"}],
        }
    )
    assert "requests with x-group: staff or beta go to version 2" in told
    assert "▶ staff or beta wait ─" in told
    (stars,) = [line for line in told.splitlines() if line.startswith("stars ")]
    assert " ".join(stars.split()) == "stars 3 (80) 3.5 (90) 0.5 0.2 to 0.8 0.001 they differ"
    assert "too few figures" in told
