from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from meshnode.errors import ConfigError
from meshnode.limits import (
    MAX_SCENARIO_BYTES,
    MAX_SCENARIO_MISTAKES,
    MAX_SCENARIO_MISTAKES_SOUGHT,
    MAX_TRACE_ARRIVALS,
    MAX_TRACE_BYTES,
)
from meshnode.sim.faults import VERBS, Release
from meshnode.sim.running.result import METRICS
from meshnode.sim.running.wording import fault_text
from meshnode.sim.scenario import checks, shapes, traces
from meshnode.sim.scenario.library import library
from meshnode.sim.scenario.model import Arrival, Nodes, Place, Scenario
from meshnode.sim.scenario.reading import parse, path_of, read

if TYPE_CHECKING:
    from pathlib import Path

GOOD = """\
name = "good"
duration_s = 60

[regions]
eu-west = {}
us-east = {}

[[nodes]]
region = "eu-west"
count = 3
name = "eu"

[[nodes]]
region = "us-east"
device = "laptop"
name = "us"
gateway = false

[[models]]
name = "digits"

[[load]]
model = "digits"
"""


def told(text: str) -> list[str]:
    """Return what is said of a document, line by line, without the name of the file."""
    with pytest.raises(ConfigError) as caught:
        parse(text, "a.toml")
    lines = str(caught.value).splitlines()
    assert all(line.startswith("a.toml:") for line in lines)
    return [line.removeprefix("a.toml:") for line in lines]


def told_of(*more: str, good: str = GOOD) -> str:
    """Return the one thing that is said of the good document with something appended."""
    (only,) = told(good + "\n".join(more))
    return only


def test_a_good_document_reads_as_what_it_says() -> None:
    scenario = parse(GOOD, "a.toml")
    assert scenario.nodes[0] == Nodes(region="eu-west", count=3, name="eu")
    assert scenario.load[0].rate_per_s == 10.0


def test_whole_numbers_are_good_for_numbers() -> None:
    scenario = parse(GOOD + "rate_per_s = 7\n", "a.toml")
    assert scenario.load[0].rate_per_s == 7.0
    assert isinstance(scenario.load[0].rate_per_s, float)


def test_text_that_is_no_toml_is_told_with_its_line() -> None:
    assert told("name = 'a'\nregions = [\n")[0].startswith("3: this is not TOML: invalid value")
    assert told("name = \nregions = 1\n")[0].startswith("1: this is not TOML: ")
    assert told("a = 1\na = 2\n")[0].startswith("2: this is not TOML: cannot overwrite a value")


def test_deep_nesting_is_refused() -> None:
    with pytest.raises(ConfigError, match="nested too deeply"):
        parse("a = " + "[" * 50_000, "a.toml")


