"""What people say of answers, on real processes: it counts for the version that answered, at whatever gateway it comes."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import onnx
import pytest

from tests.e2e.conftest import DIGIT_REQUEST, DIGITS, Mesh, wait_until
from tests.e2e.test_deployments import INFER, done

if TYPE_CHECKING:
    from pathlib import Path

    from tests.e2e.conftest import Daemon

pytestmark = pytest.mark.e2e

RELEASE = """
[release]
strategy = "canary"
steps = [{ share = 50, mirror = 100, hold_s = 600 }]
split_by = "header:X-User"

[release.gates]
stars = { limit = 1 }
agreement = 0.9
"""


def ask(daemon: Daemon, user: str) -> tuple[str, str]:
    """Return the id and the version of an answer."""
    status, headers, body = daemon.request("POST", INFER, DIGIT_REQUEST, {"X-User": user})
    assert status == 200
    return headers["x-request-id"], body["model_version"]


def test_answers_are_split_compared_and_judged_at_any_gateway(mesh: Mesh, tmp_path: Path) -> None:
    alpha, beta = mesh.grow("alpha", "beta")
    folder = tmp_path / "files"
    folder.mkdir()
    shutil.copy(DIGITS, folder / "digits.onnx")
    file = folder / "digits.toml"
    head = 'name = "digits"\nmodel = "digits.onnx"\nreplicas = 2\n'
    file.write_text(head, encoding="utf-8")
    done(alpha, "apply", str(file))
    changed = onnx.load(folder / "digits.onnx")
    changed.doc_string = "trained again"
    onnx.save(changed, folder / "digits.onnx")
    file.write_text(head + RELEASE, encoding="utf-8")
    done(alpha, "apply", str(file))

    users = [f"user-{number}" for number in range(30)]

    def is_split() -> bool:
        return len({ask(alpha, user)[1] for user in users}) == 2

    wait_until(is_split, 20, "both versions answer")
    at_alpha = {user: ask(alpha, user) for user in users}
    wait_until(
        lambda: (
            {user: ask(beta, user)[1] for user in users}
            == {user: version for user, (_, version) in at_alpha.items()}
        ),
        10,
        "every gateway gives a user the same version",
    )
    for answer, version in at_alpha.values():
        said = {"request": answer, "metrics": {"stars": 4 if version == "1" else 5}}
        status, _, told = beta.request("POST", "/mesh/v1/feedback", said)
        assert (status, told["version"], told["counted"]) == (200, int(version), ["stars"])
    status, _, told = beta.request(
        "POST", "/mesh/v1/feedback", {"request": "nothing", "metrics": {"stars": 1}}
    )
    assert (status, "within 24 hours" in told["error"]) == (404, True)

    def is_counted() -> bool:
        rollout = beta.request("GET", "/mesh/v1/deployments/digits/rollout")[2]
        return "stars" in json.dumps(rollout["arms"])

    wait_until(is_counted, 10, "the node that is asked hears what the other gateway counted")
    seen: Any = beta.control.get("/mesh/v1/deployments/digits/rollout/disagreements")
    assert seen["compared"] > 0
    assert (seen["disagreed"], seen["silent"]) == (0, [])
