"""A streamed text survives the death of the node that writes it, and of the gateway through which it is read."""

from __future__ import annotations

import json
import shutil
import signal
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from meshnode.client.mesh import MeshClient
from tests.e2e.conftest import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.e2e.conftest import Daemon, Mesh

pytestmark = pytest.mark.e2e

LETTERS = Path(__file__).parents[2] / "examples" / "text" / "models" / "letters"
ASKED = {"prompt": ["hi"]}
SEEDED = {"seed": 7, "max_tokens": 120, "temperature": 1.5}


def slow_letters(folder: Path) -> Path:
    """Return a model repository with the example's model, which thinks 10 ms before each letter."""
    shutil.copytree(LETTERS, folder / "letters", ignore=shutil.ignore_patterns("__pycache__"))
    code = folder / "letters" / "1" / "model.py"
    text = code.read_text(encoding="utf-8")
    assert text.count("            text += letter\n") == 1
    text = text.replace(
        "            text += letter\n", "            time.sleep(0.01)\n            text += letter\n"
    )
    # Without an ending of its own: the test wants a long text.
    text = text.replace('if letter == "\\0":', 'if letter == "never":')
    code.write_text("import time\n" + text, encoding="utf-8")
    return folder


class Writers:
    """Two gateways without models, and two nodes that write."""

    def __init__(self, mesh: Mesh, folder: Path) -> None:
        models = str(slow_letters(folder))
        alpha = mesh.start("alpha", "--new").wait_ready()
        self.nodes: dict[str, Daemon] = {"alpha": alpha}
        self.nodes["delta"] = mesh.start("delta", alpha.invite())
        for name in ("beta", "gamma"):
            self.nodes[name] = mesh.start(name, alpha.invite(), "--models", models)
        for node in self.nodes.values():
            node.wait_ready()
        for node in self.nodes.values():
            both = partial(self._serves, node)
            wait_until(both, 40, lambda: f"two nodes write: {alpha.output}")

    @staticmethod
    def _serves(node: Daemon) -> bool:
        return node.ready_nodes("letters") == {"beta", "gamma"}

    def client(self, *names: str) -> MeshClient:
        urls = [f"http://127.0.0.1:{self.nodes[name].http_port}" for name in names]
        return MeshClient(urls)

    def read(
        self,
        client: MeshClient,
        at_letter: int = -1,
        what: Callable[[str, str], None] = lambda _node, _gateway: None,
    ) -> str:
        """Return the text; when so many letters are here, tell the node that writes and the gateway."""
        text = ""
        parts = client.predict_stream("letters", ASKED, parameters=SEEDED, timeout_s=60)
        for part in parts:
            text += "".join(part["text"])
            if len(text) == at_letter:
                what(part.route.node, part.gateway)
        return text


@pytest.fixture
def writers(mesh: Mesh, tmp_path: Path) -> Writers:
    return Writers(mesh, tmp_path / "models")


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_text_goes_on_exactly_where_the_node_that_wrote_it_is_lost(
    writers: Writers, how: signal.Signals
) -> None:
    client = writers.client("alpha")
    whole = writers.read(client)
    assert len(whole) == 120
    lost: list[str] = []

    def lose(node: str, _gateway: str) -> None:
        lost.append(node)
        writers.nodes[node].signal(how)

    assert writers.read(client, 40, lose) == whole
    assert lost[0] in ("beta", "gamma")


def test_a_text_goes_on_exactly_at_another_gateway(writers: Writers) -> None:
    client = writers.client("alpha", "delta")
    whole = writers.read(client)
    lost: list[str] = []

    def lose(_node: str, gateway: str) -> None:
        name = next(
            name
            for name in ("alpha", "delta")
            if gateway.endswith(f":{writers.nodes[name].http_port}")
        )
        lost.append(name)
        writers.nodes[name].signal(signal.SIGKILL)

    assert writers.read(client, 40, lose) == whole
    assert len(lost) == 1


def test_a_text_goes_on_exactly_where_gateway_and_writer_are_one_node(writers: Writers) -> None:
    whole = writers.read(writers.client("alpha"))
    client = writers.client("beta", "delta")
    lost: list[str] = []

    def lose(node: str, _gateway: str) -> None:
        if node == "beta":  # either writer may be chosen
            lost.append(node)
            writers.nodes["beta"].signal(signal.SIGKILL)

    for _ in range(20):
        assert writers.read(client, 40, lose) == whole
        if lost:
            break
    assert lost == ["beta"]


def test_a_chat_of_another_dialect_goes_on_too(writers: Writers) -> None:
    asked: dict[str, Any] = {
        "model": "letters",
        "messages": [{"role": "user", "content": "hi"}],
        "stream": True,
        "seed": 7,
        "temperature": 1.5,
        "max_tokens": 120,
    }

    def chat() -> tuple[str, bytes]:
        _, headers, body = writers.nodes["alpha"].request("POST", "/v1/chat/completions", asked)
        return headers["mesh-route"].partition(";")[0].removeprefix("node="), body

    def text_of(body: bytes) -> str:
        assert body.endswith(b"data: [DONE]\n\n")
        events = [json.loads(line[6:]) for line in body.split(b"\n\n")[:-2]]
        return "".join(each["choices"][0]["delta"].get("content") or "" for each in events)

    node, body = chat()
    whole = text_of(body)
    import threading

    timer = threading.Timer(0.5, lambda: writers.nodes[node].signal(signal.SIGKILL))
    timer.start()
    _, body = chat()
    timer.join()
    assert text_of(body) == whole