def test_an_unknown_key_is_told_with_the_nearest_one() -> None:
    text = GOOD.replace("count = 3", "cuont = 3")
    assert told(text) == [
        (
            "10: nodes[0].cuont: there is no key 'cuont'; did you mean 'count'? "
            "known: count, region, device, name, gateway, nat"
        )
    ]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("name = 7", "it is a whole number, 7; it must be 1 to 63 letters, digits"),
        ("name = 'a b'", "it is a text, 'a b'; it must be 1 to 63 letters, digits"),
        ("name = ''", "it is a text, ''; it must be 1 to 63 letters"),
        ("name = 'a\u00e4'", "it must be 1 to 63 letters"),
        (f"name = '{'a' * 64}'", "it has 64 characters; at most 63 are allowed"),
        ("depth = 'D'", "it is 'D'; allowed: 'A', 'B', 'C'"),
        ("depth = ['A']", "it is ['A']; allowed: 'A', 'B', 'C'"),
        ("seed = -1", "it is -1; it must be at least 0 and at most"),
        ("seed = 1.5", "it is a number, 1.5; it must be a whole number at least 0"),
        ("seed = true", "it is a truth value, true; it must be a whole number"),
        ("duration_s = 0", "it is 0; it must be above 0 and at most 604,800"),
        ("duration_s = 1e9", "it must be above 0 and at most 604,800"),
        ("duration_s = nan", "it must be finite"),
        ("duration_s = '60'", "it is a text, '60'; it must be a number above 0"),
        ("duration_s = 2026-01-01", "it is a date or time, 2026-01-01; it must be a number"),
        ("title = 3", "it must be a text in quotation marks"),
        ("regions = 3", "it must be tables by name, each of a table with at, place"),
        ("network = { loss = 2 }", "it is 2; it must be at least 0 and at most 1"),
        ("network = { loss = -1e999 }", "it must be finite"),
        (f"network = {{ near_rtt_ms = 1{'0' * 400} }}", "it must be above 0"),
        ("nodes = 'all'", "it must be a list, each of a table with region, device, count"),
        ("models = [ 'digits' ]", "it must be a table with name, service, replicas"),
    ],
)  # fmt: skip
def test_a_value_of_the_wrong_kind_or_size_is_told_with_what_is_allowed(
    line: str, said: str
) -> None:
    key = line.partition(" ")[0]
    kept = [each for each in GOOD.splitlines() if not each.startswith(f"{key} =")]
    found = told("\n".join([line, *kept[:2]]) + "\n")
    assert any(each.startswith(f"1: {key}") and said in each for each in found), found


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (
            "[[faults]]\nverb = 'crahs'\nnodes = ['all']",
            "25: faults[0].verb: there is no verb 'crahs'; did you mean 'crash'? known: crash, ",
        ),
        ("[[faults]]\nnodes = ['all']", "24: faults[0]: the key 'verb' is missing; it is one of crash"),
        ("[[faults]]\nverb = 3", "25: faults[0].verb: there is no verb 3; known: crash, power-off"),
        ("[[faults]]\nverb = 'crash'", "24: faults[0]: the key 'nodes' is missing; it must be a list"),
        (
            "[[faults]]\nverb = 'crash'\nnodes = 'eu-1'",
            "26: faults[0].nodes: it is a text, 'eu-1'; it must be a list of texts, such as [\"all\"]",
        ),
        (
            "[[faults]]\nverb = 'loss'\nnodes = ['all']\nshare = 1.5",
            "27: faults[0].share: it is 1.5; it must be at least 0 and at most 1",
        ),
        (
            "[[faults]]\nverb = 'crash'\nshare = 1\nnodes = ['all']",
            "26: faults[0].share: there is no key 'share'; known: at_s, for_s, nodes, torn",
        ),
        (
            "[[faults]]\nverb = 'crash'\nnodes = [\n'eu-1',\n'eu-4',\n]",
            "28: faults[0].nodes[1]: there is no node 'eu-4'; did you mean 'eu-3'? known: eu-3, eu-2, eu-1, us; or",
        ),
        (
            "[[faults]]\nverb = 'crash'\nnodes = ['region:eu']",
            "there is no region with nodes 'eu'; known: eu-west, us-east",
        ),
        (
            "[[faults]]\nverb = 'loss'\nshare = 0.5\nnodes = ['all']\nothers = ['device:phone']",
            "28: faults[0].others[0]: there is no node of device class 'phone'; known: mini-pc, laptop",
        ),
        ("[[faults]]\nverb = 'crash'\nnodes = []", "26: faults[0].nodes: it is empty; name some"),
        (
            "[[faults]]\nverb = 'thaw'\nnodes = ['all']\nfor_s = 3",
            "27: faults[0].for_s: 'thaw' cannot be undone, so it takes no time: leave it out",
        ),
        (
            "[[faults]]\nverb = 'crash'\nnodes = ['all']\nat_s = 60",
            "27: faults[0].at_s: it is 60 s, and the load ends after 60 s already",
        ),
        (
            "[[faults]]\nverb = 'crash'\nnodes = ['all']\nat_s = 50\nfor_s = 11",
            "28: faults[0].for_s: it would be undone after 61 s, and the load ends after 60 s; leave",
        ),
        ("[[faults]]\nverb = 'region-down'\nregion = 'eu-wets'", "did you mean 'eu-west'? known: eu-west"),
        ("[[faults]]\nverb = 'release-model'\nmodel = 'digit'", "did you mean 'digits'? known: digits"),
        ("[[faults]]\nverb = 'clock-jump'\nnodes = ['us']\nby_s = 0", "a jump by 0 s is none"),
        ("[[expect]]\nmetric = 'p99'\nat_most = 1", "25: expect[0].metric: there is no metric 'p99'; did you"),
        ("[[expect]]\nmetric = 'p99_ms'", "24: expect[0]: it asks for nothing: give 'at_most' or"),
        ("[[expect]]\nmetric = 'p99_ms'\nat_most = 1\nat_least = 2", "it is below 'at_least'"),
        ("[[expect]]\nmetric = 'p99_ms'\nat_most = 1\nmodel = 'x'", "there is no model 'x'; known: digits"),
        ("[[expect]]\nmetric = 'p99_ms'\nat_most = 1\nafter_s = 60", "the load ends after 60 s already"),
        ("[[expect]]\nmetric = 'p99_ms'\nat_most = 1\nafter_s = 9\nbefore_s = 9", "it is 9 s, not after 9 s"),
        ("[[expect]]\nmetric = 'p99_ms'\nat_most = 1\nvia = ['x']", "expect[0].via[0]: there is no node 'x'"),
        ("[[nodes]]\nregion = 'eu'", "25: nodes[2].region: there is no region 'eu'; known: eu-west"),
        ("[[nodes]]\nregion = 'us-east'\ndevice = 'labtop'", "did you mean 'laptop'? known: laptop, "),
        ("[[nodes]]\nregion = 'us-east'\nname = 'eu-1'", "24: nodes[2]: its node 'eu-1' is called like one of nodes[0]"),
        ("[[nodes]]\nregion = 'us-east'\nname = 'all'", "26: nodes[2].name: no node may be called 'all'"),
        (f"[[nodes]]\nregion = 'us-east'\ncount = 2\nname = '{'n' * 62}'", "a name of more than 63"),
        ("[[nodes]]\nregion = 'us-east'\ncount = 4997", "1: depth: 5,001 nodes are too many for depth A"),
        ("[[models]]\nname = 'digits'", "25: models[1].name: there is a model 'digits' already"),
        ("[[models]]\nname = 'm'\non = ['uss']", "26: models[1].on[0]: there is no node 'uss'; did you"),
        ("[[models]]\nname = 'm'\nreplicas = 5", "it is 5; only 4 nodes may serve the model"),
        ("[[models]]\nname = 'm'\nreplicas = 2\non = ['us']", "it is 2; only 1 nodes may serve"),
        ("[[paths]]\nbetween = ['eu-west', 'uk']", "25: paths[0].between[1]: there is no region 'uk'"),
        ("[[paths]]\nbetween = ['eu-west']", "it must be a list of two: a text in quotation marks and"),
        (
            "[[paths]]\nbetween = ['eu-west', 'us-east']\n[[paths]]\nbetween = ['us-east', 'eu-west']",
            "27: paths[1].between: there is a path between these two already",
        ),
        ("[[load]]\nmodel = 'digts'", "25: load[1].model: there is no model 'digts'; did you mean"),
        ("[[load]]\nmodel = 'digits'\nshape = 'ramp'", "shape 'ramp' needs 'to_rate_per_s', which is missing"),
        ("[[load]]\nmodel = 'digits'\nevery_s = 3", "shape 'poisson' takes none; it is for: bursts, daily"),
        ("[[load]]\nmodel = 'digits'\nfile = 'x'", "shape 'poisson' takes none; it is for: trace"),
        ("[[expect]]\nmetric = 'error_rate'\nat_most = -1", "26: expect[0].at_most: it is -1; no 'error_rate' is below 0"),
        ("[[expect]]\nmetric = 'error_rate'\nat_least = 2", "26: expect[0].at_least: it is 2; a share is 0 to 1"),
        ("[[expect]]\nmetric = 'running'\nat_least = 9", "it is 9; there are 4 nodes, so nothing could be right"),
        ("[[expect]]\nmetric = 'served_share'\nat_least = 0.1", "'served_share' needs 'nodes', which is missing"),
        ("[[expect]]\nmetric = 'p50_ms'\nat_most = 9\nnodes = ['us']", "expect[0].nodes: 'p50_ms' takes none; 'via'"),
        ("[[expect]]\nmetric = 'served_share'\nat_most = 0\nnodes = ['uss']", "expect[0].nodes[0]: there is no node"),
        ("[[load]]\nmodel = 'digits'\nshape = 'trace'", "shape 'trace' needs a 'file' or 'arrivals'"),
        ("[[load]]\nmodel = 'digits'\nshape = 'trace'\narrivals = [[2], [1]]", "load[1].arrivals[1]: it is at 1 s, before"),
        ("[[load]]\nmodel = 'digits'\nshape = 'trace'\narrivals = [[1, 'us']]", "there is no gateway 'us'; known: eu-1"),
        ("[[load]]\nmodel = 'digits'\nshape = 'trace'\narrivals = [1]", "it must be a list of a number at least 0 and, if you"),
        (
            "[[load]]\nmodel = 'digits'\nshape = 'trace'\nstart_s = 10\narrivals = [[1], [50]]",
            "28: load[1].arrivals[1]: it would come at 60 s, and the load ends after 60 s already; raise",
        ),
        (
            "[[load]]\nmodel = 'digits'\nrate_per_s = 1e12",
            "26: load[1].rate_per_s: it makes about 6e+13 requests, 6e+13 with those above; a scenario may",
        ),
        ("[[load]]\nmodel = 'digits'\nshape = 'ramp'\nto_rate_per_s = 1e6", "it makes about 3e+07 requests"),
        (
            "[[load]]\nmodel = 'digits'\nshape = 'bursts'\nburst_rate_per_s = 1e6\nburst_s = 1\nevery_s = 10",
            "it makes about 6e+06 requests",
        ),
        ("[[load]]\nmodel = 'digits'\nstart_s = 60", "it is 60 s; the scenario ends after 60 s already"),
        ("[[load]]\nmodel = 'digits'\nend_s = 61", "the scenario ends after 60 s ('duration_s')"),
        ("[[load]]\nmodel = 'digits'\nstart_s = 9\nend_s = 9", "it is 9 s, not after 'start_s', 9 s"),
        ("[[load]]\nmodel = 'digits'\nvia = ['us']", "none of these nodes is a gateway ('gateway = false')"),
        ("[[load]]\nmodel = 'digits'\nvia = []", "load[1].via: it is empty; name nodes, or [\"all\"]"),
        (
            "[[load]]\nmodel = 'digits'\nshape = 'bursts'\nburst_rate_per_s = 9\nburst_s = 3\nevery_s = 2",
            "28: load[1].burst_s: a burst of 3 s each 2 s",
        ),
    ],
)  # fmt: skip
def test_a_mistake_is_told_with_its_line_and_what_would_be_right(more: str, said: str) -> None:
    assert said in told_of(more)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("eu-west = {}", "moon = {}", "5: regions.moon: nobody knows where it is: give it 'at'"),
        ("eu-west = {}", "eu-west = { place = 'dubln' }", "did you mean 'dublin'?"),
        ("eu-west = {}", "eu-west = { place = 'dub', at = [1, 2] }", "give 'at' or 'place', not both"),
        ("eu-west = {}", "eu-west = { at = [91, 2] }", "5: regions.eu-west.at[0]: it is 91; it must be"),
        ("eu-west = {}", "'eu west' = { place = 'dub' }", "it is a text, 'eu west'; it must be 1 to 63"),
        ("eu-west = {}\nus-east = {}", "", "4: regions: there is none; a scenario needs one"),
        ("name = \"good\"\n", "", "1: the key 'name' is missing; it must be 1 to 63 letters"),
        ("name = \"eu\"", "name = \"eu\"\ngateway = false", "nodes: none is a gateway: leave out"),
    ],
)  # fmt: skip
def test_a_changed_document_is_told_what_is_wrong_with_it(old: str, new: str, said: str) -> None:
    assert old in GOOD
    assert any(said in line for line in told(GOOD.replace(old, new)))


