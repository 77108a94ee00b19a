from __future__ import annotations

from typing import Any

import pytest

from meshnode.errors import UsageError
from meshnode.models.optimize.planning import Kind, Quantize, Treatment, plan_steps, refusal


def test_pruning_comes_first_and_quantisation_last() -> None:
    wanted = Treatment(quantize=Quantize.STATIC, prune=0.5, graph=True)
    steps = plan_steps(Kind.ONNX, wanted, calibrated=True)
    assert [step["do"] for step in steps] == ["prune", "graph", "static"]


@pytest.mark.parametrize(
    ("kind", "wanted", "reason"),
    [
        (Kind.ONNX, {}, "nothing to do"),
        (Kind.ONNX, {"quantize": Quantize.STATIC}, "needs --calibration"),
        (Kind.TORCHSCRIPT, {"quantize": Quantize.FP16}, "PyTorch ones take dynamic"),
        (Kind.TORCHSCRIPT, {"prune": 0.5}, "cannot change a TorchScript file"),
        (Kind.TORCH_PICKLE, {"graph": True}, "--graph is for ONNX"),
        (Kind.ONNX, {"prune": 1.0}, "no share between 0 and 1"),
        (Kind.ONNX, {"prune": 0.5, "fine_tune": "a.py:b"}, "an ONNX file cannot be trained"),
        (Kind.ONNX, {"prune": 0.5, "schedule": 5}, "name the training with --fine-tune"),
        (Kind.ONNX, {"schedule": 5}, "go with --prune"),
    ],
)
def test_what_cannot_be_done_is_told(kind: Kind, wanted: dict[str, Any], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        plan_steps(kind, Treatment(**wanted), calibrated=False)


def test_a_result_below_the_threshold_is_refused_with_what_can_be_done() -> None:
    assert refusal(0.98, 0.98) == ""
    said = refusal(0.9, 0.98)
    assert "agrees with the original to 90.00%, below the threshold of 98.00%" in said
    assert "--force" in said
