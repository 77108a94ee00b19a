"""docs/simulator.md tells what there is, and its programs run as they stand there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from meshnode.sim import World, Worlds, faults, invariants
from meshnode.sim.virtual.mesh import MAX_NODES

if TYPE_CHECKING:
    import pytest

ROOT = Path(__file__).parents[4]
PAGE = (ROOT / "docs" / "simulator.md").read_text(encoding="utf-8")
PROGRAMS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def test_every_verb_is_told_and_no_other() -> None:
    table = PAGE.partition("## Faults")[2].partition("## Invariants")[0]
    rows = re.findall(r"^\| (`[^|]+) \|", table, re.MULTILINE)
    assert {word.strip("`") for row in rows for word in row.split()} == set(faults.VERBS)


def test_every_invariant_is_told_and_no_other() -> None:
    table = PAGE.partition("## Invariants")[2].partition("## Reports")[0]
    told = re.findall(r"^\| `([a-z-]+)` \|", table, re.MULTILINE)
    assert told == re.findall(r"^\| `([a-z-]+)` \|", invariants.__doc__ or "", re.MULTILINE)


def test_everything_public_of_a_world_is_told() -> None:
    table = PAGE.partition("### Worlds")[2].partition("### Seeds")[0]
    told = set(re.findall(r"`(\w+)", table))
    public = {name for name in vars(World) if not name.startswith("_")} - {"of", "started"}
    assert public <= told, public - told
    assert f"up to {MAX_NODES} " in PAGE


def test_the_worked_example_stands_there_as_it_is_tested() -> None:
    folder = ROOT / "examples" / "region_loss"
    for name in ("shop.py", "test_shop.py"):
        assert f"# {name}\n{(folder / name).read_text(encoding='utf-8')}" in PROGRAMS


def test_the_other_programs_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    others = [program for program in PROGRAMS if "shop" not in program]
    assert len(others) == 1
    for program in others:
        exec(compile(program, "docs/simulator.md", "exec"), {"__name__": "page"})
    assert (tmp_path / "out.html").stat().st_size > 10_000


def test_links_lead_to_files() -> None:
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", PAGE):
        assert (ROOT / "docs" / target).exists(), target


def test_the_type_of_the_fixture_is_public() -> None:
    assert Worlds(3, "again").made == []
