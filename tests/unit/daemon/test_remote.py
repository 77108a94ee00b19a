"""Whole members over HTTP: keys made here and used there, revoked, uploads deployed, TLS."""

from __future__ import annotations

import asyncio
import http.client
import json
import logging
import ssl
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest

from meshnode.daemon import artifacts, entrances
from meshnode.daemon.entrances import reached_at
from meshnode.errors import ConfigError, Forbidden, InvalidRequest, MeshError, NotFound
from meshnode.limits import API_KEY_FORGET_S
from meshnode.state import api_keys
from meshnode.state.desired_messages import Entry
from meshnode.state.hybrid_clock import Stamp
from meshnode.types import Address, Role
from tests.unit.daemon.conftest import LIMIT_S
from tests.unit.gateway.test_tls import Files

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.unit.daemon.conftest import Daemons, Running

DIGITS = Path(__file__).parents[3] / "examples" / "digits" / "digits.onnx"
LOOPBACK = Address("127.0.0.1", 0)
NAME = "mesh.example.com"  # a name behind a proxy: whoever uses it needs a key


async def until(question: Callable[[], Awaitable[Any]], what: str) -> Any:
    deadline = asyncio.get_running_loop().time() + LIMIT_S
    while not (found := await question()):
        assert asyncio.get_running_loop().time() < deadline, what
        await asyncio.sleep(0.02)
    return found


async def ask(
    running: Running,
    method: str,
    path: str,
    body: bytes = b"",
    key: str | None = None,
    host: str = NAME,
) -> tuple[int, Any]:
    """Ask a node's gateway as its reverse proxy would; return the status and the JSON body."""
    url = urlsplit((await running.get("/mesh/v1/status"))["http"])
    headers = {"Host": host} | ({"Authorization": f"Bearer {key}"} if key else {})

    def talk() -> tuple[int, Any]:
        if url.scheme == "https":
            context = ssl._create_unverified_context()
            line: Any = http.client.HTTPSConnection(
                "127.0.0.1", url.port, timeout=30, context=context
            )
        else:
            line = http.client.HTTPConnection("127.0.0.1", url.port, timeout=30)
        try:
            line.request(method, path, body, headers)
            response = line.getresponse()
            content = response.read()
        finally:
            line.close()
        return response.status, json.loads(content)

    return await asyncio.to_thread(talk)


async def make_key(running: Running, name: str, scope: str = "infer", **wish: Any) -> str:
    made = await running.post("/mesh/v1/keys", {"name": name, "scopes": [scope], **wish})
    return str(made["key"])


async def revoke(running: Running, name: str) -> Any:
    return await asyncio.to_thread(running.client.delete, f"/mesh/v1/keys/{name}")


async def is_let_in(running: Running, key: str) -> bool:
    return (await ask(running, "GET", "/mesh/v1/nodes", key=key))[0] == 200


async def test_a_key_made_on_one_node_opens_all_until_it_is_revoked_on_any(
    daemons: Daemons,
) -> None:
    alpha = await daemons.start("alpha").ready()
    beta = await daemons.start(
        "beta", await alpha.invite(), http=LOOPBACK, allow_hosts=(NAME,)
    ).ready()
    await alpha.sees(2)
    assert (await ask(beta, "GET", "/v2"))[0] == 401
    status, answer = await ask(beta, "GET", "/v2", host="localhost")
    assert (status, "--allow-host" in answer["error"]) == (401, True)
    key = await make_key(alpha, "phone")

    async def lets_in() -> bool:
        return await is_let_in(beta, key)

    async def refuses() -> bool:
        return not await is_let_in(beta, key)

    await until(lets_in, "the key arrives")
    listed = await beta.get("/mesh/v1/keys")
    assert [(each["name"], each["state"]) for each in listed] == [("phone", "valid")]
    assert key not in json.dumps(listed)
    status, answer = await ask(beta, "POST", "/mesh/v1/invites", b"{}", key)
    assert (status, answer["code"]) == (403, "forbidden")
    assert "scope admin, and 'phone' has infer" in answer["error"]

    with pytest.raises(InvalidRequest, match="there is a key 'phone' already"):
        await make_key(beta, "phone")
    assert (await revoke(beta, "phone"))["changed"] is True
    assert await refuses()  # where it was revoked at once

    async def is_revoked_on_alpha() -> bool:
        return bool((await alpha.get("/mesh/v1/keys"))[0]["state"] == "revoked")

    await until(is_revoked_on_alpha, "the revocation arrives")
    assert (await revoke(alpha, "phone"))["changed"] is False
    with pytest.raises(NotFound, match="meshnode keys list"):
        await revoke(alpha, "nothing")
    again = await make_key(beta, "phone")
    assert await is_let_in(beta, again)
    assert not await is_let_in(beta, key)
    assert (await revoke(beta, "phone"))["changed"] is True  # the one that is not revoked


