"""The generator in NumPy: words become numbers, and the numbers a colour for every point of a picture."""

import re
from itertools import pairwise
from pathlib import Path

import numpy as np

WAVES = 6
"""Frequencies by which a point's place is told to the network, each twice the one before."""


def grams(prompt):
    """Return the words of a prompt and its pairs of neighbours, by which `red circle on blue` is not the other way round."""
    words = [
        word for word in re.findall(r"[a-z]+", prompt.lower()) if word not in ("a", "an", "the")
    ]
    return [*words, *(" ".join(pair) for pair in pairwise(words))]


def grid(size):
    """Return the middles of the pixels of a square picture, between -1 and 1."""
    steps = (np.arange(size) + 0.5) / size * 2 - 1
    return np.stack(np.meshgrid(steps, steps), -1).reshape(-1, 2)


def waves(points):
    """Return points [n, 2] as the network sees them."""
    angles = points[:, :, None] * (2.0 ** np.arange(WAVES) * np.pi / 2)
    parts = [
        points,
        np.sin(angles).reshape(len(points), -1),
        np.cos(angles).reshape(len(points), -1),
    ]
    return np.concatenate(parts, 1)


class Painter:
    """The trained network."""

    def __init__(self, path=Path(__file__).parent / "weights.npz"):
        with np.load(path, allow_pickle=False) as file:
            self.weights = {name: file[name].astype(np.float32) for name in file if name != "grams"}
            self.numbers = {gram: number for number, gram in enumerate(file["grams"].tolist())}

    def known(self, prompt):
        """Return the words of a prompt that the generator has learnt."""
        return [gram for gram in grams(prompt) if gram in self.numbers and " " not in gram]

    def thought(self, prompt, jitter):
        """Return what the network makes of a prompt; `jitter`, 3 numbers of -1 to 1, moves and turns what it draws."""
        numbers = [self.numbers[gram] for gram in grams(prompt) if gram in self.numbers]
        meaning = self.weights["embedding"][numbers].sum(0)
        hidden = np.concatenate([meaning, np.asarray(jitter, np.float32)])
        hidden = np.maximum(hidden @ self.weights["think.weight"].T + self.weights["think.bias"], 0)
        return hidden @ self.weights["steer.weight"].T + self.weights["steer.bias"]

    def paint(self, thought, size):
        """Return a picture as [size, size, 3] bytes."""
        weights = self.weights
        layers = sum(name.startswith("layers.") for name in weights) // 2
        steering = thought.reshape(layers, 2, -1)
        hidden = waves(grid(size)).astype(np.float32)
        for number, (scale, shift) in enumerate(steering):
            hidden = (
                hidden @ weights[f"layers.{number}.weight"].T + weights[f"layers.{number}.bias"]
            )
            hidden = np.maximum(hidden * (1 + scale) + shift, 0)
        colours = 1 / (1 + np.exp(-(hidden @ weights["colour.weight"].T + weights["colour.bias"])))
        return (colours.reshape(size, size, 3) * 255).round().astype(np.uint8)
