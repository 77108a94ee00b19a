from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from meshnode import DeployProgress
from meshnode.cli.deploy_display import Display

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from typer.testing import Result

    from tests.unit.cli.conftest import FakeDaemon

    Run = Callable[..., Result]

ARTIFACTS = "/mesh/v1/artifacts"
SAID = {
    "publisher": "alpha", "publisher_id": "a" * 32, "published_at": "2026-01-31T12:00:00Z",
    "label": "20260131_120000", "metrics": {"accuracy": 0.97}, "note": "from the bench",
    "verified": True, "flaw": None,
}  # fmt: skip


def version(number: int = 1, **changes: Any) -> dict[str, Any]:
    return {
        "name": "digits", "version": number, "variant": "", "runtime": "onnx", "digest": "ab" * 32,
        "size_bytes": 3 << 20, "files": 1, "published": True, "deployed": False, "node": "alpha",
        "node_id": "a" * 32, "provenance": SAID, **changes,
    }  # fmt: skip


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "digits.onnx"
    path.write_bytes(b"onnx")
    return path


def test_publish_sends_what_is_said_and_says_how_to_serve_it(
    daemon: FakeDaemon, meshnode: Run, model: Path
) -> None:
    daemon.artifacts = [version()]
    result = meshnode(
        "publish", str(model), "--metric", "accuracy=0.97", "--metric", "loss=1e-3", "--note", "hi",
        "--version", "4", "--name", "digits",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    assert daemon.sent("POST", ARTIFACTS) == {
        "path": str(model), "name": "digits", "version": 4, "note": "hi",
        "metrics": {"accuracy": 0.97, "loss": 0.001},
    }  # fmt: skip
    assert "Serve it with: meshnode deploy digits" in result.stdout
    assert json.loads(meshnode("publish", str(model), "--json").stdout) == {
        "name": "digits",
        "versions": [version()],
    }


def test_publish_sends_each_form_as_a_variant_of_the_version_that_was_made(
    daemon: FakeDaemon, meshnode: Run, model: Path, tmp_path: Path
) -> None:
    daemon.artifacts = [version(4)]
    small = tmp_path / "small.onnx"
    small.write_bytes(b"small")
    result = meshnode("publish", str(model), "--variant", f"int8={small}", "--replace")
    assert result.exit_code == 0, result.stderr
    sent = [wish for method, path, wish in daemon.requests if (method, path) == ("POST", ARTIFACTS)]
    nothing = {"metrics": {}, "note": "", "replace": True}
    assert sent == [
        {"path": str(model), "name": None, "version": None, **nothing},
        {"path": str(small), "name": "digits", "version": 4, "variant": "int8", **nothing},
    ]
    missing = meshnode("publish", str(model), "--variant", "int8=missing.onnx")
    assert missing.exit_code == 2
    assert "'missing.onnx' does not exist" in missing.stderr
    assert "is not NAME=PATH" in meshnode("publish", str(model), "--variant", "int8").stderr
    assert len(daemon.requests) == len(sent), "nothing was published before it was checked"


@pytest.mark.parametrize("metric", ["accuracy", "=1", "accuracy=good", "accuracy=nan", "a=inf"])
def test_a_metric_is_a_name_with_a_number(
    daemon: FakeDaemon, meshnode: Run, model: Path, metric: str
) -> None:
    for command in ("publish", "deploy"):
        result = meshnode(command, str(model), "--metric", metric)
        assert result.exit_code == 2
        assert "is not NAME=NUMBER, such as accuracy=0.97" in result.stderr


def test_artifacts_are_listed_with_who_published_them(daemon: FakeDaemon, meshnode: Run) -> None:
    forged = {**SAID, "verified": False, "flaw": "nobody has signed it"}
    daemon.artifacts = [
        version(),
        version(2, deployed=True, variant="int8", provenance=forged),
        version(3, provenance=None),
    ]
    result = meshnode("artifacts")
    assert result.exit_code == 0
    first, second, third = result.stdout.splitlines()[1:4]
    for word in ("1 (20260131_120000)", "published", "3 MiB", "alpha", "accuracy=0.97"):
        assert word in first
    assert "published, deployed" in second
    assert "not verified: nobody has signed it" in second
    assert "int8" in second
    assert "accuracy" not in third
    assert json.loads(meshnode("artifacts", "digits", "--json").stdout) == daemon.artifacts
    missing = meshnode("artifacts", "other")
    assert missing.exit_code != 0
    assert "nothing is published or deployed under the name 'other'" in missing.stderr
    daemon.artifacts = []
    assert "meshnode publish PATH" in meshnode("artifacts").stdout


def test_unpublish_names_a_version(daemon: FakeDaemon, meshnode: Run) -> None:
    result = meshnode("unpublish", "digits", "3")
    assert result.stdout == "Version 3 of digits is no longer published.\n"
    assert ("DELETE", f"{ARTIFACTS}/digits/3") in [each[:2] for each in daemon.requests]
    assert json.loads(meshnode("unpublish", "digits", "3", "--json").stdout) == {
        "name": "digits",
        "version": 3,
    }
    assert meshnode("unpublish", "digits", "0").exit_code == 2


def test_a_name_that_is_no_path_deploys_what_was_published(
    daemon: FakeDaemon, meshnode: Run
) -> None:
    daemon.progress = [daemon.entry("digits", daemon.replica("alpha", "ready"), wanted=1)]
    result = meshnode("deploy", "digits", "--version", "2", "--json")
    assert result.exit_code == 0, result.stderr
    assert daemon.sent("POST", "/mesh/v1/deployments") == {
        "artifact": "digits",
        "version": 2,
        "replicas": 1,
        "on": [],
    }
    refused = meshnode("deploy", "digits", "--note", "x")
    assert refused.exit_code == 2
    assert "as it was published, without --name" in refused.stderr


def test_a_version_goes_with_a_name_only(daemon: FakeDaemon, meshnode: Run, model: Path) -> None:
    result = meshnode("deploy", str(model), "--version", "2")
    assert result.exit_code == 2
    assert "--version goes with the name of what was published" in result.stderr


def test_what_is_meant_as_a_file_is_not_taken_for_a_name(daemon: FakeDaemon, meshnode: Run) -> None:
    result = meshnode("deploy", "missing.onnx")
    assert result.exit_code == 2
    assert "'missing.onnx' does not exist" in result.stderr


def fetching(received_bytes: int) -> DeployProgress:
    return DeployProgress(
        stage="waiting",
        name="m",
        sent_bytes=received_bytes,
        total_bytes=1000,
        text=f"at {received_bytes}",
    )


def test_nodes_that_fetch_are_a_bar_on_a_terminal_and_few_lines_elsewhere(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with Display() as display:
        for received in range(1, 1000, 10):
            display.show(fetching(received))
        display.show(fetching(1000))
    assert capsys.readouterr().err.splitlines() == ["at 1", "at 1000"]
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    with Display() as display:
        display.show(DeployProgress(stage="waiting", name="m", text="m: 0 of 1 replicas ready"))
        display.show(fetching(500))
        display.show(DeployProgress(stage="ready", name="m", text="m: 1 of 1 replicas ready"))
    shown = capsys.readouterr().err
    assert "nodes fetch" in shown
    assert "500/1000 bytes" in shown or "0.5/1.0 kB" in shown


def test_models_show_how_far_a_fetch_is(daemon: FakeDaemon, meshnode: Run) -> None:
    fetch = {"received_bytes": 504_000_000, "total_bytes": 1_200_000_000, "bytes_s": 18_000_000}
    replica = {**daemon.replica("alpha", "fetching"), "fetch": fetch}
    daemon.models = [daemon.entry("digits", replica, wanted=1)]
    assert "42 % of 1.1 GiB, 17 MiB/s" in meshnode("models").stdout
    fetch["bytes_s"] = 0
    assert "42 % of 1.1 GiB\n" in meshnode("models").stdout, "no rate before there is one"


def test_publish_says_what_is_odd_and_how_to_serve_it_where_a_file_is_called_so(
    daemon: FakeDaemon,
    meshnode: Run,
    model: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    daemon.artifacts = [version()]
    daemon.warnings = ["the folder counts"]
    result = meshnode("publish", str(model))
    assert "note: the folder counts" in result.stderr
    monkeypatch.chdir(model.parent)
    assert "Serve it with: meshnode deploy digits\n" in meshnode("publish", str(model)).stdout
    (model.parent / "digits").mkdir()
    shown = meshnode("publish", str(model)).stdout
    assert "Serve it with: meshnode deploy digits --published\n" in shown


def test_what_was_published_is_deployed_though_a_folder_is_called_so_if_that_is_asked_for(
    daemon: FakeDaemon, meshnode: Run, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (model.parent / "digits").mkdir()
    monkeypatch.chdir(model.parent)
    daemon.progress = [daemon.entry("digits", daemon.replica("alpha", "ready"), wanted=1)]
    assert "note" not in meshnode("deploy", "digits").stderr
    assert "path" in daemon.sent("POST", "/mesh/v1/deployments")
    daemon.artifacts = [version()]
    assert "meshnode deploy digits --published" in meshnode("deploy", "digits").stderr
    daemon.requests.clear()
    result = meshnode("deploy", "digits", "--published")
    assert result.exit_code == 0, result.stderr
    assert daemon.sent("POST", "/mesh/v1/deployments")["artifact"] == "digits"
    assert meshnode("deploy", "a/b", "--published").exit_code != 0


@pytest.mark.parametrize("command", ["publish", "deploy"])
def test_what_is_out_of_range_is_said_in_the_options_words(
    daemon: FakeDaemon, meshnode: Run, model: Path, command: str
) -> None:
    result = meshnode(command, str(model), "--note", "x" * 501)
    assert result.exit_code == 2
    assert "--note has 501 characters; it may have 500" in result.stderr
    assert meshnode(command, str(model), "--version", str(10**18)).exit_code == 2
    assert all(method == "GET" for method, *_ in daemon.requests)


def test_a_url_is_not_published_and_the_error_says_what_to_do(
    daemon: FakeDaemon, meshnode: Run
) -> None:
    result = meshnode("publish", "https://models.example/net.onnx")
    assert result.exit_code != 0
    assert "is a URL" in result.stderr
    assert "meshnode deploy URL" in result.stderr
