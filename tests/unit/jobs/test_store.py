"""Jobs on disk: what was written is there after a crash, and a damaged file does not stop a node."""

from __future__ import annotations

import sqlite3
import stat
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from meshnode.errors import NotServing
from meshnode.jobs.job import NEW, JobState, claimed
from meshnode.jobs.store import JobStore
from tests.unit.jobs.mesh import HOOK, START_MS, job

if TYPE_CHECKING:
    from pathlib import Path

RUNNING = claimed(NEW, "ann", START_MS)


def opened(path: Path) -> JobStore:
    return JobStore(path / "jobs.db")


def test_jobs_bodies_and_states_are_there_after_a_restart(tmp_path: Path) -> None:
    store = opened(tmp_path)
    what = job("a", webhook=HOOK, headers=(("accept", "image/png"),))
    store.keep(what, NEW, b"the body")
    store.keep_result(what.id, b"2" * 32, b"the result")
    store.write([(what.id, RUNNING)])
    store.close()
    again = opened(tmp_path)
    assert again.all() == [(what, RUNNING)]
    assert again.body(what.id, what.body_sha256) == b"the body"
    assert again.body(what.id, b"2" * 32) == b"the result"
    assert again.body(what.id, b"3" * 32) is None
    again.close()


def test_a_job_is_durable_when_keep_returns(tmp_path: Path) -> None:
    """The process is killed right afterwards, without closing anything."""
    script = (
        "import os, signal, sys\nfrom pathlib import Path\n"
        "from meshnode.jobs.job import NEW\nfrom meshnode.jobs.store import JobStore\n"
        "from tests.unit.jobs.mesh import job\n"
        "JobStore(Path(sys.argv[1]) / 'jobs.db').keep(job('a'), NEW, b'body')\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False)
    store = opened(tmp_path)
    assert [what.id for what, _ in store.all()] == ["a" * 26]
    store.close()


def test_dropped_jobs_take_their_bodies_along(tmp_path: Path) -> None:
    store = opened(tmp_path)
    for letter in "ab":
        store.keep(job(letter), NEW, b"body")
        store.keep_result(letter * 26, b"2" * 32, b"result")
    store.write([], ["a" * 26])
    assert [what.id for what, _ in store.all()] == ["b" * 26]
    assert store.body("a" * 26, bytes(32)) is None
    assert store.body("b" * 26, b"2" * 32) == b"result"
    store.close()


def test_a_result_without_its_job_is_swept_at_the_start(tmp_path: Path) -> None:
    store = opened(tmp_path)
    store.keep_result("c" * 26, b"2" * 32, b"nobody asked for it")
    store.close()
    store = opened(tmp_path)
    assert store.body("c" * 26, b"2" * 32) is None
    store.close()


def test_a_damaged_file_is_set_aside(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "jobs.db").write_bytes(b"this is no database" * 1000)
    store = opened(tmp_path)
    assert store.all() == []
    store.keep(job("a"), NEW, b"")
    store.close()
    assert (tmp_path / "jobs.db.damaged").exists()
    assert "set aside" in caplog.text


def test_nothing_that_is_set_aside_takes_the_place_of_another(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / "jobs.db").write_bytes(b"%d is no database" % number * 1000)
        opened(tmp_path).close()
    kept = [tmp_path / f"jobs.db.damaged{ending}" for ending in ("", "-2", "-3")]
    assert [path.read_bytes()[:1] for path in kept] == [b"0", b"1", b"2"]


def test_a_newer_programs_jobs_are_not_lost_on_an_older_one(tmp_path: Path) -> None:
    store = opened(tmp_path)
    store.keep(job("a"), NEW, b"body")
    store._connection.execute("PRAGMA user_version = 2")
    store.close()
    store = opened(tmp_path)
    assert store.all() == []
    store.close()
    with sqlite3.connect(tmp_path / "jobs.db.version-2") as connection:
        assert connection.execute("SELECT id FROM job").fetchall() == [("a" * 26,)]
    connection.close()


def test_a_page_of_the_jobs_that_cannot_be_read_does_not_stop_the_node(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = opened(tmp_path)
    for letter in "abcdefgh":
        store.keep(job(letter, path="/" + "x" * 3000), NEW, b"body")
    page = store._connection.execute(
        "SELECT rootpage FROM sqlite_master WHERE name = 'job'"
    ).fetchone()[0]
    size = store._connection.execute("PRAGMA page_size").fetchone()[0]
    store.close()
    with (tmp_path / "jobs.db").open("r+b") as file:
        file.seek((page - 1) * size)
        file.write(b"\xff" * size)
    store = opened(tmp_path)
    assert store.all() == []
    assert "set aside" in caplog.text
    store.keep(job("a"), NEW, b"body")
    store.close()
    store = opened(tmp_path)
    assert [what.id for what, _ in store.all()] == ["a" * 26]
    store.close()


def test_a_body_whose_page_cannot_be_read_is_told_as_such(tmp_path: Path) -> None:
    store = opened(tmp_path)
    store.keep(job("a"), NEW, b"z" * 100_000)
    store.close()
    path = tmp_path / "jobs.db"
    content = path.read_bytes()
    middle = content.index(b"z" * 4000)
    path.write_bytes(content[:middle] + b"\xff" * 60_000 + content[middle + 60_000 :])
    store = opened(tmp_path)
    with pytest.raises(NotServing, match="cannot read jobs"):
        store.body("a" * 26, bytes(32))
    store.close()


@pytest.mark.parametrize(
    "change",
    [
        "state = x'00'",
        "state = 'text'",
        "job = substr(job, 1, 40) || x'ff' || substr(job, 42)",
        "id = CAST(x'ff' AS TEXT)",
        "id = 'c'",
    ],
)
def test_a_row_that_cannot_be_read_costs_only_itself(tmp_path: Path, change: str) -> None:
    store = opened(tmp_path)
    for letter in "ab":
        store.keep(job(letter), NEW, b"body")
    store.close()
    with sqlite3.connect(tmp_path / "jobs.db") as connection:
        assert connection.execute(f"UPDATE job SET {change} WHERE id = ?", ("a" * 26,)).rowcount
    connection.close()
    store = opened(tmp_path)
    assert [what.id for what, _ in store.all()] == ["b" * 26]
    assert store.body("a" * 26, bytes(32)) is None
    store.close()


def test_a_disk_that_takes_nothing_is_told_as_such(tmp_path: Path) -> None:
    store = opened(tmp_path)
    store._connection.execute("PRAGMA query_only = 1")
    with pytest.raises(NotServing, match="cannot write jobs"):
        store.keep(job("a"), NEW, b"")
    with pytest.raises(NotServing, match="cannot write jobs"):
        store.keep_result("a" * 26, b"2" * 32, b"x")
    with pytest.raises(NotServing, match="cannot write jobs"):
        store.write([("a" * 26, JobState())])
    store.close()


def test_a_folder_where_nothing_can_be_made_is_told_as_such(tmp_path: Path) -> None:
    with pytest.raises(NotServing, match="cannot be kept"):
        JobStore(tmp_path / "missing" / "jobs.db")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no modes")
def test_the_file_is_its_owners_only(tmp_path: Path) -> None:
    store = opened(tmp_path)
    store.keep(job("a"), NEW, b"")
    for path in tmp_path.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path.name
    store.close()
