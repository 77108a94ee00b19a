"""Sequences: who has a slot, whose request runs next, and what the model is told."""

from __future__ import annotations

import asyncio
import math
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from meshnode.errors import (
    DeadlineExceeded,
    InferenceFailed,
    InvalidRequest,
    NotServing,
    Saturated,
    SequenceMoved,
)
from meshnode.models.execution import (
    ControlInput,
    ControlKind,
    Execution,
    SequenceBatching,
    SequenceState,
)
from meshnode.models.manifest import Manifest, TensorSpec
from meshnode.models.runtimes.onnx_session import OnnxModel
from meshnode.models.serving.batching import Start
from meshnode.models.serving.measure import RunTime
from meshnode.models.serving.opened import Instance, Opened
from meshnode.models.serving.replica import Replica
from meshnode.models.serving.sequence_run import SequenceRows
from meshnode.models.serving.sequences import SequenceJob, Sequencer
from meshnode.models.serving.server_config import ServerConfig
from meshnode.models.tensors import from_numpy, to_numpy
from meshnode.types import DataType, InferRequest, InferResponse, ResponsePart

from .conftest import TensorType, onnx_model
from .replica_models import Process, Workers, turn

if TYPE_CHECKING:
    from collections.abc import Sequence

    from meshnode.errors import MeshError
    from meshnode.models.serving.batching import Effects
    from meshnode.types import Scalar, Tensor


class Named(SequenceJob):
    """`a1` is a request of sequence `a`; `<` starts it, `>` ends it."""

    def __init__(self, text: str, key: str = "k", deadline: float = math.inf) -> None:
        super().__init__(rows=1, key=key, deadline=deadline)
        self.name = text.strip("<>")
        self.correlation_id = self.name[0]
        self.start = "<" in text
        self.end = ">" in text


def sequencer(
    *, instances: int = 1, max_rows: int = 2, max_waiting: int = 100, **settings: Any
) -> Sequencer[Named]:
    made: Sequencer[Named] = Sequencer(
        SequenceBatching(**settings), max_rows=max_rows, max_waiting=max_waiting, max_sequences=6
    )
    for instance in range(instances):
        made.free(instance, 0.0)
    return made


def told(effects: Effects[Named]) -> list[str]:
    return [
        f"{each.instance}: {' '.join(f'{job.name}@{job.slot}' for job in each.jobs)}"
        if isinstance(each, Start)
        else f"{each.job.name}: {type(each.error).__name__}"
        for each in effects
    ]


def arrive(queue: Sequencer[Named], *texts: str, now: float = 0.0) -> list[str]:
    return [line for text in texts for line in told(queue.arrive(Named(text), now))]


def test_a_sequence_runs_in_order_in_its_slot() -> None:
    queue = sequencer()
    assert arrive(queue, "<a1") == ["0: a1@0"]
    assert arrive(queue, "<b1", "a2", "a3", "b2") == []
    assert told(queue.free(0, 0.0)) == ["0: a2@0 b1@1"]
    assert told(queue.free(0, 0.0)) == ["0: a3@0 b2@1"]
    assert queue.waiting == 0


def test_who_finds_no_slot_waits_until_a_sequence_ends() -> None:
    queue = sequencer()
    arrive(queue, "<a1", "<b1", "<c1", "c2", "a2>")
    assert told(queue.free(0, 0.0)) == ["0: a2@0 b1@1"]
    assert repr(queue) == "<Sequencer 3 sequences, 1 without a slot, 2 waiting, 0 free>"
    assert told(queue.free(0, 0.0)) == ["0: c1@0"]
    assert told(queue.free(0, 0.0)) == ["0: c2@0"]


def test_sequences_spread_over_instances_and_stay_there() -> None:
    queue = sequencer(instances=2)
    assert arrive(queue, "<a1", "<b1") == ["0: a1@0", "1: b1@0"]
    assert told(queue.free(1, 0.0)) == []
    assert arrive(queue, "a2") == []
    assert told(queue.free(0, 0.0)) == ["0: a2@0"]


