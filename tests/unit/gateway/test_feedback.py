"""What people say of answers: remembered by their id, counted once, for the version that answered."""

from __future__ import annotations

import inspect
import json
import struct
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from meshnode.errors import InvalidRequest, NotFound, TooLarge
from meshnode.gateway import feedback as feedback_module
from meshnode.gateway.disagreements import Seen
from meshnode.gateway.feedback import AnswerMemory, Counted, Feedback, read_feedback
from meshnode.gateway.labels import is_right
from meshnode.gateway.protocols.caller import Caller
from meshnode.gateway.protocols.http import HttpRequest, HttpResponse
from meshnode.limits import MAX_FEEDBACK_BYTES, MAX_LABELLED_ANSWER_BYTES, REMEMBERED_ANSWER_S
from meshnode.release_file import read_release
from meshnode.rollout import Progress
from meshnode.routing.releasing.evidence import merged
from meshnode.routing.releasing.split import LiveRelease
from meshnode.state.release import Release, Step, release_flaws
from meshnode.types import DataType, Scope, Tensor

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshnode.deployment_tables import Fault
    from meshnode.gateway.dispatch import Dispatcher
    from meshnode.gateway.pipeline import Pipeline
    from meshnode.models.manifest import Manifest
    from meshnode.routing.releasing.evidence import Cell
    from meshnode.routing.router import Router
    from tests.unit.gateway.conftest import FakeClock

REVISION = (7, 7)
ANN, BOB = "a" * 16, "b" * 16


def numbers(*values: float, shape: tuple[int, ...] | None = None, name: str = "y") -> Tensor:
    data = struct.pack(f"<{len(values)}f", *values)
    return Tensor(name, DataType.FP32, shape or (len(values),), data)


def text(*values: str, name: str = "label") -> Tensor:
    data = b"".join(len(each).to_bytes(4, "little") + each.encode() for each in values)
    return Tensor(name, DataType.BYTES, (len(values),), data)


INTEGER = Tensor("y", DataType.INT64, (1,), (3).to_bytes(8, "little"))


def live_release(**plan: Any) -> LiveRelease:
    plan = {"against": "labels", "compare": "top"} | plan
    release = Release("canary", 1, 2, (Step(0.5),), **plan)
    return LiveRelease("digits", REVISION, release, Progress(REVISION, "running", 0, 0))


def cells(live: LiveRelease) -> dict[tuple[int, str], Cell]:
    evidence = live.book.snapshot()
    assert evidence is not None
    return merged([evidence], live.revision, 0)


@pytest.fixture
def memory(clock: FakeClock) -> AnswerMemory:
    return AnswerMemory(clock.now)


def keep(memory: AnswerMemory, request: str = "r1", caller: str = "", **more: Any) -> None:
    given: dict[str, Any] = {
        "model": "digits", "revision": REVISION, "version": 2, "device": "cpu",
        "outputs": (numbers(0, 5, 1),),
    } | more  # fmt: skip
    memory.keep(request, caller, **given)


def tell(
    memory: AnswerMemory, live: LiveRelease | None, caller: str = "", **said: Any
) -> Counted | None:
    return memory.tell(Feedback("r1", **said), caller, lambda _name: live)


# What is remembered


def test_metrics_count_for_the_version_that_answered_and_each_once(memory: AnswerMemory) -> None:
    live = live_release()
    keep(memory)
    told = tell(memory, live, metrics={"stars": 4, "clicked": True})
    assert told == Counted("r1", "digits", 2, ("stars", "clicked"))
    again = tell(memory, live, metrics={"stars": 1, "late": 0.5})
    assert again is not None
    assert again.counted == ("late",)
    assert "did not count again" in again.note
    (((version, _), cell),) = cells(live).items()
    assert version == 2
    assert {name: (each.number, each.mean) for name, each in cell.metrics.items()} == {
        "stars": (1, 4.0), "clicked": (1, 1.0), "late": (1, 0.5)
    }  # fmt: skip


