"""Deployment files: what they say, every mistake in them, and that what is written is read back."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from meshnode.deployment_file import (
    KEYS,
    DeploymentSpec,
    Found,
    parse,
    read_document,
    read_file,
    spec_of,
)
from meshnode.deployment_values import size, size_text
from meshnode.deployment_writing import document_of, write_toml
from meshnode.errors import ConfigError, InvalidRequest
from meshnode.limits import MAX_VERSION
from meshnode.state.constraints import ACCELERATORS, Constraints, Resources
from meshnode.state.scaling import Scaling
from tests.unit.settings.releases import releases

LEAST = 'name = "digits"\nmodel = "./digits.onnx"\n'

words = st.text(
    st.characters(codec="utf-8", categories=("L", "N", "P", "S")), min_size=1, max_size=12
)
texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)
models = st.text(st.characters(codec="utf-8", categories=("L", "N", "P")), min_size=1, max_size=20)
variables = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,12}", fullmatch=True)
names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_-]{0,12}", fullmatch=True)
sizes = st.integers(0, 2**63 - 1) | st.integers(0, 4096).map(lambda count: count * 2**30)


def pairs(keys: st.SearchStrategy[str], values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.dictionaries(keys, values, max_size=4).map(lambda found: tuple(sorted(found.items())))


def unique(values: st.SearchStrategy[Any], most: int = 4) -> st.SearchStrategy[Any]:
    return st.lists(values, max_size=most, unique=True).map(tuple)


@st.composite
def constraints(draw: st.DrawFn) -> Constraints:
    accelerator = draw(st.sampled_from(("", "any", *ACCELERATORS)))
    return Constraints(
        draw(unique(words)),
        draw(pairs(words, words)),
        accelerator,
        draw(sizes) if accelerator else 0,
        draw(sizes),
        draw(st.just("") | words),
        draw(st.booleans()),
    )


@st.composite
def scalings(draw: st.DrawFn) -> Scaling:
    least = draw(st.integers(0, 20))
    panic_window_s = draw(st.floats(2, 60))
    return Scaling(
        least,
        max(1, least + draw(st.integers(0, 20))),
        concurrency=draw(st.floats(0.01, 1000)),
        memory=draw(st.just(0.0) | st.floats(0.01, 1)),
        stable_window_s=panic_window_s + draw(st.floats(0, 600)),
        panic_window_s=panic_window_s,
        tolerance=draw(st.floats(0, 1)),
        idle_s=draw(st.floats(1, 9999)),
    )


@st.composite
def specs(draw: st.DrawFn) -> DeploymentSpec:
    on = draw(unique(words))
    release = draw(st.none() | releases())
    most_versions = 4 if release is None else 1
    return DeploymentSpec(
        name=draw(names),
        model=draw(models),
        versions=tuple(sorted(draw(unique(st.integers(1, 9), most_versions)))),
        replicas=draw(st.integers(1, len(on) or 1024)),
        on=on,
        enabled=draw(st.booleans()),
        path=draw(st.sampled_from((None, "", "/count-cars", "/a/b"))),
        tasks=draw(st.sampled_from((None, (), ("chat",), ("chat", "embedding:output=vector")))),
        cache=draw(st.none() | st.booleans()),
        metrics=draw(pairs(words, st.floats(-1e9, 1e9))),
        note=draw(texts),
        variants=draw(pairs(st.sampled_from(("int8", "fp16")), models)),
        standby=draw(st.integers(0, 16)),
        where=draw(constraints()),
        resources=Resources(draw(sizes), draw(st.floats(0, 64))),
        env=draw(pairs(variables, texts)),
        scaling=draw(st.none() | scalings()),
        release=release,
        revision=draw(st.just("") | words),
    )


@given(specs())
def test_every_definition_that_is_written_as_toml_is_read_back(spec: DeploymentSpec) -> None:
    assert parse(write_toml([spec]), "toml", "f") == (spec,)
    other = spec_of({**document_of(spec), "name": "another-1"})
    assert parse(write_toml([spec, other]), "toml", "f") == (spec, other)


@given(specs())
def test_json_which_is_yaml_says_the_same(spec: DeploymentSpec) -> None:
    text = json.dumps(document_of(spec), ensure_ascii=False)
    assert spec_of(json.loads(text)) == spec
    # JSON's strings may hold characters that YAML's must not, bare.
    assert parse(json.dumps(document_of(spec)), "yaml", "f") == (spec,)


@given(st.text(max_size=200), st.sampled_from(("toml", "yaml")))
def test_garbage_raises_nothing_but_a_list_of_mistakes(text: str, kind: Any) -> None:
    found, told = read_file(text, kind, "f")
    assert bool(found) or bool(told)
    assert all(line.startswith("f") for line in told)
    if told:
        with pytest.raises(ConfigError):
            parse(text, kind, "f")


scalars = st.none() | st.booleans() | st.integers() | st.floats() | texts
json_values = (
    scalars
    | st.lists(scalars | st.lists(scalars, max_size=2), max_size=3)
    | st.dictionaries(texts, scalars | st.lists(scalars, max_size=2), max_size=3)
)


@given(
    st.dictionaries(st.sampled_from([key.partition(".")[0] for key in KEYS]) | texts, json_values)
)
def test_a_document_of_anything_is_read_or_has_mistakes(document: dict[str, Any]) -> None:
    spec, faults = read_document(document)
    assert (spec is None) == bool(faults)
    if spec is not None:
        assert spec_of(document_of(spec)) == spec


@given(sizes)
@example(1651598828816703 * 1024)
def test_a_size_with_a_unit_is_exact(size_bytes: int) -> None:
    assert size(size_text(size_bytes)) == size_bytes


def test_a_file_that_leaves_all_out_has_the_defaults() -> None:
    (spec,) = parse(LEAST, "toml", "f")
    assert spec == DeploymentSpec(name="digits", model="./digits.onnx")
    (spec,) = parse(LEAST + 'on = ["a", "b"]', "toml", "f")
    assert spec.replicas == 2


def test_every_mistake_is_told_with_its_key_and_the_nearest_known_one() -> None:
    text = """\