def test_nodes_that_nobody_can_dial_are_no_mesh() -> None:
    text = GOOD.replace('name = "eu"', 'nat = true\nname = "eu"').replace(
        "gateway", "nat = true\ngateway"
    )
    assert "all are behind routers, so that nobody can dial anybody" in told(text)[0]


def test_a_region_without_coordinates_is_good_if_all_its_paths_are_measured() -> None:
    text = GOOD.replace("eu-west", "moon")
    path = '[[paths]]\nbetween = ["us-east", "moon"]\nrtt_ms = 2560\n'
    assert parse(text + path, "a.toml").paths[0].rtt_ms == 2560


@pytest.mark.parametrize(("depth", "most"), [("B", 100), ("C", 30)])
def test_each_depth_has_its_most_nodes(depth: str, most: int) -> None:
    text = f'depth = "{depth}"\n' + GOOD
    assert len(parse(text.replace("count = 3", f"count = {most - 1}"), "a.toml").nodes) == 2
    (said,) = told(text.replace("count = 3", f"count = {most}"))
    assert said.startswith(
        f"1: depth: {most + 1} nodes are too many for depth {depth}; at most: A 5,000"
    )


def test_all_mistakes_of_a_kind_are_told_at_once_in_the_order_of_lines() -> None:
    text = GOOD.replace("count = 3", "count = 0").replace("[[load]]", "[[load]]\nrate_per_s = -1")
    assert [line.partition(":")[0] for line in told("seed = -1\n" + text)] == ["1", "11", "24"]


