"""Streams whose node is lost in the middle: they go on elsewhere, exactly, or end with an error."""

from __future__ import annotations

import json
import struct
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from meshnode.errors import InferenceFailed, InvalidRequest, LinkLost, MeshError, ProtocolError
from meshnode.gateway.answer_streams import (
    DELIVERED_PARAMETER,
    DELIVERED_PARTS_PARAMETER,
    Delivered,
)
from meshnode.limits import MAX_DELIVERED_TEXT_LENGTH
from meshnode.models.execution import DEFAULT_EXECUTION, Resumable
from meshnode.models.manifest import Manifest, TensorSpec
from meshnode.types import (
    DataType,
    InferRequest,
    InferResponse,
    KeptAs,
    NodeId,
    ResponsePart,
    Tensor,
)

if TYPE_CHECKING:
    from meshnode.gateway.pipeline import Pipeline
    from meshnode.routing.router import Router
    from tests.unit.gateway.conftest import FakeClock, FakeLocal, FakePeers

Serve = Callable[..., None]
ALPHA, BETA, GAMMA = NodeId("a" * 32), NodeId("b" * 32), NodeId("c" * 32)
TEXT = "the answer"
LOST = LinkLost("the link to the node was lost")


def text(value: str) -> Tensor:
    data = value.encode()
    return Tensor("text", DataType.BYTES, (1,), struct.pack("<I", len(data)) + data)


def letter(value: str) -> ResponsePart:
    return ResponsePart((text(value),))


def writer(resumable: Resumable) -> Manifest:
    execution = msgspec.structs.replace(DEFAULT_EXECUTION, decoupled=True, resumable=resumable)
    specs = (TensorSpec("text", DataType.BYTES, (1,)),)
    return Manifest("writer", 1, "python", "python", specs, specs, 0, (), "m.py", execution)


def ask(**changes: Any) -> InferRequest:
    fields: dict[str, Any] = {"model": "writer", "inputs": (text("?"),), "timeout_s": 5.0} | changes
    return InferRequest(**fields)


class Writers:
    """Two nodes that write the same text; the first that is asked is lost after some letters."""

    def __init__(self, peers: FakePeers, serve: Serve) -> None:
        peers.behave = self.behave
        self.asked: list[tuple[NodeId, InferRequest]] = []
        self.closed = 0
        self.breaks: list[tuple[int, MeshError]] = [(4, LOST)]  # of each node that is asked
        self.texts = [TEXT, TEXT, TEXT, TEXT]
        self._serve = serve

    def begin(self, resumable: Resumable, nodes: str = "beta gamma") -> None:
        for node in nodes.split():
            self._serve(node, writer(resumable))

    async def behave(self, node: NodeId, request: InferRequest) -> InferResponse:
        number = len(self.asked)
        self.asked.append((node, request))
        begin = int(request.parameters.get(DELIVERED_PARTS_PARAMETER, 0))
        return InferResponse("writer", 1, self._parts(number, begin))

    async def _parts(self, number: int, begin: int) -> AsyncIterator[ResponsePart]:
        breaks, error = self.breaks[number] if number < len(self.breaks) else (99, LOST)
        try:
            for place, each in enumerate(self.texts[number]):
                if place >= begin:
                    if place == breaks:
                        raise error
                    yield letter(each)
            yield ResponsePart((), {"triton_final_response": True})
        finally:
            self.closed += 1


@pytest.fixture
def writers(peers: FakePeers, serve: Serve) -> Writers:
    return Writers(peers, serve)


async def read(pipeline: Pipeline, request: InferRequest | None = None) -> tuple[str, Any]:
    """Return the text that came, and the error that ended it, or None."""
    answered = await pipeline.infer(request or ask())
    came = ""
    try:
        async for part in answered.response:
            came += "".join(bytes(each.data[4:]).decode() for each in part.outputs)
    except MeshError as error:
        return came, error
    return came, None


