"""Ensembles run: steps at once where they can, one deadline, errors that name the step."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from meshnode.errors import (
    DeadlineExceeded,
    InferenceFailed,
    MeshError,
    ModelError,
    NoReplica,
    NotServing,
    Saturated,
)
from meshnode.models.execution import EnsembleStep, Execution
from meshnode.models.manifest import Manifest, TensorSpec
from meshnode.models.runtimes import ensemble
from meshnode.models.runtimes.base import Environment, Opening, ProcessModel
from meshnode.models.runtimes.ensemble import EnsembleModel, EnsembleRuntime
from meshnode.models.serving.server import ModelServer
from meshnode.types import (
    DataType,
    InferRequest,
    InferResponse,
    ReplicaState,
    ResponsePart,
    Tensor,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

FP32 = DataType.FP32
SPECS = {
    name: TensorSpec(name, FP32, (-1,)) for name in ("IN", "A", "B", "OUT", "MORE", "x", "y", "z")
}


def step(model: str, reads: dict[str, str], writes: dict[str, str]) -> EnsembleStep:
    return EnsembleStep(model, 0, tuple(reads.items()), tuple(writes.items()))


DIAMOND = (
    step("left", {"x": "IN"}, {"y": "A"}),
    step("right", {"x": "IN"}, {"y": "B"}),
    step("join", {"x": "A", "z": "B"}, {"y": "OUT"}),
)


class Mesh:
    """Answers each model with its inputs' bytes and its own name behind them."""

    def __init__(self) -> None:
        self.asked: list[InferRequest] = []
        self.running: set[str] = set()
        self.both_run = asyncio.Event()
        self.at_once: set[frozenset[str]] = set()
        self.errors: dict[str, MeshError] = {}
        self.slow: set[str] = set()
        self.streams: set[str] = set()
        self.cancelled: list[str] = []
        self.manifests: dict[str, Manifest] = {}
        self.announced: dict[str, Manifest] = {}
        self.absent: dict[str, str] = {}

    async def infer(self, request: InferRequest) -> InferResponse:
        name = request.model
        self.asked.append(request)
        self.running.add(name)
        if len(self.running) == 2:
            self.both_run.set()
        self.at_once.add(frozenset(self.running))
        try:
            await asyncio.sleep(60.0 if name in self.slow else 0)
        except asyncio.CancelledError:
            self.cancelled.append(name)
            raise
        finally:
            self.running.discard(name)
        if name in self.errors:
            raise self.errors[name]
        data = b"".join(bytes(each.data) for each in request.inputs) + name[0].encode()
        part = ResponsePart((Tensor("y", FP32, (1,), data), Tensor("unasked", FP32, (1,), b"")))
        return InferResponse(name, 1, _stream(part) if name in self.streams else part)

    def environment(self) -> Environment:
        return Environment(
            infer=self.infer,
            manifest_of=lambda model, _: self.manifests.get(model),
            announced=lambda model, _: self.announced.get(model),
            why_absent=lambda model, _: self.absent.get(model, ""),
        )

    def unchecked(self) -> EnsembleModel:
        """Open one when no model is known yet."""
        known, self.manifests = self.manifests, {}
        try:
            return self.ensemble()
        finally:
            self.manifests = known

    def ensemble(
        self,
        steps: tuple[EnsembleStep, ...] = DIAMOND,
        outputs: tuple[str, ...] = ("OUT",),
    ) -> EnsembleModel:
        return EnsembleRuntime(self.environment()).load(
            Opening(
                folder=Path(), entry="", model="all", inputs=(SPECS["IN"],),
                outputs=tuple(SPECS[name] for name in outputs), execution=Execution(steps=steps),
            )
        )  # fmt: skip


async def _stream(*parts: ResponsePart) -> AsyncIterator[ResponsePart]:
    for part in parts:
        yield part


