"""Where the daemon's log goes, and that it never stops the daemon."""

from __future__ import annotations

import errno
import io
import json
import logging
import os
import sys
from typing import TYPE_CHECKING, Any

import pytest

from meshnode.daemon import logs
from meshnode.daemon.logs import LogFile, identify, logged_lines, set_up_logging
from meshnode.limits import LOG_RETRY_S, MAX_LOG_FILES
from meshnode.log_fields import request_fields
from meshnode.tracing import Trace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from meshnode.options import LogFormat, LogLevel

log = logging.getLogger("meshnode.test")
posix_only = pytest.mark.skipif(sys.platform == "win32", reason="POSIX permissions")


@pytest.fixture
def set_up() -> Iterator[Callable[..., io.StringIO]]:
    """Set logging up on a stream of its own; everything is as before afterwards."""
    levels = {name: logging.getLogger(name).level for name in (None, "meshnode", "asyncio")}
    made = []

    def make(
        level: LogLevel = "info", log_format: LogFormat = "text", path: Path | None = None
    ) -> io.StringIO:
        stream = io.StringIO()
        made.append(set_up_logging(level, log_format, path, stream=stream))
        return stream

    yield make
    for each in made:
        each.close()
    for name, number in levels.items():
        logging.getLogger(name).setLevel(number)


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_line_goes_to_stderr_as_text_and_to_the_file_as_json(
    set_up: Callable[..., io.StringIO], tmp_path: Path
) -> None:
    path = tmp_path / "logs" / "meshnode.log"
    stream = set_up(path=path)
    identify(node="alpha", mesh="m1")
    trace = Trace("a" * 32, "b" * 16, "c" * 16)
    log.warning("infer %s failed", "digits", extra=request_fields("r1", trace, code="link_lost"))
    (line,) = lines_of(path)
    assert line.pop("time").endswith("Z")
    assert line == {
        "level": "warning",
        "logger": "meshnode.test",
        "message": "infer digits failed",
        "node": "alpha",
        "mesh": "m1",
        "request_id": "r1",
        "trace_id": "a" * 32,
        "span_id": "b" * 16,
        "parent_id": "c" * 16,
        "code": "link_lost",
    }
    assert "warning infer digits failed request_id=r1 trace_id=aaaa" in stream.getvalue()
    assert logged_lines() == {"warning": 1, "lost": 0}


def test_stderr_may_be_json_as_well(set_up: Callable[..., io.StringIO]) -> None:
    stream = set_up(log_format="json")
    log.info("hello")
    assert json.loads(stream.getvalue())["message"] == "hello"


def test_an_exception_s_traceback_is_in_the_line(set_up: Callable[..., io.StringIO]) -> None:
    stream = set_up(log_format="json")
    try:
        raise ZeroDivisionError("a defect")
    except ZeroDivisionError:
        log.exception("it failed")
    assert json.loads(stream.getvalue())["exception"].endswith("ZeroDivisionError: a defect")


def test_the_level_holds_for_us_and_libraries_begin_at_warning(
    set_up: Callable[..., io.StringIO],
) -> None:
    stream = set_up("debug")
    log.debug("ours")
    for name in ("aiohttp.server", "zeroconf"):
        logging.getLogger(name).info("quiet")
        logging.getLogger(name).warning("heard")
    logging.getLogger("asyncio").warning("a peer's bad TLS")
    text = stream.getvalue()
    assert "ours" in text
    assert "quiet" not in text
    assert "aiohttp.server: heard" in text
    assert "zeroconf: heard" in text
    assert "bad TLS" not in text
    stream = set_up("error")
    log.warning("nothing")
    logging.getLogger("zeroconf").warning("nothing")
    assert stream.getvalue() == ""


def test_a_second_set_up_replaces_the_first(set_up: Callable[..., io.StringIO]) -> None:
    first, second = set_up(), set_up()
    log.info("once")
    assert first.getvalue() == ""
    assert second.getvalue().count("once") == 1


def test_a_message_whose_arguments_do_not_fit_is_logged_as_it_is(
    set_up: Callable[..., io.StringIO],
) -> None:
    stream = set_up()
    record = logging.LogRecord("zeroconf", logging.INFO, "", 0, "a %s and %s", ("b",), None)
    ours = next(each for each in logging.getLogger().handlers if repr(each).startswith("<log to"))
    ours.handle(record)  # pytest's own handlers would raise
    assert "a %s and %s" in stream.getvalue()


def test_a_closed_stderr_stops_nothing(set_up: Callable[..., io.StringIO], tmp_path: Path) -> None:
    stream = set_up(path=tmp_path / "x.log")
    stream.close()
    log.info("still written")
    assert lines_of(tmp_path / "x.log")[0]["message"] == "still written"


