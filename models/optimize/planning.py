"""What can be done to which model, and whether the result may be published."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from meshnode.errors import UsageError


class Kind(StrEnum):
    """What a model to optimise is."""

    ONNX = "onnx"
    TORCHSCRIPT = "torchscript"
    TORCH_PICKLE = "torch"


class Quantize(StrEnum):
    """How a model's numbers are to be stored.

    DYNAMIC: weights as int8, activations quantised while it runs. STATIC: both as int8, by the ranges seen
    in a calibration set. FP16: weights and arithmetic in 16-bit floats.
    """

    DYNAMIC = "dynamic"
    STATIC = "static"
    FP16 = "fp16"


@dataclass(frozen=True, slots=True)
class Treatment:
    """What is to be done to a model.

    Attributes:
        quantize: Storage of its numbers; None leaves them.
        prune: Share of the weights that become zero, 0 to 1; None leaves them.
        schedule: Steps in which that share is reached.
        fine_tune: `FILE.py:FUNCTION` that trains a little after each step.
        graph: Whether its graph is simplified and its operators fused.
    """

    quantize: Quantize | None = None
    prune: float | None = None
    schedule: int = 1
    fine_tune: str | None = None
    graph: bool = False


DEFAULT_THRESHOLD: Final = 0.98
"""Agreement below which a result is refused: two answers in a hundred may differ."""


def plan_steps(kind: Kind, wanted: Treatment, *, calibrated: bool) -> list[dict[str, Any]]:
    """Return the steps in the order in which they are done.

    Pruning comes first, since it chooses among the weights as they were trained; quantisation last, since
    what it writes nothing else reads.

    Args:
        kind: What the model is.
        wanted: What is asked for.
        calibrated: Whether there is a calibration set.

    Raises:
        UsageError: if something is not possible, or nothing is asked for.
    """
    _check_pruning(kind, wanted)
    steps: list[dict[str, Any]] = []
    if wanted.prune is not None:
        steps.append(
            {
                "do": "prune",
                "share": wanted.prune,
                "steps": wanted.schedule,
                "fine_tune": wanted.fine_tune,
            }
        )
    if wanted.graph:
        if kind is not Kind.ONNX:
            raise UsageError("--graph is for ONNX models; convert it first: meshnode convert MODEL")
        steps.append({"do": "graph"})
    if wanted.quantize is not None:
        if kind is not Kind.ONNX and wanted.quantize is not Quantize.DYNAMIC:
            raise UsageError(
                f"--quantize {wanted.quantize} is for ONNX models; PyTorch ones take dynamic, or can be "
                "converted first: meshnode convert MODEL"
            )
        if wanted.quantize is Quantize.STATIC and not calibrated:
            raise UsageError(
                "--quantize static needs --calibration FILE.npz: real inputs, a hundred or more, that show "
                "in which range the numbers inside the model lie"
            )
        steps.append({"do": str(wanted.quantize)})
    if not steps:
        raise UsageError(
            "nothing to do; ask for --quantize dynamic, static or fp16, --prune SHARE, or --graph"
        )
    return steps


def _check_pruning(kind: Kind, wanted: Treatment) -> None:
    if wanted.prune is not None:
        if not 0 < wanted.prune < 1:
            raise UsageError(f"--prune {wanted.prune:g} is no share between 0 and 1, such as 0.5")
        if kind is Kind.TORCHSCRIPT:
            raise UsageError(
                "--prune cannot change a TorchScript file; give the pickled module, or an ONNX file"
            )
    elif wanted.fine_tune is not None or wanted.schedule != 1:
        raise UsageError("--schedule and --fine-tune go with --prune SHARE")
    if wanted.fine_tune is not None and kind is not Kind.TORCH_PICKLE:
        raise UsageError(
            "--fine-tune trains a pickled PyTorch module; an ONNX file cannot be trained"
        )
    if wanted.schedule != 1 and wanted.fine_tune is None:
        raise UsageError(
            "--schedule prunes in steps with training between them; name the training with --fine-tune "
            "FILE.py:FUNCTION, or leave it out"
        )


def refusal(score: float, threshold: float) -> str:
    """Return why a result may not be published; empty if it may."""
    if score >= threshold:
        return ""
    return (
        f"the result agrees with the original to {score:.2%}, below the threshold of {threshold:.2%}; "
        "it was not written. Take a gentler step (fp16, or static with a better calibration set), lower "
        "--threshold, or add --force"
    )