def request(
    data: bytes = b"1", timeout_s: float = 5.0, outputs: tuple[str, ...] = ()
) -> InferRequest:
    tensor = Tensor("IN", FP32, (1,), data)
    return InferRequest("all", (tensor,), None, outputs, "r1", {"priority": 2}, timeout_s=timeout_s)


async def answer(model: EnsembleModel, asked: InferRequest) -> tuple[Tensor, ...]:
    (outcome,) = await model.execute([asked])
    if isinstance(outcome, MeshError):
        raise outcome
    assert isinstance(outcome, tuple)
    return outcome


async def test_steps_that_do_not_wait_for_each_other_run_at_once() -> None:
    mesh = Mesh()
    (out,) = await answer(mesh.ensemble(), request())
    assert (out.name, bytes(out.data)) == ("OUT", b"1l1rj")
    assert frozenset({"left", "right"}) in mesh.at_once
    assert frozenset({"join"}) in mesh.at_once
    assert all(
        each.request_id == "r1" and each.parameters == {"priority": 2} for each in mesh.asked
    )
    assert [tensor.name for tensor in mesh.asked[-1].inputs] == ["x", "z"]


async def test_it_is_asked_like_a_model_in_a_process() -> None:
    model = Mesh().ensemble()
    assert isinstance(model, ProcessModel)
    first, second = await model.execute([request(b"1"), request(b"2")])
    assert isinstance(first, tuple)
    assert isinstance(second, tuple)
    assert [bytes(each[0].data) for each in (first, second)] == [b"1l1rj", b"2l2rj"]
    parts = [part async for part in model.stream(request())]
    assert [bytes(part.outputs[0].data) for part in parts] == [b"1l1rj"]
    await model.close()


async def test_steps_share_the_deadline() -> None:
    mesh = Mesh()
    await answer(mesh.ensemble(), request(timeout_s=5.0))
    assert all(4.0 < each.timeout_s <= 5.0 for each in mesh.asked)
    with pytest.raises(
        DeadlineExceeded, match=r"the deadline passed before step 1 \(model 'left'\)"
    ):
        await answer(mesh.ensemble(), request(timeout_s=0.0))


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (InferenceFailed("it broke"), InferenceFailed),
        (Saturated("it broke"), Saturated),
        (NotServing("it broke"), NoReplica),
    ],
)
async def test_an_error_names_its_step_and_ends_the_others(
    error: MeshError, kind: type[MeshError]
) -> None:
    mesh = Mesh()
    mesh.errors["left"] = error
    mesh.slow.add("right")
    with pytest.raises(kind, match=r"step 1 \(model 'left'\): it broke"):
        await answer(mesh.ensemble(), request())
    assert mesh.cancelled == ["right"]
    assert [each.model for each in mesh.asked] == ["left", "right"]


async def test_cancelling_the_request_cancels_its_steps() -> None:
    mesh = Mesh()
    mesh.slow |= {"left", "right"}
    running = asyncio.ensure_future(mesh.ensemble().execute([request()]))
    await mesh.both_run.wait()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert sorted(mesh.cancelled) == ["left", "right"]


async def test_only_what_the_wanted_outputs_need_is_run() -> None:
    mesh = Mesh()
    steps = (*DIAMOND, step("extra", {"x": "A"}, {"y": "MORE"}))
    (more,) = await answer(mesh.ensemble(steps, ("OUT", "MORE")), request(outputs=("MORE",)))
    assert (more.name, bytes(more.data)) == ("MORE", b"1le")
    assert [each.model for each in mesh.asked] == ["left", "extra"]


async def test_a_stream_of_one_part_is_an_answer() -> None:
    mesh = Mesh()
    mesh.streams.add("left")
    (out,) = await answer(mesh.ensemble(), request())
    assert bytes(out.data) == b"1l1rj"


