"""The words and tables of a report: what held, what did not, the figures, and how runs compare."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING, Final

from meshnode.sim.policies.catalogue import ALL_SEEING, ORACLES
from meshnode.sim.running.expectations import shown
from meshnode.sim.running.report_charts import milliseconds, moment
from meshnode.sim.running.report_markup import Markup, element, join, table
from meshnode.sim.running.result import METRICS, choose
from meshnode.sim.stage import OK

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from meshnode.sim.running.result import Result, Verdict
    from meshnode.sim.scenario.model import Expect

MAX_EVENTS: Final = 300
"""Events that a report lists: the first ones after the load began."""

MAX_MARKS: Final = 100
"""Faults that a report lists."""


Figures = dict[str, float]
"""The metrics of a run by name; NaN where there is nothing to make one from."""

_METRICS: Final = (
    "requests", "errors", "error_rate", "p50_ms", "p99_ms", "p99_9_ms", "mean_ms", "goodput", "goodput_share",
    "attempts_per_request", "utilisation",
)  # fmt: skip


def figures(result: Result) -> Figures:
    """Return the figures of a run that a report shows."""
    chosen = choose(result)
    return {name: METRICS[name].find(chosen) for name in _METRICS}


def counted(number: int, thing: str) -> str:
    """Return how many of something there are: `1 region`, `1,200 nodes`."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def share(value: float) -> str:
    """Return a share as people read it: `0 %`, `0.04 %`, `12.5 %`."""
    return f"{100 * value:.3g} %"


def per_second(value: float) -> str:
    """Return a rate as people read it: `46.4/s`."""
    return f"{value:.3g}/s" if value < 1000 else f"{value:,.0f}/s"


def _count(value: float) -> str:
    return f"{value:,.0f}"


def _or_dash(value: float, spelled: Callable[[float], str]) -> str:
    return "–" if math.isnan(value) else spelled(value)


def tiles(result: Result) -> Markup:
    """Return the figures that one looks at first."""
    found = figures(result)
    shown: tuple[tuple[str, Callable[[float], str], str], ...] = (
        ("requests", _count, "calls"),
        ("error_rate", share, f"failed ({_count(found['errors'])})"),
        ("p50_ms", milliseconds, "median"),
        ("p99_ms", milliseconds, "99th percentile"),
        ("goodput", per_second, f"in time ({_or_dash(found['goodput_share'], share)})"),
        ("attempts_per_request", "{:.3f}".format, "attempts per call"),
        ("utilisation", share, "of the slots busy"),
    )
    return element(
        "div",
        *(
            element(
                "div",
                element("span", _or_dash(found[name], spelled), class_="value"),
                element("span", what, class_="what"),
                class_="tile",
            )
            for name, spelled, what in shown
        ),
        class_="tiles",
    )


# What held.


def violations(result: Result) -> Markup:
    """Return the invariants that did not hold."""
    return join(
        *(
            element(
                "div",
                element("b", violation.invariant, class_="no-text"),
                f" did not hold at {moment(round(violation.time_s, 3))}: {violation.message}",
                class_="violation",
            )
            for violation in result.violations
        )
    )


def verdicts(result: Result) -> Markup:
    """Return what was expected and what was found."""
    if not result.verdicts:
        early = result.scenario.expect and not result.ok
        return element(
            "p",
            "The run ended early: what the scenario expects of it was not judged."
            if early
            else "Nothing was expected of this run beyond the invariants.",
        )
    rows = [
        (
            element("code", verdict.expect.metric),
            _wanted(verdict.expect),
            shown(verdict.expect.metric, verdict.found),
            element(
                "span",
                "holds" if verdict.holds else "does not hold",
                class_="yes-text" if verdict.holds else "no-text",
            ),
            _of_what(verdict),
        )
        for verdict in sorted(result.verdicts, key=lambda one: one.holds)
    ]
    return table(("Expected", "bound", "found", "", "of"), rows, class_="words")


def _wanted(expect: Expect) -> str:
    bounds = []
    if expect.at_least is not None:
        bounds.append(f"at least {shown(expect.metric, expect.at_least)}")
    if expect.at_most is not None:
        bounds.append(f"at most {shown(expect.metric, expect.at_most)}")
    return " and ".join(bounds)


def _of_what(verdict: Verdict) -> str:
    expect = verdict.expect
    parts = [f"model {expect.model}"] if expect.model else []
    if expect.after_s is not None:
        parts.append(f"after {moment(expect.after_s)}")
    if expect.before_s is not None:
        parts.append(f"before {moment(expect.before_s)}")
    if expect.via:
        parts.append("via " + ", ".join(expect.via))
    if expect.nodes:
        parts.append("by " + ", ".join(expect.nodes))
    return ", ".join(parts) or "all calls"


# Calls, faults, events.


