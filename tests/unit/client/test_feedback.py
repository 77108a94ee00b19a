"""What both clients say of answers, to a real gateway."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from meshnode.client.feedback import Disagreements
from meshnode.errors import InvalidRequest, NotFound
from meshnode.rollout import Progress
from meshnode.state.release import Release, Step

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.unit.client.conftest import Gateway, Loop

ROW = np.array([[1.5, -2.0]], np.float32)
REVISION = (7, 7)


@pytest.fixture
def client(connect: Callable[..., Any], gateway: Gateway, loop: Loop) -> Any:
    """A client of a gateway whose model's version 1 is the old one of a release."""

    async def begin() -> None:
        release = Release("ab", 1, 2, (Step(0.5),), against="labels", compare="equal")
        progress = Progress(REVISION, "running", 0, 0)
        gateway.router.release_changed("echo", REVISION, release, progress)

    loop.run(begin())
    return connect(gateway.url)


def test_an_answer_is_judged_by_its_id(client: Any) -> None:
    result = client.infer("echo", {"x": ROW})
    told = client.feedback(result.request_id, {"stars": 4, "clicked": True}, label=[1.5, -2.0])
    assert (told.request, told.model, told.version) == (result.request_id, "echo", 1)
    assert (told.counted, told.agreed, told.note) == (("stars", "clicked"), True, "")
    plain = client.predict("echo", {"x": [[1, 2]]}, request_id="mine")
    assert plain.request_id == "mine"
    with pytest.raises(InvalidRequest, match="output 'x' has 1 value; it takes 2"):
        client.feedback("mine", label=None)
    assert client.feedback("mine", label=[1, 3]).agreed is False


def test_what_nobody_remembers_is_told(client: Any) -> None:
    with pytest.raises(NotFound, match="within 24 hours"):
        client.feedback("nothing", {"stars": 4})


def test_feedback_that_cannot_be_sent_is_refused(client: Any) -> None:
    with pytest.raises(InvalidRequest, match="request_id"):
        client.feedback("", {"stars": 4})
    with pytest.raises(InvalidRequest, match="JSON"):
        client.feedback("r", {"stars": float("nan")})
    with pytest.raises(InvalidRequest, match="says nothing"):
        client.feedback("r")


def test_disagreements_are_read(client: Any) -> None:
    assert client.disagreements("echo") == Disagreements(model="echo", version=2)
