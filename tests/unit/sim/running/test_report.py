"""The report: one file that needs nothing else, shows what happened, and pastes nothing in unescaped."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import TYPE_CHECKING

import msgspec
import pytest

from meshnode.errors import ConfigError, UsageError
from meshnode.sim.running.report import report_page, write_report
from meshnode.sim.running.report_series import (
    MAX_ROWS,
    MAX_SLICES,
    opinions,
    slice_width_s,
    slices,
    tail,
    traffic,
    utilisation,
)
from meshnode.sim.running.result import FaultMark, Result
from tests.unit.sim.running.made import BACK_S, LOST_S, made_result, made_scenario

if TYPE_CHECKING:
    from pathlib import Path

_VOID = {"br", "hr", "img", "input", "link", "meta"}
EVIL = "</script><script>alert(1)</script>\"'><img src=x onerror=alert(2)>"


class Page(HTMLParser):
    """Reads a page, and fails where its elements are not nested."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in _VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] not in (["script"], ["style"]):
            self.text.append(data)

    def classes(self, name: str) -> list[dict[str, str | None]]:
        return [
            attributes
            for _tag, attributes in self.elements
            if name in (attributes.get("class") or "").split()
        ]


@pytest.fixture(scope="module")
def result() -> Result:
    return made_result()


def test_the_page_is_well_formed_and_shows_every_part(result: Result) -> None:
    page = Page(report_page([result]))
    text = " ".join(page.text)
    for words in (
        "A region is lost", "The others answer for it.", "Everything held", "Where", "Time to the answer",
        "How busy each node was", "What nodes thought of each other", "region-down", "eu-west loses its power",
        "gateway_lost", "5eed5eed", "[[nodes]]", "3,000", "--seed 7",
    ):  # fmt: skip
        assert words in text, words
    assert len(page.classes("time")) == 4
    assert len(page.classes("ring")) >= 3


def test_the_page_asks_nothing_of_any_network(result: Result) -> None:
    page = Page(report_page([result]))
    for _tag, attributes in page.elements:
        assert not {"src", "href", "srcset", "action", "data"} & set(attributes)
    whole = report_page([result])
    assert "default-src 'none'" in whole
    assert not re.search(r"url\(|@import|https?://", whole)


def test_what_did_not_hold_comes_before_all_figures() -> None:
    text = " ".join(Page(report_page([made_result(violated=True)])).text)
    assert "Something did not hold" in text
    assert text.index("one-answer") < text.index("call 17 was answered twice") < text.index("Where")
    assert "does not hold" in text
    assert "1,200 ms" in text


def test_nothing_of_a_scenario_or_a_run_becomes_markup(result: Result) -> None:
    scenario = msgspec.structs.replace(made_scenario(), title=EVIL, story=EVIL)
    evil = made_result()
    evil.scenario = scenario
    evil.marks = [FaultMark(1.0, EVIL, EVIL)]
    evil.source = EVIL
    evil.events = [type(event)(event.time_s, EVIL, EVIL, EVIL, EVIL) for event in evil.events[:3]]
    evil.calls = [
        (call, outcome and type(outcome)(EVIL, outcome.took_s, EVIL, 1, ((EVIL, EVIL),)))
        for call, outcome in evil.calls[:20]
    ]
    page = Page(report_page([evil]))
    assert [tag for tag, _ in page.elements if tag in ("script", "img")] == ["script", "script"]
    assert not [attributes for _, attributes in page.elements if "onerror" in attributes]
    assert EVIL in "".join(page.text)


def test_several_runs_are_compared_and_an_oracle_is_never_the_best() -> None:
    runs = [("mesh", 1.0), ("random", 3.0), ("size-blind", 0.8), ("omniscient", 0.5)]
    results = [
        made_result(policy=policy, slowness=slowness, rate_per_s=20) for policy, slowness in runs
    ]
    whole = report_page(results)
    page = Page(whole)
    text = " ".join(page.text)
    assert "Side by side" in text
    assert "p99 ÷ size-blind" in text
    assert len([1 for tag, _ in page.elements if tag == "details"]) >= 4
    row = re.search(r"<tr><th scope=\"row\">[^<]*<span[^>]*></span>omniscient.*?</tr>", whole)
    assert row is not None
    assert "best" not in row[0]
    best = re.search(r"<tr><th scope=\"row\">[^<]*<span[^>]*></span>mesh.*?</tr>", whole)
    assert best is not None
    assert best[0].count('class="best"') >= 4