@pytest.mark.parametrize(("label", "agreed"), [(1, True), (0, False)])
def test_a_label_is_compared_with_the_answer_once(
    memory: AnswerMemory, label: int, agreed: bool
) -> None:
    live = live_release()
    keep(memory)
    told = tell(memory, live, label=label)
    assert told is not None
    assert told.agreed is agreed
    again = tell(memory, live, label=1 - label)
    assert again is not None
    assert again.agreed is None
    assert "given before" in again.note
    (cell,) = cells(live).values()
    assert (cell.compared, cell.agreed) == (1, agreed)


def test_a_label_counts_for_what_the_new_version_would_have_answered_too(
    memory: AnswerMemory,
) -> None:
    """In a shadow release nobody sees the new version's answers, but people judge the old one's."""
    live = live_release()
    keep(memory, version=1, outputs=(numbers(0, 5, 1),))
    memory.keep_mirrored("r1", "", version=2, device="gpu", outputs=(numbers(7, 0, 0),))
    told = tell(memory, live, label=1)
    assert told is not None
    assert (told.version, told.agreed) == (1, True)
    found = {version: (cell.compared, cell.agreed) for (version, _), cell in cells(live).items()}
    assert found == {1: (1, 1), 2: (1, 0)}


def test_a_label_without_a_release_that_compares_labels_says_so(memory: AnswerMemory) -> None:
    live = live_release(against="")
    keep(memory, outputs=None)
    told = tell(memory, live, label=1, metrics={"stars": 4})
    assert told is not None
    assert (told.counted, told.agreed) == (("stars",), None)
    assert 'against = "labels"' in told.note


def test_an_answer_that_is_too_large_takes_no_label(memory: AnswerMemory) -> None:
    live = live_release()
    large = Tensor("y", DataType.UINT8, (MAX_LABELLED_ANSWER_BYTES + 1,), bytes(65537))
    keep(memory, outputs=(large,))
    told = tell(memory, live, label=1)
    assert told is not None
    assert "too large" in told.note


def test_a_label_that_does_not_fit_is_refused_and_may_be_corrected(memory: AnswerMemory) -> None:
    live = live_release()
    keep(memory)
    with pytest.raises(InvalidRequest, match="names 'z'; the answer's outputs are 'y'"):
        tell(memory, live, label={"z": 1}, metrics={"stars": 1})
    told = tell(memory, live, label={"y": 1}, metrics={"stars": 1})
    assert told is not None
    assert (told.agreed, told.counted) == (True, ("stars",))


def test_feedback_comes_with_the_key_of_the_request(memory: AnswerMemory) -> None:
    live = live_release()
    keep(memory, caller=ANN)
    assert tell(memory, live, BOB, metrics={"stars": 4}) is None
    assert tell(memory, live, "", metrics={"stars": 4}) is None
    assert tell(memory, live, ANN, metrics={"stars": 4}) is not None
    keep(memory, "r1", caller="")  # a program of this machine, without a key
    assert tell(memory, live, BOB, metrics={"stars": 4}) is not None


def test_after_the_release_nothing_counts(memory: AnswerMemory) -> None:
    keep(memory)
    told = tell(memory, None, metrics={"stars": 4})
    assert told is not None
    assert (told.counted, told.version) == ((), 2)
    assert "is over" in told.note
    assert tell(memory, live_release(), metrics={"stars": 4}) is not None
    keep(memory, revision=(8, 8))
    other = tell(memory, live_release(), metrics={"stars": 4})
    assert other is not None
    assert other.counted == ()


