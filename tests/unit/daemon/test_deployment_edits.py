"""Definitions that are applied to whole daemons, with their history."""

from __future__ import annotations

import asyncio
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
import pytest

from meshnode.client.async_mesh import AsyncMeshClient
from meshnode.client.mesh import MeshClient
from meshnode.deployment_file import spec_of
from meshnode.deployment_writing import write_toml
from meshnode.errors import (
    ConfigError,
    InvalidRequest,
    MeshError,
    ModelError,
    ModelNotFound,
    StaleRevision,
)
from tests.unit.daemon.test_member import DIGITS, IMAGE, LOOPBACK, http, until

if TYPE_CHECKING:
    from meshnode.client.deployment_results import DeploymentEdit
    from tests.unit.daemon.conftest import Daemons, Running

INFER = "/v2/models/digits/infer"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "here"
    folder.mkdir()
    shutil.copy(DIGITS, folder / "digits.onnx")
    return folder


async def apply(running: Running, definition: Any, **how: Any) -> DeploymentEdit:
    how = {"wait": False, **how}
    (edit,) = await asyncio.to_thread(lambda: running.client.apply(definition, **how))
    return edit


def written(folder: Path, text: str) -> Path:
    path = folder / "digits.toml"
    path.write_text(f'name = "digits"\nmodel = "digits.onnx"\n{text}', encoding="utf-8")
    return path


def remove_copies(folder: Path, content: bytes) -> None:
    """Remove every file of this content below a folder."""
    for path in folder.rglob("*"):
        if path.is_file() and path.stat().st_size == len(content) and path.read_bytes() == content:
            path.unlink()


async def call(running: Running, name: str, *args: Any, **options: Any) -> Any:
    return await asyncio.to_thread(lambda: getattr(running.client, name)(*args, **options))


async def test_a_file_is_the_whole_definition_and_what_is_so_already_is_not_written(
    daemons: Daemons, model: Path
) -> None:
    alpha = await daemons.start("alpha", http=LOOPBACK).ready()
    file = written(model, 'replicas = 1\npath = "/numbers"\n[env]\nMODE = "fast"\n')
    planned = await apply(alpha, file, dry_run=True)
    assert (planned.changed, planned.files) == (True, "needed")
    with pytest.raises(ModelNotFound):
        await call(alpha, "deployment_of", "digits")
    made = await apply(alpha, file, wait=True)
    assert made.changed
    assert made.model is not None
    assert made.model.ready_on == ("alpha",)
    assert (await apply(alpha, file)).changed is False
    assert len(await call(alpha, "deployment_history", "digits")) == 1
    (shown,) = await call(alpha, "deployments")
    assert (shown.status, shown.reason, len(shown.id)) == ("ready", "", 16)
    assert (made.id, made.is_new) == (shown.id, True)
    assert [url.partition(":")[2].partition("/")[2] for url in shown.urls]
    assert shown.urls[0].endswith("/numbers")
    assert shown.urls[1].endswith(INFER)
    assert shown.definition["env"] == {"MODE": "fast"}
    assert (await call(alpha, "deployment_of", shown.id)).name == "digits"

    again = await apply(alpha, written(model, ""))
    assert [each.key for each in again.changes] == ["path", "env.MODE"]
    assert not again.is_new
    assert (await call(alpha, "deployment_of", "digits")).id == shown.id
    assert (await http(alpha, "/numbers", {"inputs": [IMAGE]}))[0] == 404


async def test_what_is_got_is_applied_again_without_a_change(daemons: Daemons, model: Path) -> None:
    alpha = await daemons.start("alpha").ready()
    text = (
        'replicas = 1\non = ["alpha"]\npath = "/numbers"\ncache = true\nnote = "n"\nstandby = 1\n'
        '[where]\nregions = ["default"]\n[resources]\nmemory = "1MiB"\n[env]\nA = "b"\n[metrics]\nq = 1\n'
    )
    await apply(alpha, written(model, text))
    got = await call(alpha, "deployment_of", "digits")
    assert (await apply(alpha, got.definition)).changes == ()
    assert (await apply(alpha, got.definition)).changed is False
    file = model / "got.toml"
    file.write_text(write_toml([spec_of(got.definition)]), encoding="utf-8")
    assert (await apply(alpha, file)).changed is False
    assert len(await call(alpha, "deployment_history", "digits")) == 1