def test_a_sequence_that_is_given_away_is_told_to_all_who_ask_for_it() -> None:
    queue = sequencer()
    assert queue.at_rest() == []
    arrive(queue, "<a1", "<b1")
    assert (queue.at_rest(), queue.hold("a")) == ([], None), "it runs"
    queue.free(0, 0.0)
    queue.free(0, 0.0)
    assert queue.at_rest() == ["a", "b"]
    assert queue.hold("a") == {}
    assert (queue.at_rest(), queue.hold("a")) == (["b"], None), "it is held already"
    assert arrive(queue, "a2", "a3>") == [], "what comes meanwhile waits"
    assert arrive(queue, "b2") == ["0: b2@1"]
    assert told(queue.give("a", "elsewhere")) == ["a2: SequenceMoved", "a3: SequenceMoved"]
    assert (queue.waiting, queue.open_sequences) == (0, 1)
    with pytest.raises(SequenceMoved) as moved:
        arrive(queue, "a4")
    assert moved.value.node == "elsewhere"
    assert arrive(queue, "<a1") == []
    assert told(queue.free(0, 0.0)) == ["0: a1@0"], "begun anew, it is here"


def test_a_sequence_that_nobody_takes_goes_on() -> None:
    queue = sequencer(max_idle_us=1_000_000)
    arrive(queue, "<a1")
    queue.free(0, 0.0)
    assert queue.hold("a") is not None
    assert queue.tick(100.0) == []
    assert arrive(queue, "a2", now=100.0) == []
    assert told(queue.keep("a", 100.0)) == ["0: a2@0"]
    queue.free(0, 100.0)
    assert queue.hold("a") is not None
    assert told(queue.keep("a", 200.0)) == []
    queue.tick(201.0)
    assert queue.open_sequences == 0, "its silence is counted from when it was kept"


def test_a_sequence_that_is_begun_anew_while_it_is_given_away_stays() -> None:
    queue = sequencer()
    arrive(queue, "<a1")
    queue.free(0, 0.0)
    queue.hold("a")
    assert arrive(queue, "<a1") == ["0: a1@1"]
    assert told(queue.give("a", "elsewhere")) == []
    queue.free(0, 0.0)
    assert arrive(queue, "a2") == ["0: a2@1"]
    assert queue.open_sequences == 1


def test_a_held_sequence_whose_process_ends_is_lost_once() -> None:
    queue = sequencer()
    arrive(queue, "<a1")
    queue.free(0, 0.0)
    queue.hold("a")
    arrive(queue, "a2")
    assert told(queue.withdraw(0)) == ["a2: InferenceFailed"]
    assert queue.give("a", "elsewhere") == queue.keep("a", 0.0) == []


def elsewhere(text: str) -> Named:
    job = Named(text)
    job.elsewhere = True
    return job


def test_a_sequence_that_may_begin_elsewhere_does_not_wait_for_a_place() -> None:
    queue = sequencer()
    assert told(queue.arrive(elsewhere("<a1"), 0.0)) == ["0: a1@0"]
    assert told(queue.arrive(elsewhere("<b1"), 0.0)) == []
    with pytest.raises(Saturated, match="all places for sequences are taken"):
        queue.arrive(elsewhere("<c1"), 0.0)
    assert queue.open_sequences == 2
    assert told(queue.arrive(elsewhere("a2"), 0.0)) == [], "one that has begun stays"
    assert arrive(queue, "<c1") == [], "who has nowhere else to go waits"
    assert queue.open_sequences == 3


def test_who_waits_for_a_place_is_turned_away_and_who_has_one_is_not() -> None:
    queue = sequencer()
    arrive(queue, "<a1", "<b1", "<c1", "c2", "<d1")
    refused = told(queue.turn_away(NotServing("emptied")))
    assert refused == ["c1: NotServing", "c2: NotServing", "d1: NotServing"]
    assert told(queue.free(0, 0.0)) == ["0: b1@1"]
    assert queue.open_sequences == 2


