from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
from typer.testing import Result

if TYPE_CHECKING:
    from tests.unit.cli.conftest import FakeDaemon

Run = Callable[..., Result]


def test_nodes_are_a_table_with_every_id_whole(daemon: FakeDaemon, meshnode: Run) -> None:
    result = meshnode("nodes")
    assert result.exit_code == 0
    header, alpha, beta, gamma = [line.split() for line in result.stdout.splitlines()]
    assert header == ["NAME", "STATE", "REGION", "ZONE", "RTT", "GATEWAY", "MESH", "ID"]
    assert alpha[:5] == ["alpha", "alive", "eu-west", "-", "here"]
    assert alpha[5:] == ["http://127.0.0.1:8470", "192.0.2.1:8471", "a" * 32]
    assert beta == (
        ["beta", "alive", "us-east", "rack-1", "12.3", "ms", "-", "192.0.2.2:8471", "b" * 32]
    )
    assert gamma == ["gamma", "dead", "ap-south", "-", "-", "-", "192.0.2.3:8471", "c" * 32]


def test_an_estimated_round_trip_is_marked(daemon: FakeDaemon, meshnode: Run) -> None:
    daemon.nodes[1] |= {"rtt_ms": 84.23, "rtt_estimated": True}
    daemon.nodes[2] |= {"rtt_ms": 0.84, "rtt_estimated": True}
    _, _, beta, gamma = [line.split() for line in meshnode("nodes").stdout.splitlines()]
    assert beta[4:6] == ["~84", "ms"]
    assert gamma[4:6] == ["~0.8", "ms"]


@pytest.mark.parametrize(
    ("rtt_ms", "is_estimated", "told"),
    [
        (12.34, False, "alpha to gamma 1: 12.3 ms"),
        (84.23, True, "alpha to gamma 1: ~84 ms"),
        (
            None,
            False,
            "alpha to gamma 1: not known yet: the nodes have to probe others for a while",
        ),
    ],
)
def test_the_round_trip_between_two_nodes_is_told(
    daemon: FakeDaemon, meshnode: Run, rtt_ms: float | None, is_estimated: bool, told: str
) -> None:
    ends = {"from": {"id": "a" * 32, "name": "alpha"}, "to": {"id": "c" * 32, "name": "gamma 1"}}
    daemon.rtt = {**ends, "rtt_ms": rtt_ms, "rtt_estimated": is_estimated}
    assert meshnode("rtt", "alpha", "gamma 1").stdout == f"{told}\n"
    assert daemon.query == {"from": "alpha", "to": "gamma 1"}
    assert json.loads(meshnode("rtt", "alpha", "gamma 1", "--json").stdout) == daemon.rtt


@pytest.mark.parametrize("command", ["nodes", "models"])
def test_json_is_one_line_with_exactly_what_the_daemon_says(
    daemon: FakeDaemon, meshnode: Run, command: str
) -> None:
    result = meshnode(command, "--json")
    assert result.stdout.count("\n") == 1
    assert json.loads(result.stdout) == getattr(daemon, command)


def test_models_have_a_line_for_each_replica(daemon: FakeDaemon, meshnode: Run) -> None:
    daemon.models[0]["replicas"][1] |= {"state": "failed", "reason": "not enough memory"}
    lines = [line.split(maxsplit=4) for line in meshnode("models").stdout.splitlines()]
    assert lines == [
        ["MODEL", "VERSION", "NODE", "STATE", "REASON"],
        ["digits", "1", "alpha", "ready", "-"],
        ["digits", "1", "beta", "failed", "not enough memory"],
    ]


def test_models_say_what_executes_them_and_how_requests_are_joined(
    daemon: FakeDaemon, meshnode: Run
) -> None:
    daemon.models[0]["replicas"][0] |= {
        "runtime": "onnx", "variant": "int8", "device": "cpu", "instances": 2, "batching": "adaptive",
    }  # fmt: skip
    head, line, other = meshnode("models").stdout.splitlines()
    assert head.split() == [
        "MODEL", "VERSION", "NODE", "STATE", "RUNS", "ON", "BATCHING", "REASON",
    ]  # fmt: skip
    assert "1 int8" in line
    assert "onnx on cpu, 2 instances" in line
    assert "adaptive" in line
    assert other.split() == ["digits", "1", "beta", "loading", "-", "-", "-"]


def test_models_show_label_metrics_and_service_time(daemon: FakeDaemon, meshnode: Run) -> None:
    said = {"label": "20260131_120000", "metrics": {"accuracy": 0.97}}
    profile = [[1, 0.1234], [8, 0.5], [64, 2.5]]
    daemon.models[0]["replicas"][0] |= {"provenance": said, "profile": profile}
    title, first = meshnode("models").stdout.splitlines()[:2]
    assert "METRICS" in title
    for words in ("1 (20260131_120000)", "accuracy=0.97", "0.123 ms, 64 rows 2.5 ms"):
        assert words in first
    shown = meshnode("node", "show", "alpha").stdout
    assert "digits version 1: ready, 0.123 ms, 64 rows 2.5 ms" in shown