def test_answers_are_remembered_for_a_day_and_the_oldest_forgotten_first(
    memory: AnswerMemory, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = live_release()
    keep(memory)
    clock.time_s += REMEMBERED_ANSWER_S + 1
    assert tell(memory, live, metrics={"stars": 4}) is None
    monkeypatch.setattr(feedback_module, "MAX_REMEMBERED_ANSWERS", 3)
    for number in range(5):
        keep(memory, f"r{number}")
    assert len(memory) == 3
    assert tell(memory, live, metrics={"stars": 4}) is None


def test_the_memory_of_whole_answers_is_bounded(
    memory: AnswerMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feedback_module, "MAX_LABELLED_ANSWERS_BYTES", 100)
    for number in range(20):
        keep(memory, f"r{number}", outputs=(numbers(*range(5)),))
        memory.keep_mirrored(f"r{number}", "", version=1, device="", outputs=(numbers(*range(5)),))
    assert repr(memory) == "<AnswerMemory of 2 answers, 80 bytes>"
    keep(memory, "r19", outputs=None)
    assert repr(memory) == "<AnswerMemory of 2 answers, 40 bytes>"


def test_what_is_remembered_is_the_answers_own_copy(memory: AnswerMemory) -> None:
    buffer = bytearray(numbers(0, 5, 1).data)
    keep(memory, outputs=(Tensor("y", DataType.FP32, (3,), memoryview(buffer)),))
    buffer[:] = bytes(12)
    told = tell(memory, live_release(), label=1)
    assert told is not None
    assert told.agreed


def test_an_answer_without_an_id_is_not_remembered(memory: AnswerMemory) -> None:
    keep(memory, "")
    memory.keep_mirrored("r9", "", version=2, device="", outputs=())
    assert len(memory) == 0


# What is right


@pytest.mark.parametrize(
    ("output", "label", "compare", "right"),
    [
        (numbers(0, 5, 1), 1, "top", True),
        (numbers(0, 5, 1), "1", "top", True),
        (numbers(0, 5, 1, 9, 0, 0, shape=(2, 3)), [1, 0], "top", True),
        (numbers(0, 5, 1, 9, 0, 0, shape=(2, 3)), [[1], [1]], "top", False),
        (numbers(0, 5, 1), [0, 5, 1], "equal", True),
        (numbers(7, shape=(1, 1)), 7, "top", True),
        (Tensor("y", DataType.INT64, (1,), (3).to_bytes(8, "little")), "3", "top", True),
        (Tensor("y", DataType.INT64, (1,), (3).to_bytes(8, "little")), 4, "top", False),
        (Tensor("y", DataType.INT64, (1,), (3).to_bytes(8, "little")), " 3.0", "close", True),
        (numbers(0, 5, 1), 7, "top", False),
        (text("7"), 7, "equal", True),
        (Tensor("y", DataType.BOOL, (2,), b"\x01\x00"), ["True", 0], "close", True),
        (numbers(2.0005), 2, "close", True),
        (numbers(2.1), 2, "close", False),
        (numbers(float("nan")), float("nan"), "close", True),
        (text("cat"), "cat", "top", True),
        (text("cat"), "dog", "close", False),
        (text("cat", "dog"), ["cat", "dog"], "equal", True),
        (Tensor("y", DataType.BOOL, (1,), b"\x01"), True, "equal", True),
        (Tensor("y", DataType.INT64, (), (3).to_bytes(8, "little")), 3, "equal", True),
        (Tensor("y", DataType.FP32, (2, 0), b""), [], "top", True),
        (Tensor("y", DataType.FP32, (2,), b"short"), [0, 0], "equal", False),
    ],
)
def test_an_answer_is_right(output: Tensor, label: Any, compare: Any, right: bool) -> None:
    assert is_right((output,), label, compare, 1e-3) is right


@pytest.mark.parametrize(
    ("output", "label", "compare", "sentence"),
    [
        (INTEGER, [1, 2, 3], "equal", "has 3 values; it takes 1, one number for each"),
        (INTEGER, [], "close", "has 0 values; it takes 1"),
        (INTEGER, "x", "equal", "has the value 'x'; each is a number"),
        (INTEGER, None, "top", "has the value null; each is a number"),
        (INTEGER, True, "equal", "has the value True; each is a number"),
        (INTEGER, [{"a": 1}], "equal", "each is a number"),
        (INTEGER, 10**50, "close", "has the value a huge number"),
        (numbers(2.0), "many", "close", "has the value 'many'; each is a number"),
        (numbers(0, 5, 1), [0, 5], "equal", "has 2 values; it takes 3"),
        (numbers(0, 5, 1), [0, 5, 1], "top", "it takes 1, one whole number, the place of"),
        (numbers(0, 5, 1), 0.5, "top", "each is a whole number, the place of the greatest$"),
        (numbers(0, 5, 1), "inf", "top", "each is a whole number"),
        (text("cat"), True, "equal", "has the value True; each is a text"),
        (text("cat"), ["cat", "dog"], "equal", "it takes 1, one text for each"),
        (Tensor("y", DataType.BOOL, (1,), b"\x01"), 7, "equal", "each is a true or false"),
        (Tensor("y", DataType.BOOL, (1,), b"\x01"), "x" * 99, "equal", r"'xxx.*\.\.\.; each"),
    ],
)
def test_a_label_of_another_length_or_kind_says_nothing_of_the_answer_and_is_refused(
    output: Tensor, label: Any, compare: Any, sentence: str
) -> None:
    with pytest.raises(InvalidRequest, match=sentence):
        is_right((output,), label, compare, 1e-3)
    right = is_right((numbers(1), text("cat", name="t")), {"y": 1, "t": "cat"}, compare, 0.0)
    assert right
    with pytest.raises(InvalidRequest):  # though the first output is wrong already
        is_right((numbers(1), text("cat", name="t")), {"y": 2, "t": None}, compare, 0.0)


def test_a_label_of_a_wrong_form_counts_for_nobody(memory: AnswerMemory) -> None:
    live = live_release()
    keep(memory, outputs=(INTEGER,))
    for label in ([1, 2, 3], "x", None, True):
        with pytest.raises(InvalidRequest):
            tell(memory, live, label=label)
    assert live.book.snapshot() is None or not cells(live)
    told = tell(memory, live, label="3")
    assert told is not None
    assert told.agreed


def test_a_label_that_fits_what_was_seen_counts_against_another_answer_of_another_form(
    memory: AnswerMemory,
) -> None:
    live = live_release()
    keep(memory, version=1, outputs=(INTEGER,))
    wrong = Tensor("y", DataType.INT64, (0,), b"")
    memory.keep_mirrored("r1", "", version=2, device="gpu", outputs=(wrong,))
    told = tell(memory, live, label=3)
    assert told is not None
    assert told.agreed
    found = {version: (cell.compared, cell.agreed) for (version, _), cell in cells(live).items()}
    assert found == {1: (1, 1), 2: (1, 0)}


def test_a_label_of_several_outputs_names_them() -> None:
    outputs = (numbers(1, 2), text("cat"))
    assert is_right(outputs, {"label": "cat"}, "equal", 0.0)
    assert is_right(outputs, {"y": [1, 2], "label": "cat"}, "equal", 0.0)
    assert not is_right(outputs, {"y": [1, 2], "label": "dog"}, "equal", 0.0)
    for wrong in ("cat", {}, {"z": 1}):
        with pytest.raises(InvalidRequest, match="'y', 'label'"):
            is_right(outputs, wrong, "equal", 0.0)


# What a body may say


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (b"{", "is no feedback"),
        (b"\xff", "is no feedback"),
        (b'{"metrics": {"stars": 4}}', "is no feedback"),
        (b'{"request": "r", "metrics": {"stars": "4"}}', "is no feedback"),
        (b'{"request": "r", "star": 4}', "unknown field `star`"),
        (b'{"request": "", "label": 1}', "X-Request-Id"),
        (b'{"request": "r"}', "says nothing"),
        (b'{"request": "r", "metrics": {"errors": 1}}', "measured by the gateways"),
        (b'{"request": "r", "metrics": {"": 1}}', "1 to 128"),
        (b'{"request": "r", "metrics": {"a": 1e10}}', "at most 1e\\+09"),
        (
            json.dumps({"request": "r", "metrics": {str(n): 1 for n in range(17)}}).encode(),
            "may have 16",
        ),
    ],
)
def test_what_is_no_feedback_is_refused(body: bytes, sentence: str) -> None:
    with pytest.raises(InvalidRequest, match=sentence):
        read_feedback(body)


