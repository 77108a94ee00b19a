"""Releases that are applied to whole daemons: what is written, shown and asked."""

from __future__ import annotations

import asyncio
import json
import shutil
from typing import TYPE_CHECKING, Any

import onnx
import pytest

from meshnode.client.async_mesh import AsyncMeshClient
from meshnode.client.deploying import ignore
from meshnode.client.orders import orders_of
from meshnode.daemon.rollouts import quantile_ms
from meshnode.errors import Forbidden, InvalidRequest, ModelNotFound, NotFound
from meshnode.routing.releasing.evidence import bucket_of
from tests.unit.daemon.test_deployment_edits import apply, call
from tests.unit.daemon.test_member import DIGITS, IMAGE, LOOPBACK, http, until

if TYPE_CHECKING:
    from pathlib import Path

    from meshnode.client.rollout_results import RolloutInfo
    from tests.unit.daemon.conftest import Daemons, Running

INFER = "/v2/models/digits/infer"
CANARY = '[release]\nstrategy = "canary"\nsteps = [{share = 50, hold_s = 3600}]\nkeep_s = 3600\n'
BLUE_GREEN = '[release]\nstrategy = "blue_green"\nkeep_s = 0\n'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "here"
    place.mkdir()
    return place


def version(folder: Path, number: int, text: str = "") -> Path:
    """Write a definition whose model is the first version, or another one like it; return the file."""
    if number == 1:
        shutil.copy(DIGITS, folder / "digits.onnx")
    else:
        model = onnx.load(DIGITS)
        model.doc_string = f"version {number}"
        onnx.save(model, folder / "digits.onnx")
    path = folder / "digits.toml"
    path.write_text(f'name = "digits"\nmodel = "digits.onnx"\n{text}', encoding="utf-8")
    return path


async def standing(running: Running) -> RolloutInfo:
    found: RolloutInfo = await call(running, "rollout", "digits")
    return found


async def in_phase(running: Running, phase: str) -> RolloutInfo:
    async def is_there() -> bool:
        return (await standing(running)).phase == phase

    await until(is_there, f"the release is {phase}")
    return await standing(running)


async def answered_by(running: Running) -> set[str]:
    answers = [await http(running, INFER, {"inputs": [IMAGE]}) for _ in range(12)]
    assert {status for status, *_ in answers} == {200}
    return {json.loads(answer[1])["model_version"] for answer in answers}


async def test_a_first_version_is_deployed_directly_and_the_next_one_released(
    daemons: Daemons, folder: Path
) -> None:
    alpha = await daemons.start("alpha", http=LOOPBACK).ready()
    first = await apply(alpha, version(folder, 1, CANARY), wait=True)
    assert any("deployed directly" in each for each in first.warnings)
    with pytest.raises(NotFound, match=r"no release in progress.*\[release\]"):
        await standing(alpha)
    assert (await apply(alpha, version(folder, 1, CANARY))).changed is False
    dry = await apply(alpha, version(folder, 2, CANARY), dry_run=True)
    assert [each.key for each in dry.changes] == ["files", "release"]

    second = await apply(alpha, version(folder, 2, CANARY), wait=True)
    keys = {each.key for each in second.changes}
    assert {"version 2", "release.from", "release.to", "release.strategy"} <= keys
    running = await in_phase(alpha, "running")
    assert (running.baseline, running.candidate, running.step, running.share) == (1, 2, 1, 0.5)
    assert (running.serving, running.resident, running.outcome) == (1, (1, 2), None)
    assert running.steward == "alpha"
    assert "promote" in running.verbs
    assert await answered_by(alpha) == {"1", "2"}
    shown = await call(alpha, "deployment_of", "digits")
    assert shown.release is not None
    assert (shown.release.phase, shown.release.candidate) == ("running", 2)
    assert shown.definition["release"]["strategy"] == "canary"
    assert shown.definition["version"] == 2
    assert shown.status == "releasing"
    assert shown.reason.startswith(
        "canary from version 1 to 2, running, step 1 of 1, 50 % of the requests"
    )
    told = await call(alpha, "deployment_history", "digits")
    assert told[0].summary == "release of version 2 from 1, canary"

    assert (await apply(alpha, version(folder, 2, CANARY))).changed is False
    assert (await apply(alpha, shown.definition)).changed is False