def test_a_sequence_of_another_node_goes_on_here_as_one_that_has_started() -> None:
    queue = sequencer()
    assert told(queue.take("a", {}, 0.0)) == []
    assert queue.at_rest() == ["a"]
    with pytest.raises(InvalidRequest, match="goes on here already"):
        queue.take("a", {}, 0.0)
    (effect,) = queue.arrive(Named("a2"), 0.0)
    assert isinstance(effect, Start)
    assert [job.start for job in effect.jobs] == [False]
    for name in "bcdef":
        queue.take(name, {}, 0.0)
    with pytest.raises(Saturated):
        queue.take("g", {}, 0.0)


@pytest.mark.parametrize("text", ["x1", "x1>"])
def test_a_request_of_no_known_sequence_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest, match="sequence 'x' is not known here"):
        sequencer().arrive(Named(text), 0.0)


def test_a_silent_sequence_is_over_and_its_slot_free() -> None:
    queue = sequencer(max_rows=1, max_idle_us=1_000_000)
    arrive(queue, "<a1")
    assert queue.next_at == math.inf  # it runs
    queue.free(0, 2.0)
    assert queue.next_at == 3.0
    assert arrive(queue, "<b1", now=2.5) == []
    assert told(queue.tick(3.0)) == ["0: b1@0"]
    with pytest.raises(InvalidRequest):
        queue.arrive(Named("a2"), 3.0)


def test_starting_again_begins_a_new_sequence() -> None:
    queue = sequencer(max_rows=2)
    arrive(queue, "<a1", "a2")
    second = Named("<a3")
    queue.arrive(second, 0.0)
    assert told(queue.free(0, 0.0)) == ["0: a2@0 a3@1"]
    assert second.start
    queue.free(0, 0.0)
    assert arrive(queue, "<b1") == ["0: b1@0"]  # the first one's slot


def test_too_many_requests_or_sequences_are_refused() -> None:
    queue = sequencer(max_waiting=2)
    arrive(queue, "<a1", "a2", "a3")
    with pytest.raises(Saturated, match="2 requests wait"):
        queue.arrive(Named("a4"), 0.0)
    many = sequencer()
    arrive(many, *[f"<{name}1" for name in "abcdef"])
    with pytest.raises(Saturated, match="has 6 sequences"):
        many.arrive(Named("<g1"), 0.0)


def test_a_late_or_cancelled_request_leaves_a_gap_and_the_next_one_starts() -> None:
    queue = sequencer(max_rows=1)
    arrive(queue, "<a1")
    first, second = Named("<b1", deadline=1.0), Named("b2")
    queue.arrive(first, 0.0)
    queue.arrive(second, 0.0)
    assert queue.next_at == 1.0
    assert told(queue.tick(1.0)) == ["b1: DeadlineExceeded"]
    third = Named("a2>")
    queue.arrive(third, 1.0)
    assert queue.cancel(third)
    assert not queue.cancel(third)
    assert told(queue.free(0, 1.0)) == ["0: b2@0"]
    assert second.start
    assert not queue.cancel(Named("z"))


def test_a_sequence_of_one_that_is_cancelled_before_it_had_a_slot_is_gone() -> None:
    queue = sequencer(max_rows=1)
    arrive(queue, "<a1")
    only = Named("<b1>")
    queue.arrive(only, 0.0)
    assert repr(only.sequence) == "<Sequence 'b' at None, 1 waiting>"
    assert queue.cancel(only)
    assert repr(queue) == "<Sequencer 1 sequences, 0 without a slot, 0 waiting, 0 free>"
    assert not queue.has_free


def test_direct_slots_wait_for_one_another_as_configured() -> None:
    queue = sequencer(max_rows=4, max_queue_delay_us=1_000_000, minimum_slot_utilization=0.5)
    assert arrive(queue, "<a1") == []
    assert queue.next_at == 1.0
    assert arrive(queue, "<b1") == ["0: a1@0 b1@1"]
    queue.free(0, 0.0)
    assert arrive(queue, "b2", now=1.0) == []
    assert told(queue.tick(2.0)) == ["0: b2@1"]


def test_only_equal_keys_run_together() -> None:
    queue = sequencer()
    queue.withdraw(0)
    queue.arrive(Named("<a1", key="x"), 0.0)
    queue.arrive(Named("<b1", key="y"), 0.0)
    assert told(queue.free(0, 0.0)) == ["0: a1@0"]
    assert told(queue.free(0, 0.0)) == ["0: b1@1"]


