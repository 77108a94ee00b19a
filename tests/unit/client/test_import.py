"""What importing the client costs: a program that asks a mesh is no daemon."""

from __future__ import annotations

import subprocess
import sys

import meshnode

HEAVY = {
    "aiohttp",
    "cryptography",
    "meshnode.cli",
    "meshnode.daemon",
    "meshnode.gateway.server",
    "meshnode.net",
    "meshnode.node",
    "nacl",
    "numpy",
    "onnxruntime",
    "PIL",
    "psutil",
    "torch",
    "typer",
    "uvloop",
    "zeroconf",
}


def loaded_by(statement: str) -> set[str]:
    script = f"import sys; {statement}; print(*sys.modules)"
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(ran.stdout.split())


def test_the_package_alone_loads_nothing_of_itself() -> None:
    loaded = loaded_by("import meshnode")
    own = {name for name in loaded if name.startswith("meshnode")}
    assert own == {"meshnode"}
    assert loaded & HEAVY == set()


def test_the_clients_load_neither_a_daemon_nor_what_only_it_needs() -> None:
    assert loaded_by("from meshnode import MeshClient, AsyncMeshClient") & HEAVY == set()


def test_a_client_with_an_event_loop_does_not_load_the_sockets_of_the_other() -> None:
    loaded = loaded_by("from meshnode import AsyncMeshClient")
    assert loaded & {"http.client", "meshnode.client.pool"} == set()


def test_a_client_that_waits_loads_no_event_loop() -> None:
    assert "asyncio" not in loaded_by("from meshnode import MeshClient; MeshClient('http://a')")


def test_every_public_name_is_there_and_listed() -> None:
    for name in meshnode.__all__:
        assert getattr(meshnode, name) is not None
    assert set(meshnode.__all__) <= set(dir(meshnode))
    assert not hasattr(meshnode, "nonsense")
