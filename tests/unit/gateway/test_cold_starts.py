"""Requests wait for a replica that is about to serve, and for no other."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from meshnode.errors import ModelNotFound, NoReplica, Saturated
from meshnode.gateway.cold_starts import LOOK_S
from meshnode.gateway.dispatch import Dispatcher
from meshnode.gateway.pipeline import Pipeline
from meshnode.gateway.protocols.http import HttpRequest, HttpResponse
from meshnode.limits import COLD_GRACE_S, MAX_WAITING_FOR_REPLICAS
from meshnode.routing.load import LinkState
from meshnode.routing.router import Router
from meshnode.routing.table import Goal, Replica
from meshnode.types import DataType, InferRequest, NodeState, ReplicaState, Tensor
from tests.unit.gateway.conftest import ME, PEERS, FakeLocal, FakePeers
from tests.unit.gateway.test_server import GOOD

if TYPE_CHECKING:
    from meshnode.gateway.metrics import GatewayMetrics
    from meshnode.models.manifest import Manifest

BETA = PEERS["beta"]


class Clock:
    """A clock that jumps ahead by a second with each look at it, from a given moment on."""

    def __init__(self) -> None:
        self.time_s = 100.0
        self.step_s = 0.0

    def now(self) -> float:
        self.time_s += self.step_s
        return self.time_s

    def wall_s(self) -> float:
        return self.time_s


class Bench:
    """A gateway whose replicas come and go."""

    def __init__(self, manifest: Manifest, control: Any, metrics: GatewayMetrics) -> None:
        self.manifest, self.metrics = manifest, metrics
        self.clock = Clock()
        self.router = Router(ME, "eu-west", random.Random(7))
        self.peers = FakePeers()
        self.pipeline = Pipeline(ME, self.router, FakeLocal(), self.peers, self.clock, metrics)
        self.dispatcher = Dispatcher(self.pipeline, control, metrics)

    def beta(self, state: ReplicaState, reason: str = "") -> None:
        replica = Replica(BETA, "beta", "eu-west", "", "digits", 1, state, reason, self.manifest)
        self.router.replica_changed(replica, 100.0)

    def link(self, state: LinkState = LinkState.UP) -> None:
        self.router.link_changed(BETA, state, 100.0)

    def request(self, timeout_s: float = 30.0) -> InferRequest:
        tensor = Tensor("x", DataType.FP32, (1, 4), bytes(16))
        return InferRequest("digits", (tensor,), timeout_s=timeout_s)

    async def ask(self, path: str = "/v2/models/digits/infer") -> HttpResponse:
        http = HttpRequest("POST", path, "", {}, GOOD)
        reply = self.dispatcher.answer(self.dispatcher.match("POST", path), http, "r1")
        answer = reply if isinstance(reply, HttpResponse) else await reply
        assert isinstance(answer, HttpResponse)
        return answer

    async def waiting(self) -> asyncio.Task[HttpResponse]:
        """Return a request that has begun to wait."""
        task = asyncio.ensure_future(self.ask())
        for _ in range(5):
            await asyncio.sleep(0)
        assert not task.done()
        return task


@pytest.fixture
def bench(manifest: Manifest, control: Any, metrics: GatewayMetrics) -> Bench:
    return Bench(manifest, control, metrics)


@pytest.mark.parametrize("state", [ReplicaState.LOADING, ReplicaState.FETCHING])
async def test_a_request_waits_for_a_replica_that_is_on_its_way(
    bench: Bench, state: ReplicaState
) -> None:
    bench.beta(state)
    bench.link()
    asked = await bench.waiting()
    bench.beta(ReplicaState.READY)
    answer = await asked
    assert answer.status == 200
    assert answer.headers["Mesh-Route"].startswith("node=beta")
    assert not bench.metrics.errors.values, "waiting is no failure"
    assert repr(bench.pipeline.cold_starts) == "<ColdStarts: 0 requests wait>"


async def test_it_is_told_for_which_models_requests_wait_until_none_does(bench: Bench) -> None:
    told: list[dict[str, int]] = []
    bench.pipeline.cold_starts.on_waits = lambda models: told.append(dict(models))
    bench.router.arrivals.follow(["digits"])
    bench.beta(ReplicaState.LOADING)
    bench.link()
    asked = [await bench.waiting(), await bench.waiting()]
    assert told == [{"digits": 1}]
    bench.beta(ReplicaState.READY)
    await asyncio.gather(*asked)
    assert told == [{"digits": 1}, {}]
    assert bench.router.arrivals.counts() == (("digits", 2),)
    assert (await bench.ask()).status == 200
    assert len(told) == 2, "a request that does not wait is none"


async def test_waiting_is_taken_off_the_time_that_a_request_has(bench: Bench) -> None:
    bench.beta(ReplicaState.LOADING)
    bench.link()
    asked = await bench.waiting()
    bench.clock.time_s += 10.0
    bench.beta(ReplicaState.READY)
    await asked
    [(_, request, _)] = bench.peers.calls
    assert request.timeout_s == pytest.approx(20.0)


async def test_a_request_that_has_no_time_left_is_told_so(bench: Bench) -> None:
    bench.beta(ReplicaState.LOADING)
    bench.clock.step_s = 1.0
    with pytest.raises(NoReplica, match="beta: loading"):
        await bench.pipeline.infer(bench.request(timeout_s=5.0))
    assert bench.clock.time_s < 130.0


async def test_a_load_that_fails_ends_the_wait_with_its_reason(bench: Bench) -> None:
    bench.beta(ReplicaState.LOADING)
    asked = await bench.waiting()
    bench.beta(ReplicaState.FAILED, "the file is damaged")
    with pytest.raises(NoReplica, match="the file is damaged"):
        await asked


async def test_nobody_waits_for_what_failed_or_is_gone(bench: Bench) -> None:
    bench.beta(ReplicaState.FAILED, "the file is damaged")
    with pytest.raises(NoReplica, match="the file is damaged"):
        await bench.ask()
    bench.beta(ReplicaState.LOADING)
    bench.router.node_changed(BETA, NodeState.DEAD)
    with pytest.raises(NoReplica, match="dead"):
        await bench.ask()


async def test_a_deployment_that_nobody_has_begun_to_load_is_waited_for_a_moment(
    bench: Bench,
) -> None:
    goal = Goal(bench.manifest, bench.manifest.digest, "no node has room for it")
    bench.router.wanted_changed("digits", {1: goal})
    asked = await bench.waiting()
    bench.clock.time_s += COLD_GRACE_S + 0.1
    with pytest.raises(NoReplica, match="no node has room for it"):
        await asked


async def test_a_link_that_comes_back_is_waited_for_a_moment(bench: Bench) -> None:
    bench.beta(ReplicaState.READY)
    asked = await bench.waiting()
    bench.link()
    assert (await asked).status == 200
    bench.link(LinkState.DOWN)
    asked = await bench.waiting()
    bench.clock.time_s += COLD_GRACE_S + 0.1
    with pytest.raises(NoReplica, match="link down"):
        await asked


async def test_a_gateway_that_has_just_started_waits_for_what_it_has_not_heard_of_yet(
    bench: Bench,
) -> None:
    with pytest.raises(ModelNotFound):
        await bench.ask()
    bench.pipeline.cold_starts.begins()
    asked = await bench.waiting()
    bench.link()
    bench.beta(ReplicaState.READY)
    assert (await asked).status == 200
    bench.clock.time_s += COLD_GRACE_S
    with pytest.raises(ModelNotFound):
        await bench.ask("/v2/models/nonsense/infer")


async def test_what_a_new_gateway_never_hears_of_is_not_found(bench: Bench) -> None:
    bench.pipeline.cold_starts.begins()
    asked = await bench.waiting()
    bench.clock.time_s += COLD_GRACE_S
    with pytest.raises(ModelNotFound):
        await asked


async def test_only_so_many_wait(bench: Bench) -> None:
    bench.beta(ReplicaState.LOADING)
    bench.pipeline.cold_starts.waiting = MAX_WAITING_FOR_REPLICAS
    with pytest.raises(Saturated, match="not ready yet"):
        await bench.ask()


async def test_one_look_serves_all_who_wait_for_the_same(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.beta(ReplicaState.LOADING)
    waiting = [await bench.waiting() for _ in range(20)]
    looks = 0
    reachable = bench.router.is_reachable

    def is_reachable(model: str, version: int | None) -> bool:
        nonlocal looks
        looks += 1
        return reachable(model, version)

    monkeypatch.setattr(bench.router, "is_reachable", is_reachable)
    await asyncio.sleep(5 * LOOK_S)
    assert 1 <= looks <= 6
    monkeypatch.undo()
    bench.link()
    bench.beta(ReplicaState.READY)
    assert {each.status for each in await asyncio.gather(*waiting)} == {200}
    assert bench.pipeline.cold_starts.waiting == 0


async def test_a_client_that_hangs_up_waits_no_longer(bench: Bench) -> None:
    bench.beta(ReplicaState.LOADING)
    asked = await bench.waiting()
    other = await bench.waiting()
    asked.cancel()
    await asyncio.wait([asked])
    assert repr(bench.pipeline.cold_starts) == "<ColdStarts: 1 requests wait>"
    bench.link()
    bench.beta(ReplicaState.READY)
    assert (await other).status == 200


async def test_another_version_that_is_ready_is_not_waited_for(bench: Bench) -> None:
    bench.beta(ReplicaState.READY)
    bench.link()
    newer = Replica(
        PEERS["gamma"], "gamma", "eu-west", "", "digits", 2, ReplicaState.LOADING, "",
        replace(bench.manifest, version=2) if not hasattr(bench.manifest, "__struct_fields__") else None,
    )  # fmt: skip
    bench.router.replica_changed(newer, 100.0)
    assert "version=1" in (await bench.ask()).headers["Mesh-Route"]
