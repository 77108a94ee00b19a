"""The model that stands in for a real one, the server around it, and the calls that it answers."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from meshnode.errors import InferenceFailed, InvalidRequest, ModelError
from meshnode.gateway.protocols.http import HttpRequest
from meshnode.gateway.protocols.oip import decode_infer
from meshnode.models.manifest import Manifest, check_request
from meshnode.models.repository.publish import describe
from meshnode.models.repository.scanning import scan
from meshnode.models.runtimes.base import Opening
from meshnode.models.serving.measure import unit_counter
from meshnode.models.serving.server import ModelServer
from meshnode.sim.http_calls import http_call, outcome_of, read_answer
from meshnode.sim.stage import Call
from meshnode.sim.stand_in import MODEL_FILE, StandInModel, StandInRuntime
from meshnode.sim.stand_in_server import StandInServer
from meshnode.types import ReplicaState
from meshnode.wire.messages import LoadReport

if TYPE_CHECKING:
    from pathlib import Path

    from meshnode.types import InferRequest


def a_call(**changes: float) -> Call:
    fields: dict[str, float] = {"work_s": 0.02, "timeout_s": 5.0, "deadline_s": 5.0, **changes}
    return Call(0, 0.0, "gateway", "m", **fields)  # type: ignore[arg-type]


def a_runtime(spent: list[float]) -> StandInRuntime:
    return StandInRuntime(spent.append, random.Random(1))


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    StandInModel(mean_s=0.03, load_s=0.5).write(tmp_path / "m")
    (found,) = scan(tmp_path / "m")
    return describe(found, found.versions[0], a_runtime([]))


def decoded(call: Call, manifest: Manifest) -> InferRequest:
    """Let the real gateway's dialect read a call."""
    asked = http_call(call)
    headers = {name.lower(): value for name, value in asked.headers.items()}
    http = HttpRequest("POST", asked.path, "", headers, asked.body)
    request = decode_infer(http, manifest, None).request
    check_request(manifest, request)
    return request


def answered_bytes(spent: list[float], runtime: StandInRuntime, call: Call, place: Path) -> int:
    folder = place / "m" / "1"
    request = decoded(call, describe_of(place))
    (answer,) = runtime.load(Opening(folder=folder, entry=MODEL_FILE)).run(request.inputs, ())
    return len(answer.data) - 4  # without the string's length


def describe_of(place: Path) -> Manifest:
    (found,) = scan(place / "m")
    return describe(found, found.versions[0], a_runtime([]))


def test_a_call_reaches_the_model_with_its_work_and_the_sizes_that_were_asked_for(
    tmp_path: Path, manifest: Manifest
) -> None:
    spent: list[float] = []
    call = a_call(work_s=0.25, request_bytes=10_000, response_bytes=777)
    assert answered_bytes(spent, a_runtime(spent), call, tmp_path) == 777
    assert spent == [0.5, 0.25]  # loading, running
    assert abs(len(http_call(call).body) - 10_000) <= 1
    assert decoded(call, manifest).timeout_s == 5.0
    assert unit_counter(manifest)(decoded(call, manifest).inputs) == 1


def test_a_request_is_no_smaller_than_what_it_says(manifest: Manifest) -> None:
    assert 100 < len(http_call(a_call(request_bytes=1)).body) < 600
    assert decoded(a_call(request_bytes=1), manifest).timeout_s == 5.0


def test_speed_and_slowness_change_what_a_run_takes(tmp_path: Path, manifest: Manifest) -> None:
    spent: list[float] = []
    runtime = StandInRuntime(spent.append, random.Random(1), speed=4.0)
    model = runtime.load(Opening(folder=tmp_path / "m" / "1", entry=MODEL_FILE))
    model.run(decoded(a_call(work_s=0.4), manifest).inputs, ())
    runtime.slowness = 10.0
    model.run(decoded(a_call(work_s=0.4), manifest).inputs, ())
    assert spent[1:] == [pytest.approx(0.1), pytest.approx(1.0)]