def test_oldest_takes_the_sequences_that_waited_longest() -> None:
    queue = sequencer(strategy="oldest", max_candidates=4)
    assert arrive(queue, "<a1", "<b1", "<c1", "a2") == ["0: a1@0"]
    assert told(queue.free(0, 0.0)) == ["0: b1@1 c1@2"]
    assert told(queue.free(0, 0.0)) == ["0: a2@0"]


def test_oldest_prefers_sizes_and_waits_for_them() -> None:
    queue = sequencer(
        strategy="oldest", max_candidates=4, max_rows=4, preferred_batch_sizes=(2,),
        max_queue_delay_us=1_000_000,
    )  # fmt: skip
    assert arrive(queue, "<a1") == []
    assert arrive(queue, "<b1") == ["0: a1@0 b1@1"]
    queue.free(0, 0.0)
    arrive(queue, "<c1", now=0.0)
    assert queue.next_at == 1.0
    assert told(queue.tick(1.0)) == ["0: c1@2"]


def test_an_instance_that_is_lost_takes_its_sequences_with_it() -> None:
    queue = sequencer()
    arrive(queue, "<a1", "a2", "<b1")
    [refused, other] = queue.withdraw(0)
    assert told([refused, other]) == ["a2: InferenceFailed", "b1: InferenceFailed"]
    with pytest.raises(InvalidRequest):
        queue.arrive(Named("a3"), 0.0)
    assert arrive(queue, "<c1") == []
    assert told(queue.refuse_all(NotServing("gone"))) == ["c1: NotServing"]
    assert arrive(queue, "<d1") == []
    assert told(queue.free(0, 0.0)) == ["0: d1@0"]


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["arrive", "arrive", "free", "cancel", "tick", "lose"]),
        st.sampled_from("abcd"),
        st.sampled_from(["", "<", ">", "<>"]),
        st.integers(1, 4),
    ),
    max_size=60,
)


class Play:
    """A sequencer, and what must be true of it whatever happens."""

    def __init__(self, strategy: str) -> None:
        self.queue = sequencer(
            instances=2, strategy=strategy, max_candidates=3, max_idle_us=2_000_000
        )
        self.waiting: list[Named] = []
        self.busy: set[int] = set()
        self.places: dict[int, tuple[int, int]] = {}
        self.jobs: list[Named] = []  # so that no id is used twice
        self.now = 0.0

    def carry_out(self, effects: Effects[Named]) -> None:
        for effect in effects:
            if isinstance(effect, Start):
                self.start(effect)
            else:
                self.waiting.remove(effect.job)
        assert self.queue.waiting == len(self.waiting)

    def start(self, start: Start[Named]) -> None:
        assert start.instance not in self.busy
        self.busy.add(start.instance)
        assert len({job.slot for job in start.jobs}) == len(start.jobs) <= 3
        for job in start.jobs:
            place = (start.instance, job.slot)
            assert self.places.setdefault(id(job.sequence), place) == place
            assert next(each for each in self.waiting if each.sequence is job.sequence) is job
            self.waiting.remove(job)

    def arrive(self, text: str, patience_s: float) -> None:
        job = Named(text, deadline=self.now + patience_s)
        self.jobs.append(job)
        self.waiting.append(job)
        try:
            effects = self.queue.arrive(job, self.now)
        except (InvalidRequest, Saturated):
            self.waiting.remove(job)
        else:
            self.carry_out(effects)

    def free(self, *, lost: bool = False) -> None:
        instance = min(self.busy)
        if lost:
            self.carry_out(self.queue.withdraw(instance))
        self.busy.discard(instance)
        self.carry_out(self.queue.free(instance, self.now))

    def step(self, what: str, name: str, flags: str, pause: int) -> None:
        self.now += 0.3 * pause
        if what == "arrive":
            self.arrive(f"{flags}{name}{len(self.jobs)}", pause)
        elif what in ("free", "lose") and self.busy:
            self.free(lost=what == "lose")
        elif what == "cancel" and self.waiting:
            assert self.queue.cancel(self.waiting.pop())
        else:
            self.carry_out(self.queue.tick(self.now))

    def end(self) -> None:
        while self.waiting or self.busy:
            self.now += 0.5
            self.carry_out(self.queue.tick(self.now))
            if self.busy:
                self.free()
        self.carry_out(self.queue.tick(self.now + 10))
        assert not self.queue._all


