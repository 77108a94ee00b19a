"""`metadata.json`, version names and `SERVER_MODELS`: what people write, read or refused with a reason."""

from __future__ import annotations

import json

import pytest

from meshnode.errors import ModelError
from meshnode.models.provenance import Provenance
from meshnode.models.repository.metadata import read_metadata
from meshnode.models.repository.server_models import find_server_models, read_server_models
from meshnode.models.repository.version_names import read_version


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("1", (1, "")),
        ("999999999999999999", (999999999999999999, "")),
        ("20260131_120000", (20260131120000, "20260131_120000")),
        ("01", None),
        ("0", None),
        ("-1", None),
        ("1.0", None),
        ("v1", None),
        ("9999999999999999999", None),
        ("20261331_120000", None),
        ("20260131_126000", None),
        ("00010131_120000", None),
        ("\u0662\u0660260131_120000", None),  # digits of another script
        ("\u0661", None),
        ("", None),
    ],
)
def test_version_names(name: str, found: tuple[int, str] | None) -> None:
    assert read_version(name) == found


def test_all_that_is_taken_over() -> None:
    metadata = read_metadata(
        json.dumps(
            {
                "version": "20260131_120000",
                "created_at": "2026-01-31T12:00:00+01:00",
                "accuracy": 0.97,
                "quantized": True,
                "framework": "torch",
                "metrics": {"loss": 0.1, "bad": float("inf"), "text": "x", "": 1},
                "note": "n" * 600,
                "huge": 10**400,
            }
        )
    )
    assert metadata.version == (20260131120000, "20260131_120000")
    assert metadata.provenance == Provenance(
        created_s=1769857200.0,
        label="20260131_120000",
        metrics=(("accuracy", 0.97), ("loss", 0.1)),
        note="n" * 500,
    )


@pytest.mark.parametrize(
    ("written", "seconds"),
    [(1769857200, 1769857200.0), ("20260131_110000", 1769857200.0), ("2026-01-31", 1769817600.0)],
)
def test_times_are_read_in_three_forms(written: object, seconds: float) -> None:
    text = json.dumps({"timestamp": written})
    assert read_metadata(text).provenance == Provenance(created_s=seconds)


def test_a_version_that_is_no_number_is_a_label() -> None:
    assert read_metadata('{"version": "1.4.2"}').version == (0, "1.4.2")
    assert read_metadata('{"version": "a\\u0000"}').version == (0, "")
    assert read_metadata('{"version": -1}').version is None


def test_only_so_many_metrics_are_kept() -> None:
    text = json.dumps({"metrics": {f"m{index:02}": index for index in range(40)}})
    assert [name for name, _ in read_metadata(text).provenance.metrics] == [
        f"m{index:02}" for index in range(16)
    ]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("3", "is no JSON object"),
        ('{"version": []}', "version in metadata.json is"),
        ('{"version": true}', "must be an integer or text"),
        ('{"metrics": 3}', "metrics in metadata.json is no object"),
        ('{"timestamp": "yesterday"}', "must be seconds since 1970, ISO 8601"),
        ('{"timestamp": -5}', "must be seconds since 1970"),
        ('{"timestamp": NaN}', "must be seconds since 1970"),
        ('{"timestamp": 1e300}', "must be seconds since 1970"),
        ('{"timestamp": {}}', "must be seconds since 1970"),
    ],
)
def test_what_cannot_be_meant_is_refused(text: str, reason: str) -> None:
    with pytest.raises(ModelError, match=reason):
        read_metadata(text)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('[{"model":"x","replicas":"2"},{"model":"y"}]', {"x": 2, "y": 1}),
        ('["x","y"]', {"x": 1, "y": 1}),
        ('[{"model":"x","replicas":3}]', {"x": 3}),
        ("[]", {}),
    ],
)
def test_server_models_in_all_forms(text: str, found: dict[str, int]) -> None:
    assert read_server_models(text) == found


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("x", "it is not JSON"),
        ("{}", "it is no list"),
        ("[3]", "3 names no model"),
        ('[{"replicas": 1}]', "names no model"),
        ('["x", "x"]', "it names 'x' twice"),
        ('[{"model": "x", "replicas": 0}]', "replicas of 'x' is 0, not 1 to 64"),
        ('[{"model": "x", "replicas": "many"}]', "is 'many'"),
        ('[{"model": "x", "replicas": true}]', "is True"),
        ('[{"model": "x", "replicas": 1.5}]', "is 1.5"),
        (json.dumps(["x"] * 5000), "it has 5000 entries"),
    ],
)
def test_server_models_that_cannot_be_meant(text: str, reason: str) -> None:
    with pytest.raises(ModelError, match=reason):
        read_server_models(text)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("SERVER_MODELS='[\"x\"]'", '["x"]'),
        ('A=1\n# SERVER_MODELS=no\nexport SERVER_MODELS="[\\"x\\"]" # c', '["x"]'),
        ('SERVER_MODELS = ["x"]\n', '["x"]'),
        ("SERVER_MODELS='[\n\"x\"\n]'\nB=2", '[\n"x"\n]'),
        ("SERVER_MODELS", None),
        ("", None),
    ],
)
def test_an_environment_file_is_searched_for_it(text: str, found: str | None) -> None:
    assert find_server_models(text) == found
