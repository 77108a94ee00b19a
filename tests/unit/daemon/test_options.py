"""What a node's owner chose, kept from start to start: merging, writing, reading back."""

from __future__ import annotations

import pytest

from meshnode.errors import ConfigError
from meshnode.options import Chosen

ALL = Chosen(
    name="n",
    region="eu",
    zone="z",
    labels=("a=1",),
    listen="[::1]:0",
    http="",
    models="/srv/models",
)


def test_what_is_given_replaces_what_was_kept_and_an_empty_choice_is_a_choice() -> None:
    assert Chosen().changed_by(ALL) == ALL
    assert ALL.changed_by(Chosen()) == ALL
    assert ALL.changed_by(Chosen(zone="", labels=())).to_json() == (
        b'{\n  "name": "n",\n  "region": "eu",\n  "zone": "",\n  "labels": [],\n'
        b'  "listen": "[::1]:0",\n  "http": "",\n  "models": "/srv/models"\n}\n'
    )


@pytest.mark.parametrize("chosen", [Chosen(), ALL, Chosen(labels=())])
def test_what_is_written_is_read_back(chosen: Chosen) -> None:
    assert Chosen.from_json(chosen.to_json()) == chosen


def test_fields_of_later_versions_are_ignored() -> None:
    assert Chosen.from_json(b'{"name": "n", "api_keys": true}') == Chosen(name="n")


@pytest.mark.parametrize(
    "data", [b"", b"\xff", b"null", b'{"labels": [1]}', b'{"name": 7}', b'{"mdns": "yes"}']
)
def test_what_has_another_form_is_refused(data: bytes) -> None:
    with pytest.raises(ConfigError):
        Chosen.from_json(data)
