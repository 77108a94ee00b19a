"""Answers end at stop texts, however they are cut into parts."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from meshnode.gateway.protocols.stop_texts import StopTexts


def fed(stops: list[str], pieces: list[str]) -> tuple[str, bool]:
    stop = StopTexts(stops)
    text = "".join(map(stop.take, pieces)) + stop.end()
    return text, stop.found


def test_text_passes_at_once_where_nothing_could_begin_a_stop_text() -> None:
    stop = StopTexts(["END"])
    assert stop.take("abc") == "abc"
    assert stop.take("dE") == "d"
    assert stop.take("N") == ""
    assert stop.take("x") == "ENx"
    assert not stop.found


def test_nothing_passes_from_a_stop_text_on() -> None:
    stop = StopTexts(["END", "\n"])
    assert stop.take("abcEN") == "abc"
    assert stop.take("D more") == ""
    assert stop.found
    assert stop.take("even more") == stop.end() == ""


def test_the_text_that_is_complete_first_counts() -> None:
    assert fed(["abcd", "bc"], ["abcd"]) == ("a", True)


letters = st.text(alphabet="ab", min_size=1, max_size=3)


@given(st.lists(letters, min_size=1, max_size=3), st.lists(letters, max_size=12))
def test_how_a_text_is_cut_makes_no_difference(stops: list[str], pieces: list[str]) -> None:
    whole = "".join(pieces)
    result = fed(stops, pieces)
    assert result == fed(stops, [whole]) == fed(stops, list(whole))
    assert result[1] == any(stop in whole for stop in stops)
    assert not any(stop in result[0] for stop in stops)