async def test_revisions_are_compared_and_restored_also_after_a_deletion(
    daemons: Daemons, model: Path
) -> None:
    alpha = await daemons.start("alpha").ready()
    one = await apply(alpha, written(model, ""))
    two = await apply(alpha, written(model, 'standby = 1\n[env]\nA = "secret"\n'))
    told = await call(alpha, "deployment_history", "digits")
    assert [each.id for each in told] == [two.revision, one.revision]
    assert [each.base for each in told] == [one.revision, "none"]
    assert told[0].summary == "standby 0 → 1; env.A set"
    assert told[1].summary == "deployed version 1, 1 replica"
    diff = await call(alpha, "deployment_diff", "digits")
    assert [(each.key, each.before, each.after) for each in diff.changes] == [
        ("standby", 0, 1), ("env.A", None, "secret"),
    ]  # fmt: skip
    back = await call(alpha, "rollback", "digits")
    assert back.changed
    diff = await call(alpha, "deployment_diff", "digits", before=one.revision, after=back.revision)
    assert diff.changes == ()
    assert (await call(alpha, "deployment_history", "digits"))[0].restores == one.revision

    await call(alpha, "undeploy", "digits")
    assert await call(alpha, "deployments") == []
    with pytest.raises(ModelNotFound):
        await call(alpha, "undeploy", "digits")
    told = await call(alpha, "deployment_history", "digits")
    assert (len(told), told[0].summary) == (4, "deleted")
    restored = await call(alpha, "rollback", "digits", to=two.revision[:-2])
    (shown,) = await call(alpha, "deployments")
    assert (shown.revision, shown.definition["env"]) == (restored.revision, {"A": "secret"})
    await until(lambda: _is_ready(alpha), "it serves again")
    with pytest.raises(ModelNotFound, match="no revision '7'"):
        await call(alpha, "rollback", "digits", to="7")
    with pytest.raises(ModelNotFound, match="nothing is, or was"):
        await call(alpha, "deployment_history", "other")


async def _is_ready(running: Running) -> bool:
    found = await call(running, "deployments")
    return [each.status for each in found] == ["ready"]


async def test_history_and_a_deletion_outlive_a_restart(daemons: Daemons, model: Path) -> None:
    alpha = await daemons.start("alpha").ready()
    one = await apply(alpha, written(model, ""))
    await call(alpha, "undeploy", "digits")
    await alpha.stop()
    again = await daemons.start("alpha").ready()
    assert await call(again, "deployments") == []
    await call(again, "rollback", "digits", to=one.revision)
    await until(lambda: _is_ready(again), "it serves again")


async def test_what_was_paused_serves_nothing_until_it_is_resumed(
    daemons: Daemons, model: Path
) -> None:
    alpha = await daemons.start("alpha", http=LOOPBACK).ready()
    await apply(alpha, written(model, ""), wait=True)
    assert (await http(alpha, INFER, {"inputs": [IMAGE]}))[0] == 200
    assert (await call(alpha, "pause", "digits")).changed
    assert (await call(alpha, "pause", "digits")).changed is False
    (shown,) = await call(alpha, "deployments")
    assert (shown.status, shown.enabled) == ("paused", False)
    assert shown.definition["enabled"] is False

    async def refused() -> bool:
        return (await http(alpha, INFER, {"inputs": [IMAGE]}))[0] != 200

    await until(refused, "nobody is served")
    assert (await call(alpha, "deployment_history", "digits"))[0].summary == "paused"
    await call(alpha, "resume", "digits")
    await until(lambda: _is_ready(alpha), "it serves again")
    assert (await http(alpha, INFER, {"inputs": [IMAGE]}))[0] == 200


async def test_a_change_made_from_an_old_revision_is_refused_with_who_changed_what(
    daemons: Daemons, model: Path
) -> None:
    alpha = await daemons.start("alpha").ready()
    one = await apply(alpha, written(model, ""))
    two = await apply(alpha, written(model, "standby = 2\n"))
    stale = written(model, f'standby = 3\nrevision = "{one.revision}"\n')
    with pytest.raises(StaleRevision, match=rf"{two.revision} by alpha at .*: standby 0 → 2"):
        await apply(alpha, stale)
    with pytest.raises(StaleRevision):
        await apply(alpha, stale, dry_run=True)
    with pytest.raises(StaleRevision):
        await call(alpha, "pause", "digits", revision=one.revision)
    with pytest.raises(StaleRevision):
        await call(alpha, "rollback", "digits", revision=one.revision)
    assert len(await call(alpha, "deployment_history", "digits")) == 2
    same = written(model, f'standby = 2\nrevision = "{one.revision}"\n')
    assert (await apply(alpha, same)).changed is False, "what changes nothing passes"
    other = written(model, f'standby = 3\nrevision = "{one.revision}"\n')
    assert (await apply(alpha, other, force=True)).changed


