"""Streets from above, drawn at random: pictures with the boxes of the vehicles on them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from PIL import Image, ImageDraw, ImageFilter

if TYPE_CHECKING:
    import random

LABELS = ("car", "truck", "bus")
SIZE = 96
"""Width and height of a picture, in pixels."""

_LENGTHS = {"car": (14, 18), "truck": (24, 30), "bus": (27, 33)}
_WIDTHS = {"car": (7, 9), "truck": (8, 10), "bus": (8, 10)}
_PAINTS = (
    (196, 40, 36),
    (36, 84, 180),
    (232, 232, 228),
    (24, 26, 30),
    (214, 170, 40),
    (40, 130, 80),
    (150, 156, 164),
)
_GLASS = (44, 58, 76)
_SCALE = 4  # pictures are drawn larger and then shrunk, so that edges are smooth


class Box(NamedTuple):
    """A vehicle: its label, and its box in pixels (left, top, right, bottom)."""

    label: str
    box: tuple[float, float, float, float]


def scene(rng: random.Random, most: int = 6, size: int = SIZE) -> tuple[Image.Image, list[Box]]:
    """Draw a street with up to `most` vehicles; return the picture and their boxes."""
    picture = Image.new("RGB", (size * _SCALE, size * _SCALE), _tinted(rng, (92, 118, 78), 18))
    draw = ImageDraw.Draw(picture)
    _ground(draw, rng, size)
    boxes: list[Box] = []
    for _ in range(rng.randint(0, most)):
        made = _vehicle(picture, rng, boxes, size)
        if made is not None:
            boxes.append(made)
    shrunk = picture.resize((size, size), Image.Resampling.BOX)
    if rng.random() < 0.3:
        shrunk = shrunk.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 0.8)))
    return shrunk, boxes


def _ground(draw: ImageDraw.ImageDraw, rng: random.Random, size: int) -> None:
    """Draw one or two streets with their lines, and bushes beside them."""
    end = size * _SCALE
    for _ in range(rng.randint(0, 10)):
        x, y, radius = rng.uniform(0, end), rng.uniform(0, end), rng.uniform(4, 24)
        draw.ellipse(
            (x - radius, y - radius, x + radius, y + radius), _tinted(rng, (62, 96, 54), 20)
        )
    for across in rng.choice(((True,), (False,), (True, False))):
        middle, half = rng.uniform(0.25, 0.75) * end, rng.uniform(0.18, 0.4) * end
        asphalt = _tinted(rng, (98, 98, 102), 22)
        draw.rectangle(_laid((0, middle - half, end, middle + half), across), asphalt)
        for dash in range(0, end, 56):
            draw.rectangle(
                _laid((dash, middle - 3, dash + 28, middle + 3), across), (222, 220, 210)
            )


def _laid(
    box: tuple[float, float, float, float], across: bool
) -> tuple[float, float, float, float]:
    left, top, right, bottom = box
    return box if across else (top, left, bottom, right)


def _vehicle(picture: Image.Image, rng: random.Random, others: list[Box], size: int) -> Box | None:
    """Draw a vehicle where no other is; None if no place was found."""
    label = rng.choices(LABELS, (5, 3, 3))[0]
    length, width = rng.uniform(*_LENGTHS[label]), rng.uniform(*_WIDTHS[label])
    angle = rng.choice((0, 90, 180, 270)) + rng.gauss(0, 4)
    turned = math.radians(angle)
    reach = (
        abs(length * math.cos(turned)) + abs(width * math.sin(turned)),
        abs(length * math.sin(turned)) + abs(width * math.cos(turned)),
    )
    for _ in range(20):
        x, y = (rng.uniform(each / 2 + 1, size - each / 2 - 1) for each in reach)
        box = (x - reach[0] / 2, y - reach[1] / 2, x + reach[0] / 2, y + reach[1] / 2)
        if not any(_touch(box, other.box) for other in others):
            sprite = _sprite(label, length, width, rng).rotate(
                angle, Image.Resampling.BICUBIC, expand=True
            )
            place = (round(x * _SCALE - sprite.width / 2), round(y * _SCALE - sprite.height / 2))
            picture.paste(sprite, place, sprite)
            return Box(label, box)
    return None


def _touch(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return (
        one[0] - 2 < other[2]
        and other[0] - 2 < one[2]
        and one[1] - 2 < other[3]
        and other[1] - 2 < one[3]
    )


def _sprite(label: str, length: float, width: float, rng: random.Random) -> Image.Image:
    """Draw a vehicle that heads to the right, on nothing."""
    long, wide = length * _SCALE, width * _SCALE
    sprite = Image.new("RGBA", (math.ceil(long), math.ceil(wide)))
    draw = ImageDraw.Draw(sprite)
    paint = _tinted(rng, rng.choice(_PAINTS), 14)

    def part(
        left: float,
        right: float,
        colour: tuple[int, int, int],
        margin: float = 0.0,
        radius: float = 3,
    ) -> None:
        draw.rounded_rectangle(
            (left * long, margin * wide, right * long - 1, (1 - margin) * wide - 1), radius, colour
        )

    if label == "car":
        part(0, 1, paint, radius=10)
        part(0.18, 0.3, _GLASS, 0.16)
        part(0.6, 0.76, _GLASS, 0.12)
    elif label == "truck":
        part(0, 0.7, _tinted(rng, (214, 212, 204), 20), radius=1)
        part(0.73, 1, paint, 0.04, 6)
        part(0.88, 0.95, _GLASS, 0.12)
    else:
        part(0, 1, paint, radius=5)
        part(0.94, 0.99, _GLASS, 0.1)
        for window in range(5):
            part(
                0.08 + window * 0.17,
                0.18 + window * 0.17,
                _tinted(rng, (176, 190, 200), 12),
                0.28,
                2,
            )
    return sprite


def _tinted(rng: random.Random, colour: tuple[int, int, int], by: int) -> tuple[int, int, int]:
    red, green, blue = (min(255, max(0, level + rng.randint(-by, by))) for level in colour)
    return red, green, blue