async def test_edits_of_other_things_leave_a_release_where_it_is(
    daemons: Daemons, folder: Path
) -> None:
    alpha = await daemons.start("alpha", http=LOOPBACK).ready()
    await apply(alpha, version(folder, 1), wait=True)
    await apply(alpha, version(folder, 2, CANARY), wait=True)
    before = await in_phase(alpha, "running")
    assert (await apply(alpha, version(folder, 2, 'path = "/numbers"\n' + CANARY))).changed
    await call(alpha, "set_env", "digits", {"A": "1"})
    await call(alpha, "pause", "digits")
    await call(alpha, "resume", "digits")
    after = await standing(alpha)
    assert (after.begun_at, after.step, after.phase) == (before.begun_at, 1, "running")


async def test_what_operators_ask_is_obeyed_and_told(daemons: Daemons, folder: Path) -> None:
    alpha = await daemons.start("alpha", http=LOOPBACK).ready()
    await apply(alpha, version(folder, 1), wait=True)
    await apply(alpha, version(folder, 2, CANARY), wait=True)
    await in_phase(alpha, "running")
    await call(alpha, "rollout_do", "digits", "pause", reason="lunch")
    paused = await in_phase(alpha, "paused")
    assert "lunch" in paused.reason
    assert "resume" in paused.verbs
    assert any(each.kind == "paused" and "lunch" in each.reason for each in paused.decisions)
    await call(alpha, "rollout_do", "digits", "resume")
    await in_phase(alpha, "running")
    await call(alpha, "rollout_do", "digits", "promote")
    keeping = await in_phase(alpha, "keeping")
    assert (keeping.share, keeping.serving, keeping.resident) == (1.0, 2, (2, 1))
    assert await answered_by(alpha) == {"2"}
    await call(alpha, "rollout_do", "digits", "undo", reason="the colours are wrong")
    back: RolloutInfo = await call(alpha, "wait_rollout", "digits", timeout_s=10)
    assert (back.outcome, back.serving) == ("rolled_back", 1)
    assert "the colours are wrong" in back.reason
    assert back.verbs == ()
    assert await answered_by(alpha) == {"1"}
    shown = await call(alpha, "deployment_of", "digits")
    assert (shown.status, [each.version for each in shown.versions]) == ("ready", [1])
    assert shown.reason.startswith("version 2 was rolled back (undo by alpha")
    with pytest.raises(InvalidRequest, match="over"):
        await call(alpha, "rollout_do", "digits", "promote")
    with pytest.raises(ModelNotFound):
        await call(alpha, "rollout_do", "other", "abort")
    with pytest.raises(InvalidRequest, match="verb"):
        await alpha.post("/mesh/v1/deployments/digits/rollout", {"verb": "explode"})


async def test_what_was_rolled_back_is_tried_again_with_force_and_else_left(
    daemons: Daemons, folder: Path
) -> None:
    alpha = await daemons.start("alpha", http=LOOPBACK).ready()
    await apply(alpha, version(folder, 1), wait=True)
    await apply(alpha, version(folder, 2, CANARY), wait=True)
    began = (await in_phase(alpha, "running")).begun_at
    await call(alpha, "rollout_do", "digits", "abort")
    await in_phase(alpha, "rolled_back")
    again = await apply(alpha, version(folder, 2, CANARY))
    assert again.changed is False
    assert any("rolled back" in each and "--force" in each for each in again.warnings)
    file = version(folder, 2, CANARY)
    (change,) = (await apply(alpha, file, force=True, dry_run=True)).changes
    assert (change.key, change.before, change.after) == ("release", "rolled back", "once more")
    looked = alpha.client.application(orders_of(file), None, ignore, dry_run=True, force=True)
    (diff,) = await asyncio.to_thread(alpha.client.run, looked)
    assert not diff.changed, "what `meshnode diff` shows is what `apply` would do"
    assert (await apply(alpha, file, force=True, wait=True)).changed
    anew = await in_phase(alpha, "running")
    assert anew.begun_at > began
    await apply(alpha, version(folder, 3, CANARY), wait=True)
    third = await in_phase(alpha, "running")
    assert (third.baseline, third.candidate) == (1, 3), "version 1 has proven itself, 2 has not"


