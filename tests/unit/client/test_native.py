"""Plain values in and out, and requests that run once: through both clients."""

from __future__ import annotations

import json
import math
import socket
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from meshnode.client.calls import Reply
from meshnode.client.event_stream import EventParser
from meshnode.client.replies import failure_of
from meshnode.errors import InvalidRequest
from tests.unit.client.conftest import StandIn, http_answer, reset
from tests.unit.client.test_streams import headers_of

Connect = Callable[..., Any]
Start = Callable[[Callable[[socket.socket, bytes], object]], StandIn]

ANSWER = http_answer(
    200, b'{"model": "m", "version": 1, "outputs": {"y": [1]}}', "Content-Type: application/json"
)


def body_of(request: bytes) -> Any:
    def refuse(text: str) -> None:
        raise AssertionError(f"{text} is not JSON")

    return json.loads(request.partition(b"\r\n\r\n")[2], parse_constant=refuse)


def test_numbers_that_json_lacks_are_sent_as_texts_in_tensors(
    connect: Connect, stand_in: Start
) -> None:
    server = stand_in(lambda line, _: line.sendall(ANSWER))
    inputs = {"x": [[math.nan, math.inf], (-math.inf, 1.5)], "y": math.nan, "z": "NaN"}
    assert connect(server.url).predict("m", inputs)["y"] == [1]
    (request,) = server.requests
    assert body_of(request)["inputs"] == {
        "x": [["NaN", "Infinity"], ["-Infinity", 1.5]],
        "y": "NaN",
        "z": "NaN",
    }


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"request": {"score": math.nan}}, "input 'request' .*Out of range float"),
        ({"request": [math.inf]}, "input 'request'"),
        ({"x": {"deep": [math.inf]}}, "input 'x'"),
        ({"good": [1], "x": np.zeros(2)}, r"input 'x' .*numpy\.ndarray.*`infer`"),
        ({"x": [np.float32(1)]}, r"input 'x' .*numpy\.float32"),
        ({"x": b"abc"}, r"input 'x' .*\(bytes\).*`infer`"),
    ],
)
def test_what_json_cannot_carry_is_refused_with_the_inputs_name(
    connect: Connect, refused: str, inputs: dict[str, Any], words: str
) -> None:
    with pytest.raises(InvalidRequest, match=words):
        connect(refused).predict("m", inputs)


@pytest.mark.parametrize("method", ["predict", "infer"])
def test_a_request_under_a_key_is_repeated_in_the_same_words_where_it_was_asked(
    connect: Connect, stand_in: Start, method: str
) -> None:
    def behave(line: socket.socket, _request: bytes) -> bool:
        if len(server.requests) == 1:
            reset(line)
            return False
        line.sendall(
            ANSWER
            if method == "predict"
            else http_answer(200, b'{"model_name": "m", "outputs": []}')
        )
        return True

    server, other = stand_in(behave), stand_in(lambda line, _: line.sendall(ANSWER))
    client = connect(server.url, other.url)
    inputs = {"x": np.zeros((1, 2), np.float32)} if method == "infer" else {"x": [1.0]}
    getattr(client, method)("m", inputs, idempotency_key="order-17", timeout_s=20)
    assert not other.requests
    one, two = server.requests
    assert {headers_of(each)["idempotency-key"] for each in (one, two)} == {"order-17"}
    assert one.partition(b"\r\n\r\n")[2] == two.partition(b"\r\n\r\n")[2]
    assert b"20" in one.partition(b"\r\n\r\n")[2]


def test_a_key_that_cannot_be_a_header_is_refused(connect: Connect, refused: str) -> None:
    with pytest.raises(InvalidRequest, match="idempotency key"):
        connect(refused).predict("m", {"x": [1]}, idempotency_key="a b")


@pytest.mark.parametrize(
    ("retry_after", "date", "seconds"),
    [
        ("Sat, 21 Nov 2026 10:00:02 GMT", "Sat, 21 Nov 2026 10:00:00 GMT", 2.0),
        ("Sat, 21 Nov 2026 09:00:00 GMT", "Sat, 21 Nov 2026 10:00:00 GMT", 0.0),
        ("Sat, 21 Nov 2026 10:00:02 GMT", "", None),
        ("Sat, 21 Nov 2026 10:00:02", "Sat, 21 Nov 2026 10:00:00 GMT", None),
        ("soon", "Sat, 21 Nov 2026 10:00:00 GMT", None),
        ("3", "", 3.0),
    ],
)
def test_retry_after_may_be_a_date_which_counts_from_the_answers_own(
    retry_after: str, date: str, seconds: float | None
) -> None:
    headers = {"retry-after": retry_after, **({"date": date} if date else {})}
    failure = failure_of(Reply(503, headers, b"{}"))
    assert failure is not None
    assert failure.retry_after_s == seconds


def test_an_id_counts_once_its_event_or_its_comment_is_whole() -> None:
    parser = EventParser("r.1")
    assert parser.feed(b": from here on\nid: r.2") == []
    assert parser.last_id == "r.1"
    assert parser.feed(b"\n\nid: r.3\ndata: {}\n") == []
    assert parser.last_id == "r.2"
    (only,) = parser.feed(b"\n")
    assert (only.id, parser.last_id) == ("r.3", "r.3")
