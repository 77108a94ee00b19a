"""The process in which `LitertRuntime` tries a file out: takes a `.tflite` file and runs it once on zeros.

A process of its own, so that a file which makes the interpreter crash costs this process only. It ends
with 0 if the file can be opened (a run that fails in an orderly way proves nothing), with 1 and a reason
on its standard output if it cannot, and with a signal if it crashes.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path

from meshnode.errors import ModelError
from meshnode.limits import MAX_TRIAL_INPUT_BYTES
from meshnode.models.runtimes.base import Opening
from meshnode.models.runtimes.litert import Content
from meshnode.models.runtimes.litert_session import LitertModel
from meshnode.types import DataType, Tensor


def main(arguments: list[str]) -> int:
    """Try the file on the standard input out, of this name, and return the exit code."""
    content = Content(sys.stdin.buffer.read())
    try:
        model = LitertModel(content, Opening(folder=Path(), entry=arguments[0]))
    except ModelError as error:
        sys.stdout.write(str(error))
        return 1
    zeros = []
    for spec in model.inputs:
        shape = tuple(max(1, size) for size in spec.shape)
        tensor = Tensor(spec.name, spec.datatype, shape, b"")
        each_bytes = 4 if spec.datatype is DataType.BYTES else spec.datatype.size_bytes or 1
        if tensor.elements * each_bytes > MAX_TRIAL_INPUT_BYTES:
            return 0
        data = bytes(tensor.elements * each_bytes)
        zeros.append(Tensor(spec.name, spec.datatype, shape, data))
    with suppress(Exception):
        model.run(zeros, ())
    return 0
