"""When a connection looks at the time, and what counts as progress; in virtual time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import pytest

from meshnode.client.calls import Message
from meshnode.client.connection import Connection, Watch
from meshnode.client.endpoints import parse_url
from meshnode.client.plan import Fault, Try
from meshnode.client.tries import TryFailed

if TYPE_CHECKING:
    import socket

    from meshnode.client.calls import Reply

HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n"


class Line:
    """A socket that takes and gives what a test says, on a clock of its own.

    Each write takes `write_s` seconds; each read gives the next of `pieces` after its seconds, or
    times out before if the caller does not wait so long.
    """

    def __init__(self, pieces: list[tuple[float, bytes]], write_s: float = 0.0) -> None:
        self.now = 100.0
        self.taken_bytes = 0
        self._pieces = pieces
        self._write_s = write_s
        self._timeout_s = 0.0

    def settimeout(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s

    def send(self, data: memoryview) -> int:
        self.now += self._write_s
        self.taken_bytes += len(data)
        return len(data)

    def recv_into(self, buffer: Any) -> int:
        if not self._pieces:
            return 0
        seconds, piece = self._pieces[0]
        if seconds > self._timeout_s:
            self._pieces[0] = (seconds - self._timeout_s, piece)
            self.now += self._timeout_s
            raise TimeoutError
        self._pieces.pop(0)
        self.now += seconds
        buffer[: len(piece)] = piece
        return len(piece)


class Exchange:
    """One exchange over such a socket; `probes` are the times at which a sign of life was wanted."""

    def __init__(self, line: Line, *, alive: bool = True, silence_s: float | None = 1.0) -> None:
        self.line, self._alive = line, alive
        self.probes: list[float] = []
        step = Try(0, 30.0, 5.0, silence_s, 1.0)
        self._watch = Watch(step, self._is_alive, lambda: line.now)

    def _is_alive(self, timeout_s: float) -> bool:
        self.probes.append(round(self.line.now - 100.0, 3))
        return self._alive

    def run(self, body: bytes = b"") -> Reply:
        endpoint = parse_url("http://192.0.2.1:8470")
        connection = Connection(endpoint, cast("socket.socket", self.line), "")
        message = Message({}, (body,) if body else ())
        reply, _ = connection.exchange("POST", "/x", {}, message, self._watch, 0)
        return reply


def test_each_piece_that_is_written_ends_the_silence() -> None:
    """A large request over a slow line takes longer than silence may."""
    exchange = Exchange(Line([(0.0, HEAD % 0)], write_s=0.8))
    exchange.run(b"x" * 3_000_000)
    assert exchange.line.now > 108
    assert exchange.probes == []


def test_a_gateway_that_lives_is_asked_again_after_twice_the_time() -> None:
    exchange = Exchange(Line([(20.0, HEAD % 0)]))
    exchange.run()
    assert exchange.probes == [1.0, 3.0, 7.0, 15.0]


def test_a_gateway_without_a_sign_of_life_is_left() -> None:
    exchange = Exchange(Line([(20.0, HEAD % 0)]), alive=False)
    with pytest.raises(TryFailed, match="no sign of life") as caught:
        exchange.run()
    assert caught.value.fault is Fault.SILENT
    assert exchange.probes == [1.0]


def test_interim_answers_and_pieces_of_a_head_are_no_progress() -> None:
    pieces = [(0.4, b"HTTP/1.1 100 Continue\r\n\r\n")] * 4 + [(0.4, b"HTTP/1.1 200 ")]
    exchange = Exchange(Line(pieces), alive=False)
    with pytest.raises(TryFailed, match="no sign of life"):
        exchange.run()
    assert exchange.probes == [1.0]


def test_a_body_that_keeps_coming_in_pieces_of_size_is_progress_and_a_trickle_is_not() -> None:
    fast = Exchange(Line([(0.0, HEAD % 40_960), *[(0.9, b"x" * 1024)] * 40]), silence_s=1.0)
    with pytest.raises(TryFailed, match="no complete answer within 30 s"):
        fast.run()
    assert fast.probes == []
    slow = Exchange(Line([(0.0, HEAD % 40_960), *[(0.4, b"x")] * 40]), alive=False)
    with pytest.raises(TryFailed, match="no sign of life"):
        slow.run()
    assert slow.probes == [1.0]


@pytest.mark.parametrize("silence_s", [None, 1.0])
def test_the_deadline_is_kept_although_bytes_never_cease(silence_s: float | None) -> None:
    flood = [(0.01, b"HTTP/1.1 100 Continue\r\n\r\n" * 50)] * 10_000
    exchange = Exchange(Line(flood), silence_s=silence_s)
    with pytest.raises(TryFailed, match="no complete answer within 30 s"):
        exchange.run()
    assert exchange.line.now == pytest.approx(130.0, abs=0.02)