async def test_two_admins_at_once_both_win_or_one_is_told(daemons: Daemons, model: Path) -> None:
    alpha = await daemons.start("alpha").ready()
    await apply(alpha, written(model, ""))
    base = (await call(alpha, "deployment_of", "digits")).revision

    async def edit(standby: int) -> object:
        definition = (await call(alpha, "deployment_of", "digits")).definition
        wish = {**definition, "standby": standby, "revision": base}
        return (await asyncio.gather(apply(alpha, wish), return_exceptions=True))[0]

    ends = await asyncio.gather(*map(edit, range(1, 5)))
    assert sum(isinstance(each, StaleRevision) for each in ends) == 3
    assert len(await call(alpha, "deployment_history", "digits")) == 2


async def test_variables_are_set_and_taken_away_one_by_one(daemons: Daemons, model: Path) -> None:
    alpha = await daemons.start("alpha").ready()
    await apply(alpha, written(model, '[env]\nA = "1"\nB = "2"\n'))
    edit = await call(alpha, "set_env", "digits", {"A": None, "C": "3"})
    assert [each.key for each in edit.changes] == ["env.A", "env.C"]
    assert any("the variables change nothing there" in each for each in edit.warnings)
    shown = await call(alpha, "deployment_of", "digits")
    assert shown.definition["env"] == {"B": "2", "C": "3"}
    assert (await call(alpha, "set_env", "digits", {"A": None})).changed is False
    with pytest.raises(ModelError, match="no name of a variable"):
        await call(alpha, "set_env", "digits", {"a b": "1"})
    with pytest.raises(ModelNotFound):
        await call(alpha, "set_env", "other", {"A": "1"})


async def test_every_mistake_is_told_before_anything_is_sent(daemons: Daemons, model: Path) -> None:
    alpha = await daemons.start("alpha").ready()
    file = model / "several.yaml"
    file.write_text(
        "deployment:\n"
        "- name: one\n  model: digits.onnx\n"
        "- name: two\n  model: nowhere.onnx\n  on: [alpha, omega]\n"
        "- name: three\n  model: three\n"
        "- name: four\n  model: missing.onnx\n  replicas: none\n"
        "- name: five\n  model: digits.onnx\n  release: {strategy: shadow, against: 'deployment:nope'}\n",
        encoding="utf-8",
    )
    with pytest.raises(ConfigError) as failed:
        await apply(alpha, file)
    told = "\n".join(failed.value.lines)
    assert len(failed.value.lines) == 6
    assert "line 11: deployment[4].replicas: 'none' (a text)" in told
    assert "line 10: deployment[4].model: 'missing.onnx' does not exist" in told
    assert "deployment[5].release.against: nothing is deployed under the name 'nope'" in told
    assert "line 5: deployment[2].model: 'nowhere.onnx' does not exist" in told
    assert "line 6: deployment[2].on: no node is called 'omega'; there are alpha" in told
    assert "deployment[3].model: 'three' is no path here, and nothing was published" in told
    assert await call(alpha, "deployments") == []


async def test_of_several_definitions_none_is_written_if_the_mesh_refuses_one(
    daemons: Daemons, model: Path
) -> None:
    alpha = await daemons.start("alpha").ready()
    await apply(alpha, written(model, ""))
    file = model / "several.yaml"
    text = "name: one\nmodel: digits.onnx\n---\nname: digits\nmodel: digits\nversion: 9\n"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ModelNotFound, match="version 9"):
        await apply(alpha, file)
    file.write_text(f"{text}---\nname: two\nmodel: two\nversion: 3\n", encoding="utf-8")
    with pytest.raises(ConfigError) as failed:
        await apply(alpha, file)
    assert [line.rpartition("/")[2][:26] for line in failed.value.lines] == [
        "several.yaml: digits: vers", "several.yaml: two: version",
    ]  # fmt: skip
    assert [each.name for each in await call(alpha, "deployments")] == ["digits"]


