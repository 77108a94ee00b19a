"""Changes of the mesh on a node whose disk takes nothing."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from meshnode.errors import ConfigError, MeshError
from tests.unit.daemon.conftest import eventually

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.unit.daemon.conftest import Daemons, Running

DIGITS = Path(__file__).parents[3] / "examples" / "digits" / "digits.onnx"


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> Callable[[Running], Callable[[], None]]:
    """Let a running daemon's disk take no state; what is returned mends it."""

    def fill(daemon: Running) -> Callable[[], None]:
        def save_state(key: str, value: bytes) -> None:
            raise ConfigError(f"cannot write {key}: No space left on device")

        monkeypatch.setattr(daemon.folder, "save_state", save_state)
        return monkeypatch.undo

    return fill


async def revoke(daemon: Running, name: str) -> Any:
    return await asyncio.to_thread(daemon.client.delete, f"/mesh/v1/keys/{name}")


def memory(daemon: Running) -> tuple[Any, ...]:
    """Return all that a daemon would tell of the desired state."""
    assert daemon.daemon._driver is not None
    node = daemon.daemon._driver.node
    assert node is not None
    desired = node.desired
    histories = [desired.history(key) for key, _ in desired.items()]
    return desired.items(), histories, desired._root, desired.size_bytes, dict(node.own)


async def test_changes_that_cannot_be_written_leave_no_trace(
    daemons: Daemons, full: Callable[[Running], Callable[[], None]]
) -> None:
    alpha = await daemons.start("alpha").ready()
    await alpha.post("/mesh/v1/keys", {"name": "r1", "scopes": ["infer"]})
    before = memory(alpha)
    mend = full(alpha)

    async def fails(change: Awaitable[Any]) -> None:
        with pytest.raises(MeshError, match="No space left"):
            await change
        assert memory(alpha) == before

    for _ in range(2):
        await fails(revoke(alpha, "r1"))
    await fails(alpha.post("/mesh/v1/keys", {"name": "r2", "scopes": ["infer"]}))
    await fails(alpha.post("/mesh/v1/deployments", {"path": str(DIGITS), "name": "digits"}))
    assert [key["state"] for key in await alpha.get("/mesh/v1/keys")] == ["valid"]
    assert await alpha.get("/mesh/v1/models") == []
    mend()
    assert (await revoke(alpha, "r1"))["changed"] is True
    await alpha.stop()
    alpha = await daemons.start("alpha").ready()
    assert [key["state"] for key in await alpha.get("/mesh/v1/keys")] == ["revoked"]


async def test_a_node_acts_by_what_others_wrote_and_writes_it_down_when_it_stops(
    daemons: Daemons, full: Callable[[Running], Callable[[], None]]
) -> None:
    alpha = await daemons.start("alpha").ready()
    beta = await daemons.start("beta", invite=await alpha.invite()).ready()
    mend = full(beta)
    await alpha.post("/mesh/v1/keys", {"name": "r1", "scopes": ["infer"]})

    def hears() -> bool:
        return any(key.startswith("key/") for key, _ in memory(beta)[0])

    await eventually(hears, "beta hears of the key")
    assert beta.daemon._driver is not None
    assert "desired" in beta.daemon._driver._unsaved
    mend()
    await alpha.stop()
    await beta.stop()
    beta = await daemons.start("beta").ready()
    assert [key["name"] for key in await beta.get("/mesh/v1/keys")] == ["r1"]
