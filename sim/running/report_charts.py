"""The charts of a report over time: latency, calls, utilisation, opinions; all share one time axis.

Every chart is an SVG of the same width whose plot begins and ends at the same places, so that a
moment is at the same place in all of them; the page's script draws one line through all.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from meshnode.sim.running.report_markup import Markup, element, number

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from meshnode.sim.running.report_series import Opinions, Row, Slice
    from meshnode.sim.running.result import FaultMark

WIDTH: Final = 960.0
LEFT: Final = 92.0
RIGHT: Final = 12.0
PLOT: Final = WIDTH - LEFT - RIGHT
_TOP: Final = 20.0
_BOTTOM: Final = 24.0
_MAX_MARKS: Final = 40
"""Marks that are drawn; of a node that flaps for an hour one sees nothing else otherwise."""

_TICKS_S: Final = (1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1800, 3600, 7200, 14_400, 43_200, 86_400)
_CELL: Final = {"d": "down", "z": "frozen", "l": "left", "o": "down"}


def at_x(time_s: float, end_s: float) -> float:
    """Return where a moment is, in pixels."""
    return LEFT + PLOT * min(1.0, max(0.0, time_s / end_s))


def moment(seconds: float) -> str:
    """Return a time as people read it: `12 s`, `3:20`, `1:03:20`."""
    if seconds < 120:
        return f"{seconds:g} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def milliseconds(value: float) -> str:
    """Return a length of time as people read it: `3.2 ms`, `240 ms`, `1.5 s`."""
    if value >= 1000:
        return f"{value / 1000:.3g} s"
    return f"{value:.3g} ms" if value < 100 else f"{value:.0f} ms"


def _chart(name: str, height: float, end_s: float, *inside: Markup) -> Markup:
    return element(
        "svg",
        element("title", name),
        *inside,
        element("line", x1=LEFT, x2=LEFT, y1=_TOP, y2=height - _BOTTOM, class_="cursor", hidden=""),
        viewBox=f"0 0 {number(WIDTH)} {number(height)}",
        class_="chart time",
        role="img",
        data_end=number(end_s, 3),
    )


def _time_axis(height: float, end_s: float) -> Iterator[Markup]:
    step_s = next((step for step in _TICKS_S if end_s / step <= 12), end_s / 10)
    for tick in range(int(end_s / step_s) + 1):
        x = at_x(tick * step_s, end_s)
        yield element("line", x1=x, x2=x, y1=_TOP, y2=height - _BOTTOM, class_="grid")
        yield element("text", moment(tick * step_s), x=x, y=height - 8, class_="tick middle")


def fault_marks(
    marks: Sequence[FaultMark], end_s: float, height: float, *, named: bool
) -> Iterator[Markup]:
    """Yield a line for each fault that was done (solid) or undone (dotted), with its verb where there is room."""
    free_from = LEFT
    for mark in marks[:_MAX_MARKS]:
        if mark.time_s > end_s:
            continue
        x = at_x(mark.time_s, end_s)
        yield element(
            "line",
            element(
                "title", f"{moment(mark.time_s)}: {mark.text}{' (undone)' if mark.undone else ''}"
            ),
            x1=x,
            x2=x,
            y1=_TOP - 6,
            y2=height - _BOTTOM,
            class_="mark undone" if mark.undone else "mark",
        )
        word = f"{mark.verb} ends" if mark.undone else mark.verb
        room = 6.4 * len(word) + 8
        if named and x >= free_from:
            near_end = x + room > WIDTH - RIGHT
            yield element(
                "text",
                word,
                x=x - 3 if near_end else x + 3,
                y=_TOP - 8,
                class_="mark",
                text_anchor="end" if near_end else "start",
            )
            free_from = x + room


# Latency.


def latency(pieces: Sequence[Slice], marks: Sequence[FaultMark], end_s: float) -> Markup:
    """Return p50, p90 and p99 of the answers over time, on a log scale."""
    height = 260.0
    shares = {"p99": 0.99, "p90": 0.9, "p50": 0.5}
    lines = {name: [piece.quantile_ms(share) for piece in pieces] for name, share in shares.items()}
    low, high = _decades([value for values in lines.values() for value in values if value])

    def y(value_ms: float) -> float:
        share = (math.log10(max(value_ms, low)) - math.log10(low)) / (
            math.log10(high) - math.log10(low)
        )
        return height - _BOTTOM - share * (height - _TOP - _BOTTOM)

    return _chart(
        "Time to the answer",
        height,
        end_s,
        *_time_axis(height, end_s),
        *_log_axis(low, high, y),
        *_band(pieces, lines["p50"], lines["p99"], end_s, y),
        *(
            _line(pieces, values, end_s, y, f"series {name}")
            for name, values in reversed(lines.items())
        ),
        *fault_marks(marks, end_s, height, named=True),
    )


def _decades(values: Sequence[float]) -> tuple[float, float]:
    if not values:
        return 1.0, 1000.0
    low = 10 ** math.floor(math.log10(max(1e-3, min(values))))
    high = 10 ** math.ceil(math.log10(max(values) * 1.02))
    return low, max(high, low * 10)


def _log_axis(low: float, high: float, y: Callable[[float], float]) -> Iterator[Markup]:
    decade = low
    while decade <= high * 1.001:
        for factor in (1, 2, 5):
            value = decade * factor
            if value > high * 1.001:
                break
            class_ = "grid strong" if factor == 1 else "grid"
            yield element(
                "line", x1=LEFT, x2=WIDTH - RIGHT, y1=y(value), y2=y(value), class_=class_
            )
            if factor == 1 or high / low <= 100:
                yield element(
                    "text", milliseconds(value), x=LEFT - 6, y=y(value) + 4, class_="tick end"
                )
        decade *= 10


def _points(pieces: Sequence[Slice], end_s: float) -> list[float]:
    width_s = pieces[1].start_s - pieces[0].start_s if len(pieces) > 1 else end_s
    return [at_x(piece.start_s + width_s / 2, end_s) for piece in pieces]


def _line(
    pieces: Sequence[Slice],
    values: Sequence[float | None],
    end_s: float,
    y: Callable[[float], float],
    class_: str,
) -> Markup:
    parts: list[str] = []
    drawing = False
    for x, value in zip(_points(pieces, end_s), values, strict=True):
        if value is None:
            drawing = False
            continue
        parts.append(f"{'L' if drawing else 'M'}{number(x)} {number(y(value))}")
        if not drawing:
            parts.append("h.1")  # one alone is a dot
        drawing = True
    return element("path", d="".join(parts), class_=class_)


def _band(
    pieces: Sequence[Slice],
    lower: Sequence[float | None],
    upper: Sequence[float | None],
    end_s: float,
    y: Callable[[float], float],
) -> Iterator[Markup]:
    run: list[tuple[float, float, float]] = []
    xs = _points(pieces, end_s)
    for x, below, above in [*zip(xs, lower, upper, strict=True), (0.0, None, None)]:
        if below is not None and above is not None:
            run.append((x, y(below), y(above)))
            continue
        if len(run) > 1:
            there = "L".join(f"{number(x)} {number(top)}" for x, _low, top in run)
            back = "L".join(f"{number(x)} {number(low)}" for x, low, _top in reversed(run))
            yield element("path", d=f"M{there}L{back}Z", class_="band")
        run = []


# Calls.


def calls(
    pieces: Sequence[Slice], width_s: float, marks: Sequence[FaultMark], end_s: float
) -> Markup:
    """Return the calls per second as stacked bars: answered in time, late, not at all."""
    height = 190.0
    highest = _round_up(max([1.0, *(piece.made / width_s for piece in pieces)]))
    base = height - _BOTTOM

    def y(rate: float) -> float:
        return base - (base - _TOP) * rate / highest

    bars: dict[str, list[str]] = {"good": [], "late": [], "failed": []}
    for piece in pieces:
        x, right = at_x(piece.start_s, end_s), at_x(piece.start_s + width_s, end_s)
        below = 0.0
        for class_, count in (
            ("good", piece.good), ("late", piece.late), ("failed", piece.failed),
        ):  # fmt: skip
            if count:
                top = below + count / width_s
                tall = y(below) - y(top)
                bars[class_].append(
                    f"M{number(x)} {number(y(top))}h{number(max(0.8, right - x - 0.6))}"
                    f"v{number(max(tall, 0.8))}H{number(x)}Z"
                )
                below = top
    ticks = [highest * step / 4 for step in range(5)]
    return _chart(
        "Calls per second",
        height,
        end_s,
        *_time_axis(height, end_s),
        *(
            element("line", x1=LEFT, x2=WIDTH - RIGHT, y1=y(tick), y2=y(tick), class_="grid")
            for tick in ticks
        ),
        *(
            element("text", f"{tick:g}/s", x=LEFT - 6, y=y(tick) + 4, class_="tick end")
            for tick in ticks
        ),
        *(element("path", d="".join(parts), class_=f"fill {name}") for name, parts in bars.items()),
        *fault_marks(marks, end_s, height, named=False),
    )


def _round_up(value: float) -> float:
    scale = 10 ** math.floor(math.log10(value))
    return float(
        next(step * scale for step in (1, 1.2, 1.6, 2, 3, 4, 6, 8, 10) if step * scale >= value)
    )


# Nodes.


def heat(rows: Sequence[Row], marks: Sequence[FaultMark], end_s: float) -> Markup:
    """Return how busy each node was over time; one path per shade keeps the page small."""
    tall = 14.0 if len(rows) <= 32 else 9.0
    height = _TOP + tall * len(rows) + _BOTTOM
    shades: dict[str, list[str]] = {}
    for at, row in enumerate(rows):
        top = _TOP + at * tall
        for first, after, cell in _runs(row.cells):
            left = LEFT + PLOT * first / len(row.cells)
            wide = PLOT * (after - first) / len(row.cells)
            shades.setdefault(cell, []).append(
                f"M{number(left)} {number(top)}h{number(wide, 2)}v{number(tall - 1)}h-{number(wide, 2)}Z"
            )
    paths = [
        element("path", d="".join(parts), class_=f"cell {_CELL.get(cell) or f'heat{cell}'}")
        for cell, parts in sorted(shades.items())
        if cell != "."
    ]
    labels = [
        element(
            "text",
            _shortened(row.label),
            element("title", row.label),
            x=LEFT - 6,
            y=_TOP + at * tall + tall / 2 + 3.5,
            class_="row end" if tall > 10 else "row end small",
        )
        for at, row in enumerate(rows)
    ]
    axis = _time_axis(height, end_s)
    return _chart(
        "Utilisation of each node",
        height,
        end_s,
        *axis,
        *paths,
        *labels,
        *fault_marks(marks, end_s, height, named=True),
    )


def _shortened(label: str, most: int = 15) -> str:
    name = label.partition("  ")[0]
    return name if len(name) <= most else f"{name[: most - 1]}…"


def _runs(cells: str) -> Iterator[tuple[int, int, str]]:
    start = 0
    for at in range(1, len(cells) + 1):
        if at == len(cells) or cells[at] != cells[start]:
            yield start, at, cells[start]
            start = at


def membership(rows: Sequence[Opinions], marks: Sequence[FaultMark], end_s: float) -> Markup:
    """Return what was thought of each node over time, above a line that shows what it really was."""
    tall = 22.0 if len(rows) <= 24 else 13.0
    height = _TOP + tall * len(rows) + _BOTTOM
    inside: list[Markup] = []
    for at, row in enumerate(rows):
        top = _TOP + at * tall
        inside += _opinions(row, top, tall - 3)
        inside.append(
            element(
                "text",
                _shortened(row.name),
                element("title", row.name),
                x=LEFT - 6,
                y=top + tall / 2 + 3,
                class_="row end" if tall > 14 else "row end small",
            )
        )
    return _chart(
        "What nodes thought of each other",
        height,
        end_s,
        *_time_axis(height, end_s),
        *inside,
        *fault_marks(marks, end_s, height, named=True),
    )


def _opinions(row: Opinions, top: float, tall: float) -> Iterator[Markup]:
    truth = 3.0
    room = tall - truth
    yield element("rect", x=LEFT, y=top, width=PLOT, height=room, class_="alive")
    floor = [0.0] * len(row.states)
    for class_, shares in (("left", row.left), ("dead", row.dead), ("suspect", row.suspect)):
        if any(shares):
            path = "".join(_steps(shares, floor, top, room))
            yield element("path", d=path, class_=f"opinion {class_}")
            floor = [below + share for below, share in zip(floor, shares, strict=True)]
    for first, after, state in _runs(row.states):
        if state != ".":
            left = LEFT + PLOT * first / len(row.states)
            yield element(
                "rect",
                x=left,
                y=top + room,
                width=PLOT * (after - first) / len(row.states),
                height=truth,
                class_=f"truth {_CELL.get(state, 'up')}",
            )


def _steps(
    shares: Sequence[float], floor: Sequence[float], top: float, room: float
) -> Iterator[str]:
    wide = PLOT / len(shares)
    at = 0
    while at < len(shares):
        after = at + 1
        while after < len(shares) and (shares[after], floor[after]) == (shares[at], floor[at]):
            after += 1
        if shares[at] > 0:
            high = max(1.5, shares[at] * room)
            low = top + room - floor[at] * room
            yield (
                f"M{number(LEFT + at * wide)} {number(low - high)}h{number((after - at) * wide)}"
                f"v{number(high)}H{number(LEFT + at * wide)}Z"
            )
        at = after


# How the times of the answers are spread.


def tails(curves: Sequence[tuple[str, Sequence[tuple[float, float]]]]) -> Markup:
    """Return for each result the share of answers that took longer than so long; both axes are logarithmic."""
    height = 300.0
    bottom = height - 34.0
    low, high = _decades([ms for _name, points in curves for ms, _share in points])
    least = min([0.1, *(points[-1][1] for _name, points in curves if points)])
    decades = math.ceil(-math.log10(least) - 1e-9)

    def x(value_ms: float) -> float:
        share = math.log10(max(value_ms, low) / low) / math.log10(high / low)
        return LEFT + PLOT * share

    def y(share: float) -> float:
        return _TOP + (bottom - _TOP) * -math.log10(share) / decades

    inside: list[Markup] = []
    for step in range(decades + 1):
        share = 10.0**-step
        label = f"p{100 * (1 - share):.10g}" if step else "all"
        inside += [
            element("line", x1=LEFT, x2=WIDTH - RIGHT, y1=y(share), y2=y(share), class_="grid"),
            element("text", label, x=LEFT - 6, y=y(share) + 4, class_="tick end"),
        ]
    decade = low
    while decade <= high * 1.001:
        for value in (decade, 2 * decade, 5 * decade) if high / low <= 1e4 else (decade,):
            if value <= high * 1.001:
                edge = "end" if value > high * 0.999 else "middle"
                inside += [
                    element("line", x1=x(value), x2=x(value), y1=_TOP, y2=bottom, class_="grid"),
                    element(
                        "text",
                        milliseconds(value),
                        x=x(value),
                        y=bottom + 16,
                        class_=f"tick {edge}",
                    ),
                ]
        decade *= 10
    for at, (name, points) in enumerate(curves):
        path = "L".join(f"{number(x(ms))} {number(y(share))}" for ms, share in points)
        if points:
            inside.append(
                element(
                    "path", element("title", name), d=f"M{path}", class_=f"series line{at % 10}"
                )
            )
    return element(
        "svg",
        element("title", "Times of the slowest answers"),
        *inside,
        viewBox=f"0 0 {number(WIDTH)} {number(height)}",
        class_="chart",
        role="img",
    )