@pytest.mark.parametrize("path", ["/v2/models/digits", "/v1/models/digits/metadata"])
async def test_a_model_is_described_as_the_version_that_answers_in_a_release_and_after_it(
    daemons: Daemons, folder: Path, path: str
) -> None:
    alpha = await daemons.start("alpha", http=LOOPBACK).ready()
    await apply(alpha, version(folder, 1), wait=True)
    file = version(folder, 2, CANARY)
    model = onnx.load(folder / "digits.onnx")
    model.graph.input[0].name = "pic"
    for node in model.graph.node:
        node.input[:] = ["pic" if each == "image" else each for each in node.input]
    onnx.save(model, folder / "digits.onnx")
    await apply(alpha, file, wait=True)
    await in_phase(alpha, "running")

    async def described() -> str:
        status, body = await http(alpha, path)
        assert status == 200
        return body

    assert '"image"' in await described()
    assert '"pic"' not in await described()
    await call(alpha, "rollout_do", "digits", "abort")
    await in_phase(alpha, "rolled_back")

    async def is_gone() -> bool:
        (model,) = await alpha.get("/mesh/v1/models")
        return bool(model["versions"] == [1])

    await until(is_gone, "version 2 is unloaded")
    assert '"image"' in await described()


async def test_a_promoted_version_is_the_baseline_of_the_next_and_restored_by_a_rollback(
    daemons: Daemons, folder: Path
) -> None:
    alpha = await daemons.start("alpha", http=LOOPBACK).ready()
    await apply(alpha, version(folder, 1), wait=True)
    second = await apply(alpha, version(folder, 2, BLUE_GREEN), wait=True)

    async def waits() -> bool:
        return (await standing(alpha)).waits

    await until(waits, "it waits for promote")
    assert await answered_by(alpha) == {"1"}
    await call(alpha, "rollout_do", "digits", "promote")
    done: RolloutInfo = await call(alpha, "wait_rollout", "digits", timeout_s=10)
    assert (done.outcome, done.serving, done.resident) == ("promoted", 2, (2,))
    assert (await call(alpha, "deployment_of", "digits")).status == "ready"
    assert (await call(alpha, "model", "digits")).deployed == (2,)
    assert await answered_by(alpha) == {"2"}
    assert (await apply(alpha, version(folder, 2, BLUE_GREEN))).changed is False
    await apply(alpha, version(folder, 3, BLUE_GREEN), wait=True)
    third = await standing(alpha)
    assert (third.baseline, third.candidate) == (2, 3)

    back = await call(alpha, "rollback", "digits", to=second.revision)
    assert back.changed
    shown = await call(alpha, "deployment_of", "digits")
    assert [each.version for each in shown.versions] == [2]
    assert shown.release is None
    await call(
        alpha, "rollback", "digits", to=(await call(alpha, "deployment_history", "digits"))[-1].id
    )
    shown = await call(alpha, "deployment_of", "digits")
    assert [each.version for each in shown.versions] == [1]


async def test_a_release_that_is_compared_with_what_is_not_deployed_is_told(
    daemons: Daemons, folder: Path
) -> None:
    alpha = await daemons.start("alpha").ready()
    await apply(alpha, version(folder, 1), wait=True)
    plan = {"strategy": "shadow", "against": "deployment:nope"}
    wish = {"model": "digits", "version": 2, "release": plan}
    version(folder, 2)
    await call(alpha, "publish", folder / "digits.onnx", version=2)
    answer = await asyncio.to_thread(
        alpha.client.put,
        "/mesh/v1/deployments/digits",
        {"deployment": wish},
    )
    assert any("nothing is deployed under the name 'nope'" in each for each in answer["warnings"])


async def test_deploying_with_a_strategy_begins_a_release_and_without_one_ends_it(
    daemons: Daemons, folder: Path
) -> None:
    alpha = await daemons.start("alpha", http=LOOPBACK).ready()
    version(folder, 1)
    await call(alpha, "deploy", folder / "digits.onnx")
    version(folder, 2)
    await call(
        alpha, "deploy", folder / "digits.onnx", release={"strategy": "canary", "steps": [50]}
    )
    assert (await standing(alpha)).candidate == 2
    await call(alpha, "deploy", folder / "digits.onnx")
    with pytest.raises(NotFound):
        await standing(alpha)
    assert [each.version for each in (await call(alpha, "deployments"))[0].versions] == [2]