def test_feedback_has_a_size() -> None:
    with pytest.raises(TooLarge, match="may have 65536"):
        read_feedback(b" " * (MAX_FEEDBACK_BYTES + 1))


def test_feedback_is_read_as_it_is_written() -> None:
    body = b'{"request": "r", "metrics": {"a": 1, "b": true, "c": 0.5}, "label": null}'
    feedback = read_feedback(body)
    assert feedback.metrics == {"a": 1, "b": True, "c": 0.5}
    assert feedback.has_label
    assert not read_feedback(b'{"request": "r", "metrics": {"a": 1}}').has_label


# The routes


class Others:
    """Other gateways."""

    def __init__(self) -> None:
        self.knows: Counted | None = None
        self.asked: list[tuple[str, str]] = []

    async def tell(self, feedback: Feedback, caller: str) -> Counted | None:
        self.asked.append((feedback.request, caller))
        return self.knows

    async def disagreements(self, model: str) -> Seen:
        return Seen([], ["gamma"])


async def post(dispatcher: Dispatcher, body: bytes, key: str = "") -> Any:
    http = HttpRequest("POST", "/mesh/v1/feedback", "", {}, body, Caller(Scope.INFER, key))
    match = dispatcher.match("POST", "/mesh/v1/feedback")
    assert match.scope is Scope.INFER
    reply: Any = match.answer(http, "r2")
    response = await reply if inspect.isawaitable(reply) else reply
    assert isinstance(response, HttpResponse)
    return json.loads(bytes(response.body))  # type: ignore[arg-type]