def test_what_does_not_fit_together_is_told_with_what_has_the_wrong_shape() -> None:
    faults = "[[faults]]\nverb = 'crush'\n[[faults]]\nverb = 'crash'\nnodes = ['eu-9']\nat_s = 1\n"
    expect = "[[expect]]\nmetric = 'p99_ms'\nat_most = 'low'\n[[expect]]\nmetric = 'p98_ms'\nat_most = 1\n"
    said = "\n".join(told("seed = -1\nstart = 2\n" + GOOD + faults + expect))
    for mistake in (
        "seed: it is -1", "'start'", "verb 'crush'", "faults[1].nodes[0]: there is no node 'eu-9'",
        "expect[0].at_most: it is a text", "expect[1].metric: there is no metric 'p98_ms'",
    ):  # fmt: skip
        assert mistake in said
    assert said.count("\n") == 5


@pytest.mark.parametrize("wrong", ["duration_s = 'long'", "depth = 'D'", "[[nodes]]\nregion = 1"])
def test_where_a_part_that_others_refer_to_is_wrong_nothing_is_said_of_the_others(
    wrong: str,
) -> None:
    good = GOOD.replace("duration_s = 60\n", "")
    later = "\n[[faults]]\nverb = 'crash'\nnodes = ['eu-9']\nat_s = 1\n"
    text = good + wrong + later if wrong.startswith("[[") else wrong + "\n" + good + later
    assert len(told(text)) == 1


