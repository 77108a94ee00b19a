"""One request's way over the replicas of its model, with fake models and real routing."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any

import pytest

from meshnode.errors import (
    DeadlineExceeded,
    InferenceFailed,
    InvalidRequest,
    LinkLost,
    MeshError,
    ModelNotFound,
    NoReplica,
    NotServing,
    Saturated,
    TooLarge,
)
from meshnode.gateway import pipeline as pipeline_module
from meshnode.gateway.targets import Answered
from meshnode.limits import MAX_BODY_BYTES
from meshnode.models.manifest import TensorSpec
from meshnode.routing.table import Goal
from meshnode.tracing import Trace
from meshnode.types import DataType, InferRequest, InferResponse, NodeId, ResponsePart, Tensor

if TYPE_CHECKING:
    from meshnode.gateway.metrics import GatewayMetrics
    from meshnode.gateway.pipeline import Pipeline
    from meshnode.models.manifest import Manifest
    from meshnode.routing.attempts import Attempts
    from meshnode.routing.request import RoutedRequest
    from meshnode.routing.router import Router

Serve = Callable[..., None]
X = Tensor("x", DataType.FP32, (1, 4), bytes(16))
BETA, GAMMA = NodeId("b" * 32), NodeId("c" * 32)


def ask(**changes: Any) -> InferRequest:
    fields: dict[str, Any] = {"model": "digits", "inputs": (X,), "timeout_s": 5.0} | changes
    return InferRequest(**fields)


def outstanding(router: Router, *nodes: NodeId) -> int:
    return sum(router.book.load(node, "digits", 1).outstanding for node in nodes)


# A model that runs inline here.


async def test_an_inline_model_of_this_node_answers_at_once(
    pipeline: Pipeline, serve: Serve, local: Any, metrics: GatewayMetrics
) -> None:
    serve()
    target = pipeline.resolve("digits", None)
    answered = pipeline.answer(ask(version=1), target)
    assert isinstance(answered, Answered)
    assert answered.response.single == ResponsePart((X,))
    assert answered.route_header == (
        "node=alpha; region=eu-west; version=1; expected_ms=1.5; candidates=1; attempts=1; "
        "reason=inline"
    )
    assert metrics.requests.values == {("digits", "ok"): 1}
    assert metrics.attempts.values == {}


@pytest.mark.parametrize("inline", [True, False])
async def test_an_answer_that_was_kept_is_told_in_the_routes_header(
    pipeline: Pipeline, serve: Serve, local: Any, inline: bool
) -> None:
    serve()
    local.inline = inline
    kept = await pipeline.infer(ask(parameters={"cache": "hit"}))  # the model server echoes them
    assert kept.route_header.endswith("; cache=hit")
    assert "cache" not in (await pipeline.infer(ask())).route_header


async def test_routing_hears_of_the_load_of_inline_answers_now_and_then(
    pipeline: Pipeline, serve: Serve, router: Router, clock: Any
) -> None:
    serve()
    load = router.book.load(NodeId("a" * 32), "digits", 1)
    reports = []
    for _ in range(5):
        await pipeline.infer(ask())
        reports.append(load.reported_at)
        clock.time_s += 0.6
    assert reports == pytest.approx([100.0, 100.0, 101.2, 101.2, 102.4])


async def test_each_form_of_request_is_checked_even_if_the_last_was_good(
    pipeline: Pipeline, serve: Serve, metrics: GatewayMetrics
) -> None:
    serve()
    wrong = Tensor("x", DataType.FP32, (1, 5), bytes(20))
    for _ in range(2):
        await pipeline.infer(ask())
        for bad in (ask(inputs=(wrong,)), ask(inputs=()), ask(inputs=(X, X)), ask(outputs=("z",))):
            with pytest.raises(InvalidRequest):
                await pipeline.infer(bad)
    assert metrics.requests.values == {("digits", "ok"): 2, ("digits", "invalid_request"): 8}


async def test_an_inline_model_that_raises_is_not_tried_elsewhere(
    pipeline: Pipeline, serve: Serve, local: Any, peers: Any
) -> None:
    serve()
    serve("beta")
    local.fail = InferenceFailed("it raised")
    with pytest.raises(InferenceFailed):
        await pipeline.infer(ask())
    assert peers.calls == []


@pytest.mark.parametrize("refusal", [NotServing("paused"), Saturated("out of memory")])
async def test_an_inline_model_of_a_node_that_refuses_for_now_is_run_elsewhere(
    pipeline: Pipeline, serve: Serve, local: Any, peers: Any, refusal: MeshError
) -> None:
    """As while its owner's memory limit is exceeded, or before it is known to be paused."""
    serve()
    serve("beta")
    local.fail = refusal
    answered = await pipeline.infer(ask())
    assert "node=beta" in answered.route_header
    assert [call[0] for call in peers.calls] == [BETA]


