"""The model that stands in for a real one in whole daemons: it takes the time that a call says, and answers.

A daemon at depth B or C loads models with a runtime, like any other. This runtime's model files are a
few lines of JSON under the name that a repository looks for (`model.onnx`); a run *spends* the work of
its request, divided by the device's speed. What spending is, its user says: sleeping, where daemons are
real processes; letting the host's virtual time pass, where they are not. `meshnode.sim.http_calls` makes
the requests.

A run without work (0 or less: the warm-up on zeros) takes the model's mean, so that a replica's first load report
names a time that is right.

Its answer follows from the input alone: all versions give the same, but for the share of inputs to which one is told to
answer otherwise. Those are always the same inputs, on all nodes.
"""

from __future__ import annotations

import hashlib
import struct
import threading
from typing import TYPE_CHECKING, Final

import msgspec

from meshnode.errors import InferenceFailed, InvalidRequest, ModelError
from meshnode.models.manifest import TensorSpec
from meshnode.models.repository.config import ONNX_RUNTIME
from meshnode.models.runtimes.base import Capability, Described
from meshnode.types import DataType, Tensor

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from meshnode.models.runtimes.base import Opening

MODEL_FILE: Final = "model.onnx"
"""The file's name: repositories list files of this name, and the runtime stands for ONNX Runtime."""

WORK: Final = TensorSpec("work_s", DataType.FP64, (1,))
"""Input: how long the request runs on a device of speed 1, in seconds."""

WANTED: Final = TensorSpec("response_bytes", DataType.INT64, (1,))
"""Input: how long the answer is."""

BODY: Final = TensorSpec("body", DataType.BYTES, (1,))
"""Input and output: one string of any length. Its shape says nothing of the work, as it shall be."""

_MAX_WORK_S: Final = 86_400.0
_MAX_ANSWER_BYTES: Final = 64 * 2**20  # what a scenario's `response_kb` allows
_LENGTH: Final = struct.Struct("<I")
_SHARES: Final = 2**32
_PERSON: Final = b"stand-in-differs"  # of the draw, so that it says nothing of the answer's bytes


class StandInModel(msgspec.Struct, frozen=True, kw_only=True):
    """What a stand-in's model file says.

    Attributes:
        mean_s: Mean of its runs on a device of speed 1, in seconds.
        load_s: Seconds to load it.
        release: Counts a model's releases, so that no two versions have the same file.
        slowness: Its runs take so many times as long as calls say.
        fail_share: Share of its requests that fail, at once.
        fails_on: The class of devices on which they do; empty for all.
        differs_share: Share of the inputs to which it answers otherwise than the others.
        load_error: Why it cannot be loaded; empty where it can.
    """

    mean_s: float = 0.02
    load_s: float = 0.0
    release: int = 1
    slowness: float = 1.0
    fail_share: float = 0.0
    fails_on: str = ""
    differs_share: float = 0.0
    load_error: str = ""

    def write(self, folder: Path) -> Path:
        """Write it as version `release` of a model whose folder this is; return the file.

        Raises:
            OSError: if that fails.
        """
        version = folder / str(self.release)
        version.mkdir(parents=True, exist_ok=True)
        place = version / MODEL_FILE
        place.write_bytes(msgspec.json.format(msgspec.json.encode(self), indent=2) + b"\n")
        return place

    @classmethod
    def read(cls, place: Path) -> StandInModel:
        """Read what `write` wrote.

        Raises:
            ModelError: if it is something else.
        """
        try:
            return msgspec.json.decode(place.read_bytes(), type=cls)
        except (OSError, msgspec.MsgspecError) as error:
            raise ModelError(f"{place.name!r} is no stand-in model: {error}") from None