def test_of_very_many_mistakes_the_first_are_told_and_the_others_counted() -> None:
    wrong = "".join(f"[[nodes]]\nregion = 'r{number}'\n" for number in range(30))
    said = told(GOOD + wrong)
    assert len(said) == MAX_SCENARIO_MISTAKES + 1
    assert said[-1] == " and 10 more mistakes"


def test_after_hundreds_of_mistakes_no_more_are_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    looked = []

    def counted(*args: object) -> str:
        looked.append(args)
        return "there is no such verb"

    monkeypatch.setattr(shapes, "unknown", counted)
    said = told(GOOD + "[[faults]]\nverb = 'crush'\n" * 1000)
    assert len(said) == MAX_SCENARIO_MISTAKES + 1
    more = MAX_SCENARIO_MISTAKES_SOUGHT - MAX_SCENARIO_MISTAKES
    assert said[-1] == f" and at least {more} more mistakes"
    assert len(looked) <= MAX_SCENARIO_MISTAKES_SOUGHT + 1


RELEASE = "[[faults]]\nverb = 'release-model'\nmodel = 'digits'\n"


def test_a_release_is_the_table_of_a_deployment_file() -> None:
    text = RELEASE + "release = { strategy = 'canary', steps = [5, { share = 50, wait = true }] }"
    (fault,) = parse(GOOD + text, "a.toml").faults
    assert isinstance(fault, Release)
    assert fault.release["steps"][1] == {"share": 50, "wait": True}
    assert fault_text(fault) == "release-model digits (release canary)"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("release = { strategy = 'canari' }", "faults[0].release.strategy: 'canari' (a text) is not one of canary"),
        ("release = { strategy = 'canary', stepps = [5] }", "faults[0].release.stepps: unknown key; did you mean"),
        ("release = { strategy = 'canary', gates = { errors = -1 } }", "faults[0].release.gates.errors: -1 (a number) is not"),
        ("release = 5", "faults[0].release: it is a whole number, 5; it must be a table"),
        ("fail_share = 0.5\nfails_on = 'labtop'", "faults[0].fails_on: there is no node of device class 'labtop'"),
        ("fails_on = 'mini-pc'", "faults[0].fails_on: nothing fails there: give 'fail_share', which is 0"),
        ("node = 'nobody'", "faults[0].node: there is no node 'nobody'"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_release_is_told_where_it_stands(text: str, said: str) -> None:
    found = "\n".join(told(GOOD + RELEASE + text))
    assert said in found


def test_an_order_is_one_that_there_is_for_a_model_that_there_is() -> None:
    order = "[[faults]]\nverb = 'order-release'\nmodel = 'digit'\norder = 'demote'"
    found = "\n".join(told(GOOD + order))
    assert "faults[0].order: it is 'demote'; allowed: 'abort', 'pause', 'promote'" in found
    order = "[[faults]]\nverb = 'order-release'\nmodel = 'digit'\norder = 'undo'"
    assert "there is no model 'digit'; did you mean 'digits'?" in "\n".join(told(GOOD + order))


def test_every_verb_can_be_read() -> None:
    needed = {
        "clock-jump": "by_s = 5", "loss": "share = 0.5", "duplication": "share = 0.5",
        "reordering": "share = 0.5", "bandwidth": "mbps = 3", "gossip-delay": "add_ms = 5",
    }  # fmt: skip
    for verb, cls in VERBS.items():
        whom = {
            "region-down": "region = 'eu-west'",
            "release-model": "model = 'digits'",
            "order-release": "model = 'digits'\norder = 'promote'",
        }
        keys = whom.get(verb, "nodes = ['all']")
        text = f"[[faults]]\nverb = '{verb}'\n{keys}\n{needed.get(verb, '')}"
        (fault,) = parse(GOOD + text, "a.toml").faults
        assert type(fault) is cls
        assert fault.verb == verb


# Files.


def test_a_file_is_read_and_called_by_its_path_in_messages(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("\ufeff" + GOOD, encoding="utf-8")
    assert read(path).name == "good"
    assert read(str(path)) == read(path)
    path.write_text("name = 3\n")
    with pytest.raises(ConfigError, match=r"mine\.toml:1: name: it is a whole number, 3"):
        read(path)


def test_a_file_that_is_no_text_or_too_large_or_not_there_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes(b"name = 'a'\ntitle = '\xff'\n")
    with pytest.raises(ConfigError, match=r"mine\.toml:2: this is not UTF-8 text"):
        read(path)
    path.write_bytes(b"#" * (MAX_SCENARIO_BYTES + 1))
    with pytest.raises(ConfigError, match="is too large: it may have at most 4,194,304 bytes"):
        read(path)
    with pytest.raises(ConfigError, match="too large"):
        parse("#" * (MAX_SCENARIO_BYTES + 1), "a.toml")
    with pytest.raises(ConfigError, match=r"there is no file .*other\.toml"):
        read(tmp_path / "other.toml")
    with pytest.raises(ConfigError, match="is a folder"):
        read(tmp_path)


def test_a_name_without_a_folder_or_suffix_is_one_of_the_library() -> None:
    assert path_of("region-loss") == library()["region-loss"]
    with pytest.raises(ConfigError, match="did you mean 'region-loss'"):
        path_of("regoin-loss")


def test_a_file_in_the_folder_one_is_in_can_be_named_without_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plain").write_text(GOOD)
    (tmp_path / "region-loss.toml").write_text(GOOD)
    assert read("plain").name == "good"
    assert read("region-loss.toml").name == "good"
    assert read("region-loss").name == "region-loss"


# Traces.

TRACED = GOOD + 'shape = "trace"\nfile = "calls.csv"\n'


def traced(folder: Path, lines: str) -> Scenario:
    (folder / "calls.csv").write_text(lines)
    (folder / "a.toml").write_text(TRACED)
    return read(folder / "a.toml")


def test_a_trace_is_read_from_beside_the_scenario(tmp_path: Path) -> None:
    scenario = traced(tmp_path, "seconds, gateway\n# a Monday\n\n0.5\n0.5 , eu-2\n 7e0,\n")
    assert scenario.load[0].arrivals == (Arrival(0.5), Arrival(0.5, "eu-2"), Arrival(7.0))
    assert scenario.load[0].file is None


def test_a_trace_that_goes_on_after_the_end_is_a_mistake_unless_its_rest_is_to_be_left_out(
    tmp_path: Path,
) -> None:
    with pytest.raises(ConfigError, match=r"a\.toml:25: load\[0\]\.arrivals\[1\]: .* at 99 s"):
        traced(tmp_path, "1\n99\n")
    (tmp_path / "a.toml").write_text(TRACED + "end_s = 60\n")
    assert len(read(tmp_path / "a.toml").load[0].arrivals) == 2


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (
            "1\nlater\n",
            r"load\[0\]\.file: .*calls\.csv:2: it begins with 'later'; it must begin with",
        ),
        ("-1\n", r"calls\.csv:1: it begins with '-1'"),
        ("nan\n", r"calls\.csv:1: it begins with 'nan'"),
        ("2\n1\n", r"calls\.csv:2: 1 s is before the line above"),
        ("# nothing\n", r"calls\.csv has no arrivals"),
        ("1, us\n", r"there is no gateway 'us'; known: eu-1, eu-2, eu-3"),
    ],
)
def test_a_trace_with_a_mistake_is_refused_with_both_lines(
    tmp_path: Path, lines: str, said: str
) -> None:
    with pytest.raises(ConfigError, match=rf"a\.toml:25: .*{said}"):
        traced(tmp_path, lines)