@settings(deadline=None, derandomize=True, max_examples=150)
@given(STEPS, st.sampled_from(["direct", "oldest"]))
def test_each_request_leaves_once_and_a_sequence_keeps_its_order_and_place(
    steps: list[tuple[str, str, str, int]], strategy: str
) -> None:
    play = Play(strategy)
    for what, name, flags, pause in steps:
        play.step(what, name, flags, pause)
    play.end()


# With a real model


def accumulator() -> OnnxModel:
    """y = x, added to the state unless the sequence starts; silent rows (not ready) are -1."""
    column: TensorType = (TensorProto.FLOAT, ["n", 1])
    nodes = [
        helper.make_node("Not", ["start"], ["goes_on"]),
        helper.make_node("Cast", ["goes_on"], ["factor"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["state_in", "factor"], ["before"]),
        helper.make_node("Add", ["x", "before"], ["sum"]),
        helper.make_node("Where", ["ready", "sum", "minus"], ["y"]),
        helper.make_node("Identity", ["y"], ["state_out"]),
        helper.make_node("Identity", ["id"], ["who"]),
    ]
    flags: TensorType = (TensorProto.BOOL, ["n", 1])
    ids: TensorType = (TensorProto.UINT64, ["n", 1])
    content = onnx_model(
        nodes,
        {"x": column, "start": flags, "ready": flags, "id": ids, "state_in": column},
        {"y": column, "state_out": column, "who": ids},
        [helper.make_tensor("minus", TensorProto.FLOAT, [1], [-1.0])],
    )
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return OnnxModel(session, "cpu")


SEQUENCES = SequenceBatching(
    controls=(
        ControlInput("start", ControlKind.START, DataType.BOOL, (0, 1)),
        ControlInput("ready", ControlKind.READY, DataType.BOOL, (0, 1)),
        ControlInput("id", ControlKind.CORRELATION_ID, DataType.UINT64),
    ),
    states=(SequenceState("state_in", "state_out", DataType.FP32, (1,)),),
)


class Accumulating:
    """A replica of the accumulator."""

    def __init__(
        self,
        settings: SequenceBatching = SEQUENCES,
        *,
        process: Process | None = None,
        **opened: Any,
    ) -> None:
        self.workers = Workers()
        self.rows: list[int] = []
        model = accumulator()
        run = model.run

        class Watched:
            inputs, outputs, device = model.inputs, model.outputs, "cpu"
            close = staticmethod(model.close)

            @staticmethod
            def run(inputs: Any, outputs: Any) -> Any:
                self.rows.append(inputs[0].rows)
                return run(inputs, outputs)

        manifest = Manifest(
            "m", 1, "onnx", "p",
            (TensorSpec("x", DataType.FP32, (-1, 1)),),
            (TensorSpec("y", DataType.FP32, (-1, 1)), TensorSpec("who", DataType.UINT64, (-1, 1))),
            3, (), "f", Execution(sequences=settings),
        )  # fmt: skip
        self.replica = Replica(
            manifest,
            Opened((Instance(process or Watched(), 4),), RunTime(), **opened),
            ServerConfig(),
            time.perf_counter,
            lambda _count, _name: self.workers,
        )

    def ask(self, value: float, **parameters: Scalar) -> asyncio.Task[InferResponse]:
        array = np.full((1, 1), value, np.float32)
        parameters = {f"sequence_{name}": each for name, each in parameters.items()}
        request = InferRequest("m", (from_numpy("x", array),), parameters=parameters)
        return asyncio.ensure_future(self.replica.infer(request))


def outputs(response: InferResponse) -> tuple[list[str], float, int]:
    assert response.single is not None
    y, who = response.single.outputs
    return [y.name, who.name], float(to_numpy(y)[0, 0]), int(to_numpy(who)[0, 0])


async def test_the_model_s_state_follows_each_sequence() -> None:
    bench = Accumulating()
    tasks = [
        bench.ask(1, id=7, start=True), bench.ask(10, id=8, start=True), bench.ask(2, id=7),
        bench.ask(20, id=8), bench.ask(100, id=9, start=True, end=True), bench.ask(3, id=7, end=True),
    ]  # fmt: skip
    await bench.workers.run_all()
    answers = [outputs(await each) for each in tasks]
    assert [each[1] for each in answers] == [1, 10, 3, 30, 100, 6]
    assert [each[2] for each in answers] == [7, 8, 7, 8, 9, 7]
    assert {tuple(each[0]) for each in answers} == {("y", "who")}
    assert bench.rows == [1, 3, 2]  # at last, slots 0 and 1: sequences 7 and 8
    assert bench.replica.batching == "sequences, direct, up to 3 rows"
    with pytest.raises(InvalidRequest, match="sequence 7 is not known"):
        await bench.ask(1, id=7)


async def test_a_silent_slot_between_two_others_is_a_row_that_is_not_ready() -> None:
    bench = Accumulating()
    tasks = [bench.ask(each, id=each, start=True) for each in (1, 2, 3)]
    await bench.workers.run_all()
    tasks += [bench.ask(10, id=1), bench.ask(30, id=3), bench.ask(20, id=2)]
    await bench.workers.run_all()
    assert [outputs(await each)[1] for each in tasks] == [1, 2, 3, 11, 33, 22]
    assert bench.rows == [1, 3, 1, 3]


class Elsewhere(Process):
    """The accumulator in a process of its own."""

    def __init__(self, *, joins_rows: bool) -> None:
        super().__init__(joins_rows=joins_rows)
        self.model = accumulator()
        self.inputs = self.model.inputs
        self.outputs = self.model.outputs
        self.rows: list[list[int]] = []

    async def execute(
        self, requests: Sequence[InferRequest]
    ) -> list[tuple[Tensor, ...] | ResponsePart | MeshError]:
        self.rows.append([each.rows for each in requests])
        await asyncio.sleep(0)
        if any(to_numpy(each.inputs[0]).max() > 1000 for each in requests):
            return [InferenceFailed("too much")] * len(requests)
        return [
            ResponsePart(self.model.run(each.inputs, each.outputs), {"seen": True})
            for each in requests
        ]


@pytest.mark.parametrize(
    ("joins_rows", "rows"), [(True, [[1], [2], [3], [1]]), (False, [[1], [1, 1], [1, 1], [1]])]
)
async def test_a_process_gets_the_rows_of_sequences_as_it_takes_them(
    joins_rows: bool, rows: list[list[int]]
) -> None:
    """Joined, with a row for each slot; or a list of the requests that there are."""
    process = Elsewhere(joins_rows=joins_rows)
    bench = Accumulating(process=process)
    first = await bench.ask(0, id=4, start=True, end=True)
    assert outputs(first)[1] == 0
    assert first.single is not None
    tasks = [bench.ask(each, id=each, start=True) for each in (1, 2, 3)]
    await turn()
    tasks += [bench.ask(10, id=1), bench.ask(30, id=3)]
    answers = [outputs(await each) for each in tasks]
    assert [each[1] for each in answers] == [1, 2, 3, 11, 33]
    assert process.rows[0] == rows[0]
    assert max(map(len, process.rows)) == max(map(len, rows))


async def test_a_process_that_fails_with_sequences_fails_them_all_once() -> None:
    process = Elsewhere(joins_rows=True)
    bench = Accumulating(process=process)
    tasks = [bench.ask(5000, id=each, start=True) for each in (1, 2, 3)]
    for task in tasks:
        with pytest.raises(InferenceFailed, match="too much"):
            await task
    assert sum(sum(each) for each in process.rows) == 4  # slot 0, then slots 0 to 2


async def test_a_state_may_begin_as_its_file_says() -> None:
    settings = SequenceBatching(controls=SEQUENCES.controls[1:], states=SEQUENCES.states)
    no_start = ControlInput("start", ControlKind.END, DataType.BOOL, (0, 1))
    settings = SequenceBatching(controls=(no_start, *settings.controls), states=settings.states)
    bench = Accumulating(settings, initial_states={"state_in": np.float32(0.5).tobytes()})
    task = bench.ask(1, id=1, start=True)
    await bench.workers.run_all()
    assert outputs(await task)[1] == 1.5


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({}, "each request needs the parameter 'sequence_id'"),
        ({"id": True}, "must be a whole number, 0 or more, or a string"),
        ({"id": -1, "start": True}, "must be a whole number, 0 or more, or a string"),
        ({"id": 5}, "sequence 5 is not known here"),
        ({"id": "five", "start": True}, "but this model wants a number"),
        ({"id": 2**64, "start": True}, "does not fit UINT64"),
    ],
)
async def test_a_request_that_says_its_sequence_wrongly_is_told_how(
    parameters: dict[str, Scalar], message: str
) -> None:
    with pytest.raises(InvalidRequest, match=message):
        await Accumulating().ask(1, **parameters)


