from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from meshnode.limits import (
    MAX_WORKER_LOG_LINE_LENGTH,
    WORKER_LOG_BURST_LINES,
    WORKER_LOG_LINES_PER_S,
)
from meshnode.models.workers.output import Lines


def test_lines_are_put_together_from_pieces_and_the_last_needs_no_end() -> None:
    lines = Lines(0.0)
    assert lines.feed(b"one\ntw", 0.0) == ["one"]
    assert lines.feed(b"o\n\nthree", 0.0) == ["two"]
    assert lines.feed(b"", 0.0) == ["three"]


def test_a_long_line_is_cut_and_its_rest_left_out() -> None:
    lines = Lines(0.0)
    shown = lines.feed(b"x" * 5 * MAX_WORKER_LOG_LINE_LENGTH, 0.0)
    assert shown == ["x" * MAX_WORKER_LOG_LINE_LENGTH]
    assert lines.feed(b"y" * 10, 0.0) == []
    assert lines.feed(b"y\nnext\n", 0.0) == ["next"]


def test_bytes_that_are_no_text_or_would_control_a_terminal_are_spelled_out() -> None:
    assert Lines(0.0).feed(b"\xff\x1b[31mred\n", 0.0) == ["\\xff\\x1b[31mred"]


def test_too_many_lines_are_counted_instead() -> None:
    lines = Lines(0.0)
    shown = lines.feed(b"line\n" * (WORKER_LOG_BURST_LINES + 100), 0.0)
    assert len(shown) == WORKER_LOG_BURST_LINES
    assert lines.is_flooded
    later = lines.feed(b"line\n", 1.0)
    assert later == ["(100 lines were left out here: it prints too fast)", "line"]
    assert not lines.is_flooded


def test_room_grows_with_time_up_to_a_burst() -> None:
    lines = Lines(0.0)
    lines.feed(b"line\n" * WORKER_LOG_BURST_LINES, 0.0)
    assert len(lines.feed(b"line\n" * 1000, 1.0)) == WORKER_LOG_LINES_PER_S
    shown = lines.feed(b"line\n" * 1000, 1000.0)
    assert len(shown) == WORKER_LOG_BURST_LINES + 1


@given(st.lists(st.binary(max_size=400), max_size=20))
def test_any_bytes_in_any_pieces_give_the_lines_of_the_whole(pieces: list[bytes]) -> None:
    whole, cut = Lines(0.0), Lines(0.0)
    data = b"".join(pieces)
    together = whole.feed(data, 0.0) + whole.feed(b"", 0.0) if data else whole.feed(b"", 0.0)
    apart = [line for piece in pieces if piece for line in cut.feed(piece, 0.0)]
    apart += cut.feed(b"", 0.0)
    if max(map(len, data.split(b"\n"))) <= MAX_WORKER_LOG_LINE_LENGTH:
        assert apart == together
