"""`--triton-ports`: three more entrances at the gateway's host, or a start that ends with the reason."""

from __future__ import annotations

import socket
from types import SimpleNamespace
from typing import Any, cast

import pytest

from meshnode.daemon import triton_ports
from meshnode.errors import ConfigError
from meshnode.types import Address


def options(**fields: Any) -> Any:
    http = Address("127.0.0.1", 8470)
    whole = {"triton_ports": True, "http": http, "grpc": None, "is_key_required_here": True}
    return SimpleNamespace(**{**whole, **fields})


class Mesh:
    """Notes what is opened."""

    def __init__(self) -> None:
        self.opened: list[tuple[str, int]] = []

    async def open_grpc(self, address: Address, _tls: Any, *, require_key: bool) -> None:
        assert require_key
        self.opened.append(("grpc", address.port))

    async def open_further_gateway(
        self, address: Address, _options: Any, _tls: Any, *, only_metrics: bool
    ) -> None:
        self.opened.append(("metrics" if only_metrics else "http", address.port))


async def test_all_three_are_opened() -> None:
    mesh = Mesh()
    await triton_ports.open_entrances(cast("Any", mesh), options(), None)
    assert mesh.opened == [("http", 8000), ("grpc", 8001), ("metrics", 8002)]


async def test_grpc_is_left_out_where_it_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_ports, "is_installed", lambda: False)
    mesh = Mesh()
    await triton_ports.open_entrances(cast("Any", mesh), options(), None)
    assert [port for _, port in mesh.opened] == [8000, 8002]


@pytest.mark.parametrize("fields", [{"triton_ports": False}, {"http": None}])
async def test_nothing_is_opened_unasked(fields: dict[str, Any]) -> None:
    mesh = Mesh()
    await triton_ports.open_entrances(cast("Any", mesh), options(**fields), None)
    assert mesh.opened == []


async def test_a_port_that_is_taken_ends_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setattr(triton_ports, "HTTP_PORT", port)
        with pytest.raises(ConfigError, match=f"--triton-ports needs port {port}"):
            await triton_ports.check(options())
    monkeypatch.setattr(triton_ports, "HTTP_PORT", 8470)
    with pytest.raises(ConfigError, match="so does another option"):
        await triton_ports.check(options())
