"""The pytest plugin: worlds for tests, seeds, and what a failure tells."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

# An inner session forgets the modules that it was first to import; some of these cannot be imported twice.
import meshnode.sim.api
import meshnode.sim.core_stage
import meshnode.sim.running.timeline
import meshnode.sim.virtual.stage  # noqa: F401

if TYPE_CHECKING:
    from collections.abc import Callable

pytest_plugins = ["pytester"]

ROOT = Path(__file__).parents[4]
PLUGIN = "meshnode.sim.pytest_plugin"


@pytest.fixture
def inner(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., pytest.RunResult]:
    """Run a session of its own with this plugin and no other."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.delenv("MESHNODE_SIM_SEED", raising=False)

    def run(test: str, *options: str) -> pytest.RunResult:
        head = "import pytest\nfrom meshnode.sim import Model, Region, faults\n\n"
        pytester.makepyfile(head + test)
        return pytester.runpytest_inprocess("-p", PLUGIN, "--strict-markers", *options)

    return run


FAILING = """
    def test_of_a_crash(mesh_world):
        world = mesh_world([Region("eu-west", nodes=2)], [Model(name="m")], depth="A").start()
        world.apply(faults.Crash(nodes=("eu-west-2",)))
        world.run_for(5.0)
        assert world.call("m", via="eu-west-2").code == "ok"
"""


def unindented(text: str) -> str:
    return re.sub(r"^    ", "", text, flags=re.MULTILINE)


def test_a_failure_tells_the_world_its_timeline_and_the_one_command(
    inner: Callable[..., pytest.RunResult],
) -> None:
    result = inner(unindented(FAILING), "--mesh-seed", "5")
    result.assert_outcomes(failed=1)
    name = "test_a_failure_tells_the_world_its_timeline_and_the_one_command.py"
    result.stdout.fnmatch_lines(
        [
            "*meshnode simulator*",
            "*seed 5, depth A, at *",
            f"replay: pytest {name}::test_of_a_crash --mesh-seed 5",
            "trace: *",
            "*FAULT*crash eu-west-2*",
            "*suspects eu-west-2*",
        ]
    )


def test_a_report_about_each_world_of_a_failed_test_is_written_where_that_is_asked(
    inner: Callable[..., pytest.RunResult], tmp_path: Path
) -> None:
    result = inner(unindented(FAILING), "--mesh-report", str(tmp_path / "reports"))
    result.stdout.fnmatch_lines(["report: *test-of-a-crash-1.html"])
    (report,) = (tmp_path / "reports").iterdir()
    assert "test_of_a_crash --mesh-seed 1" in report.read_text(encoding="utf-8")


