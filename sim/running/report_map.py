"""The map of a report: where the regions are, how far apart, who asked whom, and what became of it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from meshnode.sim.running.report_land import LAND
from meshnode.sim.running.report_markup import Markup, element, join, number
from meshnode.sim.running.report_series import traffic
from meshnode.sim.scenario import geography

if TYPE_CHECKING:
    from collections.abc import Iterator

    from meshnode.sim.running.report_series import Traffic
    from meshnode.sim.running.result import Result
    from meshnode.sim.scenario.geography import Coordinates

_WIDTH: Final = 960.0
_LEAST_DEGREES: Final = 70.0
"""How many degrees of longitude a map shows at least: the outlines are coarse."""

_ALONE_DEGREES: Final = 130.0
"""How many it shows around a single region: enough to see where in the world that is."""

_MARGIN_DEGREES: Final = 9.0
_SOUTH, _NORTH = -58.0, 80.0
_LABELLED_PATHS: Final = 10
"""With more pairs of regions, round trips are only shown under the pointer."""

_SHORT: Final = 110.0
"""Pixels between two regions under which their circles would hide what stands between them."""

_MOST_PATHS: Final = 120
_ARC_POINTS: Final = 40


@dataclass(frozen=True, slots=True)
class _View:
    """The part of the world that is drawn; equirectangular, a degree as wide as high."""

    west: float
    east: float
    south: float
    north: float

    @property
    def scale(self) -> float:
        """Pixels per degree."""
        return _WIDTH / (self.east - self.west)

    @property
    def height(self) -> float:
        """Of the drawing, in pixels."""
        return (self.north - self.south) * self.scale

    def x(self, longitude: float) -> float:
        """Return where a longitude is."""
        return (longitude - self.west) * self.scale

    def y(self, latitude: float) -> float:
        """Return where a latitude is."""
        return (self.north - latitude) * self.scale


def world_map(result: Result) -> Markup:
    """Return the map, or nothing if no region of the scenario has a place."""
    places = _places(result)
    if not places:
        return Markup("")
    view = _view([*places.values()])
    asked = traffic(result)
    sizes = dict.fromkeys(places, 0)
    for machine in result.machines:
        if machine.region in sizes:
            sizes[machine.region] += 1
    hit = _hit_regions(result)
    drawing = element(
        "svg",
        element("title", "Map of the regions"),
        element("rect", width=_WIDTH, height=view.height, class_="sea"),
        *_land(view),
        *_paths(result, places, view, asked),
        *(
            _region(name, view, at, sizes[name], asked.get(name), hit=name in hit)
            for name, at in places.items()
        ),
        viewBox=f"0 0 {number(_WIDTH)} {number(view.height)}",
        class_="map",
        role="img",
    )
    return join(drawing, _key())


def _places(result: Result) -> dict[str, Coordinates]:
    found = {
        name: geography.coordinates(name, place) for name, place in result.scenario.regions.items()
    }
    return {name: at for name, at in found.items() if at is not None}


def _view(places: list[tuple[float, float]]) -> _View:
    west = min(longitude for _latitude, longitude in places) - _MARGIN_DEGREES
    east = max(longitude for _latitude, longitude in places) + _MARGIN_DEGREES
    south = min(latitude for latitude, _longitude in places) - _MARGIN_DEGREES
    north = max(latitude for latitude, _longitude in places) + _MARGIN_DEGREES
    least = _LEAST_DEGREES if len(places) > 1 else _ALONE_DEGREES
    wide = min(358.0, max(least, east - west, (north - south) * 1.9))
    high = max(north - south, min(wide * 0.44, _NORTH - _SOUTH))
    middle = min(190.0 - wide / 2, max(-170.0 + wide / 2, (west + east) / 2))
    centre = min(_NORTH - high / 2, max(_SOUTH + high / 2, (south + north) / 2))
    return _View(middle - wide / 2, middle + wide / 2, centre - high / 2, centre + high / 2)


def _land(view: _View) -> Iterator[Markup]:
    lines = [10 * step for step in range(-17, 20)]
    grid = [f"M{number(view.x(d))} 0V{number(view.height)}" for d in lines if d % 30 == 0]
    grid += [f"M0 {number(view.y(d))}H{number(_WIDTH)}" for d in lines if d % 30 == 0]
    yield element("path", d="".join(grid), class_="grid")
    *masses, caspian = (_outline(view, points) for points in LAND)
    yield element("path", d="".join(masses), class_="land")
    yield element("path", d=caspian, class_="sea")


def _outline(view: _View, points: tuple[tuple[float, float], ...]) -> str:
    return (
        "M" + "L".join(f"{number(view.x(lon))} {number(view.y(lat))}" for lon, lat in points) + "Z"
    )


# Paths between regions.


def _paths(
    result: Result,
    places: dict[str, tuple[float, float]],
    view: _View,
    asked: dict[str, Traffic],
) -> Iterator[Markup]:
    names = [*places]
    pairs = [(a, b) for at, a in enumerate(names) for b in names[at + 1 :]]
    crossed = {
        (a, b): asked[a].served_by[b] + asked[b].served_by[a]
        for a, b in pairs
        if a in asked and b in asked
    }
    most = max([1, *crossed.values()])
    pairs.sort(key=lambda pair: -crossed.get(pair, 0))
    round_trips = geography.matrix(result.scenario)
    labels: list[Markup] = []
    for a, b in pairs[:_MOST_PATHS]:
        calls, rtt_ms = crossed.get((a, b), 0), round_trips[a, b].rtt_ms or 0.0
        arc = _arc(places[a], places[b])
        yield element(
            "path",
            element(
                "title",
                f"{a} – {b}: {rtt_ms:.0f} ms; {calls:,} calls of one were answered by the other",
            ),
            d=_arc_path(view, arc),
            class_="way used" if calls else "way",
            stroke_width=1 + 5 * math.sqrt(calls / most) if calls else 1,
        )
        if len(pairs) <= _LABELLED_PATHS:
            labels.append(_label(view, arc, f"{rtt_ms:.0f} ms"))
    yield from labels


def _label(view: _View, arc: list[tuple[float, float]], text: str) -> Markup:
    """Return the round trip in the middle of its line, or beside it where that is too short."""
    latitude, longitude = arc[len(arc) // 2]
    (south, west), (north, east) = arc[0], arc[-1]
    is_short = math.hypot(east - west, north - south) * view.scale < _SHORT
    x, y = view.x(longitude), view.y(latitude)
    if is_short:
        return element("text", text, x=x - 32, y=y + 4, class_="rtt end halo")
    return element("text", text, x=x, y=y - 4, class_="rtt middle halo")


def _arc(start: tuple[float, float], end: tuple[float, float]) -> list[tuple[float, float]]:
    """Return points of the great circle between two places, as (latitude, longitude)."""
    a, b = _vector(start), _vector(end)
    angle = math.acos(max(-1.0, min(1.0, sum(p * q for p, q in zip(a, b, strict=True)))))
    if angle < 1e-6:
        return [start, end]
    points = []
    for step in range(_ARC_POINTS + 1):
        share = step / _ARC_POINTS
        left, right = math.sin((1 - share) * angle), math.sin(share * angle)
        x, y, z = ((left * p + right * q) / math.sin(angle) for p, q in zip(a, b, strict=True))
        points.append((math.degrees(math.asin(z)), math.degrees(math.atan2(y, x))))
    return points


def _vector(place: tuple[float, float]) -> tuple[float, float, float]:
    latitude, longitude = math.radians(place[0]), math.radians(place[1])
    flat = math.cos(latitude)
    return flat * math.cos(longitude), flat * math.sin(longitude), math.sin(latitude)


def _arc_path(view: _View, arc: list[tuple[float, float]]) -> str:
    """Return the line, broken where it leaves the map on one side and comes in on the other."""
    parts: list[str] = []
    before: float | None = None
    for latitude, longitude in arc:
        word = "L" if before is not None and abs(longitude - before) < 180 else "M"
        parts.append(f"{word}{number(view.x(longitude))} {number(view.y(latitude))}")
        before = longitude
    return "".join(parts)


# Regions.


def _region(
    name: str,
    view: _View,
    at: tuple[float, float],
    nodes: int,
    asked: Traffic | None,
    *,
    hit: bool,
) -> Markup:
    x, y = view.x(at[1]), view.y(at[0])
    radius = min(30.0, 9 + 3.2 * math.sqrt(nodes))
    told = f"{name}: {nodes} {'node' if nodes == 1 else 'nodes'}"
    ring = []
    if asked is not None and asked.made:
        ring = _ring(x, y, radius, asked)
        told += (
            f"; of {asked.made:,} calls made here {asked.good:,} were answered in time, "
            f"{asked.late:,} late, {asked.failed:,} not"
        )
    left = x > _WIDTH - 120
    marks = [element("circle", cx=x, cy=y, r=radius + 7, class_="hit")] if hit else []
    return element(
        "g",
        element("title", told + ("; struck by a fault" if hit else "")),
        *marks,
        element("circle", cx=x, cy=y, r=radius, class_="region"),
        *ring,
        element("text", str(nodes), x=x, y=y + 4, class_="count"),
        element(
            "text",
            name,
            x=x - radius - 8 if left else x + radius + 8,
            y=y + 4,
            class_="name halo",
            text_anchor="end" if left else "start",
        ),
    )


def _ring(x: float, y: float, radius: float, asked: Traffic) -> list[Markup]:
    around = 2 * math.pi * radius
    parts, before = [], 0.0
    for class_, calls in (("good", asked.good), ("late", asked.late), ("failed", asked.failed)):
        share = calls / asked.made
        if not calls:
            continue
        length = max(share * around, 1.5)
        parts.append(
            element(
                "circle",
                cx=x,
                cy=y,
                r=radius,
                class_=f"ring {class_}",
                stroke_dasharray=f"{number(length, 2)} {number(around - length + 0.01, 2)}",
                stroke_dashoffset=number(-before * around, 2),
                transform=f"rotate(-90 {number(x)} {number(y)})",
            )
        )
        before += share
    return parts


def _hit_regions(result: Result) -> set[str]:
    """Return the regions in which a node was not up in some sample."""
    regions = {machine.name: machine.region for machine in result.machines}
    return {
        regions[name]
        for sample in result.samples
        if sample.time_s >= 0
        for name, node in sample.nodes.items()
        if node.state not in ("up", "left") and name in regions
    }


def _key() -> Markup:
    return element(
        "p",
        *(
            join(element("span", class_=f"swatch {class_}"), element("span", text, class_="said"))
            for class_, text in (
                ("good", "answered in time"),
                ("late", "answered late"),
                ("failed", "not answered"),
            )
        ),
        " – by the gateway's region. Numbers in circles are nodes; a dashed circle had a node that was down or frozen; "
        "lines are round trips, thicker with the calls that one region answered for another.",
        class_="key",
    )
