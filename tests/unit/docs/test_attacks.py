"""docs/attacks.md names tests that exist and metrics that are exported."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from meshnode import metric_catalogue
from meshnode.metric_catalogue import MetricSpec

TESTS = Path(__file__).parents[2]
PAGE = (TESTS.parent / "docs" / "attacks.md").read_text(encoding="utf-8")
ROWS = [line for line in PAGE.splitlines() if line.startswith("| ") and "::test_" in line]


def _named_tests(row: str) -> list[tuple[str, str]]:
    """Return (file, test) of a row; a name without a file belongs to the file before it."""
    named = []
    file = ""
    for given, test in re.findall(r"`([\w/]*(?:\.py)?)::(test_\w+)`", row):
        file = given or file
        named.append((file, test))
    return named


def _tests_of(file: str) -> set[str]:
    tree = ast.parse((TESTS / file).read_text(encoding="utf-8"))
    return {
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }


def test_every_test_named_on_the_page_exists() -> None:
    named = [each for row in ROWS for each in _named_tests(row)]
    assert len(named) > 60
    missing = [f"{file}::{test}" for file, test in named if test not in _tests_of(file)]
    assert not missing


def test_every_metric_named_on_the_page_is_exported() -> None:
    exported = {
        spec.name for spec in vars(metric_catalogue).values() if isinstance(spec, MetricSpec)
    }
    named = set(re.findall(r"`(meshnode_[a-z_]+)", PAGE))
    assert len(named) > 8
    assert named <= exported


def test_every_file_of_attacks_is_on_the_page() -> None:
    files = {f"attacks/{path.name}" for path in (TESTS / "attacks").glob("test_*.py")}
    assert files <= set(re.findall(r"attacks/test_\w+\.py", PAGE))