async def test_keys_survive_a_restart_and_revocation_too(daemons: Daemons) -> None:
    alpha = await daemons.start("alpha", http=LOOPBACK, allow_hosts=(NAME,)).ready()
    kept, gone = await make_key(alpha, "kept"), await make_key(alpha, "gone")
    await revoke(alpha, "gone")
    await alpha.stop()
    for name in ("desired", "roster"):
        stored = Path(alpha.options.data_dir) / "state" / name
        if stored.exists():
            assert kept.split("_")[2].encode() not in stored.read_bytes()
    alpha = await daemons.start("alpha", http=LOOPBACK, allow_hosts=(NAME,)).ready()
    assert await is_let_in(alpha, kept)
    assert not await is_let_in(alpha, gone)


async def test_a_key_expires_by_the_wall_clock(daemons: Daemons) -> None:
    alpha = await daemons.start("alpha", http=LOOPBACK, allow_hosts=(NAME,)).ready()
    key = await make_key(alpha, "brief", ttl_s=1)

    async def has_expired() -> str:
        status, answer = await ask(alpha, "GET", "/v2", key=key)
        return str(answer["error"]) if status == 401 else ""

    assert "'brief' expired at" in await until(has_expired, "it expires")
    assert (await alpha.get("/mesh/v1/keys"))[0]["state"] == "expired"


async def test_two_keys_of_one_name_are_told_apart_by_their_ids(daemons: Daemons) -> None:
    """As when two nodes make one each while they cannot hear each other."""
    alpha = await daemons.start("alpha").ready()
    await make_key(alpha, "twin")
    driver = alpha.daemon._driver
    assert driver is not None
    assert driver.node is not None
    from meshnode.state.api_keys import make_api_key

    key, _ = make_api_key("twin", ["infer"], None, 1e9, bytes(42), [])
    driver.write(driver.node.drafts.api_key(key, alpha.daemon._clock.wall_s()))
    with pytest.raises(InvalidRequest, match=f"several keys are called 'twin'.*{key.id}"):
        await revoke(alpha, "twin")
    assert (await revoke(alpha, key.id))["changed"] is True
    for _ in range(2):  # the one that is left; then, of those that were revoked, the youngest
        assert (await revoke(alpha, "twin"))["id"] != key.id


async def test_only_operators_make_keys_and_nobody_deletes_them(
    daemons: Daemons, monkeypatch: pytest.MonkeyPatch
) -> None:
    alpha = await daemons.start("alpha").ready()
    await make_key(alpha, "phone")
    driver = alpha.daemon._driver
    assert driver is not None
    node = driver.node
    assert node is not None
    (name,) = [key for key, _ in node.desired.items() if key.startswith("key/")]
    unsigned = Entry(name, Stamp(2**45, 0), node.me, b"")
    entry = Entry(
        name, unsigned.stamp, node.me, b"", driver._credentials.identity.sign(unsigned.signed_bytes)
    )
    for known in (name, await revoke(alpha, "phone") and name):
        assert node.desired.get(known)
        assert node._why_refused(entry) == (
            "an API key is revoked, and deleted only long after its expiry"
        )
    monkeypatch.setattr(Role, "allows", lambda *_: False)
    for path, body in (
        ("keys", {"name": "x"}),
        ("uploads", {"files": [{"path": "m.onnx", "size_bytes": 1}]}),
        ("deployments", {"upload": "x"}),
    ):
        with pytest.raises(Forbidden, match="that needs an operator's node"):
            await alpha.post(f"/mesh/v1/{path}", body)
    with pytest.raises(Forbidden, match="operator"):
        await revoke(alpha, "phone")


