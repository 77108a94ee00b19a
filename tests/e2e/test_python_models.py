"""Models written in Python, asked through a gateway of another node: real daemons and processes."""

from __future__ import annotations

import http.client
import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.conftest import wait_until

if TYPE_CHECKING:
    from tests.e2e.conftest import Daemon, Mesh

pytestmark = pytest.mark.e2e

EXAMPLES = Path(__file__).parents[2] / "examples" / "python_models"


def post(daemon: Daemon, path: str, body: object, **headers: str) -> tuple[int, str, bytes]:
    """Return status, content type and body of an answer."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    line = http.client.HTTPConnection("127.0.0.1", daemon.http_port, timeout=30)
    try:
        line.request("POST", path, json.dumps(body), named)
        response = line.getresponse()
        return response.status, response.headers["Content-Type"], response.read()
    finally:
        line.close()


def is_served(daemon: Daemon, model: str) -> bool:
    return daemon.ready_nodes(model) == {"beta"}


def sample(name: str) -> Any:
    return json.loads((EXAMPLES / f"{name}_sample.json").read_text(encoding="utf-8"))["request"]


def test_any_gateway_answers_for_a_model_that_is_code_on_another_node(mesh: Mesh) -> None:
    alpha = mesh.start("alpha", "--new").wait_ready()
    beta = mesh.start("beta", alpha.invite(), "--models", str(EXAMPLES / "models")).wait_ready()
    for model in ("wine", "digits_reader"):
        wait_until(partial(is_served, alpha, model), 30, f"{model} is served")
    # A route of the model's own, checked and answered by its author's FastAPI router.
    status, kind, body = post(alpha, "/wine", sample("wine"), Content_Type="application/json")
    assert (status, kind, json.loads(body)["grower"]) == (200, "application/json", "Alba")
    status, _, body = post(alpha, "/wine", {}, Content_Type="application/json")
    assert (status, json.loads(body)["detail"][0]["loc"]) == (422, ["body", "alcohol"])
    # A document, a stream of events, and a file that lies on the other node.
    digit = sample("digits")
    status, _, body = post(alpha, "/inference/digits_reader", digit)
    assert (status, json.loads(body)["digit"]) == (200, 8)
    status, kind, body = post(alpha, "/inference/digits_reader", digit | {"stream": True})
    assert (status, kind, body.count(b"data: ")) == (200, "text/event-stream", 3)
    status, kind, body = post(alpha, "/inference/digits_reader", digit, Accept="image/png")
    assert (status, kind, body[:4]) == (200, "image/png", b"\x89PNG")
    # Beta goes, and so do its routes.
    assert beta.stop() == 0
    wait_until(lambda: post(alpha, "/wine", {})[0] in (404, 503), 15, "the route is gone")
