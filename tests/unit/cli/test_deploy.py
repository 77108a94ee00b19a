from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from meshnode import DeployProgress
from meshnode.cli.deploy_display import Display

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from typer.testing import Result

    from tests.unit.cli.conftest import FakeDaemon

    Run = Callable[..., Result]

DEPLOYMENTS = "/mesh/v1/deployments"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "digits.onnx"
    path.write_bytes(b"onnx")
    return path


def test_deploy_waits_for_its_replicas_and_prints_the_entry(
    daemon: FakeDaemon, meshnode: Run, model: Path
) -> None:
    done = daemon.entry(
        "digits", daemon.replica("alpha", "ready"), daemon.replica("beta", "ready"), wanted=2
    )
    daemon.accepted = daemon.entry("digits", wanted=2)
    daemon.progress = [
        daemon.entry("digits", daemon.replica("alpha", "fetching"), wanted=2),
        daemon.entry(
            "digits", daemon.replica("alpha", "ready"), daemon.replica("beta", "loading"), wanted=2
        ),
        done,
    ]
    result = meshnode("deploy", str(model), "--replicas", "2", "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout) == done
    assert result.stderr.splitlines() == [
        "digits: 0 of 2 replicas ready",
        "digits: 0 of 2 replicas ready; alpha: fetching",
        "digits: 1 of 2 replicas ready; beta: loading",
        "digits: 2 of 2 replicas ready",
    ]
    assert daemon.sent("POST", DEPLOYMENTS) == {
        "path": str(model),
        "name": None,
        "replicas": 2,
        "on": [],
    }


def test_a_relative_path_reaches_the_daemon_as_absolute(
    daemon: FakeDaemon, meshnode: Run, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(model.parent)
    result = meshnode("deploy", model.name, "--name", "other", "--no-wait")
    assert result.exit_code == 0
    sent = daemon.sent("POST", DEPLOYMENTS)
    assert (sent["path"], sent["name"], sent["replicas"]) == (str(model), "other", 1)
    assert result.stdout.splitlines()[1].split() == ["digits", "1", "-", "no", "replica", "-"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--path", "/count-cars", "--task", "chat", "--task", "embedding:output=v", "--cache"),
         {"endpoint": "/count-cars", "tasks": ["chat", "embedding:output=v"], "cache": True}),
        (("--path", "", "--task", "", "--no-cache"), {"endpoint": "", "tasks": [], "cache": False}),
        ((), {}),
    ],
)  # fmt: skip
def test_how_a_model_is_offered_is_told_only_where_it_is_said(
    daemon: FakeDaemon,
    meshnode: Run,
    model: Path,
    options: tuple[str, ...],
    said: dict[str, object],
) -> None:
    daemon.accepted = daemon.entry("digits", daemon.replica("alpha", "ready"), wanted=1)
    result = meshnode("deploy", str(model), "--no-wait", *options)
    assert result.exit_code == 0
    sent = daemon.sent("POST", DEPLOYMENTS)
    assert {key: sent[key] for key in ("endpoint", "tasks", "cache") if key in sent} == said


@pytest.mark.parametrize(
    ("options", "replicas", "table"),
    [
        (("--max", "4", "--target", "concurrency=2"), 1, {"max": 4, "concurrency": 2.0}),
        (("--min", "0", "--max", "4", "--target", "qps=30", "--target", "cpu=0.7"), 1,
         {"min": 0, "max": 4, "qps": 30.0, "cpu": 0.7}),
        (("--min", "2", "--max", "4", "--target", "queue=1"), 2, {"min": 2, "max": 4, "queue": 1.0}),
        (("--min", "2", "--max", "4", "--replicas", "3", "--target", "qps=1"), 3,
         {"min": 2, "max": 4, "qps": 1.0}),
        ((), 1, None),
    ],
)  # fmt: skip
def test_autoscaling_is_told_with_the_number_to_begin_with(
    daemon: FakeDaemon,
    meshnode: Run,
    model: Path,
    options: tuple[str, ...],
    replicas: int,
    table: dict[str, float] | None,
) -> None:
    daemon.accepted = daemon.entry("digits", daemon.replica("alpha", "ready"), wanted=1)
    result = meshnode("deploy", str(model), "--no-wait", *options)
    assert result.exit_code == 0, result.stderr
    sent = daemon.sent("POST", DEPLOYMENTS)
    assert (sent["replicas"], sent.get("autoscaling")) == (replicas, table)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--min", "1"), "--min and --target go with --max"),
        (("--target", "qps=1"), "--min and --target go with --max"),
        (("--max", "4", "--target", "speed=2"), "write NAME=NUMBER with one of concurrency, qps"),
        (("--max", "4", "--target", "qps=fast"), "such as qps=2"),
        (("--max", "4"), "it has no target to follow"),
        (("--min", "5", "--max", "4", "--target", "qps=1"), "min is 5 and max is 4"),
        (("--max", "4", "--target", "cpu=70"), "autoscaling.cpu"),
    ],
)
def test_autoscaling_that_makes_no_sense_is_refused_before_anything_is_sent(
    daemon: FakeDaemon, meshnode: Run, model: Path, options: tuple[str, ...], said: str
) -> None:
    del daemon
    result = meshnode("deploy", str(model), *options)
    assert result.exit_code == 2
    assert said in " ".join(result.stderr.split())


