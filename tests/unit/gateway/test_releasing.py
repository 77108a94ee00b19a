"""A release on the way of a request: which version answers, and that nobody hears of a failure of the new one."""

from __future__ import annotations

import inspect
import json
from collections import Counter
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from meshnode.errors import (
    InferenceFailed,
    InvalidRequest,
    LinkLost,
    MeshError,
    Saturated,
)
from meshnode.gateway.protocols.caller import Caller
from meshnode.gateway.protocols.http import HttpRequest, HttpResponse, HttpStream
from meshnode.models.execution import SequenceBatching
from meshnode.rollout import Progress
from meshnode.routing.conditions import NodeConditions
from meshnode.routing.load import LinkState
from meshnode.routing.releasing.evidence import Cell, class_word, merged
from meshnode.state.release import Release, Step
from meshnode.types import (
    DataType,
    InferRequest,
    InferResponse,
    ResponsePart,
    Scope,
    Tensor,
)
from tests.unit.gateway.conftest import ME, PEERS, FakeLocal, echo_part, spec
from tests.unit.gateway.text_gateway import TEXT, model, says

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from meshnode.gateway.dispatch import Dispatcher
    from meshnode.gateway.metrics import GatewayMetrics
    from meshnode.gateway.pipeline import Pipeline
    from meshnode.models.manifest import Manifest
    from meshnode.routing.router import Router
    from tests.unit.gateway.conftest import FakeClock, FakePeers

    Begin = Callable[..., Release]

REVISION = (7, 7)
X = Tensor("x", DataType.FP32, (1, 4), bytes(16))
OLD, NEW = 1, 2