async def test_the_inline_entry_goes_when_this_node_stops_serving(
    pipeline: Pipeline, serve: Serve, router: Router, local: Any, peers: Any
) -> None:
    serve()
    serve("beta")
    await pipeline.infer(ask())
    router.replica_removed(NodeId("a" * 32), "digits", 1)
    answered = await pipeline.infer(ask())
    assert "node=beta" in answered.route_header
    assert not pipeline._inline


# Resolution.


def test_unknown_models_and_missing_replicas_are_told_apart(
    pipeline: Pipeline, serve: Serve, router: Router
) -> None:
    with pytest.raises(ModelNotFound):
        pipeline.resolve("digits", None)
    serve(known=False)
    with pytest.raises(NoReplica, match="not known here yet"):
        pipeline.resolve("digits", None)
    with pytest.raises(ModelNotFound):
        pipeline.resolve("digits", 9)


async def test_other_files_under_the_same_version_are_not_asked(
    pipeline: Pipeline,
    serve: Serve,
    make_manifest: Callable[..., Manifest],
    router: Router,
    local: Any,
    peers: Any,
) -> None:
    """This node still has the old files; the request is checked against, and sent to, the new."""
    serve()
    serve("beta")
    new = make_manifest(TensorSpec("z", DataType.FP32, (2,)))
    (beta,) = (each for each in router.table.replicas("digits", 1) if each.node == BETA)
    router.replica_changed(dataclasses.replace(beta, manifest=new, digest="new"), 100.0)
    await pipeline.infer(ask())
    assert (len(local.requests), peers.calls) == (1, [])
    router.wanted_changed("digits", {1: Goal(new, "new", "it is placed on beta")})
    with pytest.raises(InvalidRequest, match="its inputs are 'z'"):
        await pipeline.infer(ask())
    answered = await pipeline.infer(ask(inputs=(Tensor("z", DataType.FP32, (2,), bytes(8)),)))
    assert "node=beta" in answered.route_header
    assert len(local.requests) == 1


async def test_without_a_version_the_newest_ready_one_answers(
    pipeline: Pipeline, serve: Serve, make_manifest: Callable[..., Manifest], peers: Any
) -> None:
    serve()
    serve("beta", make_manifest(version=2))
    assert (await pipeline.infer(ask())).response.version == 2
    assert (await pipeline.infer(ask(version=1))).response.version == 1
    assert [call[1].version for call in peers.calls] == [2]


@pytest.mark.parametrize("trace", [Trace("a" * 32, "b" * 16, "c" * 16, "01"), None])
async def test_all_tries_of_a_request_belong_to_one_span(
    pipeline: Pipeline,
    serve: Serve,
    peers: Any,
    caplog: pytest.LogCaptureFixture,
    trace: Trace | None,
) -> None:
    caplog.set_level(logging.DEBUG, "meshnode")
    serve("beta")
    serve("gamma")
    peers.script = {BETA: LinkLost("gone"), GAMMA: LinkLost("gone")}
    with pytest.raises(NoReplica):
        await pipeline.infer(ask(request_id="r1", trace=trace))
    (sent,) = {call[1].trace for call in peers.calls}
    assert trace in (None, sent)
    assert len(caplog.records) == len(peers.calls) + 1
    for record in caplog.records:
        fields = vars(record)
        assert (fields["request_id"], fields["trace_id"]) == ("r1", sent.trace_id)
        assert (fields["span_id"], fields["parent_id"]) == (sent.span_id, sent.parent_id)


async def test_an_older_version_takes_over_when_the_newest_loses_its_last_replica(
    pipeline: Pipeline,
    serve: Serve,
    make_manifest: Callable[..., Manifest],
    peers: Any,
    router: Router,
) -> None:
    serve("gamma")
    serve("beta", make_manifest(version=2))

    async def die(node: NodeId, request: InferRequest) -> InferResponse:
        if node == BETA:
            router.replica_removed(BETA, "digits", 2)
            raise LinkLost("beta died")
        return InferResponse(request.model, request.version or 0, ResponsePart(()))

    peers.behave = die
    assert (await pipeline.infer(ask())).response.version == 1
    serve("beta", make_manifest(version=2))
    with pytest.raises(ModelNotFound):  # who insists on a version gets that or nothing
        await pipeline.infer(ask(version=2))


# Tries on other nodes.


