"""Whole daemons that are emptied: others take over before, nobody's request fails, and it lasts."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import pytest

from meshnode import reconcile
from meshnode.daemon import artifacts, draining
from meshnode.errors import Forbidden, InvalidRequest, TooLarge
from meshnode.state.drain import DrainReport
from meshnode.types import InferRequest, InferResponse, KeptAs, ResponsePart
from tests.unit.daemon.test_member import DIGITS, IMAGE, LOOPBACK, deploy, http, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.unit.daemon.conftest import Daemons, Running

ASK = {"inputs": [IMAGE]}
INFER = "/v2/models/digits/infer"


@pytest.fixture(autouse=True)
def _sooner_than_in_life(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconcile, "HANDOVER_S", 0.5)
    monkeypatch.setattr(artifacts, "UNLOAD_GRACE_S", 0.05)
    monkeypatch.setattr(draining, "IDLE_LOOK_S", 0.05)
    monkeypatch.setattr(draining, "DRAIN_LOOK_S", 0.05)
    monkeypatch.setattr(draining, "DRAIN_TELL_S", 0.05)


async def drained(running: Running, node: str) -> bool:
    return (await asyncio.to_thread(running.client.drain_state, node)).is_drained


async def ready_on(running: Running) -> set[str]:
    replicas = (await running.get("/mesh/v1/models/digits"))["replicas"]
    return {each["node"] for each in replicas if each["state"] == "ready"}


async def test_a_drained_node_hands_its_models_over_and_nobodys_request_fails(
    daemons: Daemons,
) -> None:
    alpha = await daemons.start("alpha", http=LOOPBACK).ready()
    beta = await daemons.start("beta", await alpha.invite(), http=LOOPBACK).ready()
    await alpha.sees(2)
    await deploy(alpha, replicas=1)

    async def is_served() -> set[str]:
        return await ready_on(alpha)

    await until(is_served, "it is served")
    (before,) = await ready_on(alpha)
    leaving, staying = (alpha, beta) if before == "alpha" else (beta, alpha)
    answers: list[int] = []

    async def ask(running: Running) -> None:
        while True:
            answers.append((await http(running, INFER, ASK))[0])
            await asyncio.sleep(0.01)

    asking = [asyncio.ensure_future(ask(each)) for each in (alpha, beta)]
    begun = await asyncio.to_thread(staying.client.drain, before)
    assert begun.state in ("draining", "drained")
    await until(lambda: drained(staying, before), "it is drained")
    for task in asking:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
    assert len(answers) > 5
    assert set(answers) == {200}
    assert await ready_on(staying) == {"beta" if before == "alpha" else "alpha"}
    status, body = (await http(leaving, "/readyz"))[:2]
    assert (status, "this node is drained" in body) == (503, True)
    assert '"drained"' in (await http(leaving, "/healthz"))[1]
    assert (await http(leaving, INFER, ASK))[0] == 200  # its gateway answers on
    assert (await leaving.get("/mesh/v1/status"))["state"] == "drained"
    (entry,) = [each for each in await staying.get("/mesh/v1/nodes") if each["name"] == before]
    assert entry["drain"] == "drained"


async def test_a_drain_lasts_over_a_restart_until_it_is_taken_back(daemons: Daemons) -> None:
    alpha = await daemons.start("alpha").ready()
    await asyncio.to_thread(alpha.client.drain, "alpha")
    await until(lambda: drained(alpha, "alpha"), "it is drained")
    assert await alpha.stop() == 0
    again = await daemons.start("alpha").ready()
    await until(lambda: drained(again, "alpha"), "it is drained still")
    assert (await asyncio.to_thread(again.client.undrain, "alpha")).state == "serving"
    assert (await asyncio.to_thread(again.client.undrain, "alpha")).state == "serving"

    async def runs() -> bool:
        return bool((await again.get("/mesh/v1/status"))["state"] == "running")

    await until(runs, "it serves again")


async def test_what_nobody_else_serves_blocks_a_drain_until_it_is_forced(daemons: Daemons) -> None:
    alpha = await daemons.start("alpha", http=LOOPBACK).ready()
    await deploy(alpha, replicas=1)

    async def is_served() -> Any:
        return await ready_on(alpha)

    await until(is_served, "it is served")
    await asyncio.to_thread(alpha.client.drain, "alpha")

    async def is_blocked() -> Any:
        return (await asyncio.to_thread(alpha.client.drain_state, "alpha")).blocked_by

    await until(is_blocked, "it is blocked")
    (why,) = await is_blocked()
    assert "nobody can take over digits version 1" in why
    assert (await http(alpha, INFER, ASK))[0] == 200
    forced = await asyncio.to_thread(lambda: alpha.client.drain("alpha", force=True, wait_s=0))
    assert forced.force
    assert not forced.blocked_by, (
        "what it said before it heard that it is forced says nothing of now"
    )
    await until(lambda: drained(alpha, "alpha"), "it is drained")
    assert (await http(alpha, INFER, ASK))[0] == 503


async def test_a_node_that_is_started_again_looks_through_its_own_folder_before_it_is_drained(
    daemons: Daemons,
) -> None:
    repository = daemons.folder / "repository"
    repository.mkdir()
    (repository / "digits.onnx").write_bytes(DIGITS.read_bytes())
    alpha = await daemons.start("alpha", models=str(repository)).ready()

    async def is_served() -> bool:
        return [each["name"] for each in await alpha.get("/mesh/v1/models")] == ["digits"]

    await until(is_served, "it is served")
    await asyncio.to_thread(alpha.client.drain, "alpha")
    assert await alpha.stop() == 0
    again = await daemons.start("alpha", models=str(repository)).ready()

    async def is_blocked() -> Any:
        found = await asyncio.to_thread(again.client.drain_state, "alpha")
        assert not found.is_drained
        return found.blocked_by

    await until(is_blocked, "its own model blocks it still")
    assert await ready_on(again) == {"alpha"}


async def test_a_stream_whose_gateway_was_lost_keeps_a_node_until_it_is_made(
    daemons: Daemons,
) -> None:
    alpha = await daemons.start("alpha").ready()
    mesh = alpha.daemon._mesh
    assert mesh is not None
    kept = mesh._peer_server.kept
    assert kept is not None
    may_end = asyncio.Event()

    async def parts() -> AsyncIterator[ResponsePart]:
        await may_end.wait()
        yield ResponsePart(())

    name = KeptAs("s" * 24, "me", 0)
    asked = InferRequest("m", (), keep=name)
    reader = aiter(kept.keep(asked, InferResponse("m", 1, parts())))
    kept.reader_lost(name.stream)
    await reader.aclose()  # as a lost link leaves it
    await asyncio.to_thread(alpha.client.drain, "alpha")

    async def waits() -> Any:
        return (await asyncio.to_thread(alpha.client.drain_state, "alpha")).waits_for

    await until(waits, "it waits for the stream")
    may_end.set()
    await until(lambda: drained(alpha, "alpha"), "it is drained")


async def test_a_report_that_cannot_be_told_is_told_later_and_the_drain_goes_on(
    daemons: Daemons, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    alpha = await daemons.start("alpha").ready()
    failing = [TooLarge("there is no room"), TooLarge("there is no room")]
    told = DrainReport.encode

    def encode(report: DrainReport) -> bytes:
        if failing:
            raise failing.pop()
        return told(report)

    monkeypatch.setattr(DrainReport, "encode", encode)
    await asyncio.to_thread(alpha.client.drain, "alpha")
    await until(lambda: drained(alpha, "alpha"), "it is drained")
    assert caplog.text.count("is tried again: there is no room") == 1


async def test_nodes_that_nobody_knows_and_callers_without_a_say_are_refused(
    daemons: Daemons,
) -> None:
    alpha = await daemons.start("alpha", http=LOOPBACK).ready()
    with pytest.raises(InvalidRequest, match="no node is called 'gamma'"):
        await asyncio.to_thread(alpha.client.drain, "gamma")
    line = (await alpha.post("/mesh/v1/invites", {"ttl_s": 600, "role": "member"}))["invite"]
    lent = await daemons.start("lent", line).ready()
    with pytest.raises(Forbidden):
        await asyncio.to_thread(lent.client.drain, "lent")
