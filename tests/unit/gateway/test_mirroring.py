"""Requests that run on a new version besides: bounded, compared, and never in a client's way."""

from __future__ import annotations

import asyncio
import json
import logging
import struct
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from aiohttp import web

from meshnode.errors import InferenceFailed, LinkLost
from meshnode.gateway import disagreements as disagreements_module
from meshnode.gateway import mirroring as mirroring_module
from meshnode.gateway.disagreements import Disagreements, View, joined
from meshnode.limits import MAX_REFERENCE_WARNINGS
from meshnode.models.execution import SequenceBatching
from meshnode.net.outbound import OutboundRule, read_network
from meshnode.rollout import Progress
from meshnode.routing.conditions import NodeConditions
from meshnode.routing.load import LinkState
from meshnode.routing.releasing.split import LiveRelease
from meshnode.state.release import Release, Step
from meshnode.types import (
    DataType,
    InferRequest,
    InferResponse,
    Priority,
    ResponsePart,
    RoutingHints,
    Tensor,
)
from tests.unit.gateway.conftest import ME, PEERS, spec
from tests.unit.gateway.test_releasing import (
    NEW,
    OLD,
    Versions,
    X,
    ask,
    begin,
    cells,
    local,
    versions,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from meshnode.gateway.metrics import GatewayMetrics
    from meshnode.gateway.pipeline import Pipeline
    from meshnode.models.manifest import Manifest
    from meshnode.routing.releasing.evidence import Cell
    from meshnode.routing.router import Router
    from tests.unit.gateway.conftest import FakePeers

    Begin = Callable[..., Any]

__all__ = ["begin", "local", "versions"]  # fixtures

SHADOW: dict[str, Any] = {"share": 0.0, "mirror": 1.0}


def outputs_of(*values: float) -> tuple[Tensor, ...]:
    return (Tensor("x", DataType.FP32, (1, 4), struct.pack("<4f", *values)),)


@pytest.fixture
def answers(local: Versions) -> dict[int, tuple[Tensor, ...]]:
    """What each version answers; a version that is not named echoes."""
    said: dict[int, tuple[Tensor, ...]] = {}
    local.inline = False

    async def behave(request: InferRequest) -> InferResponse:
        version = request.version or 0
        return InferResponse(
            request.model, version, ResponsePart(said.get(version, request.inputs))
        )

    local.behave = behave
    return said


async def settled(pipeline: Pipeline, count: int = 1, **changes: Any) -> None:
    """Ask so often, and wait until nothing is mirrored any more."""
    for _ in range(count):
        assert (await pipeline.infer(ask(**changes))).response.version == OLD
    await pipeline.releasing.mirroring.settle()


def compared(router: Router, version: int) -> tuple[int, int]:
    found = [cell for (number, _), cell in cells(router).items() if number == version]
    return sum(each.compared for each in found), sum(each.agreed for each in found)


def cell_of(router: Router, version: int) -> Cell:
    (found,) = (cell for (number, _), cell in cells(router).items() if number == version)
    return found


async def test_the_new_version_is_asked_behind_the_clients_back_and_compared(
    pipeline: Pipeline, begin: Begin, answers: dict[int, Any], router: Router,
    metrics: GatewayMetrics,
) -> None:  # fmt: skip
    begin(**SHADOW)
    await settled(pipeline, 10)
    assert compared(router, NEW) == (10, 10)
    answers[NEW] = outputs_of(0, 0, 0, 1)
    await settled(pipeline, 5)
    assert compared(router, NEW) == (15, 10)
    assert metrics.mirrored.values == {("agreed",): 10, ("disagreed",): 5}
    assert metrics.requests.values == {("digits", "ok"): 15}
    assert cell_of(router, NEW).requests == 15


async def test_inline_models_are_mirrored_too(
    pipeline: Pipeline, begin: Begin, router: Router
) -> None:
    begin(**SHADOW)
    await settled(pipeline, 3)
    assert compared(router, NEW) == (3, 3)


async def test_a_share_is_mirrored(pipeline: Pipeline, begin: Begin, router: Router) -> None:
    begin(0.0, mirror=0.25)
    for _ in range(10):
        await settled(pipeline, 20)
    assert 30 <= compared(router, NEW)[0] <= 70


async def test_what_the_new_version_answers_is_not_mirrored(
    pipeline: Pipeline, begin: Begin, router: Router
) -> None:
    begin(1.0, mirror=1.0)
    assert (await pipeline.infer(ask())).response.version == NEW
    assert pipeline.releasing.mirroring.running == 0


async def test_a_client_does_not_wait_for_a_mirrored_request(
    pipeline: Pipeline, begin: Begin, answers: dict[int, Any], local: Versions
) -> None:
    go_on = asyncio.Event()
    answer = local.behave
    assert answer is not None

    async def behave(request: InferRequest) -> InferResponse:
        if request.version == NEW:
            await go_on.wait()
        response: InferResponse = await answer(request)
        return response

    local.behave = behave
    begin(**SHADOW)
    assert (await pipeline.infer(ask())).response.version == OLD
    mirroring = pipeline.releasing.mirroring
    assert repr(mirroring) == "<Mirroring: 1 run, 32 bytes>"
    go_on.set()
    await mirroring.settle()
    assert repr(mirroring) == "<Mirroring: 0 run, 0 bytes>"


async def test_a_node_that_stops_gives_up_what_it_mirrors(
    pipeline: Pipeline, begin: Begin, answers: dict[int, Any], local: Versions,
    metrics: GatewayMetrics,
) -> None:  # fmt: skip
    answer = local.behave
    assert answer is not None

    async def behave(request: InferRequest) -> InferResponse:
        if request.version == NEW:
            await asyncio.Event().wait()
        response: InferResponse = await answer(request)
        return response

    local.behave = behave
    begin(**SHADOW)
    for request_id in ("r1", "r2"):
        await pipeline.infer(ask(request_id=request_id))
        await asyncio.sleep(0)
    mirroring = pipeline.releasing.mirroring
    assert mirroring.running == 2
    await mirroring.close()
    assert (mirroring.running, metrics.mirrored.values) == (0, {("failed",): 2})


async def test_too_many_at_once_are_dropped_and_counted(
    pipeline: Pipeline, begin: Begin, answers: dict[int, Any], metrics: GatewayMetrics,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(mirroring_module, "MAX_MIRRORS_IN_FLIGHT", 2)
    begin(**SHADOW)
    mirroring = pipeline.releasing.mirroring
    live = pipeline._router.releases.of("digits")
    assert live is not None
    for _ in range(5):
        mirroring.came(live, ask(version=OLD), {}, OLD, ME, ResponsePart((X,)))
    await mirroring.settle()
    monkeypatch.setattr(mirroring_module, "MAX_MIRRORS_BYTES", 40)
    for _ in range(2):
        mirroring.came(live, ask(version=OLD), {}, OLD, ME, ResponsePart((X,)))
    await mirroring.settle()
    monkeypatch.setattr(mirroring_module, "MAX_MIRRORED_BYTES", 31)
    mirroring.came(live, ask(version=OLD), {}, OLD, ME, ResponsePart((X,)))
    assert metrics.mirrored.values == {("agreed",): 3, ("dropped",): 4, ("too_large",): 1}


@pytest.mark.parametrize(
    "change", [{"repeatable": False}, {"decoupled": True}, {"sequences": SequenceBatching()}]
)
async def test_models_whose_requests_may_not_run_twice_are_not_mirrored(
    pipeline: Pipeline, begin: Begin, versions: dict[int, Manifest], metrics: GatewayMetrics,
    change: dict[str, Any],
) -> None:  # fmt: skip
    manifest = versions[NEW]
    execution = msgspec.structs.replace(manifest.execution, **change)
    versions[NEW] = msgspec.structs.replace(manifest, execution=execution)
    begin(**SHADOW)
    await settled(pipeline)
    assert metrics.mirrored.values == {("not_repeatable",): 1}


async def test_a_mirrored_request_waits_behind_all_others_and_stays_where_the_first_may_run(
    pipeline: Pipeline, begin: Begin, answers: dict[int, Any], local: Versions
) -> None:
    begin(**SHADOW)
    hints = RoutingHints(region="eu", session="s", caller="k", priority=Priority.HIGH)
    await settled(pipeline, hints=hints)
    (mirrored,) = (each for each in local.requests if each.version == NEW)
    assert mirrored.hints.priority is Priority.LOW
    assert (mirrored.hints.region, mirrored.hints.session) == ("eu", "")
    assert mirrored.request_id == "r1"


async def test_what_is_mirrored_is_a_copy_of_what_the_client_sent(
    pipeline: Pipeline, begin: Begin, answers: dict[int, Any], local: Versions, router: Router
) -> None:
    """The client's buffer may be shared memory, in which its next request is by then."""
    begin(**SHADOW)
    sent = bytearray(struct.pack("<4f", 1, 2, 3, 4))
    tensor = Tensor("x", DataType.FP32, (1, 4), memoryview(sent))
    await pipeline.infer(ask(inputs=(tensor,)))
    sent[:] = bytes(16)
    await pipeline.releasing.mirroring.settle()
    (mirrored,) = (each for each in local.requests if each.version == NEW)
    assert struct.unpack("<4f", mirrored.inputs[0].data) == (1, 2, 3, 4)
    assert compared(router, NEW) == (1, 1)


async def test_a_failure_counts_against_the_new_version_where_it_ran_and_is_not_tried_elsewhere(
    pipeline: Pipeline, begin: Begin, serve: Callable[..., None], versions: dict[int, Manifest],
    router: Router, peers: FakePeers, metrics: GatewayMetrics,
) -> None:  # fmt: skip
    """Else a version that fails on one kind of device only would pass, for another makes it good."""
    begin(ready=False, **SHADOW)
    serve(what=versions[OLD])
    serve("beta", versions[NEW])
    serve("gamma", versions[NEW])
    for name, device in (("beta", "npu"), ("gamma", "gpu")):
        router.conditions_changed(PEERS[name], NodeConditions(device=device))
    peers.script[PEERS["beta"]] = InferenceFailed("not on this chip")
    await settled(pipeline, 40)
    errors = {
        device: cell.errors for (number, device), cell in cells(router).items() if number == NEW
    }
    assert sum(errors.values()) == sum(1 for node, *_ in peers.calls if node == PEERS["beta"]) > 0
    assert min(errors.values()) == 0
    assert metrics.mirrored.values[("failed",)] == sum(errors.values())


async def test_a_lost_link_says_nothing_of_a_version(
    pipeline: Pipeline, begin: Begin, serve: Callable[..., None], versions: dict[int, Manifest],
    router: Router, peers: FakePeers, metrics: GatewayMetrics,
) -> None:  # fmt: skip
    begin(ready=False, **SHADOW)
    serve(what=versions[OLD])
    serve("beta", versions[NEW])
    peers.script[PEERS["beta"]] = LinkLost("gone")
    await settled(pipeline)
    router.link_changed(PEERS["beta"], LinkState.DOWN, 100.0)
    await settled(pipeline)
    assert metrics.mirrored.values == {("failed",): 2}
    assert all(number == OLD for number, _ in cells(router))


async def test_a_new_version_that_streams_cannot_be_compared(
    pipeline: Pipeline, begin: Begin, local: Versions, answers: dict[int, Any],
    metrics: GatewayMetrics,
) -> None:  # fmt: skip
    answer = local.behave
    assert answer is not None
    closed: list[bool] = []

    async def parts() -> AsyncIterator[ResponsePart]:
        try:
            yield ResponsePart((X,))
        finally:
            closed.append(True)

    async def behave(request: InferRequest) -> InferResponse:
        if request.version == NEW:
            return InferResponse(request.model, NEW, parts())
        found: InferResponse = await answer(request)
        return found

    local.behave = behave
    begin(**SHADOW)
    await settled(pipeline)
    assert metrics.mirrored.values == {("failed",): 1}


async def test_large_answers_are_compared_beside_the_event_loop(
    pipeline: Pipeline, begin: Begin, router: Router, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirroring_module, "COMPARED_AT_ONCE_BYTES", 8)
    begin(**SHADOW)
    await settled(pipeline, 2)
    assert compared(router, NEW) == (2, 2)


# What answers are compared with


async def test_answers_may_be_compared_with_another_deployments(
    pipeline: Pipeline, begin: Begin, answers: dict[int, Any], router: Router,
    serve: Callable[..., None], make_manifest: Callable[..., Manifest], metrics: GatewayMetrics,
) -> None:  # fmt: skip
    serve(what=make_manifest(model="teacher", version=9))
    answers[OLD] = outputs_of(1, 0, 0, 0)
    begin(against="deployment:teacher", **SHADOW)
    await settled(pipeline, 3)
    assert compared(router, NEW) == (3, 3)
    assert compared(router, OLD) == (3, 0)
    assert metrics.mirrored.values == {("agreed",): 3}


@pytest.mark.parametrize("has_teacher", [True, False])
async def test_without_something_to_compare_with_nothing_is_counted_as_compared(
    pipeline: Pipeline, begin: Begin, router: Router, serve: Callable[..., None],
    make_manifest: Callable[..., Manifest], metrics: GatewayMetrics, has_teacher: bool,
) -> None:  # fmt: skip
    if has_teacher:  # but it takes something else
        serve(what=make_manifest(spec("y", (-1, 4)), model="teacher"))
    begin(against="deployment:teacher", **SHADOW)
    await settled(pipeline)
    assert compared(router, NEW) == (0, 0)
    assert metrics.mirrored.values == {("no_reference",): 1}


@pytest.mark.parametrize("where", ["parameters", "headers"])
async def test_answers_may_be_compared_with_the_decision_that_the_request_carries(
    pipeline: Pipeline, begin: Begin, answers: dict[int, Any], router: Router, where: str
) -> None:
    """Both versions' answers are compared, mirrored or not."""
    answers[OLD] = outputs_of(1, 0, 0, 0)
    answers[NEW] = outputs_of(0, 0, 1, 0)
    begin(against="request:X-Decision", compare="top", **SHADOW)
    request = ask(parameters={"X-Decision": 2} if where == "parameters" else {})
    headers = {"x-decision": "2"} if where == "headers" else {}
    target = pipeline.resolve("digits", None)
    found: Any = pipeline.answer(msgspec.structs.replace(request, version=OLD), target, headers)
    await found
    await pipeline.releasing.mirroring.settle()
    assert compared(router, OLD) == (1, 0)
    assert compared(router, NEW) == (1, 1)


async def test_a_request_without_a_decision_is_not_compared(
    pipeline: Pipeline, begin: Begin, answers: dict[int, Any], router: Router,
    metrics: GatewayMetrics,
) -> None:  # fmt: skip
    begin(against="request:X-Decision", **SHADOW)
    await settled(pipeline)
    await settled(pipeline, parameters={"X-Decision": '{"z": 1}'})
    assert (compared(router, OLD), compared(router, NEW)) == ((0, 0), (0, 0))
    assert metrics.mirrored.values == {("no_reference",): 2}


async def test_mirrored_answers_wait_for_labels(
    pipeline: Pipeline, begin: Begin, answers: dict[int, Any], router: Router,
    metrics: GatewayMetrics,
) -> None:  # fmt: skip
    from meshnode.gateway.feedback import Feedback

    answers[OLD] = outputs_of(1, 0, 0, 0)
    answers[NEW] = outputs_of(0, 0, 1, 0)
    begin(against="labels", compare="top", **SHADOW)
    await settled(pipeline)
    told = pipeline.releasing.tell(Feedback("r1", label=2), "")
    assert told is not None
    assert (told.version, told.agreed) == (OLD, False)
    assert compared(router, OLD) == (1, 0)
    assert compared(router, NEW) == (1, 1)
    assert metrics.mirrored.values == {("kept_for_labels",): 1}
    seen = pipeline.releasing.mirroring.disagreements.view("digits")
    assert seen is not None
    assert (seen.version, seen.compared, seen.disagreed) == (NEW, 1, 0)


async def test_disagreements_with_labels_are_kept_with_what_they_have_in_common(
    pipeline: Pipeline, begin: Begin, answers: dict[int, Any]
) -> None:
    from meshnode.gateway.feedback import Feedback

    begin(against="labels", compare="top", **SHADOW)
    answers[NEW] = outputs_of(0, 0, 1, 0)
    for number in range(100):
        wide = Tensor("x", DataType.FP32, (512, 4), bytes(16 * 512))
        inputs: dict[str, Any] = {"inputs": (wide,)} if number % 4 == 0 else {}
        answers[OLD] = outputs_of(1, 0, 0, 0)
        await settled(pipeline, request_id=f"r{number}", **inputs)
        label = 3 if inputs else 2
        assert pipeline.releasing.tell(Feedback(f"r{number}", label=label), "") is not None
    seen = pipeline.releasing.mirroring.disagreements.view("digits")
    assert seen is not None
    found = joined([seen])
    assert (found["compared"], found["disagreed"]) == (100, 25)
    texts = [each["text"] for each in found["clusters"]]
    assert any("rows 512 to 1023" in each for each in texts)
    assert any("answer 3" in each for each in texts)
    example = found["examples"][0]
    assert (example["request"], example["expected"], example["node"]) == ("r96", "3", "alpha")
    assert example["inputs"] == {}  # too large to be kept until the label comes
    assert example["difference"] == "it is not what the label says"


@pytest.fixture
async def address() -> AsyncIterator[tuple[str, list[Any], dict[str, Any]]]:
    """A server of the Open Inference Protocol; what it is asked, and what it answers."""
    asked: list[Any] = []
    says: dict[str, Any] = {
        "status": 200,
        "body": {"outputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [0, 0, 0, 0]}]},
    }  # fmt: skip

    async def answer(request: web.Request) -> web.Response:
        asked.append(json.loads(await request.text()))
        return web.json_response(says["body"], status=says["status"])

    app = web.Application()
    app.router.add_post("/v2/models/old/infer", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    yield f"http://127.0.0.1:{port}/v2/models/old/infer", asked, says
    await runner.cleanup()


async def test_answers_may_be_compared_with_those_of_an_address(
    pipeline: Pipeline, begin: Begin, answers: dict[int, Any], router: Router,
    metrics: GatewayMetrics, address: tuple[str, list[Any], dict[str, Any]],
) -> None:  # fmt: skip
    url, asked, says = address
    pipeline.releasing.mirroring.rule = OutboundRule((read_network("127.0.0.0/8"),))
    begin(against=url, **SHADOW)
    await settled(pipeline)
    assert asked == [
        {"id": "r1", "inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [[0, 0, 0, 0]]}]}
    ]  # fmt: skip
    assert (compared(router, NEW), compared(router, OLD)) == ((1, 1), (1, 1))
    answers[NEW] = outputs_of(5, 0, 0, 0)
    await settled(pipeline, outputs=("x",))
    assert asked[-1]["outputs"] == [{"name": "x"}]
    assert (compared(router, NEW), compared(router, OLD)) == ((2, 1), (2, 2))
    for status, body in ((500, {}), (200, {"outputs": [{"name": "x"}]}), (200, [])):
        says.update(status=status, body=body)
        await settled(pipeline)
    assert compared(router, NEW) == (2, 1)
    assert metrics.mirrored.values == {("agreed",): 1, ("disagreed",): 1, ("no_reference",): 3}


async def test_an_address_of_this_machine_is_not_asked_unless_its_owner_allows_it(
    pipeline: Pipeline, begin: Begin, router: Router,
    address: tuple[str, list[Any], dict[str, Any]],
) -> None:  # fmt: skip
    url, asked, _ = address
    begin(against=url, **SHADOW)
    await settled(pipeline)
    assert asked == []
    assert compared(router, NEW) == (0, 0)


@pytest.mark.parametrize(
    ("against", "reason"),
    [
        ("http://127.0.0.1:9/v2/models/x/infer", "127.0.0.1"),
        ("deployment:teacher", "'teacher'"),
        ("request:X-Decision", "carries no 'X-Decision', neither as a parameter nor as a header"),
    ],
)
async def test_what_cannot_be_had_for_comparison_is_told_once_in_the_log_and_counted(
    pipeline: Pipeline, begin: Begin, answers: dict[int, Any], caplog: pytest.LogCaptureFixture,
    against: str, reason: str,
) -> None:  # fmt: skip
    caplog.set_level(logging.WARNING, "meshnode")
    begin(against=against, **SHADOW)
    await settled(pipeline, 5)
    (record,) = (each for each in caplog.records if each.name == disagreements_module.__name__)
    said = record.getMessage()
    assert f"answers of digits, version {NEW}, cannot be compared with {against}: " in said
    assert reason in said
    seen = pipeline.releasing.mirroring.disagreements.view("digits")
    assert seen is not None
    found = joined([seen])
    assert (found["version"], found["compared"], found["no_reference"]) == (NEW, 0, 5)
    assert reason in found["reason"]


async def test_an_answer_of_the_new_version_to_a_client_without_a_decision_is_told_too(
    pipeline: Pipeline, begin: Begin, answers: dict[int, Any]
) -> None:
    begin(1.0, against="request:X-Decision", compare="top")
    for parameters in ({}, {"X-Decision": "many"}, {"X-Decision": 0}):
        await pipeline.infer(ask(parameters=parameters))
    seen = pipeline.releasing.mirroring.disagreements.view("digits")
    assert seen is not None
    assert (seen.compared, seen.no_reference) == (1, 2)
    assert seen.reason.endswith(
        "has the value 'many'; each is a whole number, the place of the greatest"
    )


def test_the_reasons_that_are_told_are_bounded_and_the_last_one_of_all_gateways_is_shown(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING, "meshnode")
    release = Release("canary", OLD, NEW, (Step(0.5),), against="labels")
    live = LiveRelease("digits", (7, 7), release, Progress((7, 7), "running", 0, 0))
    both = (Disagreements(), Disagreements())
    for number in range(2 * MAX_REFERENCE_WARNINGS):
        both[0].missed(live, f"reason {number}", 10.0 + number)
    assert len(caplog.records) == MAX_REFERENCE_WARNINGS
    both[1].missed(live, "the newest", 99.0)
    found = joined([view for view in (each.view("digits") for each in both) if view], live)
    assert (found["no_reference"], found["reason"]) == (33, "the newest")


# What disagreements look like


async def test_disagreements_are_kept_as_examples_with_what_they_have_in_common(
    pipeline: Pipeline, begin: Begin, answers: dict[int, Any], router: Router, local: Versions
) -> None:
    begin(**SHADOW)
    view = pipeline.releasing.mirroring.disagreements
    assert view.view("digits") is None
    for _ in range(3):
        await settled(pipeline, 20)
    answers[NEW] = outputs_of(0, 0, 0, 1)
    for size in (4, 8):
        await settled(
            pipeline, 20, inputs=(Tensor("x", DataType.FP32, (size, 4), bytes(16 * size)),)
        )
    seen = view.view("digits")
    assert seen is not None
    found = joined([seen])
    assert (found["compared"], found["disagreed"]) == (100, 40)
    example = found["examples"][0]
    assert example["request"] == "r1"
    assert example["node"] == "alpha"
    assert example["inputs"]["x"]["shape"] == [8, 4]
    assert len(example["inputs"]["x"]["values"]) == 32
    assert example["answer"] == {"x": {"shape": [1, 4], "values": [0, 0, 0, 1]}}
    assert example["difference"]
    assert any("4 to 7" in json.dumps(each) for each in found["clusters"])
    assert len(found["examples"]) == 40
    assert joined([seen, View((8, 8), 1, 0, [], [])])["compared"] == 1  # that of a later release


async def test_an_example_is_small(
    pipeline: Pipeline, begin: Begin, answers: dict[int, Any], local: Versions
) -> None:
    texts = b"".join((2000).to_bytes(4, "little") + b"a" * 2000 for _ in range(40))
    answers[OLD] = (Tensor("x", DataType.BYTES, (40,), texts),)
    answers[NEW] = (Tensor("x", DataType.BYTES, (1,), b"\x01\0\0\0b"),)
    begin(**SHADOW)
    await settled(pipeline)
    seen = pipeline.releasing.mirroring.disagreements.view("digits")
    assert seen is not None
    (example,) = seen.examples
    assert example["expected"] == "too large to be shown"