class StandInRuntime:
    """Loads stand-in models; takes the place of the `onnx` runtime in a simulated daemon.

    Attributes:
        device_class: Of the device, as the scenario calls it.
        speed: Of the device; 2 halves all times of runs. May be changed at any time, as the others.
        slowness: All that it does takes this many times as long.
        fail_share: Share of the requests that fail at once.
    """

    name = ONNX_RUNTIME
    platform = "meshnode_stand_in"
    is_code = False
    shares_instance = True

    def __init__(
        self,
        spend: Callable[[float], None],
        rng: random.Random,
        *,
        speed: float = 1.0,
        device_class: str = "",
    ) -> None:
        """Run models in somebody's time.

        Args:
            spend: Lets so many seconds pass in the thread that calls it.
            rng: Draws which requests fail.
            speed: Of the device.
            device_class: Of the device.
        """
        self.device_class = device_class
        self.speed = speed
        self.slowness = 1.0
        self.fail_share = 0.0
        self._spend = spend
        self._rng = rng
        self._drawing = threading.Lock()  # runs come from several threads where there are real ones

    def __repr__(self) -> str:
        return f"<StandInRuntime of speed {self.speed:g}, {self.slowness:g} times as slow>"

    def capability(self) -> Capability:
        """It runs anywhere; see `Runtime.capability`."""
        return Capability("stand-in")

    def describe(self, opening: Opening) -> Described:
        """Open a model file and say what all stand-ins take; see `Runtime.describe`.

        One that cannot be loaded can be described: else nobody could deploy it.
        """
        StandInModel.read(opening.folder / opening.entry)
        return Described(
            LoadedStandIn.inputs, LoadedStandIn.outputs, opening.max_batch_size, opening.execution
        )

    def load(self, opening: Opening) -> LoadedStandIn:
        """Open a model file; see `Runtime.load`."""
        model = StandInModel.read(opening.folder / opening.entry)
        self._spend(model.load_s * self.slowness)
        if model.load_error:
            raise ModelError(model.load_error)
        return LoadedStandIn(self, model)

    def work(self, work_s: float, model_fails: float = 0.0) -> None:
        """Do the work of one request.

        Args:
            work_s: How long it takes on a device of speed 1.
            model_fails: Share of the requests that the model itself fails.

        Raises:
            InferenceFailed: if it is one of those that fail.
        """
        for share in (self.fail_share, model_fails):
            if share > 0:
                with self._drawing:
                    fails = self._rng.random() < share
                if fails:
                    raise InferenceFailed("the stand-in was told to fail")
        self._spend(work_s * self.slowness / self.speed)


class LoadedStandIn:
    """A stand-in model in memory; see `LoadedModel`.

    Attributes:
        inputs: The same for all of them.
        outputs: Likewise.
    """

    inputs = (WORK, WANTED, BODY)
    outputs = (BODY,)
    device = "cpu"

    def __init__(self, runtime: StandInRuntime, model: StandInModel) -> None:
        """Let a runtime run it."""
        self._runtime = runtime
        self._model = model
        here = model.fails_on in ("", runtime.device_class)
        self._fail_share = model.fail_share if here else 0.0

    def __repr__(self) -> str:
        return f"<LoadedStandIn {self._model}>"

    def run(self, inputs: Sequence[Tensor], outputs: Sequence[str]) -> tuple[Tensor, ...]:
        """Spend the work of a request and return its answer, of the wanted length."""
        del outputs  # there is one
        given = {tensor.name: tensor for tensor in inputs}
        work_s = struct.unpack("<d", given[WORK.name].data)[0]
        wanted_bytes = struct.unpack("<q", given[WANTED.name].data)[0]
        if not work_s <= _MAX_WORK_S or not 0 <= wanted_bytes <= _MAX_ANSWER_BYTES:
            raise InvalidRequest(
                f"a stand-in takes {WORK.name} of at most {_MAX_WORK_S:g} and {WANTED.name} of 0 to "
                f"{_MAX_ANSWER_BYTES}, not {work_s} and {wanted_bytes}"
            )
        model = self._model
        asked_s = work_s if work_s > 0 else model.mean_s
        self._runtime.work(asked_s * model.slowness, self._fail_share if work_s > 0 else 0.0)
        mark = hashlib.blake2b(digest_size=8, person=_PERSON)
        mark.update(given[WORK.name].data)
        mark.update(given[BODY.name].data)
        draw = mark.digest()
        if int.from_bytes(draw[:4], "little") < model.differs_share * _SHARES:
            draw = bytes(255 - each for each in draw)
        return (Tensor(BODY.name, BODY.datatype, (1,), _string(draw.hex(), wanted_bytes)),)

    def close(self) -> None:
        """Free nothing: there is nothing."""


def _string(word: str, length: int) -> bytes:
    """Return a string element of so many bytes that repeats a word."""
    text = word.encode() * (length // len(word) + 1)
    return _LENGTH.pack(length) + text[:length]
