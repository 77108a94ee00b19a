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
    """

    piece_bytes: int = 4
    fail: dict[int, MeshError] = field(default_factory=dict)
    lose: dict[int, MeshError] = field(default_factory=dict)
    looks: list[dict[str, Any]] = field(default_factory=lambda: [entry("ready")])
    calls: list[Call] = field(default_factory=list)
    uploads: list[list[bytearray]] = field(default_factory=list)
    deployed: list[dict[str, Any]] = field(default_factory=list)
    begun: int = 0

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
                return entry()
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