def test_the_table_shows_how_a_model_is_offered(
    daemon: FakeDaemon, meshnode: Run, model: Path
) -> None:
    entry = daemon.entry("digits", daemon.replica("alpha", "ready"), wanted=1)
    daemon.accepted = {**entry, "endpoint": "/count-cars", "tasks": ["embedding:output=v"]}
    result = meshnode("deploy", str(model), "--no-wait", "--path", "/count-cars")
    assert "OFFERED AS" in result.stdout
    assert "/count-cars, embedding" in result.stdout
    daemon.accepted = entry
    assert "OFFERED AS" not in meshnode("deploy", str(model), "--no-wait").stdout


def test_on_takes_names_and_ids_and_asks_for_one_replica_each(
    daemon: FakeDaemon, meshnode: Run, model: Path
) -> None:
    meshnode("deploy", str(model), "--on", "beta", "--on", "a" * 32, "--on", "b" * 32, "--no-wait")
    sent = daemon.sent("POST", DEPLOYMENTS)
    assert (sent["on"], sent["replicas"]) == (["b" * 32, "a" * 32], 2)


def test_variants_follow_the_model_under_its_name_and_are_waited_for_together(
    daemon: FakeDaemon, meshnode: Run, model: Path, tmp_path: Path
) -> None:
    small = tmp_path / "small.onnx"
    small.write_bytes(b"onnx")
    daemon.accepted = daemon.entry("digits", daemon.replica("alpha", "ready"))
    daemon.progress = [daemon.accepted]
    result = meshnode("deploy", str(model), "--variant", f"int8={small}", "--json")
    assert result.exit_code == 0
    first, second = (body for _, path, body in daemon.requests if path == DEPLOYMENTS)
    assert (first["path"], "variant" in first) == (str(model), False)
    assert (second["path"], second["name"], second["variant"]) == (str(small), "digits", "int8")


@pytest.mark.parametrize("text", ["int8", "=x.onnx", "int8="])
def test_a_variant_without_its_name_or_path_is_refused(
    daemon: FakeDaemon, meshnode: Run, model: Path, text: str
) -> None:
    result = meshnode("deploy", str(model), "--variant", text)
    assert result.exit_code != 0
    assert "is not NAME=PATH; for example: --variant int8=small.onnx" in " ".join(
        result.stderr.split()
    )
    assert not [path for _, path, _ in daemon.requests if path == DEPLOYMENTS]


def test_a_readable_deployment_ends_with_its_table(
    daemon: FakeDaemon, meshnode: Run, model: Path
) -> None:
    daemon.progress = [daemon.entry("digits", daemon.replica("alpha", "ready"), wanted=1)]
    lines = meshnode("deploy", str(model)).stdout.splitlines()
    assert lines[1].split() == ["digits", "1", "alpha", "ready", "-"]


def test_a_failed_replica_ends_the_wait_with_its_reason(
    daemon: FakeDaemon, meshnode: Run, model: Path
) -> None:
    daemon.progress = [
        daemon.entry("digits", daemon.replica("beta", "failed", reason="bad opset"), wanted=1)
    ]
    result = meshnode("deploy", str(model), "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout) == {
        "error": "digits failed on beta: bad opset",
        "code": "peer",
    }
    assert result.stderr.endswith("error: digits failed on beta: bad opset\n")


def test_replicas_of_the_former_version_do_not_count(
    daemon: FakeDaemon, meshnode: Run, model: Path
) -> None:
    """The old version is ready, or failed, long before the new one is there."""
    old = [daemon.replica("alpha", "ready"), daemon.replica("beta", "failed")]
    daemon.accepted = daemon.entry("digits", *old, wanted=1) | {
        "versions": [1, 2],
        "deployed": [2],
    }
    done = daemon.entry("digits", *old, daemon.replica("alpha", "ready", version=2), wanted=1)
    daemon.progress = [daemon.accepted, done]
    result = meshnode("deploy", str(model), "--json")
    assert json.loads(result.stdout) == done


