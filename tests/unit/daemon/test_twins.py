"""A data folder on two machines: refused, and both owners can see it."""

from __future__ import annotations

import asyncio
import shutil
from typing import TYPE_CHECKING

from tests.unit.daemon.conftest import LIMIT_S

if TYPE_CHECKING:
    import pytest

    from tests.unit.daemon.conftest import Daemons, Running


async def says_so(running: Running) -> None:
    """Wait until a node's status says that its key runs twice."""
    deadline = asyncio.get_running_loop().time() + LIMIT_S
    while "data folder was copied" not in ((await running.get("/mesh/v1/status"))["twin"] or ""):
        assert asyncio.get_running_loop().time() < deadline, f"{running} does not say so"
        await asyncio.sleep(0.02)


async def test_a_copied_data_folder_is_noticed_by_both_and_the_mesh_goes_on(
    daemons: Daemons, caplog: pytest.LogCaptureFixture
) -> None:
    alpha = await daemons.start("alpha").ready()
    beta = await daemons.start("beta", await alpha.invite()).ready()
    await beta.sees(2)
    await beta.stop()
    shutil.copytree(daemons.folder / "beta", daemons.folder / "copy")
    beta = await daemons.start("beta").ready()
    await alpha.sees(2)
    await beta.sees(2)
    assert (await beta.get("/mesh/v1/status"))["twin"] is None
    copy = await daemons.start("copy").ready()
    await says_so(beta)
    await says_so(copy)
    assert (await alpha.get("/mesh/v1/status"))["twin"] is None
    assert "node beta runs twice: a second one, at 127.0.0.1, was refused" in caplog.text
    assert "this node runs twice: alpha refused the other process" in caplog.text
    driver = alpha.daemon._driver
    assert driver is not None
    assert driver.events["member.conflict"] >= 1
    assert driver.events["member.dead"] == 0
    assert driver.hub.boot(beta.folder.identity().node_id) is not None
    await beta.sees(2)
    assert await copy.stop() == 0
    await alpha.sees(2)
    await beta.sees(2)