class Versions(FakeLocal):
    """A model server whose versions fail apart; each answers after `takes_s` of a clock that stands still else."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__()
        self.fails: dict[int, MeshError] = {}
        self.takes_s: dict[int, float] = {}
        self._clock = clock

    def try_infer_inline(self, request: InferRequest) -> ResponsePart | None:
        if self.inline:
            self._run(request)
        return super().try_infer_inline(request)

    async def infer(self, request: InferRequest) -> InferResponse:
        self._run(request)
        return await super().infer(request)

    def _run(self, request: InferRequest) -> None:
        assert request.version is not None
        self._clock.time_s += self.takes_s.get(request.version, 0.0)
        if request.version in self.fails:
            raise self.fails[request.version]


@pytest.fixture
def local(clock: FakeClock) -> Versions:
    return Versions(clock)


@pytest.fixture
def versions(make_manifest: Callable[..., Manifest]) -> dict[int, Manifest]:
    return {number: make_manifest(version=number) for number in (OLD, NEW)}


@pytest.fixture
def begin(router: Router, serve: Callable[..., None], versions: dict[int, Manifest]) -> Begin:
    """Serve both versions of the model here, and send a share to the new one."""

    def start(
        share: float = 0.5,
        *,
        step: int = 0,
        phase: str = "running",
        ready: bool = True,
        **plan: Any,
    ) -> Release:
        mirror = plan.pop("mirror", 0.0)
        release = Release("canary", OLD, NEW, (Step(share, mirror),), **plan)
        progress = Progress(REVISION, phase, step, 0)  # type: ignore[arg-type]
        if ready:
            for manifest in versions.values():
                serve(what=manifest)
        for name in {manifest.model for manifest in versions.values()}:
            router.release_changed(name, REVISION, release, progress)
        return release

    return start


def ask(**changes: Any) -> InferRequest:
    fields: dict[str, Any] = {
        "model": "digits", "inputs": (X,), "timeout_s": 5.0, "request_id": "r1"
    } | changes  # fmt: skip
    return InferRequest(**fields)


async def answering(pipeline: Pipeline, count: int, **changes: Any) -> Counter[int]:
    """Return how many of so many requests each version answered."""
    found = Counter[int]()
    for _ in range(count):
        found[(await pipeline.infer(ask(**changes))).response.version] += 1
    return found


def seen(router: Router, version: int, device: str = "") -> tuple[int, int]:
    """Return the requests and errors of a version that this gateway tells of."""
    cell = cells(router).get((version, device), Cell())
    return cell.requests, cell.errors


def cells(router: Router) -> dict[tuple[int, str], Cell]:
    live = router.releases.of("digits")
    assert live is not None
    evidence = live.book.snapshot()
    assert evidence is not None
    return merged([evidence], REVISION, live.progress.watched_step)


@pytest.mark.parametrize("inline", [True, False])
async def test_a_share_of_the_requests_is_answered_by_the_new_version_and_all_are_evidence(
    pipeline: Pipeline, begin: Begin, local: Versions, router: Router, inline: bool
) -> None:
    local.inline = inline
    local.takes_s = {OLD: 0.001, NEW: 0.002}
    begin(0.25)
    found = await answering(pipeline, 400)
    assert 70 <= found[NEW] <= 130
    assert seen(router, OLD) == (found[OLD], 0)
    assert seen(router, NEW) == (found[NEW], 0)


async def test_what_ran_inline_is_counted_for_this_nodes_kind_of_device_with_its_run_time(
    pipeline: Pipeline, begin: Begin, local: Versions, router: Router
) -> None:
    router.conditions_changed(ME, NodeConditions(device="cpu: Atom"))
    begin(1.0)
    local.takes_s[NEW] = 0.004
    await answering(pipeline, 3)
    (((version, device), cell),) = cells(router).items()
    assert (version, device, cell.requests) == (NEW, class_word("cpu: Atom"), 3)
    assert sum(cell.run_times.values()) == 3


@pytest.mark.parametrize("inline", [True, False])
@pytest.mark.parametrize(
    "error",
    [
        InferenceFailed("it raised"),
        InvalidRequest("that is no picture"),
        Saturated("out of memory"),
    ],
)
async def test_a_failure_of_the_new_version_is_never_seen_by_a_client(
    pipeline: Pipeline,
    begin: Begin,
    local: Versions,
    router: Router,
    metrics: GatewayMetrics,
    inline: bool,
    error: MeshError,
) -> None:
    local.inline = inline
    begin(1.0)
    local.fails[NEW] = error
    assert await answering(pipeline, 20) == {OLD: 20}
    assert metrics.requests.values == {("digits", "ok"): 20}
    blamed = (
        0 if isinstance(error, Saturated) else 20
    )  # one that has no room now is not a bad version
    assert seen(router, NEW) == (blamed, blamed)
    assert seen(router, OLD) == (20, 0)


@pytest.mark.parametrize("inline", [True, False])
async def test_what_fails_with_both_versions_alike_is_the_requests_own_fault(
    pipeline: Pipeline, begin: Begin, local: Versions, router: Router, inline: bool
) -> None:
    local.inline = inline
    begin(1.0)
    local.fails = {OLD: InferenceFailed("a bad picture"), NEW: InferenceFailed("a bad picture")}
    with pytest.raises(InferenceFailed):
        await pipeline.infer(ask())
    assert seen(router, NEW) == (0, 0)


async def test_a_failure_of_the_old_version_is_counted_for_it(
    pipeline: Pipeline, begin: Begin, local: Versions, router: Router, metrics: GatewayMetrics
) -> None:
    begin(0.0)
    local.fails[OLD] = InferenceFailed("it raised")
    with pytest.raises(InferenceFailed):
        await pipeline.infer(ask())
    assert seen(router, OLD) == (1, 1)
    assert metrics.requests.values == {("digits", "inference_failed"): 1}


async def test_an_inline_failure_falls_back_to_another_nodes_old_version(
    pipeline: Pipeline, begin: Begin, serve: Callable[..., None], local: Versions,
    router: Router, versions: dict[int, Manifest],
) -> None:  # fmt: skip
    begin(1.0, ready=False)
    serve(what=versions[NEW])
    serve("beta", versions[OLD])
    local.fails[NEW] = InferenceFailed("it raised")
    answered = await pipeline.infer(ask())
    assert "node=beta" in answered.route_header
    assert seen(router, NEW) == (1, 1)
    assert seen(router, OLD) == (1, 0)


async def test_a_new_version_on_a_node_that_is_lost_costs_no_client_an_error(
    pipeline: Pipeline, begin: Begin, serve: Callable[..., None], peers: FakePeers,
    router: Router, versions: dict[int, Manifest],
) -> None:  # fmt: skip
    begin(1.0, ready=False)
    serve(what=versions[OLD])
    serve("beta", versions[NEW])
    peers.script[PEERS["beta"]] = LinkLost("gone")
    assert await answering(pipeline, 3) == {OLD: 3}
    assert peers.calls
    router.link_changed(PEERS["beta"], LinkState.DOWN, 100.0)
    peers.calls.clear()
    assert await answering(pipeline, 3) == {OLD: 3}
    assert peers.calls == []


async def test_a_request_that_does_not_fit_the_new_version_stays_with_the_old_one(
    pipeline: Pipeline, begin: Begin, versions: dict[int, Manifest],
    make_manifest: Callable[..., Manifest], router: Router,
) -> None:  # fmt: skip
    versions[NEW] = make_manifest(spec("x", (-1, 5)), version=NEW)
    begin(1.0)
    assert await answering(pipeline, 5) == {OLD: 5}
    assert seen(router, NEW) == (0, 0)


async def test_a_request_that_names_a_version_gets_it_and_is_no_evidence(
    pipeline: Pipeline, begin: Begin, router: Router
) -> None:
    begin(1.0)
    assert await answering(pipeline, 5, version=OLD) == {OLD: 5}
    assert (seen(router, OLD), seen(router, NEW)) == ((0, 0), (0, 0))
    assert len(pipeline.releasing.answers) == 0


async def test_a_new_version_that_is_not_ready_is_not_asked(
    pipeline: Pipeline, begin: Begin, serve: Callable[..., None], versions: dict[int, Manifest]
) -> None:
    begin(1.0, ready=False)
    serve(what=versions[OLD])
    assert await answering(pipeline, 5) == {OLD: 5}


async def test_once_promoted_the_old_version_still_stands_in(
    pipeline: Pipeline, begin: Begin, local: Versions, router: Router
) -> None:
    begin(0.5, step=1, phase="keeping")
    assert await answering(pipeline, 5) == {NEW: 5}
    local.fails[NEW] = InferenceFailed("it raised")
    assert await answering(pipeline, 5) == {OLD: 5}
    router.replica_removed(ME, "digits", NEW)
    assert await answering(pipeline, 5) == {OLD: 5}


async def test_without_the_old_version_the_new_one_is_asked_for_itself(
    pipeline: Pipeline, begin: Begin, serve: Callable[..., None], versions: dict[int, Manifest],
    local: Versions, router: Router,
) -> None:  # fmt: skip
    begin(1.0, ready=False)
    serve(what=versions[NEW])
    assert await answering(pipeline, 2) == {NEW: 2}
    local.fails[NEW] = InferenceFailed("it raised")
    with pytest.raises(InferenceFailed):
        await pipeline.infer(ask())
    assert seen(router, NEW) == (3, 1)


async def test_a_model_with_sequences_is_not_split(
    pipeline: Pipeline, begin: Begin, versions: dict[int, Manifest], local: Versions
) -> None:
    local.inline = False
    for number, manifest in versions.items():
        execution = msgspec.structs.replace(manifest.execution, sequences=SequenceBatching())
        versions[number] = msgspec.structs.replace(manifest, execution=execution)
    begin(1.0)
    assert await answering(pipeline, 5, parameters={"sequence_id": 3, "sequence_start": True}) == {
        OLD: 5
    }


@pytest.mark.parametrize("inline", [True, False])
async def test_answers_that_were_kept_are_no_evidence(
    pipeline: Pipeline, begin: Begin, local: Versions, router: Router, inline: bool
) -> None:
    """The old version's cache is warm and the new one's is not: their run times would differ for no fault of it."""
    local.inline = inline
    begin(0.0)
    await pipeline.infer(ask(parameters={"cache": "hit"}))  # the model server echoes them
    assert seen(router, OLD) == (0, 0)


async def test_a_model_in_no_release_costs_one_look_up(
    pipeline: Pipeline, begin: Begin, serve: Callable[..., None], monkeypatch: pytest.MonkeyPatch,
    make_manifest: Callable[..., Manifest],
) -> None:  # fmt: skip
    class LookedUp(dict[str, Any]):
        times = 0

        def __contains__(self, key: object) -> bool:
            LookedUp.times += 1
            return super().__contains__(key)

    begin()
    serve(what=make_manifest(model="other"))
    monkeypatch.setattr(pipeline, "_releases", LookedUp(pipeline._releases))
    monkeypatch.setattr(pipeline, "releasing", None)
    assert await answering(pipeline, 3, model="other") == {1: 3}
    assert LookedUp.times == 3


# Every dialect


def a_row(**more: Any) -> bytes:
    return json.dumps(more).encode()


ROW = [[1, 2, 3, 4]]
OIP = {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}]}

TENSOR_FORMS: list[tuple[str, bytes]] = [
    ("/mesh/v1/models/digits/infer", a_row(inputs={"x": ROW})),
    ("/mesh/v1/models/digits/stream", a_row(inputs={"x": ROW})),
    ("/v2/models/digits/infer", a_row(**OIP)),
    ("/v2/models/digits/generate", a_row(x=ROW)),
    ("/v1/models/digits:predict", a_row(instances=ROW)),
    ("/predictions/digits", a_row(instances=ROW)),
    ("/inference/digits", a_row(x=ROW)),
]
TEXT_FORMS: list[tuple[str, bytes]] = [
    ("/v1/completions", a_row(model="writer", prompt="hi")),
    ("/v1/completions", a_row(model="writer", prompt=["hi", "ho"])),
    ("/v1/completions", a_row(model="writer", prompt="hi", stream=True)),
]


async def post(
    dispatcher: Dispatcher, path: str, body: bytes, headers: dict[str, str], key: str = ""
) -> str:
    """Return the `Mesh-Route` of an answer that was read to its end."""
    caller = Caller(Scope.INFER, key)
    http = HttpRequest("POST", path, "", headers, body, caller)
    reply: Any = dispatcher.answer(dispatcher.match("POST", path), http, "r1")
    if inspect.isawaitable(reply):
        reply = await reply
    assert isinstance(reply, HttpResponse | HttpStream)
    assert reply.status == 200
    if isinstance(reply, HttpStream):
        body = b"".join([bytes(piece) async for piece in reply.parts])
        assert b"error" not in body
    return reply.headers["Mesh-Route"]


@pytest.fixture(params=["tensors", "text"])
def forms(
    request: pytest.FixtureRequest, versions: dict[int, Manifest], local: Versions
) -> list[tuple[str, bytes]]:
    """The forms in which one kind of model can be asked; both versions are of that kind."""
    if request.param == "tensors":
        return TENSOR_FORMS

    async def behave(_asked: InferRequest) -> InferResponse:
        async def parts() -> AsyncIterator[ResponsePart]:
            yield says("so")

        return InferResponse("writer", _asked.version or 0, parts())

    local.inline, local.behave = False, behave
    for number in versions:
        versions[number] = msgspec.structs.replace(
            model(outputs=(TEXT,), tasks=("completion",)), version=number
        )
    return TEXT_FORMS


async def test_every_dialect_is_split(
    dispatcher: Dispatcher, begin: Begin, forms: list[tuple[str, bytes]]
) -> None:
    begin(0.5)
    for path, body in forms:
        found = Counter[str]()
        for _ in range(40):
            route = await post(dispatcher, path, body, {})
            found[route.partition("version=")[2][0]] += 1
        assert min(found["1"], found["2"]) >= 8, path


async def test_the_header_that_a_release_names_decides_in_every_dialect(
    dispatcher: Dispatcher, begin: Begin, forms: list[tuple[str, bytes]]
) -> None:
    begin(0.5, split_by="header:X-Cohort", only=("beta", "staff"))
    for path, body in forms:
        for cohort, version in (("staff", NEW), ("all", OLD)):
            for _ in range(5):
                route = await post(dispatcher, path, body, {"x-cohort": cohort})
                assert f"version={version}" in route, path
        assert f"version={OLD}" in await post(dispatcher, path, body, {})


@pytest.mark.parametrize("split_by", ["key", "session", "header:X-User"])
async def test_the_same_key_session_or_user_gets_the_same_version_in_every_dialect(
    dispatcher: Dispatcher, begin: Begin, forms: list[tuple[str, bytes]], split_by: str
) -> None:
    begin(0.5, split_by=split_by)
    by_name: dict[str, set[str]] = {}
    for path, body in forms:
        for user in ("ann", "bob", "cem", "dora", "emil", "fay", "gus", "hal", "ida", "jo"):
            headers = {"mesh-session": user} if split_by == "session" else {"x-user": user}
            key = user if split_by == "key" else ""
            for _ in range(2):
                route = await post(dispatcher, path, body, headers, key)
                by_name.setdefault(user, set()).add(route.partition("version=")[2][0])
    assert {len(found) for found in by_name.values()} == {1}
    assert {version for found in by_name.values() for version in found} == {"1", "2"}


@pytest.mark.parametrize("error", [InferenceFailed("it raised"), InvalidRequest("no")])
async def test_no_dialect_shows_a_failure_of_the_new_version(
    dispatcher: Dispatcher, begin: Begin, forms: list[tuple[str, bytes]], local: Versions,
    error: MeshError,
) -> None:  # fmt: skip
    begin(1.0)
    local.fails[NEW] = error
    for path, body in forms:
        assert f"version={OLD}" in await post(dispatcher, path, body, {}), path


async def test_a_job_is_split_as_the_call_that_it_is_made_of(
    dispatcher: Dispatcher, begin: Begin, local: Versions
) -> None:
    """Of a call's headers a job keeps those that begin with Mesh-, so that is how such a header is named."""
    begin(0.5, split_by="header:Mesh-Cohort", only=("staff",))
    from meshnode.gateway.jobs_api import call_headers

    for cohort, version in (("staff", NEW), ("all", OLD)):
        headers = dict(call_headers({"Mesh-Cohort": cohort, "X-Other": "1"}))
        caller = Caller(Scope.INFER, "k", job="j1")
        path, body = TENSOR_FORMS[0]
        reply = dispatcher.match("POST", path).answer(
            HttpRequest("POST", path, "", headers, body, caller), "r1"
        )
        response = await reply if inspect.isawaitable(reply) else reply
        assert f"version={version}" in response.headers["Mesh-Route"]
    assert local.requests
    assert echo_part(ask()).outputs
