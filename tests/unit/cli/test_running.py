"""`stop`, `leave` and `logs`, without a daemon or with one that misbehaves."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import msgspec
import pytest

from meshnode.cli import running
from meshnode.client import ending
from meshnode.client.log_files import LogReader
from meshnode.datafolder import DataFolder, MeshFile
from meshnode.errors import PeerError
from meshnode.folderlock import holder
from meshnode.membership.messages import write_members
from tests.unit.membership.conftest import build_record

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from typer.testing import Result

    Run = Callable[..., Result]

# A process that holds a folder's lock and does what the rest of the program says.
HOLDER = """
import signal, sys, time
from pathlib import Path
from meshnode.folderlock import FolderLock
lock = FolderLock(Path(sys.argv[1]))
{body}
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def hold(data_dir: Path) -> Iterator[Callable[[str], subprocess.Popen[str]]]:
    """Start a process that holds the data folder's lock."""
    started: list[subprocess.Popen[str]] = []

    def start(body: str = "") -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", HOLDER.format(body=body), str(data_dir)],
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def joined(path: Path, root_seed: bytes = b"") -> None:
    folder = DataFolder(path)
    folder.save_mesh(MeshFile("mesh", b"chain", root_seed))
    folder.save_state("roster", b"x")
    folder.close()


# stop


def test_where_nothing_runs_stop_says_so_and_succeeds(meshnode: Run, data_dir: Path) -> None:
    result = meshnode("stop")
    assert (result.exit_code, result.stdout) == (
        0,
        f"No meshnode daemon is running on {data_dir}.\n",
    )
    assert json.loads(meshnode("stop", "--json").stdout) == {"stopped": False, "pid": None}
    assert meshnode("stop", "--now").exit_code == 0


def test_a_daemon_that_is_still_starting_is_ended_by_a_signal(
    meshnode: Run, hold: Callable[..., subprocess.Popen[str]]
) -> None:
    process = hold()
    result = meshnode("stop", "--json")
    assert json.loads(result.stdout) == {"stopped": True, "pid": process.pid}
    assert "finishes what runs" in result.stderr
    assert process.wait(10) == -signal.SIGTERM


def test_a_daemon_that_takes_too_long_goes_on_stopping(
    meshnode: Run, hold: Callable[..., subprocess.Popen[str]]
) -> None:
    process = hold("signal.signal(signal.SIGTERM, signal.SIG_IGN)")
    result = meshnode("stop", "--timeout", "0.2s")
    assert result.exit_code == 1
    assert f"(pid {process.pid}) still runs after 0.2 s" in result.stderr
    assert "meshnode stop --now" in result.stderr
    assert process.poll() is None


def test_a_daemon_that_does_not_answer_is_named_and_can_be_ended_at_once(
    meshnode: Run,
    hold: Callable[..., subprocess.Popen[str]],
    data_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ending, "ANSWER_S", 0.2)
    monkeypatch.setattr(ending, "GRACE_S", 0.2)
    process = hold("signal.signal(signal.SIGTERM, signal.SIG_IGN)")
    with socket.socket(socket.AF_UNIX) as deaf:
        deaf.bind(str(data_dir / "control.sock"))
        deaf.listen()
        result = meshnode("stop")
        assert result.exit_code == 1
        assert f"(pid {process.pid}) runs on {data_dir} and does not answer" in result.stderr
        assert meshnode("stop", "--now").exit_code == 0
    assert process.wait(10) == -signal.SIGKILL


