"""`--report`: one HTML file about a run, or about several next to each other.

The page needs nothing besides itself: style, script and drawings are inside, and its content security
policy forbids it to load anything. It can be read without its script, printed, and mailed: what is
drawn is bounded (`report_series`), and everything that comes from a scenario or a run is escaped
(`report_markup`).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from meshnode.errors import ConfigError, UsageError
from meshnode.sim.policies.catalogue import MESH
from meshnode.sim.running import report_charts as charts
from meshnode.sim.running import report_tables as tables
from meshnode.sim.running.report_map import world_map
from meshnode.sim.running.report_markup import Markup, data, element, join
from meshnode.sim.running.report_series import (
    end_of,
    opinions,
    slice_width_s,
    slices,
    tail,
    utilisation,
)
from meshnode.sim.running.report_style import SCRIPT, STYLE
from meshnode.sim.running.result import FaultMark
from meshnode.sim.running.timeline import LAST_S, replay_command, timeline
from meshnode.sim.scenario.writing import to_toml

if TYPE_CHECKING:
    from collections.abc import Sequence

    from meshnode.sim.running.report_series import Row, Slice
    from meshnode.sim.running.result import Result

_POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def write_report(results: Sequence[Result], path: str | Path, *, replay: str | None = None) -> None:
    """Write a report about one run or several.

    Args:
        results: The runs, in the order in which they are shown; several are compared.
        path: Where to write it.
        replay: The command that plays the run again, if it is not the command line's own.

    Raises:
        UsageError: without any result.
        ConfigError: if the file cannot be written.
    """
    page = report_page(results, replay=replay)
    try:
        Path(path).write_text(page, encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"the report cannot be written to {path}: {error.strerror or error}; name another file"
        ) from error


def report_page(results: Sequence[Result], *, replay: str | None = None) -> str:
    """Return the page; see `write_report`."""
    if not results:
        raise UsageError("a report needs at least one result: run a scenario first")
    first = results[0]
    body: list[Markup] = [_header(results, replay)]
    if len(results) > 1:
        body.append(_comparison(results))
    for label, result in zip(tables.labels(results), results, strict=True):
        sections = _sections(result, replay)
        if len(results) == 1:
            body += sections
        else:
            summary = element("summary", label)
            is_open = "" if result is first else None
            body.append(element("details", summary, *sections, class_="run", open=is_open))
    body.append(_scenario(first))
    script = SCRIPT
    for word, value in (("LEFT", charts.LEFT), ("PLOT", charts.PLOT), ("WIDTH", charts.WIDTH)):
        script = script.replace(f"__{word}__", f"{value:g}")
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        Markup(f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'),
        element("title", f"{first.scenario.title or first.scenario.name} · meshnode sim"),
        Markup(f"<style>{STYLE}</style>"),
    )
    tip = element("div", id="tip", hidden="")
    whole = element("body", element("main", *body), tip, Markup(f"<script>{script}</script>"))
    return "<!doctype html>\n" + element("html", head, whole, lang="en") + "\n"


def _header(results: Sequence[Result], replay: str | None) -> Markup:
    first = results[0]
    scenario = first.scenario
    ok = all(result.ok for result in results if result.policy == MESH)
    held = sum(result.ok for result in results)
    banner = "Everything held" if ok else "Something did not hold"
    if len(results) > 1:
        banner = f"In {held} of {len(results)} runs everything held"
    facts = [
        ("depth", first.depth),
        ("seed", str(first.seed)),
        (
            "",
            tables.counted(len(first.machines), "node")
            + " in "
            + tables.counted(len(scenario.regions), "region"),
        ),
        ("load for", charts.moment(round(scenario.duration_s, 1))),
        ("simulated", charts.moment(round(sum(result.simulated_s for result in results), 1))),
        ("computed in", f"{sum(result.cpu_s for result in results):.3g} s of CPU"),
    ]
    if first.trace_hash and len(results) == 1:
        facts.append(("trace", first.trace_hash[:16]))
    return element(
        "header",
        element(
            "div",
            banner,
            class_="banner yes" if ok else "banner no",
        ),
        element("h1", scenario.title or scenario.name),
        *(
            element("p", " ".join(part.split()), class_="story")
            for part in scenario.story.split("\n\n")
            if part.strip()
        ),
        element(
            "ul",
            *(element("li", f"{name} ", element("b", value)) for name, value in facts),
            class_="facts",
        ),
        _replay(replay or replay_command(first)) if len(results) == 1 else Markup(""),
    )


def _replay(command: str) -> Markup:
    return element(
        "div",
        element("span", "Replay:", class_="key"),
        element("code", command),
        element("button", "copy", type="button", data_copy=command),
        class_="replay",
    )


def _comparison(results: Sequence[Result]) -> Markup:
    names = tables.labels(results)
    curves = [(name, tail(result)) for name, result in zip(names, results, strict=True)]
    return _card(
        "Side by side",
        tables.comparison(results),
        element(
            "p",
            "The best of each column is green; an oracle knows what no node can know, and is never "
            "the best; omniscient also sheds what would be late. Below: the share of answers that took longer than so long; lower and further "
            "left is better.",
            class_="key",
        ),
        charts.tails(curves),
    )


def _card(title: str, *inside: Markup, **attributes: object) -> Markup:
    return element("section", element("h2", title), *inside, **attributes)


def _sections(result: Result, replay: str | None) -> list[Markup]:
    end_s = end_of(result)
    width_s = slice_width_s(end_s)
    pieces = slices(result, end_s)
    rows = utilisation(result, end_s)
    found = [
        _card(
            "What held" if result.ok else "What did not hold",
            tables.violations(result),
            tables.verdicts(result),
            tables.tiles(result),
            _last_seconds(result),
        )
    ]
    drawing = world_map(result)
    if drawing:
        found.append(_card("Where", drawing))
    found.append(element("div", *_figures(result, pieces, rows, width_s, end_s), class_="figures"))
    found.append(
        _card(
            "Details",
            tables.failures(result),
            tables.marks(result),
            tables.events(result),
            _facts(result, replay),
        )
    )
    return found


def _last_seconds(result: Result) -> Markup:
    if not result.violations:
        return Markup("")
    return element(
        "details",
        element("summary", f"The last {LAST_S:g} seconds"),
        element("pre", "\n".join(timeline(result))),
    )


def _figures(
    result: Result, pieces: Sequence[Slice], rows: Sequence[Row], width_s: float, end_s: float
) -> list[Markup]:
    """Return the charts that share the time axis, and their data for the script."""
    every = "second" if width_s == 1 else charts.moment(width_s)
    marks = sorted(
        [*result.marks, *(FaultMark(v.time_s, v.invariant, v.message) for v in result.violations)],
        key=lambda mark: mark.time_s,
    )
    found = []
    if result.calls:
        found = [
            _card(
                "Time to the answer",
                _key(("p50", "median"), ("p90", "90th percentile"), ("p99", "99th percentile"),
                     text=f"of the calls made in each {every}; log scale. Vertical lines are faults, dotted where they end."),
                charts.latency(pieces, marks, end_s),
            ),
            _card(
                "Calls",
                _key(("good", "answered in time"), ("late", "answered late"), ("failed", "failed"),
                     text="by when they were made."),
                charts.calls(pieces, width_s, marks, end_s),
            ),
        ]  # fmt: skip
    if rows:
        found.append(
            _card(
                "How busy each node was",
                _key(("heat0", "idle"), ("heat5", "half"), ("heat9", "all slots busy"), ("down", "down"), ("frozen", "frozen"), ("left", "left")),
                charts.heat(rows, marks, end_s),
                data_kind="heat",
            )
        )  # fmt: skip
    views = opinions(result, end_s)
    if views:
        fewer = len(result.machines) - len(views)
        found.append(
            _card(
                "What nodes thought of each other",
                _key(
                    ("alive", "alive"), ("suspect", "suspected"), ("dead", "held dead"), ("left", "known to have left"),
                    text="by so many of the running nodes. The line below each row is what the node really was."
                    + (f" {fewer:,} more nodes had less trouble." if fewer else ""),
                ),
                charts.membership(views, marks, end_s),
            )
        )  # fmt: skip
    found.append(data(_for_script(pieces, rows, width_s, end_s)))
    return found


def _for_script(
    pieces: Sequence[Slice], rows: Sequence[Row], width_s: float, end_s: float
) -> dict[str, Any]:
    def rounded(value: float | None) -> float | None:
        return None if value is None else round(value, 2)

    return {
        "end_s": end_s,
        "width_s": width_s,
        "made": [piece.made for piece in pieces],
        "late": [piece.late for piece in pieces],
        "failed": [piece.failed for piece in pieces],
        "p50": [rounded(piece.quantile_ms(0.5)) for piece in pieces],
        "p99": [rounded(piece.quantile_ms(0.99)) for piece in pieces],
        "heat": [[row.label, row.cells] for row in rows],
    }


def _key(*entries: tuple[str, str], text: str = "") -> Markup:
    swatches = (
        join(element("span", class_=f"swatch {class_}"), element("span", meaning, class_="said"))
        for class_, meaning in entries
    )
    return element("p", *swatches, f" – {text}" if text else "", class_="key")


def _facts(result: Result, replay: str | None) -> Markup:
    started = f"The mesh took {charts.moment(round(result.started_after_s, 1))} to start. "
    whole = f"Trace hash {result.trace_hash}." if result.trace_hash else ""
    return join(
        element("p", started, whole, class_="key", style="overflow-wrap:anywhere"),
        _replay(replay or replay_command(result)),
    )


def _scenario(result: Result) -> Markup:
    return element(
        "section",
        element(
            "details",
            element("summary", "The scenario"),
            element("pre", to_toml(result.scenario)),
        ),
    )