def test_a_trace_that_is_not_there_or_too_large_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.toml").write_text(TRACED)
    with pytest.raises(ConfigError, match=r"a\.toml:25: .*calls\.csv cannot be read: No such file"):
        read(tmp_path / "a.toml")
    monkeypatch.setattr(traces, "MAX_TRACE_ARRIVALS", 3)
    with pytest.raises(ConfigError, match="more than 3 arrivals"):
        traced(tmp_path, "1\n2\n3\n4\n")
    monkeypatch.setattr(traces, "MAX_TRACE_BYTES", 3)
    with pytest.raises(ConfigError, match="too large"):
        traced(tmp_path, "1\n2\n3\n4\n")
    assert MAX_TRACE_BYTES > 20 * MAX_TRACE_ARRIVALS


def test_a_scenario_that_comes_from_no_file_can_name_no_trace() -> None:
    assert "it can name none: give 'arrivals'" in told(TRACED)[0]


def test_all_bad_lines_of_a_trace_are_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        traced(tmp_path, "1\nlater\n3\n2\n-1\n")
    assert [str(each).partition("calls.csv:")[2][0] for each in caught.value.lines] == list("245")


# Scenarios that were built in Python.


def test_a_scenario_built_in_python_is_checked_in_the_same_way() -> None:
    good = Scenario(name="a", regions={"lhr": Place()}, nodes=(Nodes(region="lhr"),))
    checks.check(good, METRICS)
    bad = Scenario(name="a", regions={"lhr": Place()}, nodes=(Nodes(region="lhx"),))
    with pytest.raises(
        ConfigError, match=r"scenario a: nodes\[0\]\.region: there is no region 'lhx'"
    ):
        checks.check(bad, METRICS)
