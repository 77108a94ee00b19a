"""A serving node dies, freezes or leaves under a steady load; garbage arrives at the ports."""

from __future__ import annotations

import http.client
import json
import random
import signal
import socket
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import pytest

from tests.e2e.conftest import DIGIT_REQUEST, DIGITS, SteadyLoad, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.e2e.conftest import Daemon, Mesh

pytestmark = pytest.mark.e2e


def serve_two_of_three(mesh: Mesh) -> tuple[Daemon, Daemon, Daemon]:
    """Return (gateway that serves nothing, serving node, serving node)."""
    nodes = mesh.grow("alpha", "beta", "gamma", regions=("eu", "us", "ap"))
    nodes[0].deploy(DIGITS, name="digits", replicas=2)
    for node in nodes:
        wait_until(partial(node.has_replicas, 2), 30, "two replicas")
    serving = nodes[0].ready_nodes("digits")
    gateway = next(node for node in nodes if node.name not in serving)
    first, second = (node for node in nodes if node.name in serving)
    return gateway, first, second


def test_killing_a_serving_node_fails_no_request(mesh: Mesh) -> None:
    gateway, *serving = serve_two_of_three(mesh)
    with SteadyLoad(gateway.http_port) as load:
        load.run_for(1.0)
        victim = max(serving, key=lambda node: load.answered_by(node.name))
        victim.signal(signal.SIGKILL)
        load.run_for(3.0)
    assert load.failures == []
    assert len(load.samples) > 500
    assert load.slowest_s() < 1.0
    assert load.answered_by(victim.name) > 0
    wait_until(lambda: gateway.states()[victim.name] == "dead", 15, "the death is noticed")
    wait_until(lambda: gateway.name in gateway.ready_nodes("digits"), 15, "the mesh heals itself")


def test_a_frozen_serving_node_costs_at_most_a_second_and_fails_no_request(mesh: Mesh) -> None:
    gateway, victim, _ = serve_two_of_three(mesh)
    with SteadyLoad(gateway.http_port) as load:
        load.run_for(1.0)
        frozen_at = time.monotonic()
        victim.signal(signal.SIGSTOP)
        load.run_for(4.0)
        victim.signal(signal.SIGCONT)
        load.run_for(1.0)
    assert load.failures == []
    assert load.slowest_s() < 2.0
    # Only what was in flight there, and then a probe at a time, paid for it.
    slow = [each for each in load.samples if each.at > frozen_at and each.took_s > 0.5]
    assert len(slow) <= 8
    wait_until(lambda: gateway.states()[victim.name] == "alive", 15, "it is back")


def test_a_node_that_stood_still_for_long_is_back_within_seconds_and_blames_nobody(
    mesh: Mesh,
) -> None:
    """As after a closed lid: the others gave it up, and it must not give them up in turn."""
    first, sleeper, third = mesh.grow("alpha", "beta", "gamma")
    sleeper.signal(signal.SIGSTOP)
    try:
        wait_until(lambda: first.states()[sleeper.name] == "dead", 30, "it is held for dead")
    finally:
        sleeper.signal(signal.SIGCONT)
    woke_at = time.monotonic()
    for node in (first, third):
        wait_until(lambda node=node: node.states()[sleeper.name] == "alive", 15, "it is back")  # type: ignore[misc]
    assert time.monotonic() - woke_at < 10
    assert set(sleeper.states().values()) == {"alive"}
    said = sleeper.output
    assert "this node slept for" in said
    assert "member.dead" not in said[said.index("this node slept for") :]


def test_a_serving_node_that_leaves_fails_no_request(mesh: Mesh) -> None:
    gateway, victim, _ = serve_two_of_three(mesh)
    with SteadyLoad(gateway.http_port) as load:
        load.run_for(1.0)
        assert victim.stop() == 0
        load.run_for(1.5)
    assert load.failures == []
    assert load.slowest_s() < 1.0
    wait_until(lambda: gateway.states()[victim.name] == "left", 5, "the goodbye was heard")


@dataclass
class Clients:
    """Threads that ask one gateway until it closes or refuses the connection, and then another."""

    ports: list[int]
    answers: list[tuple[int, int]] = field(default_factory=list)  # port, status
    stop: threading.Event = field(default_factory=threading.Event)

    def run(self, seconds: float, count: int, midway: Callable[[], object]) -> None:
        threads = [threading.Thread(target=self._ask, daemon=True) for _ in range(count)]
        for thread in threads:
            thread.start()
        time.sleep(seconds / 2)
        midway()
        time.sleep(seconds / 2)
        self.stop.set()
        for thread in threads:
            thread.join(40)
            assert not thread.is_alive()

    def _ask(self) -> None:
        body = json.dumps(DIGIT_REQUEST).encode()
        current = 0
        connection = http.client.HTTPConnection("127.0.0.1", self.ports[0], timeout=30)
        while not self.stop.is_set():
            try:
                connection.request("POST", "/v2/models/digits/infer", body)
                response = connection.getresponse()
                response.read()
                is_closing = response.will_close
                self.answers.append((self.ports[current], response.status))
            except (OSError, http.client.HTTPException):
                is_closing = True
            if is_closing:
                connection.close()
                current = min(current + 1, len(self.ports) - 1)
                connection = http.client.HTTPConnection("127.0.0.1", self.ports[current])
            time.sleep(0.002)
        connection.close()


def test_a_gateway_that_leaves_answers_nothing_but_200(mesh: Mesh) -> None:
    alpha, beta = mesh.grow("alpha", "beta")
    alpha.deploy(DIGITS, name="digits", replicas=2)
    for node in (alpha, beta):
        wait_until(partial(node.has_replicas, 2), 30, "two replicas")
    clients = Clients([alpha.http_port, beta.http_port])
    first, second = clients.ports
    clients.run(3.0, 6, alpha.stop)
    assert {status for _, status in clients.answers} == {200}
    asked = Counter(port for port, _ in clients.answers)
    assert min(asked[first], asked[second]) > 100


def test_random_bytes_at_the_mesh_and_http_ports_leave_the_daemon_serving(mesh: Mesh) -> None:
    alpha, beta = mesh.grow("alpha", "beta")
    alpha.deploy(DIGITS, name="digits", replicas=1, on=["alpha"])
    wait_until(lambda: beta.ready_nodes("digits"), 30, "digits is served")
    rng = random.Random(7)
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with udp:
        for index in range(200):
            garbage = rng.randbytes(rng.randrange(1, 2000))
            udp.sendto(garbage[:1400], ("127.0.0.1", alpha.mesh_port))
            port = alpha.mesh_port if index % 2 else alpha.http_port
            with socket.create_connection(("127.0.0.1", port), 5) as connection:
                connection.sendall(garbage)
    status, _, answer = beta.request("POST", "/v2/models/digits/infer", DIGIT_REQUEST)
    assert status == 200
    assert answer["model_name"] == "digits"
    assert alpha.request("GET", "/healthz")[0] == 200
    assert beta.states() == {"alpha": "alive", "beta": "alive"}


def test_half_open_connections_do_not_keep_others_out(mesh: Mesh) -> None:
    alpha = mesh.start("alpha", "--new").wait_ready()
    silent = [socket.create_connection(("127.0.0.1", alpha.mesh_port), 5) for _ in range(100)]
    try:
        beta = mesh.start("beta", alpha.invite()).wait_ready()
        wait_until(lambda: alpha.sees(2) and beta.sees(2), 15, "both see both")
    finally:
        for connection in silent:
            connection.close()
