"""Jobs on disk: SQLite with a write-ahead log, durable at every commit.

One connection, used by one thread: the caller sees to that. What cannot be read at the start is set aside, for a
node must start without its jobs rather than not at all; the other copies heal it.
"""

from __future__ import annotations

import logging
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING, Final

import msgspec

from meshnode.errors import NotServing
from meshnode.jobs.job import Job, JobState

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from meshnode.types import Buffer

log = logging.getLogger(__name__)

JOBS_FILE: Final = "jobs.db"
"""Its name in a data folder."""

_VERSION: Final = 1
_TABLES: Final = """
CREATE TABLE job (id TEXT PRIMARY KEY, job BLOB NOT NULL, state BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE body (id TEXT NOT NULL, sha256 BLOB NOT NULL, data BLOB NOT NULL, PRIMARY KEY (id, sha256));
"""
# As bytes, whatever they are: SQLite's module raises at text that is broken, for all rows at once.
_JOBS: Final = "SELECT CAST(id AS BLOB), CAST(job AS BLOB), CAST(state AS BLOB) FROM job"
_SWEEP: Final = "DELETE FROM body WHERE id NOT IN (SELECT id FROM job)"
_SET_ASIDE: Final = 9  # files of one kind: a disk that damages each does not fill up with them
_BODY: Final = "INSERT OR IGNORE INTO body VALUES (?, ?, ?)"


