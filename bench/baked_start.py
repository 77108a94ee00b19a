"""What baking saves: describing, opening, warming up and measuring models, next to doing it from what was baked.

Both are done in one process, interleaved, with ONNX Runtime imported and the files in the page cache.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from bench.model_files import dense, resnet18
from bench.models import Figure
from meshnode.models.baking.baking import Bakery
from meshnode.models.baking.folder import BakedFolder
from meshnode.models.repository.publish import describe
from meshnode.models.repository.scanning import scan
from meshnode.models.runtimes.onnx import OnnxRuntime
from meshnode.models.serving.loading import Loader
from meshnode.models.serving.server_config import ServerConfig

if TYPE_CHECKING:
    from meshnode.models.baking.index import Machine


def bake(_seconds: float, rounds: int) -> list[Figure]:
    """Start a CNN of ResNet-18's size and a dense model, as a node does, from the files and from what was baked."""
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory() as place:
        for name, write in (("CNN of ResNet-18's size", resnet18), ("dense model", dense)):
            folder = Path(place) / name.partition(" ")[0]
            (folder / "source").mkdir(parents=True)
            write(folder / "source" / "model.onnx")
            bakery = Bakery()
            begun = time.perf_counter()
            bakery.bake([folder / "source"], folder / "baked")
            baking_s = time.perf_counter() - begun
            times = [_both(folder, bakery.machine) for _ in range(max(3, rounds))]
            plain_s, baked_s = (statistics.median(column) for column in zip(*times, strict=True))
            figures += [
                Figure(f"{name}: start from its files, s", plain_s),
                Figure(f"{name}: start from what was baked, s", baked_s),
                Figure(f"{name}: the first / the second", plain_s / baked_s, least=2.0),
                Figure(f"{name}: baking it, s", baking_s),
            ]
    return figures


def _both(folder: Path, machine: Machine) -> tuple[float, float]:
    return (
        _start(folder / "source", machine, is_baked=False),
        _start(folder / "baked", machine, is_baked=True),
    )


def _start(folder: Path, machine: Machine, *, is_baked: bool) -> float:
    """Return the seconds from looking at a folder until its model would serve."""
    runtime = OnnxRuntime()
    runtime.capability()
    loader = Loader({"onnx": runtime}, ServerConfig(), machine.cores, time.perf_counter)
    begun = time.perf_counter()
    (model,) = scan(folder)
    (version,) = model.versions
    if is_baked:
        baked = BakedFolder.read(folder, machine)
        loader = replace(loader, prepared=baked.prepared)
        manifest = describe(model, version, runtime, baked.manifest_of)
    else:
        manifest = describe(model, version, runtime)
    opened = asyncio.run(loader.open(manifest, version.folder))
    took_s = time.perf_counter() - begun
    for instance in opened.instances:
        instance.model.close()
    return took_s