async def test_a_lost_link_is_retried_on_another_replica_and_the_route_says_so(
    pipeline: Pipeline, serve: Serve, peers: Any, metrics: GatewayMetrics, router: Router
) -> None:
    serve("beta")
    serve("gamma")
    peers.script = {BETA: LinkLost("gone"), GAMMA: LinkLost("gone")}
    first = peers.script
    with pytest.raises(NoReplica, match="link_lost"):
        await pipeline.infer(ask())
    assert {call[0] for call in peers.calls} == {BETA, GAMMA}
    assert metrics.attempts.values == {("peer", "link_lost"): 2}
    assert metrics.requests.values == {("digits", "no_replica"): 1}
    assert outstanding(router, BETA, GAMMA) == 0
    assert first is peers.script


async def test_the_answer_of_the_second_replica_names_the_first(
    pipeline: Pipeline, serve: Serve, peers: Any
) -> None:
    serve("beta")
    serve("gamma")
    asked: list[NodeId] = []

    async def first_dies(node: NodeId, request: InferRequest) -> InferResponse:
        asked.append(node)
        if len(asked) == 1:
            raise LinkLost("gone")
        return InferResponse(request.model, request.version or 0, ResponsePart((X,)))

    peers.behave = first_dies
    answered = await pipeline.infer(ask())
    failed, won = ("beta", "gamma") if asked[0] == BETA else ("gamma", "beta")
    assert answered.route_header.startswith(f"node={won}; region=eu-west; version=1;")
    assert f'attempts=2; reason=only-candidate; tried="{failed}:link_lost"' in answered.route_header


@pytest.mark.parametrize("error", [InvalidRequest("bad"), TooLarge("big")])
async def test_what_another_replica_would_refuse_too_is_not_retried(
    pipeline: Pipeline, serve: Serve, peers: Any, error: Exception
) -> None:
    serve("beta")
    serve("gamma")
    peers.script = {BETA: error, GAMMA: error}
    with pytest.raises(type(error)):
        await pipeline.infer(ask())
    assert len(peers.calls) == 1


async def test_a_peer_is_told_the_time_that_remains(
    pipeline: Pipeline, serve: Serve, peers: Any, clock: Any
) -> None:
    serve("beta")
    serve("gamma")
    times: list[float] = []

    async def slow(node: NodeId, request: InferRequest) -> InferResponse:
        times.append(request.timeout_s)
        clock.time_s += 1.5
        if len(times) == 1:
            raise LinkLost("late")
        return InferResponse(request.model, 1, ResponsePart(()))

    peers.behave = slow
    await pipeline.infer(ask())
    assert times == [5.0, 3.5]
    assert peers.calls[0][2] <= 5.0


async def test_no_try_is_made_when_no_time_is_left(
    pipeline: Pipeline, serve: Serve, peers: Any
) -> None:
    serve("beta")
    with pytest.raises(DeadlineExceeded):
        await pipeline.infer(ask(timeout_s=0.0))
    assert peers.calls == []


# A local model that does not run inline.


async def test_a_longer_local_model_answers_through_its_queue(
    pipeline: Pipeline, serve: Serve, local: Any, metrics: GatewayMetrics, router: Router
) -> None:
    serve()
    local.inline = False
    answered = await pipeline.infer(ask())
    assert "node=alpha" in answered.route_header
    assert metrics.attempts.values == {("local", "ok"): 1}
    assert local.requests[0].version == 1
    assert router.book.load(NodeId("a" * 32), "digits", 1).service_ms == 1.5  # it was reported


async def test_a_local_model_that_does_not_answer_in_time_is_cancelled(
    pipeline: Pipeline, serve: Serve, local: Any, clock: Any
) -> None:
    serve()
    local.inline = False
    stopped = []

    async def hang(request: InferRequest) -> InferResponse:
        try:
            clock.time_s += 5
            await asyncio.Event().wait()
        finally:
            stopped.append(request)
        raise AssertionError

    local.behave = hang
    with pytest.raises(DeadlineExceeded):
        await pipeline.infer(ask(timeout_s=0.01))
    assert len(stopped) == 1
    assert pipeline.in_flight == 0


async def test_a_node_that_stopped_serving_is_passed_over(
    pipeline: Pipeline, serve: Serve, local: Any, metrics: GatewayMetrics
) -> None:
    serve()
    serve("beta")
    local.inline, local.gone = False, True
    local.fail = NotServing("unloaded a moment ago")
    for _ in range(4):  # until the draw falls on this node first
        assert "node=beta" in (await pipeline.infer(ask())).route_header
    assert metrics.attempts.get(("local", "not_serving")) >= 1


# Bookkeeping.


async def test_cancelling_a_request_cancels_the_try_and_closes_its_flight(
    pipeline: Pipeline, serve: Serve, peers: Any, router: Router, metrics: GatewayMetrics
) -> None:
    serve("beta")
    started = asyncio.Event()
    cancelled = []

    async def hang(node: NodeId, request: InferRequest) -> InferResponse:
        started.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(node)
            raise
        raise AssertionError

    peers.behave = hang
    task = asyncio.create_task(pipeline.infer(ask()))
    await started.wait()
    assert pipeline.in_flight == 1
    assert outstanding(router, BETA) == 1
    assert "1 in flight" in repr(pipeline)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert cancelled == [BETA]
    assert pipeline.in_flight == 0
    assert outstanding(router, BETA) == 0
    assert metrics.requests.values == {("digits", "cancelled"): 1}