def at_rest(pipeline: Pipeline, router: Router) -> bool:
    nodes = (BETA, GAMMA)
    flying = sum(router.book.load(node, "writer", 1).outstanding for node in nodes)
    return pipeline.in_flight == 0 and flying == 0


async def test_a_stream_that_ran_longer_than_its_request_has_time_goes_on_at_another_node(
    pipeline: Pipeline, writers: Writers, clock: FakeClock
) -> None:
    writers.begin(Resumable.REPLAY)
    answered = await pipeline.infer(ask(timeout_s=5.0))
    came = ""
    async for part in answered.response:
        came += "".join(bytes(each.data[4:]).decode() for each in part.outputs)
        clock.time_s += 4.0
    assert came == TEXT
    assert [request.timeout_s for _, request in writers.asked] == [5.0, 5.0]


@pytest.mark.parametrize("resumable", [Resumable.REPLAY, Resumable.DELIVERED])
@pytest.mark.parametrize(
    "error", [LOST, ProtocolError("malformed"), InferenceFailed("the process died")]
)
async def test_a_resumable_stream_goes_on_at_another_node_without_loss_or_repeat(
    pipeline: Pipeline, router: Router, writers: Writers, resumable: Resumable, error: MeshError
) -> None:
    writers.begin(resumable)
    writers.breaks = [(4, error)]
    assert await read(pipeline) == (TEXT, None)
    (first, one), (second, other) = writers.asked
    assert {first, second} == {BETA, GAMMA}
    assert one.parameters["seed"] == other.parameters["seed"]
    assert other.version == 1
    assert at_rest(pipeline, router)
    assert writers.closed == 2


async def test_a_model_that_wants_it_is_told_what_came_already(
    pipeline: Pipeline, writers: Writers
) -> None:
    writers.begin(Resumable.DELIVERED)
    assert await read(pipeline, ask(parameters={"seed": 7, "temperature": 0.5})) == (TEXT, None)
    told = dict(writers.asked[1][1].parameters)
    assert json.loads(str(told.pop(DELIVERED_PARAMETER))) == {"text": TEXT[:4]}
    assert told == {"seed": 7, "temperature": 0.5, DELIVERED_PARTS_PARAMETER: 4}


@pytest.mark.parametrize("resumable", [Resumable.REPLAY, Resumable.DELIVERED])
async def test_a_stream_goes_on_more_than_once(
    pipeline: Pipeline, local: FakeLocal, writers: Writers, resumable: Resumable
) -> None:
    async def here(request: InferRequest) -> InferResponse:
        return await writers.behave(ALPHA, request)

    local.inline, local.behave = False, here
    writers.begin(resumable, "alpha beta gamma")
    writers.breaks = [(2, LOST), (5, LOST)]
    assert await read(pipeline) == (TEXT, None)
    assert {node for node, _ in writers.asked} == {ALPHA, BETA, GAMMA}


async def test_a_second_run_that_says_something_else_ends_in_an_error(
    pipeline: Pipeline, router: Router, writers: Writers
) -> None:
    writers.begin(Resumable.REPLAY)
    writers.texts[1] = "the ANSWER"
    writers.breaks = [(6, LOST)]
    came, error = await read(pipeline)
    assert came == TEXT[:6]
    assert isinstance(error, InferenceFailed)
    assert "another answer" in str(error)
    assert len(writers.asked) == 2
    assert at_rest(pipeline, router)


async def test_a_second_run_that_is_shorter_than_what_came_ends_in_an_error(
    pipeline: Pipeline, writers: Writers
) -> None:
    writers.begin(Resumable.REPLAY)
    writers.texts[1] = "the"
    came, error = await read(pipeline)
    assert (came, type(error)) == (TEXT[:4], InferenceFailed)
    assert "shorter" in str(error)