async def test_a_name_with_a_version_is_not_taken_for_a_folder_that_is_called_so(
    daemons: Daemons, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alpha = await daemons.start("alpha").ready()
    await apply(alpha, written(model, ""))
    got = (await call(alpha, "deployment_of", "digits")).definition
    (model / "digits").mkdir()
    monkeypatch.chdir(model)
    assert (await apply(alpha, got)).changed is False
    with pytest.raises(ModelError):
        await apply(alpha, {"name": "digits", "model": "digits"})
    with pytest.raises(ConfigError, match="'letters' is no path here, and what was published"):
        await apply(alpha, {"name": "digits", "model": "letters"})


async def test_what_was_published_is_applied_by_its_name(daemons: Daemons, model: Path) -> None:
    alpha = await daemons.start("alpha").ready()
    await call(alpha, "publish", model / "digits.onnx", version=3)
    await call(alpha, "publish", model / "digits.onnx", version=4)
    edit = await apply(alpha, {"name": "digits", "model": "digits"})
    assert edit.model is not None
    assert edit.model.deployed == (4,)
    edit = await apply(alpha, {"name": "digits", "model": "digits", "version": [3, 4]})
    assert edit.model is not None
    assert edit.model.deployed == (3, 4)
    with pytest.raises(ModelNotFound, match=r"version 5 .*; there is 3, 4"):
        await apply(alpha, {"name": "digits", "model": "digits", "version": 5})
    with pytest.raises(ConfigError, match="deployed as it was published, without this"):
        await apply(alpha, {"name": "digits", "model": "digits", "note": "n"})


async def test_files_reach_a_gateway_in_uploads_with_all_forms_in_one_revision(
    daemons: Daemons, model: Path
) -> None:
    alpha = await daemons.start("alpha", http=LOOPBACK).ready()
    key = await alpha.post("/mesh/v1/keys", {"name": "ci", "scopes": ["deploy"]})
    other = model / "int8.onnx"
    changed = onnx.load(DIGITS)
    changed.doc_string = "another form"
    onnx.save(changed, other)
    url = str((await alpha.get("/mesh/v1/status"))["http"])
    file = written(model, '[variants]\nint8 = "int8.onnx"\n')
    with MeshClient(url, api_key=key["key"]) as remote:
        (made,) = await asyncio.to_thread(lambda: remote.apply(file, wait=False))
        assert made.changed
        (again,) = await asyncio.to_thread(lambda: remote.apply(file, wait=False))
        assert again.changed is False
        (shown,) = await asyncio.to_thread(remote.deployments)
        assert [each.variant for each in shown.versions] == ["", "int8"]
        (told,) = await asyncio.to_thread(remote.deployment_history, "digits")
        assert told.by.startswith("key ci (")
    reader = await alpha.post("/mesh/v1/keys", {"name": "page", "scopes": ["infer"]})
    await call(alpha, "set_env", "digits", {"A": "secret"})
    with MeshClient(url, api_key=reader["key"]) as remote:
        shown = await asyncio.to_thread(remote.deployment_of, "digits")
        assert shown.definition["env"] == {"A": "…"}
        diff = await asyncio.to_thread(remote.deployment_diff, "digits")
        assert [(each.key, each.after) for each in diff.changes] == [("env.A", "…")]


async def test_a_plain_members_gateway_has_an_operators_node_make_the_changes(
    daemons: Daemons, model: Path
) -> None:
    alpha = await daemons.start("alpha").ready()
    invite = await alpha.post("/mesh/v1/invites", {"ttl_s": 600, "role": "member"})
    beta = await daemons.start("beta", str(invite["invite"]), http=LOOPBACK).ready()
    await alpha.sees(2)
    key = await alpha.post("/mesh/v1/keys", {"name": "ci", "scopes": ["deploy"]})
    other = onnx.load(DIGITS)
    other.doc_string = "another form"
    onnx.save(other, model / "int8.onnx")
    file = written(model, '[variants]\nint8 = "int8.onnx"\n')
    url = str((await beta.get("/mesh/v1/status"))["http"])

    async def is_known() -> bool:
        return bool(await beta.get("/mesh/v1/deployments"))

    with MeshClient(url, api_key=key["key"]) as remote:
        await until(lambda: _answers(remote), "the key is known")
        (made,) = await asyncio.to_thread(lambda: remote.apply(file, wait=False))
        assert made.changed
        await until(is_known, "beta hears of it")
        (told,) = await asyncio.to_thread(remote.deployment_history, "digits")
        assert (told.node, told.by.endswith("through beta")) == ("alpha", True)
        assert (await asyncio.to_thread(remote.pause, "digits")).changed
        assert (await asyncio.to_thread(remote.rollback, "digits")).changed
        await asyncio.to_thread(remote.undeploy, "digits")
    assert await alpha.get("/mesh/v1/deployments") == []


async def _answers(remote: MeshClient) -> bool:
    try:
        await asyncio.to_thread(remote.deployments)
    except MeshError:
        return False
    return True


async def test_files_that_changed_under_the_same_name_are_a_change(
    daemons: Daemons, model: Path
) -> None:
    alpha = await daemons.start("alpha").ready()
    file = written(model, "")
    await apply(alpha, file)
    changed = onnx.load(DIGITS)
    changed.doc_string = "trained again"
    onnx.save(changed, model / "digits.onnx")
    planned = await apply(alpha, file, dry_run=True)
    assert [each.key for each in planned.changes] == ["files"]
    made = await apply(alpha, file)
    assert [each.key for each in made.changes] == ["version 1", "version 2"]
    back = await call(alpha, "rollback", "digits")
    assert back.model.deployed == (1,)


async def test_a_revision_whose_files_are_on_no_node_is_not_restored(
    daemons: Daemons, model: Path
) -> None:
    alpha = await daemons.start("alpha").ready()
    file = written(model, "")
    one = await apply(alpha, file)
    former = (model / "digits.onnx").read_bytes()
    changed = onnx.load(DIGITS)
    changed.doc_string = "trained again"
    onnx.save(changed, model / "digits.onnx")
    await apply(alpha, file, wait=True)
    remove_copies(Path(alpha.options.data_dir), former)
    with pytest.raises(ModelError, match="cannot be restored: the files of version 1 could not be"):
        await call(alpha, "rollback", "digits", to=one.revision)
    assert (await call(alpha, "deployments"))[0].versions[0].version == 2
    assert len(await call(alpha, "deployment_history", "digits")) == 2


async def test_a_deploy_keeps_what_it_does_not_say_and_one_without_files_is_refused(
    daemons: Daemons, model: Path
) -> None:
    alpha = await daemons.start("alpha").ready()
    await apply(
        alpha, written(model, 'standby = 1\n[where]\nregions = ["default"]\n[env]\nA = "1"\n')
    )
    await alpha.post("/mesh/v1/deployments", {"path": str(model / "digits.onnx"), "replicas": 2})
    shown = (await call(alpha, "deployment_of", "digits")).definition
    assert (shown["replicas"], shown["standby"], shown["env"]) == (2, 1, {"A": "1"})
    assert shown["where"] == {"regions": ["default"]}
    body = {"deployment": {"name": "digits", "model": "digits.onnx"}, "source": "of other files"}
    with pytest.raises(InvalidRequest, match="have to be sent with it"):
        await asyncio.to_thread(alpha.client.put, "/mesh/v1/deployments/digits", body)


async def test_the_program_of_the_page_runs_as_it_stands(
    daemons: Daemons,
    model: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    page = (Path(__file__).parents[3] / "docs" / "deployments.md").read_text(encoding="utf-8")
    (program,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    alpha = await daemons.start("alpha").ready()
    monkeypatch.setenv("MESHNODE_DATA_DIR", alpha.options.data_dir)
    monkeypatch.chdir(model)
    capsys.readouterr()
    await asyncio.to_thread(exec, program, {})
    lines = [line for line in capsys.readouterr().out.splitlines() if line]
    assert lines[-4].startswith("True ")
    assert lines[-3:] == ["False", "['deployed version 1, 1 replica']", "True"]


async def test_the_asynchronous_client_does_the_same(daemons: Daemons, model: Path) -> None:
    alpha = await daemons.start("alpha").ready()
    async with AsyncMeshClient.local(Path(alpha.options.data_dir)) as mesh:
        (edit,) = await mesh.apply(written(model, ""))
        assert edit.model is not None
        assert edit.model.ready_on == ("alpha",)
        assert [each.changed for each in await mesh.apply(model / "digits.toml")] == [False]
        assert (await mesh.pause("digits")).changed
        assert (await mesh.deployment_diff("digits")).changes[0].key == "enabled"
        resumed = await mesh.resume("digits")
        assert (await mesh.run(mesh.readiness(resumed, 15.0, lambda _: None))).model is not None
        assert (await mesh.set_env("digits", {"A": "1"})).changed
        await mesh.undeploy("digits")
        assert (await mesh.rollback("digits")).changed
        told = await mesh.deployment_history("digits")
        assert [each.summary for each in told[1:]] == [
            "deleted", "env.A set", "resumed", "paused", "deployed version 1, 1 replica",
        ]  # fmt: skip
        with pytest.raises(ConfigError, match="model: this is missing"):
            await mesh.apply({"name": "digits"})
