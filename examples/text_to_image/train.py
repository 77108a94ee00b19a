"""Train the generator and write its weights into model/.

    python -m meshnode.examples.text_to_image.train

Needs the development dependencies (torch); takes some minutes on two cores. Sentences and their pictures are made at
random (`words`), so that no data set is needed. The model itself needs NumPy and Pillow.
"""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import torch
from torch import nn

from meshnode.examples.text_to_image.model.painter import WAVES, Painter, grams, grid, waves
from meshnode.examples.text_to_image.words import painted, random_scene

FOLDER = Path(__file__).parent
SEED = 5
STEPS = 12000
SCENES = 32
POINTS = 128
MEANING, HIDDEN, LAYERS = 48, 56, 4


class Network(nn.Module):
    """A prompt's meaning steers each layer of a network that gives a point its colour."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.embedding = nn.EmbeddingBag(count, MEANING, mode="sum")
        self.think = nn.Linear(MEANING + 3, 64)
        self.steer = nn.Linear(64, LAYERS * 2 * HIDDEN)
        sizes = [2 + 4 * WAVES] + [HIDDEN] * LAYERS
        self.layers = nn.ModuleList(map(nn.Linear, sizes[:-1], sizes[1:]))
        self.colour = nn.Linear(HIDDEN, 3)
        nn.init.normal_(self.embedding.weight, std=0.3)

    def forward(
        self, numbers: torch.Tensor, offsets: torch.Tensor, jitter: torch.Tensor, seen: torch.Tensor
    ) -> torch.Tensor:
        """Return colours [n, points, 3] before the last bend."""
        meaning = torch.cat([self.embedding(numbers, offsets), jitter], 1)
        steering = self.steer(torch.relu(self.think(meaning))).view(-1, LAYERS, 2, 1, HIDDEN)
        hidden = seen
        for number, layer in enumerate(self.layers):
            scale, shift = steering[:, number, 0], steering[:, number, 1]
            hidden = torch.relu(layer(hidden) * (1 + scale) + shift)
        return self.colour(hidden)


def learnt_grams(sentences: int) -> list[str]:
    """Return all words and pairs of words that so many sentences have, the frequent ones first."""
    rng, counts = random.Random(SEED), dict[str, int]()
    for _ in range(sentences):
        for gram in grams(random_scene(rng).sentence(rng)):
            counts[gram] = counts.get(gram, 0) + 1
    return sorted(counts, key=lambda gram: (-counts[gram], gram))


def batch(
    rng: random.Random, draws: np.random.Generator, known: dict[str, int]
) -> tuple[torch.Tensor, ...]:
    """Return sentences as numbers, jitters, points as the network sees them, and their true colours."""
    numbers, offsets, seen, colours = [], [], [], []
    jitters = draws.uniform(-1, 1, (SCENES, 3)).astype(np.float32)
    for jitter in jitters:
        scene = random_scene(rng)
        points = draws.uniform(-1, 1, (POINTS, 2))
        offsets.append(len(numbers))
        numbers += [known[gram] for gram in grams(scene.sentence(rng)) if gram in known]
        seen.append(waves(points))
        colours.append(painted(scene, points, jitter))
    return (
        torch.tensor(numbers), torch.tensor(offsets), torch.from_numpy(jitters),
        torch.from_numpy(np.stack(seen)).float(), torch.from_numpy(np.stack(colours)).float(),
    )  # fmt: skip


def score(painter: Painter, count: int) -> float:
    """Return how far colours are from the true ones in new pictures, on average, of 255."""
    rng, points = random.Random(SEED + 1), grid(32)
    errors = []
    for _ in range(count):
        scene = random_scene(rng)
        jitter = np.array([rng.uniform(-1, 1) for _ in range(3)])
        said = painter.paint(painter.thought(scene.sentence(rng), jitter), 32)
        errors.append(abs(said.reshape(-1, 3) - painted(scene, points, jitter) * 255).mean())
    return float(np.mean(errors))


def main(
    steps: int = STEPS,
    sentences: int = 40_000,
    scored: int = 300,
    output: Path = FOLDER / "model" / "weights.npz",
) -> None:
    """Train for so many steps on words of so many sentences, write the weights to `output`, and say how good they are."""
    torch.manual_seed(SEED)
    rng, draws = random.Random(SEED), np.random.default_rng(SEED)
    learnt = learnt_grams(sentences)
    known = {gram: number for number, gram in enumerate(learnt)}
    network = Network(len(learnt))
    optimiser = torch.optim.Adam(network.parameters(), 2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 6e-3, steps)
    total = 0.0
    for step in range(1, steps + 1):
        numbers, offsets, jitter, seen, colours = batch(rng, draws, known)
        loss = nn.functional.mse_loss(
            torch.sigmoid(network(numbers, offsets, jitter, seen)), colours
        )
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        total += loss.item()
        if step % 500 == 0:
            print(
                f"step {step} of {steps}: error {(total / 500) ** 0.5 * 255:.1f} of 255", flush=True
            )
            total = 0.0
    weights = {
        name: value.numpy().astype(np.float16) for name, value in network.state_dict().items()
    }
    weights["embedding"] = weights.pop("embedding.weight")
    np.savez_compressed(output, grams=np.array(learnt), **weights)
    print(
        f"colours of {scored} new pictures are {score(Painter(output), scored):.1f} of 255 from the true ones, on average"
    )


if __name__ == "__main__":
    main()