nam = "digits"
replicas = "2"
on = ["a", "a"]
enabled = "yes"
path = "count-cars"
tasks = ["paint"]
cache = 1
standby = 17
regions = ["eu"]
version = [2, 0]
[where]
region = ["eu"]
memory = "8 QB"
accelerator = "gpu"
on-mains = true
[resource]
cpus = 1
[env]
"a b" = "1"
[metrics]
good = "very"
"""
    with pytest.raises(ConfigError) as failed:
        parse(text, "toml", "digits.toml")
    assert failed.value.lines == (
        "digits.toml: nam: unknown key; did you mean 'name'?",
        "digits.toml: replicas: '2' (a text) is not a whole number of 1 to 1024",
        "digits.toml: on: 'a' is there twice",
        "digits.toml: enabled: 'yes' (a text) is not true or false",
        (
            "digits.toml: path: 'count-cars' is not a path under which a model can be offered: it begins with '/', and its "
            "parts are letters, digits, '.', '_', '~' and '-', at most 200 characters altogether; for example /count-cars"
        ),
        (
            "digits.toml: tasks: 'paint' is not a task; write chat, completion, embedding, and perhaps what it maps: "
            "chat:input=NAME,output=NAME"
        ),
        "digits.toml: cache: 1 (a number) is not true or false",
        "digits.toml: standby: 17 (a number) is not a whole number of 0 to 16",
        "digits.toml: regions: unknown key; it belongs into [where]",
        f"digits.toml: version: 0 (a number) is not a whole number of 1 to {MAX_VERSION}",
        "digits.toml: resource: unknown key; did you mean 'resources'?",
        "digits.toml: metrics: the metric 'good' is not a finite number",
        "digits.toml: where.region: unknown key; did you mean 'regions'?",
        'digits.toml: where.memory: \'8 QB\' (a text) is not a size such as "8GiB", "512MiB" or a number of bytes',
        "digits.toml: where.on-mains: unknown key; did you mean 'on_mains'?",
        "digits.toml: name: this is missing",
        "digits.toml: model: this is missing",
        "digits.toml: where: accelerator 'gpu' is none of any, cuda, rocm, apple, edgetpu, intel-gpu, intel-npu",
        "digits.toml: env: 'a b' is no name of a variable: letters, digits and _, such as MODEL_HOME",
    )


def test_yaml_has_the_lines_of_mistakes_and_words_stay_words() -> None:
    text = "name: digits\nmodel: m\non: [off, no]\nwhere:\n  region: [eu]\n  labels: {room: 7}\nenv: {A: yes}\n"
    _, told = read_file(text, "yaml", "f")
    assert told == [
        "f, line 5: where.region: unknown key; did you mean 'regions'?",
        "f, line 6: where.labels: 7 (a number) is not a text",
    ]
    (spec,) = parse("name: digits\nmodel: m\non: [off, no]\nenv: {A: yes, B: 12:30}\n", "yaml", "f")
    assert (spec.on, spec.env) == (("off", "no"), (("A", "yes"), ("B", "12:30")))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\nb: 2\na: 3\n", "line 3: the key 'a' is there twice, also in line 1"),
        (
            "name: !!python/object/apply:os.system [ls]\n",
            "line 1: the tag 'tag:yaml.org,2002:python",
        ),
        ("name: !Foo x\n", "line 1: '!Foo'|says|tag"),
        ("1: x\n", "the key '1' is no text"),
        ("{a: b\n", "this is not YAML"),
        ("a: &x [*x]\n", "too deep within each other"),
        ("- name: a\n", "a deployment is a table of keys"),
        ("", "there is no deployment in it"),
        ("---\n---\n", "there is no deployment in it"),
        ("name: a\nmodel: b\ndeployment: []\n", "cannot stand beside a list"),
        ("deployment: {}\n", "this is no list"),
        ("name: a\nmodel: b\n---\nname: a\nmodel: c\n", "'a' is there twice"),
        ("a: \x07", "this is not YAML"),
        ("name: a\nmodel: b\nwhere: x\n", "where: this is no table"),
    ],
)
def test_what_is_no_list_of_deployments_is_refused(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse(text, "yaml", "f")


def test_a_few_lines_of_aliases_do_not_become_billions() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{at}: &a{at} [{', '.join([f'*a{at - 1}'] * 9)}]" for at in range(1, 12)]
    with pytest.raises(ConfigError, match="too many values"):
        parse("\n".join(lines), "yaml", "f")


def test_an_alias_repeats_a_value() -> None:
    text = "deployment:\n- {name: a, model: m, where: &w {regions: [eu]}}\n- {name: b, model: m, where: *w}\n"
    assert [each.where.regions for each in parse(text, "yaml", "f")] == [("eu",), ("eu",)]


@pytest.mark.parametrize("text", ["x = ", "a = " + "1" * 5000, "a = " + "[" * 5000, 'a = "\x00"'])
def test_what_is_no_toml_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="f: this is not TOML"):
        parse(text, "toml", "f")


def test_a_request_is_told_every_mistake_in_one_sentence() -> None:
    with pytest.raises(
        InvalidRequest, match=r"deployment: replicas: .*; deployment: model: this is missing"
    ):
        spec_of({"name": "a", "replicas": -1})


def test_every_wrong_variable_is_told() -> None:
    env = {"LD_PRELOAD": "x", "A B": "1", "GOOD": "1"}
    _, faults = read_document({"name": "a", "model": "b", "env": env})
    assert [each.sentence.split()[0] for each in faults] == ["'A", "the"]
    _, faults = read_document({"name": "a", "model": "b", "env": {"A": "x" * 10**6, "B": "y"}})
    assert ["takes more than" in each.sentence for each in faults] == [True]


def test_what_has_mistakes_is_given_out_as_a_draft_to_be_checked_further() -> None:
    drafts: list[Found] = []
    found, told = read_file("name: a\nmodel: m\nreplicas: none\n", "yaml", "f", drafts)
    assert (found, len(told)) == ([], 1)
    assert [each.spec.model for each in drafts] == ["m"]
    assert read_file("replicas: none\n", "yaml", "f", drafts)[0] == []
    assert len(drafts) == 1, "without name and model there is nothing to check"


@pytest.mark.parametrize(
    ("raw", "size_bytes"),
    [
        ("8GiB", 8 * 2**30),
        ("8G", 8 * 2**30),
        ("8GB", 8 * 10**9),
        ("1.5 MiB", 1572864),
        ("7B", 7),
        (12, 12),
    ],
)
def test_sizes_have_the_units_that_people_write(raw: object, size_bytes: int) -> None:
    assert size(raw) == size_bytes


def test_autoscaling_is_a_table_of_its_own_and_replicas_the_number_to_begin_with() -> None:
    (spec,) = parse(f"{LEAST}[autoscaling]\nmin = 0\nmax = 6\nconcurrency = 2\n", "toml", "f")
    assert spec.scaling == Scaling(0, 6, concurrency=2.0)
    assert spec.replicas == 1
    (spec,) = parse(f"{LEAST}[autoscaling]\nmin = 3\nmax = 6\nmemory = 0.8\n", "toml", "f")
    assert spec.scaling == Scaling(3, 6, memory=0.8)
    assert spec.replicas == 3


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ("min = 1", "autoscaling.max: this is missing: the most replicas there may be"),
        ("max = 5", "autoscaling: it has no target to follow; set one of concurrency, qps"),
        ("min = 9\nmax = 5\nqps = 1", "autoscaling: min is 9 and max is 5; it takes 0 <= min <= max"),
        ("max = 5\ncpu = 70", "autoscaling.cpu: "),
        ("max = 5\nconcurency = 2", "autoscaling.concurency: unknown key; did you mean 'concurrency'?"),
        ("max = 5\nqps = 1\npanic_window_s = 90", "the window for bursts is the shorter one"),
    ],
)  # fmt: skip
def test_a_mistake_in_autoscaling_is_told_with_its_key(table: str, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse(f"{LEAST}[autoscaling]\n{table}\n", "toml", "f")
    assert said in str(error.value)
