"""What a caller gives wrongly is an error of this project, with a sentence that says what is wanted."""

from __future__ import annotations

import asyncio
import gc
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from meshnode import AsyncMeshClient, MeshClient
from meshnode.errors import ConfigError, DeadlineExceeded, InvalidRequest, UsageError
from tests.unit.client.conftest import answering, http_answer

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.unit.client.conftest import StandIn

NOWHERE = "http://127.0.0.1:1"
BAD_TIMES: list[Any] = [0, -1, float("nan"), float("inf"), 1e12, "5", True, [1]]


@pytest.mark.parametrize("timeout_s", BAD_TIMES)
def test_a_time_in_which_nothing_can_happen_is_refused(
    connect: Callable[..., Any], timeout_s: Any
) -> None:
    client = connect(NOWHERE)
    calls: list[Callable[[], object]] = [
        lambda: connect(NOWHERE, timeout_s=timeout_s),
        lambda: client.infer("m", {"x": np.zeros(1, np.float32)}, timeout_s=timeout_s),
        lambda: client.nodes(timeout_s=timeout_s),
        lambda: client.deploy("m.onnx", timeout_s=timeout_s),
        lambda: client.wait_ready("m", timeout_s=timeout_s),
    ]
    for call in calls:
        with pytest.raises(UsageError, match=r"timeout_s must be a number of seconds, above 0"):
            call()


@pytest.mark.parametrize("kind", [MeshClient, AsyncMeshClient])
def test_a_client_without_a_time_is_refused(kind: Any) -> None:
    with pytest.raises(UsageError, match="and is None"):
        kind(NOWHERE, timeout_s=None)


def test_any_kind_of_number_is_a_time(connect: Callable[..., Any]) -> None:
    assert connect(NOWHERE, timeout_s=np.int64(3))


@pytest.mark.parametrize("kind", [MeshClient, AsyncMeshClient])
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (([5],), "a gateway's URL must be text, and is 5"),
        ((5,), "a URL or a list of them, and are 5"),
        ((b"http://a",), "must be text, and is 104"),
    ],
)
def test_gateways_that_are_none_are_refused(kind: Any, arguments: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        kind(*arguments)


@pytest.mark.parametrize("kind", [MeshClient, AsyncMeshClient])
def test_keys_and_files_of_the_wrong_type_are_refused_without_showing_them(kind: Any) -> None:
    with pytest.raises(ConfigError, match="the API key must be text, and is of type int") as caught:
        kind(NOWHERE, api_key=1234567)
    assert "1234567" not in str(caught.value)
    with pytest.raises(ConfigError, match="ca_file must name a file"):
        kind(NOWHERE, ca_file=5)
    with pytest.raises(ConfigError, match="does not exist"):
        kind(NOWHERE, ca_file=Path("/nowhere.pem"))


ROW = np.zeros(1, np.float32)


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (lambda client: client.infer(None, {"x": ROW}), "None is no name"),
        (lambda client: client.infer("", {"x": ROW}), "'' is no name"),
        (lambda client: client.infer("\ud800", [1.0]), "is no name: it is not valid Unicode"),
        (lambda client: client.infer("m", {"x": ROW}, version="1/.."), "must be a whole number"),
        (lambda client: client.infer("m", {"x": ROW}, version=0), "must be a whole number"),
        (lambda client: client.infer("m", {"x": ROW}, outputs=5), "outputs must be a list of"),
        (lambda client: client.infer("m", {"x": ROW}, outputs=[5]), "outputs must be a list of"),
        (lambda client: client.infer("m", {"x": ROW}, parameters=5), "parameters must be a map"),
        (lambda client: client.infer("m", {"x": ROW}, parameters={"a": object()}), "as JSON"),
        (lambda client: client.infer("m", {"x": ROW}, request_id=5), "request_id must be text"),
        (lambda client: client.metadata(5), "5 is no name"),
        (lambda client: client.model(None), "None is no name"),
        (lambda client: client.undeploy(None), "None is no name"),
        (lambda client: client.revoke_key(7), "7 is no name"),
        (lambda client: client.create_key("n", scopes=5), "scopes must be a list of names"),
        (lambda client: client.create_key(object()), "cannot be written as JSON"),
        (lambda client: client.deploy("m.onnx", on=5), "on must be a list of names"),
        (lambda client: client.post("/x", object()), "cannot be written as JSON"),
        (lambda client: client.get(None), "None is no path"),
        (lambda client: client.get("x"), "'x' is no path"),
        (lambda client: client.get("/a b"), "must be quoted"),
        (lambda client: client.get("/ä"), "must be quoted"),
        (lambda client: client.delete("/a\r\nX: y"), "must be quoted"),
    ],
)
def test_arguments_of_the_wrong_kind_are_refused_before_anything_is_sent(
    connect: Callable[..., Any], ask: Callable[[Any], object], said: str
) -> None:
    with pytest.raises(InvalidRequest, match=said):
        ask(connect(NOWHERE))


def test_no_inputs_at_all_are_explained(
    connect: Callable[..., Any], stand_in: Callable[..., StandIn]
) -> None:
    model = b'{"name": "m", "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1]}]}'
    client = connect(stand_in(answering(http_answer(200, model))).url)
    with pytest.raises(InvalidRequest, match="input 'x' is None; give numbers"):
        client.infer("m", None)


def test_a_time_that_is_over_before_a_call_begins_is_told_without_its_negative_rest(
    connect: Callable[..., Any],
) -> None:
    """Lists need a call before the inference, which may take all of the time."""
    with pytest.raises(DeadlineExceeded, match="the time was over before GET /x could be sent"):
        connect(NOWHERE).get("/x", timeout_s=1e-9)


async def refused_here(client: AsyncMeshClient) -> None:
    with pytest.raises(UsageError, match=r"belongs to the event loop .* make one in each"):
        await client.get("/x")
    await client.close()


def test_a_client_in_a_second_event_loop_says_what_to_do(
    stand_in: Callable[..., StandIn],
) -> None:
    url = stand_in(answering(http_answer(200, b"{}"))).url

    def in_two_loops() -> None:
        client = AsyncMeshClient(url)
        asyncio.run(client.get("/x"))
        asyncio.run(refused_here(client))

    def collected() -> None:
        in_two_loops()
        gc.collect()

    # The first loop has ended with a connection open, of which Python warns when it is collected.
    with pytest.warns(ResourceWarning, match="unclosed"):
        collected()