def test_only_the_process_that_holds_the_lock_is_killed(
    data_dir: Path, hold: Callable[..., subprocess.Popen[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "kill", lambda *_: pytest.fail("somebody was killed"))
    process = hold()
    (data_dir / "lock").write_text(f"{os.getpid()}\n")
    held = holder(data_dir)
    looks = iter([held, None, None])
    monkeypatch.setattr(ending, "holder", lambda _: next(looks))
    with pytest.raises(PeerError, match="not known for sure"):
        ending.end_at_once(data_dir)
    assert process.poll() is None


# leave


def test_a_device_of_no_mesh_has_nothing_to_leave(meshnode: Run, data_dir: Path) -> None:
    result = meshnode("leave")
    assert (result.exit_code, result.stdout) == (
        0,
        f"{data_dir} belongs to no mesh; there is nothing to leave.\n",
    )


def test_leaving_without_a_daemon_forgets_and_says_that_nobody_was_told(
    meshnode: Run, data_dir: Path
) -> None:
    joined(data_dir)
    kept = meshnode("leave", "--keep")
    assert (kept.exit_code, (data_dir / "mesh").exists()) == (0, True)
    assert "could not be told" in kept.stdout
    result = meshnode("leave")
    assert result.exit_code == 0
    assert "the other nodes could not be told" in result.stdout
    assert "use a new invite" in result.stdout
    assert not (data_dir / "mesh").exists()
    assert not list((data_dir / "state").iterdir())


def test_the_root_key_is_not_removed_unless_its_owner_says_so(
    meshnode: Run, data_dir: Path
) -> None:
    joined(data_dir, root_seed=bytes(32))
    refused = meshnode("leave")
    assert refused.exit_code == 2
    assert "holds the root key of its mesh" in refused.stderr
    assert "add --yes" in refused.stderr
    assert (data_dir / "mesh").exists()
    agreed = meshnode("leave", "--yes", "--json")
    assert json.loads(agreed.stdout) == {
        "told": False,
        "forgotten": True,
        "services_removed": [],
    }
    assert not (data_dir / "mesh").exists()


@pytest.mark.parametrize("others", [(), ("beta",)])
def test_in_a_mesh_of_one_nobody_else_is_spoken_of(
    meshnode: Run, data_dir: Path, others: tuple[str, ...]
) -> None:
    joined(data_dir, root_seed=bytes(32))
    records = [build_record(name) for name in others]
    (data_dir / "state" / "members").write_bytes(write_members(records))
    asked = meshnode("leave")
    assert asked.exit_code == 2
    left = meshnode("leave", "--yes")
    assert left.exit_code == 0
    speaks_of_others = [name for name in (asked.stderr, left.stdout) if "other nodes" in name]
    assert len(speaks_of_others) == 2 * len(others)


@pytest.mark.parametrize(("answer", "code", "stays"), [(b"n\n", 1, True), (b"y\n", 0, False)])
def test_at_a_terminal_it_asks(
    meshnode: Run,
    data_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    answer: bytes,
    code: int,
    stays: bool,
) -> None:
    joined(data_dir, root_seed=bytes(32))
    monkeypatch.setattr(running, "_is_terminal", lambda: True)
    assert meshnode("leave", stdin=answer).exit_code == code
    assert (data_dir / "mesh").exists() is stays


def test_a_starting_daemon_is_not_left_behind(
    meshnode: Run, hold: Callable[..., subprocess.Popen[str]], data_dir: Path
) -> None:
    """It would found or rejoin a mesh right after its owner read that there is none."""
    process = hold()
    before = meshnode("leave")
    assert (before.exit_code, before.stdout) == (1, "")
    assert f"(pid {process.pid}) is about to join or to found a mesh" in before.stderr
    (data_dir / "mesh").write_bytes(msgspec.msgpack.encode(MeshFile("mesh", b"chain")))
    for more in ([], ["--keep"]):
        member = meshnode("leave", *more)
        assert (member.exit_code, member.stdout) == (1, "")
        assert f"(pid {process.pid}) is still starting" in member.stderr
    assert process.poll() is None
    assert (data_dir / "mesh").exists()


# Answers as a daemon that dies right after it was asked to leave, before its goodbye.
DIES_WHEN_ASKED = """
import os, socket, threading
server = socket.socket(socket.AF_UNIX)
server.bind(sys.argv[1] + "/control.sock")
server.listen()
def die():
    connection, _ = server.accept()
    connection.recv(65536)
    connection.sendall(b"HTTP/1.1 202 Accepted\\r\\nContent-Type: application/json\\r\\n"
                       b"Content-Length: 2\\r\\nConnection: close\\r\\n\\r\\n{}")
    time.sleep(0.3)
    os._exit(1)
threading.Thread(target=die, daemon=True).start()
"""


@pytest.mark.parametrize("keep", [[], ["--keep"]])
def test_nobody_was_told_by_a_daemon_that_died_before_its_goodbye(
    meshnode: Run, hold: Callable[..., subprocess.Popen[str]], data_dir: Path, keep: list[str]
) -> None:
    joined(data_dir)
    hold(DIES_WHEN_ASKED)
    left = meshnode("leave", *keep)
    assert left.exit_code == 0, left.stderr
    assert "The daemon ended before its goodbye (see `meshnode logs`), so the other" in left.stdout
    assert (data_dir / "mesh").exists() is bool(keep)


# logs


def line(message: str, level: str = "info", **fields: str) -> bytes:
    record = {"time": "2026-01-02T03:04:05.678Z", "level": level, "logger": "meshnode.x"}
    return json.dumps({**record, "message": message, **fields}).encode() + b"\n"


@pytest.fixture
def log(data_dir: Path) -> Path:
    path = data_dir / "logs" / "meshnode.log"
    path.parent.mkdir()
    path.with_name("meshnode.log.2").write_bytes(line("one") + line("two", "error"))
    path.with_name("meshnode.log.1").write_bytes(line("three", request_id="r1", model="digits"))
    path.write_bytes(line("four", "warning", trace_id="t1") + line("five"))
    return path


def messages(result: Result) -> list[str]:
    return [json.loads(text)["message"] for text in result.stdout.splitlines()]


def test_the_last_lines_are_printed_across_files_put_aside(meshnode: Run, log: Path) -> None:
    everything = ["one", "two", "three", "four", "five"]
    assert messages(meshnode("logs", "--json")) == everything
    assert messages(meshnode("logs", "--json", "-n", "3")) == everything[2:]
    assert meshnode("logs", "-n", "0").stdout == ""
    assert meshnode("logs", "-n", "1").stdout == "2026-01-02T03:04:05.678Z info    five\n"


@pytest.mark.parametrize(
    ("args", "found"),
    [
        (["--level", "warning"], ["two", "four"]),
        (["--level", "warning", "-n", "1"], ["four"]),
        (["--level", "error"], ["two"]),
        (["--request", "r1"], ["three"]),
        (["--request", "t1"], ["four"]),
        (["--request", "nobody"], []),
        (["--model", "digits"], ["three"]),
        (["--model", "digits", "--level", "error"], []),
    ],
)
def test_lines_can_be_chosen(meshnode: Run, log: Path, args: list[str], found: list[str]) -> None:
    assert messages(meshnode("logs", "--json", *args)) == found


def test_a_request_of_which_nothing_was_logged_is_told_from_one_that_left_lines(
    meshnode: Run, log: Path
) -> None:
    missing = meshnode("logs", "--request", "nobody")
    assert (missing.exit_code, missing.stdout) == (0, "")
    assert "no line names nobody" in missing.stderr
    assert "--log-level debug" in missing.stderr
    for args in (["--request", "r1"], ["--level", "critical"], ["--request", "nobody", "-n", "0"]):
        assert meshnode("logs", *args).stderr == ""


def test_a_line_that_a_crash_cut_off_is_shown_as_it_is(meshnode: Run, log: Path) -> None:
    log.write_bytes(b'{"time": "20\n' + line("after") + b'{"not yet')
    assert messages(meshnode("logs", "--json", "-n", "2")) == ['{"time": "20', "after"]


def test_what_cannot_be_is_refused(meshnode: Run, data_dir: Path) -> None:
    missing = meshnode("logs")
    assert missing.exit_code == 2
    assert "no node has run on this folder yet" in missing.stderr
    wrong = meshnode("logs", "--level", "loud")
    assert (wrong.exit_code, "is no level" in wrong.stderr) == (2, True)


def everything(_: dict[str, object]) -> bool:
    return True


def test_following_goes_on_when_the_file_is_put_aside_even_twice(log: Path) -> None:
    with LogReader(log) as reader:
        assert [each["message"] for each in reader.last(1, everything)] == ["five"]
        assert list(reader.new()) == []
        with log.open("ab") as file:
            file.write(line("six") + line("seven")[:20])
        assert [each["message"] for each in reader.new()] == ["six"]
        with log.open("ab") as file:
            file.write(line("seven")[20:] + line("eight"))
        for _ in range(2):
            for number in (2, 1, 0):
                log.with_name(f"meshnode.log.{number}" if number else log.name).replace(
                    log.with_name(f"meshnode.log.{number + 1}")
                )
            log.write_bytes(line(f"new {_}"))
        found = [each["message"] for each in reader.new()]
        assert found == ["seven", "eight", "new 0", "new 1"]
        log.write_bytes(line("x"))  # emptied in place: shorter than what was read
        assert [each["message"] for each in reader.new()] == ["x"]


def test_following_waits_for_a_log_that_is_not_there_yet(tmp_path: Path) -> None:
    with LogReader(tmp_path / "meshnode.log") as reader:
        assert (reader.exists, reader.last(5, everything), list(reader.new())) == (False, [], [])
        (tmp_path / "meshnode.log").write_bytes(line("first"))
        assert [each["message"] for each in reader.new()] == ["first"]


def test_ctrl_c_ends_following_without_a_traceback(log: Path, data_dir: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "meshnode", "logs", "-f", "--json", "-n", "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "MESHNODE_DATA_DIR": str(data_dir)},
        text=True,
    )
    assert process.stdout is not None
    assert "five" in process.stdout.readline()
    with log.open("ab") as file:
        file.write(line("six"))
    assert "six" in process.stdout.readline()
    time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=10)
    assert (process.returncode, errors) == (130, "")