def failures(result: Result) -> Markup:
    """Return which errors clients saw, and on which nodes attempts failed."""
    codes: Counter[str] = Counter()
    attempts: Counter[tuple[str, str]] = Counter()
    for _call, outcome in result.calls:
        if outcome is None:
            codes["(no outcome: the run was broken off)"] += 1
            continue
        if outcome.code != OK:
            codes[outcome.code] += 1
        attempts.update(outcome.failed_on)
    if not codes and not attempts:
        return element("p", "No call failed, and no attempt had to be repeated.", class_="key")
    parts: list[Markup] = []
    if codes:
        rows = [(code, f"{count:,}") for code, count in sorted(codes.items())]
        parts.append(table(("What clients were told", "calls"), rows, class_="words"))
    if attempts:
        worst = sorted(attempts.items(), key=lambda item: (-item[1], item[0]))[:20]
        parts.append(
            table(
                ("Attempts failed on", "with", "times"),
                [(node, code, f"{count:,}") for (node, code), count in worst],
                class_="words",
            )
        )
    return join(*parts)


def marks(result: Result) -> Markup:
    """Return the faults as a list."""
    if not result.marks:
        return Markup("")
    rows = [
        (moment(round(mark.time_s, 3)), mark.text, "undone" if mark.undone else "done")
        for mark in result.marks[:MAX_MARKS]
    ]
    more = len(result.marks) - len(rows)
    return join(
        element("h3", "What was done to the mesh"),
        table(("At", "what", ""), rows, class_="words"),
        element("p", f"… and {more:,} more.", class_="key") if more else Markup(""),
    )


def events(result: Result) -> Markup:
    """Return what nodes reported after the load began, folded away."""
    after = [event for event in result.events if event.time_s >= 0]
    if not after:
        return Markup("")
    rows = [
        (f"{event.time_s:.3f}", event.node, event.kind, event.subject, event.detail)
        for event in after[:MAX_EVENTS]
    ]
    count = (
        f"the first {len(rows):,} of {len(after):,}" if len(after) > len(rows) else f"{len(rows):,}"
    )
    return element(
        "details",
        element("summary", f"What nodes reported ({count})"),
        table(("Second", "node", "event", "about", "detail"), rows, class_="words"),
    )


# Several runs.


def labels(results: Sequence[Result]) -> list[str]:
    """Return what tells results apart: policy, scenario, depth or seed, whatever differs."""
    parts: list[list[str]] = [[] for _ in results]
    for facts in (
        [result.policy for result in results],
        [result.scenario.name for result in results],
        [f"depth {result.depth}" for result in results],
        [f"seed {result.seed}" for result in results],
    ):
        if len(set(facts)) > 1:
            for part, fact in zip(parts, facts, strict=True):
                part.append(fact)
    return [", ".join(part) or f"run {at + 1}" for at, part in enumerate(parts)]


_COLUMNS: Final[tuple[tuple[str, str, Callable[[float], str], bool], ...]] = (
    ("p50", "p50_ms", milliseconds, True),
    ("p99", "p99_ms", milliseconds, True),
    ("p99.9", "p99_9_ms", milliseconds, True),
    ("mean", "mean_ms", milliseconds, True),
    ("errors", "error_rate", share, True),
    ("in time", "goodput", per_second, False),
    ("attempts", "attempts_per_request", "{:.3f}".format, True),
)
"""Heading, metric, how it is spelled, and whether less is better."""


def comparison(results: Sequence[Result]) -> Markup:
    """Return one row per result: the best real one of each column is marked, bars compare the p99."""
    found = [figures(result) for result in results]
    fair = [
        one for one, result in zip(found, results, strict=True) if result.policy not in ALL_SEEING
    ]
    bests = {
        metric: (min if less else max)(
            (one[metric] for one in fair if not math.isnan(one[metric])), default=math.nan
        )
        for _heading, metric, _spelled, less in _COLUMNS
    }
    ideals = {
        (heading, metric, r.policy): one[metric]
        for r, one in zip(results, found, strict=True)
        if r.policy in ORACLES
        for heading, metric in (("p99", "p99_ms"), ("in time", "goodput"))
    }
    longest = max([1e-9, *(one["p99_ms"] for one in found if not math.isnan(one["p99_ms"]))])
    rows = []
    for at, (label, one) in enumerate(zip(labels(results), found, strict=True)):
        cells: list[Markup] = []
        for _heading, metric, spelled, _less in _COLUMNS:
            value = one[metric]
            parts: list[str] = [_or_dash(value, spelled)]
            if metric == "p99_ms" and not math.isnan(value):
                parts.append(
                    element("div", class_="bar", style=f"width:{100 * value / longest:.1f}%")
                )
            is_best = len(fair) > 1 and one in fair and value == bests[metric]
            cells.append(element("td", *parts, class_="best" if is_best else None))
        cells += [
            element("td", _or_dash(one[metric] / ideal if ideal else math.nan, "{:.2f}".format))
            for (_heading, metric, _oracle), ideal in ideals.items()
        ]
        name = element("th", element("span", class_=f"swatch line{at % 10}"), label, scope="row")
        rows.append(element("tr", name, *cells))
    heads = [
        "",
        *(column[0] for column in _COLUMNS),
        *(f"{heading} ÷ {oracle}" for heading, _, oracle in ideals),
    ]
    head = element("tr", *(element("th", text, scope="col") for text in heads))
    whole = element("table", element("thead", head), element("tbody", *rows))
    return element("div", whole, class_="scroll")