def test_a_run_without_work_takes_the_mean(tmp_path: Path, manifest: Manifest) -> None:
    spent: list[float] = []
    model = a_runtime(spent).load(Opening(folder=tmp_path / "m" / "1", entry=MODEL_FILE))
    model.run(decoded(a_call(work_s=0.0), manifest).inputs, ())
    assert spent[1:] == [0.03]


def test_a_share_of_the_runs_fails_at_once(tmp_path: Path, manifest: Manifest) -> None:
    spent: list[float] = []
    runtime = a_runtime(spent)
    model = runtime.load(Opening(folder=tmp_path / "m" / "1", entry=MODEL_FILE))
    runtime.fail_share = 0.25
    failed = 0
    for _ in range(400):
        try:
            model.run(decoded(a_call(), manifest).inputs, ())
        except InferenceFailed:
            failed += 1
    assert 70 <= failed <= 130
    assert len(spent) == 1 + 400 - failed


def test_absurd_requests_and_files_are_refused(tmp_path: Path, manifest: Manifest) -> None:
    model = a_runtime([]).load(Opening(folder=tmp_path / "m" / "1", entry=MODEL_FILE))
    for absurd in (a_call(work_s=1e9), a_call(work_s=float("nan")), a_call(response_bytes=-1)):
        with pytest.raises(InvalidRequest, match="a stand-in takes"):
            model.run(decoded(absurd, manifest).inputs, ())
    (tmp_path / MODEL_FILE).write_bytes(b"\x08\x07onnx")
    with pytest.raises(ModelError, match="no stand-in model"):
        a_runtime([]).load(Opening(folder=tmp_path, entry=MODEL_FILE))


def test_each_release_is_a_version_with_a_file_of_its_own(tmp_path: Path) -> None:
    first = StandInModel().write(tmp_path / "m")
    second = StandInModel(release=2).write(tmp_path / "m")
    assert second.parent.name == "2"
    assert first.read_bytes() != second.read_bytes()


def answers(place: Path, stand_in: StandInModel, calls: range, device: str = "") -> list[bytes]:
    """Return what a version answers these calls on a class of devices; `b"failed"` for those that it fails."""
    written = stand_in.write(place / f"v{stand_in.release}" / "m")
    runtime = StandInRuntime(lambda _s: None, random.Random(1), device_class=device)
    model = runtime.load(Opening(folder=written.parent, entry=MODEL_FILE))
    found = []
    for number in calls:
        call = Call(number, 0.0, "gateway", "m", 0.02, timeout_s=5.0, deadline_s=5.0)
        try:
            (answer,) = model.run(decoded(call, describe_of(place)).inputs, ())
        except InferenceFailed:
            found.append(b"failed")
        else:
            found.append(bytes(answer.data))
    return found


def test_versions_answer_alike_but_for_the_share_of_inputs_to_which_one_is_told_not_to(
    tmp_path: Path, manifest: Manifest
) -> None:
    calls = range(1500)
    first = answers(tmp_path, StandInModel(), calls)
    assert len(set(first)) == len(calls), "an answer says what was asked"
    assert answers(tmp_path, StandInModel(release=2), calls) == first
    other = answers(tmp_path, StandInModel(release=3, differs_share=0.02), calls)
    differing = [at for at in calls if first[at] != other[at]]
    assert 15 <= len(differing) <= 45
    again = answers(tmp_path, StandInModel(release=3, differs_share=0.02), calls, "laptop")
    assert again == other, "always the same inputs, everywhere"


def test_a_version_may_fail_on_one_class_of_devices_only(
    tmp_path: Path, manifest: Manifest
) -> None:
    bad = StandInModel(release=2, fail_share=0.25, fails_on="laptop")
    assert b"failed" not in answers(tmp_path, bad, range(100), "mini-pc")
    assert 70 <= answers(tmp_path, bad, range(400), "laptop").count(b"failed") <= 130