async def test_feedback_at_the_gateway_that_answered_counts_at_once(
    dispatcher: Dispatcher, pipeline: Pipeline, router: Router, serve: Callable[..., None],
    make_manifest: Callable[..., Manifest],
) -> None:  # fmt: skip
    for version in (1, 2):
        serve(what=make_manifest(version=version))
    release = Release("canary", 1, 2, (Step(1.0),), against="labels", compare="equal")
    router.release_changed("digits", REVISION, release, Progress(REVISION, "running", 0, 0))
    http = HttpRequest(
        "POST", "/mesh/v1/models/digits/infer", "", {},
        b'{"inputs": {"x": [[1, 2, 3, 4]]}}', Caller(Scope.INFER, ANN),
    )  # fmt: skip
    dispatcher.match("POST", http.path).answer(http, "r1")
    told = await post(
        dispatcher, b'{"request": "r1", "metrics": {"stars": 4}, "label": [1, 2, 3, 4]}', ANN
    )
    assert told == {
        "request": "r1", "model": "digits", "version": 2, "counted": ["stars"], "agreed": True, "note": "",
    }  # fmt: skip


async def test_feedback_about_another_gateways_answer_goes_there(
    dispatcher: Dispatcher, pipeline: Pipeline
) -> None:
    others = pipeline.releasing.others = Others()
    others.knows = Counted("r1", "digits", 1, ("stars",))
    told = await post(dispatcher, b'{"request": "r1", "metrics": {"stars": 4}}', ANN)
    assert told["version"] == 1
    assert others.asked == [("r1", ANN)]


@pytest.mark.parametrize("has_others", [True, False])
async def test_feedback_about_an_answer_that_nobody_remembers_says_why_that_may_be(
    dispatcher: Dispatcher, pipeline: Pipeline, has_others: bool
) -> None:
    if has_others:
        pipeline.releasing.others = Others()
    with pytest.raises(NotFound, match=r"'r1'.*same API key, within 24 hours.*50000"):
        await post(dispatcher, b'{"request": "r1", "metrics": {"stars": 4}}')


