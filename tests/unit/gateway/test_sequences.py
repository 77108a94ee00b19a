"""Requests of sequences, and those that must not run twice, on their way over the replicas."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from meshnode.errors import (
    DeadlineExceeded,
    InvalidRequest,
    LinkLost,
    NotServing,
    OutcomeUnknown,
    Saturated,
    SequenceLost,
)
from meshnode.gateway.protocols.status import error_response
from meshnode.models.execution import Execution, SequenceBatching
from meshnode.types import DataType, InferRequest, InferResponse, NodeId, Tensor
from tests.unit.gateway.conftest import echo_part

if TYPE_CHECKING:
    from meshnode.gateway.pipeline import Pipeline
    from meshnode.models.manifest import Manifest
    from meshnode.routing.router import Router

Serve = Callable[..., None]
ME = NodeId("a" * 32)
X = Tensor("x", DataType.FP32, (1, 4), bytes(16))
SEQUENCES = Execution(repeatable=False, sequences=SequenceBatching(max_idle_us=5_000_000))


def ask(sequence_id: int | str | None = None, **parameters: Any) -> InferRequest:
    if sequence_id is not None:
        parameters["sequence_id"] = sequence_id
    return InferRequest("digits", (X,), parameters=parameters, timeout_s=5.0)


def start(sequence_id: int | str) -> InferRequest:
    return ask(sequence_id, sequence_start=True)


def who(local: Any, peers: Any) -> list[NodeId]:
    """Return who was asked, in no order between this node and the others."""
    return [ME] * len(local.requests) + [node for node, _, _ in peers.calls]


@pytest.fixture
def once(manifest: Manifest, serve: Serve) -> None:
    """Serve a model whose requests must not run twice, on two peers."""
    what = msgspec.structs.replace(manifest, execution=Execution(repeatable=False))
    for node in ("beta", "gamma"):
        serve(node, what)


@pytest.fixture
def chat(manifest: Manifest, serve: Serve) -> Manifest:
    """Serve a model with sequences here and on three peers."""
    what = msgspec.structs.replace(manifest, execution=SEQUENCES)
    for node in ("alpha", "beta", "gamma", "delta"):
        serve(node, what)
    return what


# Requests that must not run twice.


@pytest.mark.usefixtures("once")
async def test_a_request_whose_link_broke_is_not_sent_to_another_replica(
    pipeline: Pipeline, peers: Any, metrics: Any
) -> None:
    async def break_off(node: NodeId, request: InferRequest) -> InferResponse:
        raise LinkLost("the connection broke")

    peers.behave = break_off
    with pytest.raises(
        OutcomeUnknown, match="may have run, and it was not tried elsewhere"
    ) as caught:
        await pipeline.infer(ask())
    assert len(peers.calls) == 1
    assert caught.value.mesh_route.endswith(':link_lost"')
    assert metrics.requests.values == {("digits", "outcome_unknown"): 1}


def test_no_client_or_proxy_is_invited_to_repeat_it() -> None:
    for error in (OutcomeUnknown("x"), SequenceLost("x")):
        response = error_response(error)
        assert response.status == 500
        assert response.headers["Mesh-Error"] == error.code
        assert "Retry-After" not in response.headers


@pytest.mark.usefixtures("once")
@pytest.mark.parametrize("refusal", [Saturated("full"), NotServing("unloaded")])
async def test_a_request_that_was_refused_is_sent_to_another(
    pipeline: Pipeline, peers: Any, refusal: Exception
) -> None:
    async def refuse_first(node: NodeId, request: InferRequest) -> InferResponse:
        if len(peers.calls) == 1:
            raise refusal
        return InferResponse(request.model, 1, echo_part(request))

    peers.behave = refuse_first
    await pipeline.infer(ask())
    assert len({node for node, _, _ in peers.calls}) == 2


@pytest.mark.usefixtures("once")
async def test_the_first_byte_may_take_all_the_time_that_the_request_has(
    pipeline: Pipeline, peers: Any
) -> None:
    await pipeline.infer(ask())
    assert [timeout_s for _, _, timeout_s in peers.calls] == [5.0]


async def test_a_local_request_that_is_late_says_that_it_may_have_run(
    pipeline: Pipeline, manifest: Manifest, serve: Serve, local: Any
) -> None:
    serve(what=msgspec.structs.replace(manifest, execution=Execution(repeatable=False)))
    local.inline = False

    async def hang(request: InferRequest) -> InferResponse:
        await asyncio.Event().wait()
        raise AssertionError

    local.behave = hang
    request = msgspec.structs.replace(ask(), timeout_s=0.01)
    with pytest.raises(DeadlineExceeded, match="the request may have run"):
        await pipeline.infer(request)


# Sequences.


@pytest.mark.usefixtures("chat")
async def test_all_requests_of_a_sequence_reach_one_replica_also_where_this_node_is_another(
    pipeline: Pipeline, local: Any, peers: Any
) -> None:
    """Even though the model of this node would answer at once."""
    homes = set()
    for number in range(1, 30):
        local.requests.clear()
        peers.calls.clear()
        await pipeline.infer(start(number))
        for _ in range(3):
            await pipeline.infer(ask(number))
        answered = await pipeline.infer(ask(number, sequence_end=True))
        (home,) = set(who(local, peers))
        assert len(who(local, peers)) == 5
        assert answered.route_header.endswith("candidates=1; attempts=1; reason=sequence")
        homes.add(home)
    assert len(homes) == 4


async def test_a_new_replica_does_not_take_a_running_sequence(
    pipeline: Pipeline, manifest: Manifest, serve: Serve, peers: Any
) -> None:
    what = msgspec.structs.replace(manifest, execution=SEQUENCES)
    serve("beta", what)
    for number in range(1, 20):
        await pipeline.infer(start(number))
    for node in ("gamma", "delta"):
        serve(node, what)
    for number in range(1, 20):
        await pipeline.infer(ask(number))
    assert {node for node, _, _ in peers.calls} == {NodeId("b" * 32)}


@pytest.mark.usefixtures("chat")
async def test_a_sequence_whose_replica_is_gone_has_to_be_started_anew(
    pipeline: Pipeline, router: Router, local: Any, peers: Any
) -> None:
    router.replica_removed(ME, "digits", 1)
    await pipeline.infer(start("talk"))
    (home,) = who(local, peers)
    router.replica_removed(home, "digits", 1)
    with pytest.raises(SequenceLost, match="nothing ran; start the sequence anew"):
        await pipeline.infer(ask("talk"))
    assert len(peers.calls) == 1
    await pipeline.infer(start("talk"))
    await pipeline.infer(ask("talk"))
    assert [node for node, _, _ in peers.calls].count(home) == 1


@pytest.mark.usefixtures("chat")
async def test_a_link_that_breaks_ends_the_sequence_for_its_client(
    pipeline: Pipeline, router: Router, peers: Any
) -> None:
    router.replica_removed(ME, "digits", 1)
    await pipeline.infer(start(7))
    peers.script = {node: LinkLost("gone") for node in map(NodeId, ("b" * 32, "c" * 32, "d" * 32))}
    with pytest.raises(SequenceLost, match="the request may have run; start the sequence anew"):
        await pipeline.infer(ask(7))
    assert len(peers.calls) == 2


@pytest.mark.usefixtures("chat")
async def test_a_request_without_an_id_is_refused_in_the_replicas_words(
    pipeline: Pipeline, router: Router, peers: Any
) -> None:
    router.replica_removed(ME, "digits", 1)
    refusal = InvalidRequest("each request needs the parameter 'sequence_id'")
    peers.script = dict.fromkeys(map(NodeId, ("b" * 32, "c" * 32, "d" * 32)), refusal)
    for request in (ask(), ask(0), ask(True), ask("")):
        with pytest.raises(InvalidRequest, match="needs the parameter 'sequence_id'"):
            await pipeline.infer(request)
    assert len(peers.calls) == 4


async def test_the_parameters_of_a_model_without_sequences_are_its_own_business(
    pipeline: Pipeline, serve: Serve, router: Router
) -> None:
    serve()
    serve("beta")
    answered = await pipeline.infer(start(7))
    assert answered.route_header.endswith("reason=inline")
    assert len(router.sequences) == 0
