"""docs/releases.md: its examples are read as they stand, and it tells of every key, gate and verb."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pytest

from meshnode.deployment_file import parse
from meshnode.limits import MAX_RELEASE_STEPS
from meshnode.release_file import RELEASE_KEYS
from meshnode.state.release import BUILT_IN_METRICS, STRATEGIES, Release, Verb

PAGE = (Path(__file__).parents[3] / "docs" / "releases.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
ROWS = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|", PAGE, re.MULTILINE)
TOLD = {word for row in ROWS for word in re.findall(r"`(\w+)`", row)}


def release_of(text: str) -> Release:
    (spec,) = parse(text, "toml", "the page")
    assert spec.release is not None
    return spec.release


@pytest.mark.parametrize("text", EXAMPLES)
def test_every_example_is_a_deployment_file_with_a_release(text: str) -> None:
    assert release_of(text).steps


def test_every_strategy_has_an_example() -> None:
    assert {release_of(text).strategy for text in EXAMPLES} == {*STRATEGIES}


def test_every_key_gate_and_verb_is_told_and_no_other() -> None:
    assert {*RELEASE_KEYS, *BUILT_IN_METRICS, *get_args(Verb)} == TOLD


def test_the_defaults_are_those_of_the_code() -> None:
    assert f"at most {MAX_RELEASE_STEPS}, none" in PAGE
    usual = {
        name: release_of(f'name="a"\nmodel="a"\nrelease={{strategy="{name}"}}')
        for name in STRATEGIES
    }
    assert [step.share for step in usual["canary"].steps] == [0.05, 0.2, 0.5]
    holds = [usual[name].steps[0].hold_s for name in ("canary", "blue_green", "shadow", "ab")]
    assert holds == [60, 0, 600, 86400]
    assert "| 60, 0 |" in PAGE
    assert "| 600, 86400 |" in PAGE
    gates = ", ".join(f"`{gate.metric} = {gate.limit:g}`" for gate in usual["canary"].gates)
    assert f"{gates}, and with `mirror` `agreement = 0.99`" in PAGE
    for key in ("min_requests", "max_wait_s", "keep_s", "tolerance", "confidence"):
        assert re.search(
            rf"^\| `{key}` \|.*\| {getattr(usual['ab'], key):g} \|$", PAGE, re.MULTILINE
        )