def test_models_say_how_often_a_process_had_to_be_started_again(
    daemon: FakeDaemon, meshnode: Run
) -> None:
    daemon.models[0]["replicas"][0] |= {"restarted": "restarted twice, last: exit code 7"}
    assert "restarted twice, last: exit code 7" in meshnode("models").stdout.splitlines()[1]


def test_a_model_without_replicas_is_listed(daemon: FakeDaemon, meshnode: Run) -> None:
    daemon.models = [{"name": "m", "versions": [1, 2], "replicas": [], "wanted": 1}]
    assert meshnode("models").stdout.splitlines()[1].split() == [
        "m",
        "1,",
        "2",
        "-",
        "no",
        "replica",
        "-",
    ]


def test_a_mesh_without_models_says_how_to_deploy_one(daemon: FakeDaemon, meshnode: Run) -> None:
    daemon.models = []
    assert meshnode("models").stdout == "No models yet; deploy one with: meshnode deploy PATH\n"


def test_status_shows_this_node(daemon: FakeDaemon, meshnode: Run) -> None:
    rows = [line.split(maxsplit=1) for line in meshnode("status").stdout.splitlines()[1:]]
    shown = {key: value.strip() for key, value in rows if key != "mesh"}
    assert shown["name"] == "alpha"
    assert shown["gateway"] == "http://127.0.0.1:8470"
    assert shown["members"] == "2"


def test_status_as_json_has_the_documented_keys(daemon: FakeDaemon, meshnode: Run) -> None:
    assert set(json.loads(meshnode("status", "--json").stdout)) == {
        "id", "name", "mesh", "http", "mesh_address", "state", "version", "members"
    }  # fmt: skip


def test_text_from_other_nodes_cannot_control_the_terminal(
    daemon: FakeDaemon, meshnode: Run
) -> None:
    daemon.models[0]["replicas"][1]["reason"] = "\x1b]0;owned\x07\x1b[2J[red]x\r\nnext"
    shown = meshnode("models").stdout
    assert "?]0;owned??[2J[red]x??next" in shown
    assert "\x1b" not in shown


@pytest.mark.parametrize(
    "command",
    [
        ["nodes"],
        ["models"],
        ["status"],
        ["rtt", "alpha", "beta"],
        ["invite"],
        ["undeploy", "digits"],
        ["infer", "digits"],
        ["deploy", "."],
    ],
)
def test_without_a_daemon_every_command_says_what_to_type(
    meshnode: Run, data_dir: object, command: list[str]
) -> None:
    result = meshnode(*command)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr == (
        f"error: no meshnode daemon is running on {data_dir}; "
        f"start one with: meshnode join --data-dir {data_dir}\n"
    )


def test_the_data_folder_is_accepted_after_the_subcommand(
    daemon: FakeDaemon, meshnode: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MESHNODE_DATA_DIR", "/does/not/exist")
    assert meshnode("nodes", "--json", "--data-dir", str(daemon.data_dir)).exit_code == 0


def test_an_answer_that_is_an_error_is_printed_with_exit_code_1(
    daemon: FakeDaemon, meshnode: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    from aiohttp import web

    failing = web.json_response({"error": "the node is leaving"}, status=503)
    monkeypatch.setattr(daemon, "_respond", lambda *_: failing)
    result = meshnode("nodes")
    assert (result.exit_code, result.stderr) == (1, "error: the node is leaving\n")


@pytest.mark.parametrize(
    ("ttl", "ttl_s"), [("10m", 600), ("24h", 86_400), ("7d", 604_800), ("90s", 90)]
)
def test_an_invite_is_the_line_to_type(
    daemon: FakeDaemon, meshnode: Run, ttl: str, ttl_s: int
) -> None:
    result = meshnode("invite", "--ttl", ttl)
    assert result.stdout == "mesh1abc\n"  # for: meshnode join "$(meshnode invite)"
    assert "type:\n\n  meshnode join INVITE\n" in result.stderr
    assert "2026-01-02T03:04:05Z" in result.stderr
    assert daemon.sent("POST", "/mesh/v1/invites")["ttl_s"] == ttl_s


def test_an_invite_as_json(daemon: FakeDaemon, meshnode: Run) -> None:
    assert json.loads(meshnode("invite", "--json").stdout) == {
        "invite": "mesh1abc",
        "expires_at": "2026-01-02T03:04:05Z",
        "addresses": ["192.0.2.1:8471"],
    }


@pytest.mark.parametrize(
    "ttl", ["", "1", "h", "-1h", "0s", "1w", "1e3s", "99999999d", "0.2s", "31d", "١s"]
)
def test_a_bad_duration_is_refused_with_the_form_to_use(
    daemon: FakeDaemon, meshnode: Run, ttl: str
) -> None:
    result = meshnode("invite", f"--ttl={ttl}")
    assert result.exit_code == 2
    assert result.stderr.startswith("error: --ttl:")
    assert daemon.requests == []
