"""Members as people change them on one node: whole daemons in this process."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from meshnode.client.mesh import MeshClient
from meshnode.daemon.credentials import Credentials
from meshnode.datafolder import read_evicted
from meshnode.errors import ConfigError, Forbidden, InvalidRequest
from meshnode.types import Address
from tests.unit.daemon.conftest import eventually
from tests.unit.daemon.test_member import until

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshnode.daemon.trust import Trust
    from tests.unit.daemon.conftest import Daemons, Running

LOOPBACK = Address("127.0.0.1", 0)


async def call(method: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    return await asyncio.to_thread(partial(method, *arguments, **named))


async def invite(running: Running, **wish: Any) -> str:
    return str((await running.post("/mesh/v1/invites", wish))["invite"])


async def evict(running: Running, node: str, **wish: Any) -> Any:
    return await running.post("/mesh/v1/evictions", {"node": node, **wish})


async def has_keys(running: Running, count: int) -> bool:
    return len(await running.get("/mesh/v1/keys")) == count


async def members(running: Running) -> dict[str, dict[str, Any]]:
    rows = (await running.get("/mesh/v1/trust"))["members"]
    return {row["name"]: row for row in rows}


def trust_of(running: Running) -> Trust:
    mesh = running.daemon._mesh
    assert mesh is not None
    return mesh.control.trust


async def test_an_eviction_names_who_went_and_which_of_their_keys_are_valid_still(
    daemons: Daemons,
) -> None:
    alpha = await daemons.start("alpha").ready()
    beta = await daemons.start("beta", await invite(alpha)).ready()
    gamma = await daemons.start("gamma", await invite(beta, role="member")).ready()
    await alpha.sees(3)
    for name, ttl_s in (("kept", None), ("gone", 1)):
        await beta.post("/mesh/v1/keys", {"name": name, "ttl_s": ttl_s})
    await alpha.post("/mesh/v1/keys", {"name": "own"})
    await beta.post("/mesh/v1/keys", {"name": "revoked"})
    await call(beta.client.delete, "/mesh/v1/keys/revoked")
    await until(partial(has_keys, alpha, 4), "alpha knows the keys")
    await asyncio.sleep(1.1)  # `gone` expires
    before = await members(alpha)
    assert (before["gamma"]["by_name"], before["gamma"]["role"]) == ("beta", "member")
    found = await evict(alpha, "beta", reason="lost", with_invited=True)
    assert found["changed"]
    assert {each["name"] for each in found["evicted"]} == {"beta", "gamma"}
    assert [key["name"] for key in found["keys"]] == ["kept"]
    assert set(await members(alpha)) == {"alpha"}
    assert await beta.end() == 2
    assert await gamma.end() == 2
    known = read_evicted(gamma.folder.path)
    assert known is not None
    assert known.why
    # The name is remembered by those who evicted it, and means it until somebody else has it.
    again = await evict(alpha, "beta")
    assert (again["changed"], again["evicted"]) == (False, [])
    assert again["node"] == found["node"]
    revoked = (await alpha.get("/mesh/v1/trust"))["revoked"]
    assert {row["name"] for row in revoked} == {"beta", "gamma"}


async def test_evicting_the_founder_seals_the_root_key_that_it_holds(daemons: Daemons) -> None:
    alpha = await daemons.start("alpha").ready()
    beta = await daemons.start("beta", await invite(alpha, role="admin")).ready()
    await beta.sees(2)
    assert (await beta.get("/mesh/v1/status"))["role"] == "admin"
    found = await evict(beta, "alpha", reason="sold")
    assert (found["changed"], found["sealed"]) == (True, True)
    assert await alpha.end() == 2
    view = await beta.get("/mesh/v1/trust")
    assert view["sealed"]
    assert [row["name"] for row in view["revoked"]] == ["alpha"]
    assert [row["name"] for row in view["members"]] == ["beta"]
    assert await invite(beta)  # and the mesh goes on


async def test_a_key_may_no_more_than_the_node_that_made_it(daemons: Daemons) -> None:
    alpha = await daemons.start("alpha", http=LOOPBACK).ready()
    beta = await daemons.start("beta", await invite(alpha), http=LOOPBACK).ready()
    await alpha.sees(2)
    wish = {"name": "sneaky", "scopes": ["admin"]}
    sneaky = (await beta.post("/mesh/v1/keys", wish))["key"]
    honest = (await alpha.post("/mesh/v1/keys", {**wish, "name": "honest"}))["key"]
    for running in (alpha, beta):
        await until(partial(has_keys, running, 2), "both know the keys")
    urls = [(await running.get("/mesh/v1/status"))["http"] for running in (alpha, beta)]
    for url in urls:
        with MeshClient(url, api_key=sneaky) as client:
            for method, arguments, named in (
                (client.evict, ("alpha",), {}),
                (client.set_role, ("beta", "admin"), {}),
                (client.invite, (), {"role": "admin"}),
            ):
                with pytest.raises(
                    Forbidden, match=r"'sneaky' was made on a node that is operator"
                ):
                    await call(method, *arguments, **named)
            assert (await call(client.invite, ttl_s=60)).role == "operator"
    with MeshClient(urls[1], api_key=honest) as client:  # beta passes it on to alpha
        assert (await call(client.invite, role="admin", uses=1)).role == "admin"
        assert (await call(client.set_role, "beta", "admin")).changed
        assert not (await call(client.set_role, "beta", "admin")).changed
        assert [row.role for row in (await call(client.trust)).members] == ["admin", "admin"]

    async def is_admin() -> bool:
        return bool((await beta.get("/mesh/v1/status"))["role"] == "admin")

    await until(is_admin, "beta hears of its role")
    with MeshClient(urls[1], api_key=sneaky) as client:  # now its maker could, and so can it
        assert not (await call(client.set_role, "beta", "admin")).changed


async def test_wishes_about_members_that_cannot_be_are_refused_with_why(daemons: Daemons) -> None:
    alpha = await daemons.start("alpha").ready()
    for wish, sentence in (
        ({"node": "nobody"}, "no node is called 'nobody'; there are alpha"),
        ({"node": "alpha"}, "cannot evict itself"),
    ):
        with pytest.raises(InvalidRequest, match=sentence):
            await alpha.post("/mesh/v1/evictions", wish)
    with pytest.raises(InvalidRequest, match="the last admin"):
        await call(alpha.client.put, "/mesh/v1/roles/alpha", {"role": "member"})
    with pytest.raises(InvalidRequest, match="'over there' is no region"):
        await invite(alpha, region="over there")
    identity = (await alpha.get("/mesh/v1/status"))["id"]
    assert not (await call(alpha.client.put, f"/mesh/v1/roles/{identity}", {"role": "admin"}))[
        "changed"
    ]


async def test_sealing_removes_the_root_key_from_the_disk_of_the_founder(daemons: Daemons) -> None:
    alpha = await daemons.start("alpha").ready()
    stored = alpha.folder.mesh()
    assert stored is not None
    assert stored.root_seed
    assert (await alpha.post("/mesh/v1/trust/seal", {}))["changed"]
    stored = alpha.folder.mesh()
    assert stored is not None
    assert stored.root_seed == b""
    assert not (await alpha.post("/mesh/v1/trust/seal", {}))["changed"]
    assert [row["name"] for row in (await alpha.get("/mesh/v1/trust"))["revoked"]] == []


async def test_a_founder_forgets_the_root_key_that_another_admin_has_sealed(
    daemons: Daemons, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    alpha = await daemons.start("alpha").ready()
    beta = await daemons.start("beta", await invite(alpha, role="admin")).ready()
    await beta.sees(2)

    def full(*_: object) -> None:
        raise ConfigError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(alpha.folder, "save_mesh", full)
        await beta.post("/mesh/v1/trust/seal", {})
        await eventually(lambda: "still on this disk: no space left" in caplog.text)
    await alpha.stop()
    again = await daemons.start("alpha").ready()
    stored = again.folder.mesh()
    assert stored is not None
    assert stored.root_seed == b""


async def test_a_rotation_that_cannot_be_written_changes_nothing(
    daemons: Daemons, monkeypatch: pytest.MonkeyPatch
) -> None:
    alpha = await daemons.start("alpha").ready()
    before = (await alpha.get("/mesh/v1/status"))["id"]

    def full(*_: object) -> None:
        raise ConfigError("no space left")

    driver = trust_of(alpha)._driver
    monkeypatch.setattr(driver, "write", full)
    with pytest.raises(ConfigError, match="no space left"):
        await alpha.post("/mesh/v1/trust/rotate", {})
    monkeypatch.undo()
    assert not trust_of(alpha).rotates
    assert (await alpha.get("/mesh/v1/status"))["id"] == before
    assert await alpha.stop() == 0
    again = await daemons.start("alpha").ready()
    assert (await again.get("/mesh/v1/status"))["id"] == before


async def test_a_process_that_dies_in_a_rotation_comes_back_with_the_new_key(
    daemons: Daemons, monkeypatch: pytest.MonkeyPatch
) -> None:
    alpha = await daemons.start("alpha").ready()
    beta = await daemons.start("beta", await invite(alpha)).ready()
    await alpha.sees(2)
    monkeypatch.setattr(Credentials, "succeed", lambda _: None)
    trust_of(beta).on_rotated = lambda: None
    rotated = await beta.post("/mesh/v1/trust/rotate", {})
    await beta.kill()
    monkeypatch.undo()
    assert read_evicted(beta.folder.path) is None
    again = await daemons.start("beta").ready()
    assert (await again.get("/mesh/v1/status"))["id"] == rotated["node"]
    await alpha.sees(2)


async def test_a_disk_that_fills_up_in_a_rotation_is_tried_again_with_the_new_cores(
    daemons: Daemons, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    alpha = await daemons.start("alpha").ready()

    def full(_: object) -> None:
        raise ConfigError("no space left")

    monkeypatch.setattr(Credentials, "succeed", full)
    rotated = await alpha.post("/mesh/v1/trust/rotate", {})
    assert await alpha.end() == 0
    assert "not in its place yet: no space left" in caplog.text
    monkeypatch.undo()
    goes_on_as = alpha.daemon.goes_on_as
    assert goes_on_as is not None
    assert goes_on_as.listen.port != 0
    again = await daemons.start("alpha").ready()
    status = await again.get("/mesh/v1/status")
    assert (status["id"], status["role"]) == (rotated["node"], "admin")


async def test_a_device_takes_the_region_of_its_invite_unless_its_owner_names_one(
    daemons: Daemons,
) -> None:
    alpha = await daemons.start("alpha").ready()
    line = await invite(alpha, region="attic", uses=2)
    beta = await daemons.start("beta", line).ready()
    gamma = await daemons.start("gamma", line, region="cellar", region_chosen=True).ready()
    regions = [(await each.get("/mesh/v1/status"))["region"] for each in (beta, gamma)]
    assert regions == ["attic", "cellar"]
    await beta.stop()
    again = await daemons.start("beta").ready()
    assert (await again.get("/mesh/v1/status"))["region"] == "attic"
    await alpha.sees(3)  # a member that left is in no row until it is back
    rows = await members(alpha)
    assert [(rows[name]["uses"], rows[name]["used"]) for name in ("beta", "gamma")] == [(2, 2)] * 2


async def test_what_takes_an_admin_is_refused_on_an_operators_node_with_where_to_do_it(
    daemons: Daemons,
) -> None:
    alpha = await daemons.start("alpha").ready()
    beta = await daemons.start("beta", await invite(alpha)).ready()
    await beta.sees(2)
    where = r"that needs the node of an admin: run the command there \(alpha\)"
    with pytest.raises(Forbidden, match=where):
        await beta.post("/mesh/v1/trust/seal", {})
    wish = {"code": "123456", "role": "admin"}
    with pytest.raises(Forbidden, match=where):  # though no device asks it to join
        await beta.post("/mesh/v1/join-requests/approve", wish)
