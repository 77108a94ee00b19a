from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from meshnode.models.optimize.pruning import MagnitudePruner, PolynomialSchedule, prune_array


@given(st.integers(1, 200), st.floats(0, 0.99), st.integers(0, 2**32 - 1))
def test_the_smallest_weights_become_zero_and_no_others(size: int, share: float, seed: int) -> None:
    weights = np.random.default_rng(seed).standard_normal(size)
    pruned = prune_array(weights, share)
    gone = int(size * share)
    assert np.count_nonzero(pruned == 0) == gone
    kept = pruned != 0
    assert np.array_equal(pruned[kept], weights[kept])
    if 0 < gone < size:
        assert np.abs(weights[~kept]).max() <= np.abs(weights[kept]).min()


def test_equal_weights_do_not_all_go() -> None:
    assert np.count_nonzero(prune_array(np.ones((10, 10)), 0.3)) == 70


def test_the_schedule_is_the_papers_polynomial() -> None:
    schedule = PolynomialSchedule(final=0.8, initial=0.2, begin=10, end=110, frequency=5)
    assert [round(schedule.share(step), 6) for step in (9, 10, 60, 110, 1000)] == [
        0.0, 0.2, 0.725, 0.8, 0.8,
    ]  # fmt: skip
    shares = [schedule.share(step) for step in range(10, 111)]
    assert shares == sorted(shares)
    assert [step for step in range(120) if schedule.is_due(step)][:3] == [10, 15, 20]
    assert schedule.is_due(110)
    assert not schedule.is_due(111)


@pytest.mark.parametrize(
    "wrong", [{"final": 1.0}, {"final": 0.5, "initial": 0.6}, {"final": 0.5, "begin": 9, "end": 9}]
)
def test_numbers_that_make_no_schedule_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be"):
        PolynomialSchedule(**wrong)  # type: ignore[arg-type]


def test_a_module_keeps_its_zeros_while_it_is_trained() -> None:
    """Weights that an optimizer moves away from zero are put back; biases are left alone."""
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2))
    optimizer = torch.optim.SGD(module.parameters(), 0.1)
    pruner = MagnitudePruner(module, PolynomialSchedule(final=0.5, begin=2, end=12, frequency=2))
    rows, labels = torch.randn(64, 8), torch.randint(0, 2, (64,))
    seen = []
    for step in range(20):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(module(rows), labels).backward()
        optimizer.step()
        pruner.step(step)
        seen.append(pruner.sparsity())
    assert seen == sorted(seen)
    assert seen[0] == 0
    assert seen[-1] == pytest.approx(0.5, abs=0.01)
    assert all(int((each == 0).sum()) == 0 for each in module.parameters() if each.ndim == 1)
    assert repr(pruner) == "<MagnitudePruner 2 parameters, 50.0% zero>"
