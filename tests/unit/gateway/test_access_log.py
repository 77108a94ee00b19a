"""The access log: one line per request, in order, and never a request that waits for it."""

from __future__ import annotations

import asyncio
import io
import json
import os
import sys
from typing import TYPE_CHECKING, Any

import pytest

from meshnode.daemon import line_log as module
from meshnode.daemon.access_log import AccessLog
from meshnode.errors import ConfigError
from meshnode.gateway.access import GatewayAccess
from meshnode.gateway.protocols.access_record import CLIENT_GONE, AccessRecord
from meshnode.gateway.protocols.caller import LOCAL, Caller
from meshnode.gateway.protocols.origin import OriginPolicy
from meshnode.gateway.server import HttpServer
from meshnode.state.api_keys import make_api_key
from meshnode.tracing import Trace
from meshnode.types import Address, Scope
from tests.unit.gateway.test_server import GOOD, Client

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from meshnode.gateway.dispatch import Dispatcher
    from meshnode.gateway.metrics import GatewayMetrics

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Clock:
    def __init__(self) -> None:
        self.time_s = 1_767_323_045.0

    def now(self) -> float:
        return self.time_s

    def wall_s(self) -> float:
        return self.time_s


async def soon(condition: Callable[[], bool]) -> None:
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0.01)
    pytest.fail("it does not come about")


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_line_has_what_is_known_and_nothing_empty() -> None:
    record = AccessRecord("r1", "POST", "/v2/models/m/infer", "192.0.2.1", "curl/8")
    bare = record.fields("t", 0.0015)
    assert bare == {
        "time": "t",
        "request_id": "r1",
        "remote": "192.0.2.1",
        "method": "POST",
        "path": "/v2/models/m/infer",
        "status": CLIENT_GONE,
        "request_bytes": 0,
        "response_bytes": 0,
        "duration_ms": 1.5,
        "user_agent": "curl/8",
    }
    record.caller = Caller(Scope.INFER, "k1", "phone")
    record.model, record.trace = "m", Trace("t" * 32, "s" * 16, "p" * 16)
    headers = {
        "Mesh-Route": "node=beta; region=eu; version=1; cache=hit",
        "Mesh-Cache": "hit",
        "Idempotent-Replayed": "true",
    }
    record.answered(200, headers, 17)
    full = record.fields("t", 0.0)
    assert {name: full[name] for name in full.keys() - bare.keys()} == {
        "caller": "phone",
        "key_id": "k1",
        "model": "m",
        "node": "beta",
        "cache": "hit",
        "replayed": True,
        "trace_id": "t" * 32,
        "span_id": "s" * 16,
        "parent_id": "p" * 16,
    }
    record.caller = LOCAL
    record.answered(404, {"Mesh-Error": "not_found", "Mesh-Route": "strange"}, 0)
    told = record.fields("t", 0.0)
    assert (told["caller"], told["error"], "node" in told) == ("infer", "not_found", False)
    assert repr(record) == "<AccessRecord r1: POST /v2/models/m/infer 404>"


def test_what_a_client_sends_cannot_fill_a_line() -> None:
    record = AccessRecord("r", "M" * 9000, "/" + "x" * 9000, "", "u" * 9000)
    assert len(json.dumps(record.fields("t", 0.0))) < 2500


async def test_requests_are_told_in_order_with_who_asked_what_and_who_answered(
    tmp_path: Path, dispatcher: Dispatcher, metrics: GatewayMetrics, serve: Any
) -> None:
    serve()
    key, text = make_api_key("phone", ["infer"], None, 1e9, os.urandom(42), [])
    clock = Clock()
    log = AccessLog(tmp_path / "access.log", clock)
    access = GatewayAccess(OriginPolicy("127.0.0.1"), {key.id: key}.get)
    server = HttpServer(dispatcher, metrics, access, grace_s=0.1, access_log=log)
    client = Client(
        *await asyncio.open_connection(*await server.listen_tcp(Address("127.0.0.1", 0)))
    )
    infer = "/v2/models/digits/infer"
    await client.ask("GET", "/v2?secret=1", X_Request_Id="mine", User_Agent="curl/8")
    await client.ask("POST", infer, GOOD, Authorization=f"Bearer {text}", traceparent=PARENT)
    await client.ask("POST", infer, GOOD)
    await client.ask("POST", "/v2/models/nothing/infer", GOOD)
    await client.ask("GET", "/v2", Origin="https://evil.example")
    await client.close()
    await server.stop()
    await log.close()
    read, keyed, local, missing, foreign = lines_of(tmp_path / "access.log")
    assert (read["request_id"], read["path"], read["user_agent"]) == ("mine", "/v2", "curl/8")
    assert "secret" not in (tmp_path / "access.log").read_text()
    assert read["time"].startswith("2026-01-02T03:04:05")
    assert (keyed["caller"], keyed["key_id"], keyed["model"]) == ("phone", key.id, "digits")
    assert (keyed["node"], keyed["status"], keyed["request_bytes"]) == ("alpha", 200, len(GOOD))
    assert keyed["response_bytes"] > 0
    assert keyed["trace_id"] == PARENT.split("-")[1]
    assert keyed["parent_id"] == PARENT.split("-")[2]
    assert text not in (tmp_path / "access.log").read_text()
    assert local["caller"] == "infer"
    assert len(local["trace_id"]) == 32, (
        "a trace of its own, so that other nodes' logs can be matched"
    )
    assert (missing["status"], missing["error"], missing["model"]) == (404, "not_found", "nothing")
    assert (foreign["status"], foreign["error"], "caller" in foreign) == (403, "forbidden", False)
    if sys.platform != "win32":
        assert (tmp_path / "access.log").stat().st_mode & 0o777 == 0o600


