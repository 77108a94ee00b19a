"""One mesh for all tests of conformance: two nodes hold the models, a third answers the clients."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Literal

import pytest

from tests.conformance.table import is_left_out
from tests.e2e.conftest import DIGITS, Daemon, Mesh, wait_until

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator
    from pathlib import Path

    from meshnode.client.mesh import MeshClient

HOLDERS: Final = ("alpha", "beta")
"""The nodes that serve the models; they run code."""

FRONT: Final = "gamma"
"""The node whose gateway the tests ask. It serves nothing, and would refuse to run code."""

JOIN_OPTIONS: Final[tuple[str, ...]] = ("--grpc", "127.0.0.1:0", "--shared-memory")
"""Options for `meshnode join` of all three nodes: what opens an entrance names port 0 here."""

READY_LIMIT_S: Final = 60.0


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Let a test fail in CI that was skipped: docs/conformance.md would say "yes" for what nobody has tried."""
    report = yield
    if is_left_out(report, os.environ):
        report.longrepr = f"skipped in CI, where nothing may be missing: {report.longrepr}"
        report.outcome = "failed"
    return report


@dataclass
class ConformanceMesh:
    """Three running nodes, and what a test asks of them besides inferences.

    Attributes:
        holders: The two nodes that serve the models.
        front: The node to ask, which serves none.
    """

    holders: tuple[Daemon, Daemon]
    front: Daemon
    _keys: dict[tuple[str, ...], str] = field(default_factory=dict)
    _port: int = 0

    @property
    def nodes(self) -> tuple[Daemon, Daemon, Daemon]:
        """All three, the holders first."""
        return (*self.holders, self.front)

    @property
    def port(self) -> int:
        """The port of the front's gateway on 127.0.0.1."""
        self._port = self._port or self.front.http_port
        return self._port

    @property
    def address(self) -> str:
        """The front's gateway as `HOST:PORT`."""
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        """The front's gateway as a URL, without a final slash."""
        return f"http://{self.address}"

    @property
    def operator(self) -> MeshClient:
        """A client of the first holder's control channel, which may do everything."""
        return self.holders[0].control

    def key(self, *scopes: Literal["infer", "deploy", "admin"]) -> str:
        """Return an API key with these scopes; the same one for the same scopes."""
        wanted = tuple(sorted(set(scopes)))
        if wanted not in self._keys:
            name = "-".join(("conformance", *wanted))
            self._keys[wanted] = self.operator.create_key(name, scopes=wanted).key
        return self._keys[wanted]

    def deploy(self, path: Path, name: str, *, on: tuple[str, ...] = HOLDERS, **wish: Any) -> None:
        """Serve a model on the holders, and wait until the front knows so.

        Args:
            path: Its folder or file.
            name: Public name; take one that no other module takes.
            on: Which holders shall serve it.
            wish: Further fields of `POST /mesh/v1/deployments`.
        """
        self.holders[0].deploy(path, name=name, on=list(on), replicas=len(on), **wish)
        self.wait_served(name, on=on)

    def wait_served(
        self, name: str, version: int | None = None, *, on: tuple[str, ...] = HOLDERS
    ) -> None:
        """Wait until the front sees a model ready on these nodes."""
        wait_until(
            lambda: self.front.ready_nodes(name, version) >= set(on),
            READY_LIMIT_S,
            lambda: (
                f"{name} is served on {', '.join(on)}; the first of them said:\n{self.holders[0].output}"
            ),
        )

    def undeploy(self, name: str) -> None:
        """Withdraw a model, and wait until the front knows so."""
        self.operator.undeploy(name)
        wait_until(
            lambda: not self.front.ready_nodes(name), READY_LIMIT_S, f"{name} is served no more"
        )


@pytest.fixture(scope="package")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ConformanceMesh]:
    """The running mesh; `digits` is served on both holders."""
    daemons = Mesh(tmp_path_factory.mktemp("conformance"))
    try:
        yield _grown(daemons)
    finally:
        daemons.close()


def _grown(daemons: Mesh) -> ConformanceMesh:
    first = daemons.start(HOLDERS[0], "--new", "--allow-code", *JOIN_OPTIONS).wait_ready()
    second = daemons.start(HOLDERS[1], first.invite(), "--allow-code", *JOIN_OPTIONS)
    front = daemons.start(FRONT, first.invite(), *JOIN_OPTIONS)
    for daemon in (second, front):
        daemon.wait_ready()
    for daemon in daemons.daemons:
        wait_until(partial(daemon.sees, 3), 15, f"{daemon.name} sees all")
    mesh = ConformanceMesh((first, second), front)
    mesh.deploy(DIGITS, "digits")
    return mesh