def test_a_timeout_says_what_is_missing(daemon: FakeDaemon, meshnode: Run, model: Path) -> None:
    slow = daemon.entry(
        "digits", daemon.replica("alpha", "ready"), daemon.replica("beta", "loading")
    )
    daemon.accepted = slow | {"wanted": 3, "missing": 1}
    daemon.progress = [daemon.accepted]
    result = meshnode("deploy", str(model), "--replicas", "3", "--timeout", "0.03s")
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1] == (
        "error: digits is not ready after 0.03 s (1 of 3 replicas ready; beta: loading; no node can "
        "take 1 more (none is left)); it goes on in the background, see: meshnode models"
    )


def test_it_does_not_wait_for_nodes_that_are_not_there(
    daemon: FakeDaemon, meshnode: Run, model: Path
) -> None:
    names = ("alpha", "beta", "gamma")
    loading = [daemon.replica(name, "loading") for name in names]
    ready = [daemon.replica(name, "ready") for name in names]
    daemon.accepted = daemon.entry("digits", *loading) | {"wanted": 5, "missing": 2}
    daemon.progress = [
        daemon.accepted,
        daemon.entry("digits", *ready) | {"wanted": 5, "missing": 2},
    ]
    result = meshnode("deploy", str(model), "--replicas", "5")
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1] == (
        "error: digits: 3 of 5 replicas are ready; 2 wait for nodes that can take them; the "
        "deployment stays (lower it with --replicas 3)"
    )