@posix_only
def test_the_journal_gets_no_time_but_a_priority(
    set_up: Callable[..., io.StringIO], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (tmp_path / "journal").open("w+") as stream:
        found = os.fstat(stream.fileno())
        monkeypatch.setenv("JOURNAL_STREAM", f"{found.st_dev}:{found.st_ino}")
        setup = set_up_logging("info", "text", stream=stream)
        log.warning("two\nlines")
        try:
            raise ValueError("x")
        except ValueError:
            log.exception("failed")
        setup.close()
        lines = (tmp_path / "journal").read_text().splitlines()
    assert lines[0] == "<4>warning two\\nlines"
    assert lines[1] == "<3>error   failed"
    assert all(line.startswith("<3>    ") for line in lines[2:])
    monkeypatch.setenv("JOURNAL_STREAM", "1:1")  # another process' stderr, inherited
    stream_text = set_up()
    log.info("with time")
    assert stream_text.getvalue().startswith("20")


# The file


class Complaints(list[str]):
    def __call__(self, sentence: str, seconds: float) -> None:
        self.append(sentence)


@pytest.fixture
def complaints() -> Complaints:
    return Complaints()


@posix_only
def test_only_the_owner_can_read_the_file(tmp_path: Path, complaints: Complaints) -> None:
    path = tmp_path / "logs" / "x.log"
    path.parent.mkdir()
    path.touch(0o644)
    file = LogFile(path, complaints)
    file.write("a", 0.0)
    file.close()
    assert path.stat().st_mode & 0o777 == 0o600
    fresh = LogFile(tmp_path / "new" / "x.log", complaints)
    fresh.write("a", 0.0)
    fresh.close()
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o700


def test_a_full_file_is_put_aside_and_few_are_kept(
    tmp_path: Path, complaints: Complaints, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "MAX_LOG_FILE_BYTES", 100)
    path = tmp_path / "x.log"
    file = LogFile(path, complaints)
    for number in range(100):
        file.write(f"{number:039d}", 0.0)
    file.close()
    found = {each.name: each.read_text().split() for each in tmp_path.iterdir()}
    assert sorted(found) == ["x.log", *(f"x.log.{n}" for n in range(1, MAX_LOG_FILES + 1))]
    newest = [int(text) for text in found["x.log"]]
    assert newest[-1] == 99
    assert [int(text) for text in found["x.log.1"]] == [newest[0] - 2, newest[0] - 1]
    assert all(len("\n".join(lines)) <= 100 for lines in found.values())
    assert complaints == []


def test_a_file_goes_on_after_a_restart_and_a_torn_line_ends(
    tmp_path: Path, complaints: Complaints
) -> None:
    path = tmp_path / "x.log"
    path.write_text('{"message": "whole"}\n{"mess')
    file = LogFile(path, complaints)
    file.write("next", 0.0)
    file.close()
    assert path.read_text() == '{"message": "whole"}\n{"mess\nnext\n'


def test_a_file_that_cannot_be_renamed_is_emptied(
    tmp_path: Path, complaints: Complaints, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows lets nobody rename a file that somebody reads."""
    monkeypatch.setattr(logs, "MAX_LOG_FILE_BYTES", 100)
    path = tmp_path / "x.log"

    def fails(*_: object) -> None:
        raise PermissionError(errno.EACCES, "somebody reads it")

    monkeypatch.setattr(type(path), "replace", fails)
    file = LogFile(path, complaints)
    for number in range(10):
        file.write(f"{number:060d}", 0.0)
    file.close()
    assert path.read_text().split() == [f"{9:060d}"]
    assert file.lost == 0


def test_a_full_disk_is_told_once_and_the_gap_when_it_is_over(
    tmp_path: Path, complaints: Complaints, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.log"
    file = LogFile(path, complaints)
    file.write("before", 0.0)
    write = os.write
    tries = 0

    def full(descriptor: int, data: memoryview) -> int:
        nonlocal tries
        tries += 1
        if tries == 1:
            return write(descriptor, data[:3])  # what still fits
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    for second in range(int(LOG_RETRY_S) * 2):
        file.write("lost", 1.0 + second)
    assert tries == 3  # it is left alone in between
    assert len(complaints) == 1
    assert "No space left on device" in complaints[0]
    monkeypatch.setattr(os, "write", write)
    file.write("after", 1000.0)
    file.close()
    first, torn, gap, last = path.read_text().splitlines()
    assert (first, torn, last) == ("before", "los", "after")
    assert json.loads(gap)["message"].startswith("60 lines are missing here")
    assert file.lost == 60


def test_a_folder_that_cannot_be_written_is_told_on_stderr_and_stops_nothing(
    set_up: Callable[..., io.StringIO], tmp_path: Path
) -> None:
    (tmp_path / "logs").write_text("a file where a folder should be")
    stream = set_up(path=tmp_path / "logs" / "meshnode.log")
    log.info("one")
    log.info("two")
    text = stream.getvalue()
    assert text.count("cannot be written") == 1
    assert "one" in text
    assert "two" in text
    assert logged_lines()["lost"] == 2


def test_without_a_set_up_nothing_is_counted_and_identifying_does_nothing() -> None:
    identify(node="alpha")
    assert logged_lines() == {}