async def test_a_stream_of_another_model_ends_with_an_error_that_names_its_node(
    pipeline: Pipeline, router: Router, writers: Writers
) -> None:
    writers.begin(Resumable.NO)
    came, error = await read(pipeline)
    assert came == TEXT[:4]
    assert isinstance(error, LinkLost)
    assert "was lost in the middle of its answer" in str(error)
    assert len(writers.asked) == 1
    assert "seed" not in writers.asked[0][1].parameters
    assert at_rest(pipeline, router)


async def test_where_no_other_node_can_go_on_the_error_says_so(
    pipeline: Pipeline, router: Router, writers: Writers
) -> None:
    writers.begin(Resumable.REPLAY, "beta")
    came, error = await read(pipeline)
    assert came == TEXT[:4]
    assert isinstance(error, LinkLost)
    assert "nobody could go on with it" in str(error)
    assert at_rest(pipeline, router)


@pytest.mark.parametrize("error", [InvalidRequest("no such letter")])
async def test_what_is_the_callers_fault_is_not_tried_elsewhere(
    pipeline: Pipeline, writers: Writers, error: MeshError
) -> None:
    writers.begin(Resumable.REPLAY)
    writers.breaks = [(4, error)]
    assert await read(pipeline) == (TEXT[:4], error)
    assert len(writers.asked) == 1


async def test_a_client_that_hangs_up_stops_the_node_that_goes_on(
    pipeline: Pipeline, router: Router, writers: Writers
) -> None:
    writers.begin(Resumable.DELIVERED)
    answered = await pipeline.infer(ask())
    parts: Any = aiter(answered.response)
    for _ in range(6):
        await anext(parts)
    assert len(writers.asked) == 2
    await parts.aclose()
    assert writers.closed == 2
    assert at_rest(pipeline, router)


async def test_retries_that_the_budget_does_not_grant_are_not_made_for_streams_either(
    pipeline: Pipeline, router: Router, writers: Writers, monkeypatch: pytest.MonkeyPatch
) -> None:
    writers.begin(Resumable.REPLAY)
    monkeypatch.setattr(router.budget, "take", lambda _now: False)
    came, error = await read(pipeline)
    assert (came, type(error)) == (TEXT[:4], LinkLost)
    assert len(writers.asked) == 1


async def test_whoever_continues_a_kept_answer_keeps_it_under_its_name(
    pipeline: Pipeline, writers: Writers
) -> None:
    writers.begin(Resumable.DELIVERED)
    answered = await pipeline.infer(ask(keep=KeptAs("s" * 24, "me")))
    first = answered.response.executor
    assert [part async for part in answered.response]
    assert answered.response.executor != first
    assert writers.asked[1][1].keep == KeptAs("s" * 24, "me", 4)
    seeds = {request.parameters["seed"] for _, request in writers.asked}
    other = await pipeline.infer(ask(keep=KeptAs("s" * 24, "me")))
    assert {
        writers.asked[2][1].parameters["seed"]
    } == seeds  # whoever knows the name knows the seed
    assert [part async for part in other.response]


def test_text_is_told_to_a_model_only_where_it_is_text_and_not_too_long() -> None:
    assert Delivered().parameters is None  # nothing came
    delivered = Delivered()
    delivered.add(letter("ä"))
    delivered.add(letter("b"))
    assert delivered.parameters == {
        DELIVERED_PARAMETER: '{"text":"äb"}',
        DELIVERED_PARTS_PARAMETER: 2,
    }
    long = Delivered()
    long.add(letter("x" * MAX_DELIVERED_TEXT_LENGTH))
    long.add(letter("x"))
    assert long.parameters is None
    numbers = Delivered()
    numbers.add(ResponsePart((Tensor("x", DataType.FP32, (1,), bytes(4)),)))
    assert numbers.parameters is None
    half = Delivered()
    half.add(ResponsePart((Tensor("text", DataType.BYTES, (1,), b"\1\0\0\0\xff"),)))
    assert half.parameters is None
