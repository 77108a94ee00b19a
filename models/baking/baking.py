"""Baking: open every model of some folders once, and keep what was compiled and measured beside them.

The models are copied first and opened from the copy, so that what was compiled is of what is in the folder. A graph
is kept only after it was opened again and gave the same answers as the file itself.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import tempfile
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import meshnode
from meshnode.errors import ConfigError, MeshError, ModelError, NotServing
from meshnode.hardware.accelerators import Accelerators
from meshnode.models.baking.folder import CACHE_FOLDER, Prepared, compiled_place
from meshnode.models.baking.index import (
    BAKED_FOLDER,
    INDEX_FILE,
    BakedVersion,
    Index,
    Machine,
    Measured,
    key_of,
    write_index,
)
from meshnode.models.baking.machine import machine_here
from meshnode.models.repository.config_backend import ENSEMBLE_RUNTIME
from meshnode.models.repository.publish import describe, hashed
from meshnode.models.repository.scanning import bare_metadata_file, scan
from meshnode.models.repository.server_models import ENVIRONMENT_FILE
from meshnode.models.repository.version_files import is_inside, is_passed_over
from meshnode.models.runtimes.base import Environment, ProcessModel
from meshnode.models.runtimes.registry import all_runtimes, runtime_named
from meshnode.models.serving.loading import Loader
from meshnode.models.serving.server_config import ServerConfig
from meshnode.models.serving.warmup import zeros_for
from meshnode.models.workers.settings import WorkerSettings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from meshnode.models.manifest import Manifest
    from meshnode.models.repository.scanning import FoundModel, FoundVersion
    from meshnode.models.runtimes.base import LoadedModel, Runtime
    from meshnode.models.serving.opened import Opened
    from meshnode.types import InferRequest, InferResponse, Tensor

_TOLERANCE = 1e-3
"""Relative to the largest value of an output: optimising reorders sums, in a run of the file itself too."""

_SEED = 5

_COUNTED = frozenset({"cuda", "rocm"})  # accelerators whose instances are counted by themselves


def _ignore(_line: str) -> None:
    pass


@dataclass(slots=True)
class Bakery:
    """Bakes folders of models.

    Attributes:
        progress: Told of each version that is baked, as a line.
        runtimes: Makes what opens models; all runtimes by default.
        machine: This machine.
        config: How a node runs requests.
        timer: Seconds, for measuring runs.
    """

    progress: Callable[[str], None] = _ignore
    runtimes: Callable[[Environment], dict[str, Runtime]] = all_runtimes
    machine: Machine = field(default_factory=machine_here)
    config: ServerConfig = field(default_factory=ServerConfig)
    timer: Callable[[], float] = time.perf_counter

    def bake(self, sources: Sequence[Path], target: Path) -> Index:
        """Write a baked folder.

        Args:
            sources: Repositories, models' folders and bare files, as for `meshnode join --models`.
            target: The folder to make; it must not exist, or be empty.

        Returns:
            What it says of itself.

        Raises:
            ConfigError: if the folder is in use or cannot be written.
            ModelError: if a model cannot be served; nothing is left behind.
        """
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise ConfigError(f"{target} exists already; name a new folder, or remove it first")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".baking-", dir=target.parent) as working:
                folder = Path(working) / (target.name or "baked")
                index = self._bake(sources, folder)
                if target.exists():
                    target.rmdir()
                folder.rename(target)
        except OSError as error:
            raise ConfigError(
                f"{error.filename or target} cannot be written: {error.strerror}"
            ) from None
        return index

    def _bake(self, sources: Sequence[Path], folder: Path) -> Index:
        _copy_all(sources, folder)
        (folder / BAKED_FOLDER).mkdir()
        with tempfile.TemporaryDirectory(prefix="meshnode-bake-") as working:
            workers = WorkerSettings(
                allow_code=True, own_folders=(folder,), work_folder=Path(working)
            )
            runtimes = self.runtimes(
                Environment(
                    infer=_nobody, manifest_of=lambda _name, _version: None, workers=workers
                )
            )
            versions = asyncio.run(self._all(folder, runtimes))
        index = Index(
            meshnode=meshnode.__version__,
            made_s=round(time.time(), 3),
            machine=self.machine,
            versions=tuple(versions),
        )
        (folder / BAKED_FOLDER / INDEX_FILE).write_bytes(write_index(index))
        _make_readable(folder)
        return index

    async def _all(self, folder: Path, runtimes: dict[str, Runtime]) -> list[BakedVersion]:
        baked = []
        for model in scan(folder):
            if model.error:
                raise ModelError(f"model {model.name!r} cannot be served: {model.error}")
            for version in model.versions:
                if version.runtime == ENSEMBLE_RUNTIME:
                    self.progress(
                        f"{model.name} {version.version}: an ensemble, which has nothing to compile"
                    )
                    continue
                baked.append(await self._one(folder, model, version, runtimes))
        return baked

    async def _one(
        self, folder: Path, model: FoundModel, version: FoundVersion, runtimes: dict[str, Runtime]
    ) -> BakedVersion:
        runtime = runtime_named(runtimes, version.runtime)
        provisional = hashed(model, version, runtime)
        manifest = describe(model, version, runtime)
        place = compiled_place(folder, manifest)
        loader = Loader(
            runtimes, self.config, self.machine.cores, self.timer,
            lambda _digest: place / CACHE_FOLDER, lambda _manifest: Prepared(place, writes=True),
        )  # fmt: skip
        what = f"{manifest.model} {manifest.version}"
        try:
            opened = await loader.open(manifest, version.folder, _gpus())
        except MeshError as error:
            raise ModelError(f"model {what} cannot be baked: {error}") from None
        measured = Measured(
            first_s=opened.first_s, pace=opened.pace, profile=opened.profile, apart=opened.apart
        )
        before = _answers(manifest, opened)
        await _close(opened)
        notes = await _wrong_graphs(loader, manifest, version, place, before)
        graphs = {each.name: _sha256(each) for each in _graphs(place)}
        has_cache = _clean(place / CACHE_FOLDER)
        config = model.config
        baked = BakedVersion(
            key=key_of(
                provisional,
                *(
                    (config.inputs, config.outputs, config.max_batch_size)
                    if config
                    else ((), (), 0)
                ),
            ),
            manifest=manifest,
            folder=version.folder.relative_to(folder).as_posix(),
            graphs=graphs,
            measured=measured,
            has_cache=has_cache,
            notes=notes,
        )
        self.progress(f"{what}: {_told(baked)}")
        return baked


async def _wrong_graphs(
    loader: Loader,
    manifest: Manifest,
    version: FoundVersion,
    place: Path,
    before: Sequence[Tensor] | None,
) -> tuple[str, ...]:
    """Open a version from its graphs; remove them, and say why, if that does not work or the answers are others."""
    graphs = _graphs(place)
    if not graphs:
        return ()
    known = Prepared(place, measured=Measured(first_s=0.0))  # nothing is measured again
    opened = await replace(loader, prepared=lambda _manifest: known).open(
        manifest, version.folder, _gpus()
    )
    if all(getattr(each.model, "is_baked", False) for each in opened.instances):
        flaw = _difference(before, _answers(manifest, opened))
    else:
        flaw = "it cannot be opened again"
    await _close(opened)
    if not flaw:
        return ()
    for graph in graphs:
        graph.unlink()
    return (f"the optimised graph is not kept: {flaw}",)


def _graphs(place: Path) -> list[Path]:
    return sorted(place.glob("graph-*.onnx"))


def _answers(manifest: Manifest, opened: Opened) -> Sequence[Tensor] | None:
    """Return what a version answers to one row of noise; None if it refuses that, or is a process."""
    model = opened.instances[0].model
    if isinstance(model, ProcessModel):
        return None
    inputs = zeros_for(manifest, model)
    if inputs is None:
        return None
    try:
        return model.run(
            [_noise(tensor) for tensor in inputs], [each.name for each in manifest.outputs]
        )
    except MeshError:
        return None


def _noise(zeros: Tensor) -> Tensor:
    """Return a tensor of the same kind with numbers that show a difference: integers may be indices, and stay zero."""
    # On demand: it brings NumPy.
    import numpy as np

    from meshnode.models.tensors import from_numpy, to_numpy

    array = to_numpy(zeros)
    if array.dtype.kind != "f":
        return zeros
    values = np.random.default_rng(_SEED).standard_normal(array.shape)
    return from_numpy(zeros.name, values.astype(array.dtype))


def _difference(before: Sequence[Tensor] | None, after: Sequence[Tensor] | None) -> str:
    if before is None or after is None:
        return "" if before is after else "only one of the two answers"
    # On demand: it brings NumPy.
    import numpy as np

    from meshnode.models.tensors import to_numpy

    for one, other in zip(before, after, strict=True):
        left, right = to_numpy(one), to_numpy(other)
        if left.shape != right.shape or left.dtype != right.dtype:
            return f"output {one.name!r} has another shape"
        if left.dtype.kind != "f":
            if not np.array_equal(left, right):
                return f"output {one.name!r} differs"
        elif not _close_enough(left, right):
            return f"output {one.name!r} differs"
    return ""


def _close_enough(left: Any, right: Any) -> bool:
    import numpy as np

    scale = float(np.max(np.abs(left[np.isfinite(left)]), initial=0.0))
    close = np.isclose(
        left.astype(np.float64), right.astype(np.float64),
        rtol=_TOLERANCE, atol=_TOLERANCE * scale, equal_nan=True,
    )  # fmt: skip
    return bool(np.all(close))


async def _close(opened: Opened) -> None:
    models: Iterable[LoadedModel | ProcessModel] = (each.model for each in opened.instances)
    for model in models:
        if isinstance(model, ProcessModel):
            await model.close()
        else:
            model.close()


async def _nobody(request: InferRequest) -> InferResponse:
    raise NotServing(f"there is no mesh to ask for {request.model!r} while models are baked")


def _gpus() -> int:
    return sum(each.kind in _COUNTED for each in Accelerators().found)


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _told(baked: BakedVersion) -> str:
    found = []
    if baked.graphs:
        found.append("graph optimised")
    if baked.has_cache:
        found.append("its own cache kept")
    if baked.measured is not None and baked.measured.profile:
        found.append(f"measured ({baked.measured.profile[0][1]:.3g} ms)")
    return "; ".join((*(found or ["opened; it has nothing to compile"]), *baked.notes))


# The copy


def _copy_all(sources: Sequence[Path], folder: Path) -> None:
    folder.mkdir()
    taken: dict[str, Path] = {}
    for source in sources:
        for model in scan(source):
            if model.error:
                raise ModelError(f"model {model.name!r} cannot be served: {model.error}")
            if model.name in taken:
                raise ConfigError(
                    f"{taken[model.name]} and {model.path} are both called {model.name!r}; bake them apart"
                )
            taken[model.name] = model.path
            _copy(model, folder)
        environment = source / ENVIRONMENT_FILE
        if environment.is_file() and len(sources) == 1:
            shutil.copyfile(environment, folder / ENVIRONMENT_FILE)
    if not taken:
        raise ModelError(f"there is no model in {', '.join(map(str, sources))}")


def _copy(model: FoundModel, folder: Path) -> None:
    if model.path.is_dir():
        shutil.copytree(model.path, folder / model.path.name, ignore=_left_out(model.path))
        return
    (version,) = model.versions
    for file in version.files:
        shutil.copyfile(file.source, folder / file.path)
    metadata = bare_metadata_file(model.path)
    if metadata is not None:
        shutil.copyfile(metadata, folder / f"{model.name}.metadata.json")


def _left_out(boundary: Path) -> Callable[[str, list[str]], set[str]]:
    """Return which names belong to no model: hidden ones, and links that lead elsewhere."""

    def left_out(parent: str, names: list[str]) -> set[str]:
        here = Path(parent)
        return {
            name
            for name in names
            if is_passed_over(name)
            or ((here / name).is_symlink() and not is_inside(here / name, boundary))
        }

    return left_out


def _clean(cache: Path) -> bool:
    """Remove links from a cache folder, which lead to the model's files; return whether anything is left."""
    if not cache.is_dir():
        return False
    has_files = False
    for parent, folders, names in os.walk(cache, topdown=False):
        for name in (*names, *folders):
            place = Path(parent) / name
            if place.is_symlink() or not (place.is_file() or place.is_dir()):
                place.unlink()
            elif place.is_file():
                has_files = True
            elif not any(place.iterdir()):
                place.rmdir()
    if not has_files:
        shutil.rmtree(cache)
    return has_files


def _make_readable(folder: Path) -> None:
    """Let everybody read it: an image is baked by one user and run by another."""
    for parent, folders, names in os.walk(folder):
        for name in folders:
            (Path(parent) / name).chmod(0o755)
        for name in names:
            (Path(parent) / name).chmod(0o644)
    folder.chmod(0o755)