async def test_a_key_that_expired_long_ago_makes_room_on_every_node(
    daemons: Daemons, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(api_keys, "MAX_API_KEY_ENTRIES", 2)
    alpha = await daemons.start("alpha").ready()
    beta = await daemons.start("beta", await alpha.invite()).ready()
    assert alpha.daemon._driver is not None
    assert alpha.daemon._driver.node is not None
    long_ago_s = alpha.daemon._clock.wall_s() - API_KEY_FORGET_S - 100
    old, _ = api_keys.make_api_key("old", ["infer"], 60, long_ago_s, bytes(42), [])
    draft = alpha.daemon._driver.node.drafts.api_key(old, alpha.daemon._clock.wall_s())
    alpha.daemon._driver.write(draft)
    await make_key(alpha, "revoked")
    await revoke(alpha, "revoked")
    await make_key(alpha, "new")
    assert f"API key old ({old.id}) made room for it" in caplog.text

    async def is_told() -> bool:
        return {each["name"] for each in await beta.get("/mesh/v1/keys")} == {"revoked", "new"}

    await until(is_told, "beta forgets the old one")
    with pytest.raises(InvalidRequest, match="remembers 2 keys, expired and revoked ones included"):
        await make_key(beta, "third")


# Uploads


async def test_uploads_end_with_their_key_wherever_it_is_revoked(daemons: Daemons) -> None:
    alpha = await daemons.start("alpha", http=LOOPBACK, allow_hosts=(NAME,)).ready()
    beta = await daemons.start("beta", await alpha.invite()).ready()
    key, admin = await make_key(alpha, "ci", "deploy"), await make_key(alpha, "boss", "admin")
    upload_id = await upload(alpha, key, {"m.onnx": b"abc"}, 3)
    assert (await ask(alpha, "GET", "/mesh/v1/uploads", key=key))[0] == 403
    status, (shown,) = await ask(alpha, "GET", "/mesh/v1/uploads", key=admin)
    assert (status, shown["id"], shown["received_bytes"]) == (200, upload_id, 3)
    await beta.sees(2)

    async def is_known() -> bool:
        return any(each["name"] == "ci" for each in await beta.get("/mesh/v1/keys"))

    await until(is_known, "beta hears of the key")
    await revoke(beta, "ci")

    async def are_gone() -> bool:
        return list((Path(alpha.options.data_dir) / "uploads").iterdir()) == []

    await until(are_gone, "the files are removed")
    assert (await ask(alpha, "GET", "/mesh/v1/uploads", key=admin))[1] == []


async def upload(running: Running, key: str, files: dict[str, bytes], piece: int) -> str:
    listed = [{"path": path, "size_bytes": len(data)} for path, data in files.items()]
    body = json.dumps({"files": listed}).encode()
    status, made = await ask(running, "POST", "/mesh/v1/uploads", body, key)
    assert status == 201
    for index, data in enumerate(files.values()):
        for offset in range(0, len(data), piece):
            path = f"/mesh/v1/uploads/{made['id']}/{index}?offset={offset}"
            status, answer = await ask(running, "PUT", path, data[offset : offset + piece], key)
            assert (status, answer["received_bytes"]) == (200, min(offset + piece, len(data)))
    return str(made["id"])


async def test_a_model_is_uploaded_in_pieces_deployed_and_asked_with_keys_alone(
    daemons: Daemons, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(artifacts, "UNLOAD_GRACE_S", 0.05)
    alpha = await daemons.start("alpha", http=LOOPBACK, allow_hosts=(NAME,)).ready()
    key, other = await make_key(alpha, "ci", "deploy"), await make_key(alpha, "other", "admin")
    model = DIGITS.read_bytes()
    upload_id = await upload(alpha, key, {"digits/1/model.onnx": model}, 4000)
    path = f"/mesh/v1/uploads/{upload_id}"
    status, shown = await ask(alpha, "GET", path, key=key)
    assert shown["files"][0]["received_bytes"] == len(model)
    assert (await ask(alpha, "GET", path, key=other))[0] == 404
    wish = json.dumps({"upload": upload_id, "replicas": 1}).encode()
    assert (await ask(alpha, "POST", "/mesh/v1/deployments", wish, other))[0] == 404
    status, entry = await ask(alpha, "POST", "/mesh/v1/deployments", wish, key)
    assert (status, entry["name"], entry["deployed"]) == (202, "digits", [1])
    staging = Path(alpha.options.data_dir) / "uploads"
    assert list(staging.iterdir()) == []
    assert (await ask(alpha, "GET", path, key=key))[0] == 404

    async def is_ready() -> bool:
        return (await ask(alpha, "GET", "/v2/models/digits/ready", key=key))[0] == 200

    await until(is_ready, "it is served")
    image = {"name": "image", "shape": [1, 8, 8], "datatype": "FP32", "data": [0.5] * 64}
    body = json.dumps({"inputs": [image]}).encode()
    assert (await ask(alpha, "POST", "/v2/models/digits/infer", body, key))[0] == 200
    assert (await ask(alpha, "POST", "/v2/models/digits/infer", body))[0] == 401
    assert (await ask(alpha, "DELETE", "/mesh/v1/deployments/digits", key=key))[0] == 200
    for said in ("digits was deployed by", "digits was taken out of service by"):
        assert f"model {said} key ci ({key.split('_')[1]})" in caplog.text


async def test_a_bare_file_is_uploaded_under_another_name(daemons: Daemons) -> None:
    alpha = await daemons.start("alpha", http=LOOPBACK, allow_hosts=(NAME,)).ready()
    key = await make_key(alpha, "ci", "deploy")
    upload_id = await upload(alpha, key, {"x.onnx": DIGITS.read_bytes()}, 10**6)
    wish = json.dumps({"upload": upload_id, "name": "numbers", "on": ["alpha"]}).encode()
    status, entry = await ask(alpha, "POST", "/mesh/v1/deployments", wish, key)
    assert (status, entry["name"], entry["placed"]) == (202, "numbers", ["alpha"])


async def test_what_cannot_be_deployed_says_why_and_stays_to_be_tried_again(
    daemons: Daemons,
) -> None:
    alpha = await daemons.start("alpha", http=LOOPBACK, allow_hosts=(NAME,)).ready()
    key = await make_key(alpha, "ci", "deploy")
    upload_id = await upload(alpha, key, {"m/1/model.onnx": b"no model"}, 100)
    for wish, sentence in (
        ({}, "model"),
        ({"on": ["nobody"]}, "no node is called 'nobody'"),
        ({"name": "../x"}, "cannot be a model's name"),
    ):
        body = json.dumps({"upload": upload_id, **wish}).encode()
        status, answer = await ask(alpha, "POST", "/mesh/v1/deployments", body, key)
        assert (status, sentence in answer["error"]) == (400, True), answer
    assert (await ask(alpha, "DELETE", f"/mesh/v1/uploads/{upload_id}", key=key))[0] == 200
    status, answer = await ask(alpha, "POST", "/mesh/v1/deployments", b'{"path":"/etc"}', key)
    assert (status, "only the owner" in answer["error"]) == (403, True)
    bad = b'{"files":[{"path":"../../x.onnx","size_bytes":1}]}'
    status, answer = await ask(alpha, "POST", "/mesh/v1/uploads", bad, key)
    assert (status, answer["code"]) == (400, "invalid_request")


async def test_uploads_of_a_former_run_are_swept(daemons: Daemons) -> None:
    left = daemons.folder / "alpha" / "uploads" / "old"
    left.mkdir(parents=True)
    await daemons.start("alpha", new=True).ready()
    assert not left.parent.exists()


# TLS, and where a gateway is


async def test_a_gateway_with_tls_is_https_for_everyone(daemons: Daemons, tmp_path: Path) -> None:
    files = Files(tmp_path)
    files.write()
    paths = {"tls_cert": str(files.certificate), "tls_key": str(files.key)}
    alpha = await daemons.start("alpha", http=LOOPBACK, allow_hosts=(NAME,), **paths).ready()
    beta = await daemons.start("beta", await alpha.invite()).ready()
    url = (await alpha.get("/mesh/v1/status"))["http"]
    assert url.startswith("https://127.0.0.1:")

    async def knows() -> bool:
        nodes = await beta.get("/mesh/v1/nodes")
        return any(node["name"] == "alpha" and node["http"] == url for node in nodes)

    await until(knows, "the other node knows its URL")
    assert (await ask(alpha, "GET", "/healthz"))[0] == 401
    key = await make_key(alpha, "phone")
    assert (await ask(alpha, "GET", "/healthz", key=key))[0] == 200


async def test_unusable_tls_files_stop_a_node_before_it_founds_a_mesh(
    daemons: Daemons, tmp_path: Path
) -> None:
    paths = {"tls_cert": str(tmp_path / "no.pem"), "tls_key": str(tmp_path / "no.key")}
    alpha = daemons.start("alpha", http=LOOPBACK, **paths)
    with pytest.raises(ConfigError, match=r"no.pem does not exist"):
        await alpha.end()
    assert not (daemons.folder / "alpha" / "mesh").exists()


async def test_a_gateway_on_all_interfaces_names_an_address_that_can_be_reached(
    daemons: Daemons, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    alpha = await daemons.start("alpha", http=Address("0.0.0.0", 0)).ready()
    url = urlsplit((await alpha.get("/mesh/v1/status"))["http"])
    assert url.hostname not in ("0.0.0.0", None)
    assert (await ask(alpha, "GET", "/healthz", host="localhost"))[0] == 200
    assert (await ask(alpha, "GET", "/healthz", host="192.0.2.1"))[0] == 401
    told = capsys.readouterr().out
    assert "other machines need a key: meshnode keys create NAME" in told
    assert f"programs on this machine need none: http://localhost:{url.port}" in told
    assert "has no TLS" in caplog.text


@pytest.mark.parametrize("bound", ["127.0.0.1", "0.0.0.0"])
@pytest.mark.parametrize("why", [{"require_key": True}, {"allow_hosts": (NAME,)}])
async def test_a_gateway_behind_a_proxy_that_says_nothing_wants_a_key_of_everybody(
    daemons: Daemons,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    bound: str,
    why: dict[str, Any],
) -> None:
    """Stock nginx asks loopback for loopback; the owner's own channel stays."""
    alpha = await daemons.start("alpha", http=Address(bound, 0), **why).ready()
    url = urlsplit((await alpha.get("/mesh/v1/status"))["http"])
    for host in ("127.0.0.1", f"localhost:{url.port}"):
        status, answer = await ask(alpha, "GET", "/v2", host=host)
        assert (status, "programs on its own machine included" in answer["error"]) == (401, True)
    key = await make_key(alpha, "phone")
    assert (await ask(alpha, "GET", "/v2", key=key, host="localhost"))[0] == 200
    assert (await ask(alpha, "GET", "/v2", key=key[:-1], host="localhost"))[0] == 401
    told = capsys.readouterr().out
    assert "every caller needs a key: meshnode keys create NAME" in told
    assert "need none" not in told
    refused = [each for each in caplog.messages if each.startswith("a caller from 127.0.0.1")]
    assert len(refused) == 3
    assert "that is not an API key of this mesh" in refused[-1]
    assert key.split("_")[2][:-1] not in caplog.text


@pytest.mark.parametrize(
    ("bound", "told", "expected"),
    [
        (Address("192.168.1.5", 1), [Address("10.0.0.1", 9)], Address("192.168.1.5", 1)),
        (Address("0.0.0.0", 1), [Address("10.0.0.1", 9)], Address("10.0.0.1", 1)),
        (Address("::", 1), [Address("fd00::1", 9)], Address("fd00::1", 1)),
        (Address("edge-box", 1), [Address("10.0.0.1", 9)], Address("edge-box", 1)),
        (Address("127.0.0.1", 1), [Address("10.0.0.1", 9)], Address("127.0.0.1", 1)),
    ],
)
def test_a_wildcard_is_told_as_the_nodes_own_address(
    bound: Address, told: list[Address], expected: Address
) -> None:
    assert reached_at(bound, told) == expected


def test_a_wildcard_of_a_node_on_loopback_is_told_as_an_interfaces_address(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(entrances, "reachable_hosts", lambda _: ("192.0.2.1", "192.0.2.2"))
    found = reached_at(Address("0.0.0.0", 1), [Address("127.0.0.1", 9), Address("::1", 9)])
    assert found == Address("192.0.2.1", 1)


async def test_what_was_revoked_reaches_a_node_that_was_away(daemons: Daemons) -> None:
    alpha = await daemons.start("alpha").ready()
    beta = await daemons.start(
        "beta", await alpha.invite(), http=LOOPBACK, allow_hosts=(NAME,)
    ).ready()
    await alpha.sees(2)
    key = await make_key(beta, "phone")

    async def knows() -> bool:
        return bool(await alpha.get("/mesh/v1/keys"))

    await until(knows, "the key arrives")
    await beta.stop()
    await revoke(alpha, "phone")
    beta = await daemons.start("beta", http=LOOPBACK, allow_hosts=(NAME,)).ready()

    async def refuses() -> bool:
        return not await is_let_in(beta, key)

    await until(refuses, "the revocation arrives")
    with pytest.raises(MeshError):
        await make_key(alpha, "bad name")
