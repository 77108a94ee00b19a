"""The task `convert` of a child process: calls the step of the model's framework.

A step is a module with `run(job, progress) -> Converted`. It loads the original, writes the result to
`job["out"]`, and lets the original answer the sample.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from meshnode.models.convert.samples import save_arrays

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from meshnode.models.convert.samples import InputForm

    Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Converted:
    """What a step yields.

    Attributes:
        forms: The inputs of the result.
        sample: Arrays by input.
        expected: The original's answers to them, by output, in the result's order.
        notes: Sentences that the caller should read.
    """

    forms: tuple[InputForm, ...]
    sample: Mapping[str, Any]
    expected: Mapping[str, Any]
    notes: tuple[str, ...] = ()


def run(job: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
    """Convert, and keep the original's answers for the comparison."""
    step = importlib.import_module(f"meshnode.models.convert.{job['step']}")
    done: Converted = step.run(job, progress)
    names = [form.name for form in done.forms]
    save_arrays(
        job["expected"], [done.sample[name] for name in names], list(done.expected.values())
    )
    return {
        "inputs": [[form.name, form.datatype, list(form.shape)] for form in done.forms],
        "outputs": list(done.expected),
        "notes": list(done.notes),
    }
