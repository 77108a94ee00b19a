"""The task `optimize` of a child process: one step after the other, from file to file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    Progress = Callable[[str], None]

_WORDS: Final = {
    "prune": "pruning the smallest weights",
    "graph": "simplifying the graph",
    "dynamic": "quantising the weights to int8",
    "static": "quantising weights and activations to int8",
    "fp16": "halving the numbers to 16 bits",
}


def run(job: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
    """Do `job["steps"]` to `job["model"]`, and write the result to `job["out"]`.

    Returns:
        `sparsity` (share of zeros among the weights, if it was pruned) and `notes`.
    """
    if job["kind"] == "onnx":
        return _optimize_onnx(job, progress)
    from meshnode.models.optimize.torch_steps import optimize_torch

    return optimize_torch(job, progress)


def _optimize_onnx(job: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
    from meshnode.models.optimize.onnx_steps import apply

    told: dict[str, Any] = {"notes": []}
    current = Path(job["model"])
    for at, step in enumerate(job["steps"]):
        progress(_WORDS[step["do"]])
        last = at == len(job["steps"]) - 1
        following = Path(job["out"]) if last else Path(job["out"]).with_name(f"step{at}.onnx")
        found = apply(step, current, following, job.get("calibration"))
        told["notes"] += found.pop("notes", [])
        told.update(found)
        current = following
    return told
