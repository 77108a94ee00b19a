"""Whether a node serves gRPC: as its owner chose, and by default only where nothing stands in the way."""

from __future__ import annotations

import socket
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from meshnode.daemon import grpc_entrance
from meshnode.errors import ConfigError
from meshnode.gateway.grpc_server import is_installed
from meshnode.options import DEFAULT_GRPC, DEFAULT_LISTEN, JoinOptions
from meshnode.types import Address

if TYPE_CHECKING:
    from collections.abc import Iterator

OPTIONS = JoinOptions(
    invite=None,
    name="n",
    region="r",
    zone="",
    labels=(),
    listen=DEFAULT_LISTEN,
    http=Address("127.0.0.1", 8470),
    data_dir="/d",
    models=None,
    new=True,
    mdns=False,
)


class Mesh:
    """Notes what is opened."""

    def __init__(self) -> None:
        self.opened: list[tuple[Address, bool]] = []

    async def open_grpc(self, address: Address, _tls: Any, *, require_key: bool) -> Address:
        self.opened.append((address, require_key))
        return address


@pytest.fixture
def taken() -> Iterator[Address]:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        yield Address(*sock.getsockname())


@pytest.fixture
def free() -> Address:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return Address(*sock.getsockname())


async def opened(options: JoinOptions) -> list[tuple[Address, bool]]:
    mesh: Any = Mesh()
    await grpc_entrance.check(options)
    await grpc_entrance.open_entrance(mesh, options, None)
    found: list[tuple[Address, bool]] = mesh.opened
    return found


async def test_by_default_it_is_at_the_gateways_host(free: Address) -> None:
    options = replace(OPTIONS, grpc=DEFAULT_GRPC._replace(port=free.port), require_key=True)
    assert await opened(options) == [(free, True)]


async def test_by_default_a_taken_port_a_free_one_for_http_and_no_gateway_leave_it_out(
    taken: Address,
) -> None:
    by_default = DEFAULT_GRPC._replace(port=taken.port)
    assert await opened(replace(OPTIONS, grpc=by_default)) == []
    anywhere = replace(OPTIONS, grpc=DEFAULT_GRPC, http=Address("127.0.0.1", 0))
    assert await opened(anywhere) == []
    assert await opened(replace(OPTIONS, grpc=DEFAULT_GRPC, http=None)) == []
    assert await opened(replace(OPTIONS, grpc=None)) == []


async def test_chosen_it_is_opened_or_the_start_fails(free: Address, taken: Address) -> None:
    assert await opened(replace(OPTIONS, grpc=free)) == [(free, False)]
    with pytest.raises(ConfigError, match="--grpc"):
        await opened(replace(OPTIONS, grpc=taken))


async def test_without_grpcio_it_is_missed_only_where_it_was_chosen(
    free: Address, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grpc_entrance, "is_installed", lambda: False)
    by_default = DEFAULT_GRPC._replace(port=free.port)
    assert await opened(replace(OPTIONS, grpc=by_default)) == []
    with pytest.raises(ConfigError, match=r"meshnode\[grpc\]"):
        await opened(replace(OPTIONS, grpc=free))


def test_the_packages_are_found_without_importing_them() -> None:
    assert is_installed()
