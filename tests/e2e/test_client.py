"""The Python client against real daemons: gateways die and freeze under it, and files go up."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pytest

from meshnode import AsyncMeshClient, DeployProgress, MeshClient
from meshnode.errors import MeshError, Unauthenticated
from tests.e2e.conftest import DIGITS, Daemon, Mesh, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.e2e

PAGE = Path(__file__).parents[2] / "docs" / "python-client.md"
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
IMAGE = np.linspace(0, 1, 64, dtype=np.float32).reshape(1, 8, 8)


def url(node: Daemon) -> str:
    return f"http://127.0.0.1:{node.http_port}"


@pytest.fixture
def pair(mesh: Mesh) -> list[Daemon]:
    """Two nodes that both serve the digits."""
    nodes = mesh.grow("alpha", "beta")
    nodes[0].deploy(DIGITS, name="digits", replicas=2)
    for node in nodes:
        wait_until(lambda node=node: node.has_replicas(2), 30, "digits is served")  # type: ignore[misc]
    return nodes


class Inferring:
    """Threads that infer through one client until stopped."""

    def __init__(self, client: MeshClient, timeout_s: float) -> None:
        self._client, self._timeout_s = client, timeout_s
        self._stop = threading.Event()
        self.errors: list[MeshError] = []
        self.gateways: list[str] = []
        self.slowest_s = 0.0
        self._threads = [threading.Thread(target=self._run) for _ in range(4)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(30)

    def _run(self) -> None:
        while not self._stop.is_set():
            began = time.monotonic()
            try:
                result = self._client.infer("digits", {"image": IMAGE}, timeout_s=self._timeout_s)
                self.gateways.append(result.gateway)
            except MeshError as error:
                self.errors.append(error)
            self.slowest_s = max(self.slowest_s, time.monotonic() - began)
            time.sleep(0.005)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_no_request_fails_when_the_gateway_in_use_dies_or_freezes(
    pair: list[Daemon], number: signal.Signals
) -> None:
    alpha, beta = pair
    timeout_s = 5.0
    here, there = url(alpha), url(beta)
    with MeshClient([here, there]) as client, Inferring(client, timeout_s) as load:
        wait_until(lambda: len(load.gateways) > 50, 10, "requests are answered")
        assert set(load.gateways) == {here}
        alpha.signal(number)
        wait_until(lambda: load.gateways[-1:] == [there], 10, "the other gateway answers")
        time.sleep(1.5)
    assert load.errors == []
    assert load.slowest_s < timeout_s
    assert load.gateways[-1] == there


def test_coroutines_survive_the_death_of_their_gateway_too(pair: list[Daemon]) -> None:
    alpha, beta = pair
    urls = [url(alpha), url(beta)]

    async def main() -> set[str]:
        found: set[str] = set()
        async with AsyncMeshClient(urls, timeout_s=5) as client:

            async def work() -> None:
                until = time.monotonic() + 2
                while time.monotonic() < until:
                    found.add((await client.infer("digits", IMAGE)).gateway)

            workers = [asyncio.ensure_future(work()) for _ in range(8)]
            await asyncio.sleep(0.5)
            alpha.signal(signal.SIGKILL)
            await asyncio.gather(*workers)
        return found

    assert asyncio.run(main()) == set(urls)


@pytest.fixture
def digits_copy(tmp_path: Path) -> Path:
    """The digits as a model folder."""
    folder = tmp_path / "models" / "numbers"
    (folder / "1").mkdir(parents=True)
    (folder / "1" / "model.onnx").write_bytes(DIGITS.read_bytes())
    return folder


def test_a_model_is_deployed_by_upload_with_a_key(mesh: Mesh, digits_copy: Path) -> None:
    alpha, beta = mesh.grow("alpha", "beta")
    with MeshClient.local(alpha.data_dir) as owner:
        key = owner.create_key("build", scopes=["deploy"]).key
    with MeshClient(url(alpha)) as stranger, pytest.raises(Unauthenticated):
        stranger.deploy(digits_copy)
    seen: list[DeployProgress] = []
    with MeshClient(url(beta), api_key=key) as client:
        wait_until(lambda: accepted(client), 10, "beta has heard of the key")
        model = client.deploy(digits_copy, replicas=2, progress=seen.append)
        assert sorted(model.ready_on) == ["alpha", "beta"]
        assert model.name == "numbers"
        assert client.infer("numbers", IMAGE)["probabilities"].shape == (1, 10)
        client.undeploy("numbers")
    assert seen[0].stage == "uploading"
    assert seen[-1].stage == "ready"


def accepted(client: MeshClient) -> bool:
    try:
        return bool(client.status())
    except MeshError:
        return False


def test_the_command_line_deploys_to_a_gateway_and_asks_it(
    mesh: Mesh, digits_copy: Path, tmp_path: Path
) -> None:
    (alpha,) = mesh.grow("alpha")
    with MeshClient.local(alpha.data_dir) as owner:
        (tmp_path / "key").write_text(owner.create_key("build", scopes=["deploy"]).key)
    remote = ["--gateway", url(alpha), "--key-file", str(tmp_path / "key")]

    def meshnode(*arguments: str) -> str:
        ran = subprocess.run(
            [sys.executable, "-m", "meshnode", *arguments, *remote],
            capture_output=True,
            text=True,
            check=False,
        )
        assert ran.returncode == 0, ran.stderr
        return ran.stdout

    assert "numbers" in meshnode("deploy", str(digits_copy))
    np.save(tmp_path / "image.npy", IMAGE)
    assert "route: node=alpha" in meshnode("infer", "numbers", f"image=@{tmp_path / 'image.npy'}")
    assert "no longer deployed" in meshnode("undeploy", "numbers")


COUNTER_MODEL = """
import time

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            sender = request.get_response_sender()
            for number in range(40):
                tensor = pb_utils.Tensor("number", np.array([number], np.int32))
                sender.send(pb_utils.InferenceResponse([tensor]))
                time.sleep(0.05)
            sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
        return None