async def test_a_defect_is_counted_and_leaves_nothing_open(
    pipeline: Pipeline, serve: Serve, peers: Any, router: Router, metrics: GatewayMetrics
) -> None:
    serve("beta")

    async def broken(node: NodeId, request: InferRequest) -> InferResponse:
        raise ZeroDivisionError

    peers.behave = broken
    with pytest.raises(ZeroDivisionError):
        await pipeline.infer(ask())
    assert metrics.requests.values == {("digits", "internal"): 1}
    assert (pipeline.in_flight, outstanding(router, BETA)) == (0, 0)


async def test_too_many_requests_at_once_are_refused(
    pipeline: Pipeline, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve("beta")
    monkeypatch.setattr(pipeline_module, "MAX_REQUESTS_IN_FLIGHT", 0)
    with pytest.raises(Saturated, match="too many requests"):
        await pipeline.infer(ask())


# Streams.


def streaming(*parts: ResponsePart, then: Exception | None = None) -> Callable[..., Any]:
    async def answer(node: NodeId, request: InferRequest) -> InferResponse:
        async def stream() -> AsyncIterator[ResponsePart]:
            for part in parts:
                yield part
            if then is not None:
                raise then

        return InferResponse(request.model, request.version or 0, stream())

    return answer


async def test_a_stream_is_in_flight_until_its_end(
    pipeline: Pipeline, serve: Serve, peers: Any, router: Router, metrics: GatewayMetrics
) -> None:
    serve("beta")
    peers.behave = streaming(ResponsePart((X,)), ResponsePart(()))
    answered = await pipeline.infer(ask())
    assert (pipeline.in_flight, outstanding(router, BETA)) == (1, 1)
    parts = [part async for part in answered.response]
    assert parts == [ResponsePart((X,)), ResponsePart(())]
    assert (pipeline.in_flight, outstanding(router, BETA)) == (0, 0)
    assert metrics.requests.values == {("digits", "ok"): 1}


async def test_a_stream_that_breaks_is_an_error_and_is_not_tried_again(
    pipeline: Pipeline, serve: Serve, peers: Any, router: Router, metrics: GatewayMetrics
) -> None:
    serve("beta")
    serve("gamma")
    peers.behave = streaming(ResponsePart((X,)), then=LinkLost("in the middle"))
    answered = await pipeline.infer(ask())
    said = r"(beta|gamma) was lost in the middle of its answer .* may have run .*; .*send it again"
    with pytest.raises(LinkLost, match=said):
        async for _ in answered.response:
            pass
    assert len(peers.calls) == 1
    assert (pipeline.in_flight, outstanding(router, BETA, GAMMA)) == (0, 0)
    assert metrics.requests.values == {("digits", "link_lost"): 1}


async def test_a_stream_that_nobody_reads_to_its_end_is_closed(
    pipeline: Pipeline, serve: Serve, peers: Any, router: Router, metrics: GatewayMetrics
) -> None:
    serve("beta")
    peers.behave = streaming(ResponsePart((X,)), ResponsePart(()))
    answered = await pipeline.infer(ask())
    assert answered.response._parts is not None
    relay: Any = answered.response._parts
    await anext(relay)
    await relay.aclose()
    assert (pipeline.in_flight, outstanding(router, BETA)) == (0, 0)
    assert metrics.requests.values == {("digits", "cancelled"): 1}


@pytest.mark.parametrize(
    ("parameters", "tokens"),
    [
        ({}, 0),
        ({"max_tokens": 300}, 300),
        ({"max_tokens": -3}, 0),
        ({"max_tokens": 10**30}, MAX_BODY_BYTES),
        ({"max_tokens": True}, 0),
        ({"max_tokens": "many"}, 0),
        ({"max_tokens": 2.5}, 0),
    ],
)
async def test_routing_hears_how_many_tokens_a_request_may_have_written(
    parameters: dict[str, Any],
    tokens: int,
    pipeline: Pipeline,
    serve: Serve,
    router: Router,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    serve("beta")
    planned: list[RoutedRequest] = []
    plan = router.plan

    def spied(request: RoutedRequest, now: float) -> Attempts:
        planned.append(request)
        return plan(request, now)

    monkeypatch.setattr(router, "plan", spied)
    await pipeline.infer(ask(parameters=parameters))
    assert [each.tokens for each in planned] == [tokens]
