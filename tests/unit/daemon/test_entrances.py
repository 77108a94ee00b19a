"""Users are sent away while a node ends; its owner's channel stays open until the last."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from meshnode.client.control import ControlAddress
from meshnode.daemon import entrances as module
from meshnode.daemon.entrances import Entrances
from meshnode.types import Address

if TYPE_CHECKING:
    import pytest


class Server:
    """Stands for an HTTP server; `did` is what it was told, by all of them."""

    did: list[tuple[str, str]]

    def __init__(self, _dispatcher: Any, _metrics: Any, access: Any, **_: Any) -> None:
        self.kind = "channel" if access is None else "gateway"

    async def listen_tcp(self, address: Address, _tls: Any = None) -> Address:
        return address._replace(port=4711)

    async def listen_unix(self, _path: Any) -> None:
        pass

    async def stop_accepting(self) -> None:
        self.did.append((self.kind, "stop_accepting"))

    def close_idle(self) -> None:
        self.did.append((self.kind, "close_idle"))

    async def stop(self) -> None:
        self.did.append((self.kind, "stop"))


async def test_users_are_sent_away_and_the_owner_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HttpServer", Server)
    monkeypatch.setattr(Server, "did", [], raising=False)
    part: Any = SimpleNamespace(
        api_key=None,
        events=SimpleNamespace(close=lambda: None),
        key_limits=None,
        releasing=None,
        now=lambda: 0.0,
        wall_s=lambda: 0.0,
    )
    entrances = Entrances(part, part, part, part, part)
    await entrances.open_gateway(Address("127.0.0.1", 0), (), None, require_key=False)
    await entrances.open_control(ControlAddress(unix="/nowhere"))
    assert repr(entrances) == "<Entrances: 2 open>"
    await entrances.stop_accepting()
    entrances.close_idle()
    assert Server.did == [("gateway", "stop_accepting"), ("gateway", "close_idle")]
    Server.did.clear()
    await entrances.close()
    assert Server.did == [("gateway", "stop"), ("channel", "stop")]