def test_the_command_can_be_typed_in_the_folder_where_the_session_was_started(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    below = pytester.mkdir("below")
    pytester.makeini("[pytest]\n")
    monkeypatch.chdir(below)
    world = "from meshnode.sim import Region\n\ndef test_it(mesh_world):\n"
    world += "    mesh_world([Region('eu-west')], depth='A')\n    assert 0\n"
    (below / "test_there.py").write_text(world)
    result = pytester.runpytest_inprocess("-p", PLUGIN, "test_there.py")
    assert "rootdir: " + str(pytester.path) in result.stdout.str()
    result.stdout.fnmatch_lines(["replay: pytest test_there.py::test_it --mesh-seed 1"])


@pytest.mark.parametrize(
    "fixture",
    ["assert 0, 'before'\n    yield", "yield\n    assert 0, 'after'"],
)
def test_a_failure_of_a_fixture_tells_the_world_too(
    inner: Callable[..., pytest.RunResult], tmp_path: Path, fixture: str
) -> None:
    test = f"""
@pytest.fixture
def shop(mesh_world):
    world = mesh_world([Region("eu-west", nodes=2)], depth="A").start()
    world.apply(faults.Crash(nodes=("eu-west-2",)))
    world.run_for(1.0)
    {fixture}

def test_of_it(shop):
    pass
"""
    result = inner(test, "--mesh-seed", "5", "--mesh-report", str(tmp_path))
    assert result.parseoutcomes()["errors"] == 1
    result.stdout.fnmatch_lines(
        [
            "*meshnode simulator*",
            "replay: pytest *::test_of_it --mesh-seed 5",
            "*FAULT*crash eu-west-2*",
        ]
    )
    assert len([*tmp_path.glob("*test-of-it-1.html")]) == 1


SEEDS = """
@pytest.mark.mesh_seeds(3)
def test_of_seeds(mesh_world, mesh_seed):
    world = mesh_world([Region("eu-west")], depth="A")
    assert world.seed == mesh_seed
    assert mesh_seed != 2

def test_without_the_mark(mesh_seed):
    print("plain", mesh_seed)

def test_of_nothing():
    pass
"""


def test_a_mark_runs_a_test_with_many_seeds_and_an_option_with_one(
    inner: Callable[..., pytest.RunResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    result = inner(SEEDS, "-s")
    result.assert_outcomes(passed=4, failed=1)
    result.stdout.fnmatch_lines(["*test_of_seeds?seed-2?*"])
    result.stdout.fnmatch_lines(["*plain 1*"])
    one = inner(SEEDS, "-s", "--mesh-seed", "9")
    one.assert_outcomes(passed=3)
    one.stdout.fnmatch_lines(["*plain 9*"])
    monkeypatch.setenv("MESHNODE_SIM_SEED", "2")
    inner(SEEDS).assert_outcomes(passed=2, failed=1)
    inner(SEEDS, "--mesh-seed", "3").assert_outcomes(passed=3)
    monkeypatch.setenv("MESHNODE_SIM_SEED", "many")
    inner(SEEDS).stderr.fnmatch_lines(["*MESHNODE_SIM_SEED must be a whole number, not 'many'*"])


def test_a_mark_for_a_test_that_takes_no_seed_is_refused(
    inner: Callable[..., pytest.RunResult],
) -> None:
    result = inner("@pytest.mark.mesh_seeds(3)\ndef test_it():\n    pass\n")
    result.stdout.fnmatch_lines(["*mesh_seeds is for tests that take mesh_world or mesh_seed*"])
    assert "passed" not in result.parseoutcomes()


@pytest.mark.parametrize("seed", ["-1", str(2**63)])
def test_a_seed_that_no_world_may_have_is_refused_before_any_test_runs(
    inner: Callable[..., pytest.RunResult], seed: str
) -> None:
    result = inner(SEEDS, f"--mesh-seed={seed}")
    result.stderr.fnmatch_lines([f"*--mesh-seed must be 0 to *, not {seed}*"])


def test_a_mark_without_a_number_of_seeds_is_refused(
    inner: Callable[..., pytest.RunResult],
) -> None:
    result = inner("@pytest.mark.mesh_seeds('many')\ndef test_it(mesh_world):\n    pass\n")
    result.stdout.fnmatch_lines(["*mesh_seeds takes one number of seeds*"])


def test_worlds_are_closed_after_the_test_and_can_be_made_of_scenarios(
    inner: Callable[..., pytest.RunResult],
) -> None:
    test = """
made = []

def test_first(mesh_world):
    made.append(mesh_world.of("region-loss", depth="A"))
    made.append(mesh_world([Region("eu-west")], depth="A").start())

def test_second():
    assert ["closed" in repr(world) for world in made] == [True, True]
    assert made[0].scenario.name == "region-loss"
"""
    inner(test).assert_outcomes(passed=2)


def test_the_plugin_is_declared_and_imports_nothing_of_the_simulator_before_it_is_asked() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert declared["project"]["entry-points"]["pytest11"] == {"meshnode": PLUGIN}
    probe = (
        f"import sys, {PLUGIN}; found = [n for n in sys.modules if n.startswith('meshnode')]; "
        "print(sorted(found)); assert not {'aiohttp', 'asyncio', 'numpy', 'onnxruntime'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", probe], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"['meshnode', 'meshnode.sim', '{PLUGIN}']"


def test_a_session_without_the_plugin_has_none_of_it(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    pytester.makepyfile("def test_it(mesh_world):\n    pass\n")
    result = pytester.runpytest_inprocess("-p", "no:meshnode")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*fixture 'mesh_world' not found*"])


def test_the_worked_example_passes_as_it_stands(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    example = ROOT / "examples" / "region_loss" / "test_shop.py"
    pytester.makepyfile(test_shop=example.read_text(encoding="utf-8"))
    warnings = ("-Werror", "-Wignore::pytest.PytestAssertRewriteWarning")
    result = pytester.runpytest_inprocess("-p", PLUGIN, "--strict-markers", *warnings)
    result.assert_outcomes(passed=3)
