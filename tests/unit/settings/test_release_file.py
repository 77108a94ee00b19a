"""The table `release` of a deployment file: what each strategy makes of it, and every mistake in it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshnode.deployment_file import parse, read_document, read_file, release_plan
from meshnode.deployment_writing import write_toml
from meshnode.errors import ConfigError, InvalidRequest
from meshnode.release_file import RELEASE_KEYS, read_release, release_document
from meshnode.state.release import Gate, Release, Step
from tests.unit.settings.releases import releases

if TYPE_CHECKING:
    from meshnode.deployment_tables import Fault

LEAST = 'name = "digits"\nmodel = "./digits.onnx"\n[release]\n'
ERRORS, MEDIAN, TAIL = Gate("errors", 0.01), Gate("latency_p50", 1.25), Gate("latency_p99", 1.5)
AGREEMENT = Gate("agreement", 0.99)


def read(table: str) -> Release | None:
    (spec,) = parse(LEAST + table, "toml", "f")
    (again,) = parse(write_toml([spec]), "toml", "f")
    assert again == spec
    return spec.release


def told(table: str) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as failed:
        parse(LEAST + table, "toml", "f")
    return tuple(line.removeprefix("f: ") for line in failed.value.lines)


@pytest.mark.parametrize(
    ("table", "release"),
    [
        (
            'strategy = "canary"',
            Release("canary", 0, 0, (Step(0.05), Step(0.2), Step(0.5)), (ERRORS, MEDIAN, TAIL)),
        ),
        (
            'strategy = "blue_green"',
            Release("blue_green", 0, 0, (Step(0.0, 0.0, 0.0, True),), (ERRORS, MEDIAN, TAIL)),
        ),
        (
            'strategy = "shadow"',
            Release(
                "shadow", 0, 0, (Step(0.0, 1.0, 600.0, True),), (ERRORS, MEDIAN, TAIL, AGREEMENT)
            ),
        ),
        (
            'strategy = "ab"',
            Release("ab", 0, 0, (Step(0.5, 0.0, 86_400.0, True),), (ERRORS, MEDIAN, TAIL)),
        ),
        ('strategy = "direct"', None),
    ],
)
def test_each_strategy_is_a_preset_of_steps_and_gates(table: str, release: Release | None) -> None:
    assert read(table) == release


def test_steps_are_percents_or_tables_with_their_own_hold() -> None:
    release = read(
        'strategy = "canary"\nhold_s = 30\nsteps = [0.5, {share = 7, wait = true}, {share = 100, mirror = 10, '
        "hold_s = 5}]"
    )
    assert release is not None
    assert release.steps == (
        Step(0.005, 0.0, 30.0),
        Step(0.07, 0.0, 30.0, True),
        Step(1.0, 0.1, 5.0),
    )
    assert release.gates[-1] == AGREEMENT  # since one step compares


def test_gates_are_those_that_are_named_and_feedback_has_any_other_name() -> None:
    release = read(
        'strategy = "ab"\n[release.gates]\nlatency_p90 = 2\nstars = 0.2\n'
        "clicks = {limit = 3, higher_is_better = false}"
    )
    assert release is not None
    assert release.gates == (
        Gate("latency_p90", 2.0),
        Gate("stars", 0.2),
        Gate("clicks", 3.0, False),
    )
    release = read('strategy = "ab"\ngates = {}')
    assert release is not None
    assert release.gates == ()


def test_a_split_by_header_may_name_the_values_that_get_the_new_version() -> None:
    release = read('strategy = "ab"\nauto = true\nsplit_by = "header:X-Beta"\nonly = ["yes", "1"]')
    assert release is not None
    assert (release.split_by, release.only) == ("header:x-beta", ("yes", "1"))
    assert not release.steps[0].wait


@pytest.mark.parametrize("against", ["labels", "request:decision"])
def test_decisions_that_come_with_requests_or_later_are_compared_without_a_mirror(
    against: str,
) -> None:
    release = read(f'strategy = "canary"\nagainst = "{against}"\ngates = {{agreement = 0.9}}')
    assert release is not None
    assert (release.against, release.gates) == (against, (Gate("agreement", 0.9),))


@given(releases())
def test_every_plan_is_written_and_read_back(release: Release) -> None:
    faults: list[Fault] = []
    assert read_release(release_document(release), faults, ()) == release, faults


def test_every_mistake_is_told_at_once_with_the_nearest_key() -> None:
    assert told(
        'strategy = "canary"\nsteps = [1, {shar = 10, wait = 3}, {share = 600, hold_s = "5"}]\n'
        "duration_s = 7\nmin_request = 7\nconfidence = 0.4\n"
        "[release.gates]\nerors = 0.02\nlatency_p95 = 3\nstars = {limi = 1}\n"
        "errors = {limit = 1, higher_is_better = true}\n"
    ) == (
        "release.min_request: unknown key; did you mean 'min_requests'?",
        "release.confidence: 0.4 (a number) is not a number of 0.5 to 0.9999",
        "release.duration_s: this goes with the strategy shadow or ab; canary has steps, hold_s, split_by",
        "release.steps: step 2: share: this is missing",
        "release.steps: step 2: shar: unknown key; did you mean 'share'?",
        "release.steps: step 2: wait: 3 (a number) is not true or false",
        "release.steps: step 3: share: 600 (a number) is not a number of 0 to 100",
        "release.steps: step 3: hold_s: '5' (a text) is not a number of 0 to 2.592e+06",
        (
            "release.gates.erors: this is too like a metric of the mesh's own to be one of people's feedback; did you mean "
            "'errors'?"
        ),
        (
            "release.gates.latency_p95: this is too like a metric of the mesh's own to be one of people's feedback; did you "
            "mean 'latency_p99'?"
        ),
        "release.gates.stars.limi: unknown key; did you mean 'limit'?",
        "release.gates.stars.limit: this is missing",
        "release.gates.errors.higher_is_better: this goes with metrics of people's feedback",
    )


def test_each_key_is_checked_whatever_is_wrong_with_the_others() -> None:
    lines = told(
        'strategy = "canry"\nsteps = [50, 20, 120]\nhold_s = -1\ntolerence = 1\nonly = ["x"]\n'
        'against = "deployment:a b"\n[release.gates]\nlatency_p99 = 0.5\nagrement = 2\nerrors = "x"\n'
        "stars = {limt = 2}\nlatency_p50 = 0.1\n"
    )
    for said in (
        "release.strategy: 'canry'",
        "release.hold_s: -1 (a number)",
        "release.tolerence: unknown key; did you mean 'tolerance'?",
        "release.against: ",
        "release.steps: step 3: 120 (a number) is not a number of 0 to 100",
        "release: the shares of the steps go down",
        "release: only names values of a header",
        "release.gates.agrement: ",
        "release.gates.errors: 'x' (a text)",
        "release.gates.stars.limt: unknown key",
        "release.gates.stars.limit: this is missing",
        "release: the limit of latency_p99 is 0.5",
        "release: the limit of latency_p50 is 0.1",
    ):
        assert sum(said in line for line in lines) == 1, (said, lines)
    assert not any("needs a step with mirror" in line for line in lines)


def test_what_could_not_be_read_makes_no_further_mistakes() -> None:
    wrongs = {
        'strategy = "ab"\nsplit_by = "cookie"\nonly = ["a"]': "release.split_by: ",
        'strategy = "shadow"\nmirror = "all"\ngates = {agreement = 0.9}': "release.mirror: ",
        'strategy = "canary"\nagainst = "x"\ntolerance = 1': "release.against: ",
        'strategy = "canary"\nsteps = [{share = 5, mirror = "x"}]\ncompare = "top"': "release.steps: ",
    }
    for table, begin in wrongs.items():
        (line,) = told(table)
        assert line.startswith(begin)


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ("", "release.strategy: this is missing; one of canary, blue_green, shadow, ab"),
        ('strategy = "blue-green"', "did you mean 'blue_green'?"),
        ("strategy = 1", "release.strategy: 1 (a number) is not one of"),
        ('strategy = "direct"\nsteps = [5]', "release.steps: a new version that replaces the old one"),
        ('strategy = "canary"\nsteps = []', "these are 0 steps, not a list of 1 to 20 percents"),
        ('strategy = "canary"\nsteps = 5', "release.steps: 5 (a number) is not a list of"),
        ('strategy = "canary"\nsteps = [50, 20]', "release: the shares of the steps go down"),
        ('strategy = "canary"\nsteps = [0.05, 0.5]', "write shares as percents"),
        ('strategy = "canary"\ntolerance = 1', "release.tolerance: nothing is compared without"),
        ('strategy = "canary"\ngates = {agreement = 0.9}', "release: the gate agreement needs a step"),
        ('strategy = "canary"\ngates = 1', "release.gates: this is no table"),
        ('strategy = "canary"\ngates = {latency_p99 = 0.5}', "it is how many times the old version's"),
        ('strategy = "canary"\ngates = {errors = 2}', "it is a share, at most 1"),
        ('strategy = "canary"\ngates = {"" = 2}', "the name of a metric has 1 to 128"),
        ('strategy = "canary"\nsplit_by = "cookie"', "release.split_by: 'cookie' (a text) is not"),
        ('strategy = "ab"\nonly = ["a"]', "release: only names values of a header"),
        ('strategy = "ab"\nsplit_by = "header:x"\nonly = []', "release.only: these are 0 values"),
        ('strategy = "shadow"\nagainst = "ftp://x"', "release.against: 'ftp://x' (a text) is not"),
        ('strategy = "shadow"\nagainst = "http://[x"', "release.against: "),
        ('strategy = "shadow"\nagainst = "deployment:a b"', "release.against: "),
        ('strategy = "shadow"\ncompare = "clos"', "did you mean 'close'?"),
        ('strategy = "ab"\nmirror = 1', "release.mirror: this goes with the strategy blue_green or shadow"),
    ],
)  # fmt: skip
def test_a_mistake_is_told_with_its_key(table: str, said: str) -> None:
    assert any(said in line for line in told(table)), told(table)


def test_a_release_leads_to_one_version() -> None:
    text = 'name = "d"\nmodel = "d"\nversion = [1, 2]\n[release]\nstrategy = "canary"\n'
    _, mistakes = read_file(text, "toml", "f")
    assert mistakes == ["f: version: a release leads to one version: name one, or none"]


def test_a_key_of_the_release_that_stands_at_the_top_is_sent_home() -> None:
    _, mistakes = read_file('name = "d"\nmodel = "d"\nsteps = [5]\n', "toml", "f")
    assert mistakes == ["f: steps: unknown key; it belongs into [release]"]


def test_in_yaml_a_mistake_has_its_line() -> None:
    text = "name: d\nmodel: d\nrelease:\n  strategy: canary\n  steps: [5, 20]\n  hold: 3\n"
    _, mistakes = read_file(text, "yaml", "f")
    assert mistakes == ["f, line 6: release.hold: unknown key; did you mean 'hold_s'?"]


def test_a_table_alone_is_read_as_that_of_a_file() -> None:
    plan = release_plan({"strategy": "canary", "steps": [50]})
    assert plan is not None
    assert plan.steps == (Step(0.5),)
    assert release_plan({"strategy": "direct"}) is None
    with pytest.raises(InvalidRequest, match=r"release\.step: unknown key"):
        release_plan({"strategy": "canary", "step": 5})


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
anything = (
    scalars
    | st.lists(scalars | st.dictionaries(st.text(max_size=5), scalars, max_size=2), max_size=3)
    | st.dictionaries(st.text(max_size=6), scalars, max_size=3)
)


@given(st.dictionaries(st.sampled_from(RELEASE_KEYS), anything, max_size=6), st.booleans())
def test_a_table_of_anything_is_read_or_has_mistakes(
    table: dict[str, object], canary: bool
) -> None:
    if canary:
        table["strategy"] = "canary"
    document = {"name": "d", "model": "d", "release": table}
    spec, faults = read_document(document)
    assert (spec is None) == bool(faults)
