"""A node that starts from what `meshnode bake` wrote, and one that a deployment gives the same version."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.e2e.conftest import DIGIT_REQUEST, DIGITS, Daemon, wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from tests.e2e.conftest import Mesh

pytestmark = pytest.mark.e2e


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    made = tmp_path / "digits.tar"
    bake = [sys.executable, "-m", "meshnode", "bake", str(DIGITS), "-o", str(made)]
    subprocess.run(bake, check=True, capture_output=True)
    return made


def opened_baked(node: Daemon) -> int:
    return node.output.count("model digits version 1 is opened from the graph that was baked")


def test_a_node_of_an_archive_serves_at_once_and_answers_as_any_other(
    mesh: Mesh, archive: Path
) -> None:
    cook = mesh.start("cook", "--new", "--models", str(archive)).wait_ready()
    wait_until(lambda: cook.ready_nodes("digits") == {"cook"}, 20, "cook serves the digits")
    assert opened_baked(cook) == 1
    assert "warning" not in cook.output
    plain = mesh.start("plain", cook.invite(), "--models", str(DIGITS.parent)).wait_ready()
    wait_until(lambda: plain.ready_nodes("digits") == {"cook", "plain"}, 20, "both serve")
    assert opened_baked(plain) == 0
    answers = [
        node.request("POST", "/v2/models/digits/infer", DIGIT_REQUEST)[2]["outputs"]
        for node in (cook, plain)
    ]
    assert answers[0] == answers[1]
    # As its own, and as a replica of a deployment: neither fetched nor compiled.
    cook.deploy(DIGITS, name="numbers", on=["cook"])
    wait_until(lambda: cook.ready_nodes("numbers") == {"cook"}, 20, "cook serves the deployment")
    assert "model numbers version 1 is opened from the graph that was baked" in cook.output