def test_a_version_may_be_slower_or_not_be_loaded_at_all(
    tmp_path: Path, manifest: Manifest
) -> None:
    spent: list[float] = []
    slow = StandInModel(mean_s=0.03, release=2, slowness=2.0).write(tmp_path / "slow")
    model = a_runtime(spent).load(Opening(folder=slow.parent, entry=MODEL_FILE))
    for work_s in (0.1, 0.0):
        model.run(decoded(a_call(work_s=work_s), manifest).inputs, ())
    assert spent[1:] == [pytest.approx(0.2), pytest.approx(0.06)]
    broken = StandInModel(release=3, load_error="no such operator").write(tmp_path / "broken")
    opening = Opening(folder=broken.parent, entry=MODEL_FILE)
    assert a_runtime(spent).describe(opening).inputs, "it can be deployed"
    with pytest.raises(ModelError, match="no such operator"):
        a_runtime(spent).load(opening)


def test_an_answer_tells_who_served_and_what_failed_before() -> None:
    route = 'node=b; region=eu; version=3; attempts=2; reason=best; tried="a:link_lost"'
    answer = read_answer(200, {"Mesh-Route": route})
    outcome = outcome_of(answer, 0.5, gateways=2)
    assert (outcome.code, outcome.served_by, outcome.version) == ("ok", "b", 3)
    assert (outcome.attempts, outcome.failed_on) == (2, (("a", "link_lost"),))
    assert (outcome.took_s, outcome.gateways) == (0.5, 2)


def test_a_refusal_has_the_code_of_its_error() -> None:
    assert read_answer(429, {"Mesh-Error": "saturated"}).code == "saturated"
    assert read_answer(502, {}).code == "http_502"
    route = 'node=b; attempts=1; tried="b:link_lost"'
    failed = read_answer(503, {"Mesh-Error": "link_lost", "Mesh-Route": route})
    assert (failed.code, failed.served_by, failed.attempts) == ("link_lost", "", 1)


class TestTellingTheLoad:
    """What a server says of its load, and when that is a lie."""

    @pytest.fixture
    def now(self) -> list[float]:
        return [100.0]

    @pytest.fixture
    async def server(self, tmp_path: Path, manifest: Manifest, now: list[float]) -> StandInServer:
        runtime = a_runtime([])
        server = StandInServer(
            {runtime.name: runtime}, cores=2, slots=3, now=lambda: now[0], timer=lambda: now[0]
        )
        status = await server.load(manifest, tmp_path / "m" / "1")
        assert status.state is ReplicaState.READY
        return server

    def busy(self, monkeypatch: pytest.MonkeyPatch, in_system: int) -> None:
        report = LoadReport(in_system, 3, 30.0)
        monkeypatch.setattr(ModelServer, "load_report", lambda *_: report)

    async def test_it_has_the_devices_slots(self, server: StandInServer) -> None:
        assert server.load_report("m", 1).slots == 3
        await server.close()

    async def test_a_liar_tells_a_share(
        self, server: StandInServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        await server.close()
        self.busy(monkeypatch, 8)
        assert server.load_report("m", 1).in_system == 8
        server.load_share = 0.25
        assert server.load_report("m", 1) == LoadReport(2, 3, 30.0)

    async def test_stale_load_is_as_old_as_told(
        self, server: StandInServer, monkeypatch: pytest.MonkeyPatch, now: list[float]
    ) -> None:
        await server.close()
        server.load_age_s = 2.0
        told = []
        for second in range(6):
            now[0] = 100.0 + second
            self.busy(monkeypatch, second)
            told.append(server.load_report("m", 1).in_system)
        assert told == [0, 0, 0, 1, 2, 3]
        server.load_age_s = 0.0
        assert server.load_report("m", 1).in_system == 5