async def test_a_request_of_several_rows_is_no_part_of_a_sequence() -> None:
    two = from_numpy("x", np.zeros((2, 1), np.float32))
    request = InferRequest("m", (two,), parameters={"sequence_id": 1, "sequence_start": True})
    with pytest.raises(InvalidRequest, match="has one row, not 2"):
        await Accumulating().replica.infer(request)


async def test_a_failure_is_not_repeated_and_leaves_the_state() -> None:
    """The state would otherwise count what ran twice."""
    bench = Accumulating()
    first = bench.ask(1, id=1, start=True)
    await bench.workers.run_all()
    await first
    bad = bench.ask(2, id=1)
    await turn()
    [(work, args)] = bench.workers.work
    bench.workers.work.clear()
    model = args[2]
    good_run = model.run
    model.run = staticmethod(_broken)
    work(*args)
    with pytest.raises(InferenceFailed, match="broken"):
        await bad
    model.run = good_run
    last = bench.ask(5, id=1)
    await bench.workers.run_all()
    assert outputs(await last)[1] == 6


def _broken(*_args: object) -> None:
    raise InferenceFailed("broken")


async def test_a_deadline_of_a_waiting_request_is_told() -> None:
    bench = Accumulating()
    first = bench.ask(1, id=1, start=True)
    await turn()
    request = InferRequest(
        "m",
        (from_numpy("x", np.zeros((1, 1), np.float32)),),
        parameters={"sequence_id": 1},
        timeout_s=0.01,
    )
    with pytest.raises(DeadlineExceeded, match="waited for its turn"):
        await bench.replica.infer(request)
    await bench.workers.run_all()
    await first