async def test_a_client_that_hangs_up_is_told_as_gone(
    tmp_path: Path, dispatcher: Dispatcher, metrics: GatewayMetrics, serve: Any, local: Any
) -> None:
    serve()
    started = asyncio.Event()

    async def hang(_request: Any) -> Any:
        started.set()
        await asyncio.Event().wait()

    local.inline, local.behave = False, hang
    log = AccessLog(tmp_path / "access.log", Clock())
    access = GatewayAccess(OriginPolicy("127.0.0.1"), lambda _: None)
    server = HttpServer(dispatcher, metrics, access, grace_s=0.1, access_log=log)
    address = await server.listen_tcp(Address("127.0.0.1", 0))
    client = Client(*await asyncio.open_connection(*address))
    asking = asyncio.ensure_future(client.ask("POST", "/v2/models/digits/infer", GOOD))
    await started.wait()
    client.writer.transport.abort()
    await asyncio.gather(asking, return_exceptions=True)
    await soon(lambda: not repr(log).endswith("0 lines wait>"))
    await server.stop()
    await log.close()
    (line,) = lines_of(tmp_path / "access.log")
    assert line["status"] == CLIENT_GONE


async def write(log: AccessLog, *names: str) -> None:
    for name in names:
        log.end(log.begin(name, "GET", "/"))


def ids(path: Path) -> list[str]:
    return [str(line.get("request_id")) for line in lines_of(path)]


async def test_lines_are_written_within_a_moment_by_themselves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ACCESS_LOG_FLUSH_S", 0.0)
    log = AccessLog(tmp_path / "a.log", Clock())
    await write(log, "1", "2")
    await soon(lambda: (tmp_path / "a.log").stat().st_size > 0)
    await write(log, "3")
    await log.close()
    assert ids(tmp_path / "a.log") == ["1", "2", "3"]


@pytest.mark.skipif(sys.platform == "win32", reason="an open file cannot be renamed there")
@pytest.mark.parametrize("how", ["renamed", "removed", "told"])
async def test_a_file_that_was_rotated_is_opened_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr(module, "ACCESS_LOG_FLUSH_S", 0.0)
    path = tmp_path / "a.log"
    log = AccessLog(path, Clock())
    await write(log, "1")
    await soon(lambda: path.stat().st_size > 0)
    if how == "removed":
        path.unlink()
    else:
        path.rename(tmp_path / "a.log.old")
    if how == "told":
        assert log.reopen()
    await write(log, "2")
    await log.close()
    assert ids(path) == ["2"]
    if how != "removed":
        assert ids(tmp_path / "a.log.old") == ["1"]


async def test_lines_are_lost_rather_than_memory_and_a_line_says_how_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_ACCESS_LOG_BUFFER_BYTES", 400)
    log = AccessLog(tmp_path / "a.log", Clock())
    await write(log, *"12345")
    await log.close()
    *kept, lost = lines_of(tmp_path / "a.log")
    assert [each["request_id"] for each in kept] == ["1", "2"]
    assert (lost["lost"], log.lost) == (3, 3)


async def test_it_goes_to_stdout_too(capsys: pytest.CaptureFixture[str]) -> None:
    stream = io.StringIO()
    log = AccessLog(None, Clock(), stream)
    await write(log, "1")
    await log.close()
    assert json.loads(stream.getvalue())["request_id"] == "1"
    assert not log.reopen()
    assert repr(log) == "<AccessLog <LineLog to a stream: 0 lines wait>>"
    to_stdout = AccessLog(None, Clock())
    await write(to_stdout, "2")
    await to_stdout.close()
    assert json.loads(capsys.readouterr().out)["request_id"] == "2"


def test_a_file_that_cannot_be_written_is_said_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"--access-log: .* cannot be written"):
        AccessLog(tmp_path / "file" / "a.log", Clock())
