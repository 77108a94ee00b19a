"""An autoscaled model at a whole daemon: it is deployed, shown, falls asleep, and is woken by a request."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from meshnode import stewardship
from meshnode.daemon import artifacts
from meshnode.types import Address
from tests.unit.daemon.test_member import DIGITS, IMAGE, deploy, http, is_ready, until

if TYPE_CHECKING:
    import pytest

    from tests.unit.daemon.conftest import Daemons

RULES = {
    "min": 0, "max": 2, "concurrency": 2, "stable_window_s": 2, "panic_window_s": 2,
    "down_delay_s": 0, "idle_s": 1,
}  # fmt: skip


async def test_a_model_that_may_sleep_is_shown_put_to_sleep_and_woken_by_a_request(
    daemons: Daemons, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stewardship, "LOOK_S", 0.05)
    monkeypatch.setattr(artifacts, "UNLOAD_GRACE_S", 0.05)
    alpha = await daemons.start("alpha", http=Address("127.0.0.1", 0)).ready()
    await deploy(alpha, DIGITS, autoscaling=RULES)

    async def view() -> Any:
        return await alpha.get("/mesh/v1/deployments/digits")

    async def is_asleep() -> bool:
        return bool((await view())["status"] == "asleep")

    shown = await view()
    assert shown["definition"]["autoscaling"] == RULES
    await until(lambda: is_ready(alpha, 1), "it is loaded once, to begin with")
    await until(is_asleep, "nobody asks for it")
    shown = await view()
    assert (shown["wanted"], shown["placed"], shown["missing"]) == (0, [], 0)
    assert shown["scaling"]["steward"] == "alpha"
    assert shown["scaling"]["why"] == "no request came for 1 s"
    assert shown["scaling"]["decided_at"]
    assert "wakes it up" in shown["reason"]
    await until(lambda: is_ready(alpha, 0), "its replica is gone")

    status, body = await http(alpha, "/v2/models/digits/infer", {"inputs": [IMAGE]})
    assert status == 200, body
    shown = await view()
    assert (shown["wanted"], shown["ready"]) == (1, 1)
    assert shown["scaling"]["why"] == "1 request(s) wait for it"
    _, metrics = await http(alpha, "/metrics")
    assert 'meshnode_events_total{kind="scale.up"} 1' in metrics
    _, events = await http(alpha, "/mesh/v1/events?kinds=deployment&follow=false")
    assert '"change":"scaled","replicas":0,"steward":"alpha"' in events
    assert '"change":"scaled","replicas":1,"steward":"alpha"' in events
