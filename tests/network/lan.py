"""Hosts on one bridge, each a network namespace with a real daemon.

    switch 10.7.0.1 ─┬─ one 10.7.0.11
                     ├─ two 10.7.0.12
                     └─ ...

A daemon's control socket is a file, so the tests ask it from outside its network; what a person would
type on a host runs inside.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from meshnode.client.mesh import MeshClient
from meshnode.errors import MeshError
from tests.network.devices import Device, Network, bridge, poll

ROOT = Path(__file__).parents[2]
DIGITS = ROOT / "examples/digits/digits.onnx"
IMAGE = {
    "inputs": [
        {
            "name": "image",
            "shape": [1, 8, 8],
            "datatype": "FP32",
            "data": [i / 64 for i in range(64)],
        }
    ]
}
PORT = 8471
START_LIMIT_S = 60.0


class Host:
    """A device on the bridge, and the daemon that runs on it.

    Attributes:
        program: The module that is run; one that does as meshnode does, but for something that a test is about.
    """

    program = "meshnode"

    def __init__(self, device: Device, address: str) -> None:
        self.device = device
        self.name = device.name
        self.address = address
        self.data_dir = device.home / "node"
        self.client = MeshClient.local(self.data_dir)
        self.process: subprocess.Popen[bytes] | None = None

    # Its daemon

    def join(self, *arguments: str) -> Host:
        """Start the daemon, without waiting for it."""
        self.end()
        words = [sys.executable, "-m", self.program, "join", *arguments]
        words += ["--name", self.name, "--data-dir", str(self.data_dir), "--no-gateway"]
        with (self.device.home / "log").open("ab") as log:
            self.process = subprocess.Popen(
                self.device.inside(words), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env=self.device.environment, cwd=self.device.home,
            )  # fmt: skip
        return self

    def ready(self) -> Host:
        """Wait until the daemon answers."""

        def answers() -> bool:
            assert self.process is not None
            assert self.process.poll() is None, f"{self.name} ended:\n{self.log}"
            with contextlib.suppress(MeshError):
                return bool(self.client.get("/mesh/v1/status"))
            return False

        poll(answers, START_LIMIT_S, f"{self.name} answers")
        return self

    def end(self) -> None:
        """End the daemon, if one runs, as a pulled plug does."""
        if self.process is not None:
            self.device.power_off()
            self.process.wait()
            self.process = None

    @property
    def log(self) -> str:
        return (self.device.home / "log").read_text(errors="replace")

    def invite(self, **wish: Any) -> str:
        return str(self.client.post("/mesh/v1/invites", {"ttl_s": 600, **wish})["invite"])

    def nodes(self) -> dict[str, dict[str, Any]]:
        return {str(node["name"]): node for node in self.client.get("/mesh/v1/nodes")}

    def sees(self, *names: str) -> bool:
        """Whether these nodes are alive for this one, and no others are."""
        alive = {name for name, node in self.nodes().items() if node["state"] == "alive"}
        return alive == set(names)

    def infers(self) -> bool:
        """Whether a request for the digits is answered."""
        with contextlib.suppress(MeshError):
            answer = self.client.post("/v2/models/digits/infer", IMAGE, timeout_s=10)
            return bool(answer["outputs"])
        return False

    # What a person types there

    def run(self, command: str) -> tuple[int, str]:
        """Type a meshnode command; return its exit code and what it printed."""
        words = f"{sys.executable} -m meshnode {command} --data-dir {self.data_dir}"
        done = self.device.attempt(words, limit_s=60)
        return done.code, done.output

    def doctor(self, *arguments: str) -> dict[str, set[str]]:
        """Type `meshnode doctor`; return the codes that it found by result.

        Its exit code must say whether one of them is a fault.
        """
        code, output = self.run(" ".join(["doctor", "--json", *arguments]))
        lines = [line for line in output.splitlines() if line.startswith("{")]
        assert lines, f"{self.name}: doctor {arguments}: {output}"
        document = json.loads(lines[-1])
        found: dict[str, set[str]] = {"ok": set(), "note": set(), "fault": set()}
        for subject in document["subjects"]:
            for check in subject["checks"]:
                found[check["result"]].add(check["code"])
        assert code == (1 if found["fault"] else 0), output
        return found

    def faults(self, *arguments: str) -> set[str]:
        """Type `meshnode doctor`; return only what has to be mended."""
        return self.doctor(*arguments)["fault"]

    # Its network

    def block(self, rules: str) -> None:
        """Load firewall rules for what comes in, such as `udp dport 8471 drop`."""
        self._filter("input", rules)

    def block_out(self, rules: str) -> None:
        """Load firewall rules for what goes out."""
        self._filter("output", rules)

    def _filter(self, hook: str, rules: str) -> None:
        self.device.nft(f"""table inet block {{
            chain {hook} {{
                type filter hook {hook} priority filter;
                {rules}
            }}
        }}""")

    def unblock(self) -> None:
        """Drop all firewall rules."""
        self.device.attempt("nft delete table inet block")

    def move(self, address: str) -> None:
        """Give the host another address on the same bridge, and take the one it had."""
        # In this order: with its first address Linux takes all others of the same network.
        self.device.ip("addr", "del", f"{self.address}/24", "dev", "eth0")
        self.device.address("eth0", f"{address}/24")
        self.address = address


class Lan:
    """All hosts of one bridge."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.hosts: list[Host] = []
        self._switch = network.add("switch")

    def add(self, *names: str) -> list[Host]:
        """Add hosts to the bridge; call it once."""
        devices = [self.network.add(name) for name in names]
        bridge(self.network, self._switch, devices)
        self._switch.address("lan", "10.7.0.1/24")
        for number, device in enumerate(devices, start=11):
            device.address("eth0", f"10.7.0.{number}/24")
            self.hosts.append(Host(device, f"10.7.0.{number}"))
        return self.hosts

    def grow(self) -> list[Host]:
        """Let the first host found a mesh and the others join it; wait until all see all."""
        first, *others = self.hosts
        first.join("--new").ready()
        for host in others:
            host.join(first.invite())
        for host in others:
            host.ready()
        self.wait_whole()
        return self.hosts

    def wait_whole(self, limit_s: float = 30.0) -> None:
        """Wait until every host sees every host alive."""
        names = [host.name for host in self.hosts]
        for host in self.hosts:
            poll(lambda host=host: host.sees(*names), limit_s, f"{host.name} sees all")

    def part(self, *sides: list[Host]) -> None:
        """Let no packet pass between sides."""
        for side in sides:
            others = [host.address for each in sides if each is not side for host in each]
            for host in side:
                host.block(f"ip saddr {{ {', '.join(others)} }} drop")

    def close(self) -> None:
        """End every daemon."""
        for host in self.hosts:
            host.end()

    def heal(self) -> None:
        for host in self.hosts:
            host.unblock()


def environment() -> dict[str, str]:
    """Return what lets `python -m meshnode` run in any folder."""
    return {"PYTHONPATH": str(ROOT)}