def test_nodes_that_cannot_take_a_replica_are_named_with_their_reason(
    daemon: FakeDaemon, meshnode: Run, model: Path
) -> None:
    ineligible = [{"node": "beta", "node_id": "b" * 32, "reason": "not enough memory"}]
    daemon.accepted |= {"missing": 1, "ineligible": ineligible}
    daemon.progress = [daemon.accepted]
    result = meshnode("deploy", str(model), "--timeout", "0.01s")
    assert "no node can take 1 more (beta: not enough memory)" in result.stderr


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--on", "bta"], "no node is called 'bta'; did you mean 'beta'?"),
        (["--on", "zzz"], "no node is called 'zzz'; see: meshnode nodes\n"),
        (["--on", "gamma"], "node 'gamma' is dead; name one that is alive"),
        (["--on", "beta", "--replicas", "2"], "2 replicas do not fit on the 1 nodes of --on"),
        (["--timeout", "soon"], "--timeout: 'soon' is not a duration"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_changes(
    daemon: FakeDaemon, meshnode: Run, model: Path, args: list[str], message: str
) -> None:
    result = meshnode("deploy", str(model), *args)
    assert result.exit_code == 2
    assert message in result.stderr
    assert all(method == "GET" for method, _, _ in daemon.requests)


def test_a_name_that_several_nodes_have_needs_an_id(
    daemon: FakeDaemon, meshnode: Run, model: Path
) -> None:
    daemon.nodes[1]["name"] = "alpha"
    result = meshnode("deploy", str(model), "--on", "alpha")
    assert result.exit_code == 2
    assert f"name one by its id: {'a' * 32}, {'b' * 32}" in result.stderr


def test_a_path_that_does_not_exist_is_refused(daemon: FakeDaemon, meshnode: Run) -> None:
    result = meshnode("deploy", "/does/not/exist")
    assert result.exit_code == 2
    assert result.stderr == (
        "error: '/does/not/exist' does not exist; name a model folder, a model file or a URL\n"
    )


@pytest.mark.parametrize("count", ["0", "-1", "two"])
def test_a_number_of_replicas_below_one_is_refused(
    daemon: FakeDaemon, meshnode: Run, model: Path, count: str
) -> None:
    result = meshnode("deploy", str(model), f"--replicas={count}")
    assert result.exit_code == 2
    assert daemon.requests == []


def test_undeploy_says_that_it_is_done(daemon: FakeDaemon, meshnode: Run) -> None:
    result = meshnode("undeploy", "digits")
    assert (result.exit_code, result.stdout) == (0, "digits is no longer deployed.\n")
    assert ("DELETE", f"{DEPLOYMENTS}/digits", None) in daemon.requests


def test_undeploy_as_json(daemon: FakeDaemon, meshnode: Run) -> None:
    assert json.loads(meshnode("undeploy", "digits", "--json").stdout) == {"name": "digits"}


def test_an_unknown_model_suggests_the_nearest(daemon: FakeDaemon, meshnode: Run) -> None:
    result = meshnode("undeploy", "digit")
    assert result.exit_code == 2
    assert result.stderr == (
        "error: no node of this mesh has a model 'digit'; did you mean 'digits'?\n"
    )


def test_ctrl_c_while_waiting_exits_with_130_and_no_traceback(
    daemon: FakeDaemon, meshnode: Run, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_: float) -> None:
        raise KeyboardInterrupt

    daemon.progress = [daemon.accepted]
    monkeypatch.setattr("meshnode.client.mesh.time.sleep", interrupted)
    result = meshnode("deploy", str(model))
    assert result.exit_code == 130
    assert "Traceback" not in result.output


def test_on_a_terminal_the_wait_is_a_spinner(
    daemon: FakeDaemon, meshnode: Run, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    daemon.progress = [
        daemon.accepted,
        daemon.entry("digits", daemon.replica("alpha", "ready"), wanted=1),
    ]
    result = meshnode("deploy", str(model))
    assert result.exit_code == 0
    assert "\x1b[?25l" in result.stderr  # the cursor is hidden while it spins
    assert result.stderr.rindex("\x1b[?25h") > result.stderr.rindex("\x1b[?25l")


def test_a_deployment_that_is_withdrawn_meanwhile_ends_the_wait(
    daemon: FakeDaemon, meshnode: Run, model: Path
) -> None:
    daemon.accepted = daemon.entry("digits", wanted=1)
    unloading = daemon.entry("digits", daemon.replica("alpha", "unloading"))
    del unloading["deployed"], unloading["revision"]
    for seen in (None, unloading):
        daemon.progress = [daemon.accepted, seen]
        result = meshnode("deploy", str(model), "--json")
        assert result.exit_code == 1
        assert result.stderr.endswith("error: digits was undeployed before it was ready\n")


def test_a_later_deployment_of_the_same_name_ends_the_wait_for_the_earlier(
    daemon: FakeDaemon, meshnode: Run, model: Path
) -> None:
    daemon.accepted = daemon.entry("digits", wanted=1)
    daemon.progress = [daemon.accepted | {"revision": "2.0"}]
    result = meshnode("deploy", str(model), "--json")
    assert result.exit_code == 1
    assert "was deployed again" in result.stderr


def test_replicas_with_other_files_under_the_same_version_do_not_count(
    daemon: FakeDaemon, meshnode: Run, model: Path
) -> None:
    """Neither the old files' success nor their failure is the new ones'."""
    stale = [
        daemon.replica("alpha", "ready") | {"current": False},
        daemon.replica("beta", "failed", reason="old") | {"current": False},
    ]
    daemon.accepted = daemon.entry("digits", *stale, wanted=1)
    done = daemon.entry("digits", daemon.replica("alpha", "ready"), stale[1], wanted=1)
    daemon.progress = [daemon.accepted, done]
    result = meshnode("deploy", str(model), "--json")
    assert json.loads(result.stdout) == done


def uploading(sent_bytes: int) -> DeployProgress:
    return DeployProgress(
        stage="uploading",
        sent_bytes=sent_bytes,
        total_bytes=1000,
        text=f"{sent_bytes} of 1000 bytes uploaded",
    )


def test_an_upload_is_a_few_lines_where_there_is_no_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with Display() as display:
        for sent_bytes in range(0, 1001, 10):
            display.show(uploading(sent_bytes))
    assert capsys.readouterr().err.splitlines() == [
        "0 of 1000 bytes uploaded",
        "1000 of 1000 bytes uploaded",
    ]


def test_on_a_terminal_an_upload_is_a_bar_and_then_a_spinner(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    with Display() as display:
        display.show(uploading(0))
        display.show(uploading(500))
        display.show(DeployProgress(stage="waiting", name="m", text="m: 0 of 1 replicas ready"))
        display.show(DeployProgress(stage="ready", name="m", text="m: 1 of 1 replicas ready"))
    shown = capsys.readouterr().err
    assert "500/1000 bytes" in shown or "0.5/1.0 kB" in shown
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l")  # the cursor is back


def test_a_strategy_and_its_steps_are_sent_as_the_table_release(
    meshnode: Run, daemon: FakeDaemon, model: Path
) -> None:
    result = meshnode(
        "deploy", str(model), "--strategy", "canary", "--steps", "5,20.5", "--no-wait"
    )
    assert result.exit_code == 0
    assert daemon.sent("POST", DEPLOYMENTS)["release"] == {
        "strategy": "canary",
        "steps": [5, 20.5],
    }


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--steps", "5"), "--steps goes with --strategy canary"),
        (("--strategy", "canary", "--steps", "5;20"), "write percents, such as 5,20,50"),
        (("--strategy", "cannary"), "did you mean 'canary'?"),
        (("--strategy", "ab", "--steps", "5"), "this goes with the strategy canary"),
    ],
)
def test_a_release_that_cannot_be_is_refused_before_anything_is_sent(
    meshnode: Run, daemon: FakeDaemon, model: Path, options: tuple[str, ...], said: str
) -> None:
    result = meshnode("deploy", str(model), *options)
    assert (result.exit_code, said in result.stderr) == (2, True), result.stderr
    assert daemon.requests == []