def test_controls_have_the_form_that_the_model_states_and_names_may_be_strings() -> None:
    """Without a batch a control is a list of one; a correlation id may be a string."""
    controls = (
        ControlInput("end", ControlKind.END, DataType.FP32, (-1.0, 1.0)),
        ControlInput("id", ControlKind.CORRELATION_ID, DataType.BYTES),
    )
    spec = TensorSpec("x", DataType.BYTES, (1,))
    manifest = Manifest("m", 1, "r", "p", (spec,), (spec,), 0, (), "f")
    rows = SequenceRows(manifest, SequenceBatching(controls=controls), (spec,), {})
    job = Named("a1>")
    job.correlation_id = "ann"
    x = from_numpy("x", np.array(["text"], object))
    _, end, who = rows.completed((x,), job)
    assert (end.shape, to_numpy(end).tolist()) == ((1,), [1.0])
    assert to_numpy(who).tolist() == ["ann"]
    idle = rows.idle((x, end, who))
    assert to_numpy(idle[0]).tolist() == [""]
    assert to_numpy(idle[1]).tolist() == [0.0]
    with pytest.raises(InferenceFailed, match="no state 's'"):
        SequenceRows(
            manifest,
            SequenceBatching(states=(SequenceState("r", "s", DataType.FP32, (1,)),)),
            (),
            {},
        ).taken(job, (), ())
