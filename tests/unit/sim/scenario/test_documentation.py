"""docs/scenarios.md says what is so; docs/scenario-keys.md is generated, and compared in tests/unit/docs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from meshnode.sim.faults import VERBS
from meshnode.sim.scenario import reference
from meshnode.sim.scenario.library import library
from meshnode.sim.scenario.reading import parse, read

PAGE = (Path(__file__).parents[4] / "docs" / "scenarios.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def test_the_example_is_a_scenario() -> None:
    example, release = blocks("toml")
    assert parse(example, "docs/scenarios.md").name == "two-shops"
    with_release = parse(f"{example}\n{release}", "docs/scenarios.md")
    assert with_release.faults[-1].verb == "order-release"


def test_the_program_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (program,) = blocks("python")
    exec(compile(program, "docs/scenarios.md", "exec"), {})  # it asserts that its scenario holds
    assert parse(capsys.readouterr().out, "printed").name == "one-of-three"


def test_the_page_names_every_verb_and_every_shape() -> None:
    assert [verb for verb in VERBS if f"`{verb}`" not in PAGE] == []
    shapes = ("poisson", "constant", "bursts", "ramp", "daily", "trace")
    assert all(f"| `{shape}` |" in PAGE for shape in shapes)


def test_the_page_lists_the_library_with_its_depths() -> None:
    listed = dict(re.findall(r"^\| `([\w-]+)` \| ([ABC]) \|", PAGE, re.MULTILINE))
    assert listed == {name: read(name).depth for name in library()}


@pytest.mark.parametrize(("title", "part"), reference.SECTIONS)
def test_every_key_has_a_meaning(title: str, part: type) -> None:
    assert [row.name for row in reference.keys(part) if not row.meaning] == []


def test_every_verb_has_a_meaning() -> None:
    rows = list(reference.verbs())
    assert [row.verb for row in rows] == [*VERBS]
    assert all(row.meaning.endswith(".") for row in rows)
