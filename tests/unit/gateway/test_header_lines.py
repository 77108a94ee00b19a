"""Headers in several lines: what all of them say counts, and contradictions are refused."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from meshnode.errors import InvalidRequest
from meshnode.gateway.protocols.header_lines import each_once, has_repetitions
from meshnode.types import RoutingHints
from tests.unit.gateway.test_server import GOOD, client, connect, server

if TYPE_CHECKING:
    from tests.unit.gateway.conftest import FakeLocal
    from tests.unit.gateway.test_server import Client

__all__ = ["client", "connect", "server"]  # fixtures


@pytest.mark.parametrize(
    ("names", "repeats"),
    [
        (b"Host\nMesh-Labels", False),
        (b"Host\nMesh-Labels\nmesh-labels", True),
        (b"", False),
    ],
)
def test_a_name_that_comes_twice_is_seen_whatever_its_case(names: bytes, repeats: bool) -> None:
    assert has_repetitions(names) is repeats


def test_lists_of_several_lines_are_one_list() -> None:
    lines = [("Mesh-Labels", "gpu=a100"), ("Accept", "a/b"), ("mesh-labels", " tier=2 ")]
    assert each_once(lines) == {"mesh-labels": "gpu=a100, tier=2", "accept": "a/b"}


def test_the_same_said_twice_is_said_once() -> None:
    assert each_once([("Mesh-Region", "eu"), ("mesh-region", "eu ")]) == {"mesh-region": "eu"}


@pytest.mark.parametrize(
    "name",
    [
        "Mesh-Region",
        "mesh-session",
        "Mesh-Priority",
        "Idempotency-Key",
        "Authorization",
        "X-API-Key",
        "Content-Type",
        "Inference-Header-Content-Length",
        "Last-Event-ID",
        "Mesh-Webhook",
    ],
)
def test_two_values_of_what_has_one_are_refused(name: str) -> None:
    with pytest.raises(InvalidRequest, match="comes 2 times"):
        each_once([(name, "eu"), (name.upper(), "us")])


async def ask(client: Client, *lines: str) -> Any:
    head = [
        "POST /v2/models/digits/infer HTTP/1.1",
        "Host: localhost",
        f"Content-Length: {len(GOOD)}",
        *lines,
    ]
    client.writer.write("\r\n".join([*head, "", ""]).encode() + GOOD)
    return await client.reply()


async def test_labels_in_two_lines_are_both_a_rule(
    client: Client, local: FakeLocal, serve: Any
) -> None:
    serve()
    local.inline = False
    lost = await ask(client, "Mesh-Labels: gpu=a100", "mesh-labels: tier=2")
    assert lost.status == 503
    assert "label gpu=a100" in json.loads(lost.body)["error"]
    await ask(client, "Mesh-Region: eu;prefer", "Mesh-Session: a", "Mesh-Region: eu;prefer")
    assert local.requests[-1].hints == RoutingHints(
        region="eu", region_required=False, session=local.requests[-1].hints.session
    )
    for line in ("label gpu=a100", "label tier=2"):
        label = line.removeprefix("label ")
        other = "Mesh-Labels: " + label
        assert line in json.loads((await ask(client, other)).body)["error"]


@pytest.mark.parametrize(
    "lines",
    [
        ("Mesh-Region: eu", "Mesh-Region: us"),
        ("Mesh-Region: eu;prefer", "mesh-region: eu"),
        ("Mesh-Priority: low", "Mesh-Priority: high"),
        ("Mesh-Labels: pci=yes", "Mesh-Labels: pci=no"),
        ("Idempotency-Key: a", "Idempotency-Key: b"),
    ],
)
async def test_rules_that_contradict_each_other_are_refused_over_http(
    client: Client, local: FakeLocal, serve: Any, lines: tuple[str, ...]
) -> None:
    serve()
    refused = await ask(client, *lines)
    assert refused.status == 400
    assert not local.requests
    assert (await ask(client)).status == 200  # the connection goes on
