"""Deployments as flows: what is sent, in which order, and what happens when a gateway is lost."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from meshnode.client.calls import Blocking, Call, Pause, Reply
from meshnode.client.deploying import Wish, deploy
from meshnode.client.uploading import find_files
from meshnode.errors import (
    ConfigError,
    DeadlineExceeded,
    Forbidden,
    GatewayUnavailable,
    InvalidRequest,
    MeshError,
    ModelError,
    NotFound,
    PeerError,
    TransferFailed,
)
from meshnode.models.repository.sources import Source

if TYPE_CHECKING:
    from pathlib import Path

    from meshnode.client.results import DeployProgress

ENTRY = {"name": "m", "versions": [1], "deployed": [1], "wanted": 1, "revision": "1.0"}


def entry(*states: str, **more: Any) -> dict[str, Any]:
    replicas = [
        {"node": "beta", "version": 1, "state": state, "reason": "", "current": True}
        for state in states
    ]
    return {**ENTRY, "replicas": replicas, **more}


@dataclass
class FakeGateways:
    """What gateways do with an upload, one list of received bytes per upload.

    Attributes:
        fail: By the number of the call, what happens instead of an answer.
        lose: By the number of the call, what happens after it was carried out.
        accepted: The entry of what is deployed.
    """

    piece_bytes: int = 4
    fail: dict[int, MeshError] = field(default_factory=dict)
    lose: dict[int, MeshError] = field(default_factory=dict)
    looks: list[dict[str, Any]] = field(default_factory=lambda: [entry("ready")])
    calls: list[Call] = field(default_factory=list)
    uploads: list[list[bytearray]] = field(default_factory=list)
    deployed: list[dict[str, Any]] = field(default_factory=list)
    begun: int = 0
    accepted: dict[str, Any] = field(default_factory=entry)

    def answer(self, call: Call) -> Reply:
        self.calls.append(call)
        number = len(self.calls)
        if number in self.fail:
            raise self.fail[number]
        document = self._carry_out(call)
        if number in self.lose:
            raise self.lose[number]
        gateway = self.begun - 1 if call.only is None else call.only
        return Reply(200, {}, json.dumps(document).encode(), gateway, "http://a")

    def _carry_out(self, call: Call) -> Any:
        parts = call.message(1.0).parts
        match call.method, call.path.split("/")[3:]:
            case "POST", ["uploads"]:
                files = json.loads(bytes(parts[0]))["files"]
                self.files = files
                self.uploads.append([bytearray() for _ in files])
                self.begun += 1
                return {"id": f"u{self.begun - 1}", "piece_bytes": self.piece_bytes}
            case "PUT", ["uploads", upload, place]:
                index, _, query = place.partition("?offset=")
                received = self.uploads[int(upload[1:])][int(index)]
                if int(query) != len(received):
                    raise InvalidRequest(f"wanted offset={len(received)}")
                received += bytes(parts[0])
                return {"received_bytes": len(received)}
            case "GET", ["uploads", upload]:
                found = self.uploads[int(upload[1:])]
                return {"files": [{"received_bytes": len(each)} for each in found]}
            case "DELETE", ["uploads", upload]:
                return {"id": upload}
            case "POST", ["deployments"]:
                self.deployed.append(json.loads(bytes(parts[0])))
                return self.accepted
            case "GET", ["models", "m"]:
                return self.looks.pop(0) if len(self.looks) > 1 else self.looks[0]
        raise AssertionError(call.path)

    def run(
        self, wish: Wish, *, local: bool = False, gateways: int = 2, wait_s: float | None = 5
    ) -> Any:
        self.seen: list[DeployProgress] = []
        self.now = 0.0
        flow = deploy(
            wish,
            local=local,
            gateways=gateways,
            progress=self.seen.append,
            clock=lambda: self.now,
            wait_s=wait_s,
        )
        try:
            step = next(flow)
            while True:
                try:
                    result: object = None
                    if isinstance(step, Call):
                        result = self.answer(step)
                    elif isinstance(step, Pause):
                        self.now += step.seconds
                    else:
                        assert isinstance(step, Blocking)
                        result = step.function()
                except MeshError as error:
                    step = flow.throw(error)
                else:
                    step = flow.send(result)
        except StopIteration as end:
            return end.value

    @property
    def methods(self) -> list[str]:
        return [call.method for call in self.calls]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "m"
    (folder / "1" / "data").mkdir(parents=True)
    (folder / "1" / "model.onnx").write_bytes(b"0123456789")
    (folder / "1" / "data" / "w").write_bytes(b"abcd")
    (folder / "1" / "empty").write_bytes(b"")
    (folder / "1" / ".DS_Store").write_bytes(b"rubbish")
    (folder / "config.pbtxt").write_text("max_batch_size: 0\n")
    return folder


def test_files_go_up_in_pieces_and_then_the_deployment_names_the_upload(model: Path) -> None:
    mesh = FakeGateways()
    result = mesh.run(Wish(str(model), "m", 2, ("beta",)))
    assert result == entry("ready")
    assert [file["path"] for file in mesh.files] == [
        "m/1/data/w",
        "m/1/empty",
        "m/1/model.onnx",
        "m/config.pbtxt",
    ]
    assert [bytes(each) for each in mesh.uploads[0]][:3] == [b"abcd", b"", b"0123456789"]
    assert mesh.deployed == [{"upload": "u0", "name": "m", "replicas": 2, "on": ["beta"]}]
    puts = [call for call in mesh.calls if call.method == "PUT"]
    assert all(call.only == 0 and call.repeatable for call in puts)
    (post,) = [call for call in mesh.calls if call.path.endswith("/deployments")]
    assert (post.only, post.repeatable) == (0, False)


def test_progress_counts_the_bytes_and_then_the_replicas(model: Path) -> None:
    mesh = FakeGateways(looks=[entry("loading"), entry("ready")])
    mesh.run(Wish(str(model)))
    total = sum(file["size_bytes"] for file in mesh.files)
    sent = [each.sent_bytes for each in mesh.seen if each.stage == "uploading"]
    assert sent == sorted(sent)
    assert (sent[0], sent[-1], mesh.seen[0].total_bytes) == (0, total, total)
    assert [(each.stage, each.text) for each in mesh.seen[len(sent) :]] == [
        ("waiting", "m: 0 of 1 replicas ready"),
        ("waiting", "m: 0 of 1 replicas ready; beta: loading"),
        ("ready", "m: 1 of 1 replicas ready"),
    ]


def test_a_piece_whose_answer_was_lost_is_not_sent_a_second_time(model: Path) -> None:
    """The transport repeats it, the gateway refuses the repetition, and says what it has."""
    mesh = FakeGateways(lose={3: InvalidRequest("wanted offset=4")})
    mesh.run(Wish(str(model)))
    assert [bytes(each) for each in mesh.uploads[0]][:3] == [b"abcd", b"", b"0123456789"]


def test_a_refusal_that_no_resumption_mends_ends_the_deployment(model: Path) -> None:
    mesh = FakeGateways(fail={3: InvalidRequest("the disk is not what it was")})
    with pytest.raises(InvalidRequest, match="not what it was"):
        mesh.run(Wish(str(model)))


@pytest.mark.parametrize("kind", [GatewayUnavailable, DeadlineExceeded, NotFound])
def test_when_the_gateway_is_lost_the_upload_begins_again_on_another(
    model: Path, kind: type[MeshError]
) -> None:
    mesh = FakeGateways(fail={4: kind("it is gone")})
    mesh.run(Wish(str(model)))
    assert mesh.begun == 2
    assert bytes(mesh.uploads[1][2]) == b"0123456789"
    assert mesh.deployed[0]["upload"] == "u1"
    (post,) = [call for call in mesh.calls if call.path.endswith("/deployments")]
    assert post.only == 1


def test_it_begins_as_often_as_there_are_gateways(model: Path) -> None:
    mesh = FakeGateways(fail={number: GatewayUnavailable("gone") for number in (2, 4, 6, 8)})
    with pytest.raises(GatewayUnavailable):
        mesh.run(Wish(str(model)), gateways=3)
    assert mesh.begun == 3


def test_a_deployment_that_is_refused_leaves_no_upload_behind(model: Path) -> None:
    mesh = FakeGateways(piece_bytes=1000, fail={5: ModelError("no graph"), 6: PeerError("gone")})
    with pytest.raises(ModelError, match="no graph"):
        mesh.run(Wish(str(model)))
    assert mesh.methods[-2:] == ["POST", "DELETE"]


@pytest.mark.parametrize(
    "error", [Forbidden("the key lacks the scope deploy"), TransferFailed("x")]
)
def test_other_errors_are_the_callers(model: Path, error: MeshError) -> None:
    mesh = FakeGateways(fail={1: error})
    with pytest.raises(type(error)):
        mesh.run(Wish(str(model)))


def test_a_gateway_that_forgets_bytes_is_a_peer_error(model: Path) -> None:
    mesh = FakeGateways()
    mesh._carry_out = lambda call: (  # type: ignore[method-assign]
        {"received_bytes": 10**6} if call.method == "PUT" else FakeGateways._carry_out(mesh, call)
    )
    with pytest.raises(PeerError, match="lost a part"):
        mesh.run(Wish(str(model)))


def test_a_file_that_changes_meanwhile_is_noticed(model: Path) -> None:
    mesh = FakeGateways()
    grow = mesh._carry_out

    def shrink(call: Call) -> Any:
        (model / "1" / "model.onnx").write_bytes(b"0")
        return grow(call)

    mesh._carry_out = shrink  # type: ignore[method-assign]
    with pytest.raises(ConfigError, match="changed while it was being uploaded"):
        mesh.run(Wish(str(model)))


def test_a_local_daemon_is_told_the_path(model: Path) -> None:
    mesh = FakeGateways()
    mesh.run(Wish(str(model)), local=True)
    assert mesh.deployed == [{"path": str(model), "name": None, "replicas": 1, "on": []}]
    assert mesh.methods == ["POST", "GET"]


def test_without_waiting_the_entry_is_returned_as_it_is(model: Path) -> None:
    mesh = FakeGateways()
    assert mesh.run(Wish(str(model)), local=True, wait_s=None) == entry()


@pytest.mark.parametrize(
    ("looks", "said"),
    [
        ([entry("failed")], "m failed on beta: no reason given"),
        ([{**entry(), "revision": "2.0"}], "was deployed again"),
        ([{"name": "m", "versions": [], "replicas": []}], "was undeployed"),
        ([entry("loading")], r"not ready after 5 s \(0 of 1 replicas ready; beta: loading\)"),
    ],
)
def test_what_ends_the_wait_is_explained(
    model: Path, looks: list[dict[str, Any]], said: str
) -> None:
    with pytest.raises(PeerError, match=said):
        FakeGateways(looks=looks).run(Wish(str(model)), local=True)


@pytest.mark.parametrize("local", [False, True])
def test_what_is_not_there_is_said_before_anything_is_sent(tmp_path: Path, local: bool) -> None:
    mesh = FakeGateways()
    with pytest.raises(ConfigError, match="does not exist"):
        mesh.run(Wish(str(tmp_path / "none")), local=local)
    assert mesh.calls == []


def test_what_is_no_model_is_refused_as_it_would_be_on_a_node(tmp_path: Path) -> None:
    (tmp_path / "bare.txt").write_bytes(b"")
    with pytest.raises(ModelError):
        find_files(str(tmp_path / "bare.txt"), None)
    for name in ("a.onnx", "b.onnx"):
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(ModelError, match="several models"):
        find_files(str(tmp_path), None)


def test_a_bare_file_brings_the_data_that_lies_beside_it(tmp_path: Path) -> None:
    for name in ("a.onnx", "a.onnx.data", "b.onnx"):
        (tmp_path / name).write_bytes(b"x")
    found = find_files(str(tmp_path / "a.onnx"), None)
    assert [(file.path, file.size_bytes) for file in found] == [("a.onnx", 1), ("a.onnx.data", 1)]


def test_a_folder_goes_up_as_it_lies_so_that_the_other_side_finds_the_same(tmp_path: Path) -> None:
    """Labels of versions, files that the configuration names, metadata: all in their places."""
    warm_up = """model_warmup { name: "w"
      inputs { key: "x" value { data_type: TYPE_FP32 dims: 1 input_data_file: "w.raw" } } }"""
    files = {
        "config.pbtxt": warm_up,
        "metadata.json": '{"accuracy": 1}',
        "20260131_120000/model.onnx": "m",
        "warmup/w.raw": "1234",
        "warmup/other": "x",
        "old/model.onnx": "o",
    }
    for name, text in files.items():
        (tmp_path / "net" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "net" / name).write_text(text)
    found = [file.path for file in find_files(str(tmp_path / "other" / ".." / "net"), None)]
    assert found == [
        "net/20260131_120000/model.onnx",
        "net/config.pbtxt",
        "net/metadata.json",
        "net/warmup/w.raw",
    ]


def test_a_python_model_without_versions_and_a_bare_files_metadata_go_up(tmp_path: Path) -> None:
    (tmp_path / "py").mkdir()
    for name in ("pipeline.py", "types.py", ".env"):
        (tmp_path / "py" / name).write_text("def pipe(x): ...")
    found = [file.path for file in find_files(str(tmp_path / "py"), None)]
    assert found == ["py/pipeline.py", "py/types.py"]
    (tmp_path / "net.tflite").touch()
    (tmp_path / "net.metadata.json").write_text("{}")
    found = [file.path for file in find_files(str(tmp_path / "net.tflite"), None)]
    assert found == ["net.metadata.json", "net.tflite"]


@pytest.mark.parametrize("kept", [True, False])
def test_a_url_is_fetched_here_and_then_deployed_like_a_path(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: bool
) -> None:
    def fetched(source: Source, *, may_be_old: bool) -> Path:
        assert (source.url, may_be_old) == ("s3://bucket/m", False)
        source.progress(1, 2)
        copies.append(source.folder)
        return model

    copies: list[Path] = []
    monkeypatch.setattr(Source, "refresh", fetched)
    mesh = FakeGateways()
    wish = Wish("s3://bucket/m", copies=str(tmp_path / "copies") if kept else "")
    assert mesh.run(wish) == entry("ready")
    assert mesh.seen[0].stage == "fetching"
    assert mesh.seen[0].text == "1 of 2 bytes fetched"
    assert len(mesh.uploads) == 1
    assert (copies == [tmp_path / "copies"]) == kept
    assert kept or not copies[0].exists()


def served_by(node: str, state: str = "ready", **more: Any) -> dict[str, Any]:
    return {"node": node, "version": 1, "state": state, "reason": "", "current": True, **more}


def test_a_replica_on_a_node_that_is_no_longer_meant_does_not_make_a_deployment_ready(
    model: Path,
) -> None:
    """It was on beta, and is to be on gamma, whose disk is full."""
    replicas = [served_by("beta", placed=False), served_by("gamma", "failed", reason="disk full")]
    mesh = FakeGateways(looks=[entry(replicas=replicas)])
    with pytest.raises(PeerError, match="m failed on gamma: disk full"):
        mesh.run(Wish(str(model)), local=True)


def test_what_the_gateway_had_to_say_of_the_files_is_returned_with_the_entry(model: Path) -> None:
    mesh = FakeGateways()
    answer = mesh._carry_out

    def odd(call: Call) -> Any:
        found = answer(call)
        return {**found, "warnings": ["the folder counts"]} if call.method == "POST" else found

    mesh._carry_out = odd  # type: ignore[method-assign]
    assert mesh.run(Wish(str(model)), local=True)["warnings"] == ["the folder counts"]


def test_a_failure_on_a_node_that_is_no_longer_meant_does_not_end_the_wait(model: Path) -> None:
    replicas = [served_by("beta", "failed", placed=False, failure="x"), served_by("gamma")]
    mesh = FakeGateways(looks=[entry(replicas=replicas)])
    assert mesh.run(Wish(str(model)), local=True)["name"] == "m"


def test_another_form_than_the_one_that_suits_the_node_is_waited_for_and_then_counts(
    model: Path,
) -> None:
    other = served_by("beta", current=False, reason="it serves the files 12 while new ones load")
    mesh = FakeGateways(looks=[entry(replicas=[other]), entry("ready")])
    mesh.run(Wish(str(model)), local=True)
    assert [each.text for each in mesh.seen[1:]] == [
        "m: 0 of 1 replicas ready; beta: it serves the files 12 while new ones load",
        "m: 1 of 1 replicas ready",
    ]


def test_files_that_could_not_replace_others_are_a_failure_though_those_serve_on(
    model: Path,
) -> None:
    replicas = [served_by("beta", current=False, failure="no such operator")]
    with pytest.raises(PeerError, match="m failed on beta: no such operator"):
        FakeGateways(looks=[entry(replicas=replicas)]).run(Wish(str(model)), local=True)


def cannot(*lasting: bool) -> list[dict[str, Any]]:
    return [
        {"node": f"n{number}", "reason": "no code", "lasting": each}
        for number, each in enumerate(lasting)
    ]


def test_what_no_node_can_take_is_not_waited_for(model: Path) -> None:
    looks = [entry(placed=[], missing=1, ineligible=cannot(True, True))]
    mesh = FakeGateways(looks=looks)
    said = r"no node can take m \(n0: no code; n1: no code\); the deployment stays"
    with pytest.raises(PeerError, match=said):
        mesh.run(Wish(str(model)), local=True, wait_s=60)
    assert mesh.now < 4.0


def test_a_node_that_may_come_back_is_waited_for(model: Path) -> None:
    away = entry(placed=[], missing=1, ineligible=cannot(True, False))
    back = entry("ready", placed=["n1"])
    mesh = FakeGateways(looks=[away] * 40 + [back])
    assert mesh.run(Wish(str(model)), local=True, wait_s=60)["placed"] == ["n1"]


def releasing(phase: str, step: int = 0, outcome: str | None = None) -> dict[str, Any]:
    release = {"candidate": 2, "phase": phase, "step": step, "steps": 3, "outcome": outcome}
    return {**entry("ready"), "release": {**release, "reason": "beta has no room"}}


def test_a_release_is_waited_for_until_its_first_step_begins(model: Path) -> None:
    looks = [releasing("preparing"), releasing("preparing"), releasing("running", 1)]
    mesh = FakeGateways(looks=looks)
    mesh.accepted = releasing("preparing")
    found = mesh.run(Wish(str(model), release={"strategy": "canary"}), local=True)
    assert found["release"]["phase"] == "running"
    assert mesh.deployed[0]["release"] == {"strategy": "canary"}
    assert [each.text for each in mesh.seen] == [
        "m: release of version 2: preparing: beta has no room"
    ]


@pytest.mark.parametrize(
    ("look", "said"),
    [
        (releasing("paused"), "release of version 2: paused: beta has no room; see: meshnode rollout status m"),
        (releasing("rolled_back", 0, "rolled_back"), "release of version 2: rolled_back: beta has no room"),
        (releasing("preparing"), "the release has not begun in time"),
    ],
)  # fmt: skip
def test_a_release_that_does_not_begin_is_explained(
    model: Path, look: dict[str, Any], said: str
) -> None:
    mesh = FakeGateways(looks=[look])
    mesh.accepted = releasing("preparing")
    with pytest.raises(PeerError, match=said):
        mesh.run(Wish(str(model)), local=True)


def test_a_release_that_has_paused_at_a_later_step_is_not_waited_for(model: Path) -> None:
    mesh = FakeGateways(looks=[releasing("paused", 2)])
    mesh.accepted = releasing("preparing")
    assert mesh.run(Wish(str(model)), local=True)["release"]["step"] == 2