"""
COUNTER_CONFIG = """
backend: "python"
input [ { name: "x" data_type: TYPE_INT32 dims: [ 1 ] } ]
output [ { name: "number" data_type: TYPE_INT32 dims: [ 1 ] } ]
model_transaction_policy { decoupled: true }
"""


def test_a_stream_survives_a_torn_line_and_the_loss_of_its_gateway(
    mesh: Mesh, tmp_path: Path
) -> None:
    """The line is torn by a proxy, the gateway is killed; the model runs on the other node all the time."""
    folder = tmp_path / "counter"
    (folder / "1").mkdir(parents=True)
    (folder / "1" / "model.py").write_text(COUNTER_MODEL, encoding="utf-8")
    (folder / "config.pbtxt").write_text(COUNTER_CONFIG, encoding="utf-8")
    holder = mesh.start("holder", "--new", "--allow-code").wait_ready()
    front = mesh.start("front", holder.invite()).wait_ready()
    holder.deploy(folder, name="counter")
    wait_until(lambda: front.ready_nodes("counter") == {"holder"}, 30, "the front knows the model")
    with Torn(front.http_port) as torn, MeshClient([torn.url]) as client:
        numbers = []
        for part in client.stream("counter", {"x": np.array([1], np.int32)}):
            numbers.append(int(part["number"][0]))
            if len(numbers) in (5, 12):
                torn.tear()
        assert numbers == list(range(40))
        assert torn.connections >= 3
    with MeshClient([url(front), url(holder)]) as client:
        numbers = []
        for part in client.stream("counter", {"x": np.array([1], np.int32)}):
            numbers.append(int(part["number"][0]))
            if len(numbers) == 5:
                front.signal(signal.SIGKILL)
        assert numbers == list(range(40))  # the other gateway went on with it
        # The gateway that was lost is behind the other one now.
        assert next(client.stream("counter", {"x": np.array([1], np.int32)}))["number"][0] == 0


class Torn:
    """Passes connections on to a port of this machine, and tears them all when told."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._lines: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self.connections = 0
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> Self:
        self._run(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.tear()
        for thread in self._threads:
            thread.join(5)

    def tear(self) -> None:
        for line in self._lines:
            with contextlib.suppress(OSError):
                line.shutdown(socket.SHUT_RDWR)

    def _run(self, work: Callable[..., None], *arguments: socket.socket) -> None:
        thread = threading.Thread(target=work, args=arguments)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                self.connections += 1
                try:
                    far = socket.create_connection(("127.0.0.1", self._port))
                except OSError:
                    near.close()
                    continue
                self._lines += [near, far]
                self._run(self._pass_on, near, far)
                self._run(self._pass_on, far, near)

    def _pass_on(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError), source:
            while data := source.recv(65536):
                target.sendall(data)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_RDWR)


@pytest.fixture(scope="module")
def documented(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """A node that serves the digits, and the environment in which examples find it."""
    folder = tmp_path_factory.mktemp("documented")
    mesh = Mesh(folder)
    try:
        (node,) = mesh.grow("alpha")
        node.deploy(DIGITS, name="digits")
        wait_until(lambda: node.has_replicas(1), 30, "digits is served")
        (folder / "digits.onnx").write_bytes(DIGITS.read_bytes())
        yield {
            "cwd": folder,
            "gateway": url(node),
            "env": {"MESHNODE_GATEWAY": url(node), "MESHNODE_DATA_DIR": str(node.data_dir)},
        }
    finally:
        mesh.close()


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_every_example_of_the_page_works(documented: dict[str, Any], number: int) -> None:

    code = EXAMPLES[number].replace("http://127.0.0.1:8470", documented["gateway"])
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=documented["cwd"],
        env={**os.environ, **documented["env"]},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout
