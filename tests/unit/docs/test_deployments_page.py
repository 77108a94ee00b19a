"""docs/deployments.md: its examples are read as they stand, and it tells of every key."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from meshnode.deployment_file import KEYS, parse
from meshnode.limits import MAX_FORMER_DEPLOYMENTS, MAX_REMOVED_DEPLOYMENTS

PAGE = (Path(__file__).parents[3] / "docs" / "deployments.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```(toml|yaml)\n(.*?)```", PAGE, re.DOTALL)


def test_there_are_examples_in_both_formats() -> None:
    assert {kind for kind, _ in EXAMPLES} == {"toml", "yaml"}


@pytest.mark.parametrize(("kind", "text"), EXAMPLES)
def test_every_example_is_a_deployment_file(kind: str, text: str) -> None:
    assert parse(text, "toml" if kind == "toml" else "yaml", "the page")


def test_every_key_is_told() -> None:
    told = set(re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE))
    own = {key for key in KEYS if "." not in key} | {"where", "resources", "autoscaling", "release"}
    below = {key.partition(".")[2] for key in KEYS if key.startswith("where.")}
    assert told == own | below


def test_the_bounds_are_those_of_the_code() -> None:
    assert f"| {MAX_FORMER_DEPLOYMENTS}; the oldest" in PAGE
    assert f"the {MAX_REMOVED_DEPLOYMENTS} that were deleted last" in PAGE