class JobStore:
    """The jobs of one node on its disk."""

    def __init__(self, path: Path) -> None:
        """Open or make the file; a damaged one is set aside.

        Raises:
            NotServing: if it can be neither.
        """
        self._path = path
        self._encoder = msgspec.msgpack.Encoder()
        try:
            self._connection = self._opened()
        except (OSError, sqlite3.OperationalError) as error:  # the disk's fault, not the file's
            raise NotServing(f"the jobs of this node cannot be kept: {error}") from error
        except sqlite3.DatabaseError as error:
            self._connection = self._anew(error)

    def __repr__(self) -> str:
        return f"<JobStore {self._path}>"

    def all(self) -> list[tuple[Job, JobState]]:
        """Return every job with its state; one that cannot be read is dropped, and a file that cannot is set aside.

        Raises:
            NotServing: if the disk does not let it be read.
        """
        try:
            return self._readable()
        except sqlite3.OperationalError as error:  # the disk's fault, not the file's
            raise _unread(error) from error
        except sqlite3.DatabaseError as error:
            self._connection.close()
            self._connection = self._anew(error)
            return []

    def keep(self, job: Job, state: JobState, body: Buffer) -> None:
        """Write a job with the body of its call; return when it is durable.

        Raises:
            NotServing: if the disk does not take it.
        """
        row = (job.id, self._encoder.encode(job), self._encoder.encode(state))
        try:
            with self._connection:
                self._connection.execute(
                    "INSERT INTO job VALUES (?, ?, ?) "
                    "ON CONFLICT (id) DO UPDATE SET job = excluded.job, state = excluded.state",
                    row,
                )
                self._connection.execute(_BODY, (job.id, job.body_sha256, body))
        except sqlite3.Error as error:
            raise _refusal(error) from error

    def keep_result(self, job_id: str, sha256: bytes, body: Buffer) -> None:
        """Write the body of a result, before the state that names it.

        Raises:
            NotServing: if the disk does not take it.
        """
        try:
            with self._connection:
                self._connection.execute(_BODY, (job_id, sha256, body))
        except sqlite3.Error as error:
            raise _refusal(error) from error

    def write(self, states: Sequence[tuple[str, JobState]], dropped: Sequence[str] = ()) -> None:
        """Write states, and forget jobs with their bodies, in one transaction.

        Raises:
            NotServing: if the disk does not take it.
        """
        rows = [(self._encoder.encode(state), job_id) for job_id, state in states]
        gone = [(job_id,) for job_id in dropped]
        try:
            with self._connection:
                self._connection.executemany("UPDATE job SET state = ? WHERE id = ?", rows)
                self._connection.executemany("DELETE FROM job WHERE id = ?", gone)
                self._connection.executemany("DELETE FROM body WHERE id = ?", gone)
            if gone:
                self._connection.execute("PRAGMA incremental_vacuum(4096)").fetchall()
        except sqlite3.Error as error:
            raise _refusal(error) from error

    def body(self, job_id: str, sha256: bytes) -> bytes | None:
        """Return a body; None if it is not here.

        Raises:
            NotServing: if it cannot be read.
        """
        try:
            row = self._connection.execute(
                "SELECT data FROM body WHERE id = ? AND sha256 = ?", (job_id, sha256)
            ).fetchone()
        except sqlite3.Error as error:
            raise _unread(error) from error
        return None if row is None else bytes(row[0])

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def _readable(self) -> list[tuple[Job, JobState]]:
        found = []
        damaged = []
        for job_id, *row in self._connection.execute(_JOBS).fetchall():
            try:
                job = msgspec.msgpack.decode(row[0], type=Job)
                state = msgspec.msgpack.decode(row[1], type=JobState)
            except (msgspec.MsgspecError, ValueError):  # text that is no UTF-8 is a ValueError
                damaged.append((job_id,))
                continue
            if job.id.encode() == job_id:
                found.append((job, state))
            else:
                damaged.append((job_id,))
        if damaged:
            log.error("%d jobs on disk cannot be read and are dropped", len(damaged))
            with self._connection:
                self._connection.executemany("DELETE FROM job WHERE CAST(id AS BLOB) = ?", damaged)
                self._connection.execute(_SWEEP)
        return found

    def _anew(self, damage: sqlite3.DatabaseError) -> sqlite3.Connection:
        """Set a file that cannot be read aside, with its log, and return a new one's connection."""
        aside = self._unused(f"{self._path.name}.{_ending(damage)}")
        log.error("%s cannot be read (%s) and is set aside as %s", self._path, damage, aside.name)
        try:
            for ending in ("-wal", "-shm"):
                beside = self._path.with_name(self._path.name + ending)
                if beside.exists():
                    beside.replace(aside.with_name(aside.name + ending))
            self._path.replace(aside)
            return self._opened()
        except (OSError, sqlite3.Error) as error:
            raise NotServing(f"the jobs of this node cannot be kept: {error}") from error

    def _unused(self, name: str) -> Path:
        """Return a place of this name, or with a number after it, where nothing is; the last one of all is used again."""
        places = [self._path.with_name(name)]
        places += [self._path.with_name(f"{name}-{number}") for number in range(2, 1 + _SET_ASIDE)]
        return next((place for place in places if not place.exists()), places[-1])

    def _opened(self) -> sqlite3.Connection:
        self._path.touch(mode=0o600)  # what callers asked is nobody else's
        connection = sqlite3.connect(self._path, check_same_thread=False, timeout=5.0)
        try:
            connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            with closing(connection.execute("PRAGMA user_version")) as found:
                version = int(found.fetchone()[0])
            if version == 0:
                connection.executescript(
                    f"BEGIN; {_TABLES} PRAGMA user_version = {_VERSION}; COMMIT;"
                )
            elif version != _VERSION:
                raise _OtherVersion(version)
            with connection:  # a result whose job was forgotten before it was written
                connection.execute(_SWEEP)
        except BaseException:
            connection.close()
            raise
        return connection


class _OtherVersion(sqlite3.DatabaseError):
    """The file is sound, and another version of this program wrote it."""

    def __init__(self, version: int) -> None:
        super().__init__(f"it is of version {version}, and this program reads {_VERSION}")
        self.version = version


def _ending(damage: sqlite3.DatabaseError) -> str:
    """Return how the name of a file ends that is set aside: a newer program's can be given back to it by its old name."""
    return f"version-{damage.version}" if isinstance(damage, _OtherVersion) else "damaged"


def _unread(error: sqlite3.Error) -> NotServing:
    return NotServing(f"this node cannot read jobs from its disk ({error}); another may")


def _refusal(error: sqlite3.Error) -> NotServing:
    return NotServing(f"this node cannot write jobs to its disk ({error}); another may")
