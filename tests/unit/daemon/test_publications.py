"""Versions that are published on one node, seen on all, and deployed from any."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import onnx
import pytest

from meshnode.daemon import artifacts
from meshnode.errors import (
    InvalidRequest,
    ModelError,
    ModelNotFound,
    ProtocolError,
    TransferFailed,
)
from meshnode.models.artifacts import transfer
from meshnode.state.artifact import Artifact
from tests.unit.daemon.conftest import LIMIT_S
from tests.vectors.cases import MANIFEST

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.unit.daemon.conftest import Daemons, Running

DIGITS = Path(__file__).parents[3] / "examples" / "digits" / "digits.onnx"
ARTIFACTS = "/mesh/v1/artifacts"


async def publish(running: Running, path: Path = DIGITS, **said: Any) -> Any:
    return await running.post(ARTIFACTS, {"path": str(path), **said})


async def deploy(running: Running, **wish: Any) -> Any:
    return await running.post("/mesh/v1/deployments", wish)


async def until(condition: Callable[[], Awaitable[Any]], what: str) -> Any:
    deadline = asyncio.get_running_loop().time() + LIMIT_S
    while not (value := await condition()):
        assert asyncio.get_running_loop().time() < deadline, what
        await asyncio.sleep(0.02)
    return value


async def test_what_one_node_published_is_deployed_from_another_to_a_third(
    daemons: Daemons,
) -> None:
    """The node that deploys has no files: they come from the one that published."""
    alpha = await daemons.start("alpha").ready()
    beta = await daemons.start("beta", await alpha.invite()).ready()
    gamma = await daemons.start("gamma", await alpha.invite()).ready()
    for running in (alpha, beta, gamma):
        await running.sees(3)
    made = await publish(alpha, metrics={"accuracy": 0.97}, note="from the bench")
    (version,) = made["versions"]
    assert (made["name"], version["version"]) == ("digits", 1)
    assert await alpha.get("/mesh/v1/models") == [], "it is served nowhere"

    async def seen() -> Any:
        return await beta.get(ARTIFACTS)

    (entry,) = await until(seen, "beta hears of it")
    assert entry == version
    assert (entry["published"], entry["deployed"], entry["node"]) == (True, False, "alpha")
    said = entry["provenance"]
    assert (said["publisher"], said["verified"], said["flaw"]) == ("alpha", True, None)
    assert (said["metrics"], said["note"]) == ({"accuracy": 0.97}, "from the bench")
    placed = await deploy(beta, artifact="digits", on=["gamma"])
    assert placed["placed"] == ["gamma"]

    async def is_ready() -> bool:
        replicas = (await beta.get("/mesh/v1/models/digits"))["replicas"]
        return [each["state"] for each in replicas] == ["ready"]

    await until(is_ready, "gamma serves it")
    (entry,) = await beta.get(ARTIFACTS)
    assert (entry["published"], entry["deployed"]) == (True, True)
    assert entry["provenance"] == said, "deploying changes nothing of what was said"


async def test_publishing_again_changes_nothing_unless_something_else_is_said(
    daemons: Daemons,
) -> None:
    alpha = await daemons.start("alpha").ready()
    first = await publish(alpha, note="one")
    assert await publish(alpha, note="one") == first
    second = await publish(alpha, note="two", metrics={"loss": 0.5})
    (version,) = second["versions"]
    assert version["version"] == 1, "the same files keep their number"
    assert version["provenance"]["note"] == "two"
    third = await publish(alpha, version=7)
    assert third["versions"][0]["version"] == 7
    assert [each["version"] for each in await alpha.get(ARTIFACTS)] == [1, 7]
    await deploy(alpha, artifact="digits", version=1)
    assert (await deploy(alpha, artifact="digits"))["deployed"] == [7], "the newest"


async def test_when_a_version_was_made_and_what_is_odd_about_it_are_told_and_replicas_say_it_too(
    daemons: Daemons, tmp_path: Path
) -> None:
    folder = tmp_path / "net"
    (folder / "3").mkdir(parents=True)
    (folder / "3" / "model.onnx").write_bytes(DIGITS.read_bytes())
    said = {"version": 4, "timestamp": "20260131_120000", "accuracy": 0.5}
    (folder / "3" / "metadata.json").write_text(json.dumps(said))
    alpha = await daemons.start("alpha").ready()
    made = await publish(alpha, folder)
    (version,) = made["versions"]
    provenance = version["provenance"]
    assert provenance["created_at"] == "2026-01-31T12:00:00Z"
    assert provenance["published_at"] > provenance["created_at"]
    assert provenance["verified"]
    (warning,) = made["warnings"]
    assert "metadata.json says version 4, but the folder is 3" in warning
    assert (await publish(alpha, folder)) == made, "the same words change nothing"
    entry = await deploy(alpha, path=str(folder))
    assert entry["warnings"] == made["warnings"]

    async def replica() -> Any:
        return (await alpha.get("/mesh/v1/models/net"))["replicas"]

    (shown,) = await until(replica, "it is on its way")
    assert shown["provenance"]["metrics"] == {"accuracy": 0.5}
    assert shown["provenance"]["verified"]
    assert shown["provenance"]["created_at"] == "2026-01-31T12:00:00Z"


async def test_a_deployment_is_signed_too_and_keeps_its_words(daemons: Daemons) -> None:
    alpha = await daemons.start("alpha").ready()
    one = await deploy(alpha, path=str(DIGITS), metrics={"accuracy": 0.9}, note="n")
    (entry,) = await alpha.get(ARTIFACTS)
    assert (entry["published"], entry["deployed"]) == (False, True)
    assert entry["provenance"]["metrics"] == {"accuracy": 0.9}
    assert entry["provenance"]["verified"]
    again = await deploy(alpha, path=str(DIGITS), metrics={"accuracy": 0.9}, note="n")
    assert again["revision"] == one["revision"]


async def test_what_was_published_stays_on_the_disk_until_it_is_taken_back(
    daemons: Daemons, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(artifacts, "UNLOAD_GRACE_S", 0.0)
    alpha = await daemons.start("alpha").ready()
    await publish(alpha)
    mesh = alpha.daemon._mesh
    assert mesh is not None
    keep = mesh._artifacts._keep
    assert [manifest.model for manifest in keep()] == ["digits"]
    assert await asyncio.to_thread(alpha.client.delete, f"{ARTIFACTS}/digits/1") == {
        "name": "digits",
        "version": 1,
    }
    assert keep() == []
    assert await alpha.get(ARTIFACTS) == []
    with pytest.raises(ModelNotFound, match="was not published"):
        await asyncio.to_thread(alpha.client.delete, f"{ARTIFACTS}/digits/1")


async def test_wrong_wishes_are_refused(daemons: Daemons, tmp_path: Path) -> None:
    alpha = await daemons.start("alpha").ready()
    await publish(alpha)
    with pytest.raises(ModelNotFound, match="nothing was published under the name 'other'"):
        await deploy(alpha, artifact="other")
    with pytest.raises(ModelNotFound, match="version 9 of 'digits' was not published; there is 1"):
        await deploy(alpha, artifact="digits", version=9)
    with pytest.raises(InvalidRequest, match="either an upload, or a path"):
        await deploy(alpha, artifact="digits", path=str(DIGITS))
    with pytest.raises(InvalidRequest, match="either an upload, or a path"):
        await alpha.post(ARTIFACTS, {})
    with pytest.raises(InvalidRequest):
        await publish(alpha, note="x" * 501)
    with pytest.raises(ModelError):
        await publish(alpha, Path("/nowhere"))
    with pytest.raises(ModelError, match="not the number of a version"):
        await asyncio.to_thread(alpha.client.delete, f"{ARTIFACTS}/digits/one")
    several = tmp_path / "digits"
    for number in (1, 2):
        (several / str(number)).mkdir(parents=True)
        (several / str(number) / "model.onnx").write_bytes(DIGITS.read_bytes())
    (several / "config.pbtxt").write_text("version_policy: { all: {} }\n")
    with pytest.raises(InvalidRequest, match="several versions"):
        await publish(alpha, several, version=3)


def test_an_artifact_under_another_key_is_none() -> None:
    artifact = Artifact(msgspec.structs.replace(MANIFEST, variant="int8"))
    assert artifact.key == "artifact/digits/3/int8"
    assert Artifact.decode(artifact.key, artifact.encode()) == artifact
    with pytest.raises(ProtocolError, match="another artifact"):
        Artifact.decode("artifact/digits/3", artifact.encode())
    with pytest.raises(ProtocolError, match="not an artifact"):
        Artifact.decode(artifact.key, b"\x01")


def other_digits(folder: Path, name: str = "digits.onnx") -> Path:
    """Return a model that takes and gives the same, and is another one."""
    model = onnx.load(str(DIGITS))
    model.doc_string = "another one"
    folder.mkdir(exist_ok=True)
    onnx.save(model, str(folder / name))
    return folder / name


async def test_a_published_version_is_not_overwritten_with_other_files(
    daemons: Daemons, tmp_path: Path
) -> None:
    alpha = await daemons.start("alpha").ready()
    beta = await daemons.start("beta", await alpha.invite()).ready()
    await alpha.sees(2)
    first = await publish(alpha, version=1)

    async def seen() -> Any:
        return await beta.get(ARTIFACTS)

    assert await until(seen, "beta hears of it") == first["versions"]
    other = other_digits(tmp_path / "other")
    digest = first["versions"][0]["digest"]
    with pytest.raises(InvalidRequest, match="was published by alpha with other files") as refused:
        await publish(beta, other, version=1)
    assert digest[:12] in str(refused.value)
    assert "--replace" in str(refused.value)
    with pytest.raises(InvalidRequest, match="was published by alpha"):
        await publish(alpha, other, version=1)
    assert await beta.get(ARTIFACTS) == first["versions"]
    (made,) = (await publish(beta, other, version=1, replace=True))["versions"]
    assert made["digest"] != digest
    assert (made["node"], made["provenance"]["publisher"]) == ("beta", "beta")


async def test_only_its_publisher_changes_what_is_said_of_a_version(daemons: Daemons) -> None:
    alpha = await daemons.start("alpha").ready()
    beta = await daemons.start("beta", await alpha.invite()).ready()
    await alpha.sees(2)
    (first,) = (await publish(alpha, note="alpha's"))["versions"]

    async def seen() -> Any:
        return await beta.get(ARTIFACTS)

    await until(seen, "beta hears of it")
    (again,) = (await publish(beta))["versions"]
    assert again == first, "nothing is said, and nothing changes: alpha keeps the files"
    with pytest.raises(InvalidRequest, match="published by alpha, and only there can be changed"):
        await publish(beta, note="beta's")
    assert await beta.get(ARTIFACTS) == [first]
    assert (await publish(alpha))["versions"] == [first], "no words take none away"


async def test_forms_of_a_version_are_published_and_deployed_together(
    daemons: Daemons, tmp_path: Path
) -> None:
    alpha = await daemons.start("alpha").ready()
    small = other_digits(tmp_path / "small", "small.onnx")
    with pytest.raises(ModelError, match="was not published, so it can have no variant 'int8'"):
        await publish(alpha, small, name="digits", variant="int8")
    await publish(alpha)
    (form,) = (await publish(alpha, small, name="digits", variant="int8"))["versions"]
    assert (form["version"], form["variant"]) == (1, "int8")
    assert form["provenance"]["verified"]
    assert [each["variant"] for each in await alpha.get(ARTIFACTS)] == ["", "int8"]
    assert (await publish(alpha))["versions"][0]["version"] == 1, "its form is no other version"
    entry = await deploy(alpha, artifact="digits")
    assert entry["variants"] == {"1": ["", "int8"]}
    with pytest.raises(ModelError, match="no variant"):
        await publish(alpha, small, name="digits", variant="int8", version=2)


async def test_the_forms_of_what_is_replaced_are_withdrawn(
    daemons: Daemons, tmp_path: Path
) -> None:
    alpha = await daemons.start("alpha").ready()
    other = other_digits(tmp_path / "other")
    await publish(alpha)
    await publish(alpha, other, variant="int8")
    await publish(alpha, other, version=1, replace=True)
    assert [each["variant"] for each in await alpha.get(ARTIFACTS)] == [""]


async def test_what_is_here_already_takes_no_further_room(
    daemons: Daemons, monkeypatch: pytest.MonkeyPatch
) -> None:
    alpha = await daemons.start("alpha").ready()
    await publish(alpha)
    mesh = alpha.daemon._mesh
    assert mesh is not None
    size_bytes = DIGITS.stat().st_size
    monkeypatch.setattr(mesh._artifacts._room, "_max_disk", float(size_bytes + 1000))
    assert (await publish(alpha, version=2))["versions"][0]["version"] == 2
    monkeypatch.setattr(mesh._artifacts._room, "_max_disk", float(size_bytes - 1000))
    with pytest.raises(TransferFailed, match="undeploy or unpublish something"):
        await publish(alpha, version=3)


async def test_a_blob_that_its_publisher_s_disk_damaged_is_never_served_and_published_again(
    daemons: Daemons, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "FETCH_STALL_S", 1.0)
    alpha = await daemons.start("alpha").ready()
    beta = await daemons.start("beta", await alpha.invite()).ready()
    await alpha.sees(2)
    await publish(alpha)
    mesh = alpha.daemon._mesh
    assert mesh is not None
    store = mesh._artifacts._store
    (sha256,) = [bytes.fromhex(path.name) for path in store._blobs.glob("*/*")]
    damaged = bytearray(DIGITS.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    store.path(sha256).write_bytes(damaged)

    async def seen() -> Any:
        return await beta.get(ARTIFACTS)

    await until(seen, "beta hears of it")
    await deploy(beta, artifact="digits", on=["beta"])

    async def state() -> Any:
        replicas = (await beta.get("/mesh/v1/models/digits"))["replicas"]
        return [(each["state"], each["reason"]) for each in replicas]

    async def has_failed() -> Any:
        return [reason for name, reason in await state() if name == "failed"]

    (reason,) = await until(has_failed, "beta says that nobody has it")
    assert "alpha" in reason
    assert not store.has(sha256)
    await publish(alpha)
    assert store.path(sha256).read_bytes() == DIGITS.read_bytes()

    async def is_ready() -> Any:
        return [name for name, _ in await state()] == ["ready"]

    await until(is_ready, "beta has fetched it from alpha")
