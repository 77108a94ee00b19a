"""What the generator can draw: sentences of a small language, and the pictures that they mean."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import random

SHAPES = ("circle", "square", "triangle", "ring", "star", "heart")
COLOURS = {
    "red": (0.86, 0.18, 0.16), "orange": (0.96, 0.56, 0.12), "yellow": (0.98, 0.86, 0.2), "green": (0.2, 0.64, 0.28),
    "blue": (0.16, 0.38, 0.82), "purple": (0.54, 0.24, 0.7), "white": (0.97, 0.97, 0.97), "black": (0.08, 0.08, 0.1),
}  # fmt: skip
GROUNDS = {
    **COLOURS,
    "sky": (0.62, 0.82, 0.96),
    "grass": (0.5, 0.76, 0.36),
    "night": (0.07, 0.08, 0.24),
    "sand": (0.92, 0.84, 0.62),
}
SIZES = {"small": 0.3, "": 0.45, "big": 0.62}
PLACES = {
    "": (0.0, 0.0),
    "left": (-0.4, 0.0),
    "right": (0.4, 0.0),
    "top": (0.0, -0.4),
    "bottom": (0.0, 0.4),
}


class Scene(NamedTuple):
    """A shape of a colour, its size and place (middle 0, edges ±1), on a ground."""

    shape: str
    colour: str
    ground: str
    size: str = ""
    place: str = ""

    def sentence(self, rng: random.Random) -> str:
        """Say it, in one of several ways."""
        thing = " ".join(word for word in (self.size, self.colour, self.shape) if word)
        place = f" {rng.choice(('at', 'on'))} the {self.place}" if self.place else ""
        ground = (
            f"{rng.choice(('on', 'over', 'in front of'))} {rng.choice(('a ', ''))}{self.ground}"
        )
        ground += rng.choice((" background", " ground", "")) if self.ground in COLOURS else ""
        return rng.choice((f"a {thing}{place} {ground}", f"{thing} {ground}{place}"))


def random_scene(rng: random.Random) -> Scene:
    """Return a scene in which shape and ground differ in colour."""
    colour = rng.choice([*COLOURS])
    ground = rng.choice([each for each in GROUNDS if each != colour])
    return Scene(rng.choice(SHAPES), colour, ground, rng.choice([*SIZES]), rng.choice([*PLACES]))


def painted(scene: Scene, points: np.ndarray, jitter: np.ndarray) -> np.ndarray:
    """Return the colours of a scene at points [n, 2] between -1 and 1, moved and turned by a jitter of 3 numbers."""
    place = np.array(PLACES[scene.place]) + jitter[:2] * 0.08
    turn = jitter[2] * 0.25
    x, y = ((points - place) / SIZES[scene.size]).T
    x, y = x * np.cos(turn) - y * np.sin(turn), x * np.sin(turn) + y * np.cos(turn)
    inside = 1 / (1 + np.exp(np.clip(_distance(scene.shape, x, y) * 40, -60, 60)))
    paint, ground = np.array(COLOURS[scene.colour]), np.array(GROUNDS[scene.ground])
    shade = 1 - 0.18 * (points[:, 1:] + 1) / 2  # light from above
    return (ground + inside[:, None] * (paint - ground)) * shade


def _distance(shape: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return how far points are from a shape's edge, below 0 inside; its radius is 1."""
    radius, angle = np.hypot(x, y), np.arctan2(y, x)
    if shape == "circle":
        return radius - 0.9
    if shape == "square":
        return np.maximum(abs(x), abs(y)) - 0.8
    if shape == "triangle":
        return np.maximum(y - 0.6, abs(x) * 0.87 - y * 0.5 - 0.5)
    if shape == "ring":
        return abs(radius - 0.7) - 0.22
    if shape == "star":
        from_tip = np.abs(np.mod(angle / (2 * np.pi) * 5 + 0.25, 1) - 0.5) * 0.4 * np.pi
        return radius - _star_edge(0.2 * np.pi - from_tip)
    along, up = x * 1.25, -y * 1.25 + 0.1
    return (along * along + up * up - 1 - np.cbrt(along * along * up**3)) * 0.4


def _star_edge(angle: np.ndarray) -> np.ndarray:
    """Return how far the edge of a star with five points is, by the angle from a point: up to 36 degrees."""
    outer, inner, notch = 1.0, 0.42, 0.2 * np.pi
    height, width = inner * np.sin(notch), inner * np.cos(notch) - outer
    return outer * height / (np.cos(angle) * height - np.sin(angle) * width)
