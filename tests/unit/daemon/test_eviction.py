"""A device whose node was evicted: what it remembers, and how it begins anew."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

from meshnode.cli.main import app
from meshnode.daemon import eviction
from meshnode.daemon.supervisor import final_exit_code
from meshnode.datafolder import DataFolder, Evicted, MeshFile, is_member, read_evicted
from meshnode.errors import ConfigError, InviteError
from meshnode.options import JoinOptions
from meshnode.types import Address

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MESH = "f" * 32
WHY = "it was evicted by alpha: stolen"


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[DataFolder]:
    made = DataFolder(tmp_path / "data")
    yield made
    made.close()


@pytest.fixture
def evicted(folder: DataFolder) -> DataFolder:
    folder.identity()
    folder.save_mesh(MeshFile(MESH, b"chain"))
    folder.save_state("desired", b"entries")
    (folder.path / "blobs").mkdir()
    (folder.path / "blobs" / "b").write_bytes(b"x")
    (folder.path / "options").write_text("{}")
    eviction.remember(folder, MESH, WHY, 1e9)
    return folder


def options(folder: DataFolder, **changes: Any) -> JoinOptions:
    given: dict[str, Any] = {
        "invite": None,
        "name": "beta",
        "region": "default",
        "zone": "",
        "labels": (),
        "listen": Address("127.0.0.1", 0),
        "http": None,
        "data_dir": str(folder.path),
        "models": None,
        "new": False,
        "mdns": False,
        **changes,
    }
    return JoinOptions(**given)


def test_it_belongs_to_no_mesh_and_knows_why(
    evicted: DataFolder, caplog: pytest.LogCaptureFixture
) -> None:
    assert not is_member(evicted.path)
    assert evicted.mesh() is None
    assert evicted.state("desired") == b"entries"  # nothing is lost before it joins anew
    known = read_evicted(evicted.path)
    assert known == Evicted(MESH, WHY, "2001-09-09T01:46:40Z")
    sentence = (
        f"this device is no member of mesh {MESH} any more, as it learnt at 2001-09-09T01:46:40Z: "
        f"{WHY}. With a new invite it joins as a new node: meshnode join INVITE"
    )
    assert known.sentence == sentence
    assert [each.getMessage() for each in caplog.get_records("setup")] == [sentence]


def test_without_a_way_in_it_says_so_again_and_changes_nothing(evicted: DataFolder) -> None:
    before = sorted(path.name for path in evicted.path.iterdir())
    for _ in range(2):
        with pytest.raises(ConfigError, match="evicted by alpha: stolen"):
            eviction.begin_anew(evicted, options(evicted), 1e9)
    with pytest.raises(InviteError):
        eviction.begin_anew(evicted, options(evicted, invite="mesh1nonsense"), 1e9)
    assert sorted(path.name for path in evicted.path.iterdir()) == before


@pytest.mark.parametrize("way", [{"new": True}, {"ask": "192.0.2.1:8471"}])
def test_it_begins_anew_with_another_identity_and_its_own_settings(
    evicted: DataFolder, way: dict[str, Any]
) -> None:
    former = evicted.identity().node_id
    epoch = evicted.next_epoch(5.0)
    eviction.begin_anew(evicted, options(evicted, **way), 1e9)
    assert read_evicted(evicted.path) is None
    assert evicted.state("desired") is None
    assert not (evicted.path / "blobs").exists()
    assert not (evicted.path / "mesh.evicted").exists()
    assert (evicted.path / "options").exists()
    assert evicted.identity().node_id != former
    assert evicted.next_epoch(5.0) > epoch
    eviction.begin_anew(evicted, options(evicted), 1e9)  # a member again, or of none


def test_a_crash_in_the_middle_of_it_is_finished_by_the_next_start(tmp_path: Path) -> None:
    folder = DataFolder(tmp_path)
    folder.save_mesh(MeshFile(MESH, b"chain"))
    (tmp_path / "evicted").write_text(f'{{"mesh_id":"{MESH}","why":"{WHY}","at":"today"}}')
    folder.close()
    again = DataFolder(tmp_path)
    assert again.mesh() is None
    again.close()
    (tmp_path / "evicted").write_text("nonsense")
    with pytest.raises(ConfigError, match=r"evicted is damaged.*join again with a new invite"):
        read_evicted(tmp_path)


def test_a_disk_that_is_full_costs_the_memory_and_not_the_sentence(
    folder: DataFolder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(_: object) -> None:
        raise ConfigError("no space left")

    monkeypatch.setattr(folder, "evict", full)
    eviction.remember(folder, MESH, WHY, 1e9)
    said = [record.getMessage() for record in caplog.records]
    assert WHY in said[0]
    assert said[1] == "that could not be written down: no space left"


def test_the_command_says_what_happened_and_ends_so_that_no_supervisor_tries_for_ever(
    evicted: DataFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = ["--data-dir", str(evicted.path)]
    for more in ([], ["--rejoin"], ["--detach"]):
        result = CliRunner().invoke(app, ["join", *more, *place])
        assert result.exit_code == 2
        assert result.stderr.startswith(f"error: this device is no member of mesh {MESH} any more")
    monkeypatch.setenv("XPC_SERVICE_NAME", "org.meshnode.node")
    assert CliRunner().invoke(app, ["join", "--rejoin", *place]).exit_code == 0
    evicted.close()
    left = CliRunner().invoke(app, ["leave", *place])
    assert left.exit_code == 0
    assert "evicted this device is removed" in left.stderr
    assert read_evicted(evicted.path) is None


@pytest.mark.parametrize(("job", "code"), [(None, 2), ("", 2), ("0", 2), ("org.meshnode.node", 0)])
def test_launchd_alone_has_to_be_told_that_all_is_well(
    monkeypatch: pytest.MonkeyPatch, job: str | None, code: int
) -> None:
    monkeypatch.delenv("XPC_SERVICE_NAME", raising=False)
    if job is not None:
        monkeypatch.setenv("XPC_SERVICE_NAME", job)
    assert final_exit_code(2) == code


def test_a_node_with_a_new_key_goes_on_at_the_ports_that_it_had(folder: DataFolder) -> None:
    former = options(folder, invite="mesh1x", new=True, http=Address("127.0.0.1", 0))
    found = eviction.as_successor(former, Address("127.0.0.1", 8471), "https://192.0.2.1:8470")
    assert (found.listen, found.http) == (Address("127.0.0.1", 8471), Address("127.0.0.1", 8470))
    assert (found.invite, found.new, found.rejoin, found.name) == (None, False, True, "beta")
    without = eviction.as_successor(options(folder), Address("127.0.0.1", 8471), None)
    assert without.http is None