async def test_the_async_client_has_the_same_calls(daemons: Daemons, folder: Path) -> None:
    alpha = await daemons.start("alpha", http=LOOPBACK).ready()
    await apply(alpha, version(folder, 1), wait=True)
    await apply(alpha, version(folder, 2, CANARY), wait=True)
    key = await alpha.post("/mesh/v1/keys", {"name": "reader", "scopes": ["infer"]})
    url = str((await alpha.get("/mesh/v1/status"))["http"])
    async with AsyncMeshClient(url, api_key=key["key"]) as reader:
        assert (await reader.rollout("digits")).candidate == 2
        with pytest.raises(Forbidden):
            await reader.rollout_do("digits", "abort")
    async with AsyncMeshClient.local(alpha.folder.path) as mesh:
        await mesh.rollout_do("digits", "abort", reason="enough")
        seen: list[str] = []
        back = await mesh.wait_rollout(
            "digits", timeout_s=10, progress=lambda info: seen.append(info.phase)
        )
    assert (back.outcome, seen[-1]) == ("rolled_back", "rolled_back")


async def test_those_who_follow_the_mesh_are_told_of_each_decision(
    daemons: Daemons, folder: Path
) -> None:
    alpha = await daemons.start("alpha", http=LOOPBACK).ready()
    events: list[dict[str, Any]] = []

    def follow() -> None:
        for event in alpha.client.events(("deployment",)):
            if event.fields.get("change") == "release":
                events.append(event.fields)
                if event.fields.get("outcome"):
                    return

    following = asyncio.create_task(asyncio.to_thread(follow))
    await apply(alpha, version(folder, 1), wait=True)
    await apply(alpha, version(folder, 2, CANARY), wait=True)
    await in_phase(alpha, "running")
    await call(alpha, "rollout_do", "digits", "abort")
    await asyncio.wait_for(following, 10)
    assert [each["decision"] for each in events] == ["began", "step", "rolled_back"]
    assert events[-1]["outcome"] == "rolled_back"


async def test_every_node_shows_a_release_and_takes_orders_for_it(
    daemons: Daemons, folder: Path
) -> None:
    alpha = await daemons.start("alpha", http=LOOPBACK).ready()
    beta = await daemons.start("beta", http=LOOPBACK, invite=await alpha.invite()).ready()
    await alpha.sees(2)
    await apply(alpha, version(folder, 1, "replicas = 2\n"), wait=True)
    await apply(alpha, version(folder, 2, "replicas = 2\n" + CANARY), wait=True)
    first, other = await in_phase(alpha, "running"), await in_phase(beta, "running")
    assert (first.steward, first.epoch, first.step) == (other.steward, other.epoch, other.step)
    assert (other.ready.candidate, other.ready.wanted) == (2, 2)
    for running in (alpha, beta):
        assert await answered_by(running) == {"1", "2"}

    async def has_seen_both() -> bool:
        arms = (await standing(beta)).arms
        return sum(each.requests for each in arms) >= 24

    await until(has_seen_both, "what both gateways saw is known at one of them")
    follower = beta if first.steward == "alpha" else alpha
    await call(follower, "rollout_do", "digits", "abort", reason="from here")
    for running in (alpha, beta):
        back = await in_phase(running, "rolled_back")
        assert "from here" in back.reason
        assert any("from here" in each.reason for each in back.decisions)
        assert await answered_by(running) == {"1"}
    await apply(alpha, version(folder, 3, "replicas = 2\n" + CANARY), wait=True)
    anew = await in_phase(follower, "running")
    assert anew.candidate == 3
    assert not any("from here" in each.reason for each in anew.decisions)


def test_a_quantile_is_read_from_the_counts_of_buckets() -> None:
    counts: dict[int, int] = {}
    for run_ms in range(1, 101):
        counts[bucket_of(run_ms)] = counts.get(bucket_of(run_ms), 0) + 1
    assert quantile_ms(counts, 0.5) == pytest.approx(50, rel=0.05)
    assert quantile_ms(counts, 0.99) == pytest.approx(99, rel=0.05)
    assert quantile_ms({}, 0.5) is None