def test_a_large_and_long_run_makes_a_page_that_can_be_mailed() -> None:
    big = made_result(nodes=25, duration_s=400.0, rate_per_s=5)
    assert len(report_page([big])) < 1_000_000
    assert len(utilisation(big, 400.0)) <= MAX_ROWS
    assert len(opinions(big, 400.0)) <= MAX_ROWS
    assert len(slices(big, 400.0)) <= MAX_SLICES


def test_a_run_without_calls_samples_or_places_has_a_report_too() -> None:
    scenario = made_scenario()
    regions = {"here": next(iter(scenario.regions.values()))}
    bare = msgspec.structs.replace(
        scenario, regions=regions, load=(), expect=(), faults=(), nodes=()
    )
    Page(report_page([Result(bare, "C", 1)]))


def test_slices_count_each_call_once_by_what_became_of_it(result: Result) -> None:
    pieces = slices(result, 60.0)
    assert len(pieces) == 60
    assert sum(piece.made for piece in pieces) == len(result.calls)
    failed = {int(piece.start_s) for piece in pieces if piece.failed}
    assert failed <= {int(LOST_S), int(LOST_S) + 1}
    late = {piece.start_s for piece in pieces if piece.late}
    assert late
    assert all(LOST_S <= start_s < BACK_S for start_s in late)
    assert pieces[0].quantile_ms(0.5) == pytest.approx(27, abs=10)


@pytest.mark.parametrize(
    ("end_s", "width_s"), [(60, 1), (300, 1), (301, 2), (3600, 15), (10**9, 10**9 / 300)]
)
def test_slices_are_as_long_as_few_enough_of_them_must_be(end_s: float, width_s: float) -> None:
    assert slice_width_s(end_s) == pytest.approx(width_s)


def test_utilisation_tells_a_dead_region_from_an_idle_one(result: Result) -> None:
    rows = {row.label.split()[0]: row.cells for row in utilisation(result, 60.0)}
    assert rows["eu-1"].count("o") == BACK_S - LOST_S
    assert "o" not in rows["us-1"]
    assert set(rows["us-1"]) <= set("0123456789")


def test_opinions_count_who_thinks_what_and_forget_those_that_are_away(result: Result) -> None:
    views = {view.name: view for view in opinions(result, 60.0)}
    lost = views["eu-1"]
    assert max(lost.suspect) == pytest.approx(1.0)
    assert max(lost.dead) == pytest.approx(1.0)
    assert lost.dead[int(BACK_S) + 5 :] == [0.0] * (60 - int(BACK_S) - 5)
    assert lost.states[25] == "o"
    assert views["us-1"].trouble == 0


def test_traffic_says_by_region_who_answered_for_whom(result: Result) -> None:
    found = traffic(result)
    assert sum(region.made for region in found.values()) == len(result.calls)
    assert found["eu-west"].served_by["us-east"] > 0
    assert set(found["us-east"].served_by) == {"us-east"}


def test_the_tail_falls_from_all_answers_to_the_slowest_few(result: Result) -> None:
    points = tail(result)
    assert points[0][1] == 1.0
    assert [ms for ms, _ in points] == sorted(ms for ms, _ in points)
    assert points[-1][1] == pytest.approx(1 / 2984, rel=0.1)


def test_a_report_is_written_or_the_error_says_where_not(result: Result, tmp_path: Path) -> None:
    place = tmp_path / "out.html"
    write_report([result], place, replay="pytest x --mesh-seed 3")
    text = place.read_text(encoding="utf-8")
    assert text.startswith("<!doctype html>")
    assert "pytest x --mesh-seed 3" in text
    with pytest.raises(ConfigError, match="cannot be written"):
        write_report([result], tmp_path / "no" / "out.html")
    with pytest.raises(UsageError, match="at least one result"):
        write_report([], place)
