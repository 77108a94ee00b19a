"""docs/conformance.md is made from the tests of tests/conformance, and each of those is on it."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Literal

import pytest

from tests.conformance.table import DIALECTS, conforms, is_left_out
from tests.unit.docs.test_reference import GENERATOR

FOLDER = Path(__file__).parents[2] / "conformance"


def _tests(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {
        f"{path.name}::{node.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.name.startswith("test_")
        and not any("conforms(" in ast.unparse(each) for each in node.decorator_list)
    }


def test_every_test_of_conformance_says_what_it_shows() -> None:
    assert not {test for path in FOLDER.glob("test_*.py") for test in _tests(path)}


def test_every_feature_belongs_to_a_dialect_that_is_known() -> None:
    shown = GENERATOR.shown_features()
    assert {each.dialect for each in shown} <= set(DIALECTS)
    assert set(GENERATOR._judges()) == set(DIALECTS)


@pytest.mark.parametrize(
    ("outcome", "environment", "fails"),
    [
        ("skipped", {"CI": "true"}, True),
        ("skipped", {}, False),
        ("skipped", {"CI": ""}, False),
        ("passed", {"CI": "true"}, False),
    ],
)
def test_a_line_that_nothing_shows_fails_in_ci(
    outcome: Literal["passed", "skipped"], environment: dict[str, str], fails: bool
) -> None:
    report = pytest.TestReport("t.py::t", ("t.py", 1, "t"), {}, outcome, None, "call")
    assert is_left_out(report, environment) is fails


def test_the_page_says_yes_and_no(tmp_path: Path) -> None:
    (tmp_path / "test_a.py").write_text(
        "@conforms('OpenAI', 'chat')\n"
        "def test_a(): ...\n"
        "@conforms('OpenAI', 'tools', supported=False)\n"
        "@conforms('OpenAI', 'names')\n"
        "@pytest.mark.slow\n"
        "async def test_b(): ...\n",
        encoding="utf-8",
    )
    assert [tuple(each) for each in GENERATOR.shown_features(tmp_path)] == [
        ("OpenAI", "chat", True, "test_a.py::test_a"),
        ("OpenAI", "names", True, "test_a.py::test_b"),
        ("OpenAI", "tools", False, "test_a.py::test_b"),
    ]


@pytest.mark.parametrize(
    "decorators",
    [
        "@conforms('OpenAI', 'chat')\ndef test_a(): ...\n@conforms('OpenAI', 'chat', supported=False)",
        "@conforms('OpenAI', NAME)",
    ],
)
def test_contradictions_and_what_is_no_literal_are_told(tmp_path: Path, decorators: str) -> None:
    text = f"{decorators}\ndef test_b(): ...\n"
    (tmp_path / "test_a.py").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"contradict|malformed"):
        GENERATOR.shown_features(tmp_path)


def test_a_dialect_that_is_not_known_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match="no dialect"):
        conforms("Nonsense", "x")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="name the feature"):
        conforms("OpenAI", " ")
