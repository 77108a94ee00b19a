"""The weights of the examples' models do what their pages say, in pictures that they have not seen."""

from __future__ import annotations

import random
import warnings
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

EXAMPLES = "meshnode.examples."
# Models as people write them: without types.
scenes: Any = import_module(f"{EXAMPLES}detector.scenes")
boxes: Any = import_module(f"{EXAMPLES}detector.model.boxes")
painter_module: Any = import_module(f"{EXAMPLES}text_to_image.model.painter")
words: Any = import_module(f"{EXAMPLES}text_to_image.words")

FOLDER = Path(scenes.__file__).parent


def test_the_detector_finds_the_vehicles_of_new_streets() -> None:
    session = onnxruntime.InferenceSession(FOLDER / "model" / "weights.onnx")
    rng = random.Random(99)
    there = right = found = 0
    for _ in range(40):
        picture, truth = scenes.scene(rng)
        (grids,) = session.run(None, {"pixels": np.asarray(picture)[np.newaxis]})
        said = boxes.decode(grids[0], picture.size, 0.5)
        there, found = there + len(truth), found + len(said)
        right += sum(
            any(
                scenes.LABELS[each.label] == label and boxes.overlap(each.box, box) > 0.5
                for each in said
            )
            for label, box in truth
        )
    assert there > 80
    assert right / there > 0.93
    assert right / found > 0.93


def test_the_scripts_that_trained_them_still_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    detector: Any = import_module(f"{EXAMPLES}detector.train")
    painter: Any = import_module(f"{EXAMPLES}text_to_image.train")
    (tmp_path / "model").mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of PyTorch's exporter, about itself
        detector.main(rounds=1, pictures=64, scored=2, output=tmp_path)
    assert "of the vehicles in 2 new scenes are found" in capsys.readouterr().out
    session = onnxruntime.InferenceSession(tmp_path / "model" / "weights.onnx")
    assert [each.name for each in session.get_outputs()] == ["grid"]
    painter.main(steps=2, sentences=500, scored=2, output=tmp_path / "weights.npz")
    assert painter_module.Painter(tmp_path / "weights.npz").known("a red star")


def test_of_boxes_that_mean_the_same_the_surest_is_kept() -> None:
    cells = np.full((12, 12, 8), -9.0)
    for row, sure in ((5, 2.0), (6, 4.0)):  # two neighbours, of almost the same box
        cells[row, 5] = [sure, 0, 4 if row == 5 else -4, 1, 1, 9, 0, 0]
    (kept,) = boxes.decode(cells, (96, 96), 0.5)
    assert kept.confidence == pytest.approx(1 / (1 + np.exp(-4.0)), abs=1e-3)
    assert boxes.overlap((0, 0, 1, 1), (2, 2, 3, 3)) == 0


def test_the_painter_draws_what_is_said() -> None:
    painter, rng, points = painter_module.Painter(), random.Random(99), painter_module.grid(24)
    errors = []
    for _ in range(40):
        scene = words.random_scene(rng)
        said = painter.paint(painter.thought(scene.sentence(rng), (0, 0, 0)), 24)
        truth = words.painted(scene, points, np.zeros(3)).reshape(24, 24, 3)
        errors.append(np.abs(said / 255 - truth).mean())
    assert np.mean(errors) < 0.03


def test_the_painter_does_not_mix_up_which_thing_has_which_colour() -> None:
    painter = painter_module.Painter()
    red, blue = (
        painter.paint(painter.thought(f"a big {one} circle on a {other} background", (0, 0, 0)), 16)
        for one, other in (("red", "blue"), ("blue", "red"))
    )
    assert red[8, 8].argmax() == blue[1, 1].argmax() == 0
    assert blue[8, 8].argmax() == red[1, 1].argmax() == 2
    assert painter.known("a xyzzy red thing") == ["red"]
    assert words.Scene("circle", "red", "blue").sentence(random.Random(1))