async def test_disagreements_are_those_of_the_release_that_is_under_way(
    dispatcher: Dispatcher, pipeline: Pipeline, router: Router, serve: Callable[..., None],
    make_manifest: Callable[..., Manifest],
) -> None:  # fmt: skip
    async def seen() -> Any:
        path = "/mesh/v1/deployments/digits/rollout/disagreements"
        http = HttpRequest("GET", path, "", {}, b"", Caller(Scope.DEPLOY, ""))
        response: Any = await dispatcher.match("GET", path).answer(http, "r2")  # type: ignore[misc]
        return json.loads(response.body)

    for version in (1, 2, 3):
        serve(what=make_manifest(version=version))
    release = Release("ab", 1, 2, (Step(1.0),), against="labels", compare="equal")
    progress = Progress(REVISION, "running", 0, 0)
    assert (await seen())["version"] == 0
    router.release_changed("digits", REVISION, release, progress)
    http = HttpRequest(
        "POST", "/mesh/v1/models/digits/infer", "", {},
        b'{"inputs": {"x": [[1, 2, 3, 4]]}}', Caller(Scope.INFER, ""),
    )  # fmt: skip
    dispatcher.match("POST", http.path).answer(http, "r1")
    await post(dispatcher, b'{"request": "r1", "label": [1, 2, 3, 5]}')
    found = await seen()
    assert (found["version"], found["compared"], found["disagreed"]) == (2, 1, 1)
    (example,) = found["examples"]
    assert (example["request"], example["expected"]) == ("r1", "[1, 2, 3, 5]")
    assert example["inputs"] == {"x": {"shape": [1, 4], "values": [1, 2, 3, 4]}}
    assert (example["node"], example["answer"]["x"]["values"]) == ("alpha", [1, 2, 3, 4])
    former = router.releases.of("digits")
    later = Release("ab", 1, 3, (Step(1.0),), against="labels", compare="equal")
    router.release_changed("digits", (8, 8), later, Progress((8, 8), "running", 0, 0))
    found = await seen()
    assert (found["version"], found["compared"], found["examples"]) == (3, 0, [])
    dispatcher.match("POST", http.path).answer(http, "r3")
    await post(dispatcher, b'{"request": "r3", "label": [1, 2, 3, 4]}')
    assert former is not None
    pipeline.releasing.mirroring.disagreements.missed(former, "too late", 0.0)
    found = await seen()
    assert (found["version"], found["compared"], found["no_reference"]) == (3, 1, 0)


async def test_labels_of_an_ab_test_count_for_both_versions(
    dispatcher: Dispatcher, router: Router, serve: Callable[..., None],
    make_manifest: Callable[..., Manifest],
) -> None:  # fmt: skip
    """Both answer real requests, so that nothing needs to be mirrored."""
    for version in (1, 2):
        serve(what=make_manifest(version=version))
    faults: list[Fault] = []
    table = {"strategy": "ab", "against": "labels", "compare": "equal", "gates": {"agreement": 0.9}}
    plan = read_release(table, faults, ())
    assert plan is not None
    assert faults == []
    release = msgspec.structs.replace(plan, baseline=1, candidate=2)
    assert [*release_flaws(release)] == []
    router.release_changed("digits", REVISION, release, Progress(REVISION, "running", 0, 0))
    for number in range(40):
        http = HttpRequest(
            "POST", "/mesh/v1/models/digits/infer", "", {},
            b'{"inputs": {"x": [[1, 2, 3, 4]]}}', Caller(Scope.INFER, ""),
        )  # fmt: skip
        dispatcher.match("POST", http.path).answer(http, f"r{number}")
        await post(
            dispatcher, json.dumps({"request": f"r{number}", "label": [1, 2, 3, 4]}).encode()
        )
    live = router.releases.of("digits")
    assert live is not None
    counts = {version: cell.compared for (version, _), cell in cells(live).items()}
    assert sum(counts.values()) == 40
    assert min(counts[1], counts[2]) > 5
