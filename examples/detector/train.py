"""Train the detector and write its weights into model/.

    python -m meshnode.examples.detector.train

Needs the development dependencies (torch); takes some minutes on two cores. Streets from above are drawn at random
(`scenes`), so that no data set is needed. The model itself needs NumPy, Pillow and ONNX Runtime.
"""

from __future__ import annotations

import random
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import nn

from meshnode.examples.detector.model.boxes import CELLS, decode, overlap
from meshnode.examples.detector.scenes import LABELS, SIZE, Box, scene

FOLDER = Path(__file__).parent
SEED = 7
PICTURES = 6000
ROUNDS = 30
BATCH = 64


class Detector(nn.Module):
    """A grid of cells, each of which says whether a vehicle's middle is in it, where exactly, its size and kind."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 12, 24, 32, 48, 48)
        layers: list[nn.Module] = []
        for number, (before, after) in enumerate(pairwise(widths)):
            stride = 2 if number < 3 else 1
            layers += [nn.Conv2d(before, after, 3, stride, 1), nn.BatchNorm2d(after), nn.ReLU()]
        self.body = nn.Sequential(*layers, nn.Conv2d(widths[-1], 5 + len(LABELS), 1))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return [n, cells, cells, 5 + labels] for pictures [n, height, width, 3] of bytes."""
        scaled = pixels.permute(0, 3, 1, 2).float() / 255 - 0.4
        return self.body(scaled).permute(0, 2, 3, 1)


def drawn(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, list[list[Box]]]:
    """Draw scenes; return their pixels, what the grid is to say, and their boxes."""
    rng = random.Random(seed)
    pixels = np.empty((count, SIZE, SIZE, 3), np.uint8)
    wanted = np.zeros((count, CELLS, CELLS, 6), np.float32)
    boxes = []
    for number in range(count):
        picture, found = scene(rng)
        pixels[number] = np.asarray(picture)
        boxes.append(found)
        for label, (left, top, right, bottom) in found:
            x, y = (left + right) / 2 / SIZE * CELLS, (top + bottom) / 2 / SIZE * CELLS
            size = np.log([(right - left) / SIZE * CELLS, (bottom - top) / SIZE * CELLS])
            cell = (number, int(y), int(x))
            wanted[cell] = (1, x - int(x), y - int(y), *size, LABELS.index(label))
    return torch.from_numpy(pixels), torch.from_numpy(wanted), boxes


def loss_of(said: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Return how wrong a grid is."""
    there = wanted[..., 0]
    chance = nn.functional.binary_cross_entropy_with_logits(said[..., 0], there, reduction="none")
    sure = (torch.sigmoid(said[..., 0]) - there).abs() ** 1.5
    full = there.bool()
    place = nn.functional.mse_loss(torch.sigmoid(said[full][:, 1:3]), wanted[full][:, 1:3])
    size = nn.functional.mse_loss(said[full][:, 3:5], wanted[full][:, 3:5])
    label = nn.functional.cross_entropy(said[full][:, 5:], wanted[full][:, 5].long())
    return (chance * sure).sum() / full.sum() * 2 + place * 4 + size * 4 + label


def score(model: Detector, count: int = 500) -> tuple[float, float]:
    """Return the shares of vehicles that are found, and of findings that are right, in new scenes."""
    pixels, _, boxes = drawn(count, SEED + 1)
    with torch.no_grad():
        grids = torch.cat([model(part) for part in pixels.split(100)]).numpy()
    right = found = there = 0
    for grid, truth in zip(grids, boxes, strict=True):
        said = decode(grid, (SIZE, SIZE), 0.5)
        found, there = found + len(said), there + len(truth)
        for label, box in truth:
            right += any(
                LABELS[each.label] == label and overlap(each.box, box) > 0.5 for each in said
            )
    return right / there, right / max(1, found)


def main(
    rounds: int = ROUNDS, pictures: int = PICTURES, scored: int = 500, output: Path = FOLDER
) -> None:
    """Train for so many rounds, write model and sample below `output`, and say how good it is in `scored` scenes."""
    torch.manual_seed(SEED)
    pixels, wanted, _ = drawn(pictures, SEED)
    model = Detector()
    optimiser = torch.optim.AdamW(model.parameters(), 3e-3, weight_decay=1e-3)
    steps = rounds * (pictures // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 6e-3, steps)
    for number in range(rounds):
        order = torch.randperm(pictures)
        total = 0.0
        for part in order[: pictures // BATCH * BATCH].split(BATCH):
            optimiser.zero_grad()
            loss = loss_of(model(pixels[part]), wanted[part])
            loss.backward()
            optimiser.step()
            schedule.step()
            total += loss.item()
        print(f"round {number + 1} of {rounds}: loss {total / (pictures // BATCH):.3f}", flush=True)
    model.eval()
    recall, precision = score(model, scored)
    print(
        f"{recall:.1%} of the vehicles in {scored} new scenes are found, {precision:.1%} of what is found is right"
    )
    torch.onnx.export(
        model,
        (pixels[:1],),
        str(output / "model" / "weights.onnx"),
        input_names=["pixels"],
        output_names=["grid"],
        dynamo=False,
        opset_version=17,
    )
    picture, _ = scene(random.Random(13), 6)
    picture.resize((384, 384)).save(output / "street.png")


if __name__ == "__main__":
    main()
