"""What a baked folder says of itself: its models' manifests, what was compiled, and for which machines that holds.

A baked folder is a model repository like any other, with a hidden folder `.baked` in it:

    digits/1/model.onnx                 the models, as any node or Triton serves them
    .baked/index.json                   `Index`
    .baked/compiled/DIGEST/graph-cpu.onnx   graphs as the runtime optimised them
    .baked/compiled/DIGEST/cache/…      what the model's own code kept in its cache folder

What is compiled holds for a build (runtime, system, instruction set, accelerators); what was measured holds for a
machine besides (processor, number of cores). Pure: bytes and facts in, decisions out.
"""

from __future__ import annotations

import hashlib
import math
from typing import Final

import msgspec

from meshnode.errors import ModelError
from meshnode.limits import MAX_BAKED_INDEX_BYTES, MAX_MODELS
from meshnode.models.manifest import Manifest, TensorSpec, check_manifest, check_relative_path
from meshnode.models.repository.config_backend import LITERT_RUNTIME, ONNX_RUNTIME, TORCH_RUNTIME
from meshnode.models.serving.profile import Profile, is_sound
from meshnode.models.serving.thread_plan import Pace

BAKED_FOLDER: Final = ".baked"
"""Folder of a baked repository that a node reads and that nobody takes for a model."""

INDEX_FILE: Final = "index.json"

_FORMAT: Final = 1

_LIBRARY_OF: Final = {
    ONNX_RUNTIME: "onnxruntime",
    LITERT_RUNTIME: "ai-edge-litert",
    TORCH_RUNTIME: "torch",
}
"""How the names of the packages begin on which a runtime's models depend; those of others depend on all of them."""


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """What compiled things and measured times hold for.

    Attributes:
        system: Such as `linux`.
        architecture: Such as `x86_64`.
        features: A hash of the processor's instruction sets; the processor's name where they are not told.
        python: Of the interpreter, such as `3.11`.
        packages: Versions of the packages that compute, by name.
        accelerators: Each with its driver, in order.
        processor: Its name.
        cores: How many of them the process may use.
    """

    system: str
    architecture: str
    features: str
    python: str
    packages: dict[str, str]
    accelerators: tuple[str, ...] = ()
    processor: str = ""
    cores: int = 1


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """What the warm-up of a version found out, so that another start need not.

    Attributes:
        first_s: Seconds of one run of one row; 0 if unknown.
        pace: Which plan of threads that asks for.
        profile: Service time by batch size.
        apart: Why requests must not be joined; empty if they may.
    """

    first_s: float
    pace: Pace = Pace.SHORT
    profile: Profile = ()
    apart: str = ""


class BakedVersion(msgspec.Struct, frozen=True, kw_only=True):
    """One version in a baked folder.

    Attributes:
        key: Of its files and configuration, as `key_of` makes it.
        manifest: What opening it came to.
        folder: Its files, relative to the baked folder.
        graphs: SHA-256 (hex) of the optimised graphs, by file name.
        measured: What its warm-up found out; None if it was not loaded.
        has_cache: Whether its code kept something in its cache folder.
        notes: Why something was not compiled.
    """

    key: str
    manifest: Manifest
    folder: str
    graphs: dict[str, str] = {}
    measured: Measured | None = None
    has_cache: bool = False
    notes: tuple[str, ...] = ()


class Index(msgspec.Struct, frozen=True, kw_only=True):
    """All of a baked folder.

    Attributes:
        format: Of this document.
        meshnode: The version that baked it.
        made_s: When, in seconds since 1970.
        machine: Where.
        versions: What is in it.
    """

    format: int = _FORMAT
    meshnode: str
    made_s: float
    machine: Machine
    versions: tuple[BakedVersion, ...]


def key_of(
    provisional: Manifest,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    max_batch_size: int,
) -> str:
    """Return what tells whether a version is as it was when it was baked.

    Args:
        provisional: Its files and settings, without tensors.
        inputs: As its configuration names them; empty for none.
        outputs: Likewise.
        max_batch_size: Likewise.
    """
    told = (provisional.model, provisional.digest, inputs, outputs, max_batch_size)
    return hashlib.sha256(msgspec.msgpack.encode(told)).hexdigest()


def build_differences(baked: Machine, here: Machine, runtime: str) -> tuple[str, ...]:
    """Return why what a runtime compiled there may not hold here, as clauses; empty if it does."""
    library = _LIBRARY_OF.get(runtime, "")
    packages = sorted(
        name for name in {*baked.packages, *here.packages} if name.startswith(library)
    )
    python = [] if library else [("Python", baked.python, here.python)]
    found = [
        f"{what} is {mine or 'absent'} here and was {theirs or 'absent'}"
        for what, theirs, mine in (
            ("the system", baked.system, here.system),
            ("the architecture", baked.architecture, here.architecture),
            *python,
            *(
                (name, baked.packages.get(name, ""), here.packages.get(name, ""))
                for name in packages
            ),
        )
        if theirs != mine
    ]
    if baked.features != here.features:
        found.append(
            f"the processor ({_named(here)}) has other instruction sets than {_named(baked)}"
        )
    if baked.accelerators != here.accelerators:
        found.append(
            f"the accelerators are {', '.join(here.accelerators) or 'none'} here and were "
            f"{', '.join(baked.accelerators) or 'none'}"
        )
    return tuple(found)


def speed_differences(baked: Machine, here: Machine) -> tuple[str, ...]:
    """Return why times that were measured there say nothing here, where the build is the same; empty if they do."""
    found = []
    if baked.features == here.features and baked.processor != here.processor:
        found.append(f"the processor is {_named(here)} here and was {_named(baked)}")
    if baked.cores != here.cores:
        found.append(f"{here.cores} cores may be used here and were {baked.cores}")
    return tuple(found)


def write_index(index: Index) -> bytes:
    """Return the document, for people too."""
    return msgspec.json.format(msgspec.json.encode(index), indent=1) + b"\n"


def read_index(data: bytes) -> Index:
    """Read the document.

    Raises:
        ModelError: if it is none, of a later format, or names what no folder can have.
    """
    if len(data) > MAX_BAKED_INDEX_BYTES:
        raise ModelError(f"it has more than {MAX_BAKED_INDEX_BYTES} bytes")
    try:
        index = msgspec.json.decode(data, type=Index)
    except (msgspec.DecodeError, RecursionError) as error:
        raise ModelError(f"it cannot be read: {error}") from None
    if index.format != _FORMAT:
        raise ModelError(f"it has format {index.format}; this version of meshnode reads {_FORMAT}")
    if len(index.versions) > MAX_MODELS:
        raise ModelError(f"it names {len(index.versions)} versions; at most {MAX_MODELS}")
    for version in index.versions:
        _check(version)
    return index


def _check(version: BakedVersion) -> None:
    check_manifest(version.manifest)
    if version.folder != ".":
        check_relative_path(version.folder)
    for name in version.graphs:
        if "/" in check_relative_path(name):
            raise ModelError(f"the graph {name!r} is no plain file name")
    measured = version.measured
    if measured is not None and not (
        is_sound(measured.profile) and math.isfinite(measured.first_s) and measured.first_s >= 0
    ):
        raise ModelError(f"the times of model {version.manifest.model!r} are none")


def _named(machine: Machine) -> str:
    return machine.processor or "an unnamed processor"
