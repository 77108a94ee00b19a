from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, ClassVar

import pytest

from meshnode.cli.demo_load import Latency, Record, RequestStream, latency, report
from meshnode.types import Address

if TYPE_CHECKING:
    from collections.abc import Iterator


def record(
    start_s: float, end_s: float, failure: str | None = None, retried: bool = False
) -> Record:
    return Record(start_s, end_s, failure, retried)


def test_percentiles_are_by_nearest_rank() -> None:
    assert latency(float(value) for value in range(100, 0, -1)) == Latency(100, 50.0, 99.0, 100.0)
    assert latency([3.0]) == Latency(1, 3.0, 3.0, 3.0)
    assert latency([2.0, 1.0]) == Latency(2, 1.0, 2.0, 2.0)


def test_no_requests_have_no_latency() -> None:
    assert latency([]) == Latency(0, 0.0, 0.0, 0.0)


def test_requests_are_divided_by_the_moment_of_the_kill() -> None:
    records = [
        record(8.0, 9.0),  # over before
        record(9.5, 10.0),  # answered at that very moment
        record(9.0, 12.5, retried=True),  # under way, and it took long
        record(10.5, 10.6, failure="HTTP 503: no replica"),
        record(11.0, 11.5),  # began when the first second was over
    ]
    found = report(records, kill_s=10.0)
    assert found.requests == 5
    assert found.failures == ("HTTP 503: no replica",)
    assert found.retried == 1
    assert found.before == Latency(1, 1000.0, 1000.0, 1000.0)
    assert (found.during.requests, found.during.max_ms) == (3, 3500.0)
    assert found.after == Latency(1, 500.0, 500.0, 500.0)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    seen: ClassVar[list[tuple[str, bytes, int]]]
    enough: ClassVar[threading.Event]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        number = len(self.seen)
        self.seen.append((self.path, body, self.client_address[1]))
        if number == 1:
            self.close_connection = True  # without an answer, as a crash would
            return
        self.send_response(503 if number == 2 else 200)
        attempts = 2 if number == 3 else 1
        self.send_header("Mesh-Route", f"node=beta; attempts={attempts}")
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")
        if number >= 5:
            self.enough.set()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def gateway() -> Iterator[Address]:
    _Handler.seen, _Handler.enough = [], threading.Event()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield Address("127.0.0.1", server.server_address[1])
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_stream_keeps_its_connection_and_counts_what_failed(gateway: Address) -> None:
    stream = RequestStream(gateway, "/infer", b"body", {"X": "y"}, connections=1)
    with stream:
        assert _Handler.enough.wait(10)
    first, hung_up, refused, retried, *rest = stream.records
    assert (first.failure, first.retried) == (None, False)
    assert (hung_up.failure or "").startswith("RemoteDisconnected")
    assert refused.failure == "HTTP 503: {}"
    assert (retried.failure, retried.retried) == (None, True)
    assert all(it.failure is None and not it.retried for it in rest)
    assert {(path, body) for path, body, _ in _Handler.seen} == {("/infer", b"body")}
    # One connection until the server hung up, and one after.
    assert len({port for _, _, port in _Handler.seen}) == 2


def test_a_stream_ends_at_its_limit(gateway: Address, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meshnode.cli.demo_load._MAX_RECORDS", 4)
    with RequestStream(gateway, "/", b"", {}, connections=1) as stream:
        stream._threads[0].join(10)
    assert len(stream.records) == 4