async def test_what_was_not_known_is_checked_at_the_first_request() -> None:
    mesh = Mesh()
    model = mesh.ensemble()
    wrong = TensorSpec("x", DataType.INT8, (-1,))
    mesh.manifests["left"] = Manifest("left", 1, "onnx", "", (wrong,), (SPECS["y"],), 0, (), "")
    with pytest.raises(InferenceFailed, match="the ensemble does not fit its models: step 1"):
        await answer(model, request())
    with pytest.raises(ModelError, match="its input 'x' is INT8"):
        mesh.ensemble()


class Heard:
    """What was told, awaited one by one."""

    def __init__(self) -> None:
        self._told: asyncio.Queue[object] = asyncio.Queue()

    def __call__(self, *told: object) -> None:
        self._told.put_nowait(told[0] if len(told) == 1 else told[2:])

    async def next(self) -> object:
        return await asyncio.wait_for(self._told.get(), 5)


async def test_it_tells_which_model_is_missing_and_when_none_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ensemble, "ENSEMBLE_LOOK_S", 0)
    mesh, heard = Mesh(), Heard()
    mesh.absent = {"right": "no node of this mesh has a model 'right'"}
    model = mesh.ensemble()
    model.on_lost = heard
    assert await heard.next() == (
        "step 2 (model 'right'): no node of this mesh has a model 'right'"
    )
    mesh.absent.clear()
    assert await heard.next() == ""
    mesh.absent = {"join": "no replica of model 'join' is ready"}
    assert await heard.next() == "step 3 (model 'join'): no replica of model 'join' is ready"
    await model.close()


async def test_it_is_not_ready_once_its_models_turn_out_not_to_fit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ensemble, "ENSEMBLE_LOOK_S", 0)
    mesh, heard = Mesh(), Heard()
    model = mesh.ensemble()
    wrong = TensorSpec("x", DataType.INT8, (-1,))
    mesh.manifests["left"] = Manifest("left", 1, "onnx", "", (wrong,), (SPECS["y"],), 0, (), "")
    model.on_lost = heard
    assert str(await heard.next()).startswith("the ensemble does not fit its models: step 1")
    await model.close()


async def test_a_circle_is_found_from_either_side() -> None:
    """The first of two that run each other cannot see it when it is opened; neither is ready."""
    mesh, heard = Mesh(), Heard()
    model = mesh.ensemble()
    back = Execution(steps=(step("all", {"x": "IN"}, {"y": "OUT"}),))
    mesh.announced["left"] = Manifest(
        "left", 1, "ensemble", "", (SPECS["x"],), (SPECS["y"],), 0, (), "", execution=back
    )
    model.on_lost = heard
    assert await heard.next() == (
        "the ensemble does not fit its models: the ensemble runs itself: all → left → all"
    )
    await model.close()
    with pytest.raises(ModelError, match="all → left → all"):
        mesh.ensemble()


async def test_a_node_tells_of_an_ensemble_that_waits_for_its_models(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ensemble, "ENSEMBLE_LOOK_S", 0)
    mesh, heard = Mesh(), Heard()
    mesh.absent = {"left": "it is nowhere"}
    server = ModelServer({"ensemble": EnsembleRuntime(mesh.environment())}, on_change=heard)
    manifest = Manifest(
        "all", 1, "ensemble", "", (SPECS["IN"],), (SPECS["OUT"],), 0, (), "",
        execution=Execution(steps=DIAMOND, adaptive=False),
    )  # fmt: skip
    await server.load(manifest, Path())
    states = [await heard.next() for _ in range(3)]
    assert states[-1] == (ReplicaState.LOADING, "step 1 (model 'left'): it is nowhere")
    mesh.absent.clear()
    assert await heard.next() == (ReplicaState.READY, "")
    await server.close()


def test_its_manifest_asks_for_no_batching_of_its_own() -> None:
    environment = Environment(infer=Mesh().infer, manifest_of=lambda *_: None)
    opening = Opening(
        folder=Path(), entry="", model="all", inputs=(SPECS["IN"],), outputs=(SPECS["OUT"],),
        execution=Execution(steps=DIAMOND),
    )  # fmt: skip
    assert not EnsembleRuntime(environment).describe(opening).execution.adaptive
